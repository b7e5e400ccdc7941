"""Ultralytics' text format by the rules of its own verifier, and by that verifier itself where it is installed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sam3label.core import masks
from sam3label.core.records import Box, Rle
from sam3label.errors import InputError
from sam3label.validate import ultralytics_reader
from sam3label.validate.photos import check_photo, read_photo
from sam3label.validate.report import Consumer, Findings, Split

IMAGE_SUFFIXES = {".bmp", ".dng", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp", ".pfm", ".heic", ".avif"}
_WHO = "Ultralytics"
_IMAGE = "the whole photo is ignored: "


@dataclass(frozen=True, slots=True)
class YoloSplit:
    """The photos of one split, and the label file Ultralytics will look for beside each."""

    name: str
    image_root: Path
    images: tuple[Path, ...]
    names: Mapping[int, str]
    source: str  # what data.yaml says, for messages

    def label_path(self, image: Path) -> Path:
        """The last `images` folder in the path becomes `labels`, the extension .txt."""
        before, found, after = str(image).rpartition(f"{os.sep}images{os.sep}")
        where = Path(f"{before}{os.sep}labels{os.sep}{after}" if found else str(image))
        return where.with_suffix(".txt")

    def title(self, image: Path) -> str:
        return image.relative_to(self.image_root).as_posix() if image.is_relative_to(self.image_root) else str(image)


@dataclass(slots=True)
class Rows:
    """One label file, parsed. `task` is what its rows are; None when it has none."""

    classes: list[int] = field(default_factory=list)
    shapes: list[np.ndarray[Any, np.dtype[np.float64]]] = field(default_factory=list)
    task: str | None = None
    fault: str | None = None  # why Ultralytics ignores the whole photo


def find(dataset: Path) -> list[YoloSplit]:
    """The splits of a data.yaml or of a folder that holds one (or images/ and labels/); [] if there are none."""
    path = dataset if dataset.suffix in (".yaml", ".yml") else _data_yaml(dataset)
    if path is None:
        return _bare_folder(dataset)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        names = data.get("names") or [f"class_{i}" for i in range(int(data["nc"]))]
        pairs = enumerate(names) if isinstance(names, list) else names.items()
        classes = {int(k): str(v) for k, v in pairs}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not an Ultralytics data file: {error}") from error
    root = _root(path, data.get("path"))
    places = {k: data[k] for k in ("train", "val", "test") if data.get(k)}
    return [split for name, place in places.items() for split in _splits(name, place, root, classes)]


def check(split: YoloSplit, findings: Findings) -> tuple[Split, Counter[str]]:
    """Go through every photo and row once. Returns what the files state, and how many photos hold which kind of row."""
    facts, tasks = Split(split.name, images=len(split.images)), Counter[str]()
    _check_names(split, findings)
    _check_shared_labels(split, findings)
    for image in split.images:
        title = split.title(image)
        check_photo(image, title, None, findings)
        rows = read_rows(split.label_path(image), len(split.names))
        if rows is None:
            findings.note(_WHO, "no label file: taken for background (an empty file says so)", title)
            facts.empty += 1
            continue
        if rows.fault:
            findings.drops(_WHO, _IMAGE + rows.fault, title)
            continue
        facts.empty += not rows.classes
        facts.instances.update(split.names.get(c, str(c)) for c in rows.classes)
        _check_rows(rows, title, findings)
        if rows.task:
            tasks[rows.task] += 1
    _check_orphans(split, findings)
    return facts, tasks


def read_rows(path: Path, n_classes: int) -> Rows | None:
    """Parse a label file as Ultralytics does; None if it is not there."""
    if not path.is_file():
        return None
    try:
        tokens = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        lengths = {len(t) for t in tokens}
        segments = any(n > 6 for n in lengths)
        rows = Rows(task=_task(lengths))
        if segments and 5 in lengths:
            rows.fault = "a box row among segment rows"
        elif not segments and lengths - {5}:
            rows.fault = "a row is neither a box (5 numbers) nor a polygon (at least 3 points)"
        elif segments and any(n % 2 == 0 for n in lengths):
            rows.fault = "a polygon has an x without a y"
        elif segments and min(lengths) < 7:
            rows.fault = "a polygon has fewer than 3 points"
        else:
            _parse(tokens, rows, n_classes)
    except (ValueError, UnicodeDecodeError):
        return Rows(fault="a row holds something that is not a number")
    return rows


def instances(split: YoloSplit, image: Path, size_hw: tuple[int, int]) -> list[tuple[str, str, Rle | Box]]:
    """(class name, task, mask or box in pixels) of one photo, as Ultralytics draws them."""
    rows = read_rows(split.label_path(image), len(split.names))
    if rows is None or rows.fault:
        return []
    scale = np.array(size_hw[::-1], dtype=np.float64)
    found: list[tuple[str, str, Rle | Box]] = []
    for number, shape in zip(rows.classes, rows.shapes, strict=True):
        name = split.names.get(number, str(number))
        if rows.task == "detect":
            (cx, cy), (w, h) = shape * scale
            found.append((name, "detect", (cx - w / 2, cy - h / 2, w, h)))
        else:
            found.append((name, rows.task or "segment", masks.from_contour(shape * scale, size_hw)))
    return found


# ------------------------------------------------------------------------------------------------------------ reading


def _data_yaml(folder: Path) -> Path | None:
    found = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    return next((p for p in found if p.stem == "data"), found[0] if found else None)


def _bare_folder(folder: Path) -> list[YoloSplit]:
    """images/ and labels/ without a data file: classes are numbers."""
    if not ((folder / "images").is_dir() and (folder / "labels").is_dir()):
        return []
    images = _images_in(folder / "images")
    seen = [int(float(t[0])) for p in (folder / "labels").rglob("*.txt") for t in _first_tokens(p)]
    names = {i: str(i) for i in range(max(seen, default=0) + 1)}
    return [YoloSplit("all", folder / "images", images, names, "images")]


def _first_tokens(path: Path) -> Iterator[list[str]]:
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        tokens = line.split()
        if tokens and tokens[0].replace(".", "", 1).isdigit():
            yield tokens


def _root(path: Path, stated: str | None) -> Path:
    if stated is None:
        return path.parent.absolute()
    places = [Path(stated), path.parent / stated]
    return next((p.absolute() for p in places if p.is_dir()), path.parent.absolute())


def _splits(name: str, place: Any, root: Path, classes: Mapping[int, str]) -> Iterator[YoloSplit]:
    for one in place if isinstance(place, list) else [place]:
        where = root / str(one)
        if not where.exists() and str(one).startswith("../"):
            where = root / str(one)[3:]
        if where.is_dir():
            yield YoloSplit(name, where, _images_in(where), classes, str(one))
        elif where.is_file():
            yield YoloSplit(name, where.parent, _listed(where), classes, str(one))
        else:
            raise InputError(f"{name}: {one} in the data file leads to {where}, which does not exist.")


def _images_in(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES))


def _listed(path: Path) -> tuple[Path, ...]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return tuple(sorted(path.parent / line.strip() for line in lines if line.strip()))


def _task(lengths: set[int]) -> str | None:
    if not lengths:
        return None
    if lengths == {5}:
        return "detect"
    return "obb" if lengths == {9} else "segment"


def _parse(tokens: list[list[str]], rows: Rows, n_classes: int) -> None:
    for row in tokens:
        number, shape = float(row[0]), np.array([float(v) for v in row[1:]]).reshape(-1, 2)
        low, high = (shape.min(axis=0), shape.max(axis=0)) if rows.task != "detect" else (shape[0], shape[0])
        box = np.stack([(low + high) / 2, high - low if rows.task != "detect" else shape[1]])
        if not np.isfinite(shape).all() or box.max() > 1.01 or box.min() < 0:
            rows.fault = "a coordinate is outside 0 to 1"
        elif number % 1 or number < 0:
            rows.fault = "a class is not a whole number from 0"
        elif number >= n_classes:
            rows.fault = f"a class number is not in names (0 to {n_classes - 1})"
        rows.classes.append(int(number))
        rows.shapes.append(shape)


# -------------------------------------------------------------------------------------------------------------- rules


def _check_names(split: YoloSplit, findings: Findings) -> None:
    if sorted(split.names) != list(range(len(split.names))):
        findings.drops(_WHO, "class numbers in names must run from 0 without gaps", split.source)
    for name in (n for n, times in Counter(split.names.values()).items() if times > 1):
        findings.note(_WHO, "two classes have the same name", name)


def _check_shared_labels(split: YoloSplit, findings: Findings) -> None:
    owners = Counter(split.label_path(image) for image in split.images)
    for image in split.images:
        if owners[split.label_path(image)] > 1:
            findings.drops(_WHO, "photos that differ in extension alone share one label file", split.title(image))


def _check_rows(rows: Rows, title: str, findings: Findings) -> None:
    keys = Counter((c, s.tobytes()) for c, s in zip(rows.classes, rows.shapes, strict=True))
    if repeated := sum(keys.values()) - len(keys):
        findings.drops(_WHO, "the same row twice: one is removed", title, repeated)
    for shape in rows.shapes:
        extent = shape[1] if rows.task == "detect" else np.ptp(shape, axis=0)
        if extent.min() <= 0:
            findings.drops(_WHO, "the box has no area: removed by augmentation", title)


def _check_orphans(split: YoloSplit, findings: Findings) -> None:
    expected = {split.label_path(image) for image in split.images}
    for folder in {path.parent for path in expected}:
        for path in sorted(folder.glob("*.txt")):
            if path not in expected and path.stat().st_size and path.name != "classes.txt":
                findings.drops(_WHO, "labels without a photo are never read", str(path))


# ---------------------------------------------------------------------------------------------------------- consumers


def consume(split: YoloSplit, task: str, facts: Split, findings: Findings) -> Consumer:
    """Load the split with Ultralytics' own dataset class, in a shadow of links: it writes caches and repairs JPEGs."""
    if not ultralytics_reader.installed():
        return Consumer(f"Ultralytics ({split.name})", "not installed: its rules were applied, its code was not run")
    if not split.images:
        return Consumer(f"Ultralytics ({split.name})", "no photos to load")
    with tempfile.TemporaryDirectory(prefix="sam3label-validate-") as folder:
        answer = ultralytics_reader.read(_shadow(split, Path(folder)), dict(split.names), task)
    name = f"Ultralytics {answer.version} {task} ({split.name})"
    if answer.failure:
        findings.drops(_WHO, f"its dataset class fails: {answer.failure}", split.source)
        return Consumer(name, "fails")
    photos, read, stated = answer.photos, answer.instances, facts.instances.total()
    if photos < len(split.images):
        findings.drops(_WHO, "its verifier ignores photos", split.source, len(split.images) - photos)
    if read < stated:
        findings.drops(_WHO, "its dataset class reads fewer instances than there are rows", split.source, stated - read)
    return Consumer(name, f"{photos} of {len(split.images)} photos and {read} of {stated} instances read")


def _shadow(split: YoloSplit, folder: Path) -> Path:
    """Links to the photos and labels under numbered names; JPEGs that would be repaired in place are copied."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for number, image in enumerate(split.images):
        link = folder / "images" / f"{number}{image.suffix.lower()}"
        if _would_be_repaired(image):
            shutil.copyfile(image, link)
        else:
            link.symlink_to(image.absolute())
        label = split.label_path(image)
        if label.is_file():
            (folder / "labels" / f"{number}.txt").symlink_to(label.absolute())
    return folder / "images"


def _would_be_repaired(path: Path) -> bool:
    """A JPEG without its end marker is rewritten by the verifier."""
    if path.suffix.lower() not in (".jpg", ".jpeg") or read_photo(path) is None:
        return False
    with path.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() != b"\xff\xd9"
