"""Ultralytics as an oracle: its own reader and rasteriser. For tests only, kept off the network and off HOME."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="ultralytics-")
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ["YOLO_VERBOSE"] = "false"

from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset, img2label_paths, polygon2mask, verify_image_label
from ultralytics.utils import DEFAULT_CFG

__all__ = ["DEFAULT_CFG", "YOLODataset", "check_det_dataset", "read_back", "segments_as_masks"]


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
