"""Rendered videos: named like their sources, tracks keep their color, names of any script are written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.builders import SIZE_HW, candidate, concepts, phrase_prompts, rectangle

from sam3label.concepts.concept_list import dump_concepts
from sam3label.core.colors import class_color
from sam3label.core.records import Concept, ConceptList, MediaItem, UnitResult
from sam3label.errors import InputError, OutputError
from sam3label.media import video
from sam3label.run.reader import open_run
from sam3label.run.store import Store
from sam3label.show.render import render

FRAMES = 4


def make_run(folder: Path, classes: ConceptList, *names: str) -> Path:
    """Videos as folders of gray frames, in each a track 3 that moves to the right."""
    phrase = classes.phrases[0]
    with Store.writer(folder / "run", phrase_prompts(*classes.phrases), {"floor": 0.1}) as store:
        for name in names:
            (folder / name).mkdir(parents=True)
            for n in range(FRAMES):
                Image.fromarray(np.full((*SIZE_HW, 3), 128, np.uint8)).save(folder / name / f"{n:05d}.png")
            moving = [
                replace(candidate(phrase, 0.9, rectangle(5 + 8 * n, 25, 20, 20), item_id=name, frame=n), track_id=3)
                for n in range(FRAMES)
            ]
            item, presence = MediaItem(name, str(folder / name), "video"), np.full((FRAMES, 1), 0.9, np.float32)
            store.write([UnitResult(item, 0, FRAMES, SIZE_HW, tuple(moving), presence)])
        store.set_meta("concepts", dump_concepts(classes))
    return folder / "run"


def frames_of(path: Path) -> list[np.ndarray]:
    return [frame.pixels.astype(int) for frame in video.frames(MediaItem("x", str(path), "video"))]


def test_a_video_is_named_like_its_source_and_no_two_alike(tmp_path: Path) -> None:
    run_folder = make_run(tmp_path, concepts("cat"), "a/bedroom.mp4", "b/clip.avi", "b/clip.mp4", "b/frames")
    seen: list[tuple[int, int]] = []
    with open_run(run_folder) as run:
        assert render(run, tmp_path / "out", on_progress=lambda *step: seen.append(step)) == 4
    assert seen == [(done, 4 * FRAMES) for done in range(1, 4 * FRAMES + 1)]
    made = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert made == ["a/bedroom.mp4", "b/clip.avi.mp4", "b/clip.mp4.mp4", "b/frames.mp4"]


def test_a_track_is_drawn_where_it_is_in_its_own_color(tmp_path: Path) -> None:
    run_folder = make_run(tmp_path, concepts("cat"), "clip")
    with open_run(run_folder) as run:
        assert render(run, tmp_path / "one.mp4") == 1
    drawn = frames_of(tmp_path / "one.mp4")
    assert len(drawn) == FRAMES
    expected = 0.58 * 128 + 0.42 * np.array(class_color(3))
    for n, picture in enumerate(drawn):
        inside, outside = picture[38, 5 + 8 * n + 10], picture[55, 70]
        assert np.abs(inside - expected).max() < 30 and np.abs(outside - 128).max() < 8


def test_names_of_other_scripts_are_letters_not_question_marks(tmp_path: Path) -> None:
    pictures = []
    for number, name in enumerate(("каска", "?????")):
        run_folder = make_run(tmp_path / str(number), concepts(Concept(0, name, ("cat",))), "clip")
        with open_run(run_folder) as run:
            render(run, tmp_path / f"{number}.mp4")
        pictures.append(frames_of(tmp_path / f"{number}.mp4")[0])
    assert (np.abs(pictures[0] - pictures[1])[:25] > 60).any()


def test_what_cannot_be_rendered_is_said(tmp_path: Path) -> None:
    run_folder = make_run(tmp_path, concepts("cat"), "a", "b")
    with open_run(run_folder) as run:
        with pytest.raises(InputError, match="the run has no video 'c'. It has: a, b"):
            render(run, tmp_path / "out", "c")
        with pytest.raises(OutputError, match=r"the run has 2 videos, and .*x.mp4 is one file. Choose one with"):
            render(run, tmp_path / "x.mp4")
        (tmp_path / "a" / "00002.png").unlink()
        with pytest.raises(OutputError, match="can no longer be decoded as it was labelled"):
            render(run, tmp_path / "out", "a")
    assert not list((tmp_path / "out").iterdir())
