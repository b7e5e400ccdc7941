"""CVAT for images 1.1: a folder a subset, each with annotations.xml beside images/: zip one's content to import it.

Instances are <mask> elements: row-major run lengths inside the box, background first, so holes and parts survive. Or
they are polygons, for readers that know no <mask> (FiftyOne): one a part, parts of an instance in one group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import IO
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from sam3label.core import masks
from sam3label.core.records import Label
from sam3label.export.dataset import Sample, Target

_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#9a6324")


def write_cvat(target: Target, samples: Iterable[Sample]) -> None:
    """Write SPLIT/annotations.xml, one image element at a time, and SPLIT/images/..."""
    with ExitStack() as stack:
        files = {split: stack.enter_context(_opened(target, split)) for split in target.splits}
        numbers = dict.fromkeys(files, 0)
        for file in files.values():
            file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n')
            file.write(_meta(target))
        for sample in samples:
            element = _image(numbers[sample.split], sample, target)
            numbers[sample.split] += 1
            ElementTree.indent(element, level=1)
            files[sample.split].write("  " + ElementTree.tostring(element, encoding="unicode") + "\n")
            place = target.folder / sample.split / "images" / sample.image.item.id
            target.placer.place(sample.image, place)
        for file in files.values():
            file.write("</annotations>\n")


def _opened(target: Target, split: str) -> IO[str]:
    (target.folder / split / "images").mkdir(parents=True)
    return (target.folder / split / "annotations.xml").open("w", encoding="utf-8")


def _meta(target: Target) -> str:
    kind = "polygon" if target.segmentation == "polygon" else "mask"
    labels = "".join(
        f"        <label><name>{escape(name)}</name><color>{_COLORS[i % len(_COLORS)]}</color>"
        f"<type>{kind}</type><attributes></attributes></label>\n"
        for i, name in enumerate(target.classes.values())
    )
    name = escape(str(target.info.get("description", "")))
    return (
        f"  <meta>\n    <task>\n      <name>{name}</name>\n      <mode>annotation</mode>\n"
        f"      <labels>\n{labels}      </labels>\n    </task>\n  </meta>\n"
    )


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
