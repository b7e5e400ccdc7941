from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.hardshapes import KINDS, ONE_PART, shape

from sam3label.core import masks, outlines

Array = npt.NDArray[np.bool_]

SMALL = hnp.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def iou(a: masks.Rle, b: masks.Rle) -> float:
    return float(masks.iou_matrix([a], [b])[0, 0])


@given(SMALL)
def test_run_length_code_keeps_every_pixel(mask: Array) -> None:
    rle = masks.encode(mask)
    assert np.array_equal(masks.decode(rle), mask)
    assert masks.from_runs(masks.to_runs(rle), rle.size_hw) == rle
    assert masks.area(rle) == mask.sum()


@settings(deadline=None)
@given(hnp.arrays(np.bool_, st.tuples(*[st.integers(1, 300)] * 2), elements=st.booleans(), fill=st.booleans()))
def test_runs_match_the_pixels(mask: Array) -> None:
    flat = mask.T.reshape(-1)
    turns = np.flatnonzero(np.diff(flat)) + 1
    expected = np.diff(np.concatenate([[0], turns, [flat.size]]))
    if flat[0]:
        expected = np.concatenate([[0], expected])
    assert np.array_equal(masks.to_runs(masks.encode(mask)), expected)


def test_runs_of_a_big_image_are_unpacked_without_its_pixels() -> None:
    runs = [400_000_000 - 3 - 7_000_000, 3, 7_000_000]
    rle = masks.from_runs(runs, (20_000, 20_000))
    assert masks.to_runs(rle).tolist() == runs
    assert masks.area(rle) == 3


def test_runs_must_cover_the_image() -> None:
    with pytest.raises(ValueError, match=r"runs must cover 2 x 3 = 6 pixels, got 5"):
        masks.from_runs([2, 3], (2, 3))


@given(SMALL)
def test_crop_and_box_are_the_mask_inside_its_box(mask: Array) -> None:
    rle = masks.encode(mask)
    x, y, inner = masks.crop(rle)
    assert masks.box_xywh(rle) == (x, y, inner.shape[1], inner.shape[0])
    if mask.any():
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert (x, y) == (columns[0], rows[0])
        assert np.array_equal(inner, mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    assert masks.paste(x, y, inner, rle.size_hw) == rle


def test_paste_cuts_what_sticks_out() -> None:
    rle = masks.paste(-2, 3, np.ones((4, 5), np.bool_), (5, 6))
    assert masks.box_xywh(rle) == (0, 3, 3, 2)
    assert masks.area(masks.paste(9, 9, np.ones((2, 2), np.bool_), (5, 6))) == 0


@given(st.integers(1, 9).flatmap(lambda n: hnp.arrays(np.bool_, (4, n, 7))))
def test_overlaps_match_the_pixels(stack: Array) -> None:
    rles = [masks.encode(m) for m in stack]
    flat = stack.reshape(4, -1).astype(float)
    common = flat @ flat.T
    total = flat.sum(1)[:, None] + flat.sum(1)[None] - common
    assert np.allclose(masks.iou_matrix(rles, rles), np.divide(common, total, out=np.zeros((4, 4)), where=common > 0))
    cover = np.divide(common, flat.sum(1)[:, None], out=np.zeros((4, 4)), where=common > 0)
    assert np.allclose(masks.cover_matrix(rles, rles), cover)
    assert np.array_equal(masks.decode(masks.union(rles)), stack.any(axis=0))


def test_overlaps_of_nothing_and_of_different_images() -> None:
    one = masks.encode(np.ones((3, 4), np.bool_))
    assert masks.iou_matrix([], [one]).shape == (0, 1)
    assert masks.cover_matrix([one, one], []).shape == (2, 0)
    with pytest.raises(ValueError, match="masks of one image expected"):
        masks.iou_matrix([one], [masks.encode(np.ones((4, 3), np.bool_))])


@settings(deadline=None, max_examples=300)
@given(SMALL)
@example(np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], np.bool_))
def test_coco_polygons_are_exact(mask: Array) -> None:
    rle = masks.encode(mask)
    rings = outlines.polygons(rle)
    assert all(len(ring) >= 4 for ring in rings)
    assert outlines.from_polygons(rings, rle.size_hw) == rle


