"""Where answers and truth disagree, object by object: missed, false alarms, and objects given another class.

Two rounds. Within a class the matching of the figures stands, so that the diagonal of the confusion matrix is their
hits at IoU 0.5. What is left of an image is then matched across classes: an object found under another name is
confused, whatever else is left is missed or a false alarm.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3label.annotations.coco import JudgedObject, Pair, Truth
from sam3label.core.matching import optimal
from sam3label.quality.metrics.average_precision import Kind
from sam3label.quality.metrics.cgf1 import PairScore
from sam3label.quality.metrics.overlap import overlap

MATCH_IOU = 0.5
BACKGROUND = "background"


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """The answers to a pair of (image, concept), the truth it was judged by, and how they were matched."""

    found: Sequence[JudgedObject]
    truth: Sequence[JudgedObject]
    score: PairScore


NOTHING = JudgedPair((), (), PairScore(np.empty(0), np.empty(0)))  # neither there nor answered, as most pairs are


@dataclass(frozen=True, slots=True)
class Mistake:
    """One object: missed where it has no answer, a false alarm where it has no truth, confused where it has both.

    `item_id` is the run's id of the image; in a results file, which has none, it is the truth's file name.
    """

    item_id: str
    truth_class: str | None
    truth: JudgedObject | None
    answer_class: str | None
    answer: JudgedObject | None

    def __post_init__(self) -> None:
        if self.truth is None and self.answer is None:
            raise ValueError("a mistake has a truth, an answer or both, got neither")

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"image": self.item_id}
        if self.truth is not None:
            row |= {"truth": self.truth_class, "truth_box_xywh": list(self.truth.box_xywh)}
        if self.answer is not None:
            row |= {"answer": self.answer_class, "answer_box_xywh": list(self.answer.box_xywh)}
            row["score"] = self.answer.score
        return row


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often objects of each class (rows) were answered as each class (columns); last of both is background."""

    classes: tuple[str, ...]
    counts: npt.NDArray[np.int64]  # [C + 1, C + 1]

    def __post_init__(self) -> None:
        side = len(self.classes) + 1
        if self.counts.shape != (side, side):
            raise ValueError(f"counts must be ({side}, {side}), got {self.counts.shape}")

    def between(self) -> list[tuple[str, str, int]]:
        """Return (class of the truth, class of the answer, times) of confused classes, most frequent first."""
        inner = self.counts[:-1, :-1] * (1 - np.eye(len(self.classes), dtype=np.int64))
        found = [(self.classes[t], self.classes[a], int(inner[t, a])) for t, a in np.argwhere(inner).tolist()]
        return sorted(found, key=lambda entry: -entry[2])

    def to_json(self) -> dict[str, Any]:
        return {"classes": [*self.classes, BACKGROUND], "counts": self.counts.tolist()}


@dataclass(frozen=True, slots=True)
class Mistakes:
    """Every mistake by its kind: misses by falling area, the others by falling score.

    `confusion` is None for an SA-Co truth, in which each image asks for one phrase alone.
    """

    compared: Kind
    missed: tuple[Mistake, ...]
    false_alarms: tuple[Mistake, ...]
    confused: tuple[Mistake, ...]
    confusion: Confusion | None

    def to_json(self) -> dict[str, Any]:
        return {
            "compared": self.compared,
            "iou": MATCH_IOU,
            "confusion": None if self.confusion is None else self.confusion.to_json(),
            **{
                name: [mistake.to_json() for mistake in rows]
                for name, rows in (
                    ("missed", self.missed),
                    ("false_alarms", self.false_alarms),
                    ("confused", self.confused),
                )
            },
        }


@dataclass(slots=True)
class _Left:
    """What the first round left of an image: (class, object)."""

    found: list[tuple[str, JudgedObject]]
    truth: list[tuple[str, JudgedObject]]


def find_mistakes(kind: Kind, truth: Truth, judged: Mapping[Pair, JudgedPair], item_ids: Mapping[int, str]) -> Mistakes:
    """Return every mistake among judged pairs. `item_ids` names images of the truth as the run does."""
    hits: Counter[str] = Counter()
    left: dict[int, _Left] = defaultdict(lambda: _Left([], []))
    for pair, one in judged.items():
        if one is NOTHING:
            continue
        name = truth.name(pair)
        good = one.score.found_iou >= MATCH_IOU
        hits[name] += int(good.sum())
        if not good.all():
            left[pair[0]].found += [(name, one.found[i]) for i in np.flatnonzero(~good).tolist()]
        good = one.score.truth_iou >= MATCH_IOU
        if not good.all():
            left[pair[0]].truth += [(name, one.truth[i]) for i in np.flatnonzero(~good).tolist()]
    mistakes = [
        mistake
        for image_id, rest in left.items()
        for mistake in _of_image(kind, rest, item_ids.get(image_id, truth.images[image_id].file_name))
    ]
    return Mistakes(
        kind,
        missed=tuple(sorted((m for m in mistakes if m.answer is None), key=lambda m: -_area(m))),
        false_alarms=tuple(sorted((m for m in mistakes if m.truth is None), key=lambda m: -_score(m))),
        confused=tuple(sorted((m for m in mistakes if m.truth and m.answer), key=lambda m: -_score(m))),
        confusion=None if truth.by_phrase else _confusion(truth, hits, mistakes),
    )


def _of_image(kind: Kind, left: _Left, item_id: str) -> list[Mistake]:
    rows = columns = np.zeros(0, np.int64)
    if left.found and left.truth:
        iou = overlap(kind, [found for _, found in left.found], [one for _, one in left.truth])
        other = np.array([[a != b for b, _ in left.truth] for a, _ in left.found])
        # optimal: all that is left of the image is there, and no class comes first
        rows, columns = optimal(np.where(other & (iou >= MATCH_IOU), iou, 0.0), MATCH_IOU)
    confused = [
        Mistake(item_id, *left.truth[column], *left.found[row])
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    missed = [Mistake(item_id, *one, None, None) for i, one in enumerate(left.truth) if i not in set(columns.tolist())]
    alarms = [Mistake(item_id, None, None, *one) for i, one in enumerate(left.found) if i not in set(rows.tolist())]
    return [*confused, *missed, *alarms]


def _confusion(truth: Truth, hits: Mapping[str, int], mistakes: Sequence[Mistake]) -> Confusion:
    judged = {pair[1] for pair in truth.pairs}
    classes = tuple(dict.fromkeys(name for i, name in truth.categories.items() if i in judged))
    place = {name: i for i, name in enumerate(classes)}
    counts = np.zeros((len(classes) + 1, len(classes) + 1), np.int64)
    for name, number in hits.items():
        counts[place[name], place[name]] += number
    for mistake in mistakes:
        row, column = (-1 if name is None else place[name] for name in (mistake.truth_class, mistake.answer_class))
        counts[row, column] += 1
    return Confusion(classes, counts)


def _area(mistake: Mistake) -> float:
    assert mistake.truth is not None  # a miss
    return mistake.truth.area


def _score(mistake: Mistake) -> float:
    assert mistake.answer is not None  # a false alarm or a confusion
    return mistake.answer.score
