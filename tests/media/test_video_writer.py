"""H.264 files: read back as written, on time, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from support.videofiles import clip_pixels

from sam3label.core.records import MediaItem
from sam3label.errors import OutputError
from sam3label.media import video
from sam3label.media.video_writer import VideoWriter


def test_pictures_come_back_in_order_and_odd_sides_are_filled_up(tmp_path: Path) -> None:
    pixels = clip_pixels(7, size_hw=(63, 81))
    with VideoWriter(tmp_path / "made" / "a.mp4", rate=12.5) as writer:
        for one in pixels:
            writer.write(one)
    assert writer.frames == 7
    item = MediaItem("a", str(tmp_path / "made" / "a.mp4"), "video")
    back = [frame.pixels for frame in video.frames(item)]
    assert [one.shape for one in back] == [(64, 82, 3)] * 7
    for one, other in zip(pixels, back, strict=True):
        assert np.abs(one.astype(int) - other[:63, :81]).mean() < 8
    assert video.frame_rate(item) == pytest.approx(12.5)
    with av.open(item.path) as container:
        assert container.streams.video[0].codec_context.name == "h264"


def test_each_picture_has_the_time_it_was_given(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.2, 1.0, 1.5]
    with VideoWriter(tmp_path / "a.mov", rate=25, timed=True) as writer:
        for one, seconds in zip(clip_pixels(5), times, strict=True):
            writer.write(one, seconds)
    pictures = video.pictures(MediaItem("a", str(tmp_path / "a.mov"), "video"))
    assert [one.seconds for one in pictures] == pytest.approx(times, abs=1e-3)


def test_the_same_pictures_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with VideoWriter(tmp_path / f"{name}.mp4", rate=12, repeatable=True) as writer:
            for one in clip_pixels(20):
                writer.write(one)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_what_ends_early_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="decoder"), VideoWriter(tmp_path / "a.mp4", rate=12) as writer:
        writer.write(clip_pixels(1)[0])
        raise RuntimeError("the decoder gave up")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
    with VideoWriter(tmp_path / "none.mp4", rate=12):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"], "no picture, no file"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for target in (tmp_path / "file" / "a.mp4", Path("/proc/a.mp4")):
        said = rf"{target} cannot be written \(.*\). Give another place with -o."
        with pytest.raises(OutputError, match=said), VideoWriter(target, rate=12) as writer:
            writer.write(clip_pixels(1)[0])
