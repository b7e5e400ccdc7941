"""Masks as run-length code, and the two polygon dialects trainers read. The only mask codec of the project.

Shape legend: H x W image, h x w crop, N masks, V ring vertices; rings are float64 [V, 2] in (x, y), not closed (the
last vertex joins the first). Two coordinate systems, never mixed:

    edges     a pixel covers [x, x + 1]: what pycocotools rasterises, and every box here
    centres   a pixel is the point x + 0.5: a border traced over pixel centres and floored back to pixels is what
              OpenCV fills, border included, which is how Ultralytics reads a segment row

Run-length code is column-major and starts with background, as pycocotools defines it; pycocotools (its C code) does
the packing, the areas and the overlaps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from sam3label.core.records import Box, Rle

Mask = npt.NDArray[np.bool_]
Ring = npt.NDArray[np.float64]
Points = npt.NDArray[np.int32]

_FARTHEST_PX = 1e6  # pycocotools walks every edge of a polygon: one from a broken file could take all memory

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
    """Number of pixels inside."""
    return int(coco_mask.area(to_coco(rle)))


def box_xywh(rle: Rle) -> Box:
    """Tightest box in edge coordinates; (0, 0, 0, 0) for an empty mask."""
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
    """Intersection over union, [A, B]. Two empty masks have 0."""
    return _overlaps(a, b, crowd=False)


def cover_matrix(a: Sequence[Rle], b: Sequence[Rle]) -> npt.NDArray[np.float64]:
    """Return the share of each mask of `a` that lies inside each mask of `b`, [A, B]."""
    return _overlaps(a, b, crowd=True)


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


# ------------------------------------------------------------------------------------------- polygons, edges (COCO)


def polygons(rle: Rle, simplify_px: float = 0.0) -> list[Ring]:
    """Return one ring per connected part, in edge coordinates, holes cut out through a seam of zero width.

    Read back by pycocotools (`from_polygons`) without simplification it is the same mask. `simplify_px` moves the
    border by up to that many pixels; a part that this would flatten to a line keeps its full ring. Every ring has at
    least 4 vertices. An empty mask has no ring.
    """
    x, y, mask = crop(rle)
    rings = []
    for outer, holes in _borders(mask.repeat(2, axis=0).repeat(2, axis=1)):
        # in the doubled picture each pixel has its own left and right half, which round to its two edges
        parts = [_corners(_simplified((points + 1) // 2, simplify_px)) for points in (outer, *holes)]
        rings.append(_corners(_joined(parts)) + np.array([x, y], dtype=np.float64))
    return rings


def from_polygons(rings: Sequence[npt.ArrayLike], size_hw: tuple[int, int]) -> Rle:
    """Return the union of rings in edge coordinates, [V, 2] or x1 y1 x2 y2 ..., V >= 3, filled as by pycocotools."""
    flat = [np.asarray(ring, dtype=np.float64).reshape(-1) for ring in rings]
    if not flat:
        return from_runs([size_hw[0] * size_hw[1]], size_hw)
    if short := [len(ring) // 2 for ring in flat if len(ring) < 6]:
        raise ValueError(f"a polygon needs at least 3 points, got {short[0]}")
    if not all((np.abs(ring) <= _FARTHEST_PX).all() for ring in flat):  # so that NaN counts too
        raise ValueError("a polygon has a point that is no number, or beyond all pictures")
    packed = coco_mask.frPyObjects([ring.tolist() for ring in flat], *size_hw)
    return Rle(size_hw=size_hw, counts=coco_mask.merge(packed)["counts"])


# ----------------------------------------------------------------------------------------- polygons, centres (YOLO)


def contour(rle: Rle, simplify_px: float = 0.0) -> Ring:
    """Return one ring for the mask, in centre coordinates: holes and parts are joined at their nearest points.

    Filled by OpenCV (`from_contour`) without simplification, a mask in one part is the same mask. Parts are joined by
    bridges one pixel wide, which are no part of the mask: those far off are left out where that comes back better, by
    intersection over union, than a bridge to them. At least 3 vertices: a point or a line comes out as 4 corners
    inside its pixels. An empty mask has no vertices.
    """
    x, y, mask = crop(rle)
    rings = [[_simplified(points, simplify_px) for points in (outer, *holes)] for outer, holes in _borders(mask)]
    if not rings:
        return np.zeros((0, 2))
    ring = _best_joined([_joined(part) for part in rings], mask) if len(rings) > 1 else _joined(rings[0])
    ring = _corners(ring) + np.array([x + 0.5, y + 0.5])
    return ring if len(ring) > 2 else _thickened(ring)


def _best_joined(parts: Sequence[npt.NDArray[np.float64]], mask: Mask) -> npt.NDArray[np.float64]:
    """Return the walk over the largest part alone, over all, or over the ones nearby that seem worth their bridges."""
    sizes = [int(_filled(part, mask.shape).sum()) for part in parts]
    order = sorted(range(len(parts)), key=lambda k: -sizes[k])
    walks, won, wasted, best, best_value = [], 0, 0.0, 0, 0.0
    for number, (walk, part, seam) in enumerate(_walks([parts[k] for k in order])):
        won, wasted = won + sizes[order[part]], wasted + max(0.0, seam - 1)
        walks.append(walk)
        if (value := won / (int(mask.sum()) + wasted)) > best_value:
            best, best_value = number, value
    choices = [walks[k] for k in dict.fromkeys((len(walks) - 1, best, 0))]
    values = [_overlap(_filled(_corners(walk), mask.shape), mask) for walk in choices]
    return choices[int(np.argmax(values))]


def _filled(ring: npt.NDArray[Any], size_hw: tuple[int, ...]) -> Mask:
    canvas = np.zeros(size_hw, dtype=np.uint8)
    cv2.fillPoly(canvas, [ring.astype(np.int32)], 1)
    return canvas.astype(np.bool_)


def _overlap(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def from_contour(ring: npt.ArrayLike, size_hw: tuple[int, int]) -> Rle:
    """Fill a ring in centre coordinates as Ultralytics does: floor to pixels, OpenCV even-odd fill with its border."""
    points = np.asarray(ring, dtype=np.float64).reshape(-1, 2).astype(np.int32)
    canvas = np.zeros(size_hw, dtype=np.uint8)
    if len(points):
        cv2.fillPoly(canvas, [points], 1)
    return encode(canvas)


def contour_iou(rle: Rle, ring: Ring) -> float:
    """IoU of a mask and its own `contour`, filled as by `from_contour`. Looks at the mask's box, which both stay in."""
    x, y, mask = crop(rle)
    return _overlap(_filled(ring - np.array([x, y]), mask.shape), mask) if mask.size else 1.0


