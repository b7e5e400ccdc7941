"""Parts of a photo that the model is shown beside the whole, and how what it sees there becomes the photo's.

What a seam cuts is left to the window that sees it whole; an object that several windows see is kept once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.core.records import Candidate, Rle

SAME_IOU, SAME_COVER = 0.5, 0.8  # two views of one object: masks overlap, or the coarser one holds the finer one
MOST = 0.5  # or most of one mask lies in the other where their boxes overlap: a thin shape, a little beside itself
LIKE_SIZES = 0.25  # smaller over larger area, for the latter: a crowd in one mask is not its members


@dataclass(frozen=True, slots=True)
class Window:
    """A part of an image, in its pixels."""

    x: int
    y: int
    width: int
    height: int


def in_image(rle: Rle, window: Window, size_hw: tuple[int, int]) -> Rle | None:
    """Return a window's mask as one of the image; None if a seam cuts it: another window shows more."""
    if (window.height, window.width) == size_hw:
        return rle
    x, y, w, h = masks.box_xywh(rle)
    starts = (x <= 0 < window.x) or (y <= 0 < window.y)
    right, bottom = window.x + x + w, window.y + y + h
    stops = right >= window.x + window.width < size_hw[1] or bottom >= window.y + window.height < size_hw[0]
    if starts or stops:
        return None
    left, top, mask = masks.crop(rle)
    return masks.paste(left + window.x, top + window.y, mask, size_hw)


def once(*views: Sequence[Candidate]) -> list[Candidate]:
    """Join the candidates of views of a photo, and keep the best of those that show one object for one prompt.

    The same object again: masks that overlap by half, or of which the smaller, not much smaller, lies in the larger, or
    of which most does where the boxes overlap by half. What one view shows twice is left as it is.
    Only a candidate that stands takes the place of others, the best first, so the order of the views does not matter.
    Joining what is kept with everything again, or with itself, changes nothing.
    """
    found: dict[str, Candidate] = {}
    rivals: dict[str, set[str]] = defaultdict(set)  # those of other views that show the same object
    for view in views:
        new = [candidate for candidate in view if candidate.id not in found]
        for prompt in {candidate.prompt for candidate in new}:
            first, second = ([c for c in some if c.prompt == prompt] for some in (found.values(), new))
            for i, k in np.argwhere(_same(first, second)):
                rivals[first[i].id].add(second[k].id)
                rivals[second[k].id].add(first[i].id)
        found |= {candidate.id: candidate for candidate in new}
    lost: set[str] = set()
    for candidate in sorted(found.values(), key=lambda c: (-c.score, c.id)):
        if candidate.id not in lost:  # and so none of its rivals stands: a better one would have taken its place
            lost |= rivals[candidate.id]
    return [candidate for candidate in found.values() if candidate.id not in lost]


def _same(first: Sequence[Candidate], second: Sequence[Candidate]) -> npt.NDArray[np.bool_]:
    a, b = [c.rle for c in first], [c.rle for c in second]
    areas_a, areas_b = (np.array([max(c.area, 1) for c in some], float) for some in (first, second))
    ratio = np.minimum.outer(areas_a, areas_b) / np.maximum.outer(areas_a, areas_b)
    cover = np.maximum(masks.cover_matrix(a, b), masks.cover_matrix(b, a).T)
    same: npt.NDArray[np.bool_] = masks.iou_matrix(a, b) >= SAME_IOU
    same |= (cover >= SAME_COVER) & (ratio >= LIKE_SIZES)
    boxes = masks.box_iou_matrix([c.box_xywh for c in first], [c.box_xywh for c in second])
    same |= (cover >= MOST) & (boxes >= SAME_IOU)
    return same
