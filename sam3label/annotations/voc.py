"""Pascal VOC: one XML a photo with its boxes, which count pixels from 1 and include the last one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from sam3label.annotations.marks import Labelled, LabelledDataset, Mark
from sam3label.annotations.reading import load_xml, number_in
from sam3label.errors import InputError

_OWN = {"name", "bndbox"}  # of an <object>; its other leaves are attributes


def read_voc(path: Path) -> LabelledDataset:
    """Read a folder of VOC annotations (`Annotations/`, or XML files anywhere in it). Raises InputError."""
    folder = path / "Annotations" if (path / "Annotations").is_dir() else path
    files = sorted(folder.rglob("*.xml"))
    images = [_image(file, folder) for file in files]
    root = folder.parent if folder.name == "Annotations" else folder
    classes = dict.fromkeys(m.class_name for image in images for m in image.marks if m.class_name is not None)
    photos = (root / "JPEGImages", root / "images", root)
    return LabelledDataset(path, "VOC", tuple(sorted(classes)), tuple(images), photos)


def _image(file: Path, folder: Path) -> Labelled:
    root = load_xml(file)
    if root.tag != "annotation":
        raise InputError(f"{file} is no VOC annotation: its root is <{root.tag}>, not <annotation>.")
    within = file.relative_to(folder).parent
    name = root.findtext("filename", "").strip() or f"{file.stem}.jpg"
    name = (within / Path(name.replace("\\", "/")).name).as_posix()
    height, width = (number_in(root, f"size/{key}", str(file)) for key in ("height", "width"))
    size_hw = (int(height), int(width)) if height and width else None
    return Labelled(name, tuple(_marks(root, str(file))), str(file), size_hw)


def _marks(root: ElementTree.Element, where: str) -> Iterator[Mark]:
    for number, thing in enumerate(root.iterfind("object"), start=1):
        place = f"{where}, object {number}"
        name = thing.findtext("name", "").strip()
        if not name:
            raise InputError(f"{place} has no <name>: which class is it?")
        sides = [number_in(thing, f"bndbox/{key}", place) for key in ("xmin", "ymin", "xmax", "ymax")]
        if any(side is None for side in sides):
            raise InputError(f"{place} has no whole <bndbox> of xmin, ymin, xmax and ymax.")
        x1, y1, x2, y2 = (side or 0.0 for side in sides)
        leaves = ((leaf.tag, (leaf.text or "").strip()) for leaf in thing if leaf.tag not in _OWN)
        said = tuple((tag, text) for tag, text in leaves if text)
        yield Mark(name, (x1 - 1, y1 - 1, x2, y2), place, str(number), said)
