"""The video demo: truth that fits its videos, identity errors counted as defined, and the whole job from the screen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sam3label.annotations.youtube_vis import Track, read_video_truth
from sam3label.cli import app
from sam3label.core import masks
from sam3label.core.records import MediaItem, Rle
from sam3label.demo import videos
from sam3label.demo.videos import Identity, identity
from sam3label.export.write import export
from sam3label.media import video as media_video
from sam3label.run.reader import open_run
from sam3label.show.render import render
from sam3label.validate import validate


def spot(x: int, frames: int | range) -> dict[int, Rle]:
    mask = np.zeros((20, 40), bool)
    mask[5:15, x : x + 10] = True
    return dict.fromkeys(range(frames) if isinstance(frames, int) else frames, masks.encode(mask))


def test_an_identity_that_lasts_has_no_switches() -> None:
    truth = [Track(spot(0, 10)), Track(spot(20, 10))]
    assert identity(truth, truth, (4, 8)) == Identity(0, 4, 0)
    assert identity(truth, [], (4, 8)) == identity([], truth, (4,)) == Identity()


def test_switches_and_broken_borders_are_counted() -> None:
    truth = [Track(spot(0, 12))]
    halves = [Track(spot(0, range(6))), Track(spot(1, range(6, 12)))]
    assert identity(truth, halves, (6,)) == Identity(1, 1, 1)
    assert identity(truth, halves, (5,)) == Identity(1, 1, 0)  # the switch is not at the border
    gap = [Track(spot(0, range(5))), Track(spot(0, range(7, 12)))]
    assert identity(truth, gap, (6,)) == Identity(1, 0, 0)  # unseen at the border: it was not passed
    back = [Track(spot(0, range(5)) | spot(0, range(7, 12)))]
    assert identity(truth, back, (6,)) == Identity(0, 0, 0)
    far = [Track(spot(30, 12))]
    assert identity(truth, far, (6,)) == Identity()  # another place, not another id


def test_two_objects_that_swap_ids_are_two_switches() -> None:
    truth = [Track(spot(0, 8)), Track(spot(20, 8))]
    swapped = [
        Track(spot(0, range(4)) | spot(20, range(4, 8))),
        Track(spot(20, range(4)) | spot(0, range(4, 8))),
    ]
    assert identity(truth, swapped, (4,)) == Identity(2, 2, 2)


def test_videos_of_one_seed_are_equal_to_the_byte(tmp_path: Path) -> None:
    once, again = (tmp_path / name / "videos" for name in ("once", "again"))
    for folder in (once, again):
        videos.write_videos(folder, 4, seed=20_000_000, frames=30)
    names = [f"video_{i:02d}.mp4" for i in range(4)]
    assert [path.name for path in sorted(once.iterdir())] == names
    assert all((once / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert (tmp_path / "once/truth.json").read_bytes() == (tmp_path / "again/truth.json").read_bytes()


def test_the_truth_lies_on_the_objects(tmp_path: Path) -> None:
    truth = read_video_truth(videos.write_videos(tmp_path / "videos", 2, seed=7, frames=10))
    assert [video.name for video in truth.videos.values()] == ["video_00", "video_01"]
    assert len(truth.pairs) == 2 * len(videos.TRUTH)
    assert sum(len(tracks) for tracks in truth.tracks.values()) > 4
    for (video, _), tracks in truth.tracks.items():
        path = str(tmp_path / f"videos/video_{video - 1:02d}.mp4")
        pixels = [frame.pixels for frame in media_video.frames(MediaItem("x", path, "video"))]
        assert len(pixels) == 10
        for track in tracks:
            whole = [(f, rle) for f, rle in track.masks.items() if masks.area(rle) > 300]
            colours = [np.median(pixels[f][masks.decode(rle)], axis=0) for f, rle in whole]
            assert not colours or np.ptp(np.stack(colours), axis=0).max() < 60  # an object keeps its paint
    again = videos.write_videos(tmp_path / "again", 2, seed=7, frames=10)
    assert again.read_text() == (tmp_path / "truth.json").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo") / "first video"
    result = CliRunner().invoke(app, ["demo", "--videos", "-o", str(out), "--number", "1"])
    assert result.exit_code == 0, result.output
    return out, result.output


def test_everything_is_where_the_screen_says(made: tuple[Path, str]) -> None:
    out, screen = made
    places = ("contact_sheet.png", "rendered", "videos", "concepts.yaml", "run", "metrics.json")
    for path in (*places, "datasets/ytvis", "datasets/mot"):
        assert str(out / path) in screen
        assert (out / path).exists()
    assert "Next" in screen and "HOTA" in screen
    drawn = list(media_video.frames(MediaItem("x", str(out / "rendered/video_00.mp4"), "video")))
    assert len(drawn) == videos.FRAMES
    assert np.asarray(Image.open(out / "contact_sheet.png")).std() > 20


def test_the_figures_are_the_tracks_against_the_truth(made: tuple[Path, str]) -> None:
    out, _ = made
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["videos"], metrics["frames"]) == (1, videos.FRAMES)
    with open_run(out / "run") as labelled:
        again = videos.score(labelled, out / "truth.json", videos.CLIP_FRAMES, metrics["seconds"])
        assert render(labelled, out / "again.mp4", "video_00.mp4") == 1
    assert again == videos.VideoDemoMetrics(**metrics)
    assert metrics["hota"] > 0.4  # far above chance; how good the tracker is stands in the model card
    assert metrics["borders_passed"] > 0


def test_a_run_judged_by_its_own_export_is_perfect(made: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = made
    exported = json.loads((out / "datasets/ytvis/train/instances.json").read_text())
    for video in exported["videos"]:
        video["file_name"] = "video_00.mp4"
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(exported))
    with open_run(out / "run") as labelled:
        mine = videos.score(labelled, truth, videos.CLIP_FRAMES, 0.0)
    assert (mine.hota, mine.det_a, mine.ass_a, mine.id_switches, mine.borders_broken) == (1.0, 1.0, 1.0, 0, 0)


def test_a_folder_that_is_not_a_demo_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    result = CliRunner().invoke(app, ["demo", "--videos", "-o", str(tmp_path)])
    assert result.exit_code == 1
    assert "is not empty and not an earlier demo" in result.output


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_frames_come_back_from_the_image_formats(made: tuple[Path, str], tmp_path: Path, kind: str) -> None:
    with open_run(made[0] / "run") as labelled:
        export(labelled, kind, tmp_path / kind)
        trip = validate(tmp_path / kind, labelled).round_trip
    assert trip is not None and trip.mean is not None
    assert trip.labels > 60 and (trip.lost, trip.extra, trip.images_missing) == (0, 0, 0)
    assert trip.mean > (0.9999 if kind == "coco" else 0.95)
    assert all(worst.image.startswith("video_0") and worst.image.endswith(".jpg") for worst in trip.worst)
    assert bool(trip.worst) == (kind == "yolo")  # what came back exactly is none of the worst
