"""PNG maps: an instance and a class a pixel, with a line for each instance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from sam3label.core import masks
from sam3label.core.records import Label
from sam3label.errors import InputError
from sam3label.export.photos import label_stem
from sam3label.validate.coco import read_json
from sam3label.validate.photos import is_file
from sam3label.validate.pictures import DatasetImage, Kind, OpenedDataset
from sam3label.validate.report import Findings
from sam3label.validate.roundtrip import uncovered

Map = npt.NDArray[Any]
Lines = dict[str, list[tuple[int, str]]]  # (number, class name) by map


def _on_top(labels: Sequence[Label]) -> list[Label]:
    """Return what is left to see of each: the smaller lies on top, and of equals the later."""
    return list(uncovered(sorted(labels, key=lambda label: -label.area)[::-1]))


KIND = Kind("PNG maps", "segment", lambda asked: label_stem(asked.image.item.id), shown=_on_top)


def find(path: Path) -> OpenedDataset | None:
    """Return the dataset of a folder with legend.json and instance/; None if it is none."""
    if not (is_file(path / "legend.json") and (path / "instance").is_dir()):
        return None
    findings = Findings()
    try:
        legend = {int(k): str(name) for k, name in read_json(path / "legend.json")["semantic"].items()}
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path / 'legend.json'} is no legend: it needs `semantic`, names by number.") from error
    classes = {value - 1: name for value, name in sorted(legend.items()) if value}
    return OpenedDataset(KIND, classes, _pictures(path, legend, findings), findings)


def _pictures(root: Path, legend: dict[int, str], findings: Findings) -> Iterator[DatasetImage]:
    lines = _lines(root / "instances.jsonl", findings)
    photos = {p.relative_to(root / "images").with_suffix("").as_posix(): p for p in _files(root / "images")}
    for file in sorted(p for p in _files(root / "instance") if p.suffix == ".png"):
        name = file.relative_to(root / "instance").as_posix()
        split, _, stem = name.removesuffix(".png").partition("/")
        photo = photos.get(name.removesuffix(".png"), root / "images" / name)
        yield _picture(root, name, DatasetImage(split, name, stem, None, photo), lines.pop(name, []), legend, findings)
    for name in lines:
        findings.drops("every reader", "a line of instances.jsonl names a map that is not there", name)


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if is_file(p)]


def _lines(path: Path, findings: Findings) -> Lines:
    found: Lines = {}
    if not is_file(path):
        findings.drops("every reader", "instances.jsonl is missing: no instance has a class", str(path))
        return found
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                found.setdefault(str(record["map"]), []).append((int(record["instance"]), str(record["class"])))
            except (ValueError, KeyError, TypeError, RecursionError):
                findings.drops("every reader", "a line of instances.jsonl cannot be read", f"line {number}")
    return found


def _picture(
    root: Path,
    name: str,
    picture: DatasetImage,
    lines: list[tuple[int, str]],
    legend: dict[int, str],
    findings: Findings,
) -> DatasetImage:
    instance, semantic = _opened(root / "instance" / name), _opened(root / "semantic" / name)
    if instance is None or semantic is None or instance.shape != semantic.shape:
        findings.drops("every reader", "a map cannot be read, or the two maps of a photo differ in size", name)
        picture.size_hw = (1, 1) if instance is None else instance.shape[:2]
        return picture
    picture.size_hw = instance.shape[:2]
    windows = ndimage.find_objects(instance.astype(np.int32))
    for number, class_name in lines:
        window = windows[number - 1] if 0 < number <= len(windows) else None
        if window is None:
            findings.drops("every reader", "an instance has no pixel in its map: it lies under others", name)
            continue
        inside = instance[window] == number
        if {legend.get(int(v)) for v in np.unique(semantic[window][inside])} != {class_name}:
            findings.drops("every reader", "the class map contradicts instances.jsonl", name)
        rows, columns = window
        picture.instances.append((class_name, masks.paste(columns.start, rows.start, inside, picture.size_hw)))
    nameless = {int(v) for v in np.unique(instance)} - {0} - {number for number, _ in lines}
    if nameless:
        findings.drops("every reader", "an instance of a map has no line in instances.jsonl", name, len(nameless))
    return picture


def _opened(path: Path) -> Map | None:
    """Return a map's numbers [H, W]; None if it is no map."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except Exception:  # decoders answer damaged bytes with any exception there is
        return None
    return pixels if pixels.ndim == 2 and pixels.dtype.kind in "ui" else None
