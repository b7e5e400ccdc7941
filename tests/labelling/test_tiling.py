"""Tiles cover every pixel, show each object once, and are asked only where they are wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from random import Random

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import candidate, rectangle

from sam3label.cli.tables import full_answers
from sam3label.concepts.concept_list import parse_concepts
from sam3label.core import masks
from sam3label.core.records import Candidate, Concept, ConceptList, Frame, MediaItem, Rle, Tiles
from sam3label.core.saturation import is_full
from sam3label.demo.shapes import make_scene
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.questions import Guide
from sam3label.labelling.tiling import AUTO_FACTOR, layout, pyramid
from sam3label.labelling.windows import once
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector
from sam3label.review.reasons import cases
from sam3label.review.survey import survey_run
from sam3label.run.decide import select_labels
from sam3label.run.reader import open_run

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


SCORES = st.sampled_from([0.3, 0.5, 0.6, 0.8, 0.9])  # few, so that some are equal


@st.composite
def views(draw: st.DrawFn) -> list[list[Candidate]]:
    """Return a few views of one photo: what each sees is a box, or two joined, with holes."""
    rng, number, made = np.random.default_rng(draw(st.integers(0, 1 << 32))), 0, []
    for _ in range(draw(st.integers(1, 4))):
        view = []
        for score in draw(st.lists(SCORES, max_size=5)):
            mask = np.zeros((60, 80), dtype=bool)
            for _ in range(rng.integers(1, 3)):
                x, y, w, h = rng.integers((0, 0, 3, 3), (30, 20, 30, 25))
                mask[y : y + h, x : x + w] = rng.random((h, w)) < rng.choice([0.7, 1.0])
            prompt = "ab"[rng.integers(2)]
            view.append(candidate(prompt, score, masks.encode(mask), query=number))
            number += 1
        made.append(view)
    return made


@settings(max_examples=300, deadline=None)
@given(views(), st.randoms(use_true_random=False))
def test_once_is_idempotent_and_heeds_no_order(made: list[list[Candidate]], chance: Random) -> None:
    kept = once(*made)
    everything = [one for view in made for one in view]
    assert once(kept, kept) == once(kept, everything) == once(kept, *made) == kept
    shuffled = [chance.sample(view, len(view)) for view in chance.sample(made, len(made))]
    assert {one.id for one in once(*shuffled)} == {one.id for one in kept}
    by_view = [[one for one in view if one in kept] for view in made]
    assert [one for view in by_view for one in view] == kept
    for first, second in combinations(by_view, 2):
        for prompt in "ab":
            mine, theirs = ([one.rle for one in view if one.prompt == prompt] for view in (first, second))
            assert (masks.iou_matrix(mine, theirs) < 0.5).all()


def test_what_has_lost_takes_the_place_of_nothing() -> None:
    """Two neighbors, and a coarse view that takes them for one: the better one stands in its way for both."""
    best, neighbor = (
        candidate("a", 0.9, rectangle(0, 0, 20, 20)),
        candidate("a", 0.6, rectangle(20, 0, 20, 20), query=1),
    )
    merged = candidate("a", 0.8, rectangle(0, 0, 40, 20), query=2)
    assert once([merged], [neighbor]) == [merged]
    assert once([best, neighbor], [merged]) == [best, neighbor]
    assert once([merged], [neighbor], [best]) == [neighbor, best]  # each in a tile of its own
    assert once(once([best, neighbor], [merged]), [best, neighbor]) == [best, neighbor]


def drawn(draw: Callable[[npt.NDArray[np.uint8]], object]) -> Rle:
    canvas = np.zeros((80, 100), np.uint8)
    draw(canvas)
    return masks.encode(canvas)


def ring(x: int, radius: int) -> Rle:
    return drawn(lambda canvas: cv2.circle(canvas, (x, 40), radius, 1, thickness=5))


def bar(start: tuple[int, int], stop: tuple[int, int]) -> Rle:
    return drawn(lambda canvas: cv2.line(canvas, start, stop, 1, thickness=5))


@pytest.mark.parametrize(
    ("one", "other", "objects"),
    [
        pytest.param(ring(45, 25), ring(49, 26), 1, id="a thin ring that a coarse view has a little beside itself"),
        pytest.param(ring(45, 25), ring(45, 14), 2, id="a ring within a ring"),
        pytest.param(ring(25, 20), ring(67, 20), 2, id="two rings that touch"),
        pytest.param(bar((20, 15), (70, 65)), bar((20, 65), (70, 15)), 2, id="bars that cross, of one box"),
        pytest.param(bar((20, 15), (70, 65)), bar((23, 15), (73, 65)), 1, id="a bar, and the same a little beside"),
    ],
)
def test_thin_shapes_are_one_object_by_their_boxes_too(one: Rle, other: Rle, objects: int) -> None:
    assert masks.iou_matrix([one], [other])[0, 0] < 0.5
    assert len(once([candidate("a", 0.9, one)], [candidate("a", 0.8, other, query=1)])) == objects


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


@settings(max_examples=100, deadline=None)
@given(sides, sides, st.integers(32, 400))
def test_every_size_of_tiles_covers_the_photo_and_the_largest_come_first(h: int, w: int, side: int) -> None:
    tiles = pyramid((h, w), side, 0.2)
    assert bool(tiles) == (max(h, w) > side)
    lengths = [max(tile.width, tile.height) for tile in tiles]
    assert lengths == sorted(lengths, reverse=True)
    assert set(lengths) <= {side * 2**n for n in range(6)}
    for one in set(lengths):
        seen = np.zeros((h, w), dtype=bool)
        for tile in (tile for tile, length in zip(tiles, lengths, strict=True) if length == one):
            seen[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] = True
        assert seen.all()


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
    """Objects from 2 % of the photo's side to almost half of it, one a tile's seam goes through among them."""
    right = {"whole": 0, "tiled": 0}
    labels = {"whole": 0, "tiled": 0}
    for seed in (21, 22):
        scene = make_scene(seed, (640, 640), 14, (0.02, 0.2))
        truth = [masks.encode(scene.mask(number)) for number in range(1, len(scene.things) + 1)]
        frame = Frame(MediaItem("large.png", "large.png"), 0, scene.image)
        for name, tile in (("whole", None), ("tiled", Tiles(160, 0.2))):
            labelled = select_labels(found(detector, tile, frame), ConceptList((Concept(0, "shape", ("shape",)),)))
            own = [label.rle for label in labelled]
            iou = masks.iou_matrix(own, truth)
            right[name] += int((iou >= 0.5).any(axis=0).sum())
            labels[name] += len(own)
            assert ((iou >= 0.5).sum(axis=0) <= 1).all()  # no object twice
    assert right["tiled"] > 1.5 * right["whole"]
    assert right["tiled"] / labels["tiled"] >= 0.8


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


def crowd(quarter: int = 20, radius: tuple[float, float] = (0.05, 0.06)) -> tuple[Frame, list[Rle]]:
    """A photo of some 70 shapes in four scenes: more than the demo checkpoint can answer to one phrase."""
    half = 250
    scenes = [make_scene(seed, (half, half), quarter, radius) for seed in (31, 32, 33, 34)]
    rows = [np.concatenate([scene.image for scene in scenes[i : i + 2]], axis=1) for i in (0, 2)]
    truth = [
        masks.paste(half * (i % 2), half * (i // 2), scene.mask(number), (2 * half, 2 * half))
        for i, scene in enumerate(scenes)
        for number in range(1, len(scene.things) + 1)
    ]
    return Frame(MediaItem("crowd.png", "crowd.png"), 0, np.concatenate(rows)), truth


def test_of_a_crowd_more_are_found_than_the_model_has_answers(detector: Detector) -> None:
    frame, truth = crowd()
    right = []
    for tile in (None, Tiles(auto=True)):
        rles = [c.rle for c in found(detector, tile, frame) if c.score >= 0.5]
        right.append(int((masks.iou_matrix(rles, truth) >= 0.5).any(axis=0).sum()) if rles else 0)
    assert len(truth) > 2 * detector.queries
    assert right[0] <= detector.queries < right[1]


def test_answers_without_a_pixel_take_up_room_too(detector: Detector) -> None:
    """Some 250 shapes that are too small for a mask: few candidates, and yet every query had something to answer."""
    frame, truth = crowd(75, (0.03, 0.035))
    concepts = ConceptList((Concept(0, "shape", ("shape",)),))
    (detection,) = Guide(detector, concepts).detect([frame], 0.1)
    assert len(truth) > 200 and not is_full(detection.candidates, "shape", detector.queries)
    assert detection.full == ("shape",)
    few = Frame(MediaItem("few.png", "few.png"), 0, make_scene(5, (200, 200), objects=3).image)
    assert Guide(detector, concepts).detect([few], 0.1)[0].full == ()


def quarter() -> Frame:
    """A quarter of the crowd, which `auto` tiles only for phrases that run out of room."""
    return Frame(MediaItem("crowd.png", "crowd.png"), 0, make_scene(31, (250, 250), 20, (0.05, 0.06)).image)


def test_where_even_the_closest_views_are_full_the_run_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "crowd.png"), quarter().pixels[..., ::-1])
    monkeypatch.setattr(Detector, "queries", property(lambda _: 2))  # as if no more could be answered
    list_ = parse_concepts("names: [shape]\ndefaults: {tile: 150}", "test")
    label([tmp_path / "crowd.png"], list_, tmp_path / "run", LabelOptions(model="demo", device="cpu", workers=0))
    with open_run(tmp_path / "run") as run:
        assert run.full() == [("crowd.png", 0, "shape")]
        (case,) = cases(run, survey_run(run, audit=0))
        assert [reason.words for reason in case.of("saturated")] == [
            "'shape' has nearly all the answers that the model can give (2), in the closest tiles too"
        ]
        (line,) = full_answers(run)
    assert "'shape' in crowd.png" in line and "smaller tiles" in line


def test_what_else_is_asked_changes_no_id(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two phrases run out of room in different tiles: each has the candidates that it has alone."""
    frame = quarter()
    monkeypatch.setattr(Detector, "queries", property(lambda _: 6))
    phrases = ("circle", "red shape")
    ids = []
    for asked in ((0, 1), (0,), (1,)):
        concepts = ConceptList(
            tuple(Concept(i, phrases[n], (phrases[n],), tile=Tiles(auto=True)) for i, n in enumerate(asked))
        )
        (detection,) = Guide(detector, concepts).detect([frame], 0.1)
        ids.append({c.id for c in detection.candidates})
    assert ids[1] and ids[2] and ids[0] == ids[1] | ids[2]


def test_a_photo_too_small_for_tiles_is_marked_as_full_too(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(5, (200, 200), objects=8)
    frame = Frame(MediaItem("full.png", "full.png"), 0, scene.image)
    monkeypatch.setattr(Detector, "queries", property(lambda _: 2))
    (detection,) = Guide(detector, ConceptList((Concept(0, "shape", ("shape",), tile=Tiles(400)),))).detect(
        [frame], 0.3
    )
    assert detection.full == ("shape",)


def test_tiles_are_part_of_what_a_run_remembers(detector: Detector, tmp_path: Path) -> None:
    plain, tiled = (
        Guide(detector, ConceptList((Concept(0, "a", ("a",), tile=tile),))).wanted.guides for tile in (None, Tiles(512))
    )
    assert plain == {} and tiled == {"tiles of\ta": repr(Tiles(512))}
