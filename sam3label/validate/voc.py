"""Pascal VOC: a list of photos a split, an XML a photo."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from sam3label.core.records import Box
from sam3label.export.photos import label_stem
from sam3label.validate.photos import is_file
from sam3label.validate.pictures import DatasetImage, Kind, OpenedDataset, class_table, usable_size
from sam3label.validate.report import Findings

KIND = Kind("Pascal VOC", "detect", lambda asked: label_stem(asked.image.item.id), turned="turns")
_TOGETHER = ("trainval",)  # a list that repeats others


def find(path: Path) -> OpenedDataset | None:
    """Return the dataset of a folder with Annotations/; None if it is none."""
    if not (path / "Annotations").is_dir():
        return None
    findings = Findings()
    lists = _lists(path, findings)
    pictures = _pictures(path, lists, findings)
    return OpenedDataset(KIND, class_table(_classes(path, findings)), pictures, findings)


def _lists(root: Path, findings: Findings) -> dict[str, list[str]]:
    """Return stems by split."""
    found = {p.stem: _lines(p) for p in sorted((root / "ImageSets" / "Main").glob("*.txt")) if p.is_file()}
    found = {split: stems for split, stems in found.items() if split not in _TOGETHER and "_" not in split}
    own = sorted(_stems(root / "Annotations"))
    if not found:
        findings.drops("torchvision", "there is no ImageSets/Main/SPLIT.txt: no split can be loaded", str(root))
        return {"all": own}
    listed = {stem for stems in found.values() for stem in stems}
    for stem in own:
        if stem not in listed:
            findings.drops("every reader", "an XML is in no list of ImageSets/Main: never read", stem)
    return found


def _stems(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.xml"):
        yield path.relative_to(folder).with_suffix("").as_posix()


def _lines(path: Path) -> list[str]:
    """Return the lines of a list, blank ones left out; in the lists by class a line has a second column."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return [line.strip() for line in text.split("\n") if line.strip()]


def _classes(root: Path, findings: Findings) -> list[str]:
    """Return names of labelmap.txt; where there is none, those that are used."""
    if is_file(root / "labelmap.txt"):
        lines = [line for line in _lines(root / "labelmap.txt") if not line.startswith("#")]
        return [name for name in (line.rsplit(":", 3)[0] for line in lines) if name != "background"]
    findings.note("datumaro, CVAT", "there is no labelmap.txt: class names that VOC has not are refused", str(root))
    names: set[str] = set()
    for stem in _stems(root / "Annotations"):
        tree = _parsed(root / "Annotations" / f"{stem}.xml")
        names |= {thing.findtext("name") or "" for thing in tree.iter("object")} if tree is not None else set()
    return sorted(names)


def _pictures(root: Path, lists: dict[str, list[str]], findings: Findings) -> Iterator[DatasetImage]:
    for split, stems in lists.items():
        for stem in stems:
            yield _picture(root, split, stem, findings)


def _picture(root: Path, split: str, stem: str, findings: Findings) -> DatasetImage:
    tree = _parsed(root / "Annotations" / f"{stem}.xml")
    if tree is None:
        findings.drops("every reader", "a listed photo has no XML, or one that cannot be read", stem)
        return DatasetImage(split, stem, stem, (1, 1), None)
    photo = root / "JPEGImages" / (tree.findtext("filename") or f"{stem}.jpg")
    if photo != root / "JPEGImages" / f"{stem}.jpg":
        findings.drops("torchvision", "the photo is not called as its XML, with .jpg: it is not found", photo.name)
    size = usable_size(tree.findtext("size/height"), tree.findtext("size/width"))
    picture = DatasetImage(split, stem, stem, size, photo)
    for thing in tree.iter("object"):
        if (box := _box(thing)) is None:
            findings.drops("every reader", "a box is not four numbers", stem)
        else:
            picture.instances.append((thing.findtext("name") or "", box))
    return picture


def _parsed(path: Path) -> ElementTree.Element | None:
    try:
        return ElementTree.parse(path).getroot() if is_file(path) else None
    except (ElementTree.ParseError, OSError, ValueError, LookupError):
        return None


def _box(thing: ElementTree.Element) -> Box | None:
    """Return a box in pixels. Pixels count from 1 there, and the last one is inside."""
    try:
        x1, y1, x2, y2 = (float(thing.findtext(f"bndbox/{k}") or "") for k in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        return None
    box = (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1)
    return box if all(math.isfinite(v) for v in box) else None
