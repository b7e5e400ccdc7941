"""Candidates and a person's corrections in, labels out: every decision after the GPU pass, and no model in sight.

`decide` says of each candidate whether it became a label and, if not, why; `select_labels` keeps those that did.
The order of the rules is the meaning:

1. score, presence and area against the class's thresholds;
2. within a class (all its phrases together: this is the synonym merge), masks overlapping by more than the class's
   `iou` are one object and the best score keeps it; so are masks of which one lies inside the other (`INSIDE` of the
   smaller), unless the class says `inside: keep`;
3. a `not:` candidate that covers the same object with at least the same score suppresses it;
4. in an `exclusive:` group the class with the best score keeps the object;
5. a verifier's verdicts, where the class lets them count (`verify:`): before rule 1 it replaces the presence, and
   lowers the score threshold where it says that some are missing; it vetoes absent classes and rejects masks here;
6. `where:` conditions on where the labels of other classes are (`conditions`), all judged on what stands by then;
7. `max_instances`, best first.

An object that was given by hand is always a label, also where it was followed to, and in 2 it keeps its place before
all that was found. Where the mask of its box is not to be believed (`doubt`), the label is the box. What an agent
selected passes 1 whatever its score.

"The same object" across phrases of different meaning is mask IoU of at least `SAME_OBJECT_IOU`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.core.records import (
    Box,
    Candidate,
    Concept,
    ConceptList,
    Doubt,
    Given,
    Hint,
    Label,
    Rle,
    Verdict,
    exemplar_class,
)
from sam3label.run.conditions import satisfied

SAME_OBJECT_IOU = 0.5
VETO_BELOW = 0.5  # a verifier's score for "is there any?", and for "are all of them masked?"
INSIDE = 0.9  # share of the smaller mask that lies in the larger one
IN_ITS_BOX = 0.7  # share of the box around a mask that must lie in the box that was given

Outcome = Literal[
    "label",
    "low score",
    "low presence",
    "small",
    "duplicate",
    "inside",
    "hard negative",
    "exclusive",
    "verdict",
    "where",
    "max_instances",
]


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one candidate as one class. `by` is the id of the candidate or label that displaced it."""

    label: Label
    outcome: Outcome
    by: str | None = None


def select_labels(candidates: Sequence[Candidate], concepts: ConceptList) -> tuple[Label, ...]:
    """Return the labels of one image (or frame), by class id and falling score. Pure; candidates come in any order."""
    return tuple(d.label for d in decide(candidates, concepts) if d.outcome == "label")


def decide(
    candidates: Sequence[Candidate], concepts: ConceptList, verdicts: Sequence[Verdict] = ()
) -> tuple[Decision, ...]:
    """Return one decision for every (candidate, class that asked for it), by class id and falling score.

    `verdicts` are those of one verifier on this image (frame).
    """
    said = Verdicts(verdicts)
    by_prompt: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_prompt.setdefault(_prompt_class(candidate) or candidate.prompt, []).append(candidate)
    claimed: set[str] = set()
    decisions: list[Decision] = []
    for concept in concepts.concepts:
        own = [c for p in (*concept.prompts, _class_key(concept.name)) for c in by_prompt.get(p, ())]
        against = [c for p in concept.negatives for c in by_prompt.get(p, ())]
        labels = [said.rescored(label, concept) for label in _labels(own, concept, claimed)]
        labels.sort(key=lambda label: (label.given is None, *best_first(label)))
        decisions += _decide_class(labels, against, said.eased(concept))
    decisions = [said.judged(d, concepts.concepts[d.label.class_id]) for d in _exclusive(decisions, concepts)]
    decisions = _where(decisions, concepts)
    return tuple(_cap(decisions, concepts))


def _class_key(name: str) -> str:
    return f"class\0{name}"


def _prompt_class(candidate: Candidate) -> str | None:
    """Return the class that an exemplar prompt's key names, `exemplar:<class>...`: its candidates belong to it."""
    name = None if candidate.source == "phrase" else exemplar_class(candidate.prompt)
    return None if name is None else _class_key(name)


def _labels(candidates: Iterable[Candidate], concept: Concept, claimed: set[str]) -> list[Label]:
    """Return labels-to-be. A candidate that serves a second class gets a label id of its own there."""
    labels = []
    for c in candidates:
        label_id = c.id if c.id not in claimed else f"{c.id}-{concept.id}"
        claimed.add(c.id)
        label = Label(
            label_id,
            concept.id,
            c.score,
            c.presence,
            c.box_xywh,
            c.area,
            c.rle,
            c.prompt,
            c.source,
            c.frame,
            c.track_id,
            concept.name,
            c.given,
        )
        labels.append(label if c.given is None else _given(label, c.given, concept))
    return labels


