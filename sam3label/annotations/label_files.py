"""Label files in any of three forms, as boxes by image: COCO JSON, YAML of boxes, a YOLO folder."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from sam3label.annotations.box_files import read_box_file
from sam3label.annotations.coco import read_coco
from sam3label.annotations.marks import Labelled, Mark, corners_of, some
from sam3label.annotations.reading import load_yaml, read_lines
from sam3label.annotations.yolo import class_names, read_yolo_marks
from sam3label.errors import InputError


def read_label_file(path: Path) -> list[Labelled]:
    """Return what a label file or folder says. Raises InputError in one sentence when it is none."""
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".json":
        return _read_coco(path)
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise InputError(f"{path} is no label file: a COCO .json, a .yaml of boxes or a YOLO folder is expected")
    content = load_yaml(path)
    return read_yolo_marks(path.parent, class_names(content["names"])) if "names" in content else read_box_file(content)


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


def _read_coco(path: Path) -> list[Labelled]:
    truth = read_coco(path)
    if truth.by_phrase:
        raise InputError(f"{path} is an SA-Co file: exemplars are read from COCO files, with categories")
    marks: dict[int, list[Mark]] = defaultdict(list)
    for (image_id, category_id), objects in truth.objects.items():
        name, file_name = truth.categories[category_id], truth.images[image_id].file_name
        for instance in (one for one in objects if not one.crowd):
            marks[image_id].append(Mark(name, corners_of(instance.box_xywh), f"{path}: {file_name}, {name}"))
    return [
        Labelled(image.file_name, tuple(marks[i]), f"{path}: {image.file_name}", image.size_hw)
        for i, image in truth.images.items()
    ]
