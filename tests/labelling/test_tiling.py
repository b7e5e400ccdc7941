"""Tiles cover every pixel, show each object once, and are asked only where they are wanted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import candidate, rectangle

from sam3label.core import masks
from sam3label.core.records import Candidate, Concept, ConceptList, Frame, MediaItem, Tiles
from sam3label.demo.shapes import make_scene
from sam3label.labelling.questions import Guide
from sam3label.labelling.tiling import AUTO_FACTOR, layout
from sam3label.labelling.windows import once
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector
from sam3label.run.saturation import is_full

sides = st.integers(1, 900)


@settings(max_examples=200, deadline=None)
@given(sides, sides, st.integers(32, 400), st.floats(0, 0.5))
def test_any_layout_covers_every_pixel_with_equal_tiles_in_the_image(h: int, w: int, side: int, overlap: float) -> None:
    tiles = layout((h, w), side, overlap)
    if max(h, w) <= side:
        assert tiles == []
        return
    seen = np.zeros((h, w), dtype=bool)
    for tile in tiles:
        assert (tile.height, tile.width) == (min(h, side), min(w, side))
        assert tile.x >= 0 and tile.y >= 0 and tile.x + tile.width <= w and tile.y + tile.height <= h
        seen[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] = True
    assert seen.all()
    for starts in ({tile.x for tile in tiles}, {tile.y for tile in tiles}):
        steps = np.diff(sorted(starts))
        assert (steps <= max(1, side * (1 - overlap)) + 1).all()  # to a pixel of rounding


boxes = st.tuples(st.integers(0, 50), st.integers(0, 40), st.integers(3, 25), st.integers(3, 20))


@settings(max_examples=100, deadline=None)
@given(st.lists(boxes, max_size=5), st.lists(boxes, max_size=5))
def test_once_is_idempotent_and_leaves_no_object_twice(
    one: list[tuple[int, int, int, int]], other: list[tuple[int, int, int, int]]
) -> None:
    first = [candidate("a", 0.9 - i / 100, rectangle(*box), query=i) for i, box in enumerate(one)]
    second = [candidate("a", 0.8 - i / 100, rectangle(*box), query=50 + i) for i, box in enumerate(other)]
    kept = once(first, second)
    assert once(kept, kept) == kept
    ids = {c.id for c in first}
    mine, theirs = [c.rle for c in kept if c.id in ids], [c.rle for c in kept if c.id not in ids]
    assert (masks.iou_matrix(mine, theirs) < 0.5).all()


def test_once_keeps_the_better_of_two_views_and_not_a_crowd_for_its_members() -> None:
    coarse, fine = (
        candidate("a", 0.6, rectangle(10, 10, 14, 14)),
        candidate("a", 0.9, rectangle(12, 12, 9, 10), query=1),
    )
    assert [c.id for c in once([coarse], [fine])] == [fine.id]
    crowd, member = candidate("a", 0.9, rectangle(0, 0, 60, 40)), candidate("a", 0.6, rectangle(5, 5, 8, 8), query=1)
    assert len(once([crowd], [member])) == 2
    other = candidate("b", 0.9, rectangle(12, 12, 9, 10), query=2)
    assert len(once([coarse], [other])) == 2  # another phrase is another question


def test_full_is_never_all() -> None:
    many = [candidate("a", 0.5, rectangle(1, 1, 2, 2), query=i) for i in range(24)]
    assert is_full(many, "a", 25) and not is_full(many[:23], "a", 25) and not is_full(many, "b", 25)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.load(resolve("demo"), device="cpu")


def large_photo() -> Frame:
    """Four scenes side by side: what is small on the whole is of a usual size in a tile."""
    quarters = [make_scene(seed, (384, 384), objects=4).image for seed in (3, 4, 5, 6)]
    pixels = np.concatenate([np.concatenate(quarters[:2], axis=1), np.concatenate(quarters[2:], axis=1)])
    return Frame(MediaItem("large.png", "large.png"), 0, pixels)


def seen(candidates: tuple[Candidate, ...]) -> list[tuple[float, int, bytes]]:
    """What was found, whatever it is called: with tiles a prompt is another one, and its candidates have other ids."""
    return sorted((c.score, c.area, c.rle.counts) for c in candidates)


def found(detector: Detector, tile: Tiles | None, frame: Frame) -> tuple[Candidate, ...]:
    concepts = ConceptList((Concept(0, "shape", ("shape",), tile=tile),))
    detector.encode_phrases(concepts.phrases)
    (detection,) = Guide(detector, concepts).detect([frame], 0.3)
    assert all(c.rle.size_hw == frame.size_hw and c.area == masks.area(c.rle) for c in detection.candidates)
    assert len({c.id for c in detection.candidates}) == len(detection.candidates)
    assert detection.presence.shape == (1,) and not np.isnan(detection.presence).any()
    return detection.candidates


def test_tiles_find_what_the_whole_view_misses_and_nothing_twice(detector: Detector) -> None:
    frame = large_photo()
    whole, tiled = found(detector, None, frame), found(detector, Tiles(384, 0.2), frame)
    assert len(tiled) > len(whole)
    overlap = masks.iou_matrix([c.rle for c in tiled], [c.rle for c in tiled])
    assert (overlap[~np.eye(len(tiled), dtype=bool)] < 0.7).all()


def test_auto_tiles_what_is_much_larger_than_the_models_input(detector: Detector) -> None:
    frame = large_photo()
    assert frame.size_hw[0] >= AUTO_FACTOR * detector.image_size
    side = detector.image_size
    small = replace(frame, pixels=np.ascontiguousarray(frame.pixels[: side + 20, : side + 20]))
    assert seen(found(detector, Tiles(auto=True), small)) == seen(found(detector, None, small))
    assert len(found(detector, Tiles(auto=True), frame)) > len(found(detector, None, frame))


def test_auto_tiles_a_small_photo_whose_answers_ran_out_of_room(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene(5, (200, 200), objects=8)
    frame = Frame(MediaItem("full.png", "full.png"), 0, scene.image)
    plain = found(detector, None, frame)
    assert seen(found(detector, Tiles(auto=True), frame)) == seen(plain)
    monkeypatch.setattr(type(detector), "queries", property(lambda _: len(plain)))  # as if no more could be answered
    assert {c.id for c in found(detector, Tiles(auto=True), frame)} != {c.id for c in plain}


def test_tiles_are_part_of_what_a_run_remembers(detector: Detector, tmp_path: Path) -> None:
    plain, tiled = (
        Guide(detector, ConceptList((Concept(0, "a", ("a",), tile=tile),))).wanted.guides for tile in (None, Tiles(512))
    )
    assert plain == {} and tiled == {"tiles of\ta": repr(Tiles(512))}
