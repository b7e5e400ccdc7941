"""What a training is told: photos, their objects, and which of them answer a phrase."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sam3label.core import masks
from sam3label.core.records import MediaItem, Rle

Window = tuple[float, float, float, float]  # x1, y1, x2, y2 of a box or crop, in [0, 1]

LEAST_LEFT = 0.6  # of an object that a crop cuts; what shows less would be a question nobody can answer
_SIDED = ("left", "right")  # words that a mirrored photo would make false


@dataclass(frozen=True, slots=True)
class TruthObject:
    """An object as people left it: its box (x1, y1, x2, y2) in [0, 1], and its mask where it has one."""

    box_xyxy: tuple[float, float, float, float]
    rle: Rle | None


@dataclass(frozen=True, slots=True)
class PhraseAnswer:
    """A phrase asked of one photo, and the numbers of the objects that answer it.

    `unsure` are those that may answer it: nothing is learned of them. `denied`: the phrase is a `not:` phrase, and says
    nothing but that these objects are not what it names. `guided`: labelling shows exemplars with it. Without a phrase
    there are only exemplars.
    """

    phrase: str | None
    answer: tuple[int, ...] = ()
    denied: bool = False
    guided: bool = False
    unsure: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TaughtPhoto:
    """A photo, its objects, and what labelling asks of it."""

    item: MediaItem
    size_hw: tuple[int, int]
    objects: tuple[TruthObject, ...]
    questions: tuple[PhraseAnswer, ...]


def is_sided(phrase: str | None) -> bool:
    """Tell whether a mirrored photo would make a phrase false."""
    return phrase is not None and any(word in _SIDED for word in phrase.lower().split())


def around(part: masks.Mask) -> Window:
    """Return the box around a mask that is not empty, in fractions of its sides."""
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    height, width = part.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
