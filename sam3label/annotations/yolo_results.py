"""What `yolo predict save_txt=True save_conf=True` writes: a label file an image, a score last in each row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from sam3label.annotations.coco import JudgedObject, Pair, Truth
from sam3label.annotations.marks import some
from sam3label.annotations.reading import read_lines
from sam3label.annotations.yolo import Row, find_dataset_names, object_of
from sam3label.errors import InputError

_BOX = 6  # numbers of a row: class, box, score


def read_yolo_results(folder: str | Path, truth: Truth) -> tuple[dict[Pair, list[JudgedObject]], int]:
    """Return (predictions by pair, how many are of an image or a class that `truth` does not have, or of no area).

    Label files belong to images by their path below `labels`, or by a name that is unique on both sides. Classes are
    named by a data.yaml or classes.txt in `folder`; without one they are those of a YOLO truth. An image without a
    label file is one in which nothing was found. Raises `InputError`.
    """
    folder = Path(folder)
    root = folder / "labels" if (folder / "labels").is_dir() else folder
    files = [path for path in sorted(root.rglob("*.txt")) if path.name != "classes.txt"]
    if not files:
        raise InputError(
            f"{folder} holds no label file: give the folder that yolo predict save_txt=True save_conf=True wrote."
        )
    names = _names(folder, truth)
    categories = {name.casefold().strip(): number for number, name in truth.categories.items()}
    images = _images_of({path: path.relative_to(root).with_suffix("").as_posix() for path in files}, truth)
    if not images:
        known = [image.file_name for image in truth.images.values()]
        raise InputError(f"no label file of {folder} is of an image of {truth.path}, which has {some(known)}.")
    found: dict[Pair, list[JudgedObject]] = {}
    left_out = 0
    for path in files:
        for number, line in enumerate(read_lines(path), 1):
            if not (values := _numbers(line, f"{path}, line {number}")):
                continue
            name = _name(values[0], names, f"{path}, line {number}")
            category = categories.get(name.casefold().strip())
            size_hw = truth.images[images[path]].size_hw if path in images else None
            if category is None or path not in images or len(values) < _BOX:
                left_out += 1
                continue
            if size_hw is None:
                raise InputError(f"{truth.path} does not say how large its images are: add width and height.")
            row = Row(int(values[0]), name, tuple(values[1:-1]), f"{path}, line {number}")
            if not (one := object_of(row, size_hw, values[-1])).area:
                left_out += 1
                continue
            found.setdefault((images[path], category), []).append(one)
    return found, left_out


def _names(folder: Path, truth: Truth) -> Mapping[int, str]:
    if any(path.suffix in (".yaml", ".yml") or path.name == "classes.txt" for path in folder.iterdir()):
        return find_dataset_names(folder)
    if not truth.numbered:
        return truth.categories
    raise InputError(
        f"the label files of {folder} have class numbers, and nothing names them: put the data.yaml of the model that "
        "made them beside them, or a classes.txt."
    )


def _images_of(stems: Mapping[Path, str], truth: Truth) -> dict[Path, int]:
    """Label file -> image id: the same path without extension, else a name that is unique on both sides."""
    ids = {_stem(image.file_name): image_id for image_id, image in truth.images.items()}
    bases = Counter(stem.rpartition("/")[2] for stem in ids)
    by_base = {stem.rpartition("/")[2]: image_id for stem, image_id in ids.items()}
    given = Counter(stem.rpartition("/")[2] for stem in stems.values())
    found: dict[Path, int] = {}
    for path, stem in stems.items():
        base = stem.rpartition("/")[2]
        if stem in ids:
            found[path] = ids[stem]
        elif bases[base] == 1 and given[base] == 1:
            found[path] = by_base[base]
    return found


def _stem(file_name: str) -> str:
    return PurePosixPath(file_name.replace("\\", "/").removeprefix("./")).with_suffix("").as_posix()


def _numbers(line: str, where: str) -> list[float]:
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        raise InputError(f"{where}: '{line[:40]}' is not a row of numbers") from None
    if len(values) >= _BOX - 1 and len(values) % 2:
        raise InputError(f"{where}: the row has no score: predict again with save_conf=True.")
    return values


def _name(number: float, names: Mapping[int, str], where: str) -> str:
    if not number.is_integer() or int(number) not in names:
        raise InputError(f"{where}: class {number:g} has no name: the classes are {some(list(names.values()))}")
    return names[int(number)]
