"""`refine: true`: the masks of a class, sharpened by the tracker half of SAM 3 from the boxes they lie in.

Photos and sampled frames only: what tracks has masks of its own. What the image encoder said when the words were
asked serves these boxes too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sam3label.core.records import Candidate, ConceptList, Frame, Hint, exemplar_class
from sam3label.run.decide import doubt

if TYPE_CHECKING:
    from sam3label.model.detector import Detection
    from sam3label.model.interactive import Clicked, Clicker

LEAST_IOU = 0.5  # that the model must expect of a mask, or the detector's stays


def refined(
    clicker: Clicker, concepts: ConceptList, frames: Sequence[Frame], detections: Sequence[Detection]
) -> list[Detection]:
    """Return the detections with the masks of the classes that say so asked for again, from the boxes around them."""
    names = {concept.name for concept in concepts.concepts if concept.refine}
    phrases = {phrase for concept in concepts.concepts if concept.refine for phrase in concept.prompts}
    chosen = [[c for c in one.candidates if _asks(c, names, phrases)] for one in detections]
    hints = [[_hint(c) for c in own] for own in chosen]
    found = clicker.masks(frames, hints, [one.grid for one in detections])
    result = []
    for one, own, answers in zip(detections, chosen, found, strict=True):
        sharper = {c.id: _sharper(c, answer) for c, answer in zip(own, answers, strict=True)}
        result.append(replace(one, candidates=tuple(sharper.get(c.id, c) for c in one.candidates)))
    return result


def _asks(candidate: Candidate, names: set[str], phrases: set[str]) -> bool:
    name = exemplar_class(candidate.prompt)
    return candidate.prompt in phrases if name is None else name in names


def _hint(candidate: Candidate) -> Hint:
    x, y, width, height = candidate.box_xywh
    return Hint((x, y, x + width, y + height))


def _sharper(candidate: Candidate, answer: Clicked) -> Candidate:
    """Return the candidate with its new mask; as it was, where that is not to be believed."""
    one = answer.instance
    if one is None or doubt(_hint(candidate), one.area, one.box_xywh, answer.iou, LEAST_IOU) is not None:
        return candidate
    return replace(candidate, rle=one.rle, area=one.area, box_xywh=one.box_xywh)
