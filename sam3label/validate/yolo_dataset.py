"""A dataset of Ultralytics: its data file, every split, and what only all splits together show."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from sam3label.core.text import count
from sam3label.core.whole_folder import read_marker
from sam3label.export.photos import image_name
from sam3label.validate import yolo, yolo_data
from sam3label.validate.photos import check_shared
from sam3label.validate.report import Findings, Report, in_order
from sam3label.validate.roundtrip import ExportedImage, Held, Reading, compare, export_options
from sam3label.validate.yolo_data import WHO, YoloSplit

if TYPE_CHECKING:
    from sam3label.run.reader import Run


def validate_yolo(path: Path, run: Run | None) -> Report | None:
    """Check every split; None if there is no dataset of this kind. Raises `InputError` where it cannot be followed."""
    findings = Findings()
    splits = yolo_data.find(path, findings)
    if not splits:
        return None
    parts = list({(s.image_root, s.images): s for s in reversed(splits)}.values())[::-1]  # val may be train again
    checked = [yolo.check(split, findings) for split in parts]
    tasks = sum((one.tasks for one in checked), Counter[str]())
    task = _task(path, tasks)
    if tasks["detect"] and task != "detect":
        what = f"box rows in a {task} dataset, of {count(tasks['detect'], 'photo')}: training stops"
        findings.drops(WHO, what, str(path))
    consumers = [yolo.consume(s, task, c.facts, findings) for s, c in zip(parts, checked, strict=True)]
    _check_together(path, parts, splits, findings)
    trip = compare(run, export_options(path), _reading(parts, task), findings) if run else None
    facts = in_order([one.facts for one in checked])
    return Report(str(path), f"YOLO {task}", parts[0].names, facts, tuple(consumers), findings.sorted(), trip)


def _check_together(path: Path, parts: list[YoloSplit], splits: list[YoloSplit], findings: Findings) -> None:
    yolo.check_orphans(parts, findings)
    if len(parts) < len(splits):
        findings.note(WHO, "train and val are the same photos: the scores will flatter", str(path))
    photos: dict[str, list[Path]] = {}
    for part in parts:
        photos.setdefault(part.name, []).extend(part.images)
    check_shared(photos, findings, WHO)


def _task(path: Path, tasks: Counter[str]) -> str:
    """By the marker if it is ours; else by its rows (four-point polygons alone are taken for oriented boxes)."""
    ours = (read_marker(path if path.is_dir() else path.parent) or {}).get("format")
    named = {"yolo": "segment", "yolo-detect": "detect", "yolo-obb": "obb"}
    if ours in named:
        return named[ours]
    return next((t for t in ("segment", "obb", "detect") if tasks[t]), "detect")


def _reading(splits: list[YoloSplit], task: str) -> Reading:
    places = {split.title(image): (split, image) for split in splits for image in split.images}

    def held(asked: ExportedImage) -> Held | None:
        if (place := places.get(image_name(asked.image.item.id))) is None:
            return None
        return Held(yolo.instances(*place, asked.image.size_hw, task), place[1])

    return Reading(task, held)
