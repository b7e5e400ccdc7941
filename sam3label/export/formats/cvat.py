"""CVAT for images 1.1: annotations.xml beside images/, zip the folder to import it.

Instances are <mask> elements: row-major run lengths inside the box, background first, so holes and parts survive.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from sam3label.core import masks
from sam3label.core.records import Label
from sam3label.export.dataset import Sample, Target
from sam3label.export.photos import Placer

_NAMES = {"train": "Train", "val": "Validation", "test": "Test"}
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#9a6324")


def write_cvat(target: Target, samples: Iterable[Sample]) -> None:
    """Write annotations.xml, one image element at a time, and images/SPLIT/..., as CVAT names its subsets."""
    with (target.folder / "annotations.xml").open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n')
        file.write(_meta(target))
        for number, sample in enumerate(samples):
            element = _image(number, sample, target)
            ElementTree.indent(element, level=1)
            file.write("  " + ElementTree.tostring(element, encoding="unicode") + "\n")
            _place(target.placer, sample, target)
        file.write("</annotations>\n")


def _place(placer: Placer, sample: Sample, target: Target) -> None:
    placer.place(sample.image, target.folder / "images" / _NAMES[sample.split] / sample.image.item.id)


def _meta(target: Target) -> str:
    labels = "".join(
        f"        <label><name>{escape(name)}</name><color>{_COLOURS[i % len(_COLOURS)]}</color>"
        "<type>mask</type><attributes></attributes></label>\n"
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
        subset=_NAMES[sample.split],
        width=str(width),
        height=str(height),
    )
    for label in sample.image.labels:
        element.append(_mask(label, target.classes[label.class_id]))
    return element


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
