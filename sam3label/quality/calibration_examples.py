"""What each labelled image answers for a class at given thresholds: the material that `calibrate` chooses from.

Shape legend, for one (image, class) pair: C candidates over all the class's phrases, best first, and G truth objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sam3label.annotations.coco import JudgedObject, Truth
from sam3label.core import masks
from sam3label.core.matching import greedy
from sam3label.core.records import Candidate, Concept, exemplar_class
from sam3label.quality.metrics.average_precision import Kind
from sam3label.quality.metrics.overlap import overlap
from sam3label.quality.run_answers import categories_of_classes, instance_of, units_of_truth
from sam3label.run.decide import INSIDE, SAME_OBJECT_IOU, Verdicts
from sam3label.run.reader import Run

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

MATCH_IOU = 0.5


@dataclass(frozen=True, slots=True)
class Example:
    """One image for one class: everything that thresholds can act upon, computed once.

    Verdicts that count are in it: the verifier's presence in `presence` and `score`, what it says of masks in `masks`.
    """

    score: Floats  # [C]
    presence: Floats  # [C]
    phrase: npt.NDArray[np.int64]  # [C], position in the class's prompts; -1 for an exemplar
    overlap: Floats  # [C, C]
    inside: Flags  # [C, C], one of the two lies in the other, and the class drops such
    truth_iou: Floats  # [C, G]
    suppressed: Flags  # [C], by a hard negative
    truth: int
    cap: int | None
    masks: Floats  # [C], what a verifier said of the label; 1 where it said nothing
    lower: float | None = None  # the score threshold where it says that some are missing


def read_examples(run: Run, truth: Truth, notes: list[str], compared: Kind = "segm") -> dict[int, list[Example]]:
    """Return the examples by class id: every image whose truth was labelled to the end for that class."""
    units = units_of_truth(run, truth, notes)
    categories = categories_of_classes(run.concepts, truth.categories, truth.path, notes)
    judged = set(truth.pairs)
    examples: dict[int, list[Example]] = {class_id: [] for class_id in categories}
    for image_id, unit in units.items():
        candidates = run.candidates(unit)
        said = Verdicts(run.counting_verdicts(unit.item.id).get(unit.frame_start, ()))
        for class_id, category_id in categories.items():
            if (image_id, category_id) in judged:
                objects = [o for o in truth.objects.get((image_id, category_id), ()) if not o.crowd]
                concept = run.concepts.concepts[class_id]
                examples[class_id].append(_example(concept, candidates, objects, compared, said))
    return examples


def _example(
    concept: Concept,
    candidates: Sequence[Candidate],
    objects: Sequence[JudgedObject],
    compared: Kind,
    said: Verdicts,
) -> Example:
    own = [c for c in candidates if c.prompt in concept.prompts or _is_exemplar_of(concept, c)]
    own = [] if said.vetoes(concept) else [_rescored(c, concept, said) for c in own]
    own = sorted((c for c in own if c.area >= concept.min_area), key=lambda c: (-c.score, c.id))
    against = [c for c in candidates if c.prompt in concept.negatives]
    rles = [c.rle for c in own]
    covers = masks.iou_matrix(rles, [c.rle for c in against]) >= SAME_OBJECT_IOU
    cover = masks.cover_matrix(rles, rles) if concept.inside == "drop" else np.zeros((len(rles), len(rles)))
    stronger = np.array([c.score for c in against])[None, :] >= np.array([c.score for c in own])[:, None]
    return Example(
        score=np.array([c.score for c in own]),
        presence=np.array([c.presence for c in own]),
        phrase=np.array([_position(concept, c) for c in own], dtype=np.int64),
        overlap=masks.iou_matrix(rles, rles),
        inside=np.maximum(cover, cover.T) >= INSIDE,
        truth_iou=overlap(compared, [instance_of(c) for c in own], objects),
        suppressed=np.asarray((covers & stronger).any(axis=1)),
        truth=len(objects),
        cap=concept.max_instances,
        masks=np.array([_mask_score(c, concept, said) for c in own]),
        lower=said.eased(replace(concept, conf=1.0)).conf if concept.verify.missing_conf is not None else None,
    )


def _rescored(candidate: Candidate, concept: Concept, said: Verdicts) -> Candidate:
    score, presence = said.rescore(candidate.score, candidate.presence, concept)
    return replace(candidate, score=score, presence=presence)


def _mask_score(candidate: Candidate, concept: Concept, said: Verdicts) -> float:
    """A candidate that serves a second class has a label id of its own there."""
    ids = candidate.id, f"{candidate.id}-{concept.id}"
    return min(said.mask_score(concept.name, label_id) for label_id in ids)


def _is_exemplar_of(concept: Concept, candidate: Candidate) -> bool:
    return candidate.source != "phrase" and exemplar_class(candidate.prompt) == concept.name


def _position(concept: Concept, candidate: Candidate) -> int:
    return concept.prompts.index(candidate.prompt) if candidate.prompt in concept.prompts else -1


@dataclass(slots=True)
class Answers:
    """What an example answers at one presence and NMS threshold, best first, whatever the score threshold."""

    score: list[float] = field(default_factory=list)
    hit: list[bool] = field(default_factory=list)

    def counts(self, conf: float) -> tuple[int, int]:
        """Return (hits, answers) with a score of at least `conf`."""
        standing = sum(score >= conf for score in self.score)
        return sum(self.hit[:standing]), standing


def answers(
    example: Example, presence: float, iou: float, reject_below: float | None, phrases: Sequence[int] | None = None
) -> Answers:
    """Apply the rules of `select` and match with truth, greedily from the best score down.

    Both only ever look at better candidates, so the answers above a score threshold are a prefix of this list. What is
    a label whatever the threshold, because a verifier misses some, has the score 1.
    """
    allowed = example.presence >= presence
    if phrases is not None:
        allowed &= np.isin(example.phrase, [*phrases, -1])
    kept = _best_of(np.flatnonzero(allowed).tolist(), example.overlap > iou)
    kept = _best_of(kept, example.inside)
    good = ~example.suppressed & (example.masks >= (reject_below or 0.0))
    standing = [c for c in kept if good[c]][: example.cap]
    hits, _ = greedy(example.truth_iou[standing], MATCH_IOU)  # greedy: a threshold must not change what stands above it
    hit = np.zeros(len(standing), dtype=bool)
    hit[hits] = True
    score = example.score[standing]
    return Answers(np.where(score >= _or_one(example.lower), 1.0, score).tolist(), hit.tolist())


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else value


def _best_of(order: Sequence[int], clash: Flags) -> list[int]:
    """Those of `order`, best first, that clash with none that was kept before."""
    kept: list[int] = []
    for c in order:
        if not clash[c, kept].any():
            kept.append(c)
    return kept
