"""How much predictions overlap truth, by masks or by boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from sam3label.annotations.coco import JudgedObject
from sam3label.core import masks
from sam3label.quality.metrics.average_precision import Kind


def overlap(kind: Kind, found: Sequence[JudgedObject], truth: Sequence[JudgedObject]) -> npt.NDArray[np.float64]:
    """Return IoU of predictions with truth objects, [D, G], by pycocotools' arithmetic, which decides exact ties."""
    if not found or not truth:
        return np.zeros((len(found), len(truth)))
    if kind == "segm":
        return masks.iou_matrix([i.rle for i in found if i.rle], [i.rle for i in truth if i.rle])
    boxes = np.array([i.box_xywh for i in found]), np.array([i.box_xywh for i in truth])
    return np.asarray(coco_mask.iou(*boxes, [0] * len(truth)), dtype=np.float64)
