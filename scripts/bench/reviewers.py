"""Simulated reviewers: they correct a run's labels by truth, and err where they are told to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from sam3label.annotations.coco import JudgedObject, Truth
from sam3label.core import masks
from sam3label.core.records import Correction, Label
from sam3label.quality.run_answers import match_files
from sam3label.run.reader import Run

GOOD_IOU = 0.75  # a mask that covers its object less is drawn anew
SAME_IOU = 0.5


def review(run: Run, truth: Truth, item_ids: Collection[str], errors: float = 0.0, seed: int = 0) -> int:
    """Correct these photos, mark them as reviewed, and return how many corrections it took.

    Each decision is wrong with the chance `errors`: a right label is deleted or gets another class, a wrong one stays,
    a missed object is missed again.
    """
    rng = np.random.default_rng(seed)
    number_of = {image.file_name: number for number, image in truth.images.items()}
    names = match_files(list(number_of), list(item_ids))
    name_of = {item_id: name for name, item_id in names.items()}
    made: list[Correction] = []
    for item_id in sorted(item_ids):
        image = run.image(item_id)
        assert image is not None
        number = number_of[name_of[item_id]]
        objects = {name: truth.objects.get((number, category), ()) for category, name in truth.categories.items()}
        made += _corrections(item_id, image.labels, objects, run.concepts.names, errors, rng)
    run.record(made)
    return sum(one.action not in ("reviewed", "approved") for one in made)


def _corrections(
    item_id: str,
    labels: Sequence[Label],
    objects: Mapping[str, Sequence[JudgedObject]],
    names: Sequence[str],
    errors: float,
    rng: np.random.Generator,
) -> list[Correction]:
    how = {"item_id": item_id, "frame": 0, "who": "simulated", "at": datetime.now(UTC).isoformat(), "pull": "1"}
    made: list[Correction] = []
    for class_id, name in enumerate(names):
        own = [label for label in labels if label.class_id == class_id]
        there = [one.rle for one in objects.get(name, ()) if one.rle is not None]
        overlap = masks.iou_matrix([label.rle for label in own], there)
        found: set[int] = set()
        for row, label in enumerate(own):
            best = int(overlap[row].argmax()) if there else -1
            right = best >= 0 and overlap[row, best] >= SAME_IOU and best not in found
            errs = rng.random() < errors
            if right and not errs:
                found.add(best)
                action = "approved" if overlap[row, best] >= GOOD_IOU else "reshaped"
                rle = None if action == "approved" else there[best]
                made.append(Correction(action=action, label_id=label.id, rle=rle, **how))
            elif right and rng.random() < 0.5:
                found.add(best)
                other = names[(class_id + 1 + int(rng.integers(len(names) - 1))) % len(names)]
                made.append(Correction(action="relabelled", label_id=label.id, class_name=other, **how))
            else:
                found |= {best} if right else set()
                made.append(
                    Correction(action="approved" if errs and not right else "deleted", label_id=label.id, **how)
                )
        for number, rle in enumerate(there):
            if number not in found and rng.random() >= errors:
                label_id = f"{item_id}-{name}-{number}"
                made.append(Correction(action="added", label_id=label_id, class_name=name, rle=rle, **how))
    return [*made, Correction(action="reviewed", **how)]
