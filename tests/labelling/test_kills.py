"""SIGKILL at every place of a job, again and again: what a run ends with is what one that nobody disturbed has."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from kill_series import write_photos
from support.lively import make_lively
from support.nursery import PLACES, Nursery
from support.videofiles import clip_pixels, write_video

from sam3label.concepts.concept_list import load_concepts
from sam3label.labelling import job
from sam3label.labelling.options import LabelOptions
from sam3label.run.reader import open_run
from sam3label.run.repair import examine
from sam3label.run.store import Store

KILLS, PHOTOS = 20, 48
DAMAGED = (3, 10, 11, 30)  # photos that fail; two of them are a batch


def label(source: Path, concepts: Path, out: Path, **options: Any) -> None:
    job.label([source], load_concepts(concepts), out, LabelOptions(**{"device": "cpu", "workers": 0, **options}))


def rows(out: Path) -> list[tuple[Any, ...]]:
    """Everything a run holds, by item, without SQLite's own numbering."""
    with Store.open(out) as store:
        return [
            (u.item, u.frame_start, u.frame_stop, u.size_hw, u.error, store.presence(u).tobytes(),
             sorted(store.candidates(u), key=lambda c: c.id))
            for u in store.units()
        ]  # fmt: skip


def done(out: Path) -> int:
    with Store.open(out) as store:
        return store.totals().done


def test_twenty_kills_lose_nothing_and_double_nothing(nursery: Nursery, least_checkpoint: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", PHOTOS)
    for number in DAMAGED:
        (tmp_path / "photos" / f"{number:04d}.jpg").write_bytes(b"no picture")
    (tmp_path / "list.yaml").write_text("names: [cat, dog]\ndefaults: {conf: 0.3}\n")
    given = tmp_path / "photos", tmp_path / "list.yaml"
    options: dict[str, Any] = {"model": str(least_checkpoint), "floor": 0.2, "batch_size": 2}
    chance, out = random.Random(0), tmp_path / "run"
    assert nursery.killed("the database is made", 1, *given, out, **options)
    assert not (out / "run.sqlite").exists()
    again, reached = [place for place in PLACES if place != "the database is made"], 0
    for kill in range(1, KILLS):
        place = again[kill % len(again)]
        assert nursery.killed(
            place, 1 if place == "the run has begun" else chance.randint(1, 3), *given, out, **options
        )
        assert reached <= done(out) < PHOTOS, place
        assert examine(out).is_sound, place
        reached = done(out)
    label(*given, out, **options)
    label(*given, tmp_path / "calm", **options)
    assert rows(out) == rows(tmp_path / "calm") and len(rows(out)) == PHOTOS


def test_photos_in_tiles_are_killed_and_are_labelled_once(
    nursery: Nursery, least_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        blocks = cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (240, 228))
        cv2.imwrite(str(tmp_path / f"photos/{number}.png"), blocks)
    (tmp_path / "list.yaml").write_text("names: [cat, dog]\ndefaults: {conf: 0.3, tile: auto}\n")
    given = tmp_path / "photos", tmp_path / "list.yaml"
    options: dict[str, Any] = {"model": str(least_checkpoint), "floor": 0.2, "batch_size": 2}
    label(*given, tmp_path / "calm", **options)
    out, reached = tmp_path / "run", 0
    for place in ("a unit is half written", "a unit is written", "a transaction is committed"):
        assert nursery.killed(place, 1, *given, out, **options)
        assert reached <= done(out) < 6 and examine(out).is_sound, place
        reached = done(out)
    label(*given, out, **options)
    assert rows(out) == rows(tmp_path / "calm")


@pytest.mark.parametrize("video", ["track", "frames"])
def test_videos_that_grow_are_killed_half_way_and_go_on(
    video: str, nursery: Nursery, least_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = make_lively(least_checkpoint, tmp_path / "checkpoint")
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/walk.mp4", clip_pixels(24))
    lists = [tmp_path / "0.yaml", tmp_path / "1.yaml"]
    lists[0].write_text("names: [car]\ndefaults: {conf: 0.3}\n")
    lists[1].write_text("names: [car, bus]\ndefaults: {conf: 0.3}\n")
    options = {"model": str(checkpoint), "video": video, "clip_frames": 16, "every": 4, "batch_size": 2}
    out, calm = tmp_path / "run", tmp_path / "calm"
    for step, concepts in enumerate(lists):
        given = tmp_path / "videos", concepts
        label(*given, calm, **options)
        for place, call in (("a transaction is committed", 1), ("a unit is half written", 1)):
            assert nursery.killed(place, call, *given, out, **options), place
            held, whole = rows(out), rows(calm)
            assert held != whole and examine(out).is_sound
            if step:  # what has been asked of some frames is not lost, and not taken for what all were asked
                with open_run(out) as run:
                    assert run.coverage().wait is not None
        label(*given, out, **options)
        assert rows(out) == rows(calm)
    with open_run(out) as run:
        assert run.coverage().wait is None and {c.prompt for u in run.done_units() for c in run.candidates(u)} == {
            "car",
            "bus",
        }


def test_clips_that_are_tracked_both_ways_are_killed_and_go_on(
    nursery: Nursery, least_checkpoint: Path, tmp_path: Path
) -> None:
    """Three clips, with objects shown in two of them: killed on the way back in each of these."""
    checkpoint = make_lively(least_checkpoint, tmp_path / "checkpoint")
    write_video(tmp_path / "walk.mp4", clip_pixels(36))
    places = {1: 10, 2: 24}  # class -> the frame in which an object of it is shown
    shown = {
        "images": [{"id": n, "file_name": f"walk.mp4/{n:06d}.jpg", "height": 64, "width": 80} for n in places.values()],
        "annotations": [
            {"id": n, "image_id": n, "category_id": k, "bbox": [40, 30, 30, 30]} for k, n in places.items()
        ],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}],
    }
    (tmp_path / "shown.json").write_text(json.dumps(shown))
    own = "{prompts: [], exemplars: {objects: shown.json}}"
    (tmp_path / "list.yaml").write_text(f"names: [car, bus]\nconcepts: {{car: {own}, bus: {own}}}\n")
    given = tmp_path / "walk.mp4", tmp_path / "list.yaml"
    options: dict[str, Any] = {"model": str(checkpoint), "video": "track", "clip_frames": 16}
    out, calm = tmp_path / "run", tmp_path / "calm"
    label(*given, calm, both_ways=True, **options)
    label(*given, tmp_path / "forwards", **options)
    assert [row[1:3] for row in rows(calm)] == [(0, 16), (16, 32), (32, 36)]
    backwards = {frame for frame, _ in found(calm) - found(tmp_path / "forwards")}
    assert any(frame < 10 for frame in backwards) and any(16 <= frame < 24 for frame in backwards)
    place = "a frame is gone through backwards"
    for call, clips in ((1, 0), (14, 1)):  # eleven frames of the first clip
        assert nursery.killed(place, call, *given, out, both_ways=True, **options)
        assert rows(out) == rows(calm)[:clips] and examine(out).is_sound
    label(*given, out, both_ways=True, **options)
    assert rows(out) == rows(calm)


def found(out: Path) -> set[tuple[int, int | None]]:
    """In which frames which tracks are."""
    return {(one.frame, one.track_id) for row in rows(out) for one in row[-1]}
