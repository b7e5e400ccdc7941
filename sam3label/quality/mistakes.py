"""Where answers and truth disagree, object by object: missed, false alarms, and objects given another class.

Two rounds. Within a class the matching of the figures stands, so that the diagonal of the confusion matrix is their
hits at IoU 0.5. What is left of an image is then matched across classes: an object found under another name is
confused, whatever else is left is missed or a false alarm. Of videos the objects are tracks, shown in one frame.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from sam3label.annotations.coco import JudgedObject, Pair, Truth
from sam3label.core.matching import optimal
from sam3label.quality.metrics.average_precision import Kind
from sam3label.quality.metrics.cgf1 import PairScore
from sam3label.quality.metrics.overlap import overlap

T = TypeVar("T")
Named = tuple[str, T]  # a class and an object of it
MATCH_IOU = 0.5
BACKGROUND = "background"
NO_ONE = None, None


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

    `item_id` is the run's id of the image or video; in a results file, which has none, it is the truth's name. A track
    is shown in one `frame` of its video; photos have none.
    """

    item_id: str
    truth_class: str | None
    truth: JudgedObject | None
    answer_class: str | None
    answer: JudgedObject | None
    frame: int | None = None

    def __post_init__(self) -> None:
        if self.truth is None and self.answer is None:
            raise ValueError("a mistake has a truth, an answer or both, got neither")

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"image": self.item_id} | ({} if self.frame is None else {"frame": self.frame})
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
class Left(Generic[T]):
    """What the first round left of an image or a video."""

    found: list[Named[T]] = field(default_factory=list)
    truth: list[Named[T]] = field(default_factory=list)

    def take(self, name: str, score: PairScore, found: Sequence[T], truth: Sequence[T]) -> int:
        """Take in what a pair leaves, and return how many it hit."""
        good = score.found_iou >= MATCH_IOU
        self.found += [(name, found[i]) for i in np.flatnonzero(~good).tolist()]
        self.truth += [(name, truth[i]) for i in np.flatnonzero(score.truth_iou < MATCH_IOU).tolist()]
        return int(good.sum())

    def across(self, iou: npt.NDArray[np.float64]) -> Iterator[tuple[Named[T] | None, Named[T] | None]]:
        """Yield (truth, answer), matched across classes by `iou` [answers, truth]; either is None where it is alone."""
        other = np.array([[a != b for b, _ in self.truth] for a, _ in self.found], dtype=bool).reshape(iou.shape)
        # optimal: all that is left of the image is there, and no class comes first
        rows, columns = optimal(np.where(other & (iou >= MATCH_IOU), iou, 0.0), MATCH_IOU)
        yield from ((self.truth[t], self.found[a]) for a, t in zip(rows.tolist(), columns.tolist(), strict=True))
        yield from ((one, None) for i, one in enumerate(self.truth) if i not in set(columns.tolist()))
        yield from ((None, one) for i, one in enumerate(self.found) if i not in set(rows.tolist()))


def find_mistakes(kind: Kind, truth: Truth, judged: Mapping[Pair, JudgedPair], item_ids: Mapping[int, str]) -> Mistakes:
    """Return every mistake among judged pairs. `item_ids` names images of the truth as the run does."""
    hits: Counter[str] = Counter()
    left: dict[int, Left[JudgedObject]] = defaultdict(Left)
    for pair, one in judged.items():
        if one is not NOTHING:
            hits[truth.name(pair)] += left[pair[0]].take(truth.name(pair), one.score, one.found, one.truth)
    mistakes = [
        Mistake(item_ids.get(image_id, truth.images[image_id].file_name), *(there or NO_ONE), *(answer or NO_ONE))
        for image_id, rest in left.items()
        for there, answer in rest.across(overlap(kind, [one for _, one in rest.found], [one for _, one in rest.truth]))
    ]
    asked = {pair[1] for pair in truth.pairs}
    names = [name for i, name in truth.categories.items() if i in asked]
    return in_order(kind, mistakes, None if truth.by_phrase else confusion_of(names, hits, mistakes))


def in_order(kind: Kind, mistakes: Collection[Mistake], confusion: Confusion | None) -> Mistakes:
    """Return mistakes by their kind."""
    return Mistakes(
        kind,
        missed=tuple(sorted((m for m in mistakes if m.answer is None), key=lambda m: -_area(m))),
        false_alarms=tuple(sorted((m for m in mistakes if m.truth is None), key=lambda m: -_score(m))),
        confused=tuple(sorted((m for m in mistakes if m.truth and m.answer), key=lambda m: -_score(m))),
        confusion=confusion,
    )


def confusion_of(names: Sequence[str], hits: Mapping[str, int], mistakes: Collection[Mistake]) -> Confusion:
    """Return the matrix of the classes that were judged, from the hits by class and every mistake."""
    classes = tuple(dict.fromkeys(names))
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