class Verdicts:
    """What a verifier said of one image, by class and by label."""

    def __init__(self, verdicts: Sequence[Verdict]) -> None:
        self._any = {v.class_name: v.score for v in verdicts if v.part == "any" and v.score is not None}
        self._all = {v.class_name: v.score for v in verdicts if v.part == "all" and v.score is not None}
        self._mask: dict[tuple[str, str], float] = {}
        for v in verdicts:
            if v.label_id is not None and v.score is not None:
                key = v.class_name, v.label_id
                self._mask[key] = min(v.score, self._mask.get(key, 1.0))

    def rescored(self, label: Label, concept: Concept) -> Label:
        """Put the verifier's presence in the place of the model's, of which the score is a multiple."""
        score, presence = self.rescore(label.score, label.presence, concept)
        if presence == label.presence or label.given is not None:
            return label
        return replace(label, score=score, presence=presence)

    def rescore(self, score: float, presence: float, concept: Concept) -> tuple[float, float]:
        """Return score and presence of a candidate as the verifier's presence makes them."""
        said = self._any.get(concept.name)
        if concept.verify.presence != "replace" or said is None:
            return score, presence
        return (min(1.0, score / presence) if presence > 0 else 0.0) * said, said

    def eased(self, concept: Concept) -> Concept:
        """Return the class with the lower score threshold that it gives where the verifier misses some."""
        lower = concept.verify.missing_conf
        if lower is None or self._all.get(concept.name, 1.0) >= VETO_BELOW:
            return concept
        return replace(concept, conf=min(concept.conf, lower))

    def heard_of(self, class_name: str, label_id: str) -> float | None:
        """Return the lower of what was said of a label's two parts; None where nothing was."""
        return self._mask.get((class_name, label_id))

    def mask_score(self, class_name: str, label_id: str) -> float:
        """Return the same, or 1 where nothing was said."""
        return self._mask.get((class_name, label_id), 1.0)

    def vetoes(self, concept: Concept) -> bool:
        """Return whether the class is dropped from the image."""
        return concept.verify.presence == "veto" and self._any.get(concept.name, 1.0) < VETO_BELOW

    def judged(self, decision: Decision, concept: Concept) -> Decision:
        """Drop a label of a class that is not there, or whose mask the verifier rejects."""
        if decision.outcome != "label" or decision.label.given is not None:
            return decision
        below = concept.verify.reject_below
        rejected = below is not None and self.mask_score(concept.name, decision.label.id) < below
        return replace(decision, outcome="verdict") if rejected or self.vetoes(concept) else decision


def best_first(label: Label) -> tuple[float, str]:
    return -label.score, label.id


def _given(label: Label, given: Given, concept: Concept) -> Label:
    """Return the label of an object that was given: with its mask, or where that is in doubt, with its box for one."""
    if given.hint is None:
        return label
    why = doubt(given.hint, label.area, label.box_xywh, label.score, concept.conf)
    if why is not None:
        rle = shape_of(given.hint, label.rle.size_hw)
        label = replace(label, rle=rle, area=masks.area(rle), box_xywh=masks.box_xywh(rle), doubt=why)
    if given.hint.box_xyxy is None or (concept.snap and why is None):
        return label
    x1, y1, x2, y2 = given.hint.box_xyxy
    return replace(label, box_xywh=(x1, y1, x2 - x1, y2 - y1))


def doubt(hint: Hint, area: int, box_xywh: Box, iou: float, least: float) -> Doubt | None:
    """Return what is wrong with the mask of a hint, None for nothing.

    It is empty, most of it lies elsewhere, or the model expects less than the `least` IoU of it. `area` and `box_xywh`
    are the mask's.
    """
    if area == 0:
        return "no mask"
    if hint.box_xyxy is not None:
        x, y, width, height = box_xywh
        x1, y1, x2, y2 = hint.box_xyxy
        shared = max(0.0, min(x + width, x2) - max(x, x1)) * max(0.0, min(y + height, y2) - max(y, y1))
        if shared < IN_ITS_BOX * width * height:
            return "outside its box"
    return "unsure mask" if iou < least else None


def shape_of(hint: Hint, size_hw: tuple[int, int]) -> Rle:
    """Return what is known of an object without its mask: the pixels of its box, or those of its points."""
    height, width = size_hw
    filled = np.zeros(size_hw, np.bool_)
    if hint.box_xyxy is None:
        for x, y in ((x, y) for x, y, inside in hint.points if inside):
            filled[min(int(y), height - 1), min(int(x), width - 1)] = True
        return masks.encode(filled)
    x1, y1, x2, y2 = (int(v + 0.5) for v in hint.box_xyxy)
    left, top = min(x1, width - 1), min(y1, height - 1)
    filled[top : max(y2, top + 1), left : max(x2, left + 1)] = True
    return masks.encode(filled)


def _decide_class(labels: Sequence[Label], against: Sequence[Candidate], concept: Concept) -> list[Decision]:
    decisions = [Decision(label, _threshold(label, concept)) for label in labels]
    decisions = _merge_duplicates(decisions, concept.iou)
    if concept.inside == "drop":
        decisions = _drop_inside(decisions)
    return _suppress(decisions, against) if against else decisions


