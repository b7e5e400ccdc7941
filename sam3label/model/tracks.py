"""The values of tracking: what is kept of an object, what is born in a frame, and what a frame came to.

Shape legend: K objects born, h x w mask logits, S x M a spatial memory, D a pointer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class Memory:
    """What is kept of an object in a frame: a pointer [D], a spatial memory [S, M], how well it was seen."""

    pointer: Tensor
    seen: float  # its score's logit as 0 (likely not there) to 1
    iou: float  # that its mask is expected to have
    conditioning: bool = False
    given: bool = False  # its mask came from a detection
    downgraded: bool = False  # it was a conditioning frame, and is none any more
    spatial: Tensor | None = None


def effective_iou(litter: Sequence[Memory]) -> float:
    """Return how well those born together were seen in a frame, 0 to 1: mean score times mean expected IoU.

    It is not the mean of the products, because Meta's code multiplies scores [B, 1] with IoUs [B]. Of frames that were
    conditioning ones once it holds both as [B, 1], and takes the mean of the products.
    """
    if any(one.downgraded for one in litter):
        return sum(one.seen * one.iou for one in litter) / len(litter)
    return sum(one.seen for one in litter) * sum(one.iou for one in litter) / len(litter) ** 2


@dataclass(slots=True)
class Followed:
    """An object that is tracked."""

    number: int
    phrase: int
    born: int
    litter: int  # the number of the first one born with it
    score: float  # of the detection it was born from
    first_mask: Tensor | None  # logits [h, w], while its first frame may be gone through again
    memories: dict[int, Memory] = field(default_factory=dict)
    last_hidden: int | None = None


@dataclass(frozen=True, slots=True)
class Tracks:
    """What a frame came to, by the objects' numbers: logits [h, w], the tracker's score, birth score and phrase."""

    masks: Mapping[int, Tensor]
    track_scores: Mapping[int, float]
    scores: Mapping[int, float]
    phrases: Mapping[int, int]
    hidden: frozenset[int]
    unconfirmed: frozenset[int]
    confirmed: frozenset[int]  # by a detection, or born from one

    def after(self, first: Tracks) -> Tracks:
        """Return this second pass over a frame, with the objects of the first one as they were found there."""
        return Tracks(
            {**self.masks, **{number: mask for number, mask in first.masks.items() if number in self.masks}},
            {**self.track_scores, **first.track_scores},
            self.scores,
            self.phrases,
            self.hidden,
            self.unconfirmed,
            self.confirmed | first.confirmed,
        )


@dataclass(frozen=True, slots=True)
class Beginning:
    """An object that is given in a frame, and followed from there: logits [h, w], and the place of its prompt.

    `score` is how sure its mask is, `name` what its giver knows it by.
    """

    mask: Tensor
    phrase: int
    score: float
    name: int


@dataclass(frozen=True, slots=True)
class Births:
    """Objects born in a frame: their detections' logits [K, h, w], and of each the number, phrase and score."""

    masks: Tensor
    numbers: Sequence[int]
    phrases: Sequence[int]
    scores: Sequence[float]

    def __len__(self) -> int:
        return len(self.numbers)

    def without(self, numbers: Collection[int]) -> Births:
        """Return those of them with none of these numbers."""
        rows = [row for row, number in enumerate(self.numbers) if number not in numbers]
        chosen = ([values[row] for row in rows] for values in (self.numbers, self.phrases, self.scores))
        return Births(self.masks[rows], *chosen)  # type: ignore[arg-type]
