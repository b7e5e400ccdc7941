"""`validate`: clean exports are clean, and each way in which trainers lose labels is found, counted and named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.builders import candidate, concepts, phrase_prompts, unit
from support.hardshapes import KINDS, shape
from support.labelled import concept_list, hard_collection, image, label, photo, tree
from support.ultra import loader_masks, read_back
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.concepts import concept_list as concept_lists
from sam3label.core import masks
from sam3label.core.records import MediaItem, Rle, UnitResult
from sam3label.errors import InputError
from sam3label.export.options import Options
from sam3label.export.splits import parse_splits
from sam3label.export.write import export, write_dataset
from sam3label.run.reader import open_run
from sam3label.run.store import Store
from sam3label.validate import Findings, Report, validate, yolo_data
from sam3label.validate import yolo as yolo_rules

runner = CliRunner()
SPLIT = Options(splits=parse_splits("train=0.6,val=0.4", 1))
CHECKED = ("coco", "coco-zero", "coco-roboflow", "yolo", "yolo-detect", "yolo-obb")


def drops(report: Report) -> dict[str, int]:
    return {f.what: f.count for f in report.findings if f.effect == "drops"}


def found(report: Report, text: str, effect: str = "drops") -> int:
    """How often the rule whose text holds `text` was broken; fails if there is no such finding."""
    (finding,) = [f for f in report.findings if text in f.what and f.effect == effect]
    assert finding.examples
    return finding.count


# ---- our own datasets


@pytest.mark.parametrize("kind", CHECKED)
def test_our_exports_are_clean_and_fully_read(tmp_path: Path, kind: str) -> None:
    images = hard_collection(tmp_path / "photos")
    write_dataset(concept_list(), images, kind, tmp_path / "set", SPLIT)
    before = tree(tmp_path / "set")
    report = validate(tmp_path / "set")
    assert report.clean and report.findings == ()
    assert sum(s.images for s in report.splits) == len(images)
    assert sum(s.instances.total() for s in report.splits) == sum(len(i.labels) for i in images)
    assert sum(s.empty for s in report.splits) == sum(not i.labels for i in images)
    results = " ".join(f"{c.name}: {c.result}" for c in report.consumers)
    if kind.startswith("coco"):
        assert "bbox AP 1.0000, segm AP 1.0000" in results
        assert ("instances kept in the" in results) == (kind == "coco-zero")
    else:
        n = sum(len(i.labels) for i in images)
        read = [c.result.split(" and ")[1] for c in report.consumers]
        assert sum(int(r.split(" of ")[0]) for r in read) == n and "Ultralytics 8." in results
    assert tree(tmp_path / "set") == before  # nothing written, no caches, no repairs


def make_run(tmp_path: Path) -> Path:
    """A run over hard masks, two classes."""
    wanted = concepts("cat", "dog")
    results = []
    for k, kind in enumerate(KINDS):
        item_id = f"{'ab'[k % 2]}/{k}.{('jpg', 'png')[k % 2]}"
        rle = masks.encode(shape(kind))
        small = masks.encode(shape("pixel"))
        found = [candidate("cat", 0.9, rle, item_id=item_id), candidate("dog", 0.6, small, item_id=item_id, query=1)]
        made = unit(item_id, *found, prompts=2)
        item = MediaItem(item_id, photo(tmp_path / "photos", item_id))
        results.append(UnitResult(item, 0, 1, made.size_hw, made.candidates, made.presence))
    with Store.writer(tmp_path / "run", phrase_prompts("cat", "dog"), {"phrases": ["cat", "dog"]}) as store:
        store.write(results)
        store.set_meta("concepts", concept_lists.dump_concepts(wanted))
        store.set_meta("info", {"checkpoint": "demo@1"})
    return tmp_path / "run"


def test_round_trip_through_every_format(tmp_path: Path) -> None:
    with open_run(make_run(tmp_path)) as run:
        for kind in CHECKED:
            export(run, kind, tmp_path / kind, SPLIT)
            trip = validate(tmp_path / kind, run).round_trip
            assert trip is not None and trip.mean is not None and trip.minimum is not None
            assert (trip.labels, trip.lost, trip.extra, trip.images_missing) == (2 * len(KINDS), 0, 0, 0)
            if kind == "yolo":
                assert (
                    trip.mean > 0.93 and trip.worst[0].image == f"b/{KINDS.index('three pixels in a row, apart')}.png"
                )
                assert sum(m.iou < 0.999 for m in trip.worst) == 3  # the shapes of several parts
            else:
                assert trip.minimum == pytest.approx(1.0, abs=1e-4)
            assert all(m.iou < 0.9995 for m in trip.worst)
            assert [m.iou for m in trip.worst] == sorted(m.iou for m in trip.worst)


def test_round_trip_counts_what_is_lost_and_respects_the_export_options(tmp_path: Path) -> None:
    with open_run(make_run(tmp_path)) as run:
        export(run, "yolo", tmp_path / "set", Options(min_score=0.7))
        trip = validate(tmp_path / "set", run).round_trip
        assert trip is not None and (trip.labels, trip.lost) == (len(KINDS), 0)
        labels = sorted((tmp_path / "set/labels").rglob("*.txt"))
        labels[0].write_text("")
        (tmp_path / "set/images/train/a/2.jpg").unlink()
        trip = validate(tmp_path / "set/data.yaml", run).round_trip
        assert trip is not None and (trip.lost, trip.images_missing, trip.minimum) == (2, 1, 0.0)
        assert {m.image for m in trip.worst if m.iou == 0} == {"a/0.jpg", "a/2.jpg"}


# ---- COCO of others


def coco(tmp_path: Path, change: Callable[[dict[str, Any]], None], kind: str = "coco") -> Report:
    """Validate an export of ours after `change` has spoilt its JSON."""
    labels = [label(masks.encode(shape("donut")), 0), label(masks.encode(shape("two parts")), 1)]
    images = [image(tmp_path / "photos", f"{k}.jpg", labels) for k in range(3)]
    write_dataset(concept_list(), images, kind, tmp_path / "set", SPLIT if kind == "coco-roboflow" else None)
    path = next((tmp_path / "set").rglob("*instances_train.json" if kind != "coco-roboflow" else "train/*.json"))
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return validate(tmp_path / "set")


def first(document: dict[str, Any]) -> dict[str, Any]:
    return dict.__getitem__(document, "annotations")[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: first(d).update(iscrowd=1), "iscrowd is 1"),
        (lambda d: first(d).update(image_id=99), "image_id is unknown"),
        (lambda d: first(d).update(category_id=99), "category_id is unknown"),
        (lambda d: first(d).update(bbox=[1, 2, 3]), "bbox is not four numbers"),
        (lambda d: first(d).update(bbox=[5, 5, 0, 4]), "the box is empty"),
        (lambda d: first(d).update(bbox=[200, 5, 9, 4]), "the box is empty"),
        (lambda d: first(d).pop("area"), "area is missing"),
        (lambda d: first(d).update(segmentation=[]), "segmentation is empty or unreadable"),
        (lambda d: first(d).update(segmentation=[[0, 0, 5, 5]]), "segmentation is empty or unreadable"),
        (lambda d: first(d)["segmentation"].update(size=[80, 60]), "segmentation is empty or unreadable"),
        (lambda d: first(d).update(segmentation={"size": [60, 80], "counts": [4800]}), "the mask has no pixel"),
        (lambda d: first(d).update(id=2), "annotations share an id"),
        (lambda d: d["images"][0].update(file_name="gone.jpg"), "the photo is missing"),
        (lambda d: d["images"][0].update(width=81), "another size than its record"),
        (lambda d: d["categories"][0].update(name="dog"), "two classes have the same name"),
    ],
)
def test_broken_coco_records_are_found(tmp_path: Path, change: Callable[[dict[str, Any]], None], text: str) -> None:
    report = coco(tmp_path, change)
    assert not report.clean
    assert found(report, text) >= 1


def test_notes_do_not_make_a_dataset_unclean(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        first(document).update(bbox=[10, 5, 72, 50], area=40 * 40)
        document["annotations"][2] = {**document["annotations"][0], "id": 3}
        document["categories"][0]["supercategory"] = "none"

    report = coco(tmp_path, change)
    assert report.clean
    assert found(report, "sticks out", "note") == found(report, "area is not the mask's", "note") == 2
    assert found(report, "the same label twice", "note") == 1
    assert found(report, "supercategory is none", "note") == 1


def test_roboflow_rules(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["categories"][1]["supercategory"] = "cat"
        document["categories"][2]["supercategory"] = "none"

    report = coco(tmp_path, change, "coco-roboflow")
    assert report.kind == "COCO, Roboflow layout"
    assert found(report, "another one's supercategory", "note") == 1
    write_dataset(concept_list(), [image(tmp_path / "p", "a.jpg")], "coco-roboflow", tmp_path / "one split")
    assert found(validate(tmp_path / "one split"), "there is no valid/ split") == 1


def test_the_hugging_face_processor_is_really_run(tmp_path: Path) -> None:
    def crowd(document: dict[str, Any]) -> None:
        first(document)["iscrowd"] = 1

    report = coco(tmp_path, crowd, "coco-zero")
    assert found(report, "the processor left instances out") == 1
    assert any("5 of 6 instances kept in the 3 images" in c.result for c in report.consumers)


def test_boxes_without_masks_are_a_detection_dataset(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        for annotation in document["annotations"]:
            del annotation["segmentation"]

    report = coco(tmp_path, change)
    assert report.clean and "bbox AP 1.0000" in report.consumers[0].result and "segm" not in report.consumers[0].result


def test_a_photo_turned_by_exif_is_noted_for_readers_that_ignore_it(tmp_path: Path) -> None:
    path = tmp_path / "photos/turned.jpg"
    path.parent.mkdir()
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (60, 80), "red").save(path, exif=exif)  # seen as 80 wide, 60 high
    item = image(tmp_path / "photos", "straight.jpg", [label(masks.encode(shape("donut")))])
    turned = type(item)(MediaItem("turned.jpg", str(path)), (60, 80), item.labels)
    for kind, effect in (("coco", "turns"), ("yolo", "note")):
        write_dataset(concept_list(), [item, turned], kind, tmp_path / kind, Options(images="hardlink"))
        report = validate(tmp_path / kind)
        assert report.clean == (effect == "note") and found(report, "EXIF orientation", effect) == 1
    rows, _, _ = read_back(tmp_path / "yolo/images/train/turned.jpg", 4)
    assert rows[0, 1:].tolist() == read_back(tmp_path / "yolo/images/train/straight.jpg", 4)[0][0, 1:].tolist()


# ---- YOLO of others


def yolo(tmp_path: Path, rows: str, names: str = "[cat, dog]", suffix: str = "jpg") -> Report:
    """Validate a dataset of two photos: one with `rows`, one with a good polygon."""
    root = tmp_path / "theirs"
    for name in ("a", "b"):
        photo(root / "train/images", f"{name}.{suffix}")
    (root / "train/labels").mkdir()
    (root / "train/labels/a.txt").write_text(rows)
    (root / "train/labels/b.txt").write_text("1 0.1 0.1 0.5 0.1 0.5 0.5 0.2 0.6 0.1 0.5\n")
    (root / "data.yaml").write_text(f"train: ../train/images\nval: ../train/images\nnames: {names}\n")
    return validate(root)


GOOD = "0 0.1 0.1 0.5 0.1 0.5 0.5 0.2 0.6 0.1 0.5\n"


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (GOOD + "0 0.5 0.5 0.1 0.1\n", "a box row among segment rows"),
        (GOOD + "0 0.1 0.1 0.5 0.1 0.5 0.5 0.3\n", "an x without a y"),
        (GOOD + "0 0.1 0.1 0.5\n", "an x without a y"),
        ("0 0.1 0.1 0.5\n", "neither a box"),
        (GOOD + "0 0.1 x 0.5 0.1 0.5 0.5\n", "not a number"),
        (GOOD + "0 0.1 0.1 1.5 0.1 0.5 0.5\n", "outside 0 to 1"),
        (GOOD + "7 0.1 0.1 0.5 0.1 0.5 0.5\n", "a class number is not in names"),
        (GOOD + "0.5 0.1 0.1 0.5 0.1 0.5 0.5\n", "not a whole number"),
        ("0 0.5 0.5 0.1 0.1\n", "box rows in a segment dataset"),
    ],
)
def test_rows_that_cost_the_whole_photo_are_found_and_ultralytics_agrees(tmp_path: Path, rows: str, text: str) -> None:
    report = yolo(tmp_path, rows)
    assert not report.clean and found(report, text) == 1
    if "dataset" not in text:
        assert found(report, "its verifier ignores photos") == 1
        assert any("1 of 2 photos and 1 of 1 instance" in c.result for c in report.consumers)
    else:
        assert found(report, "its dataset class fails") == 1


def test_rows_that_are_dropped_one_by_one(tmp_path: Path) -> None:
    report = yolo(tmp_path, GOOD + GOOD + "0 0.1 0.1 0.5 0.1 0.3 0.1\n")
    assert found(report, "the same row twice") == found(report, "the box has no area") == 1
    assert found(report, "reads fewer instances than there are rows") == 1


def test_photos_that_share_or_lack_labels(tmp_path: Path) -> None:
    assert yolo(tmp_path, GOOD).kind == "YOLO segment"
    root = tmp_path / "theirs/train"
    photo(root / "images", "a.png")
    photo(root / "images", "c.jpg")
    photo(root / "images", "tiny.jpg", (5, 40))
    (root / "images/broken.jpg").write_bytes(b"no photo")
    (root / "labels/orphan.txt").write_text(GOOD)
    report = validate(tmp_path / "theirs")
    assert found(report, "share one label file") == 2
    assert found(report, "no label file: taken for background", "note") == 3
    assert found(report, "under 10 pixels") == found(report, "cannot be opened") == 1
    assert found(report, "labels without a photo are never read") == 1
    assert found(report, "train and val are the same photos", "note") == 1
    assert found(report, "its verifier ignores photos") == 2


def test_validating_repairs_and_writes_nothing(tmp_path: Path) -> None:
    yolo(tmp_path, GOOD)
    path = tmp_path / "theirs/train/images/a.jpg"
    path.write_bytes(path.read_bytes() + b"\0")  # its verifier would write it anew
    before = tree(tmp_path / "theirs")
    assert validate(tmp_path / "theirs").clean
    assert tree(tmp_path / "theirs") == before


def test_masks_come_back_exactly_as_ultralytics_draws_them(tmp_path: Path) -> None:
    images = [image(tmp_path / "photos", f"{k:02}.jpg", [label(masks.encode(shape(x)))]) for k, x in enumerate(KINDS)]
    write_dataset(concept_list(), images, "yolo", tmp_path / "set")
    drawn = loader_masks(tmp_path / "set/images/train", 4, 80)
    (split, _) = yolo_data.find(tmp_path / "set", Findings())
    for path, theirs in zip(split.images, drawn, strict=True):
        ((_, ours),) = yolo_rules.instances(split, path, (60, 80), "segment")
        assert isinstance(ours, Rle) and (masks.decode(ours) == theirs[0, 10:70]).all(), path.name


def test_a_path_key_and_lists_of_photos_are_followed(tmp_path: Path) -> None:
    yolo(tmp_path, GOOD)
    root = tmp_path / "theirs"
    (root / "train.txt").write_text("./train/images/a.jpg\n./train/images/b.jpg\n")
    (tmp_path / "list.yaml").write_text(
        f"path: {root}\ntrain: train.txt\nval: [train.txt]\nnames: {{0: cat, 1: dog}}\n"
    )
    report = validate(tmp_path / "list.yaml")
    assert report.clean and [s.images for s in report.splits] == [2] and report.classes == {0: "cat", 1: "dog"}
    bare = validate(root / "train")
    assert bare.clean and bare.splits[0].instances == {"0": 1, "1": 1}


def test_gaps_in_names_are_found(tmp_path: Path) -> None:
    assert found(yolo(tmp_path, GOOD, "{0: cat, 3: dog}"), "must run from 0 without gaps") == 1


# ---- the command line


def test_command_line_reports_and_leaves_with_the_right_code(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with open_run(run) as labelled:
        export(labelled, "yolo", tmp_path / "set", SPLIT)
    out = tmp_path / "report.json"
    arguments = ["validate", str(tmp_path / "set"), "--run", str(run), "--json", str(out)]
    clean = runner.invoke(app, arguments, env={"COLUMNS": "200"})
    assert clean.exit_code == 0, clean.output
    for text in ("(YOLO segment)", "images", "cat", "Round trip of 28 labels: mask IoU 0.9", "Clean: nothing"):
        assert text in clean.output
    written = json.loads(out.read_text())
    assert written["clean"] is True and all(worst["iou"] < 1 for worst in written["round_trip"]["worst"])
    assert "Not all of the run" not in clean.output
    emptied = next((tmp_path / "set/labels").rglob("*.txt"))
    kept = emptied.read_text()
    emptied.write_text("")
    assert "Not all of the run is in this dataset" in runner.invoke(app, arguments, env={"COLUMNS": "200"}).output
    emptied.write_text(kept)
    next((tmp_path / "set/labels").rglob("*.txt")).write_text("0 0.5 0.5\n")
    broken = runner.invoke(app, arguments, env={"COLUMNS": "200"})
    assert broken.exit_code == 3
    assert (
        "the whole photo is ignored: a row is neither a box" in broken.output and "Something would be" in broken.output
    )
    assert json.loads(out.read_text())["clean"] is False


def test_a_full_disk_leaves_no_half_report(tmp_path: Path) -> None:
    write_dataset(concept_list(), [image(tmp_path / "photos", "a.jpg")], "labelstudio", tmp_path / "set")
    out = tmp_path / "report.json"
    out.write_text("the old one")
    command = f"ulimit -f 0; exec {sys.executable} -m sam3label validate {tmp_path / 'set'} --json {out}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 1 and "report.json cannot be written" in done.stdout + done.stderr
    assert out.read_text() == "the old one" and [p.name for p in tmp_path.glob("*report*")] == ["report.json"]


def test_turned_photos_notes_and_odd_names_are_told_apart_on_the_screen(tmp_path: Path) -> None:
    def turned(document: dict[str, Any]) -> None:
        exif = Image.Exif()
        exif[274] = 3
        Image.new("RGB", (80, 60)).save(tmp_path / "set/images/0.jpg", exif=exif)
        document["categories"][0]["name"] = "\x1b[31mred\n[bold]"

    coco(tmp_path, turned)
    told = runner.invoke(app, ["validate", str(tmp_path / "set")], env={"COLUMNS": "80"})
    assert told.exit_code == 3 and "Nothing would be dropped, but labels would be read turned" in told.output
    assert "call ImageOps.exif_transpose in the loader" in told.output  # one line, not folded
    assert "\x1b" not in told.output and "\\x1b[31mred\\n[bold]" in told.output
    coco(tmp_path / "noted", lambda d: first(d).update(area=9))
    noted = runner.invoke(app, ["validate", str(tmp_path / "noted/set")])
    assert noted.exit_code == 0 and "Nothing would be dropped; see the notes above." in noted.output


def test_splits_are_shown_in_the_order_of_a_training(tmp_path: Path) -> None:
    options = Options(splits=parse_splits("train=0.4,val=0.3,test=0.3", 1))
    for kind in ("coco", "yolo", "voc"):
        write_dataset(concept_list(), hard_collection(tmp_path / "photos"), kind, tmp_path / kind, options)
        assert [s.name for s in validate(tmp_path / kind).splits] == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "nowhere: no such file or folder"),
        ({}, "is no dataset that can be checked. Give a COCO .json"),
        ({"annotations/instances_train.json": "{"}, "is not a COCO instances file"),
        ({"annotations/instances_train.json": '{"images": []}'}, "is not a COCO instances file: 'annotations'"),
        ({"data.yaml": "train: images/train\nnames: [a]"}, "train:, val: and test: lead to"),
        ({"data.yaml": "nothing"}, "is not an Ultralytics data file"),
    ],
)
def test_unreadable_datasets_are_one_clear_error(tmp_path: Path, content: dict[str, str] | None, text: str) -> None:
    folder = tmp_path / "nowhere"
    for name, body in (content or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(body)
    if content == {}:
        folder.mkdir()
    with pytest.raises(InputError) as caught:
        validate(folder)
    assert text in str(caught.value)
    done = runner.invoke(app, ["validate", str(folder)])
    assert done.exit_code == 1 and text in done.output.replace("\n", " ")
