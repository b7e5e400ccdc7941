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
_NOTHING = "No valid images found"  # what it says when every photo of a folder is broken


@dataclass(frozen=True, slots=True)
class LoadedFolder:
    """What the trainer's loader makes of a folder. `failure` is its own error, None if it loads."""

    version: str
    photos: frozenset[str] = frozenset()  # file names
    instances: int = 0
    failure: str | None = None


def installed() -> bool:
    return find_spec("ultralytics") is not None


def datasets_folder() -> Path | None:
    """Return where it looks for a relative `path:` not in the working directory; None if it is not installed."""
    if not installed():
        return None
    with _quiet():
        from ultralytics.utils import DATASETS_DIR

    return Path(DATASETS_DIR)


def read(images: Path, names: Mapping[int, str], task: str) -> LoadedFolder:
    """Load a folder of photos with labels beside. Writes a cache there and repairs JPEGs: give it a copy."""
    with _quiet():
        import ultralytics
        from ultralytics.data.dataset import YOLODataset
        from ultralytics.utils import LOGGER

        LOGGER.setLevel("ERROR")
        data = {"names": dict(names), "nc": len(names), "channels": 3}
        try:
            loaded = YOLODataset(img_path=str(images), data=data, task=task, augment=False, imgsz=64)
        except Exception as error:  # the trainer's own failure, in its own words, is the finding
            if _NOTHING in str(error):
                return LoadedFolder(ultralytics.__version__)
            return LoadedFolder(
                ultralytics.__version__, failure=f"{type(error).__name__}: {str(error).splitlines()[0]}"
            )
        instances = sum(len(x["cls"]) for x in loaded.labels)
    return LoadedFolder(ultralytics.__version__, frozenset(Path(p).name for p in loaded.im_files), instances)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Print nothing, fetch nothing, and put back what it replaces of PIL's and torch's functions."""
    import torch
    from PIL import Image

    for key, value in _OFFLINE.items():
        os.environ.setdefault(key, value)
    opened, saved = Image.open, torch.save
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield
    finally:
        Image.open, torch.save = opened, saved
