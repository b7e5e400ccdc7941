"""Pascal VOC: one XML per photo with boxes, as torchvision, Detectron2 and older trainers read it.

Boxes count pixels from 1 and include the last one, as the VOC devkit does. Lists in ImageSets/Main name each photo
without its extension; readers of this format take it for .jpg, so other photos keep their real name in <filename> only.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from xml.etree import ElementTree

from sam3label.core.records import Label, LabeledImage
from sam3label.export.dataset import Sample, Target
from sam3label.export.photos import image_name, label_stem


def write_voc(target: Target, samples: Iterable[Sample]) -> None:
    """Write JPEGImages/, Annotations/ and ImageSets/Main/SPLIT.txt."""
    lists = target.folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    with ExitStack() as stack:
        files = {s: stack.enter_context((lists / f"{s}.txt").open("w", encoding="utf-8")) for s in target.splits}
        for sample in samples:
            item_id = sample.image.item.id
            target.placer.place(sample.image, target.folder / "JPEGImages" / image_name(item_id))
            path = target.folder / "Annotations" / f"{label_stem(item_id)}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            tree = ElementTree.ElementTree(_annotation(sample.image, target))
            ElementTree.indent(tree)
            tree.write(path, encoding="utf-8")
            files[sample.split].write(label_stem(item_id) + "\n")
    for folder in ("JPEGImages", "Annotations"):
        (target.folder / folder).mkdir(exist_ok=True)


def _annotation(image: LabeledImage, target: Target) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    _leaf(root, "folder", "JPEGImages")
    _leaf(root, "filename", image_name(image.item.id))
    _leaf(ElementTree.SubElement(root, "source"), "database", str(target.info.get("version", "")))
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", image.size_hw[1]), ("height", image.size_hw[0]), ("depth", 3)):
        _leaf(size, tag, value)
    _leaf(root, "segmented", 0)
    for label in image.labels:
        _object(root, label, target.classes[label.class_id])
    return root


def _object(root: ElementTree.Element, label: Label, name: str) -> None:
    thing = ElementTree.SubElement(root, "object")
    for tag, value in (("name", name), ("pose", "Unspecified"), ("truncated", 0), ("difficult", 0)):
        _leaf(thing, tag, value)
    x, y, w, h = (round(v) for v in label.box_xywh)
    box = ElementTree.SubElement(thing, "bndbox")
    for tag, value in (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + w), ("ymax", y + h)):
        _leaf(box, tag, value)


def _leaf(parent: ElementTree.Element, tag: str, value: object) -> None:
    ElementTree.SubElement(parent, tag).text = str(value)
