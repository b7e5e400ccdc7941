"""Synthetic scenes: the same from the same seed, and their truth is the truth."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import lessons
import numpy as np
import pytest
from exam import EXAM_SEEDS
from lessons import TRAINING_SEEDS
from pycocotools.coco import COCO

from sam3label.demo.shapes import (
    COLORS,
    MAX_OBJECTS,
    SHAPES,
    Placed,
    Scene,
    Thing,
    make_clip,
    make_scene,
    matches,
    without_slivers,
    write_scenes,
)
from sam3label.demo.shapes import alpha_of as alpha_of

SIZE = (120, 160)


def hue(rgb: np.ndarray) -> str:
    """The name of the nearest pure color, by direction and not by brightness."""
    unit = rgb / np.linalg.norm(rgb)
    return min(COLORS, key=lambda name: float(np.linalg.norm(unit - COLORS[name] / np.linalg.norm(COLORS[name]))))


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, again, other = make_scene(7, SIZE), make_scene(7, SIZE), make_scene(8, SIZE)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.index.tobytes() == again.index.tobytes()
    assert first.things == again.things
    assert first.image.tobytes() != other.image.tobytes()


def test_index_map_and_things_agree_and_every_kind_and_count_appears() -> None:
    scenes = [make_scene(seed, SIZE) for seed in range(150)]
    for scene in scenes:
        assert scene.image.shape == (*SIZE, 3)
        assert sorted(set(np.unique(scene.index)) - {0}) == list(range(1, len(scene.things) + 1))
    counts = {len(scene.things) for scene in scenes}
    assert counts == set(range(MAX_OBJECTS + 1))
    kinds = {(thing.color, thing.shape) for scene in scenes for thing in scene.things}
    assert len(kinds) == len(COLORS) * len(SHAPES)


def test_the_paint_under_each_mask_is_the_colour_it_is_said_to_be() -> None:
    named = [
        (hue(np.median(scene.image[scene.mask(k)], axis=0)), thing.color)
        for scene in (make_scene(seed, SIZE) for seed in range(60))
        for k, thing in enumerate(scene.things, start=1)
        if scene.mask(k).sum() > 150
    ]
    assert len(named) > 100
    assert sum(seen == said for seen, said in named) >= 0.95 * len(named)


def test_no_object_is_hidden_by_more_than_35_percent() -> None:
    from sam3label.demo import shapes

    for seed in range(20):
        rng = np.random.default_rng(seed)
        placed = shapes.place(rng, [Thing("red", "square")] * 8, SIZE, shapes.RADIUS)
        index = np.zeros(SIZE, np.uint8)
        for number, pose in enumerate(placed, start=1):
            index[alpha_of(pose, SIZE) >= 128] = number
        for number, pose in enumerate(placed, start=1):
            assert (index == number).sum() >= 0.65 * (alpha_of(pose, SIZE) >= 128).sum()


def test_a_ring_has_a_hole_and_a_square_the_area_of_a_square() -> None:
    pose = Placed(Thing("red", "ring"), (60.0, 60.0), 40.0, 0.3, (255.0, 0.0, 0.0), (0.0, 0.0))
    ring = alpha_of(pose, SIZE) >= 128
    assert not ring[60, 60] and ring[60, 90]
    assert ring.sum() == pytest.approx(np.pi * 40**2 * (1 - 0.52**2), rel=0.08)  # edges are drawn half a pixel wide
    square = Placed(Thing("red", "square"), (60.0, 60.0), 40.0, 0.3, (255.0, 0.0, 0.0), (0.0, 0.0))
    assert (alpha_of(square, SIZE) >= 128).sum() == pytest.approx(2 * 40**2, rel=0.08)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("red circle", True), ("circle", True), ("red shape", True), ("Red Disc", True), ("disk", True),
        ("object", True), ("blue circle", False), ("red square", False), ("red box", False), ("donut", False),
        ("dog", False), ("red dog", False), ("", False),
    ],
)  # fmt: skip
def test_which_phrases_name_a_red_circle(phrase: str, expected: bool) -> None:
    assert matches(phrase, Thing("red", "circle")) is expected


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools under numpy 2
def test_coco_truth_is_the_masks_and_photos_are_readable(tmp_path: Path) -> None:
    truth = write_scenes(tmp_path / "photos", 6, seed=40, size_hw=SIZE)
    coco = COCO(str(truth))
    assert len(coco.imgs) == 6
    for i, image in enumerate(coco.loadImgs(coco.getImgIds())):
        scene = make_scene(40 + i, SIZE)
        photo = cv2.imread(str(tmp_path / "photos" / image["file_name"]))[..., ::-1]
        assert np.abs(photo.astype(int) - scene.image).mean() < 6  # JPEG
        rows = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert len(rows) == len(scene.things)
        for row, number in zip(rows, range(1, len(scene.things) + 1), strict=True):
            mask = scene.mask(number)
            assert np.array_equal(coco.annToMask(row).astype(bool), mask)
            assert row["area"] == mask.sum()
            assert coco.cats[row["category_id"]]["name"] == scene.things[number - 1].name
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
            assert row["bbox"] == box


def test_coco_classes_follow_the_concepts_asked_for(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, 8, seed=3, concepts={"ball": "circle", "red thing": "red shape"}, size_hw=SIZE)
    content = json.loads(path.read_text())
    assert [category["name"] for category in content["categories"]] == ["ball", "red thing"]
    expected = sum(
        (thing.shape == "circle") + (thing.color == "red") for i in range(8) for thing in make_scene(3 + i, SIZE).things
    )
    assert len(content["annotations"]) == expected > 0
    assert len({row["id"] for row in content["annotations"]}) == expected


def test_clips_keep_tracks_and_have_occlusion_entering_and_leaving() -> None:
    clips = [make_clip(seed, 16, SIZE) for seed in range(6)]
    hidden = entered = left = 0
    for clip in clips:
        kinds: dict[int, str] = {}
        for scene in clip:
            for thing in scene.things:
                assert kinds.setdefault(thing.track, thing.name) == thing.name
        areas = {track: [area(scene, track) for scene in clip] for track in kinds}
        hidden += sum(min(sizes[1:-1]) < 0.7 * max(sizes) for sizes in areas.values())
        entered += sum(sizes[0] == 0 for sizes in areas.values())
        left += sum(sizes[-1] == 0 for sizes in areas.values())
    assert hidden and entered and left
    assert make_clip(2, 5, SIZE)[4].image.tobytes() == make_clip(2, 5, SIZE)[4].image.tobytes()


def test_slivers_are_left_out_and_the_rest_is_numbered_again() -> None:
    index = np.zeros((10, 10), np.uint8)
    index[0, 0], index[2:4], index[5:9] = 1, 2, 3  # 1, 20 and 40 of 100 pixels
    scene = Scene(
        np.zeros((10, 10, 3), np.uint8), index, (Thing("red", "star"), Thing("blue", "ring"), Thing("green", "circle"))
    )
    assert without_slivers(scene).things == scene.things
    least = without_slivers(scene, 0.01)  # no more than: the one pixel goes
    assert [thing.color for thing in least.things] == ["blue", "green"]
    assert np.array_equal(least.mask(1), index == 2) and np.array_equal(least.mask(2), index == 3)
    assert without_slivers(scene, 0.4).things == ()


def test_video_frames_to_learn_from_have_objects_cut_by_the_edge_and_no_slivers() -> None:
    frames = [lessons.video_frame(np.random.default_rng(k), TRAINING_SEEDS + k) for k in range(30)]
    again = lessons.video_frame(np.random.default_rng(4), TRAINING_SEEDS + 4)
    assert np.array_equal(frames[4].image, again.image)
    cut = whole = 0
    for scene in frames:
        inner = scene.index[1:-1, 1:-1]
        for k in range(1, len(scene.things) + 1):
            assert scene.mask(k).mean() > lessons.SLIVER
            inside = int((inner == k).sum()) == int(scene.mask(k).sum())
            whole, cut = whole + inside, cut + (not inside)
    assert cut > 20 and whole > 20


def area(scene: Scene, track: int) -> int:
    return sum(int(scene.mask(k).sum()) for k, thing in enumerate(scene.things, start=1) if thing.track == track)


def test_questions_are_answered_right_and_two_pairs_are_never_named() -> None:
    rng = np.random.default_rng(0)
    negatives = 0
    for seed in range(60):
        things = make_scene(seed, SIZE).things
        sample = lessons.Sample(np.zeros((8, 8, 3), np.uint8), np.zeros((0, 4, 4), np.uint8),
                                np.zeros((0, 4), np.float32), things)  # fmt: skip
        for question in lessons.lesson(rng, sample, 5, 2):
            named = tuple(i for i, thing in enumerate(things) if matches(question.phrase, thing))
            assert "purple star" not in question.phrase and "green ring" not in question.phrase
            assert question.phrase not in ("violet star", "green donut")
            if not question.exemplars:
                assert question.answer == named
                negatives += not named
            elif question.phrase == lessons.VISUAL:
                like = [things[i].name for i, label in question.exemplars if label == 1]
                assert len(set(like)) == 1
                assert question.answer == tuple(i for i, thing in enumerate(things) if thing.name == like[0])
                assert all(things[i].name != like[0] for i, label in question.exemplars if label == 0)
            else:
                assert question.answer and set(question.answer) <= set(named)
    assert negatives > 60


def test_a_canvas_keeps_the_truth_of_both_sides() -> None:
    target, reference = make_scene(1, SIZE), make_scene(5, SIZE)
    number = 1
    canvas, wanted = lessons.compose_canvas(target, [(reference, number), (reference, number)], share=0.3, margin=0.2)
    assert [canvas.things[i] for i in wanted] == [reference.things[number - 1]] * 2
    strip = canvas.size_hw[1] - SIZE[1]
    assert strip == round(0.3 / 0.7 * SIZE[1])
    assert np.array_equal(canvas.image[:, strip:], target.image)
    assert canvas.things[-len(target.things) :] == target.things
    assert canvas.things[0] == reference.things[number - 1]
    for k, thing in enumerate(canvas.things, start=1):
        assert canvas.mask(k).any(), thing
    right = canvas.index[:, strip:]
    shift = len(canvas.things) - len(target.things)
    assert np.array_equal(right, np.where(target.index, target.index + shift, 0))


def test_turned_pictures_turn_their_masks_and_boxes_with_them() -> None:
    sample = lessons.to_sample(make_scene(2, (128, 128)), 128, 64)
    for way in range(8):
        turned = lessons.turn(sample, way)
        for mask, box in zip(turned.masks, turned.boxes, strict=True):
            ys, xs = np.nonzero(mask > 0)
            x0, y0 = (box[0] - box[2] / 2) * 64, (box[1] - box[3] / 2) * 64
            assert abs(xs.min() - x0) < 1.01 and abs(ys.min() - y0) < 1.01
            x1, y1 = (box[0] + box[2] / 2) * 64, (box[1] + box[3] / 2) * 64
            assert abs(xs.max() + 1 - x1) < 1.01 and abs(ys.max() + 1 - y1) < 1.01


def test_scenes_for_users_tests_and_the_examination_are_never_trained_on() -> None:
    assert EXAM_SEEDS + 2**30 < TRAINING_SEEDS
