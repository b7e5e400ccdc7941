"""Runs that are read-only, damaged, moved or mixed up, through every verb: an answer or one sentence."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.builders import candidate, concepts, phrase_prompts, rectangle
from support.labelled import photo, tree
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.concepts.concept_list import dump_concepts, load_concepts
from sam3label.core.records import Correction, MediaItem, UnitResult
from sam3label.media.stamps import stamp_of
from sam3label.run import database
from sam3label.run.reader import open_run
from sam3label.run.store import Store
from sam3label.run.store_errors import DATABASE

LIST = "names: [cat]\ndefaults: {conf: 0.2}\n"


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def make_run(folder: Path, n: int = 6, queries: int = 200, answers: int = 1) -> Path:
    """A run over `folder/photos` whose labels are rectangles, made without a model."""
    notes = {"concepts": dump_concepts(concepts("cat")), "info": {"model": "none", "queries": queries}}
    with Store.writer(folder / "run", phrase_prompts("cat"), {"floor": 0.1}, notes=notes) as store:
        for name in (f"{i}.png" for i in range(n)):
            item = MediaItem(name, photo(folder / "photos", name), root=str(folder / "photos"))
            found = tuple(
                candidate("cat", 0.9, rectangle(2 + q, 3, 20, 30), item_id=name, query=q) for q in range(answers)
            )
            presence = [[0.9]]
            store.write([UnitResult(item, 0, 1, (60, 80), found, np.array(presence, np.float32), stamp=stamp_of(item))])
        store.add_corrections([Correction("0.png", 0, "reviewed", who="ann", at="2026-01-01T10:00:00+00:00")])
    return folder / "run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def truth(run: Path, out: Path) -> Path:
    assert invoke("export", run, "-f", "coco", "-o", out / "truth", "-q")[0] == 0
    return out / "truth/annotations/instances_train.json"


def reading(run: Path, out: Path, gt: Path) -> dict[str, tuple[object, ...]]:
    """Every verb that reads a run, writing elsewhere."""
    return {
        "status": ("status", run),
        "export": ("export", run, "-f", "yolo", "-o", out / "yolo"),
        "report": ("report", run, "-o", out / "report.html"),
        "evaluate": ("evaluate", run, "--gt", gt),
        "calibrate": ("calibrate", run, "--gt", gt, "-o", out / "c.yaml"),
        "validate": ("validate", out / "truth", "--run", run),
        "summary": ("review", "summary", run),
        "write": ("review", "write", run, "-o", out / "fiftyone"),
        "check": ("check", run),
    }


# ---- a run that may not be written


def test_every_verb_reads_a_run_that_may_not_be_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gt = truth(run, tmp_path)
    before = tree(run)
    if os.geteuid() == 0:  # root may write whatever the permissions say
        allowed = os.access
        monkeypatch.setattr(database.os, "access", lambda p, mode: mode != os.W_OK and allowed(p, mode))
    (run / DATABASE).chmod(0o444)
    run.chmod(0o555)
    try:
        for name, arguments in reading(run, tmp_path, gt).items():
            code, output = invoke(*arguments)
            assert code == 0, (name, output)
            assert tree(run) == before, name
        assert "6 images labelled" in invoke("status", run)[1]
    finally:
        run.chmod(0o755)


def left_by_a_kill(run: Path, out: Path) -> None:
    """A copy of a run that is being written: its log holds what the database does not."""
    with Store.resume(run) as store:
        store.set_meta("pace", {"left": "in the log"})
        shutil.copytree(run, out)


def emptied_log(run: Path, out: Path) -> None:
    left_by_a_kill(run, out)
    (out / f"{DATABASE}-wal").write_bytes(b"")


MOUNTED = """
import json, sys
from typer.testing import CliRunner
from sam3label.cli import app
found = {}
for name, arguments in json.loads(sys.argv[1]).items():
    result = CliRunner().invoke(app, arguments)
    found[name] = [result.exit_code, result.output, repr(result.exception)]
print(json.dumps(found))
"""


def mounted(run: Path, script: str) -> list[str]:
    """A command that runs a script where the run's folder is mounted read-only."""
    place = shlex.quote(str(run))
    mount = f"mount --bind {place} {place} && mount -o remount,ro,bind {place} && exec"
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{mount} "$@"', "sh", sys.executable, "-c", script]


