"""YOLO label files: rows of a class with a box or a polygon, in fractions of the image; as truth, and as marks.

Images and labels belong together as Ultralytics finds them: the last `images` folder of a path becomes `labels`, or the
label file lies beside the image. A data.yaml names the classes and the splits; without one, classes.txt the classes.
Where it has a `kpt_shape`, rows are a class, a box and keypoints, of which the box is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sam3label.annotations.coco import JudgedObject, Pair, Truth, TruthImage
from sam3label.annotations.marks import Corners, Labelled, LabelledDataset, Mark, some
from sam3label.annotations.reading import load_yaml, read_lines
from sam3label.core import masks, outlines
from sam3label.core.records import Box
from sam3label.core.text import count
from sam3label.core.yamlnodes import Node
from sam3label.errors import InputError, UndecodableError
from sam3label.media.discovery import IMAGE_SUFFIXES
from sam3label.media.image import upright_size

SPLITS = ("train", "val", "test")
_OUTSIDE = 0.005  # tools round: a shape may leave the image by this share of it, and is cut to it


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `shape` is a box (center x, center y, width, height) or a polygon x, y, x, y, ..., in fractions."""

    class_id: int
    class_name: str
    shape: tuple[float, ...]
    where: str

    @property
    def is_box(self) -> bool:
        return len(self.shape) == 4

    def corners(self) -> Corners:
        """Return (x1, y1, x2, y2) in fractions."""
        if self.is_box:
            x, y, width, height = self.shape
            return x - width / 2, y - height / 2, x + width / 2, y + height / 2
        return min(self.shape[::2]), min(self.shape[1::2]), max(self.shape[::2]), max(self.shape[1::2])


@dataclass(frozen=True, slots=True)
class Dataset:
    """A YOLO dataset: its class names by id, and its images by split."""

    path: Path
    names: Mapping[int, str]
    images: Mapping[str, tuple[Path, ...]]  # split ("" where there are none) -> images
    roots: Mapping[Path, Path]  # image -> the folder that its name is relative to
    keypoints: int = 0  # numbers behind the box of each row


def read_rows(path: Path, names: Mapping[int, str], keypoints: int = 0) -> Iterator[Row]:
    """Yield the rows of a label file, but for so many numbers of keypoints. Raises InputError that names the line."""
    for number, line in enumerate(read_lines(path), start=1):
        where = f"{path}, line {number}"
        try:
            values = [float(word) for word in line.split()]
            name = names.get(int(values[0])) if values and values[0].is_integer() else None
        except (ValueError, OverflowError):
            raise InputError(f"{where}: '{line[:40]}' is not a row of numbers") from None
        if not values:
            continue
        if keypoints:
            if len(values) != 5 + keypoints:
                allowed = f"class, box and {keypoints} of keypoints, as kpt_shape has it ({5 + keypoints})"
                raise InputError(f"{where}: {len(values)} numbers; allowed: {allowed}")
            values = values[:5]
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            raise InputError(f"{where}: {len(values)} numbers; allowed: class and box (5), or class and polygon")
        if name is None:
            raise InputError(f"{where}: class {values[0]:g} has no name: the classes are {some(list(names.values()))}")
        yield Row(int(values[0]), name, tuple(values[1:]), where)


def class_names(names: Node) -> dict[int, str]:
    """Return the class names by id, from the `names:` of a data.yaml. Raises InputError."""
    children = dict(enumerate(names.value)) if isinstance(names.value, list) else names.value
    if not isinstance(children, dict) or not all(isinstance(number, int) for number in children):
        raise InputError(f"{names.where}: `names:` is neither a list nor numbers with names")
    return {number: str(child.value) for number, child in children.items()}


def keypoint_numbers(content: Mapping[Any, Node]) -> int:
    """Return how many numbers of keypoints a data.yaml puts behind the box of each row. Raises InputError."""
    node = content.get("kpt_shape")
    if node is None or node.value is None:
        return 0
    sides = [side.value for side in node.value] if isinstance(node.value, list) else []
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides) or sides[1] not in (2, 3):
        raise InputError(f"{node.where}: `kpt_shape:` is not how many keypoints of 2 or 3 numbers, such as [17, 3]")
    return int(sides[0] * sides[1])


# ---- marks: boxes by label file, whether or not the images are there


