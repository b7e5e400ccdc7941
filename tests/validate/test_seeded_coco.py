"""COCO files, each broken in one way: pycocotools and PIL decide what is lost, `validate` must say it.

The readers run in a child with limits, since some records kill them. A set is clean if and only if each annotation that
was meant loads, draws the mask it drew in the sound file, scores AP 1 against itself, has a box that fits its mask, and
each photo opens upright in its record's size. `beyond` marks what only readers that are not at hand here would lose.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.coco_child import Child

from sam3label.core import masks
from sam3label.errors import InputError
from sam3label.validate import validate

Json = Any
SIZE = (40, 48)  # height, width
NAN, FAR = float("nan"), 3e9


@dataclass(frozen=True)
class Defect:
    """`change` edits the document, or the folder; `kept`: how many of the 4 annotations are still meant."""

    change: Callable[[Json], object] | None = None
    files: Callable[[Path], object] | None = None
    kept: int = 4
    beyond: str = ""


def document() -> Json:
    """Two images with a polygon and one with two run-length codes, one packed and one not; the last is empty."""
    ring = [10, 10, 30, 10, 30, 30, 10, 30]
    mask = np.zeros(SIZE, bool)
    mask[5:25, 8:40] = True
    rle = masks.encode(mask)
    shapes: list[Json] = [
        [ring],
        {"size": list(SIZE), "counts": rle.counts.decode()},
        {"size": list(SIZE), "counts": masks.to_runs(rle).tolist()},
        [ring],
    ]
    annotations = []
    for k, segmentation in enumerate(shapes):
        polygon = isinstance(segmentation, list)
        annotations.append(
            {
                "id": k + 1,
                "image_id": (1, 2, 2, 3)[k],
                "category_id": (1, 2, 1, 2)[k],
                "bbox": [10, 10, 20, 20] if polygon else [8, 5, 32, 20],
                "area": 400 if polygon else 640,
                "iscrowd": 0,
                "segmentation": segmentation,
            }
        )
    return {
        "images": [{"id": k, "file_name": f"{k}.jpg", "height": SIZE[0], "width": SIZE[1]} for k in (1, 2, 3, 4)],
        "annotations": annotations,
        "categories": [{"id": k, "name": name, "supercategory": "thing"} for k, name in ((1, "cat"), (2, "dog"))],
    }


def of(kind: str, number: int, key: str) -> tuple[Callable[[Json], Callable[[Json], None]], Callable[[Json], None]]:
    def put(value: Json) -> Callable[[Json], None]:
        return lambda d: d[kind][number].__setitem__(key, value)

    return put, lambda d: d[kind][number].pop(key)


def whole(kind: str, number: int, value: Json) -> Callable[[Json], None]:
    return lambda d: d[kind].__setitem__(number, value)


def several(*changes: Callable[[Json], object]) -> Callable[[Json], None]:
    def change(d: Json) -> None:
        for one in changes:
            one(d)

    return change


box, no_box = of("annotations", 0, "bbox")
area, no_area = of("annotations", 0, "area")
crowd, no_crowd = of("annotations", 0, "iscrowd")
number, no_number = of("annotations", 0, "id")
photo_of, no_photo_of = of("annotations", 0, "image_id")
kind_of, no_kind_of = of("annotations", 0, "category_id")
shape, no_shape = of("annotations", 0, "segmentation")
code, _ = of("annotations", 1, "segmentation")
image_id, no_image_id = of("images", 0, "id")
name, no_name = of("images", 0, "file_name")
width, no_width = of("images", 0, "width")
height, no_height = of("images", 0, "height")
class_id, no_class_id = of("categories", 0, "id")
class_name, no_class_name = of("categories", 0, "name")
parent, no_parent = of("categories", 0, "supercategory")


def all_ids(kind: str, key: str, change: Callable[[Json], Json]) -> Callable[[Json], None]:
    def apply(d: Json) -> None:
        for record in d[kind]:
            record["id"] = change(record["id"])
        for annotation in d["annotations"]:
            annotation[key] = change(annotation[key])

    return apply


def photo(
    number: int, kind: str = "JPEG", size: tuple[int, int] = (48, 40), **options: object
) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        noise = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(noise).save(root / f"images/{number}.jpg", kind, **options)

    return change


def cut(number: int, count: int) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / f"images/{number}.jpg"
        path.write_bytes(path.read_bytes()[:-count])

    return change


def turned(orientation: int) -> Callable[[Path], None]:
    exif = Image.Exif()
    exif[274] = orientation
    size = (40, 48) if orientation in (5, 6, 7, 8) else (48, 40)
    return photo(1, size=size, exif=exif)


def text(content: Callable[[str], str | bytes]) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "annotations/instances_train.json"
        made = content(path.read_text())
        path.write_bytes(made.encode() if isinstance(made, str) else made)

    return change


def crossing(root: Path) -> None:
    (root / "images/1.jpg").unlink()
    (root / "images/1.jpg").mkdir()


FILES_LOADER = "loaders of RF-DETR, RT-DETR or Hugging Face, which are not run"
TENSORS = "pycocotools takes it for numbers; a tensor of it cannot be made"
UNSCORED = "left out of the score, which the score does not show"
BOXES: dict[str, Defect] = {
    "no box": Defect(no_box),
    "box of nothing": Defect(box(None)),
    "box empty": Defect(box([])),
    "box of three": Defect(box([10, 10, 20])),
    "box of five": Defect(box([10, 10, 20, 20, 1])),
    "box of text": Defect(box(["10", "10", "20", "20"]), beyond=TENSORS),
    "box as text": Defect(box("10 10 20 20")),
    "box nested": Defect(box([[10, 10, 20, 20]])),
    "box as an object": Defect(box({"x": 10, "y": 10, "w": 20, "h": 20})),
    "box with NaN": Defect(box([10, 10, NAN, 20])),
    "box endless": Defect(box([10, 10, float("inf"), 20])),
    "box with nothing inside": Defect(box([10, None, 20, 20]), beyond=TENSORS),
    "box of booleans": Defect(box([True, True, True, True])),
    "box without width": Defect(box([10, 10, 0, 20])),
    "box of negative width": Defect(box([30, 10, -20, 20])),
    "box outside": Defect(box([100, 10, 20, 20])),
    "box in shares": Defect(box([0.2, 0.25, 0.4, 0.5])),
    "box by corners": Defect(box([10, 10, 30, 30])),
    "box somewhere else": Defect(box([1, 1, 8, 8])),
    "box sticks out": Defect(box([10, 10, 40, 31])),
    "box enormous": Defect(box([10, 10, 1e300, 20])),
    "no area": Defect(no_area),
    "area of nothing": Defect(area(None)),
    "area as text": Defect(area("400")),
    "area is NaN": Defect(area(NAN), beyond=FILES_LOADER),
    "area endless": Defect(area(float("inf")), beyond=UNSCORED),
    "area below 0": Defect(area(-400), beyond=UNSCORED),
    "area 0": Defect(area(0)),
    "area a list": Defect(area([400])),
    "area of the box": Defect(area(500)),
    "no iscrowd": Defect(no_crowd),
    "iscrowd of nothing": Defect(crowd(None)),
    "iscrowd as text": Defect(crowd("0")),
    "iscrowd 1": Defect(crowd(1)),
    "iscrowd 2": Defect(crowd(2)),
    "iscrowd false": Defect(crowd(False)),
    "iscrowd a list": Defect(crowd([])),
}
IDS: dict[str, Defect] = {
    "no id": Defect(no_number),
    "id of nothing": Defect(number(None)),
    "ids of nothing": Defect(several(number(None), of("annotations", 1, "id")[0](None))),
    "id as text": Defect(number("one")),
    "id with a fraction": Defect(number(1.5)),
    "id below 0": Defect(number(-1)),
    "id 0": Defect(number(0)),
    "id a list": Defect(number([1])),
    "id twice": Defect(number(2)),
    "image unknown": Defect(photo_of(99)),
    "image of nothing": Defect(photo_of(None)),
    "no image": Defect(no_photo_of),
    "image as text": Defect(photo_of("1")),
    "image a list": Defect(photo_of([1])),
    "class unknown": Defect(kind_of(99)),
    "class of nothing": Defect(kind_of(None)),
    "no class": Defect(no_kind_of),
    "class as text": Defect(kind_of("1")),
    "class a list": Defect(kind_of([1])),
    "class 0": Defect(kind_of(0)),
    "annotation of nothing": Defect(whole("annotations", 0, None)),
    "annotation a number": Defect(whole("annotations", 0, 7)),
    "annotation a text": Defect(whole("annotations", 0, "cat")),
    "annotation a list": Defect(whole("annotations", 0, [1, 2])),
    "annotation empty": Defect(whole("annotations", 0, {})),
    "annotation twice": Defect(lambda d: d["annotations"].append({**d["annotations"][0], "id": 9}), kept=5),
    "extra keys": Defect(several(of("annotations", 0, "score")[0](0.5), lambda d: d.update(info=None, licenses=[]))),
}
SHAPES: dict[str, Defect] = {
    "no shape": Defect(no_shape),
    "shape of nothing": Defect(shape(None)),
    "shape empty": Defect(shape([])),
    "shape of an empty ring": Defect(shape([[]])),
    "an empty ring among rings": Defect(shape([[10, 10, 30, 10, 30, 30, 10, 30], []])),
    "a line among rings": Defect(shape([[10, 10, 30, 10, 30, 30, 10, 30], [5, 5, 9, 9]])),
    "a line before rings": Defect(shape([[5, 5, 9, 9], [10, 10, 30, 10, 30, 30, 10, 30]])),
    "ring of one point": Defect(shape([[10, 10]])),
    "ring of two points": Defect(shape([[10, 10, 30, 30]])),
    "ring not in a list": Defect(shape([10, 10, 30, 10, 30, 30, 10, 30])),
    "ring of pairs": Defect(shape([[[10, 10], [30, 10], [30, 30], [10, 30]]])),
    "ring of text": Defect(shape([["a", "b", "c", "d", "e", "f"]])),
    "ring with NaN": Defect(shape([[10, 10, NAN, 10, 30, 30, 10, 30]])),
    "ring with nothing inside": Defect(shape([[10, 10, None, 10, 30, 30, 10, 30]])),
    "ring with a far point": Defect(shape([[10, 10, FAR, 10, 30, 30, 10, 30]])),
    "ring with a point just too far": Defect(shape([[10, 10, 9e6, 10, 30, 30, 10, 30]])),
    "ring of many far points": Defect(shape([[9e5, 0, -9e5, 9e5] * 500])),
    "ring endless": Defect(shape([[10, 10, float("inf"), 10, 30, 30, 10, 30]])),
    "ring beyond floats": Defect(shape([[10, 10, 1e308, -1e308, 1e308, 1e308, 10, 30]])),
    "ring of no area": Defect(shape([[10, 10, 10, 10, 10, 10]])),
    "ring outside": Defect(shape([[110, 110, 130, 110, 130, 130]])),
    "ring in shares": Defect(shape([[0.2, 0.25, 0.6, 0.25, 0.6, 0.75]])),
    "shape a number": Defect(shape(5)),
    "shape true": Defect(shape(True)),
    "shape a text": Defect(shape("10 10 30 30")),
    "shape an empty object": Defect(shape({})),
    "code without a size": Defect(code({"counts": [0, 1920]})),
    "code without counts": Defect(code({"size": [40, 48]})),
    "code of another size": Defect(code({"size": [48, 40], "counts": [200, 640, 1080]})),
    "code with a size of text": Defect(code({"size": ["a", "b"], "counts": [200, 640, 1080]})),
    "code with a size of one": Defect(code({"size": [40], "counts": [200, 640, 1080]})),
    "code with a size of nothing": Defect(code({"size": None, "counts": [200, 640, 1080]})),
    "code too long": Defect(code({"size": [40, 48], "counts": [10, 5000]})),
    "code far too long": Defect(code({"size": [40, 48], "counts": [10, 4_000_000_000]})),
    "code too short": Defect(code({"size": [40, 48], "counts": [10, 50]})),
    "code below 0": Defect(code({"size": [40, 48], "counts": [-10, 1930]})),
    "code of text": Defect(code({"size": [40, 48], "counts": ["a", "b"]})),
    "code of nothing": Defect(code({"size": [40, 48], "counts": None})),
    "code empty": Defect(code({"size": [40, 48], "counts": ""})),
    "code a list of nothing": Defect(code({"size": [40, 48], "counts": []})),
    "code of garbage": Defect(code({"size": [40, 48], "counts": "~~~~zzzz!!!!"})),
    "code of other letters": Defect(code({"size": [40, 48], "counts": "äöü漢字"})),
    "code cut off": Defect(lambda d: d["annotations"][1]["segmentation"].update(counts="PP")),
    "code of background": Defect(code({"size": [40, 48], "counts": [1920]})),
    "code of a packed text": Defect(code("PPYo0")),
}  # fmt: skip
IMAGES: dict[str, Defect] = {
    "image of nothing": Defect(whole("images", 0, None), kept=4),
    "image a number": Defect(whole("images", 0, 5)),
    "no image id": Defect(no_image_id),
    "image id of nothing": Defect(image_id(None)),
    "image id as text": Defect(image_id("1")),
    "image id a list": Defect(image_id([1])),
    "image ids all as text": Defect(lambda d: _retext(d, "images", "image_id"), beyond=FILES_LOADER),
    "image id twice": Defect(image_id(2)),
    "no file name": Defect(no_name),
    "file name of nothing": Defect(name(None)),
    "file name empty": Defect(name("")),
    "file name a number": Defect(name(1)),
    "file name wrong": Defect(name("other.jpg")),
    "file name with a zero byte": Defect(name("1\0.jpg")),
    "file name half a character": Defect(name("\ud800.jpg")),
    "file name of 5,000 letters": Defect(name("x" * 5000 + ".jpg")),
    "file name of a folder": Defect(name("..")),
    "file name with dots": Defect(name("../images/1.jpg")),
    "file name twice": Defect(name("2.jpg")),
    "no width": Defect(no_width),
    "no height": Defect(no_height),
    "width of nothing": Defect(width(None)),
    "width 0": Defect(width(0)),
    "width below 0": Defect(width(-48)),
    "width as text": Defect(width("48")),
    "width with a fraction": Defect(width(48.5)),
    "width one off": Defect(width(49)),
    "sides swapped": Defect(several(width(40), height(48))),
    "sides of a billion": Defect(several(width(10**9), height(10**9))),
    "sides beyond 64 bits": Defect(several(width(10**30), height(10**30))),
    "sides of 40,000": Defect(several(width(40_000), height(40_000))),
}
CLASSES: dict[str, Defect] = {
    "class of nothing ": Defect(whole("categories", 0, None)),
    "no class id": Defect(no_class_id),
    "class id as text": Defect(class_id("1")),
    "class ids all as text": Defect(lambda d: _retext(d, "categories", "category_id")),
    "class id beyond 64 bits": Defect(class_id(10**30)),
    "class id twice": Defect(class_id(2)),
    "no class name": Defect(no_class_name),
    "class name twice": Defect(class_name("dog"), beyond=FILES_LOADER),
    "class name a number": Defect(class_name(5)),
    "no classes": Defect(lambda d: d["categories"].clear()),
    "no supercategory": Defect(no_parent),
    "supercategory none": Defect(parent("none")),
    "a root class as Roboflow writes": Defect(
        lambda d: d["categories"].insert(0, {"id": 0, "name": "thing", "supercategory": "none"})
    ),
}
WHOLE: dict[str, Defect] = {
    "no images key": Defect(lambda d: d.pop("images")),
    "images an object": Defect(lambda d: d.update(images={})),
    "annotations of nothing": Defect(lambda d: d.update(annotations=None)),
    "no annotations": Defect(lambda d: d["annotations"].clear()),
    "no images": Defect(lambda d: d["images"].clear()),
    "empty file": Defect(files=text(lambda t: "")),
    "cut off": Defect(files=text(lambda t: t[:-30])),
    "a list": Defect(files=text(lambda t: f"[{t}]")),
    "byte order mark": Defect(files=text(lambda t: "\ufeff" + t)),
    "utf-16": Defect(files=text(lambda t: t.encode("utf-16"))),
    "nested too deeply": Defect(files=text(lambda t: '{"a": ' + "[" * 5000 + "]" * 5000 + ", " + t[1:])),
    "a shape nested too deeply": Defect(
        files=text(lambda t: t.replace('"segmentation": [[', '"segmentation": [[' + "[" * 300 + "]" * 300 + ",", 1))
    ),
    "a number too long": Defect(files=text(lambda t: t.replace('"area": 400', '"area": ' + "9" * 5000, 1))),
    "all photos gone": Defect(files=lambda root: shutil.rmtree(root / "images")),
    "one photo gone": Defect(files=lambda root: (root / "images/1.jpg").unlink()),
    "photo cut off": Defect(files=cut(1, 300)),
    "photo without its end": Defect(files=cut(1, 2)),
    "photo of no bytes": Defect(files=lambda root: (root / "images/1.jpg").write_bytes(b"")),
    "photo of text": Defect(files=lambda root: (root / "images/1.jpg").write_text("404")),
    "photo is a folder": Defect(files=crossing),
    "photo is a gif": Defect(files=photo(1, "GIF")),
    "photo is a png": Defect(files=photo(1, "PNG")),
    "photo of another size": Defect(files=photo(1, size=(50, 40))),
    "photo mirrored by exif": Defect(files=turned(2)),
    "photo upside down by exif": Defect(files=turned(3)),
    "photo turned by exif": Defect(files=turned(6)),
    "photo upright by exif": Defect(files=turned(1)),
}
DEFECTS = BOXES | IDS | SHAPES | IMAGES | CLASSES | WHOLE


def _retext(d: Json, kind: str, key: str) -> None:
    all_ids(kind, key, lambda i: f"n{i}")(d)


def _write(root: Path, defect: Defect | None = None) -> Path:
    d = document()
    if defect is not None and defect.change:
        defect.change(d)
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    (root / "annotations/instances_train.json").write_text(json.dumps(d))
    for k in (1, 2, 3, 4):
        photo(k)(root)
    if defect is not None and defect.files:
        defect.files(root)
    return root


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    with Child() as started:
        yield started


def test_there_are_as_many_as_were_found_by_hand() -> None:
    parts = (BOXES, IDS, SHAPES, IMAGES, CLASSES, WHOLE)
    assert len(DEFECTS) >= 111 and sum(map(len, parts)) - len(DEFECTS) <= 1


def test_the_sound_file_is_clean(tmp_path: Path, child: Child) -> None:
    assert validate(_write(tmp_path / "set")).findings == ()
    assert child.losses(tmp_path / "set", 4) == []


@pytest.mark.parametrize("name", DEFECTS)
def test_what_readers_lose_is_said_and_nothing_else(name: str, tmp_path: Path, child: Child) -> None:
    defect = DEFECTS[name]
    root = _write(tmp_path / "set", defect)
    lost = child.losses(root, defect.kept)
    try:
        report = validate(root)
        said = [f.what for f in report.findings if f.effect != "note"]
        assert json.dumps(report.as_json())
    except InputError as error:
        said = [str(error)]
    assert not (lost and defect.beyond), f"{lost}: the readers see it by themselves"
    assert bool(said) == bool(lost or defect.beyond), f"lost {lost}, said {said}"
