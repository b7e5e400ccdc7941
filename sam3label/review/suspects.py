"""Labels worth a second look: which image, why, and the objects that the reason speaks of. Pure, one image at a time.

Nothing here says that a label is wrong. The reasons are those for which labels most often turn out wrong, and each
carries a number by which the worst of its kind come first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sam3label.core import masks
from sam3label.core.records import ConceptList, Label, LabeledImage
from sam3label.run.decide import Decision

NEAR = 0.05  # a score this close to its threshold could as well lie on the other side
SURE = 0.7  # presence from which "nothing found" is a surprise
SAME_PLACE_IOU = 0.8  # masks of two classes that overlap more are one object with two names
LOOKALIKE_IOU = 0.4  # masks of one class that overlap more may be one object labelled twice
TINY_SIDE_PX = 6
HUGE_SHARE = 0.9
MODEL_LIMIT = 200  # objects per image and phrase that SAM 3 can return
NEARLY_FULL = 0.75


@dataclass(frozen=True, slots=True)
class Suspect:
    """One case. `kind` groups cases, `reason` is this one's sentence, `weight` sorts: larger is more suspicious."""

    image: LabeledImage
    kind: str
    reason: str
    weight: float
    labels: tuple[Label, ...]


def find_suspects(
    image: LabeledImage, decisions: Sequence[Decision], presence: Mapping[str, float], concepts: ConceptList
) -> Iterator[Suspect]:
    """Every case of one image; none for an image that a person has reviewed."""
    if image.reviewed:
        return
    found = (
        *_near_threshold(image, decisions, concepts),
        *_sure_but_empty(image, presence, concepts),
        *_two_names(image, concepts),
        *_lookalikes(image, concepts),
        *_odd_sizes(image, concepts),
        *_too_many(image, concepts),
    )
    for kind, reason, weight, labels in found:
        yield Suspect(image, kind, reason, weight, tuple(labels))


_Case = tuple[str, str, float, Sequence[Label]]


def _near_threshold(image: LabeledImage, decisions: Sequence[Decision], concepts: ConceptList) -> Iterator[_Case]:
    kept = {label.id for label in image.labels}
    for decision in decisions:
        label, concept = decision.label, concepts.concepts[decision.label.class_id]
        distance = abs(label.score - concept.conf)
        if distance > NEAR:
            continue
        side = {"label": "just above", "low score": "just below"}.get(decision.outcome)
        if side is None or (decision.outcome == "label" and label.id not in kept):
            continue
        done = "kept" if decision.outcome == "label" else "left out"
        reason = f"{concept.name}: score {label.score:.4f} is {side} conf {concept.conf:g}, so it was {done}"
        yield "close to the threshold", reason, 1 - distance / NEAR, [label]


def _sure_but_empty(image: LabeledImage, presence: Mapping[str, float], concepts: ConceptList) -> Iterator[_Case]:
    labelled = {label.class_id for label in image.labels}
    for concept in concepts.concepts:
        seen = {p: presence[p] for p in concept.prompts if p in presence}
        if not seen or concept.id in labelled:
            continue
        phrase, value = max(seen.items(), key=lambda entry: entry[1])
        if value >= max(SURE, concept.presence):
            reason = f"{concept.name}: the model is {value:.0%} sure that {phrase!r} is here, yet nothing was labelled"
            yield "said to be there, not found", reason, value, []


def _two_names(image: LabeledImage, concepts: ConceptList) -> Iterator[_Case]:
    labels = image.labels
    overlap = masks.iou_matrix([x.rle for x in labels], [x.rle for x in labels])
    for a, b in zip(*np.nonzero(np.triu(overlap, 1) >= SAME_PLACE_IOU), strict=True):
        one, other = labels[a], labels[b]
        if one.class_id != other.class_id:
            names = concepts.names[one.class_id], concepts.names[other.class_id]
            reason = f"one object as {names[0]} ({one.score:.2f}) and as {names[1]} ({other.score:.2f})"
            yield "two names for one object", reason, float(overlap[a, b]), [one, other]


def _lookalikes(image: LabeledImage, concepts: ConceptList) -> Iterator[_Case]:
    for concept in concepts.concepts:
        own = [label for label in image.labels if label.class_id == concept.id]
        overlap = masks.iou_matrix([x.rle for x in own], [x.rle for x in own])
        for a, b in zip(*np.nonzero(np.triu(overlap, 1) >= LOOKALIKE_IOU), strict=True):
            share = float(overlap[a, b])
            reason = f"{concept.name}: two masks overlap by {share:.0%} (IoU), perhaps one object"
            yield "overlapping twins", reason, share, [own[a], own[b]]


def _odd_sizes(image: LabeledImage, concepts: ConceptList) -> Iterator[_Case]:
    pixels = image.size_hw[0] * image.size_hw[1]
    for label in image.labels:
        name, side = concepts.names[label.class_id], label.area**0.5
        if side < TINY_SIDE_PX:
            yield "tiny", f"{name}: {label.area} pixels in all", 1 - side / TINY_SIDE_PX, [label]
        elif label.area > HUGE_SHARE * pixels:
            share = label.area / pixels
            yield "nearly the whole image", f"{name}: covers {share:.0%} of the image", share, [label]


def _too_many(image: LabeledImage, concepts: ConceptList) -> Iterator[_Case]:
    for concept in concepts.concepts:
        own = [label for label in image.labels if label.class_id == concept.id]
        per_phrase = len(own) / max(1, len(concept.prompts))
        if per_phrase >= NEARLY_FULL * MODEL_LIMIT:
            reason = f"{concept.name}: {len(own)} objects; the model returns at most {MODEL_LIMIT} for a phrase"
            yield "at the model's limit", reason, per_phrase, own