@pytest.mark.parametrize("kind", KINDS)
def test_coco_polygons_of_hard_shapes(kind: str) -> None:
    rle = masks.encode(shape(kind))
    rings = outlines.polygons(rle)
    assert outlines.from_polygons(rings, rle.size_hw) == rle
    parts = cv2.connectedComponents(shape(kind).astype(np.uint8))[0] - 1
    assert len(rings) == parts


@pytest.mark.parametrize("kind", ONE_PART)
def test_contours_of_one_part_are_exact(kind: str) -> None:
    rle = masks.encode(shape(kind))
    assert outlines.from_contour(outlines.contour(rle), rle.size_hw) == rle


@settings(deadline=None, max_examples=300)
@given(SMALL)
def test_contours_are_valid_rows_and_never_worse_than_the_largest_part(mask: Array) -> None:
    rle = masks.encode(mask)
    ring = outlines.contour(rle)
    if not mask.any():
        assert ring.shape == (0, 2)
        return
    assert len(ring) >= 3 and np.ptp(ring, axis=0).min() > 0
    assert ring.min() > 0 and (ring < np.array(mask.shape[::-1])).all()
    back = outlines.from_contour(ring, rle.size_hw)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    largest = int(stats[1:, cv2.CC_STAT_AREA].max())
    assert iou(rle, back) >= largest / mask.sum() - 1e-9
    if len(stats) == 2:
        assert back == rle


@settings(deadline=None, max_examples=200)
@given(SMALL.filter(np.any), st.sampled_from([0.0, 1.0, 2.0]), st.integers(0, 5), st.integers(0, 5))
def test_iou_of_a_contour_is_that_of_the_whole_image(mask: Array, tolerance: float, x: int, y: int) -> None:
    rle = masks.paste(x, y, mask, (20, 22))
    ring = outlines.contour(rle, tolerance)
    assert outlines.contour_iou(rle, ring) == pytest.approx(iou(rle, outlines.from_contour(ring, rle.size_hw)))


@pytest.mark.parametrize("kind", KINDS)
def test_iou_of_the_contours_of_hard_shapes(kind: str) -> None:
    rle = masks.encode(shape(kind))
    ring = outlines.contour(rle)
    assert outlines.contour_iou(rle, ring) == pytest.approx(iou(rle, outlines.from_contour(ring, rle.size_hw)))


@given(SMALL)
def test_row_runs_count_the_pixels_row_by_row(mask: Array) -> None:
    """The definition: a row after the other, background first, no run of 0 pixels but at the ends."""
    flat = mask.reshape(-1)
    runs = masks.row_runs(masks.encode(mask))
    assert np.array_equal(np.repeat(np.arange(len(runs)) % 2 == 1, runs), flat)
    assert (runs[1:-1] > 0).all() and runs.sum() == flat.size


@pytest.mark.parametrize("kind", KINDS)
def test_row_runs_of_hard_shapes(kind: str) -> None:
    runs = masks.row_runs(masks.encode(shape(kind)))
    assert np.array_equal(np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(shape(kind).shape), shape(kind))


def test_far_parts_are_left_out_where_a_bridge_costs_more_than_they_are_worth() -> None:
    """Two far pixels joined by a bridge come back at IoU 0.02, one of them alone at 0.5."""
    far = np.zeros((60, 120), np.bool_)
    far[5, 5] = far[50, 110] = True
    rle = masks.encode(far)
    assert iou(rle, outlines.from_contour(outlines.contour(rle), (60, 120))) == 0.5
    mixed = np.zeros((200, 400), np.uint8)
    cv2.circle(mixed, (30, 30), 14, 1, -1)
    cv2.circle(mixed, (64, 30), 14, 1, -1)  # worth its bridge
    mixed[190, 390] = 1  # is not
    back = masks.decode(outlines.from_contour(outlines.contour(masks.encode(mixed)), mixed.shape))
    assert back[30, 64] and not back[190, 390]
    assert iou(masks.encode(mixed), masks.encode(back)) > 0.99


