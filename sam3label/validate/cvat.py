"""CVAT for images 1.1: annotations.xml with masks, polygons or boxes, beside images/."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from sam3label.core import masks
from sam3label.core.records import Box, Rle
from sam3label.errors import InputError
from sam3label.validate.coco import read_mask
from sam3label.validate.photos import is_file
from sam3label.validate.pictures import DatasetImage, Kind, OpenedDataset, class_table, usable_size
from sam3label.validate.report import Findings

KIND = Kind("CVAT for images 1.1", "segment", lambda asked: asked.image.item.id)
_SPLITS = {"Train": "train", "Validation": "val", "Test": "test"}
_SHAPES = ("mask", "polygon", "box")
_OTHER = ("polyline", "points", "ellipse", "cuboid", "skeleton")


def find(path: Path) -> OpenedDataset | None:
    """Return the dataset of an annotations.xml, of its folder, or of a folder of such; None if it is none."""
    if path.is_file():
        files = [path] if path.suffix == ".xml" else []
    else:
        files = (
            [path / "annotations.xml"] if is_file(path / "annotations.xml") else sorted(path.glob("*/annotations.xml"))
        )
    if not files:
        return None
    findings = Findings()
    names = list(dict.fromkeys(name for file in files for name in _classes(file)))
    pictures = (picture for file in files for picture in _pictures(file, findings))
    return OpenedDataset(KIND, class_table(names), pictures, findings)


def _classes(file: Path) -> Iterator[str]:
    """Yield names of the labels in <meta>, which stands first."""
    for element in _elements(file, ("label", "image")):
        if element.tag == "image":
            return
        if name := element.findtext("name"):
            yield name


def _elements(file: Path, tags: tuple[str, ...]) -> Iterator[ElementTree.Element]:
    """Yield elements of a kind as they end, one at a time. Raises `InputError` where the XML is broken."""
    try:
        root: ElementTree.Element | None = None
        for event, element in ElementTree.iterparse(file, events=("start", "end")):
            root = element if root is None else root
            if event == "end" and element.tag in tags:
                yield element
                if element.tag == "image":
                    root.clear()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise InputError(f"{file} is not CVAT's XML, or was cut off: {error}") from error


def _pictures(file: Path, findings: Findings) -> Iterator[DatasetImage]:
    for element in _elements(file, ("image",)):
        values, subset = element.attrib, element.get("subset", "")
        name = values.get("name", "")
        place = file.parent / "images" / subset / name
        photo = place if is_file(place) else file.parent / "images" / name
        size = usable_size(values.get("height"), values.get("width"))
        split = _SPLITS.get(subset, subset) or file.parent.name
        picture = DatasetImage(split, name, name, size, photo)
        picture.instances.extend(_instances(element, size, name, findings))
        yield picture


def _instances(
    image: ElementTree.Element, size: tuple[int, int] | None, where: str, findings: Findings
) -> Iterator[tuple[str, Rle | Box]]:
    groups: dict[tuple[str, str], list[Rle]] = {}
    for number, element in enumerate(image):
        if element.tag in _OTHER:
            findings.note("validate", f"a {element.tag} is no mask: not compared", where)
        if element.tag not in _SHAPES or size is None:
            continue
        rle = _shape(element.tag, element.attrib, size)
        if rle is None:
            findings.drops("every reader", f"a {element.tag} cannot be read", where)
            continue
        group = element.get("group_id") or "0"
        alone = f"alone {number}"
        groups.setdefault((element.get("label", ""), alone if group == "0" else group), []).append(rle)
    yield from ((name, masks.union(parts)) for (name, _), parts in groups.items())


def _shape(tag: str, values: Mapping[str, str], size: tuple[int, int]) -> Rle | None:
    try:
        if tag == "mask":
            return _mask(values, size)
        if tag == "box":
            x1, y1, x2, y2 = (float(values[k]) for k in ("xtl", "ytl", "xbr", "ybr"))
            return read_mask([[x1, y1, x2, y1, x2, y2, x1, y2]], size)
        points = [float(v) for point in values["points"].split(";") for v in point.split(",")]
        return read_mask([points], size)
    except (KeyError, ValueError, OverflowError):
        return None


def _mask(values: Mapping[str, str], size: tuple[int, int]) -> Rle | None:
    """Row-major run lengths inside the box, background first."""
    left, top, width, height = (int(values[k]) for k in ("left", "top", "width", "height"))
    runs = np.array([int(run) for run in values["rle"].split(",")], dtype=np.int64)
    inside = left >= 0 and top >= 0 and 0 < width <= size[1] - left and 0 < height <= size[0] - top
    if not inside or (runs < 0).any() or int(runs.sum()) != width * height:
        return None
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return masks.paste(left, top, pixels, size)