def _threshold(label: Label, concept: Concept) -> Outcome:
    if label.given is not None:
        return "label"
    if label.source != "agent":  # which has looked, and selected it
        if label.score < concept.conf:
            return "low score"
        if label.presence < concept.presence:
            return "low presence"
    return "small" if label.area < concept.min_area else "label"


def _standing(decisions: Sequence[Decision]) -> list[int]:
    return [i for i, d in enumerate(decisions) if d.outcome == "label"]


def _merge_duplicates(decisions: list[Decision], iou: float) -> list[Decision]:
    """Greedy NMS on masks. `decisions` come best first."""
    rles = [decisions[i].label.rle for i in _standing(decisions)]
    return _keep_best(decisions, masks.iou_matrix(rles, rles) > iou, "duplicate")


def _drop_inside(decisions: list[Decision]) -> list[Decision]:
    """Of two masks of which one lies inside the other, the better score stays: a part or a group is a common double."""
    rles = [decisions[i].label.rle for i in _standing(decisions)]
    cover = masks.cover_matrix(rles, rles)
    return _keep_best(decisions, np.maximum(cover, cover.T) >= INSIDE, "inside")


def _keep_best(decisions: list[Decision], clash: npt.NDArray[np.bool_], outcome: Outcome) -> list[Decision]:
    """Let each standing decision, best first, displace those it clashes with. `clash` [standing, standing]."""
    standing = _standing(decisions)
    kept: list[int] = []
    for row, i in enumerate(standing):
        given = decisions[i].label.given is not None
        winner = None if given else next((k for k in kept if clash[row, k]), None)
        if winner is None:
            kept.append(row)
        else:
            decisions[i] = replace(decisions[i], outcome=outcome, by=decisions[standing[winner]].label.id)
    return decisions


def _suppress(decisions: list[Decision], against: Sequence[Candidate]) -> list[Decision]:
    standing = [i for i in _standing(decisions) if decisions[i].label.given is None]
    overlap = masks.iou_matrix([decisions[i].label.rle for i in standing], [c.rle for c in against])
    for row, i in enumerate(standing):
        score = decisions[i].label.score
        winner = next(
            (c for k, c in enumerate(against) if overlap[row, k] >= SAME_OBJECT_IOU and c.score >= score), None
        )
        if winner is not None:
            decisions[i] = replace(decisions[i], outcome="hard negative", by=winner.id)
    return decisions


def _exclusive(decisions: list[Decision], concepts: ConceptList) -> list[Decision]:
    for group in concepts.exclusive:
        ids = {c.id for c in concepts.concepts if c.name in group}
        standing = [i for i in _standing(decisions) if decisions[i].label.class_id in ids]
        standing.sort(key=lambda i: (decisions[i].label.given is None, *best_first(decisions[i].label)))
        rles = [decisions[i].label.rle for i in standing]
        overlap = masks.iou_matrix(rles, rles)
        kept: list[int] = []
        for row, i in enumerate(standing):
            other = decisions[i].label.class_id
            rivals = (k for k in kept if decisions[standing[k]].label.class_id != other)
            winner = next((k for k in rivals if overlap[row, k] >= SAME_OBJECT_IOU), None)
            if winner is None or decisions[i].label.given is not None:
                kept.append(row)
            else:
                decisions[i] = replace(decisions[i], outcome="exclusive", by=decisions[standing[winner]].label.id)
    return decisions


def _where(decisions: list[Decision], concepts: ConceptList) -> list[Decision]:
    """Drop the labels that do not satisfy a condition of their class. All are judged before any goes."""
    standing = _standing(decisions)
    by_class: dict[str, list[int]] = {}
    for i in standing:
        by_class.setdefault(concepts.concepts[decisions[i].label.class_id].name, []).append(i)
    failed: set[int] = set()
    for concept in concepts.concepts:
        own = by_class.get(concept.name, [])
        for condition in concept.where if own else ():
            others = [decisions[k].label for k in by_class.get(condition.class_name, [])]
            held = satisfied(condition, [decisions[i].label for i in own], others)
            own_failed = (i for i, holds in zip(own, held, strict=True) if not holds)
            failed.update(i for i in own_failed if decisions[i].label.given is None)
    return [replace(d, outcome="where") if i in failed else d for i, d in enumerate(decisions)]


def _cap(decisions: Iterable[Decision], concepts: ConceptList) -> Iterator[Decision]:
    counts: dict[int, int] = {}
    for d in decisions:  # best first within a class
        cap = concepts.concepts[d.label.class_id].max_instances
        if d.outcome == "label" and d.label.given is None:
            counts[d.label.class_id] = counts.get(d.label.class_id, 0) + 1
            if cap is not None and counts[d.label.class_id] > cap:
                d = replace(d, outcome="max_instances")
        yield d