def _thickened(line: Ring) -> Ring:
    """Return 4 corners around a point or a straight line, a quarter pixel off, so that they floor to the same pixels.

    A diagonal line gets no width: Ultralytics puts points between the corners, and beside it those are in other pixels.
    """
    a, b = line[0], line[-1]
    along = b - a
    length = float(np.hypot(*along))
    unit = along / length if length else np.array([1.0, 0.0])
    side, end = 0.25 * np.array([-unit[1], unit[0]]), 0.25 * unit
    if along.all():
        return np.stack([a - end, b + end, b, a])
    return np.stack([a - end - side, b + end - side, b + end + side, a - end + side])


# -------------------------------------------------------------------------------------------------------------- rings


def _borders(mask: npt.NDArray[Any]) -> list[tuple[Points, list[Points]]]:
    """Return (outer border, hole borders) of each 8-connected part, int32 [V, 2], every border pixel a vertex."""
    if not mask.size:
        return []
    found, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    borders = [points.reshape(-1, 2) for points in found]
    parents = tree[0, :, 3] if len(borders) else []
    return [(borders[i], [borders[j] for j in np.flatnonzero(parents == i)]) for i, up in enumerate(parents) if up < 0]


def _simplified(points: Points, tolerance_px: float) -> Points:
    """Thin a closed ring by Douglas-Peucker; untouched where it would leave fewer than 3 vertices."""
    if tolerance_px <= 0:
        return points
    fewer: Points = cv2.approxPolyDP(points.reshape(-1, 1, 2), tolerance_px, True).reshape(-1, 2)
    return fewer if len(fewer) >= 3 else points