@pytest.mark.parametrize("left", [shutil.copytree, left_by_a_kill, emptied_log], ids=["clean", "log", "empty log"])
def test_a_read_only_disk_is_read(run: Path, tmp_path: Path, left: Callable[[Path, Path], object]) -> None:
    """A disk that is mounted read-only, not permissions alone: nothing can be written beside the database."""
    if subprocess.run(mounted(run, "pass"), capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    gt, disk = truth(run, tmp_path), tmp_path / "disk"
    left(run, disk)
    before = tree(disk)
    verbs = reading(disk, tmp_path, gt) | {"into it": ("report", disk)}
    command = [*mounted(disk, MOUNTED), json.dumps({name: [*map(str, words)] for name, words in verbs.items()})]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    code, output, _ = found.pop("into it")
    assert code == 1 and "report.html cannot be written: Read-only file system. Give another place." in output
    for name, (code, output, error) in found.items():
        assert code == 0, (name, output, error)
    assert tree(disk) == before


# ---- damage


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE customers (id INTEGER)")
    db.close()


def without_table(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute("DROP TABLE candidates")
    db.close()


def meta_not_json(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = '{nope' WHERE key = 'concepts'")
    db.close()


def half_born(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM meta WHERE key IN ('concepts', 'info')")
    db.close()


def truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def zeroed_page(path: Path) -> None:
    """The first page of what the model saw, wherever the schema has put it."""
    db = sqlite3.connect(path)
    (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'candidates'").fetchone()
    (size,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    data = bytearray(path.read_bytes())
    data[(page - 1) * size : page * size] = bytes(size)
    path.write_bytes(data)


def flipped(path: Path) -> None:
    """Bits here and there in that page."""
    whole = path.read_bytes()
    zeroed_page(path)
    zeroed = path.read_bytes()
    places = [i for i, (before, after) in enumerate(zip(whole, zeroed, strict=True)) if before != after]
    chance, data = random.Random(1), bytearray(whole)
    for place in chance.sample(places, 20):
        data[place] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def counts_of(value: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with sqlite3.connect(path) as db:
            db.execute("UPDATE candidates SET counts = ?", (value,))
        db.close()

    return damage


DAMAGES: tuple[Callable[[Path], None], ...] = (foreign, without_table, meta_not_json, half_born, truncated)


@pytest.mark.parametrize(
    "damage",
    [*DAMAGES, lambda path: path.write_bytes(b""), lambda path: path.write_text("labels")],
    ids=["foreign", "without table", "meta", "half-born", "truncated", "empty", "text"],
)
def test_a_damaged_store_is_one_sentence_from_every_verb(
    run: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    gt = truth(run, tmp_path)
    damage(run / DATABASE)
    (tmp_path / "list.yaml").write_text(LIST)
    verbs = reading(run, tmp_path, gt) | {
        "run": ("run", tmp_path / "photos", "-c", tmp_path / "list.yaml", "-o", run, "--model", "demo", "--workers", 0),
        "repair": ("check", run, "--repair", tmp_path / "saved"),
    }
    if damage is without_table:
        del verbs["summary"]  # which needs none of it
    if damage in (half_born, without_table, meta_not_json):
        del verbs["run"], verbs["repair"]  # which need no more than the rest
    for name, arguments in verbs.items():
        code, output = invoke(*arguments)
        assert code == (3 if name == "check" else 1), (name, output)
        errors = [line for line in output.splitlines() if line.startswith("Error: ")]
        assert len(errors) == (0 if name == "check" else 1), (name, output)
        assert "Traceback" not in output, name


@pytest.mark.parametrize(
    "damage",
    [
        zeroed_page,
        flipped,
        counts_of(b""),
        counts_of(b"\xff\x00garbage"),
        counts_of(b"o" * 5000),
        counts_of(b"PPYn1nTl2P"),
    ],
    ids=["zeroed page", "flipped bytes", "no counts", "garbage", "endless counts", "counts of another mask"],
)
def test_damage_inside_is_a_sentence_or_an_answer_from_every_verb(
    run: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """What a verb does not read cannot stop it; what `check` finds wrong, none may take for right."""
    gt = truth(run, tmp_path)
    damage(run / DATABASE)
    codes = {}
    for name, arguments in reading(run, tmp_path, gt).items():
        codes[name], output = invoke(*arguments)
        errors = [line for line in output.splitlines() if line.startswith("Error: ")]
        assert codes[name] in (0, 1, 3) and len(errors) == (codes[name] == 1), (name, output)
    assert codes["check"] == 3
    assert codes["export"] == codes["write"] == 1, "labels that are not what was written are in no dataset"
    assert invoke("check", run, "--repair", tmp_path / "saved")[0] in (0, 1)


def test_check_and_repair_say_what_is_lost_and_save_the_rest(run: Path, tmp_path: Path) -> None:
    code, output = invoke("check", run)
    said = "going through the run ...\nSound: 6 units, 1 correction, all photos as they were labelled.\n"
    assert (code, output) == (0, said)
    with sqlite3.connect(run / DATABASE) as db:
        db.execute("UPDATE candidates SET counts = x'' WHERE unit_id = 2")
    db.close()
    code, output = invoke("check", run)
    assert code == 3
    assert "cannot be read or is wrong: 1.png" in output
    assert f"5 units and 1 correction can be saved: sam3label check {run} --repair NEWRUN" in output
    saved = tmp_path / "saved"
    code, output = invoke("check", run, "--repair", saved)
    assert code == 0
    assert f"Saved into {saved}: 1 correction, 5 units" in output
    assert invoke("check", saved)[0] == 0
    code, output = invoke("check", run, "--repair", saved)
    assert code == 1 and "holds a run already" in output
    with open_run(saved) as opened:
        assert [c.who for c in opened.corrections()] == ["ann"]


def test_check_names_photos_that_were_replaced_or_are_gone(run: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos", "other.png")
    (tmp_path / "photos/other.png").replace(tmp_path / "photos/2.png")
    (tmp_path / "photos/3.png").unlink()
    code, output = invoke("check", run)
    assert code == 3
    assert "2.png: replaced since it was labelled\n3.png: gone since it was labelled\n" in output


# ---- photos that moved, and photos that are others


def test_a_moved_folder_is_read_with_photos(run: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    code, output = invoke("export", run, "-f", "yolo", "-o", tmp_path / "yolo")
    assert code == 1 and "--photos FOLDER" in output
    moved = ("--photos", tmp_path / "elsewhere")
    assert invoke("export", run, "-f", "yolo", "-o", tmp_path / "yolo", *moved)[0] == 0
    assert invoke("review", "write", run, "-o", tmp_path / "fo", *moved)[0] == 0
    assert invoke("report", run, "-o", tmp_path / "r.html", *moved)[0] == 0
    assert invoke("check", run, *moved)[0] == 0
    assert invoke("validate", tmp_path / "yolo", "--run", run, *moved)[0] == 0


@pytest.mark.parametrize(
    "form",
    ["coco", "coco-zero", "coco-roboflow", "yolo", "yolo-detect", "yolo-obb", "voc", "cvat", "labelstudio", "masks"],
)
def test_validate_catches_a_replaced_photo_in_every_format(run: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "dataset"
    assert invoke("export", run, "-f", form, "-o", out, "--images", "copy")[0] == 0
    said = "the photo is not the one that was labelled: its content differs"
    assert said not in invoke("validate", out, "--run", run)[1]
    for path in out.glob("*.zip"):
        shutil.unpack_archive(path, path.with_suffix(""))
        path.unlink()
    photo(tmp_path, "another.png")  # of the same size
    held = [path for path in out.rglob("2*.png") if not {"instance", "semantic"} & {*path.parts}]
    assert len(held) == 1
    shutil.copy(tmp_path / "another.png", held[0])
    code, output = invoke("validate", out, "--run", run)
    assert code == 3 and said in output, output


# ---- a growing list


def test_what_waits_for_a_new_phrase_is_said_by_all_who_leave_it_out(run: Path, tmp_path: Path) -> None:
    notes = {"concepts": dump_concepts(concepts("cat", "dog"))}
    with Store.resume(run) as store:
        store.begin(phrase_prompts("cat", "dog"), notes)
        for name in ("0.png", "1.png"):
            item = MediaItem(name, str(tmp_path / "photos" / name), root=str(tmp_path / "photos"))
            answer = np.array([[np.nan, 0.1]], np.float32)
            store.write([UnitResult(item, 0, 1, (60, 80), (), answer, stamp=stamp_of(item))])
    said = "4 images not asked everything yet, and without labels until then: the same sam3label run asks them"
    assert said in invoke("status", run)[1]
    assert f"Not in the dataset: {said}." in invoke("export", run, "-f", "coco", "-o", tmp_path / "coco")[1]
    assert f"Not in it: {said}." in invoke("review", "write", run, "-o", tmp_path / "fo")[1]
    assert invoke("report", run, "-o", tmp_path / "r.html")[0] == 0
    assert '"waiting": 4' in (tmp_path / "r.html").read_text()


# ---- answers that ran out of room


def test_full_answers_are_named_with_the_next_step(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=2, queries=10, answers=10)
    code, output = invoke("status", run)
    assert code == 0
    assert (
        "2 images and phrases with nearly all the answers that the model can give, so there may be more objects "
        "('cat' in 0.png, ...): tile: auto in the concept list looks at them in parts"
    ) in output
    (tmp_path / "tiled.yaml").write_text(LIST + "concepts: {cat: {tile: auto}}\n")
    assert load_concepts(tmp_path / "tiled.yaml").concepts[0].tile is not None
    with open_run(make_run(tmp_path / "other", n=2, queries=10, answers=9)) as opened:
        assert opened.full() == []


# ---- the accidents of the first version, typed as they were


def label_with(checkpoint: Path, out: Path, list_: Path, *sources: object) -> tuple[int, str]:
    return invoke("run", *sources, "-c", list_, "-o", out, "--model", checkpoint, "--workers", 0, "--device", "cpu")


@pytest.fixture
def cameras(tmp_path: Path) -> Path:
    for camera in ("camA", "camB"):
        for name in ("1.png", "2.png"):
            photo(tmp_path, f"{camera}/{name}")
    (tmp_path / "list.yaml").write_text(LIST)
    return tmp_path


def test_a_second_camera_is_refused_and_joins_under_a_name(cameras: Path, least_checkpoint: Path) -> None:
    out, list_ = cameras / "run", cameras / "list.yaml"
    assert label_with(least_checkpoint, out, list_, cameras / "camA")[0] == 0
    code, output = label_with(least_checkpoint, out, list_, cameras / "camB")
    assert code == 1
    assert "2 of the files found have the names of others that this run holds, and other content:" in output
    assert f"give their folder a name: new={cameras}/camB" in output
    code, output = label_with(least_checkpoint, out, list_, f"camB={cameras}/camB")
    assert code == 0, output
    with open_run(out) as opened:
        assert [item.id for item in opened.items()] == ["1.png", "2.png", "camB/1.png", "camB/2.png"]


def test_a_replaced_photo_is_refused_by_export_and_labelled_again_by_run(cameras: Path, least_checkpoint: Path) -> None:
    out, list_ = cameras / "run", cameras / "list.yaml"
    label_with(least_checkpoint, out, list_, cameras / "camA")
    shutil.copy(cameras / "camB/1.png", cameras / "camA/1.png")
    code, output = invoke("export", out, "-f", "yolo", "-o", cameras / "yolo")
    assert code == 1 and "1.png: replaced since it was labelled" in output
    code, output = label_with(least_checkpoint, out, list_, cameras / "camA")
    assert code == 0
    assert "1 file was replaced since the last time, and will be labelled again" in output
    assert "1 image labelled in" in output and "1 image was labelled before" in output
    assert invoke("export", out, "-f", "yolo", "-o", cameras / "yolo")[0] == 0


def test_a_moved_folder_is_found_again_by_run(cameras: Path, least_checkpoint: Path) -> None:
    out, list_ = cameras / "run", cameras / "list.yaml"
    label_with(least_checkpoint, out, list_, cameras / "camA")
    (cameras / "camA").rename(cameras / "moved")
    code, output = invoke("export", out, "-f", "yolo", "-o", cameras / "yolo")
    assert code == 1 and "gone since it was labelled" in output
    code, output = label_with(least_checkpoint, out, list_, cameras / "moved")
    assert code == 0 and "2 images were labelled before" in output
    assert invoke("export", out, "-f", "yolo", "-o", cameras / "yolo")[0] == 0


def test_links_out_of_the_folder_are_said_and_can_be_left_out(cameras: Path, least_checkpoint: Path) -> None:
    list_ = cameras / "list.yaml"
    (cameras / "camA/link.png").symlink_to(cameras / "camB/1.png")
    code, output = label_with(least_checkpoint, cameras / "run", list_, cameras / "camA")
    assert code == 0
    assert "1 link out of the folders, followed; --no-follow-links leaves them out:" in output
    code, output = label_with(least_checkpoint, cameras / "strict", list_, cameras / "camA", "--no-follow-links")
    assert code == 0 and "1 link out of the folders, left out:" in output
    with open_run(cameras / "strict") as opened:
        assert [item.id for item in opened.items()] == ["1.png", "2.png"]
