"""Masks as polygons, in the two dialects trainers read, and as rotated rectangles.

Shape legend: H x W image, V ring vertices; rings are float64 [V, 2] in (x, y), not closed (the last vertex joins the
first). Two coordinate systems, never mixed:

    edges     a pixel covers [x, x + 1]: what pycocotools rasterises, and every box here
    centres   a pixel is the point x + 0.5: a border traced over pixel centres and floored back to pixels is what
              OpenCV fills, border included, which is how Ultralytics reads a segment row
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from sam3label.core import masks
from sam3label.core.masks import Mask
from sam3label.core.records import Rle

Ring = npt.NDArray[np.float64]
Points = npt.NDArray[np.int32]

_FARTHEST_PX = 1e6  # pycocotools walks every edge of a polygon: one from a broken file could take all memory


# ------------------------------------------------------------------------------------------- polygons, edges (COCO)


def polygons(rle: Rle, simplify_px: float = 0.0) -> list[Ring]:
    """Return one ring per connected part, in edge coordinates, holes cut out through a seam of zero width.

    Read back by pycocotools (`from_polygons`) without simplification it is the same mask. `simplify_px` moves the
    border by up to that many pixels; a part that this would flatten to a line keeps its full ring. Every ring has at
    least 4 vertices. An empty mask has no ring.
    """
    x, y, mask = masks.crop(rle)
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
        return masks.from_runs([size_hw[0] * size_hw[1]], size_hw)
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
    x, y, mask = masks.crop(rle)
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
    return masks.encode(canvas)


def contour_iou(rle: Rle, ring: Ring) -> float:
    """Return the IoU of a mask and its own `contour`, filled as by `from_contour`.

    Looks at the mask's box, which both stay in.
    """
    x, y, mask = masks.crop(rle)
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