def read_yolo_marks(folder: Path, names: Mapping[int, str], keypoints: int = 0) -> list[Labelled]:
    """Return the boxes of every label file below a folder. Raises InputError."""
    files = [p for p in sorted(folder.rglob("*.txt")) if p.name != "classes.txt"]
    inside = [p for p in files if "labels" in p.relative_to(folder).parts[:-1]]
    return [
        Labelled(
            p.relative_to(folder).with_suffix("").as_posix(), tuple(_marks(p, names, keypoints)), str(p), None, True
        )
        for p in inside or files
    ]


def _marks(path: Path, names: Mapping[int, str], keypoints: int) -> Iterator[Mark]:
    return (Mark(row.class_name, row.corners(), row.where) for row in read_rows(path, names, keypoints))


def read_yolo_dataset(path: Path) -> LabelledDataset:
    """Read a data.yaml or a dataset folder: every image of every split, those without a label file too."""
    dataset = find_dataset(path)
    chosen = _images_of(dataset, None)
    names = _image_names(dataset, chosen)
    images = []
    for image in chosen:
        labels = label_path(image)
        rows = read_rows(labels, dataset.names, dataset.keypoints) if labels.is_file() else iter(())
        marks = (Mark(row.class_name, row.corners(), row.where, str(n)) for n, row in enumerate(rows, start=1))
        images.append(Labelled(names[image], tuple(marks), str(labels), None, True))
    if not any(label_path(image).is_file() for image in chosen):
        raise InputError(f"{path}: there is no label file for its {count(len(chosen), 'image')}, beside or in labels/.")
    files = {name: image for image, name in names.items()}
    classes = tuple(dataset.names[number] for number in sorted(dataset.names))
    return LabelledDataset(path, "YOLO", classes, tuple(images), (), files)


# ---- truth


def read_yolo_truth(path: str | Path, split: str | None = None) -> Truth:
    """Read a data.yaml or a dataset folder as truth: every split of it, or one. Raises `InputError` in one sentence.

    An image without a label file shows nothing, as Ultralytics has it; `Truth.notes` says how many there are.
    """
    dataset = find_dataset(Path(path))
    chosen = _images_of(dataset, split)
    names = _image_names(dataset, chosen)
    images: dict[int, TruthImage] = {}
    objects: dict[Pair, list[JudgedObject]] = {}
    unlabelled = 0
    for number, image in enumerate(chosen):
        label_file = label_path(image)
        unlabelled += not label_file.is_file()
        size_hw = _size(image)
        images[number] = TruthImage(names[image], size_hw)
        for row in read_rows(label_file, dataset.names, dataset.keypoints) if label_file.is_file() else ():
            objects.setdefault((number, row.class_id), []).append(_instance(row, size_hw))
    if unlabelled == len(images):
        raise InputError(f"{path}: there is no label file for its {count(len(images), 'image')}, beside or in labels/.")
    pairs = tuple((number, class_id) for number in images for class_id in dataset.names)
    notes = (f"{count(unlabelled, 'image')} of {path} without a label file: taken to show nothing.",)
    return Truth(
        str(path), images, dict(dataset.names), objects, pairs, frozenset(), False,
        notes if unlabelled else (), numbered=False,
    )  # fmt: skip


def find_dataset(path: Path) -> Dataset:
    """Return the dataset that a data.yaml, or a folder with one or with a classes.txt, describes. Raises InputError."""
    data_file = _data_file(path) if path.is_dir() else path
    if data_file is None:
        return _dataset(path, find_dataset_names(path), {"": [path]})
    content = load_yaml(data_file)
    if "names" not in content:
        raise InputError(f"{data_file} has no `names:`: a data.yaml names the classes of its YOLO labels.")
    root = _root(data_file, content.get("path"))
    places = {split: _places(content[split], root) for split in SPLITS if split in content and content[split].value}
    found = _dataset(data_file, class_names(content["names"]), places or {"": [root]})
    return replace(found, keypoints=keypoint_numbers(content))


def find_dataset_names(folder: Path) -> dict[int, str]:
    """Return the class names by id that a data.yaml or a classes.txt in `folder` gives. Raises `InputError`."""
    data_file = _data_file(folder)
    if data_file is None:
        return dict(enumerate(line for line in read_lines(folder / "classes.txt") if line.strip()))
    content = load_yaml(data_file)
    if "names" not in content:
        raise InputError(f"{data_file} has no `names:`: a data.yaml names the classes of its YOLO labels.")
    return class_names(content["names"])


