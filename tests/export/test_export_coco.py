"""COCO datasets, read back by pycocotools."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from pycocotools.coco import COCO
from support.hardshapes import shape
from support.labelled import AWKWARD_IDS, LABELS, NAMES, concept_list, hard_collection, image, label, scratch

from sam3label.core import masks
from sam3label.core.records import LabeledImage, Rle
from sam3label.errors import ConfigError, OutputError
from sam3label.export.options import Options
from sam3label.export.splits import parse_splits
from sam3label.export.write import write_dataset

PROFILES = {
    "coco": "annotations/instances_{split}.json",
    "coco-zero": "annotations/instances_{split}.json",
    "coco-roboflow": "{split}/_annotations.coco.json",
}


def load(path: Path) -> COCO:
    with contextlib.redirect_stdout(None):
        return COCO(str(path))


def read_masks(coco: COCO, file_name: str) -> list[tuple[str, Rle]]:
    image_id = next(i for i, x in coco.imgs.items() if x["file_name"] == file_name)
    found = []
    for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[image_id])):
        packed = coco.annToRLE(annotation)
        counts = packed["counts"] if isinstance(packed["counts"], bytes) else packed["counts"].encode()
        rle = Rle((packed["size"][0], packed["size"][1]), counts)
        found.append((coco.cats[annotation["category_id"]]["name"], rle))
    return found


def document(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("kind", PROFILES)
@pytest.mark.parametrize("segmentation", ["rle", "polygon"])
def test_hard_masks_come_back_exactly(tmp_path: Path, kind: str, segmentation: Any) -> None:
    images = hard_collection(tmp_path / "photos")
    write_dataset(concept_list(), images, kind, tmp_path / "set", Options(segmentation=segmentation))
    coco = load(tmp_path / "set" / PROFILES[kind].format(split="train"))
    assert len(coco.anns) == sum(len(i.labels) for i in images)
    for item in images:
        back = read_masks(coco, item.item.id)
        assert [name for name, _ in back] == [NAMES[x.class_id] for x in item.labels]
        assert [rle for _, rle in back] == [x.rle for x in item.labels]  # polygons on pixel edges lose nothing either


@settings(max_examples=40)
@given(LABELS)
def test_any_labels_come_back_exactly(drawn: list[tuple[np.ndarray, int]]) -> None:
    with scratch() as folder:
        item = image(folder / "photos", "a.jpg", [label(masks.encode(m), c) for m, c in drawn], (14, 17))
        for segmentation in ("rle", "polygon"):
            write_dataset(concept_list(), [item], "coco", folder / "set", Options(segmentation=segmentation))  # type: ignore[arg-type]
            coco = load(folder / "set/annotations/instances_train.json")
            assert read_masks(coco, "a.jpg") == [(NAMES[c], masks.encode(m)) for m, c in drawn]


def test_records_follow_the_rules_of_trainers(tmp_path: Path) -> None:
    images = hard_collection(tmp_path / "photos")
    write_dataset(concept_list(), images, "coco", tmp_path / "set", run_info={"checkpoint": "demo@1234"})
    doc = document(tmp_path / "set/annotations/instances_train.json")
    assert [i["id"] for i in doc["images"]] == list(range(1, len(images) + 1))
    assert [i["file_name"] for i in doc["images"]] == [i.item.id for i in images]
    assert [a["id"] for a in doc["annotations"]] == list(range(1, len(doc["annotations"]) + 1))
    assert {a["iscrowd"] for a in doc["annotations"]} == {0}
    labels = [x for i in images for x in i.labels]
    assert [a["area"] for a in doc["annotations"]] == [int(masks.decode(x.rle).sum()) for x in labels]
    assert [tuple(a["bbox"]) for a in doc["annotations"]] == [x.box_xywh for x in labels]
    assert [a["score"] for a in doc["annotations"]] == [pytest.approx(x.score) for x in labels]
    assert [a["label_id"] for a in doc["annotations"]] == [x.id for x in labels]
    assert [c["id"] for c in doc["categories"]] == [1, 2, 3, 4]
    parents = {c["supercategory"] for c in doc["categories"]}
    assert not parents & {"none", *NAMES}
    assert doc["info"]["checkpoint"] == "demo@1234" and doc["info"]["version"].startswith("sam3label ")


def test_zero_profile_counts_classes_from_zero_and_roboflow_calls_val_valid(tmp_path: Path) -> None:
    images = hard_collection(tmp_path / "photos")
    options = Options(splits=parse_splits("train=0.5,val=0.5"))
    write_dataset(concept_list(), images, "coco-zero", tmp_path / "zero", options)
    write_dataset(concept_list(), images, "coco-roboflow", tmp_path / "robo", options)
    zero = document(tmp_path / "zero/annotations/instances_val.json")
    assert [c["id"] for c in zero["categories"]] == [0, 1, 2, 3]
    valid = document(tmp_path / "robo/valid/_annotations.coco.json")
    assert [i["file_name"] for i in valid["images"]] == [i["file_name"] for i in zero["images"]]
    assert all((tmp_path / "robo/valid" / i["file_name"]).is_file() for i in valid["images"])


def test_the_same_run_gives_the_same_bytes_and_reviewed_photos_are_counted(tmp_path: Path) -> None:
    images = hard_collection(tmp_path / "photos")
    reviewed = [LabeledImage(i.item, i.size_hw, i.labels, reviewed=k < 3) for k, i in enumerate(images)]
    out, path = tmp_path / "set", tmp_path / "set/annotations/instances_train.json"
    write_dataset(concept_list(), reviewed, "coco", out)
    first = path.read_bytes()
    write_dataset(concept_list(), reviewed, "coco", out)
    assert path.read_bytes() == first
    doc = document(path)
    assert doc["info"]["reviewed_images"] == 3 == sum(i.get("reviewed", False) for i in doc["images"])


@pytest.mark.parametrize("names", [("one",), tuple(f"class {i}" for i in range(1000))])
def test_no_instances_one_class_a_thousand(tmp_path: Path, names: tuple[str, ...]) -> None:
    summary = write_dataset(concept_list(names), [image(tmp_path / "photos", "a.jpg")], "coco", tmp_path / "set")
    coco = load(tmp_path / "set/annotations/instances_train.json")
    assert (summary.images, summary.instances) == (1, 0)
    assert len(coco.imgs) == 1 and [c["name"] for c in coco.cats.values()] == list(names)


def test_images_lie_under_their_relative_paths(tmp_path: Path) -> None:
    images = hard_collection(tmp_path / "photos")
    write_dataset(concept_list(), images, "coco", tmp_path / "set")
    for item_id in AWKWARD_IDS:
        assert (tmp_path / "set/images" / item_id).read_bytes() == (tmp_path / "photos" / item_id).read_bytes()


def test_append_continues_ids_and_keeps_every_old_record(tmp_path: Path) -> None:
    donut = masks.encode(shape("donut"))
    out, path = tmp_path / "set", tmp_path / "set/annotations/instances_train.json"
    write_dataset(concept_list(("cat", "dog")), [image(tmp_path / "one", "a.jpg", [label(donut, 1)])], "coco", out)
    before = document(path)
    new = image(tmp_path / "two", "b.jpg", [label(donut, 0), label(donut, 1)])
    write_dataset(concept_list(("bird", "cat")), [new], "coco", out, Options(append=True))
    doc = document(path)
    assert [c["name"] for c in doc["categories"]] == ["cat", "dog", "bird"]
    assert doc["images"][0] == before["images"][0] and doc["annotations"][0] == before["annotations"][0]
    assert [(a["id"], a["image_id"], a["category_id"]) for a in doc["annotations"]] == [(1, 1, 2), (2, 2, 3), (3, 2, 1)]
    assert sorted(p.name for p in (out / "images").iterdir()) == ["a.jpg", "b.jpg"]
    with pytest.raises(OutputError, match="the dataset already holds b.jpg"):
        write_dataset(concept_list(("cat",)), [new], "coco", out, Options(append=True))
    assert document(path) == doc


def test_append_to_a_dataset_of_others(tmp_path: Path) -> None:
    out = tmp_path / "theirs"
    (out / "annotations").mkdir(parents=True)
    theirs = {
        "info": {"year": 2020},
        "images": [{"id": 7, "file_name": "x.jpg", "width": 4, "height": 4, "extra": 1}],
        "annotations": [{"id": 40, "image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat", "supercategory": "animal"}],
    }
    path = out / "annotations/instances_train.json"
    path.write_text(json.dumps(theirs))
    new = image(tmp_path / "photos", "b.jpg", [label(masks.encode(shape("donut")), 0)])
    write_dataset(concept_list(("dog",)), [new], "coco", out, Options(append=True))
    doc = document(path)
    assert doc["images"][0] == theirs["images"][0] and doc["annotations"][0] == theirs["annotations"][0]
    assert doc["categories"][0] == theirs["categories"][0] and doc["info"]["year"] == 2020
    added = doc["annotations"][1]
    assert (added["id"], added["image_id"], added["category_id"]) == (41, 8, 2)
    with pytest.raises(OutputError, match="theirs exists and was not written by sam3label export"):
        write_dataset(concept_list(("dog",)), [new], "coco", out)  # still theirs


def test_append_needs_a_readable_dataset(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no dataset in .*set to append to. Leave out --append"):
        write_dataset(concept_list(), [], "coco", tmp_path / "set", Options(append=True))
    (tmp_path / "set").mkdir()
    with pytest.raises(OutputError, match="holds no annotations/instances_train.json: not a dataset of this format"):
        write_dataset(concept_list(), [], "coco", tmp_path / "set", Options(append=True))
    (tmp_path / "set/annotations").mkdir()
    (tmp_path / "set/annotations/instances_train.json").write_text("{")
    with pytest.raises(OutputError, match="is not COCO JSON .*; nothing was changed"):
        write_dataset(concept_list(), [], "coco", tmp_path / "set", Options(append=True))
    for kind in ("voc", "labelstudio", "masks"):
        with pytest.raises(ConfigError, match=f"--append is not possible for {kind} .only for coco,"):
            write_dataset(concept_list(), [], kind, tmp_path / "set", Options(append=True))


def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rle is not possible for yolo, which holds masks in one way only"):
        write_dataset(concept_list(), [], "yolo", tmp_path / "s", Options(segmentation="rle"))
    with pytest.raises(ConfigError, match="--simplify: -1"):
        write_dataset(concept_list(), [], "coco", tmp_path / "s", Options(simplify=-1))
    with pytest.raises(ConfigError, match=r"--min-score: 1.5 is not a number from 0 to 1"):
        write_dataset(concept_list(), [], "coco", tmp_path / "s", Options(min_score=1.5))
    assert list(tmp_path.iterdir()) == []


def test_min_score_and_labels_without_pixels(tmp_path: Path) -> None:
    hollow = masks.encode(np.zeros((60, 80), np.bool_))
    donut = masks.encode(shape("donut"))
    item = image(tmp_path / "photos", "a.jpg", [label(donut, 0, 0.4), label(donut, 1, 0.6), label(hollow, 2, 0.9)])
    summary = write_dataset(concept_list(), [item], "coco", tmp_path / "set", Options(min_score=0.5))
    assert dict(summary.splits["train"].instances) == {2: 1}
    assert "1 label without a single pixel left out." in summary.notes
