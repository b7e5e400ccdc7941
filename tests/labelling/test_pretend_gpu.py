"""Whole runs on a pretend GPU: photos, sampled and tracked videos, exemplars; what they find and where they wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import pytest
from support.pretend_cuda import Device, pretend_cuda
from support.videofiles import clip_pixels, write_video

from sam3label.concepts.concept_list import parse_concepts
from sam3label.core.records import ConceptList, Frame, MediaItem, Prompt
from sam3label.demo.shapes import make_scene
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector
from sam3label.model.tracker import READ_OFF, TrackedFrame, Tracker
from sam3label.run.store import Store

NAMES = "names: [circle, square, triangle]\n"
FRAMES = 4

# How often the host may wait for the device, by function: at most so many times for each batch of photos or frame of a
# video (first number), and so many times in a run (second): what depends on a list of prompts or a size of photo.
LOADING = (  # weights moved: as many as there are
    "model/detector.py:of_model",
    "model/tracker.py:load",
    "model/interactive.py:load",
    "model/encode.py:encode",
)
ALWAYS = {
    "model/encode.py:_encode": (0, 4),  # ids and lengths of the phrases
    "model/encode.py:_padded": (0, 1),
    "model/mask_runs.py:_measured": (0, 12),
}
PHOTOS = ALWAYS | {
    "model/ask.py:presence": (3, 0),  # and scores: one for each chunk of pairs
    "model/mask_runs.py:_cuts": (2, 0),
    "model/mask_runs.py:_around": (1, 0),
    "model/mask_runs.py:_settled": (1, 0),  # where rounding decides
}
EXEMPLARS = PHOTOS | {"model/head.py:encode_boxes": (2, 0)}  # the library's, of boxes
GIVEN = PHOTOS | {  # the masks of phrases, of `refine` and of given boxes, each of a whole batch
    "model/mask_runs.py:_cuts": (6, 0),
    "model/mask_runs.py:_around": (3, 0),
}
A_FRAME = {"model/tracker.py:_found": 1}  # of a video that is tracked, however many objects there are
TRACKED = ALWAYS | {
    **{place: (each, 0) for place, each in A_FRAME.items()},
    "model/ask.py:scores": (0, 1),  # of the first frame
    "model/mask_runs.py:_cuts": (0, 2 * FRAMES),  # of the last ones, which nothing comes after: here of all
    "model/mask_runs.py:_around": (0, FRAMES),
    "model/mask_runs.py:_settled": (0, 1),
}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    for number in range(5):
        (folder / "photos").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / "photos" / f"{number}.png"), make_scene(number, (120, 160)).image[..., ::-1])
    (folder / "videos").mkdir()
    write_video(folder / "videos" / "one.mp4", clip_pixels(FRAMES, size_hw=(120, 160)))
    (folder / "boxes.yaml").write_text("0.png: {circle: [[10, 5, 20, 30]]}\n2.png: {circle: [[30, 20, 40, 40]]}\n")
    (folder / "given.csv").write_text("image,class,x1,y1,x2,y2\n0.png,circle,10,5,30,35\n4.png,circle,30,20,70,60\n")
    return folder


def concepts(kind: str, media: Path) -> ConceptList:
    rules = {
        "exemplars": "{exemplars: {labels: boxes.yaml}}",
        "given": "{exemplars: {objects: given.csv}, refine: true}",
    }
    own = f"concepts: {{circle: {rules[kind]}}}\n" if kind in rules else ""
    return parse_concepts(NAMES + own, "c.yaml", (), media)


def found(kind: str, media: Path, out: Path, **options: Any) -> dict[str, tuple[float, int]]:
    """What a run finds: score and area by id."""
    chosen = {"frames": {"video": "frames", "every": 1}, "tracked": {"video": "track"}}.get(kind, {"video": "off"})
    source = media / ("videos" if kind in ("frames", "tracked") else "photos")
    summary = label([source], concepts(kind, media), out, LabelOptions(model="demo", workers=0, **chosen, **options))
    assert not summary.failures
    with Store.open(out) as store:
        return {one.id: (one.score, one.area) for unit in store.units() for one in store.candidates(unit)}


def waits_beyond(device: Device, allowed: dict[str, tuple[int, int]], batches: int) -> dict[str, int]:
    table = {place: each * batches + once for place, (each, once) in allowed.items()}
    waits = {place: count for place, count in device.waits_by_place().items() if place not in LOADING}
    return {place: count for place, count in waits.items() if count > table.get(place, 0)}


@pytest.mark.parametrize(
    ("kind", "style", "dtype", "allowed", "batches"),
    [
        ("photos", "official", "fp32", PHOTOS, 2),
        ("photos", "transformers", "bf16", PHOTOS, 2),
        ("exemplars", "official", "bf16", EXEMPLARS, 2),
        ("given", "official", "fp32", GIVEN, 2),
        ("given", "official", "bf16", GIVEN, 2),
        ("frames", "official", "bf16", PHOTOS, 2),
        ("tracked", "official", "fp32", TRACKED, FRAMES),
    ],
)
def test_a_run_waits_where_it_may_and_nowhere_else(
    kind: str,
    style: str,
    dtype: str,
    allowed: dict[str, tuple[int, int]],
    batches: int,
    media: Path,
    tmp_path: Path,
) -> None:
    with pretend_cuda() as device:
        there = found(kind, media, tmp_path / "gpu", device="cuda", prompt_style=style, dtype=dtype)
        assert device.races == [] and device.waits_on_side_streams == {}
        assert waits_beyond(device, allowed, batches) == {}, device.lines
    here = found(kind, media, tmp_path / "cpu", device="cpu", prompt_style=style)
    shared = there.keys() & here.keys()
    assert len(here) > 3
    if dtype == "fp32":
        assert there.keys() == here.keys()
        assert all(there[name][0] == pytest.approx(here[name][0], abs=1e-4) for name in shared)
    else:
        assert len(shared) > 0.8 * len(here.keys() | there.keys())


LATE = 2  # frames


def followed(device: str, count: int) -> Iterator[TrackedFrame]:
    """What tracking finds in a video, given out so late."""
    detector = Detector.load(resolve("demo"), device=device, dtype="fp32")
    tracker = Tracker.load(resolve("demo"), detector)
    tracker.settings = replace(tracker.settings, hotstart_delay=LATE)
    item = MediaItem("video", "video", "video")
    frames = [Frame(item, number, pixels) for number, pixels in enumerate(clip_pixels(count, size_hw=(120, 160)))]
    names = "circle", "square", "triangle", "star", "car"  # scored by four
    return tracker.track(frames, [Prompt(name, name) for name in names])


def test_a_frame_of_a_tracked_video_waits_once_and_reading_off_its_masks_does_not() -> None:
    count, there, waits = 9, list[TrackedFrame](), list[Counter[str]]()
    with pretend_cuda() as device:
        for one in followed("cuda", count):
            there.append(one)
            waits.append(device.waits_by_place())
        assert device.races == [] and device.waits_on_side_streams == {}
    here = list(followed("cpu", count))
    assert [[o.number for o in one.objects] for one in there] == [[o.number for o in one.objects] for one in here]
    assert [[o.instance for o in one.objects] for one in there] == [[o.instance for o in one.objects] for one in here]
    middle = slice(1, count - LATE - READ_OFF)  # the first masks are read off, and the end is not in sight yet
    assert sum(len(one.objects) for one in here[middle]) > 3
    assert [now - before for before, now in pairwise(waits)][middle] == [A_FRAME] * 3