def label_path(image: Path) -> Path:
    """Return where the labels of an image are: the last `images` folder of its path becomes `labels`, or beside it."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[:-1][::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def _data_file(folder: Path) -> Path | None:
    files = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in (".yaml", ".yml")]
    named = [p for p in files if p.stem == "data"] or files
    if len(named) > 1:
        raise InputError(f"{folder} has several YAML files ({some([p.name for p in named])}): name one of them.")
    if not named and not (folder / "classes.txt").is_file():
        raise InputError(f"{folder} has no data.yaml and no classes.txt to name the classes of its labels.")
    return named[0] if named else None


def _root(data_file: Path, node: Node | None) -> Path:
    """Return the folder that splits are relative to; where `path:` leads nowhere, that of the file, as after a move."""
    given = data_file.parent / str(node.value) if node is not None and node.value else data_file.parent
    return given if given.is_dir() else data_file.parent


def _places(node: Node, root: Path) -> list[Path]:
    """Return the folders and lists of a split."""
    found = []
    for entry in node.value if isinstance(node.value, list) else [node]:
        place = root / str(entry.value)
        if not place.exists() and str(entry.value).startswith("../"):
            place = root / str(entry.value)[3:]  # as Roboflow writes it, and Ultralytics reads it
        if not place.exists():
            raise InputError(f"{entry.where}: {place} does not exist: there are no images to take for truth.")
        found.append(place)
    return found


def _dataset(path: Path, names: Mapping[int, str], places: Mapping[str, Sequence[Path]]) -> Dataset:
    images: dict[str, tuple[Path, ...]] = {}
    roots: dict[Path, Path] = {}
    for split, folders in places.items():
        for place in folders:
            own = _listed(place) if place.is_file() else _inside(place)
            images[split] = (*images.get(split, ()), *own)
            roots.update((image, _name_root(image) if place.is_file() else place) for image in own)
    return Dataset(path, names, images, roots)


def _inside(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]


def _listed(file: Path) -> list[Path]:
    """Return the images that a list names, one a line, relative to it or absolute."""
    return [file.parent / line.strip() for line in read_lines(file) if line.strip()]


def _name_root(image: Path) -> Path:
    """Return the folder after which a listed image's name begins: its last `images`, or its own."""
    return next((parent for parent in image.parents if parent.name == "images"), image.parent)


def _images_of(dataset: Dataset, split: str | None) -> list[Path]:
    if split is not None and split not in dataset.images:
        known = [name for name in dataset.images if name]
        raise InputError(f"{dataset.path} has no split {split!r}: it has {some(known) if known else 'none'}.")
    found = [image for name, images in dataset.images.items() if split in (None, name) for image in images]
    if not found:
        raise InputError(f"{dataset.path}: there is not one image in it to take for truth.")
    return list(dict.fromkeys(found))


def _image_names(dataset: Dataset, images: Sequence[Path]) -> dict[Path, str]:
    """Image -> its path below its split's folder; with that folder before it where two splits have the same."""
    short = {image: PurePosixPath(image.relative_to(dataset.roots[image])).as_posix() for image in images}
    times = Counter(short.values())
    return {image: name if times[name] == 1 else image.as_posix() for image, name in short.items()}


def _size(image: Path) -> tuple[int, int]:
    try:
        return upright_size(image)
    except UndecodableError as error:
        raise InputError(f"{image} cannot be read: {error}. Its size is needed to place its labels.") from error


def _instance(row: Row, size_hw: tuple[int, int]) -> JudgedObject:
    """Return a truth's object. Raises `InputError` for a shape that is none."""
    x1, y1, x2, y2 = row.corners()
    if not (x2 > x1 and y2 > y1):  # so that NaN counts too
        raise InputError(f"{row.where}: the shape has no area: draw it again or remove it.")
    if min(x1, y1) < -_OUTSIDE or max(x2, y2) > 1 + _OUTSIDE:
        raise InputError(f"{row.where}: the shape is not inside the image: coordinates are fractions from 0 to 1.")
    return object_of(row, size_hw)


def object_of(row: Row, size_hw: tuple[int, int], score: float = 1.0) -> JudgedObject:
    """Return a row's object, cut to the image."""
    height, width = size_hw
    if row.is_box:
        left, top, right, bottom = np.clip(row.corners(), 0, 1) * (width, height, width, height)
        box: Box = (float(left), float(top), float(right - left), float(bottom - top))
        return JudgedObject(box, box[2] * box[3], box[2] * box[3], None, score)
    ring = np.clip(np.array(row.shape).reshape(-1, 2), 0, 1) * (width, height)
    rle = outlines.from_contour(ring, size_hw)  # as Ultralytics fills it
    area = float(masks.area(rle))
    return JudgedObject(masks.box_xywh(rle), area, area, rle, score)
