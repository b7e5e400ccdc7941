"""`where:` rules: which labels of a class stand, by where the labels of the other classes are. Pure geometry.

What a phrase cannot say ("a person without a helmet") is said by two phrases and a rule. A rule looks at the labels
that all other rules left standing, so the order of the classes changes nothing. Another label of the same object,
with the very same mask, is never "another".

S is the label that is asked, O any label of the class that the rule names; parts are thirds of a label's box.

| relation | holds where |
| --- | --- |
| `overlaps O[.part]` | at least a tenth of S lies in the box (or part) of some O |
| `inside O[.part]` | at least nine tenths of S lie in it |
| `with O [at part]` | some O overlaps S (or that part of S) |
| `left_of O`, `right_of O`, `above O`, `below O` | the center of S lies beyond that edge of an O that it faces |
| `beside O` | the gap between the boxes of S and some O is at most half the longer side of S |
| `nearest O` | S is the label of its class that is nearest to some O |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.core.records import Box, Condition, Label, Part

OVERLAPS = 0.1  # share of a mask that lies in a region which it overlaps
INSIDE = 0.9  # and in one that it is inside of
BESIDE = 0.5  # gap to a neighbor, in longer sides of the label

Boxes = npt.NDArray[np.float64]  # [N, 4], (left, top, right, bottom)
Pairs = npt.NDArray[np.bool_]  # [S, O]


def satisfied(condition: Condition, labels: Sequence[Label], others: Sequence[Label]) -> list[bool]:
    """Return for each of `labels`, all of one class in one image, whether it satisfies the condition.

    `others` are the standing labels of the class that the condition names.

    >>> from sam3label.core.masks import from_runs
    >>> def label(x):
    ...     rle = from_runs([10 * x, 100, 1000 - 10 * x - 100], (10, 100))
    ...     return Label(str(x), 0, 0.9, 0.9, (x, 0, 10, 10), 100, rle, "star")
    >>> satisfied(Condition("beside", "circle"), [label(0), label(60)], [label(12)])
    [True, False]
    """
    if not labels:
        return []
    same = np.array([[label.rle == other.rle for other in others] for label in labels], np.bool_)
    pairs = _pairs(condition, labels, others) & ~same.reshape(len(labels), len(others))
    if condition.relation == "nearest":
        pairs = _nearest(labels, others, ~same.reshape(len(labels), len(others)))
    return [any(row) is not condition.negated for row in pairs.tolist()]


def _pairs(condition: Condition, labels: Sequence[Label], others: Sequence[Label]) -> Pairs:
    match condition.relation:
        case "overlaps":
            return _shares(labels, others, condition.part) >= OVERLAPS
        case "inside":
            return _shares(labels, others, condition.part) >= INSIDE
        case "with":
            return (_shares(others, labels, condition.part) >= OVERLAPS).T
        case "beside":
            subject = _boxes(labels)
            longer = np.maximum(subject[:, 2] - subject[:, 0], subject[:, 3] - subject[:, 1])
            return _gaps(labels, others) <= BESIDE * longer[:, None]
        case "nearest":
            return np.ones((len(labels), len(others)), np.bool_)
        case side:
            return _beyond(side, _boxes(labels), _boxes(others))


def _boxes(labels: Sequence[Label]) -> Boxes:
    return np.array([label.box_xyxy for label in labels], np.float64).reshape(-1, 4)


def _shares(inner: Sequence[Label], outer: Sequence[Label], part: Part) -> npt.NDArray[np.float64]:
    """Return the share of each inner label's mask that lies in the region of each outer one, [inner, outer]."""
    regions = [masks.from_box(region(label.box_xyxy, part), label.rle.size_hw) for label in outer]
    return masks.cover_matrix([label.rle for label in inner], regions)


def region(box: Box, part: Part) -> Box:
    """Return a part of a box (left, top, right, bottom): the whole, or one of its outer thirds.

    >>> region((0, 0, 30, 90), "top")
    (0, 0, 30, 30.0)
    """
    left, top, right, bottom = box
    third_w, third_h = (right - left) / 3, (bottom - top) / 3
    parts: dict[Part, Box] = {
        "whole": box,
        "top": (left, top, right, top + third_h),
        "bottom": (left, bottom - third_h, right, bottom),
        "left": (left, top, left + third_w, bottom),
        "right": (right - third_w, top, right, bottom),
    }
    return parts[part]


def _beyond(side: str, subject: Boxes, other: Boxes) -> Pairs:
    """Say whose center lies beyond an edge of whom, where the two face each other across it."""
    axis = 0 if side in ("left_of", "right_of") else 1
    across = 1 - axis
    center = (subject[:, axis] + subject[:, axis + 2]) / 2
    before = side in ("left_of", "above")
    out = center[:, None] < other[None, :, axis] if before else center[:, None] > other[None, :, axis + 2]
    start = np.maximum(subject[:, None, across], other[None, :, across])
    stop = np.minimum(subject[:, None, across + 2], other[None, :, across + 2])
    facing: Pairs = start < stop
    return out & facing


def _gaps(labels: Sequence[Label], others: Sequence[Label]) -> npt.NDArray[np.float64]:
    """Return the distance in pixels between boxes, [S, O]; 0 where they touch or overlap."""
    one, other = _boxes(labels)[:, None], _boxes(others)[None]
    apart = np.maximum(np.maximum(one[..., :2] - other[..., 2:], other[..., :2] - one[..., 2:]), 0)
    gaps: npt.NDArray[np.float64] = np.hypot(apart[..., 0], apart[..., 1])
    return gaps


def _nearest(labels: Sequence[Label], others: Sequence[Label], possible: Pairs) -> Pairs:
    """Give each other label the nearest of these: by the gap between boxes, then between centers, then the score."""
    one, other = _boxes(labels), _boxes(others)
    centers = (one[:, None, :2] + one[:, None, 2:] - other[None, :, :2] - other[None, :, 2:]) / 2
    gaps, between = _gaps(labels, others), np.hypot(centers[..., 0], centers[..., 1])
    chosen = np.zeros((len(labels), len(others)), np.bool_)
    for column in range(len(others)):
        rows = np.flatnonzero(possible[:, column]).tolist()
        if rows:
            ranks = [(gaps[row, column], between[row, column], -labels[row].score, row) for row in rows]
            chosen[min(ranks)[-1], column] = True
    return chosen
