"""Drawing: masks lie where they are, in their colors, at any scale; names can be read in any script."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.builders import rectangle

from sam3label.core import masks
from sam3label.core.colors import class_color
from sam3label.core.records import Label, Rle
from sam3label.show import draw
from sam3label.show.draw import FILL, class_name, draw_labels
from sam3label.show.lettering import Fonts

NAMES = ["cup", "coffee"]


def label(rle: Rle, class_id: int = 0, score: float = 0.9) -> Label:
    return Label(f"{class_id}", class_id, score, 0.9, masks.box_xywh(rle), masks.area(rle), rle, NAMES[class_id % 2])


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def close(pixel: np.ndarray, color: tuple[float, ...], tolerance: float = 12) -> bool:
    return bool(np.abs(np.asarray(pixel, dtype=float) - color).max() <= tolerance)


def tinted(class_id: int = 0) -> tuple[float, ...]:
    return tuple((1 - FILL) * 128 + FILL * np.array(class_color(class_id)))


@pytest.mark.parametrize("size_hw", [(60, 80), (300, 400), (1200, 1600)])
def test_mask_is_tinted_and_the_rest_is_left_alone(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    rle = rectangle(width // 4, height // 4, width // 2, height // 2, size_hw)
    drawn = draw_labels(grey(height, width), [label(rle)], NAMES, 400).astype(float)
    assert drawn.shape == (300, 400, 3)
    assert close(drawn[170, 250], tinted())
    assert close(drawn[20, 20], (128, 128, 128), 2)
    assert close(drawn[280, 380], (128, 128, 128), 2)
    outline = drawn[150, 97:104]  # across the left border, at x = 100
    assert any(close(pixel, class_color(0), 40) for pixel in outline)


@pytest.mark.parametrize("size_hw", [(60, 80), (301, 403), (1200, 1600)])
def test_coverage_is_the_mask_resized(size_hw: tuple[int, int]) -> None:
    """Only the part around the mask is resized: it is the same as if all of it were, to a rounding step."""
    from PIL import Image

    height, width = size_hw
    noise = np.random.default_rng(1).random((height // 8 + 1, width // 8 + 1)) > 0.5
    mask = np.kron(noise, np.ones((8, 8), bool))[:height, :width]
    mask[:, : width // 3] = mask[height * 3 // 4 :] = False
    whole = Image.fromarray(mask.astype(np.uint8) * 255)
    expected = np.asarray(whole.resize((400, 300), Image.Resampling.BILINEAR)).astype(float)
    steep = max(1.0, 400 / width)
    expected = np.clip((expected - 127.5) * steep + 127.5, 0, 255)
    cover, top, left = draw.coverage(masks.encode(mask), 300, 400)
    found = np.zeros((300, 400))
    found[top : top + cover.shape[0], left : left + cover.shape[1]] = cover
    assert np.abs(found - expected).mean() < 1.5
    assert (np.abs(found - expected) > 40).mean() < 0.01


def test_a_mask_anywhere_in_an_enlarged_picture_is_drawn() -> None:
    """A box's edge, there and back through the scale, may come out a hair before where it began."""
    for x in range(380):
        cover, _, _ = draw.coverage(rectangle(x, x, 4, 4, (384, 384)), 800, 800)
        assert cover.max() > 250


def test_a_mask_that_touches_the_border_has_no_outline_there() -> None:
    drawn = draw_labels(grey(400, 400), [label(rectangle(0, 0, 400, 400, (400, 400)))], NAMES)
    assert close(drawn[399, 399], tinted()) and close(drawn[200, 0], tinted())


def test_a_hole_stays_open_and_small_objects_lie_on_top() -> None:
    ring = np.zeros((400, 400), dtype=bool)
    ring[100:300, 100:300] = True
    ring[150:250, 150:250] = False
    inner = rectangle(170, 170, 60, 60, (400, 400))
    drawn = draw_labels(grey(400, 400), [label(inner, 1), label(masks.encode(ring))], NAMES, 400)
    assert close(drawn[240, 240], (128, 128, 128), 2)
    assert close(drawn[200, 220], tinted(1))


