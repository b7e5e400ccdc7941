"""CVAT for images 1.1: an annotations.xml with boxes, points, polygons and masks, each with its attributes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from sam3label.annotations.marks import Labelled, LabelledDataset, Mark, of_points
from sam3label.annotations.reading import load_xml
from sam3label.errors import InputError


def read_cvat(path: Path) -> LabelledDataset:
    """Read an annotations.xml, or every one below a folder. Raises InputError."""
    files = sorted(path.rglob("annotations.xml")) if path.is_dir() else [path]
    base = path if path.is_dir() else path.parent
    classes: dict[str, None] = {}
    images: list[Labelled] = []
    for file in files:
        root = load_xml(file)
        if root.tag != "annotations":
            raise InputError(f"{file} is no CVAT file: its root is <{root.tag}>, not <annotations>.")
        classes |= dict.fromkeys((label.findtext("name") or "").strip() for label in root.iterfind("meta//label"))
        within = file.parent.relative_to(base)
        images += (_image(element, within, file) for element in root.iterfind("image"))
    classes |= dict.fromkeys(m.class_name for image in images for m in image.marks if m.class_name is not None)
    return LabelledDataset(
        path, "CVAT", tuple(name for name in classes if name), tuple(images), (base / "images", base)
    )


def _image(element: ElementTree.Element, within: Path, file: Path) -> Labelled:
    where = f"{file}: image {element.get('name', '?')}"
    if not element.get("name"):
        raise InputError(f"{file}: an <image> has no name.")
    size = [element.get(key, "") for key in ("height", "width")]
    size_hw = (int(size[0]), int(size[1])) if all(one.isdecimal() for one in size) else None
    name = (within / element.get("name", "")).as_posix()
    return Labelled(name, tuple(_marks(element, where)), where, size_hw)


def _marks(element: ElementTree.Element, where: str) -> Iterator[Mark]:
    for number, shape in enumerate((e for e in element if e.tag in _SHAPES), start=1):
        place = f"{where}, {shape.tag} {number}"
        name = shape.get("label", "").strip()
        if not name:
            raise InputError(f"{place} has no label: which class is it?")
        said = tuple((a.get("name", ""), (a.text or "").strip()) for a in shape.iterfind("attribute"))
        try:
            yield _SHAPES[shape.tag](shape, name, place, str(number), said)
        except (TypeError, ValueError):
            raise InputError(f"{place} has no whole coordinates.") from None


_Said = tuple[tuple[str, str], ...]


def _box(shape: ElementTree.Element, name: str, where: str, id: str, said: _Said) -> Mark:
    if float(shape.get("rotation", 0)):
        raise InputError(f"{where} is rotated: draw it upright, or as a polygon.")
    x1, y1, x2, y2 = (float(shape.get(key, "")) for key in ("xtl", "ytl", "xbr", "ybr"))
    return Mark(name, (x1, y1, x2, y2), where, id, said)


def _polygon(shape: ElementTree.Element, name: str, where: str, id: str, said: _Said) -> Mark:
    points = _points_of(shape)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return Mark(name, (min(xs), min(ys), max(xs), max(ys)), where, id, said)


def _mask(shape: ElementTree.Element, name: str, where: str, id: str, said: _Said) -> Mark:
    x, y, width, height = (float(shape.get(key, "")) for key in ("left", "top", "width", "height"))
    return Mark(name, (x, y, x + width, y + height), where, id, said)


def _point(shape: ElementTree.Element, name: str, where: str, id: str, said: _Said) -> Mark:
    return of_points(name, [(x, y, True) for x, y in _points_of(shape)], where, id, said)


_SHAPES = {"box": _box, "polygon": _polygon, "mask": _mask, "points": _point}


def _points_of(shape: ElementTree.Element) -> list[tuple[float, float]]:
    pairs = (pair.split(",") for pair in shape.get("points", "").split(";"))
    return [(float(x), float(y)) for x, y in pairs]