def _joined(rings: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """Return one closed walk over all rings."""
    if len(rings) == 1:
        return rings[0].astype(np.float64)
    *_, (walk, _, _) = _walks(rings)
    return walk


def _walks(rings: Sequence[npt.NDArray[Any]]) -> Iterator[tuple[npt.NDArray[np.float64], int, float]]:
    """Yield closed walks over more and more rings: (walk, ring it took in, length of the seam to it in pixels).

    Each ring is entered from its nearest joined neighbour and left by the same seam. A minimum spanning tree (Prim)
    from the first ring on, so seams are as short as they can be and none is longer than needed.
    """
    points = np.concatenate(rings).astype(np.float64)
    owner = np.repeat(np.arange(len(rings)), [len(r) for r in rings])
    new = walk = np.flatnonzero(owner == 0)
    yield points[walk], 0, 0.0
    if len(rings) == 1:
        return
    from scipy.spatial import KDTree  # slow to import, and most masks have one ring

    distance, anchor = np.full(len(points), np.inf), np.zeros(len(points), dtype=np.int64)
    for _ in range(len(rings) - 1):
        distance[new] = np.nan  # joined: out of the race
        waiting = np.flatnonzero(~np.isnan(distance))
        far, near = (np.asarray(v) for v in KDTree(points[new]).query(points[waiting]))
        closer = far < distance[waiting]
        distance[waiting[closer]], anchor[waiting[closer]] = far[closer], new[near[closer]]
        entry = waiting[int(np.argmin(distance[waiting]))]
        new = np.flatnonzero(owner == owner[entry])
        there_and_back = np.concatenate([np.roll(new, -int(entry - new[0])), [entry, anchor[entry]]])
        at = int(np.flatnonzero(walk == anchor[entry])[0])
        walk = np.insert(walk, at + 1, there_and_back)
        yield points[walk], int(owner[entry]), float(np.abs(points[entry] - points[anchor[entry]]).max())


def _corners(ring: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Leave out repeated vertices and those in the middle of a straight run; turning points of a line stay."""
    before = _steps(ring)
    moves = before.any(axis=1)
    if not moves.all():
        ring = ring[moves] if moves.any() else ring[:1]
        before = _steps(ring)
    if len(ring) < 3:
        return ring
    after = np.concatenate((before[1:], before[:1]))
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    onward = (before * after).sum(axis=1) > 0
    kept: npt.NDArray[Any] = ring[(turn != 0) | ~onward]
    return kept


def _steps(ring: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """From each vertex's predecessor to it, [V, 2]."""
    steps: npt.NDArray[Any] = ring - np.concatenate((ring[-1:], ring[:-1]))
    return steps


# ---------------------------------------------------------------------------------------------------- rotated rectangle


def oriented_box(rle: Rle) -> Ring:
    """Return corners [4, 2] of the smallest rectangle, at any angle, that holds every pixel and stays in the image.

    Edge coordinates. The smallest one has a side along the convex hull; those that would stick out of the image are
    passed over, and the upright box always remains. An empty mask has no corners.
    """
    rings = polygons(rle)
    if not rings:
        return np.zeros((0, 2))
    hull = cv2.convexHull(np.concatenate(rings).astype(np.float32)).reshape(-1, 2).astype(np.float64)
    sides = np.roll(hull, -1, axis=0) - hull
    angles = np.append(np.arctan2(sides[:, 1], sides[:, 0]), 0.0)
    axes = np.stack([np.stack([np.cos(angles), np.sin(angles)], 1), np.stack([-np.sin(angles), np.cos(angles)], 1)], 1)
    along = axes @ hull.T  # [angles, 2, hull]: positions on the rectangle's two axes
    low, high = along.min(axis=2), along.max(axis=2)
    spans = np.stack([low, np.stack([high[:, 0], low[:, 1]], 1), high, np.stack([low[:, 0], high[:, 1]], 1)], 1)
    corners = spans @ axes  # [angles, 4, 2]
    inside = ((corners > -1e-6) & (corners < np.array(rle.size_hw[::-1]) + 1e-6)).all(axis=(1, 2))
    size = np.where(inside, (high - low).prod(axis=1), np.inf)
    best: Ring = corners[int(size.argmin())]
    return best
