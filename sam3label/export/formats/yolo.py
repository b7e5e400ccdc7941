"""Ultralytics' text format: one file per photo, one row per instance, coordinates as shares of width and height.

    yolo         class x1 y1 x2 y2 ...    one ring per instance, holes and parts joined by seams   segment
    yolo-detect  class cx cy w h                                                                     detect
    yolo-obb     class x1 y1 ... x4 y4    rotated rectangle around the mask, inside the image        obb

A photo without instances gets an empty file: a missing one would mean "not labelled". `data.yaml` has no `path:`, so
Ultralytics resolves the folders against the file itself, from any working directory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sam3label.core import masks
from sam3label.core.records import Label
from sam3label.errors import OutputError
from sam3label.export.dataset import Outline, Sample, Target
from sam3label.export.photos import image_name, label_stem
from sam3label.export.splits import SPLIT_NAMES

Row = Callable[[Label, Outline], list[float]]

DATA_YAML = "data.yaml"


def write_yolo(target: Target, samples: Iterable[Sample], row: Row) -> None:
    """Write images/SPLIT/..., labels/SPLIT/... and data.yaml; `row` gives an instance's numbers."""
    made: set[Path] = set()
    for sample in samples:
        item_id, split = sample.image.item.id, sample.split
        target.placer.place(sample.image, target.folder / "images" / split / image_name(item_id))
        path = target.folder / "labels" / split / f"{label_stem(item_id)}.txt"
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        _write_rows(path, [f"{label.class_id} {_text(row(label, target.outline))}" for label in sample.image.labels])
    _write_yaml(target)


def segment_row(label: Label, outline: Outline) -> list[float]:
    """The mask as one ring."""
    return _shares(outline.contour(label.rle), label)


def detect_row(label: Label, outline: Outline) -> list[float]:
    """The mask's box by its centre."""
    x, y, w, h = label.box_xywh
    return _shares(np.array([[x + w / 2, y + h / 2], [w, h]]), label)


def obb_row(label: Label, outline: Outline) -> list[float]:
    """The smallest rectangle around the mask, at any angle, that stays in the image."""
    return _shares(masks.oriented_box(label.rle), label)


def read_classes(folder: Path) -> dict[int, str]:
    """Class ids and names of the dataset in `folder`. Raises `OutputError` when it is not laid out as this one is."""
    path = folder / DATA_YAML
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        names = data["names"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise OutputError(f"{path} cannot be read as an Ultralytics data file ({error}).") from error
    pairs = enumerate(names) if isinstance(names, list) else names.items()
    classes = {int(k): str(v) for k, v in pairs}
    places = {k: data[k] for k in SPLIT_NAMES if data.get(k)}
    if strange := [f"{k}: {v}" for k, v in places.items() if v not in {f"images/{s}" for s in SPLIT_NAMES}]:
        raise OutputError(f"{path} keeps its photos elsewhere ({', '.join(strange)}); appending needs images/SPLIT.")
    return dict(sorted(classes.items()))


def _shares(points: Any, label: Label) -> list[float]:
    height, width = label.rle.size_hw
    shares: list[float] = np.clip(points / np.array([width, height]), 0.0, 1.0).ravel().tolist()
    return shares


def _text(numbers: list[float]) -> str:
    return " ".join(["%.7g"] * len(numbers)) % tuple(numbers)


def _write_rows(path: Path, rows: list[str]) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write("".join(row + "\n" for row in rows))
    except FileExistsError as error:
        raise OutputError(
            f"the dataset already holds labels for {path.stem} ({path.name}). Appending adds new images only: leave "
            "out --append to write the dataset anew, or append to another one."
        ) from error


def _write_yaml(target: Target) -> None:
    """Written beside and replaced: with `append` the path is a link to the old dataset's file."""
    present = [s for s in SPLIT_NAMES if s in target.splits or (target.folder / "labels" / s).is_dir()]
    for split in present:
        (target.folder / "images" / split).mkdir(parents=True, exist_ok=True)
        (target.folder / "labels" / split).mkdir(parents=True, exist_ok=True)
    places = {s: f"images/{s}" for s in present}
    # Ultralytics wants both keys; without a split of its own, validation runs on the training photos
    places = {"train": places.get("train", f"images/{present[0]}"), "val": f"images/{present[0]}"} | places
    data: dict[str, Any] = {**places, "names": dict(target.classes)}
    text = f"# {target.info.get('description', '')}\n" + yaml.safe_dump(data, allow_unicode=True, sort_keys=False)
    whole = target.folder / f"{DATA_YAML}.whole"
    whole.write_text(text, encoding="utf-8")
    whole.replace(target.folder / DATA_YAML)
