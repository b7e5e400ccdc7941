"""Ultralytics' text format: one file per photo, one row per instance, coordinates as shares of width and height.

    yolo         class x1 y1 x2 y2 ...    one ring per instance, holes and parts joined by seams   segment
    yolo-detect  class cx cy w h                                                                     detect
    yolo-obb     class x1 y1 ... x4 y4    rotated rectangle around the mask, inside the image        obb

A photo without instances gets an empty file: a missing one would mean "not labelled". `data.yaml` has no `path:`, so
Ultralytics resolves the folders against the file itself, from any working directory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from sam3label.core import outlines
from sam3label.core.files import write_whole
from sam3label.core.records import Label
from sam3label.errors import OutputError
from sam3label.export.dataset import Outline, Sample, Target
from sam3label.export.photos import image_name, label_stem
from sam3label.export.splits import SPLIT_NAMES

Task = Literal["segment", "detect", "obb"]

DATA_YAML = "data.yaml"
_LOOKED_AT = 200  # label files of a dataset that is added to


def write_yolo(target: Target, samples: Iterable[Sample], task: Task) -> None:
    """Write images/SPLIT/..., labels/SPLIT/... and data.yaml."""
    made: set[Path] = set()
    for sample in samples:
        item_id, split = sample.image.item.id, sample.split
        target.placer.place(sample.image, target.folder / "images" / split / image_name(item_id))
        path = target.folder / "labels" / split / f"{label_stem(item_id)}.txt"
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        _write_rows(path, [f"{x.class_id} {_text(_row(x, task, target.outline))}" for x in sample.image.labels])
    _write_yaml(target)


def _row(label: Label, task: Task, outline: Outline) -> list[float]:
    """Return a label's row: a ring, a box by its centre, or the corners of the smallest rectangle at any angle."""
    if task == "segment":
        return _shares(outline.contour(label.rle), label)
    if task == "obb":
        return _shares(outlines.oriented_box(label.rle), label)
    x, y, w, h = label.box_xywh
    return _shares(np.array([[x + w / 2, y + h / 2], [w, h]]), label)


def read_classes(folder: Path, task: Task) -> dict[int, str]:
    """Return class ids and names of the dataset in `folder`.

    Raises `OutputError` when it is not laid out as this one is, or its rows are those of another task.
    """
    data = _read_yaml(folder)
    names = data["names"]
    try:
        classes = {int(k): str(v) for k, v in (enumerate(names) if isinstance(names, list) else names.items())}
    except (AttributeError, TypeError, ValueError) as error:
        raise OutputError(f"{folder / DATA_YAML}: names must be a list, or numbers with names.") from error
    _refuse_other_places(folder, data)
    _refuse_other_task(folder, task)
    return dict(sorted(classes.items()))


def _read_yaml(folder: Path) -> dict[str, Any]:
    path = folder / DATA_YAML
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or "names" not in data:
            raise ValueError("it has no names")
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise OutputError(f"{path} cannot be read as an Ultralytics data file ({error}).") from error
    return data


def _refuse_other_places(folder: Path, data: Mapping[str, Any]) -> None:
    strange = {k: data[k] for k in SPLIT_NAMES if data.get(k) and not _is_split_folder(data[k])}
    root = data.get("path")
    if root not in (None, "", ".", "./") and Path(str(root)).name != folder.resolve().name:
        strange = {"path": root, **strange}
    if strange:
        listed = ", ".join(f"{k}: {v}" for k, v in strange.items())
        raise OutputError(
            f"{folder / DATA_YAML} keeps its photos elsewhere ({listed}); appending needs images/SPLIT beside it."
        )


def _is_split_folder(place: Any) -> bool:
    return str(place).removeprefix("./").rstrip("/") in {f"images/{split}" for split in SPLIT_NAMES}


def _refuse_other_task(folder: Path, task: Task) -> None:
    """Rows of two kinds in one dataset make Ultralytics refuse all of it."""
    files = sorted(islice((folder / "labels").rglob("*.txt"), _LOOKED_AT))
    for path in files:
        for row in path.read_text(encoding="utf-8", errors="replace").splitlines():
            numbers = len(row.split()) - 1
            kinds = {4: {"detect"}, 8: {"obb", "segment"}}.get(numbers, {"segment"})
            if numbers > 0 and task not in kinds:
                found = " or ".join(sorted(kinds))
                raise OutputError(
                    f"{folder} holds labels for {found} ({path.relative_to(folder)}: {numbers + 1} numbers a row), and "
                    f"{task} rows among them would spoil it. Export with the format of its task, or to another folder."
                )


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
    """Write beside and replace: with `append` the path is a link to the old dataset's file."""
    present = [s for s in SPLIT_NAMES if s in target.splits or (target.folder / "labels" / s).is_dir()]
    for split in present:
        (target.folder / "images" / split).mkdir(parents=True, exist_ok=True)
        (target.folder / "labels" / split).mkdir(parents=True, exist_ok=True)
    places = {s: f"images/{s}" for s in present}
    # Ultralytics wants both keys; without a split of its own, validation runs on the training photos
    places = {"train": places.get("train", f"images/{present[0]}"), "val": f"images/{present[0]}"} | places
    path = target.folder / DATA_YAML
    if target.append:
        before = path.read_text(encoding="utf-8")
        write_whole(path, _updated(before, places, target.classes))
    else:
        data: dict[str, Any] = {**places, "names": dict(target.classes)}
        write_whole(path, f"# {target.info.get('description', '')}\n{_dumped(data)}")


def _updated(text: str, places: Mapping[str, str], classes: Mapping[int, str]) -> str:
    """Return the data file with new classes and splits: other keys, and comments elsewhere, stay as they are."""
    old = yaml.safe_load(text)
    names = old["names"]
    listed = dict(enumerate(names)) if isinstance(names, list) else {int(k): v for k, v in names.items()}
    wanted: dict[str, Any] = {split: place for split, place in places.items() if not old.get(split)}
    if old.get("val") and old.get("train") and str(old["val"]) == str(old["train"]) and "val" in places:
        wanted["val"] = places["val"]  # it stood for want of a split of its own
    if {i: str(name) for i, name in listed.items()} != dict(classes):
        wanted["names"] = list(classes.values()) if isinstance(names, list) else dict(classes)
        wanted |= {"nc": len(classes)} if "nc" in old else {}
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert root is not None  # read before
    spans = {key.value: (key.start_mark.index, value.end_mark.index) for key, value in root.value}
    for key in sorted((k for k in wanted if k in spans), key=lambda k: -spans[k][0]):
        start, end = spans[key]
        end = len(text[:end].rstrip())
        text = text[:start] + _dumped({key: wanted.pop(key)}).rstrip("\n") + text[end:]
    return text.rstrip("\n") + "\n" + (_dumped(wanted) if wanted else "")


def _dumped(data: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(data), allow_unicode=True, sort_keys=False)
