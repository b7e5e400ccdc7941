"""Pascal VOC: one XML per photo with boxes, as torchvision, Detectron2 and older trainers read it.

Boxes count pixels from 1 and include the last one, as the VOC devkit does. Lists in ImageSets/Main name each photo
without its extension; readers of this format take it for .jpg, so that is what every JPEG is called here. Other photos
keep their extension, which <filename> tells. labelmap.txt names the classes, for datumaro and CVAT.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import PurePosixPath
from xml.etree import ElementTree

from sam3label.core.records import Label, LabeledImage
from sam3label.core.text import count
from sam3label.export.dataset import Sample, Target
from sam3label.export.photos import label_stem


def write_voc(target: Target, samples: Iterable[Sample]) -> None:
    """Write JPEGImages/, Annotations/, ImageSets/Main/SPLIT.txt and labelmap.txt."""
    lists, others = target.folder / "ImageSets" / "Main", 0
    lists.mkdir(parents=True)
    _write_labelmap(target)
    with ExitStack() as stack:
        names = {*target.splits, *(("trainval",) if {"train", "val"} <= {*target.splits} else ())}
        files = {s: stack.enter_context((lists / f"{s}.txt").open("w", encoding="utf-8")) for s in sorted(names)}
        for sample in samples:
            stem, name = label_stem(sample.image.item.id), _photo_name(sample.image.item.id)
            others += not name.endswith(".jpg")
            target.placer.place(sample.image, target.folder / "JPEGImages" / name)
            path = target.folder / "Annotations" / f"{stem}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            tree = ElementTree.ElementTree(_annotation(sample.image, name, target))
            ElementTree.indent(tree)
            tree.write(path, encoding="utf-8")
            files[sample.split].write(stem + "\n")
            if "trainval" in files and sample.split != "test":
                files["trainval"].write(stem + "\n")
    for folder in ("JPEGImages", "Annotations"):
        (target.folder / folder).mkdir(exist_ok=True)
    if others:
        target.notes.append(
            f"{count(others, 'photo is no JPEG', 'photos are no JPEGs')}: torchvision's VOCDetection finds .jpg only. "
            "The coco formats take them all."
        )


def _photo_name(item_id: str) -> str:
    suffix = PurePosixPath(item_id).suffix
    return label_stem(item_id) + (".jpg" if suffix.lower() in (".jpg", ".jpeg") else suffix)


def _write_labelmap(target: Target) -> None:
    """Write class names with colors as the VOC devkit chooses them: the bits of a class's number, dealt out."""
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    for number, name in enumerate(target.classes.values(), 1):
        color = [sum((number >> (3 * k + channel) & 1) << (7 - k) for k in range(8)) for channel in range(3)]
        lines.append(f"{name}:{','.join(map(str, color))}::")
    (target.folder / "labelmap.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _annotation(image: LabeledImage, name: str, target: Target) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    _leaf(root, "folder", "JPEGImages")
    _leaf(root, "filename", name)
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
