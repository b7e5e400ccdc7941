"""CVAT for images 1.1: a zip a subset, each with annotations.xml beside images/, as CVAT imports it.

Instances are <mask> elements: row-major run lengths inside the box, background first, so holes and parts survive. Or
they are polygons, for readers that know no <mask> (FiftyOne): one a part, parts of an instance in one group.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO
from xml.etree import ElementTree
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile, ZipInfo

from sam3label.core import masks
from sam3label.core.records import Label
from sam3label.errors import OutputError
from sam3label.export.dataset import Sample, Target
from sam3label.export.photos import already_there

ANNOTATIONS = "annotations.xml"
_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#9a6324")
_UNREADABLE = (BadZipFile, ElementTree.ParseError, KeyError, ValueError, LookupError, RuntimeError, EOFError)


def write_cvat(target: Target, samples: Iterable[Sample]) -> None:
    """Write SPLIT.zip for each split, one image at a time. Appending writes an older one anew, with what it held."""
    with ExitStack() as stack:
        subsets = {split: stack.enter_context(_Subset(target, split)) for split in target.splits}
        for sample in samples:
            subsets[sample.split].add(sample)
        for subset in subsets.values():
            subset.finish()


def read_classes(folder: Path) -> dict[int, str]:
    """Return the classes of the zips in `folder`, numbered from 0 in the order they are met. Raises `OutputError`."""
    zips = sorted(folder.glob("*.zip"))
    if not zips:
        raise OutputError(f"{folder} holds no .zip: not a dataset of this format.")
    names: dict[str, None] = {}
    for path in zips:
        try:
            with ZipFile(path) as archive, archive.open(ANNOTATIONS) as file:
                names |= dict.fromkeys(label_names(file))
        except (OSError, *_UNREADABLE) as error:
            raise OutputError(f"{path} is no subset of CVAT or damaged ({error}): nothing can be appended.") from error
    return dict(enumerate(names))


def elements(file: IO[bytes], tags: Iterable[str]) -> Iterator[ElementTree.Element]:
    """Yield elements of these kinds as they end, one at a time; images are forgotten after. Raises what XML does."""
    root: ElementTree.Element | None = None
    for event, element in ElementTree.iterparse(file, events=("start", "end")):
        root = element if root is None else root
        if event == "end" and element.tag in tags:
            yield element
            if element.tag == "image":
                root.clear()


def label_names(file: IO[bytes]) -> Iterator[str]:
    """Yield the names of the labels in <meta>, which stands before the images."""
    for element in elements(file, ("label", "image")):
        if element.tag == "image":
            return
        if name := element.findtext("name"):
            yield name


class _Subset:
    """One zip in the making. The XML goes to a file of its own, since a zip is written one file after the other."""

    def __init__(self, target: Target, split: str) -> None:
        self.target, self.path = target, target.folder / f"{split}.zip"
        self.number = 0
        self.held = set[str]()  # names of images that an older zip holds
        self.stack = ExitStack()

    def __enter__(self) -> _Subset:
        self.archive = self.stack.enter_context(ZipFile(self._beside("new"), "w", strict_timestamps=False))
        self.xml = self.stack.enter_context(self._beside("xml").open("w", encoding="utf-8"))
        self.xml.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n')
        if self.target.append and self.path.exists():
            self._take_over()
        else:
            self._write(_labelled(_meta(self.target), self.target))
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()
        for kind in ("new", "xml", "photo"):
            self._beside(kind).unlink(missing_ok=True)

    def add(self, sample: Sample) -> None:
        if sample.image.item.id in self.held:
            raise already_there(sample.image)
        self._write(_image(self.number, sample, self.target))
        self.number += 1
        photo = self._beside("photo")
        self.target.placer.pack(sample.image, self.archive, f"images/{sample.image.item.id}", photo)

    def finish(self) -> None:
        """Close the zip and put it in its place."""
        self.xml.write("</annotations>\n")
        self.xml.close()
        entry = ZipInfo(ANNOTATIONS)  # of a fixed date: the same run gives the same bytes again
        entry.compress_type = ZIP_DEFLATED
        with self._beside("xml").open("rb") as text, self.archive.open(entry, "w", force_zip64=True) as file:
            shutil.copyfileobj(text, file)
        self.archive.close()
        self._beside("new").replace(self.path)

    def _beside(self, kind: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{kind}")

    def _write(self, element: ElementTree.Element) -> None:
        ElementTree.indent(element, level=1)
        self.xml.write("  " + ElementTree.tostring(element, encoding="unicode").rstrip() + "\n")

    def _take_over(self) -> None:
        """Copy what the older zip holds. New classes are added to its own."""
        with ZipFile(self.path) as old:
            for entry in old.infolist():
                if entry.filename != ANNOTATIONS:
                    with old.open(entry) as source, self.archive.open(entry, "w", force_zip64=True) as file:
                        shutil.copyfileobj(source, file)
            with old.open(ANNOTATIONS) as text:
                for element in elements(text, ("meta", "image")):
                    self._write(_labelled(element, self.target) if element.tag == "meta" else element)
                    if element.tag == "image":
                        self.held.add(element.get("name", ""))
                        self.number = max(self.number, int(element.get("id", "0")) + 1)


def _meta(target: Target) -> ElementTree.Element:
    meta = ElementTree.Element("meta")
    task = ElementTree.SubElement(meta, "task")
    ElementTree.SubElement(task, "name").text = str(target.info.get("description", ""))
    ElementTree.SubElement(task, "mode").text = "annotation"
    ElementTree.SubElement(task, "labels")
    return meta


def _labelled(meta: ElementTree.Element, target: Target) -> ElementTree.Element:
    """Add the classes that <meta> does not name yet."""
    labels = meta.find(".//labels")
    if labels is None:
        labels = ElementTree.SubElement(ElementTree.SubElement(meta, "task"), "labels")
    known = {label.findtext("name") for label in labels}
    for i, name in enumerate(target.classes.values()):
        if name not in known:
            label = ElementTree.SubElement(labels, "label")
            ElementTree.SubElement(label, "name").text = name
            ElementTree.SubElement(label, "color").text = _COLORS[i % len(_COLORS)]
            ElementTree.SubElement(label, "type").text = "polygon" if target.segmentation == "polygon" else "mask"
            ElementTree.SubElement(label, "attributes")
    return meta


def _image(number: int, sample: Sample, target: Target) -> ElementTree.Element:
    height, width = sample.image.size_hw
    element = ElementTree.Element(
        "image",
        id=str(number),
        name=sample.image.item.id,
        width=str(width),
        height=str(height),
    )
    for group, label in enumerate(sample.image.labels, 1):
        name = target.classes[label.class_id]
        if target.segmentation == "polygon":
            element.extend(_polygons(label, name, group, target))
        else:
            element.append(_mask(label, name))
    return element


def _polygons(label: Label, name: str, group: int, target: Target) -> Iterator[ElementTree.Element]:
    for ring in target.outline.polygons(label.rle):
        yield ElementTree.Element(
            "polygon",
            label=name,
            source="manual" if label.source == "human" else "auto",
            occluded="0",
            points=";".join(f"{x:.2f},{y:.2f}" for x, y in ring.tolist()),
            z_order="0",
            group_id=str(group),
        )


def _mask(label: Label, name: str) -> ElementTree.Element:
    x, y, inner = masks.crop(label.rle)
    runs = masks.to_runs(masks.encode(inner.T))  # of the transpose: row-major
    return ElementTree.Element(
        "mask",
        label=name,
        source="manual" if label.source == "human" else "auto",
        occluded="0",
        rle=", ".join(map(str, runs.tolist())),
        left=str(x),
        top=str(y),
        width=str(inner.shape[1]),
        height=str(inner.shape[0]),
        z_order="0",
    )
