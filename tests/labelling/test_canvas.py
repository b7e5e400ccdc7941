"""Composites there and back: the layout the demo model was trained on, masks mapped back exactly, tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lessons import compose_canvas
from support.builders import candidate, rectangle

from sam3label.core import masks
from sam3label.demo.shapes import Scene, make_scene
from sam3label.labelling import canvas
from sam3label.labelling.windows import Window, in_image, once


def fractions(scene: Scene, number: int) -> np.ndarray:
    mask = scene.mask(number)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = scene.size_hw
    corners = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
    return np.array(corners, np.float32)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_layout_is_the_one_the_demo_model_learned(count: int) -> None:
    target = make_scene(100 + count, (120, 160))
    library = [make_scene(seed, (100, 130)) for seed in range(200, 215)]
    references = [(scene, 1) for scene in library if scene.things][:count]
    learned, _ = compose_canvas(target, references, share=0.3, margin=canvas.MARGIN)
    crops = [canvas.cut(scene.image, fractions(scene, number)) for scene, number in references]
    made = canvas.compose(target.image, crops, share=0.7)
    assert np.array_equal(made.pixels, learned.image)
    for number, thing in enumerate(learned.things, start=1):
        whole = learned.mask(number)
        part = whole[:, made.strip :]
        mapped = canvas.on_target(masks.encode(whole), made.strip)
        if part.sum() * 2 < whole.sum():
            assert mapped is None, thing
        else:
            assert mapped is not None
            assert np.array_equal(masks.decode(mapped), part)


def test_the_boxes_of_the_crops_lie_on_the_examples() -> None:
    scene = next(s for s in (make_scene(seed, (100, 130)) for seed in range(300, 320)) if len(s.things) > 1)
    learned, _ = compose_canvas(make_scene(1, (120, 160)), [(scene, 1)], share=0.3, margin=0.25)
    made = canvas.compose(make_scene(1, (120, 160)).image, [canvas.cut(scene.image, fractions(scene, 1))], 0.7)
    shown = np.flatnonzero((learned.index == 1).any(0))
    height, width = made.pixels.shape[:2]
    x1, _, x2, _ = made.boxes.boxes_xyxy[0] * np.array((width, height, width, height))
    assert abs(x1 - shown[0]) <= 2 and abs(x2 - shown[-1] - 1) <= 2
    assert made.boxes.positive == (True,)


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 40), (40, 1), (3, 5), (7, 300)])
def test_targets_of_any_size(size_hw: tuple[int, int]) -> None:
    image = np.zeros((*size_hw, 3), np.uint8)
    crops = [canvas.cut(image, np.array(box, np.float32)) for box in ((0, 0, 1, 1), (0.2, 0.2, 0.3, 0.3))] * 2
    made = canvas.compose(image, crops, share=0.3)
    assert made.pixels.shape == (size_hw[0], made.strip + size_hw[1], 3)
    assert np.array_equal(made.pixels[:, made.strip :], image)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_on_the_target_comes_back_pixel_for_pixel(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    strip = data.draw(st.integers(1, 8))
    bits = data.draw(st.lists(st.booleans(), min_size=height * (strip + width), max_size=height * (strip + width)))
    whole = np.array(bits).reshape(height, strip + width)
    part = whole[:, strip:]
    mapped = canvas.on_target(masks.encode(whole), strip)
    if not part.any() or 2 * part.sum() < whole.sum():
        assert mapped is None
    else:
        assert mapped == masks.encode(part)


@pytest.mark.parametrize("tiles", [1, 2, 3, 8])
@pytest.mark.parametrize("size_hw", [(100, 150), (7, 5), (1, 1)])
def test_tiles_cover_the_image_and_overlap(tiles: int, size_hw: tuple[int, int]) -> None:
    views = canvas.windows(size_hw, tiles)
    assert len(views) == (1 if tiles == 1 else 1 + tiles**2)
    assert views[0] == Window(0, 0, size_hw[1], size_hw[0])
    seen = np.zeros(size_hw, int)
    for view in views[1:]:
        assert view.x >= 0 and view.y >= 0 and view.x + view.width <= size_hw[1] and view.y + view.height <= size_hw[0]
        seen[view.y : view.y + view.height, view.x : view.x + view.width] += 1
    assert tiles == 1 or (seen.min() >= 1 and (size_hw != (100, 150) or seen.max() > 1))


def test_masks_of_tiles_go_where_they_were_and_cut_ones_are_dropped() -> None:
    view = Window(30, 20, 40, 30)
    inside = rectangle(5, 6, 7, 8, (30, 40))
    mapped = in_image(inside, view, (60, 80))
    assert mapped == rectangle(35, 26, 7, 8, (60, 80))
    for cut in (rectangle(0, 6, 7, 8, (30, 40)), rectangle(33, 6, 7, 8, (30, 40)), rectangle(5, 22, 7, 8, (30, 40))):
        assert in_image(cut, view, (60, 80)) is None
    corner = Window(40, 30, 40, 30)  # its right and lower edges are the image's own: no seam
    assert in_image(rectangle(33, 22, 7, 8, (30, 40)), corner, (60, 80)) == rectangle(73, 52, 7, 8, (60, 80))


def test_what_two_windows_show_is_there_once_with_the_better_score() -> None:
    whole = [
        candidate("a", 0.6, rectangle(10, 10, 20, 20), query=1),
        candidate("a", 0.9, rectangle(40, 10, 20, 20), query=2),
        candidate("b", 0.5, rectangle(10, 10, 20, 20), query=1),
    ]
    tile = [
        candidate("a", 0.8, rectangle(10, 12, 20, 24), query=11),  # IoU 0.69 with the first
        candidate("a", 0.7, rectangle(40, 10, 20, 10), query=12),  # 0.5 with the second
        candidate("a", 0.7, rectangle(40, 31, 20, 9), query=13),
        candidate("a", 0.6, rectangle(60, 45, 10, 10), query=14),
        candidate("a", 0.5, rectangle(60, 45, 10, 10), query=15),  # of one window: for `iou` to decide
    ]
    found = [(c.prompt, c.score, c.box_xywh[1]) for c in once(whole, tile)]
    assert found == [("a", 0.9, 10), ("b", 0.5, 10), ("a", 0.8, 12), ("a", 0.7, 31), ("a", 0.6, 45), ("a", 0.5, 45)]


def test_crops_are_taken_in_turns_from_the_images_and_a_negative_has_the_last_place() -> None:
    image = np.zeros((50, 50, 3), np.uint8)

    def crop(size: float, positive: bool = True) -> canvas.Crop:
        return canvas.cut(image, np.array((0, 0, size, size), np.float32), positive)

    first = canvas.largest([crop(0.2), crop(0.8), crop(0.5, False), crop(0.4)])
    assert [c.positive for c in first] == [True, True, True, False]
    assert [c.pixels.shape[0] for c in first[:3]] == sorted((c.pixels.shape[0] for c in first[:3]), reverse=True)
    second = canvas.largest([crop(0.6)])
    chosen = canvas.choose([first, second])
    assert [c.positive for c in chosen] == [True, True, True, False]
    assert chosen[0] is first[0] and chosen[1] is second[0] and chosen[2] is first[1]
    assert canvas.choose([second]) == second
    assert len(canvas.choose([first, first, first])) == canvas.MOST_CROPS
