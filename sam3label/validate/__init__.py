"""Load a dataset as each trainer does and say what it would drop, before an hour of training does.

Accepts COCO JSON (a file, a folder with annotations/, or Roboflow's layout) and Ultralytics data.yaml or folders,
whoever wrote them. The files are never changed.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from sam3label.core.records import LabeledImage
from sam3label.core.whole_folder import read_marker
from sam3label.errors import InputError
from sam3label.export.photos import image_name
from sam3label.validate import coco, roundtrip, yolo
from sam3label.validate.report import Consumer, Finding, Findings, Match, Report, RoundTrip, Split

if TYPE_CHECKING:
    from sam3label.run.reader import Run

__all__ = ["Consumer", "Finding", "Match", "Report", "RoundTrip", "Split", "validate"]


def validate(dataset: str | Path, run: Run | None = None) -> Report:
    """Check a dataset; with the run it came from, also how much of each label comes back.

    Raises `InputError` when the path is no dataset of a kind that can be read.
    """
    path = Path(dataset)
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if path.suffix not in (".yaml", ".yml") and (files := coco.find(path)):
        return _validate_coco(path, files, run)
    if splits := yolo.find(path):
        return _validate_yolo(path, splits, run)
    raise InputError(
        f"{path} is no dataset that can be checked. Give a COCO .json, a folder with annotations/*.json or "
        "train/_annotations.coco.json, or an Ultralytics data.yaml or its folder."
    )


def _validate_coco(path: Path, files: list[coco.CocoFile], run: Run | None) -> Report:
    findings = Findings()
    splits = [coco.check(file, findings) for file in files]
    consumers = [consumer for file in files for consumer in coco.consume(file, findings)]
    if files[0].roboflow and "valid" not in {f.split for f in files}:
        findings.drops("RF-DETR", "there is no valid/ split: training stops (export with --split)", str(path))
    classes = {i: name for file in files for i, name in file.names.items()}
    if any(file.names != files[0].names for file in files):
        findings.drops("every trainer", "the splits have different classes", str(path))
    trip = _coco_round_trip(path, files, run) if run else None
    kind = "COCO, Roboflow layout" if files[0].roboflow else "COCO"
    return Report(str(path), kind, classes, tuple(splits), tuple(consumers), findings.sorted(), trip)


def _coco_round_trip(path: Path, files: list[coco.CocoFile], run: Run) -> RoundTrip:
    held = {name: found for file in files for name, found in coco.instances(file).items()}
    return roundtrip.compare(run, _export_options(path), "segment", lambda image: held.get(image.item.id))


def _validate_yolo(path: Path, splits: list[yolo.YoloSplit], run: Run | None) -> Report:
    findings, facts, tasks = Findings(), [], Counter[str]()
    parts = list({split.image_root: split for split in reversed(splits)}.values())[::-1]  # val may be train again
    for split in parts:
        fact, seen = yolo.check(split, findings)
        facts.append(fact)
        tasks += seen
    task = _task(path, tasks)
    if tasks["detect"] and task != "detect":
        count = tasks["detect"]
        findings.drops("Ultralytics", f"{count} photos have box rows in a {task} dataset: training stops", str(path))
    consumers = [yolo.consume(s, task, f, findings) for s, f in zip(parts, facts, strict=True)]
    if len(parts) < len(splits):
        findings.note("Ultralytics", "train and val are the same photos: the scores will flatter", str(path))
    trip = _yolo_round_trip(path, parts, task, run) if run else None
    return Report(str(path), f"YOLO {task}", parts[0].names, tuple(facts), tuple(consumers), findings.sorted(), trip)


def _task(path: Path, tasks: Counter[str]) -> str:
    """By the marker if it is ours; else by its rows (four-point polygons alone are taken for oriented boxes)."""
    ours = (read_marker(path if path.is_dir() else path.parent) or {}).get("format")
    named = {"yolo": "segment", "yolo-detect": "detect", "yolo-obb": "obb"}
    if ours in named:
        return named[ours]
    return next((t for t in ("segment", "obb", "detect") if tasks[t]), "detect")


def _yolo_round_trip(path: Path, splits: list[yolo.YoloSplit], task: str, run: Run) -> RoundTrip:
    places = {split.title(image): (split, image) for split in splits for image in split.images}

    def held(image: LabeledImage) -> roundtrip.Instances | None:
        if (place := places.get(image_name(image.item.id))) is None:
            return None
        return [(name, shape) for name, _, shape in yolo.instances(*place, image.size_hw)]

    return roundtrip.compare(run, _export_options(path), task, held)


def _export_options(path: Path) -> dict[str, object]:
    folder = path if path.is_dir() else path.parent
    marker = read_marker(folder) or read_marker(folder.parent) or {}
    return dict(marker.get("options", {}))
