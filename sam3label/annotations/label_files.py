"""Label files and datasets as objects by image: COCO, YAML of boxes, YOLO, VOC, CVAT, Label Studio, CSV."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam3label.annotations.box_files import read_box_file
from sam3label.annotations.box_table import read_box_table
from sam3label.annotations.coco import load_json, points_of, read_coco
from sam3label.annotations.cvat import read_cvat
from sam3label.annotations.labelstudio import read_labelstudio
from sam3label.annotations.marks import Labelled, LabelledDataset, Mark, corners_of, of_points, some
from sam3label.annotations.reading import load_xml, load_yaml, read_lines
from sam3label.annotations.voc import read_voc
from sam3label.annotations.yolo import class_names, keypoint_numbers, read_yolo_dataset, read_yolo_marks
from sam3label.core.text import count
from sam3label.errors import InputError

_FORMS = "COCO or Label Studio JSON, a YOLO data.yaml or folder, VOC or CVAT XML, a CSV table"


def read_label_file(path: Path) -> list[Labelled]:
    """Return what a label file or folder says. Raises InputError in one sentence when it is none."""
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".json":
        return list(_coco(path, points=False).images)
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise InputError(f"{path} is no label file: a COCO .json, a .yaml of boxes or a YOLO folder is expected")
    content = load_yaml(path)
    if "names" not in content:
        return read_box_file(content)
    return read_yolo_marks(path.parent, class_names(content["names"]), keypoint_numbers(content))


def _read_folder(folder: Path) -> list[Labelled]:
    files = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in (".json", ".yaml", ".yml")]
    if len(files) > 1:
        raise InputError(f"{folder} has several label files ({some([p.name for p in files])}): name one of them")
    if files:
        return read_label_file(files[0])
    classes = folder / "classes.txt"
    if classes.is_file():
        return read_yolo_marks(folder, dict(enumerate(read_lines(classes))))
    if any(folder.rglob("*.txt")):
        raise InputError(f"{folder} has YOLO labels and neither data.yaml nor classes.txt to name their classes")
    raise InputError(f"{folder} has no labels: a COCO .json, a .yaml of boxes, or YOLO .txt files with a data.yaml")


# ---- datasets: every image, with its objects' ids and attributes


def read_dataset(path: str | Path) -> LabelledDataset:
    """Read a dataset of boxes (and points) with all its images, in the form that its files have.

    `path` is COCO or Label Studio JSON, a YOLO data.yaml or folder, a VOC folder, CVAT's annotations.xml or a CSV
    table, or a folder with one of them. Raises InputError in one sentence when it is none.

    Example: read_dataset("exports/annotations.xml").form == "CVAT".
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        return _in_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return read_labelstudio(path) if isinstance(load_json(path), list) else _coco(path, points=True)
    if suffix in (".yaml", ".yml"):
        return read_yolo_dataset(path)
    if suffix in (".csv", ".tsv"):
        return read_box_table(path)
    if suffix == ".xml":
        return read_cvat(path) if load_xml(path).tag == "annotations" else read_voc(path.parent)
    raise InputError(f"{path} is no dataset of boxes: {_FORMS} is expected.")


def _in_folder(folder: Path) -> LabelledDataset:
    if (folder / "Annotations").is_dir():
        return read_voc(folder)
    if any(p.suffix.lower() in (".yaml", ".yml") for p in folder.iterdir()) or (folder / "classes.txt").is_file():
        return read_yolo_dataset(folder)
    places = [folder, *(p for p in (folder / "annotations",) if p.is_dir())]
    files = [p for place in places for p in sorted(place.iterdir()) if p.suffix.lower() in (".json", ".csv")]
    if len(files) > 1:
        raise InputError(f"{folder} has several label files ({some([p.name for p in files])}): name one of them.")
    if files:
        return read_dataset(files[0])
    if any(folder.rglob("annotations.xml")):
        return read_cvat(folder)
    if any(folder.rglob("*.xml")):
        return read_voc(folder)
    raise InputError(f"{folder} holds no dataset of boxes: {_FORMS} is expected.")


def _coco(path: Path, points: bool) -> LabelledDataset:
    truth = read_coco(path, points)
    if truth.by_phrase:
        raise InputError(f"{path} is an SA-Co file: boxes are read from COCO files, with categories")
    marks: dict[int, list[Mark]] = defaultdict(list)
    said, crowds = _said(load_json(path)["annotations"]), 0
    for (image_id, category_id), objects in truth.objects.items():
        name, file_name = truth.categories[category_id], truth.images[image_id].file_name
        own = said[image_id, category_id]
        for instance, (id, attributes, clicks) in zip(objects, own, strict=True):
            crowds += instance.crowd
            if instance.crowd:
                continue
            where = f"{path}: {file_name}, {name}"
            if clicks:
                marks[image_id].append(of_points(name, clicks, where, id, attributes))
            else:
                box = corners_of(instance.box_xywh)
                marks[image_id].append(Mark(name, box, where, id, attributes, mask=instance.rle))
    images = tuple(
        Labelled(image.file_name, tuple(marks[i]), f"{path}: {image.file_name}", image.size_hw)
        for i, image in truth.images.items()
    )
    base = path.parent
    photos = (base, base / "images", base.parent / "images", base.parent)
    notes = (f"{count(crowds, 'crowd')} of {path} left out: a crowd is a region, not an object.",) if crowds else ()
    return LabelledDataset(path, "COCO", tuple(truth.categories.values()), images, photos, notes=notes)


_Said = tuple[str, tuple[tuple[str, str], ...], tuple[tuple[float, float, bool], ...]]


def _said(annotations: list[Mapping[str, Any]]) -> Mapping[tuple[int, int], list[_Said]]:
    """Return ids, attributes and lone points of annotations, by image and category, in the file's order."""
    said: dict[tuple[int, int], list[_Said]] = defaultdict(list)
    for one in annotations:
        given = one.get("attributes")
        attributes = tuple((str(k), str(v)) for k, v in given.items()) if isinstance(given, dict) else ()
        points = tuple((x, y, True) for x, y in points_of(one))
        said[one["image_id"], one["category_id"]].append((str(one.get("id", "")), attributes, points))
    return said
