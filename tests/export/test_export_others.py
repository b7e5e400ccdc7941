"""VOC, CVAT, Label Studio and PNG maps, read back by small readers written from the formats' descriptions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from PIL import Image
from support.hardshapes import KINDS, shape
from support.labelled import (
    AWKWARD_IDS,
    LABELS,
    NAMES,
    SIZE_HW,
    concept_list,
    hard_collection,
    image,
    label,
    scratch,
    tree,
)

from sam3label.core import masks
from sam3label.core.records import LabeledImage
from sam3label.errors import OutputError
from sam3label.export.formats.labelstudio import brush_rle
from sam3label.export.options import Options
from sam3label.export.photos import image_name, label_stem
from sam3label.export.registry import FORMATS
from sam3label.export.splits import parse_splits
from sam3label.export.write import write_dataset

Array = npt.NDArray[np.bool_]


# ---- readers


def voc_boxes(out: Path, item_id: str) -> list[tuple[str, tuple[float, ...]]]:
    root = ElementTree.parse(out / "Annotations" / f"{label_stem(item_id)}.xml").getroot()
    assert (out / "JPEGImages" / str(root.findtext("filename"))).is_file()
    found = []
    for thing in root.iter("object"):
        x1, y1, x2, y2 = (int(str(thing.findtext(f"bndbox/{k}"))) for k in ("xmin", "ymin", "xmax", "ymax"))
        found.append((str(thing.findtext("name")), (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1)))
    return found


def cvat_masks(out: Path) -> dict[str, list[tuple[str, Array]]]:
    found = {}
    with ZipFile(out / "train.zip") as archive:
        assert archive.testzip() is None
        for element in cvat_xml(archive).iter("image"):
            assert archive.getinfo(f"images/{element.attrib['name']}").file_size
            size = int(element.attrib["height"]), int(element.attrib["width"])
            drawn = [(m.attrib["label"], cvat_mask(m.attrib, size)) for m in element.iter("mask")]
            found[element.attrib["name"]] = drawn
    return found


def cvat_xml(archive: ZipFile) -> ElementTree.Element:
    return ElementTree.fromstring(archive.read("annotations.xml"))


def cvat_mask(values: dict[str, str], size_hw: tuple[int, int]) -> Array:
    left, top, width, height = (int(values[k]) for k in ("left", "top", "width", "height"))
    pixels = [i % 2 == 1 for i, run in enumerate(values["rle"].split(",")) for _ in range(int(run))]
    full = np.zeros(size_hw, np.bool_)
    full[top : top + height, left : left + width] = np.array(pixels).reshape(height, width)
    return full


def brush_mask(data: bytes, size_hw: tuple[int, int]) -> Array:
    """Label Studio's code, bit by bit: header, then chunks of runs or literals, four values a pixel."""
    bits = "".join(f"{b:08b}" for b in data)
    at = 0

    def read(n: int) -> int:
        nonlocal at
        at += n
        return int(bits[at - n : at], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        is_run = read(1)
        count = read(sizes[read(2)]) + 1
        values += [read(word)] * count if is_run else [read(word) for _ in range(count)]
    channels = np.array(values).reshape(*size_hw, 4)
    assert (channels == channels[..., :1]).all() and set(np.unique(channels)) <= {0, 255}
    return np.asarray(channels[..., 3] > 127)


def brush_masks(out: Path) -> dict[str, list[tuple[str, Array]]]:
    found = {}
    for task in json.loads((out / "tasks.json").read_text(encoding="utf-8")):
        photo = parse_qs(urlsplit(task["data"]["image"]).query)["d"][0]
        assert (out / photo).is_file()
        (prediction,) = task["predictions"]
        found[task["data"]["file_name"]] = [
            (
                r["value"]["brushlabels"][0],
                brush_mask(bytes(r["value"]["rle"]), (r["original_height"], r["original_width"])),
            )
            for r in prediction["result"]
        ]
    return found


def map_masks(out: Path) -> Iterator[tuple[str, str, Array, Array]]:
    """(image id, class name, instance mask, class mask) per line of instances.jsonl."""
    legend = json.loads((out / "legend.json").read_text(encoding="utf-8"))["semantic"]
    for line in (out / "instances.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        instance = np.asarray(Image.open(out / "instance" / record["map"]))
        semantic = np.asarray(Image.open(out / "semantic" / record["map"]))
        value = next(int(k) for k, name in legend.items() if name == record["class"])
        yield record["image"], record["class"], instance == record["instance"], semantic == value


def expected(item: LabeledImage) -> list[tuple[str, Array]]:
    return [(NAMES[x.class_id], masks.decode(x.rle)) for x in item.labels]


def same(found: list[tuple[str, Array]], wanted: list[tuple[str, Array]]) -> bool:
    return [n for n, _ in found] == [n for n, _ in wanted] and all(
        np.array_equal(a, b) for (_, a), (_, b) in zip(found, wanted, strict=True)
    )


# ---- hard masks and awkward names, format by format


def test_voc_boxes_come_back(tmp_path: Path) -> None:
    images = hard_collection(tmp_path / "photos")
    write_dataset(concept_list(), images, "voc", tmp_path / "set", Options(splits=parse_splits("train=0.5,val=0.5")))
    for item in images:
        assert voc_boxes(tmp_path / "set", item.item.id) == [(NAMES[x.class_id], x.box_xywh) for x in item.labels]
    lists = [(tmp_path / "set/ImageSets/Main" / f"{s}.txt").read_text().splitlines() for s in ("train", "val")]
    assert sorted(lists[0] + lists[1]) == sorted(label_stem(i) for i in AWKWARD_IDS)
    whole = image(tmp_path / "photos", "full.jpg", [label(masks.encode(shape("full")))])
    write_dataset(concept_list(), [whole], "voc", tmp_path / "full")
    text = (tmp_path / "full/Annotations/full.xml").read_text()
    assert "<xmin>1</xmin>" in text and "<xmax>80</xmax>" in text and "<ymax>60</ymax>" in text  # from 1, inclusive


def test_cvat_masks_come_back(tmp_path: Path) -> None:
    images = hard_collection(tmp_path / "photos")
    write_dataset(concept_list(("a & b", "dog", "<x>", "y")), images, "cvat", tmp_path / "odd names")
    with ZipFile(tmp_path / "odd names/train.zip") as archive:
        assert [x.findtext("name") for x in cvat_xml(archive).iter("label")] == ["a & b", "dog", "<x>", "y"]
    write_dataset(concept_list(), images, "cvat", tmp_path / "set")
    found = cvat_masks(tmp_path / "set")
    assert all(same(found[item.item.id], expected(item)) for item in images) and len(found) == len(images)
    assert not list((tmp_path / "set").glob(".*"))


def test_appending_to_cvat_keeps_what_its_zips_hold(tmp_path: Path) -> None:
    images = hard_collection(tmp_path / "photos")
    write_dataset(concept_list(), images[:4], "cvat", tmp_path / "set")
    before = cvat_masks(tmp_path / "set")
    summary = write_dataset(concept_list(("new", "cat")), images[4:], "cvat", tmp_path / "set", Options(append=True))
    assert list(summary.classes.values()) == [*NAMES, "new"]
    after = cvat_masks(tmp_path / "set")
    assert all(same(after[name], drawn) for name, drawn in before.items()) and len(after) == len(images)
    with ZipFile(tmp_path / "set/train.zip") as archive:
        root = cvat_xml(archive)
        assert [x.findtext("name") for x in root.iter("label")] == [*NAMES, "new"]
        assert [x.get("id") for x in root.iter("image")] == [str(n) for n in range(len(images))]
        assert archive.read(f"images/{images[0].item.id}") == Path(images[0].item.path).read_bytes()
    held = tree(tmp_path / "set")
    with pytest.raises(OutputError, match="the dataset already holds"):
        write_dataset(concept_list(), images[:1], "cvat", tmp_path / "set", Options(append=True))
    assert tree(tmp_path / "set") == held
    (tmp_path / "other").mkdir()
    (tmp_path / "other/train.zip").write_bytes(b"PK")
    with pytest.raises(OutputError, match="is no subset of CVAT or damaged"):
        write_dataset(concept_list(), images, "cvat", tmp_path / "other", Options(append=True))


def test_label_studio_masks_come_back(tmp_path: Path) -> None:
    images = hard_collection(tmp_path / "photos")
    write_dataset(concept_list(), images, "labelstudio", tmp_path / "set")
    found = brush_masks(tmp_path / "set")
    assert all(same(found[item.item.id], expected(item)) for item in images) and len(found) == len(images)
    interface = ElementTree.parse(tmp_path / "set/label_config.xml").getroot()
    assert [x.attrib["value"] for x in interface.iter("Label")] == list(NAMES)


@pytest.mark.parametrize("kind", KINDS)
def test_brush_code_of_hard_masks(kind: str) -> None:
    assert np.array_equal(brush_mask(brush_rle(masks.encode(shape(kind))), SIZE_HW), shape(kind))


def test_brush_code_of_runs_longer_than_its_counts() -> None:
    wide = np.zeros((300, 200), np.bool_)
    wide[-1, -1] = True  # one run of 239,996 values, over three times the longest count
    assert np.array_equal(brush_mask(brush_rle(masks.encode(wide)), wide.shape), wide)


def test_maps_hold_instances_and_classes(tmp_path: Path) -> None:
    images = hard_collection(tmp_path / "photos")
    write_dataset(concept_list(), images, "masks", tmp_path / "set")
    count = 0
    for item_id, name, instance, semantic in map_masks(tmp_path / "set"):
        item = next(i for i in images if i.item.id == item_id)
        own = next(masks.decode(x.rle) for x in item.labels if NAMES[x.class_id] == name)
        assert not (instance & ~own).any() and not (instance & ~semantic).any()
        smaller = [masks.decode(x.rle) for x in item.labels if x.area < own.sum()]
        hidden = np.any(smaller, axis=0) if smaller else np.zeros_like(own)
        assert np.array_equal(instance & ~hidden, own & ~hidden)  # only a smaller mask may lie on top
        count += 1
    assert count == sum(len(i.labels) for i in images)
    empty = next(i for i in images if not i.labels)
    pixels = np.asarray(Image.open(tmp_path / "set/instance/train" / f"{label_stem(empty.item.id)}.png"))
    assert pixels.shape == SIZE_HW and not pixels.any()
    assert (tmp_path / "set/images/train" / image_name(empty.item.id)).is_file()


def test_maps_of_a_thousand_classes_are_16_bit(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(1000)]
    item = image(tmp_path / "photos", "a.jpg", [label(masks.encode(shape("donut")), 998)])
    write_dataset(concept_list(names), [item], "masks", tmp_path / "set")
    pixels = np.asarray(Image.open(tmp_path / "set/semantic/train/a.png"))
    assert pixels.dtype == np.uint16 and set(np.unique(pixels)) == {0, 999}


# ---- any labels


@settings(max_examples=25)
@given(LABELS)
def test_any_labels_come_back(drawn: list[tuple[Array, int]]) -> None:
    with scratch() as folder:
        item = image(folder / "photos", "a/ü.jpg", [label(masks.encode(m), c) for m, c in drawn], (14, 17))
        for kind in ("voc", "cvat", "labelstudio", "masks"):
            write_dataset(concept_list(), [item], kind, folder / kind)
        assert voc_boxes(folder / "voc", "a/ü.jpg") == [(NAMES[x.class_id], x.box_xywh) for x in item.labels]
        assert same(cvat_masks(folder / "cvat")["a/ü.jpg"], expected(item))
        assert same(brush_masks(folder / "labelstudio")["a/ü.jpg"], expected(item))
        drawn_maps = list(map_masks(folder / "masks"))
        covered = np.any([m for _, _, m, _ in drawn_maps], axis=0) if drawn_maps else np.zeros((14, 17), np.bool_)
        wanted = np.any([m for m, _ in drawn], axis=0) if drawn else np.zeros((14, 17), np.bool_)
        assert np.array_equal(covered, wanted) and len(drawn_maps) == len(drawn)


@pytest.mark.parametrize("kind", [name for name, form in FORMATS.items() if not form.videos])
def test_nothing_to_export_is_an_error_and_leaves_the_old_dataset(tmp_path: Path, kind: str) -> None:
    out, low = tmp_path / "set", image(tmp_path / "photos", "a.jpg", [label(masks.encode(shape("donut")), 0, 0.4)])
    with pytest.raises(OutputError, match=r"there is nothing to export: no image of the run has been labelled\."):
        write_dataset(concept_list(("one",)), [], kind, out)
    assert not out.exists()
    write_dataset(concept_list(("one",)), [low], kind, out)
    before = tree(out)
    with pytest.raises(OutputError, match=r"no image passes what was chosen .*--min-score"):
        write_dataset(concept_list(("one",)), [low], kind, out, Options(min_score=0.5, empty=False))
    assert tree(out) == before
    summary = write_dataset(concept_list(("one",)), [low], kind, out, Options(min_score=0.5))
    assert "There is not one label in it: every image is background." in summary.notes
