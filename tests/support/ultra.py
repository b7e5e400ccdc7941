"""Ultralytics as an oracle: its own reader and rasteriser. For tests only, kept off the network and off HOME."""

from __future__ import annotations

import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from copy import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="ultralytics-")
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ["YOLO_VERBOSE"] = "false"

_unpatched = Image.open, torch.save, np.get_printoptions(), cv2.getNumThreads()

from ultralytics.data.dataset import YOLODataset  # noqa: E402
from ultralytics.data.utils import check_det_dataset, img2label_paths, polygon2mask, verify_image_label  # noqa: E402
from ultralytics.nn.tasks import SegmentationModel  # noqa: E402
from ultralytics.utils import DEFAULT_CFG  # noqa: E402
from ultralytics.utils.ops import resample_segments  # noqa: E402

# importing it changes other packages for everybody: the tests of other rooms want them as they are
Image.open, torch.save = _unpatched[:2]
np.set_printoptions(**_unpatched[2])
cv2.setNumThreads(_unpatched[3])
torch.set_printoptions(profile="default")

__all__ = [
    "DEFAULT_CFG",
    "SegmentationModel",
    "YOLODataset",
    "check_det_dataset",
    "loader_masks",
    "read_back",
    "read_whole",
    "resample_segments",
    "segments_as_masks",
]


def read_back(image: Path, n_classes: int) -> tuple[npt.NDArray[np.float32], list[npt.NDArray[np.float32]], str]:
    """(rows [N, 5] class and box as shares, segments as shares, message) as the verifier reads a photo's labels.

    Fails when the verifier calls the photo corrupt or finds no label file.
    """
    labels = img2label_paths([str(image)])[0]
    result: Any = verify_image_label((str(image), labels, "", False, n_classes, 0, 0, False))
    _, rows, _, segments, _, missing, _, _, corrupt, message = result
    assert not corrupt and not missing, message
    return rows, segments, message


def segments_as_masks(segments: list[npt.NDArray[np.float32]], size_hw: tuple[int, int]) -> list[npt.NDArray[np.bool_]]:
    """Each segment drawn as the training code draws it, at full size."""
    scale = np.array(size_hw[::-1], dtype=np.float32)
    return [polygon2mask(size_hw, [(s * scale).reshape(-1)]).astype(bool) for s in segments]


def loader_masks(images: Path, n_classes: int, size: int) -> list[npt.NDArray[np.bool_]]:
    """Masks [N, size, size] of each photo in order, as the training loader gives them: photos of that longer side."""
    settings = copy(DEFAULT_CFG)
    settings.mask_ratio, settings.overlap_mask = 1, False
    data = {"names": {i: str(i) for i in range(n_classes)}, "nc": n_classes, "channels": 3}
    loaded = YOLODataset(img_path=str(images), data=data, task="segment", augment=False, imgsz=size, hyp=settings)
    return [loaded[k]["masks"].numpy().astype(bool) for k in range(len(loaded))]


def read_whole(data_file: Path) -> tuple[int, int] | str:
    """(photos, labels) that a training reads from a data file, train and val together; its error where it stops."""
    try:
        with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):  # noqa: PTH123
            data = check_det_dataset(str(data_file), autodownload=False)
            parts = [_split_of(data, split) for split in ("train", "val")]
    except Exception as error:  # whatever it raises ends the training
        return f"{type(error).__name__}: {error}"
    labels = [label for part in parts for label in part.labels]
    return len(labels), sum(len(label["cls"]) for label in labels)


def _split_of(data: dict[str, Any], split: str) -> Any:
    """Of the task that the labels' kind suggests; a set of both kinds is one of segments."""
    rows = [len(line.split()) for p in Path(data["path"]).rglob("*.txt") for line in _text(p).splitlines()]
    task = "segment" if any(n > 6 for n in rows) else "detect"
    return YOLODataset(img_path=data[split], data=data, task=task, augment=split == "train", imgsz=32)


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""
