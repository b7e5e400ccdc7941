"""A random checkpoint that finds objects in videos, and a tracker whose masks are worth a look."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file


def make_lively(checkpoint: Path, folder: Path) -> Path:
    """Copy a tiny checkpoint with thresholds at which it finds objects, and noise on the tracker."""
    import torch

    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"score_threshold_detection": 0.3, "new_det_thresh": 0.4, "high_conf_thresh": 0.3}
    config |= {"assoc_iou_thresh": 0.02, "trk_assoc_iou_thresh": 0.0, "hotstart_dup_thresh": 9}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(2)
    for name, value in weights.items():
        if name.startswith("tracker_model."):
            value += 0.05 * torch.randn(value.shape, generator=generator)
        if name.endswith("pred_obj_score_head.proj_out.bias"):
            value += 3.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
