"""Truth of images in any form: COCO, LVIS or SA-Co JSON, a YOLO data.yaml or dataset folder."""

from __future__ import annotations

from pathlib import Path

from sam3label.annotations.coco import Truth, read_coco
from sam3label.annotations.yolo import read_yolo_truth
from sam3label.errors import InputError


def read_truth(path: str | Path, split: str | None = None) -> Truth:
    """Read truth; `split` takes one split of a YOLO dataset. Raises `InputError` in one sentence when it is none.

    Example: read_truth("datasets/site-a/data.yaml", "val").
    """
    if Path(path).is_dir() or Path(path).suffix.lower() in (".yaml", ".yml"):
        return read_yolo_truth(path, split)
    if split is not None:
        raise InputError(f"{path} has no splits: {split!r} chooses among those of a YOLO dataset.")
    return read_coco(path)
