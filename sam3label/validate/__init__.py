"""Load a dataset as its readers do and say what they would drop, before an hour of training does.

Accepts every format that `export` writes, whoever wrote it. The files are never changed.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from sam3label.core.files import close_match
from sam3label.core.whole_folder import MARKER
from sam3label.errors import InputError
from sam3label.run.store_errors import DATABASE
from sam3label.validate import cvat, labelstudio, maps, mot, pictures, voc, ytvis
from sam3label.validate.coco_dataset import validate_coco
from sam3label.validate.report import Consumer, Finding, Findings, Match, Report, RoundTrip, Split
from sam3label.validate.yolo_dataset import validate_yolo

if TYPE_CHECKING:
    from sam3label.run.reader import Run

__all__ = ["Consumer", "Finding", "Findings", "Match", "Report", "RoundTrip", "Split", "validate"]


def validate(dataset: str | Path, run: Run | None = None) -> Report:
    """Check a dataset; with the run it came from, also how much of each label comes back.

    Raises `InputError` when the path is no dataset of a kind that can be read.
    """
    path = Path(dataset)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder{close_match(path)}")
    if (path / DATABASE).is_file():
        raise InputError(
            f"{path} is a run, and datasets are validated: {_of_run(path)}. "
            f"Whether the run itself is whole: sam3label check {shlex.quote(str(path))}"
        )
    for find in (labelstudio.find, ytvis.find, voc.find, cvat.find, maps.find, mot.find):
        if opened := find(path):
            return pictures.check(path, opened, run)
    if report := validate_coco(path, run) or validate_yolo(path, run):
        return report
    raise InputError(
        f"{path} is no dataset that can be checked. Give a COCO .json, a folder with annotations/*.json or "
        "train/_annotations.coco.json, an Ultralytics data.yaml or its folder, or the folder of a VOC, CVAT, "
        "Label Studio, PNG map, YouTube-VIS, MOT or MOTS dataset."
    )


def _of_run(folder: Path) -> str:
    """Return what to type for a run's dataset: its name, if it has exported one."""
    made = sorted(one.parent for one in folder.glob(f"exports/*/{MARKER}"))
    if made:
        return f"it has exported {', '.join(map(str, made))}"
    return f"export one first, sam3label export {shlex.quote(str(folder))} --format yolo -o DATASET"
