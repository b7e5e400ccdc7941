"""Datasets appear whole, photos are placed without touching them, and the command line says what happened."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
from support.builders import candidate, concepts, phrase_prompts, rectangle, unit
from support.labelled import AWKWARD_IDS, concept_list, hard_collection, image, photo, tree
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.concepts import concept_list as concept_lists
from sam3label.core.records import Candidate, LabeledImage, MediaItem, UnitResult
from sam3label.errors import ConfigError, OutputError
from sam3label.export.options import Options, Placement
from sam3label.export.registry import FORMATS, refuse_unknown_formats
from sam3label.export.splits import parse_splits
from sam3label.export.write import export, write_dataset
from sam3label.run.reader import open_run
from sam3label.run.store import Store

runner = CliRunner()
OF_PHOTOS = [name for name, form in FORMATS.items() if not form.videos]


def machine() -> str:
    return re.sub("[^A-Za-z0-9]", "", socket.gethostname())[:24]


def half_way(images: list[LabeledImage], error: BaseException) -> Iterator[LabeledImage]:
    yield from images[: len(images) // 2]
    raise error


# ---- whole or not at all


@pytest.mark.parametrize("kind", OF_PHOTOS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("any"), OSError(errno.ENOSPC, "No space left")])
def test_an_interrupted_export_leaves_nothing(tmp_path: Path, kind: str, error: BaseException) -> None:
    images = hard_collection(tmp_path / "photos")
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write_dataset(concept_list(), half_way(images, error), kind, tmp_path / "out/set")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("append", [False, True])
def test_an_interrupted_export_leaves_the_old_dataset(tmp_path: Path, append: bool) -> None:
    images = hard_collection(tmp_path / "photos")
    for kind in ("coco", "yolo"):
        out = tmp_path / kind / "set"
        write_dataset(concept_list(), images[:5], kind, out)
        before = tree(out.parent)
        with pytest.raises(KeyboardInterrupt):
            write_dataset(
                concept_list(("new",)), half_way(images[5:], KeyboardInterrupt()), kind, out, Options(append=append)
            )
        assert tree(out.parent) == before


def test_export_replaces_its_own_dataset_and_nothing_else(tmp_path: Path) -> None:
    images = hard_collection(tmp_path / "photos")
    out = tmp_path / "set"
    write_dataset(concept_list(), images, "yolo", out)
    write_dataset(concept_list(), images[:1], "yolo", out)
    assert len(list((out / "labels").rglob("*.txt"))) == 1
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter1.txt").write_text("precious")
    with pytest.raises(OutputError, match="thesis exists and was not written by sam3label export; it is left alone"):
        write_dataset(concept_list(), images, "yolo", mine)
    assert tree(mine) == {"chapter1.txt": b"precious"}
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file exists and was not written by"):
        write_dataset(concept_list(), images, "yolo", tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "photos", "set", "thesis"]


def test_a_kill_leaves_no_half_dataset_and_the_next_export_cleans_up(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from pathlib import Path\n"
        "from support.labelled import concept_list, hard_collection\n"
        "from sam3label.export.write import write_dataset\n"
        "root = Path(sys.argv[1])\n"
        "def slow():\n"
        "    for item in hard_collection(root / 'photos'):\n"
        "        yield item\n"
        "        print('one', flush=True)\n"
        "        time.sleep(30)\n"
        "write_dataset(concept_list(), slow(), 'yolo', root / 'set')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"one\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "set").exists()
    assert [p.name for p in tmp_path.glob(".set.*")] == [f".set.partial-{machine()}-{process.pid}"]
    write_dataset(concept_list(), hard_collection(tmp_path / "photos"), "yolo", tmp_path / "set")
    assert list(tmp_path.glob(".*")) == []


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    images = hard_collection(tmp_path / "photos")
    out = tmp_path / "set"
    write_dataset(concept_list(), images, "yolo", out)
    before = tree(out)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    out.rename(tmp_path / f".set.old-{machine()}-{gone.pid}")
    with pytest.raises(KeyboardInterrupt):
        write_dataset(concept_list(), half_way(images, KeyboardInterrupt()), "yolo", out)
    assert tree(out) == before and list(tmp_path.glob(".*")) == []


def test_the_folder_of_a_living_export_is_left_alone(tmp_path: Path) -> None:
    living = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        other = tmp_path / f".set.partial-{machine()}-{living.pid}"
        other.mkdir()
        write_dataset(concept_list(), [image(tmp_path / "photos", "a.jpg")], "yolo", tmp_path / "set")
        assert other.is_dir()
    finally:
        living.kill()
        living.wait()


def test_a_failing_rename_brings_the_old_dataset_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "set"
    write_dataset(concept_list(), [image(tmp_path / "photos", "a.jpg")], "coco", out)
    before = tree(out)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match=r"set cannot be written \(Input/output error\)"):
        write_dataset(concept_list(), hard_collection(tmp_path / "photos"), "coco", out)
    assert tree(out) == before and sorted(p.name for p in tmp_path.iterdir()) == ["photos", "set"]


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written .*choose another place with -o"):
        write_dataset(concept_list(), [], "coco", tmp_path / "file/under/set")


# ---- photos


@pytest.mark.parametrize("means", ["hardlink", "copy", "symlink", "none"])
@pytest.mark.parametrize("kind", [kind for kind in OF_PHOTOS if kind != "cvat"])
def test_photos_keep_their_bytes(tmp_path: Path, means: Placement, kind: str) -> None:
    images = hard_collection(tmp_path / "photos")
    before = tree(tmp_path / "photos")
    out = tmp_path / "set"
    write_dataset(concept_list(), images, kind, out, Options(images=means))
    placed = [p for p in out.rglob("*") if p.is_file() and p.read_bytes() in before.values()]
    if means == "none":
        assert placed == []
        return
    assert sorted(p.read_bytes() for p in placed) == sorted(before.values())
    assert all(p.is_symlink() == (means == "symlink") for p in placed)
    originals = {(tmp_path / "photos" / name).stat().st_ino for name in before}
    assert {p.stat().st_ino in originals for p in placed} == {means != "copy"}
    assert tree(tmp_path / "photos") == before


@pytest.mark.parametrize("means", ["hardlink", "symlink", "none"])
def test_photos_in_a_zip_are_copies_with_their_bytes(tmp_path: Path, means: Placement) -> None:
    images = hard_collection(tmp_path / "photos")
    write_dataset(concept_list(), images, "cvat", tmp_path / "set", Options(images=means))
    with ZipFile(tmp_path / "set/train.zip") as archive:
        held = {name: archive.read(name) for name in archive.namelist() if name != "annotations.xml"}
    photos = {f"images/{item.item.id}": Path(item.item.path).read_bytes() for item in images}
    assert held == ({} if means == "none" else photos)


def test_a_hard_link_that_is_not_possible_becomes_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = hard_collection(tmp_path / "photos")

    def elsewhere(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", elsewhere)
    summary = write_dataset(concept_list(), images, "coco", tmp_path / "set")
    assert f"{len(images)} photos were copied: the file system did not allow hard links." in summary.notes
    assert (tmp_path / "set/images/1.jpg").read_bytes() == (tmp_path / "photos/1.jpg").read_bytes()


def test_a_damaged_jpeg_is_copied_because_trainers_repair_it_in_place(tmp_path: Path) -> None:
    item = image(tmp_path / "photos", "a.jpg")
    path = Path(item.item.path)
    path.write_bytes(path.read_bytes()[:-2])
    write_dataset(concept_list(), [item], "yolo", tmp_path / "set")
    placed = tmp_path / "set/images/train/a.jpg"
    assert placed.read_bytes() == path.read_bytes() and placed.stat().st_ino != path.stat().st_ino


@pytest.mark.parametrize("means", ["hardlink", "copy", "symlink"])
def test_a_photo_that_is_gone_is_named(tmp_path: Path, means: Placement) -> None:
    item = image(tmp_path / "photos", "a.png")
    Path(item.item.path).unlink()
    with pytest.raises(OutputError, match=r"the photo .*a.png is gone since it was labelled.*--images none"):
        write_dataset(concept_list(), [item], "coco", tmp_path / "set", Options(images=means))
    assert write_dataset(concept_list(), [item], "coco", tmp_path / "set", Options(images="none")).images == 1


@pytest.mark.parametrize("kind", [name for name, form in FORMATS.items() if form.videos])
def test_photos_do_not_fit_into_formats_of_videos(tmp_path: Path, kind: str) -> None:
    with pytest.raises(OutputError, match=rf"there are photos only, and {kind} holds videos"):
        write_dataset(concept_list(), [image(tmp_path / "photos", "a.jpg")], kind, tmp_path / "set")


# ---- runs and the command line


def make_run(folder: Path, photos: Path, ids: tuple[str, ...] = AWKWARD_IDS) -> Path:
    wanted = concepts("cat", "dog")
    results: list[UnitResult] = []
    for k, item_id in enumerate(ids):
        found: list[Candidate] = []
        if k % 3:
            found = [
                candidate("cat", 0.9, rectangle(5, 5, 20 + k, 20), item_id=item_id),
                candidate("dog", 0.6, rectangle(50, 30, 20, 20), item_id=item_id, query=1),
            ]
        done = unit(item_id, *found, prompts=2)
        item = MediaItem(item_id, photo(photos, item_id))
        results.append(UnitResult(item, 0, 1, done.size_hw, done.candidates, done.presence))
    results.append(unit("broken.jpg", error="truncated file"))
    with Store.writer(folder, phrase_prompts("cat", "dog"), {"phrases": ["cat", "dog"]}) as store:
        store.write(results)
        store.set_meta("concepts", concept_lists.dump_concepts(wanted))
        store.set_meta("info", {"checkpoint": "demo@1", "created": "2026-01-01"})
    return folder


def test_export_of_a_run_streams_and_lists_failures(tmp_path: Path) -> None:
    seen: list[int] = []
    with open_run(make_run(tmp_path / "run", tmp_path / "photos")) as run:
        summary = export(run, "coco", tmp_path / "set", progress=seen.append)
    assert seen == list(range(1, len(AWKWARD_IDS) + 1))
    assert summary.images == len(AWKWARD_IDS) and summary.failed == (("broken.jpg", "truncated file"),)
    doc = json.loads((tmp_path / "set/annotations/instances_train.json").read_text())
    assert doc["info"]["checkpoint"] == "demo@1" and "broken.jpg" not in {i["file_name"] for i in doc["images"]}


def test_command_line_writes_several_formats_and_reports_splits(tmp_path: Path) -> None:
    make_run(tmp_path / "run", tmp_path / "photos")
    out = tmp_path / "sets"
    split = ["--split", "train=0.6,val=0.4", "--seed", "3"]
    done = runner.invoke(app, ["export", str(tmp_path / "run"), "-f", "coco", "-f", "yolo", "-o", str(out), *split])
    assert done.exit_code == 3, done.output  # broken.jpg could not be labelled
    assert {p.name for p in out.iterdir()} == {"coco", "yolo"}
    assert "coco: 11 images, 14 instances" in done.output and "yolo: 11 images, 14 instances" in done.output
    for word in ("train", "val", "cat", "dog", "of these empty", "broken.jpg: truncated file", f"Dataset: {out}/yolo"):
        assert word in done.output
    again = runner.invoke(app, ["export", str(tmp_path / "run"), "--format", "yolo", "-o", str(out / "yolo"), "-q"])
    assert again.exit_code == 3 and again.output == ""


def test_command_line_takes_every_option(tmp_path: Path) -> None:
    make_run(tmp_path / "run", tmp_path / "photos")
    narrow = tmp_path / "strict.yaml"
    narrow.write_text("names: [cat, dog]\n")
    run, out = str(tmp_path / "run"), str(tmp_path / "set")
    options = [
        *(
            "--format",
            "coco-zero",
            "-o",
            out,
            "--concepts",
            str(narrow),
            "--set",
            "defaults.conf=0.8",
            "--images",
            "copy",
            "--classes",
            "dog, cat",
        ),
        *("--min-score", "0.1", "--no-empty", "--segmentation", "polygon", "--simplify", "1"),
        *("--split", "train=0.5,val=0.5", "--group", "folder"),
    ]
    done = runner.invoke(app, ["export", run, *options])
    assert done.exit_code == 3, done.output
    assert "7 images, 7 instances" in done.output  # dogs are under conf 0.8, photos without cats are left out
    assert "Polygons against their masks: IoU 1.0000 on average" in done.output
    regex = ["--split", "train=0.5,val=0.5", "--group-regex", r"^(\w)", "--format", "voc"]
    assert runner.invoke(app, ["export", run, *regex]).exit_code == 3
    assert (tmp_path / "run/exports/voc/Annotations").is_dir()
    appended = runner.invoke(app, ["export", run, "--format", "coco-zero", "-o", out, "--append"])
    assert appended.exit_code == 1 and "the dataset already holds" in appended.output


@pytest.mark.parametrize("setting", ["defaults.conf=0.8", "concepts.dog.conf=0.8"])
def test_set_changes_the_rules_of_the_runs_own_list(tmp_path: Path, setting: str) -> None:
    run = str(make_run(tmp_path / "run", tmp_path / "photos"))
    done = runner.invoke(app, ["export", run, "--format", "coco", "--set", setting])
    assert done.exit_code == 3 and "coco: 11 images, 7 instances" in done.output  # dogs have 0.6


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--format", "yollo"], 1, "'yollo' is not an export format. Did you mean yolo?"),
        (["--format", "coco", "--split", "train=0.5,vall=0.5"], 1, "'vall' is not a split"),
        (["--format", "coco", "--classes", "cats"], 1, "'cats' not in cat, dog. Did you mean 'cat'?"),
        (
            ["--format", "coco", "--images", "links"],
            2,
            "'links' is not one of 'hardlink', 'upright', 'copy', 'symlink', 'none'",
        ),
        (["--format", "coco", "--segmentation", "png"], 2, "'png' is not one of 'rle', 'polygon', 'uncompressed'"),
        (["--format", "coco", "--set", "defaults.conf=8"], 1, "got 8; allowed: a number from 0 to 1"),
        ([], 1, "Say what to write with --format, such as --format yolo. Known: coco, "),
    ],
)
def test_command_line_mistakes(tmp_path: Path, arguments: list[str], code: int, text: str) -> None:
    make_run(tmp_path / "run", tmp_path / "photos", ("a.jpg",))
    done = runner.invoke(app, ["export", str(tmp_path / "run"), *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    assert text in done.output and "Traceback" not in done.output


def test_unknown_formats_are_all_named() -> None:
    with pytest.raises(ConfigError, match="'coko' is not an export format. Did you mean coco.*\n'x' is not"):
        refuse_unknown_formats(["coco", "coko", "x"])


def test_concurrent_reading_while_exporting_sees_the_old_or_the_new(tmp_path: Path) -> None:
    images = hard_collection(tmp_path / "photos")
    out = tmp_path / "set"
    write_dataset(concept_list(), images[:1], "coco", out)

    def watched() -> Iterator[LabeledImage]:
        for item in images:
            doc = json.loads((out / "annotations/instances_train.json").read_text())
            assert len(doc["images"]) == 1
            yield item

    write_dataset(concept_list(), watched(), "coco", out, Options(splits=parse_splits(None)))
    assert len(json.loads((out / "annotations/instances_train.json").read_text())["images"]) == len(images)
