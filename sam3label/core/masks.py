"""Masks as run-length code. The only mask codec of the project; `outlines` turns masks into polygons and back.

Shape legend: H x W image, h x w crop, N masks. A pixel covers [x, x + 1], and so do boxes.

Run-length code is column-major and starts with background, as pycocotools defines it; pycocotools (its C code) does
the packing, the areas and the overlaps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from sam3label.core.records import Box, Rle

Mask = npt.NDArray[np.bool_]

# ---------------------------------------------------------------------------------------------------- run-length code


def encode(mask: npt.NDArray[Any]) -> Rle:
    """Pack a [H, W] mask; anything not zero is inside."""
    if mask.ndim != 2:
        raise ValueError(f"mask must be (H, W), got {mask.shape}")
    packed = coco_mask.encode(np.asfortranarray(mask != 0).view(np.uint8))
    return Rle(size_hw=(mask.shape[0], mask.shape[1]), counts=packed["counts"])


def decode(rle: Rle) -> Mask:
    """Return bool [H, W], column-major in memory."""
    height, width = rle.size_hw
    return _columns(to_runs(rle), width, height).T


def to_coco(rle: Rle) -> dict[str, Any]:
    """Return the dictionary pycocotools takes. Its counts are bytes; JSON wants them decoded to str."""
    return {"size": list(rle.size_hw), "counts": rle.counts}


def from_runs(runs: npt.ArrayLike, size_hw: tuple[int, int]) -> Rle:
    """Pack run lengths: column-major, background first (0 if the first pixel is inside). They must cover H x W."""
    lengths = np.asarray(runs, dtype=np.uint32)
    height, width = size_hw
    covered = int(lengths.sum(dtype=np.int64))
    if covered != height * width:
        raise ValueError(f"runs must cover {height} x {width} = {height * width} pixels, got {covered}")
    packed = coco_mask.frPyObjects({"size": [height, width], "counts": lengths}, height, width)
    return Rle(size_hw=(height, width), counts=packed["counts"])


def to_runs(rle: Rle) -> npt.NDArray[np.int64]:
    """Unpack to run lengths, the inverse of `from_runs`. Touches no pixel: cheap for small masks in big images.

    The code is base 32, least digit first, bit 5 = more digits follow, sign from bit 4 of the last one; from the
    fourth run on, each is stored as the difference to the run two before it (pycocotools, `rleFrString`).
    """
    digits = np.frombuffer(rle.counts, dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((digits & 0x20) == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    place = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((digits & 0x1F) << (5 * place), first)
    values -= np.where(digits[last] & 0x10, np.int64(1) << (5 * (last - first + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def row_runs(rle: Rle) -> npt.NDArray[np.int64]:
    """Run lengths of the whole image row by row, background first: what CVAT and Label Studio count.

    Looks at the mask's box alone. No run but the first and the last is 0.
    """
    height, width = rle.size_hw
    x, y, mask = crop(rle)
    rows, columns = np.nonzero(np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1))
    edges = (rows + y) * width + columns + x
    twice = np.zeros(len(edges), dtype=np.bool_)  # a run from a row's end on through the next row's start
    if len(edges) > 1:
        same = edges[1:] == edges[:-1]
        twice[1:] |= same
        twice[:-1] |= same
    return np.diff(np.concatenate(([0], edges[~twice], [height * width])))


def are_whole(rles: Sequence[Rle]) -> list[bool]:
    """Return whether each mask's code can be read and fills its image: damage elsewhere can end in a hang.

    All masks are read in one go, which costs a few microseconds each.
    """
    readable = [_is_code(rle.counts) for rle in rles]
    chosen = [rle for rle, good in zip(rles, readable, strict=True) if good]
    if not chosen:
        return readable
    sums = iter(_cover(chosen) == np.array([rle.size_hw[0] * rle.size_hw[1] for rle in chosen]))
    return [good and bool(next(sums)) for good in readable]


_CODE = re.compile(rb"(?:[P-o]{0,6}[0-O])+")  # at most seven digits a number, the last without the bit for "more"


def _is_code(counts: bytes) -> bool:
    return _CODE.fullmatch(counts) is not None


def _cover(rles: Sequence[Rle]) -> npt.NDArray[np.int64]:
    """Return how many pixels each mask's runs cover, [N]; -1 where a run is negative. As `to_runs`, for all at once."""
    digits = np.frombuffer(b"".join(rle.counts for rle in rles), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((digits & 0x20) == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    place = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((digits & 0x1F) << (5 * place), first)
    values -= np.where(digits[last] & 0x10, np.int64(1) << (5 * (last - first + 1)), 0)
    ends = np.cumsum([len(rle.counts) for rle in rles])
    owner = np.searchsorted(ends, last, side="right")  # the mask of each run
    starts = np.searchsorted(owner, np.arange(len(rles)))
    number = np.arange(len(values)) - starts[owner]
    chain = 3 * owner + np.where(number == 0, 0, 2 - number % 2)  # first run; 2nd, 4th, ...; 3rd, 5th, ...
    order = np.argsort(chain, kind="stable")
    sums = np.cumsum(values[order])
    heads = np.flatnonzero(np.diff(chain[order], prepend=-1))
    before = np.repeat(np.concatenate(([0], sums[heads[1:] - 1])), np.diff(heads, append=len(sums)))
    runs = sums - before
    covered = np.bincount(owner[order], weights=runs, minlength=len(rles)).astype(np.int64)
    covered[owner[order][runs < 0]] = -1
    return covered


def area(rle: Rle) -> int:
    """Return the number of pixels inside."""
    return int(coco_mask.area(to_coco(rle)))


def box_xywh(rle: Rle) -> Box:
    """Return the tightest box in edge coordinates; (0, 0, 0, 0) for an empty mask."""
    x, y, w, h = coco_mask.toBbox(to_coco(rle)).tolist()
    return (x, y, w, h)


def union(rles: Sequence[Rle]) -> Rle:
    """Return all masks together. They must be of one image."""
    _check_sizes(rles)
    merged = coco_mask.merge([to_coco(r) for r in rles])
    return Rle(size_hw=rles[0].size_hw, counts=merged["counts"])


def difference(a: Rle, b: Rle) -> Rle:
    """Return the pixels of `a` that are not in `b`. They must be of one image."""
    _check_sizes([a, b])
    runs = to_runs(b)
    outside = runs[1:] if runs[0] == 0 else np.concatenate(([0], runs))
    merged = coco_mask.merge([to_coco(a), to_coco(from_runs(outside, b.size_hw))], intersect=True)
    return Rle(size_hw=a.size_hw, counts=merged["counts"])


def from_box(box_xyxy: Box, size_hw: tuple[int, int]) -> Rle:
    """Return a box (left, top, right, bottom) as a mask: the pixels whose centers lie in it, cut at the image's edges.

    >>> area(from_box((1.0, 0.0, 3.0, 99.0), (4, 5)))
    8
    """
    height, width = size_hw
    left, right = (min(max(math.ceil(v - 0.5), 0), width) for v in (box_xyxy[0], box_xyxy[2]))
    top, bottom = (min(max(math.ceil(v - 0.5), 0), height) for v in (box_xyxy[1], box_xyxy[3]))
    if left >= right or top >= bottom:
        return from_runs([height * width], size_hw)
    tall, gap = bottom - top, height - (bottom - top)
    inside = [*[tall, gap] * (right - left - 1), tall] if gap else [height * (right - left)]
    runs = [left * height + top, *inside]
    after = height * width - sum(runs)
    return from_runs([*runs, after] if after else runs, size_hw)


def iou_matrix(a: Sequence[Rle], b: Sequence[Rle]) -> npt.NDArray[np.float64]:
    """Return intersection over union, [A, B]. Two empty masks have 0."""
    return _overlaps(a, b, crowd=False)


def cover_matrix(a: Sequence[Rle], b: Sequence[Rle]) -> npt.NDArray[np.float64]:
    """Return the share of each mask of `a` that lies inside each mask of `b`, [A, B]."""
    return _overlaps(a, b, crowd=True)


def box_iou_matrix(a: Sequence[Box], b: Sequence[Box]) -> npt.NDArray[np.float64]:
    """Return intersection over union of boxes (x, y, width, height), [A, B].

    >>> box_iou_matrix([(0.0, 0.0, 2.0, 2.0)], [(0.0, 0.0, 2.0, 1.0), (5.0, 0.0, 1.0, 1.0)])
    array([[0.5, 0. ]])
    """
    if not a or not b:
        return np.zeros((len(a), len(b)))
    values = coco_mask.iou(np.array(a, np.float64), np.array(b, np.float64), [0] * len(b))
    return np.asarray(values, dtype=np.float64).reshape(len(a), len(b))


def _overlaps(a: Sequence[Rle], b: Sequence[Rle], *, crowd: bool) -> npt.NDArray[np.float64]:
    if not a or not b:
        return np.zeros((len(a), len(b)))
    _check_sizes([*a, *b])  # pycocotools answers -1 for masks of different sizes
    values = coco_mask.iou([to_coco(r) for r in a], [to_coco(r) for r in b], [int(crowd)] * len(b))
    return np.asarray(values, dtype=np.float64).reshape(len(a), len(b))


def _check_sizes(rles: Sequence[Rle]) -> None:
    sizes = {r.size_hw for r in rles}
    if len(sizes) != 1:
        raise ValueError(f"masks of one image expected, got sizes {sorted(sizes)}")


# -------------------------------------------------------------------------------------------------------------- crops


def crop(rle: Rle) -> tuple[int, int, Mask]:
    """Return (x, y, bool [h, w]), the mask inside its box, decoding nothing else. An empty mask is [0, 0]."""
    x, y, w, h = (int(v) for v in box_xywh(rle))
    height = rle.size_hw[0]
    edges = np.cumsum(to_runs(rle)) - x * height
    lengths = np.diff(np.clip(edges, 0, w * height), prepend=np.int64(0)).astype(np.int64)
    return x, y, np.ascontiguousarray(_columns(lengths, w, height)[:, y : y + h].T)


def _columns(runs: npt.NDArray[np.int64], width: int, height: int) -> Mask:
    """Lay runs out in pixels, bool [W, H]."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height)


def paste(x: int, y: int, mask: npt.NDArray[Any], size_hw: tuple[int, int]) -> Rle:
    """Undo `crop`; what sticks out of the image is cut off."""
    full = np.zeros(size_hw, dtype=np.bool_)
    h, w = mask.shape
    top, left, bottom, right = max(y, 0), max(x, 0), min(y + h, size_hw[0]), min(x + w, size_hw[1])
    if top < bottom and left < right:
        full[top:bottom, left:right] = mask[top - y : bottom - y, left - x : right - x] != 0
    return encode(full)
