"""Does labelling on one device cost more at one commit than at another? The same photos, in turn, CPU seconds a photo.

    python scripts/bench/bench_commits.py OLD [NEW] [--photos 120] [--rounds 7]

Each commit's own code labels drawn photos from the local disk with the demo checkpoint, in one process of one thread
that decodes too; rounds alternate which goes first. Counted is the process's own time from the first photo to the last
commit. Prints the medians and their ratio, and the ratios of the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2

from sam3label.demo.shapes import make_scene

ROOT = Path(__file__).parents[2]
LABEL = """
import sys, time
from sam3label.concepts.concept_list import parse_concepts
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
began = []
concepts = parse_concepts("names: [circle, star, ring]", "bench")
options = LabelOptions(model="demo", device="cpu", workers=0)
summary = label([sys.argv[1]], concepts, sys.argv[2], options, on_progress=lambda _: began.append(time.process_time()))
assert summary.progress.done == int(sys.argv[3]), summary
print(time.process_time() - began[0])
"""


def checked_out(commit: str, folder: Path) -> Path:
    """The tree of a commit, without touching this one."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def seconds(code: Path, photos: Path, count: int) -> float:
    """CPU seconds a photo of the code in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-c", LABEL, str(photos), str(Path(out) / "run"), str(count)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=out).stdout
    return float(said) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", default="HEAD")
    parser.add_argument("--photos", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "photos").mkdir()
        for n in range(chosen.photos):
            cv2.imwrite(str(folder / "photos" / f"{n:04d}.jpg"), make_scene(n, (240, 320)).image[:, :, ::-1])
        codes = [checked_out(commit, folder / side) for side, commit in (("a", chosen.old), ("b", chosen.new))]
        spent: tuple[list[float], list[float]] = [], []
        for turn in range(chosen.rounds):
            for side in (0, 1) if turn % 2 else (1, 0):
                spent[side].append(seconds(codes[side], folder / "photos", chosen.photos))
    old, new = map(statistics.median, spent)
    ratios = sorted(b / a for a, b in zip(*spent, strict=True))
    print(
        f"{chosen.photos} photos, {chosen.rounds} rounds: {1000 * old:.1f} ms of CPU a photo at {chosen.old}, "
        f"{1000 * new:.1f} at {chosen.new}: {new / old:.3f} times (rounds {ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


if __name__ == "__main__":
    main()
