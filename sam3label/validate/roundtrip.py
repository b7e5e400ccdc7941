"""A run's labels against what a reader gets back from a dataset: one to one, class by class, best match first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from sam3label.core import masks
from sam3label.core.matching import optimal
from sam3label.core.records import Box, Label, LabeledImage, Rle
from sam3label.export.dataset import as_photo
from sam3label.validate.report import Match, RoundTrip

if TYPE_CHECKING:
    from sam3label.run.reader import Run

WORST = 10
MEASURES = {
    "segment": "mask IoU",
    "detect": "box IoU",
    "obb": "share of the mask inside its oriented box",
}

# Instances of one image: (class name, mask or box)
Instances = Sequence[tuple[str, Rle | Box]]


def compare(
    run: Run, options: Mapping[str, Any], task: str, instances_of: Callable[[LabeledImage], Instances | None]
) -> RoundTrip:
    """`instances_of` gives what the dataset holds of an image or of a frame, None when that is not in it.

    `options` are those of the export, as its marker notes them: labels it left out on purpose are not lost.
    """
    matches: list[Match] = []
    total, count, lost, extra, missing = 0.0, 0, 0, 0, 0
    for image in map(as_photo, run.images()):
        labels = [label for label in image.labels if _meant(label, run.concepts.names, options)]
        held = instances_of(image)
        if held is None:
            missing += bool(labels) or bool(options.get("keep_empty", True))
            held = []
        found = list(_match(image, labels, held, run.concepts.names, task))
        count += len(found)
        total += sum(m.iou for m in found)
        lost += sum(m.iou == 0 for m in found)
        extra += max(0, len(held) - len(labels))
        matches = sorted([*matches, *found], key=lambda m: m.iou)[:WORST]
    mean = total / count if count else None
    minimum = matches[0].iou if matches else None
    return RoundTrip(MEASURES[task], count, lost, extra, missing, mean, minimum, tuple(matches))


def _meant(label: Label, names: Sequence[str], options: Mapping[str, Any]) -> bool:
    wanted = options.get("classes") or names
    return label.score >= options.get("min_score", 0.0) and names[label.class_id] in wanted and label.area > 0


def _match(
    image: LabeledImage, labels: Sequence[Label], held: Instances, names: Sequence[str], task: str
) -> Iterable[Match]:
    for class_id in sorted({label.class_id for label in labels}):
        own = [label for label in labels if label.class_id == class_id]
        shapes = [shape for name, shape in held if name == names[class_id]]
        table = _table(own, shapes, task)
        rows, columns = optimal(table)  # optimal: a label must not lose its own shape to a neighbour
        value = {int(r): float(table[r, c]) for r, c in zip(rows, columns, strict=True)}
        for row, label in enumerate(own):
            yield Match(image.item.id, names[class_id], label.id, value.get(row, 0.0))


def _table(labels: Sequence[Label], shapes: Sequence[Rle | Box], task: str) -> npt.NDArray[np.float64]:
    """[labels, shapes] in the task's measure."""
    if not shapes:
        return np.zeros((len(labels), 0))
    if task == "detect":
        boxes = np.array([label.box_xywh for label in labels]), np.array(shapes, dtype=np.float64)
        return np.asarray(coco_mask.iou(*boxes, [0] * len(shapes)), dtype=np.float64)
    own, others = [label.rle for label in labels], [s for s in shapes if isinstance(s, Rle)]
    return masks.cover_matrix(own, others) if task == "obb" else masks.iou_matrix(own, others)