def test_a_persons_label_has_no_score() -> None:
    model = label(rectangle(100, 100, 200, 200, (400, 400)))
    drawn = [draw_labels(grey(400, 400), [one], NAMES, 400) for one in (model, replace(model, source="human"))]
    with_score, without = ((np.abs(d.astype(int) - class_color(0)).max(axis=2) < 3)[:98].sum() for d in drawn)  # chips
    assert 0 < without < 0.8 * with_score


def test_name_chips_do_not_cover_each_other() -> None:
    rle = rectangle(100, 100, 200, 200, (400, 400))
    drawn = draw_labels(grey(400, 400), [label(rle, 0), label(rle, 1, 0.5)], NAMES, 400)
    chips = [(np.abs(drawn.astype(int) - class_color(c)).max(axis=2) < 3).sum() for c in (0, 1)]
    assert min(chips) > 500


def test_of_a_crowd_the_largest_of_each_class_are_named_and_the_picture_is_seen() -> None:
    many = [label(rectangle(20 * i, 20 * k, 9, 9, (400, 400)), 0) for i in range(20) for k in range(20)]
    large, small = label(rectangle(3, 3, 60, 60, (400, 400)), 0), label(rectangle(300, 300, 8, 8, (400, 400)), 1)
    drawn = draw_labels(grey(400, 400), [*many, large, small], NAMES, 400).astype(int)
    bare = draw_labels(grey(400, 400), [*many, large, small], ["", ""], 400).astype(int)
    changed = np.abs(drawn - bare).max(axis=2) > 3
    assert 0.02 < changed.mean() < draw.MOST_NAMES + 0.01
    chips = [(np.abs(drawn - class_color(c)).max(axis=2) < 3).sum() for c in (0, 1)]
    assert chips[1] > 300, "a class of small objects is named too"


def test_class_colors_are_far_apart() -> None:
    colors = np.array([class_color(i) for i in range(12)], dtype=float)
    distance = np.linalg.norm(colors[:, None] - colors[None], axis=2) + 1e3 * np.eye(12)
    assert distance.min() > 40
    assert class_color(3) == class_color(3)


def test_a_track_keeps_its_color_whatever_its_class() -> None:
    rle = rectangle(100, 100, 200, 200, (400, 400))
    one, other = replace(label(rle, 0), track_id=5), replace(label(rle, 1), track_id=5)
    for tracked in (one, other):
        drawn = draw_labels(grey(400, 400), [tracked], NAMES, tracks=True)
        assert close(drawn[250, 250], tinted(5))
    assert close(draw_labels(grey(400, 400), [one], NAMES)[250, 250], tinted(0)), "without tracks: the class's"


def test_a_box_without_a_mask_is_drawn_as_its_outline() -> None:
    frame = masks.decode(draw.outline((10, 20, 30, 40), (400, 400)))
    assert frame[20:60, 10:40].any() and not frame[24:56, 14:36].any()
    assert frame.sum() == 30 * 40 - 26 * 36
    edge = masks.decode(draw.outline((399.6, 399.6, 5, 5), (400, 400)))
    assert edge[399, 399] and edge.sum() == 1


def test_a_class_without_a_name_or_a_font_for_it_goes_by_its_number() -> None:
    unwritten = "\U0001e6c0"  # a letter of Tai Yo, which came with Unicode 17
    assert class_name(7, NAMES, Fonts()) == "class 7"
    assert class_name(1, NAMES, Fonts()) == "coffee"
    assert class_name(1, ["Größe", unwritten], Fonts()) == "class 1"
    drawn = draw_labels(grey(80, 80), [label(rectangle(5, 5, 40, 40, (80, 80)), 7)], NAMES, 200)
    assert drawn.shape == (200, 200, 3)


def test_an_empty_mask_and_a_picture_smaller_than_its_name() -> None:
    empty = masks.encode(np.zeros((40, 40), bool))
    drawn = draw_labels(grey(40, 40), [label(empty)], ["a name that is far longer than forty pixels"])
    assert drawn.shape == (40, 40, 3)
