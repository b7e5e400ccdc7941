"""Run one fixed demo job at two commits and say whether stores, exports and reports are the same, byte for byte.

    python scripts/compare_commits.py OLD NEW [--keep FOLDER] [--model CHECKPOINT]

Each commit is checked out beside the other and its own code labels the same drawn photos and videos with the same
checkpoint (by default OLD's demo checkpoint), exports every format and writes a report. What names the time of day is
taken out first: `created` in the store and the datasets, stamps in the report, times in lists of files, the pace. A
store is compared table by table, and its notes key by key. Ends with 0 when nothing differs, else with 1 and a list.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FORMATS = (
    "coco",
    "coco-zero",
    "coco-roboflow",
    "yolo",
    "yolo-detect",
    "yolo-obb",
    "voc",
    "cvat",
    "labelstudio",
    "masks",
)
VIDEO_FORMATS = ("ytvis", "mot", "mots")
CLOCKED = ("note pace",)  # how fast it went
FILE_LINE = re.compile(rb'\[(\d+),\d+,"[^"]*",')  # of an export's list: size, time, digest (of stamps too), path
STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?(\.\d+)?(\+00:00|Z)?")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--keep", type=Path, help="work here and leave everything to be looked at")
    parser.add_argument("--model", type=Path, help="label with this checkpoint")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = chosen.keep or Path(scratch)
        old_code = checkout(chosen.old, work / "old-code")
        model = chosen.model or next(old_code.glob("sam3label/**/checkpoint/config.json")).parent
        photos, videos = draw(old_code, work / "input")
        products = [
            label(checkout(commit, work / f"{side}-code"), model, photos, videos, work / side)
            for side, commit in (("old", chosen.old), ("new", chosen.new))
        ]
        return tell(*products)


def checkout(commit: str, folder: Path) -> Path:
    """The tree of a commit, without touching this one."""
    if not folder.exists():
        folder.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def command(code: Path, *words: str | Path, cwd: Path) -> None:
    """Give a `sam3label` command to the code of one commit; one thread, so that sums come in one order."""
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-m", "sam3label", *map(str, words)],
        cwd=cwd,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def draw(code: Path, folder: Path) -> tuple[Path, Path]:
    """Photos with their concept list and a video, drawn by the demo of one commit."""
    folder.mkdir(parents=True, exist_ok=True)
    command(code, "demo", "-o", folder / "photos", cwd=folder)
    has_new_name = '"--videos"' in (code / "sam3label" / "cli" / "demo.py").read_text()
    command(code, "demo", "--videos" if has_new_name else "--video", "-o", folder / "videos", cwd=folder)
    return folder / "photos", folder / "videos"


def label(code: Path, model: Path, photos: Path, videos: Path, out: Path) -> dict[str, str]:
    """Digest by name of everything one commit makes of the inputs."""
    out.mkdir(parents=True, exist_ok=True)
    for name, source, formats in (("photos", photos, FORMATS), ("videos", videos, VIDEO_FORMATS)):
        media, concepts = media_of(source), next(source.glob("*.yaml"))
        run = Path(f"run-{name}")  # relative, so that no absolute path of this run gets into the products
        command(code, "run", media, "-c", concepts, "--model", model, "-o", run, "--workers", "0", cwd=out)
        for format in formats:
            command(code, "export", run, "--format", format, "-o", f"{name}-{format}", "--images", "copy", cwd=out)
        command(code, "report", run, "-o", f"{name}.html", cwd=out)
    digests = {
        str(path.relative_to(out)): digest(path.read_bytes())
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.relative_to(out).parts[0].startswith("run-")
    }
    return digests | {
        f"run-{name}: {table}": d for name in ("photos", "videos") for table, d in tables(out / f"run-{name}")
    }


def media_of(source: Path) -> Path:
    return next(path for path in (source / "photos", source / "videos", source / "films") if path.is_dir())


def tables(run: Path) -> list[tuple[str, str]]:
    """Each table of a store with the digest of its rows."""
    with sqlite3.connect(f"file:{run / 'run.sqlite'}?mode=ro", uri=True) as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        rows = {name: sorted(map(repr, db.execute(f'SELECT * FROM "{name}"'))) for name in names if name != "meta"}
        notes = {f"note {key}": value for key, value in db.execute("SELECT key, value FROM meta ORDER BY key")}
        kept = {name: value for name, value in (rows | notes).items() if name not in CLOCKED}
        return [(name, digest(repr(value).encode())) for name, value in kept.items()]


def digest(content: bytes) -> str:
    content = STAMP.sub(b"TIME", content)
    if FILE_LINE.match(content):  # in the order of the folder
        content = b"\n".join(sorted(FILE_LINE.sub(rb"[\1,", line) for line in content.splitlines()))
    return hashlib.sha256(content).hexdigest()[:16]


def tell(old: dict[str, str], new: dict[str, str]) -> int:
    differ = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    print(f"{len(old) - sum(name in old for name in differ)} of {len(old)} products are the same.")
    for name in differ:
        print(f"differs: {name}" if name in old and name in new else f"only {'old' if name in old else 'new'}: {name}")
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main())
