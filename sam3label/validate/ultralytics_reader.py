"""Ultralytics' own dataset class over a folder, where the user has installed it (AGPL-3.0; nothing else imports it)."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_OFFLINE = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}


@dataclass(frozen=True, slots=True)
class Reading:
    """What the trainer's loader makes of a folder. `failure` is its own error, None if it loads."""

    version: str
    photos: int = 0
    instances: int = 0
    failure: str | None = None


def installed() -> bool:
    return find_spec("ultralytics") is not None


def read(images: Path, names: Mapping[int, str], task: str) -> Reading:
    """Load a folder of photos with labels beside. Writes a cache there and repairs JPEGs: give it a copy."""
    for key, value in _OFFLINE.items():
        os.environ.setdefault(key, value)
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), _without_its_patches():
        import ultralytics
        from ultralytics.data.dataset import YOLODataset
        from ultralytics.utils import LOGGER

        LOGGER.setLevel("ERROR")
        data = {"names": dict(names), "nc": len(names), "channels": 3}
        try:
            loaded = YOLODataset(img_path=str(images), data=data, task=task, augment=False, imgsz=64)
        except Exception as error:  # the trainer's own failure, in its own words, is the finding
            return Reading(ultralytics.__version__, failure=f"{type(error).__name__}: {str(error).splitlines()[0]}")
        instances = sum(len(x["cls"]) for x in loaded.labels)
    return Reading(ultralytics.__version__, len(loaded.labels), instances)


@contextlib.contextmanager
def _without_its_patches() -> Iterator[None]:
    """Importing it replaces functions of PIL and torch for the whole process; they are put back."""
    import torch
    from PIL import Image

    opened, saved = Image.open, torch.save
    try:
        yield
    finally:
        Image.open, torch.save = opened, saved