@pytest.mark.parametrize("kind", ["two parts", "island in a hole"])
def test_contours_join_parts_by_a_thin_bridge(kind: str) -> None:
    rle = masks.encode(shape(kind))
    back = outlines.from_contour(outlines.contour(rle), rle.size_hw)
    assert masks.cover_matrix([rle], [back])[0, 0] == 1.0
    assert iou(rle, back) > 0.97


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerance", [1.0, 3.0])
def test_simplified_rings_stay_valid_and_close(kind: str, tolerance: float) -> None:
    mask = shape(kind)
    rle = masks.encode(mask)
    rings, ring = outlines.polygons(rle, tolerance), outlines.contour(rle, tolerance)
    assert all(len(r) >= 3 for r in rings) and len(ring) >= 3
    assert sum(map(len, rings)) <= sum(map(len, outlines.polygons(rle)))
    assert len(ring) <= max(4, len(outlines.contour(rle)))
    border = mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0).astype(np.bool_)
    for back in (outlines.from_polygons(rings, rle.size_hw), outlines.from_contour(ring, rle.size_hw)):
        assert (masks.decode(back) ^ mask).sum() <= tolerance * border.sum() + 60  # the bridges between parts


def test_empty_mask_and_short_polygon() -> None:
    empty = masks.encode(np.zeros((4, 5), np.bool_))
    assert outlines.polygons(empty) == []
    assert outlines.from_polygons([], (4, 5)) == empty
    assert outlines.from_contour(outlines.contour(empty), (4, 5)) == empty
    with pytest.raises(ValueError, match="at least 3 points, got 2"):
        outlines.from_polygons([[0, 0, 1, 1]], (4, 5))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_a_polygon_from_a_broken_file_is_refused_before_it_takes_all_memory(value: float) -> None:
    with pytest.raises(ValueError, match="no number, or beyond all pictures"):
        outlines.from_polygons([[0, 0, 3, 0, 3, 3], [value, 1, 4, 1, 4, 4]], (4, 5))


def test_encode_wants_two_dimensions() -> None:
    with pytest.raises(ValueError, match=r"mask must be \(H, W\), got \(2, 2, 1\)"):
        masks.encode(np.ones((2, 2, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_oriented_box_holds_every_pixel_and_stays_in_the_image(kind: str) -> None:
    check_oriented_box(shape(kind))


@settings(deadline=None)
@given(SMALL.filter(np.any))
def test_oriented_box_of_any_mask(mask: Array) -> None:
    check_oriented_box(mask)


def check_oriented_box(mask: Array) -> None:
    rle = masks.encode(mask)
    box = outlines.oriented_box(rle)
    assert box.min() > -1e-5 and (box < np.array(mask.shape[::-1]) + 1e-5).all()
    sides = np.roll(box, -1, axis=0) - box
    assert np.allclose((sides * np.roll(sides, -1, axis=0)).sum(axis=1), 0, atol=1e-6)  # right angles
    corners = np.argwhere(mask)[:, None, ::-1] + np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    offset = corners.reshape(-1, 1, 2) - box[None]
    turn = sides[None, :, 0] * offset[..., 1] - sides[None, :, 1] * offset[..., 0]
    assert (turn > -1e-4).all() or (turn < 1e-4).all()  # all on one side of every side
    _, _, w, h = masks.box_xywh(rle)
    assert abs(np.cross(np.append(sides[0], 0), np.append(sides[1], 0))[2]) <= w * h + 1e-4


def test_oriented_box_of_a_diagonal_line_is_narrow() -> None:
    box = outlines.oriented_box(masks.encode(shape("diagonal line")))
    lengths = np.hypot(*(np.roll(box, -1, axis=0) - box).T)
    assert lengths.min() < 1.5 and lengths.max() > 40
    assert outlines.oriented_box(masks.encode(np.zeros((3, 3), np.bool_))).shape == (0, 2)
