"""Decoding videos: every container, turned pictures, odd rates, damaged files, folders of frames."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.videofiles import clip_pixels, turn, write_frames, write_video

from sam3label.core.records import MediaItem
from sam3label.errors import InputError, UndecodableError
from sam3label.media import video as media_video
from sam3label.media.ahead import ahead
from sam3label.media.discovery import find_media


def video(path: Path) -> MediaItem:
    return MediaItem(path.name, str(path), "video")


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """The same picture but for what an encoder does to it."""
    return a.shape == b.shape and float(np.abs(a.astype(int) - b.astype(int)).mean()) < 12


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".avi", ".mkv", ".webm"])
def test_every_container_gives_its_frames_in_order(tmp_path: Path, suffix: str) -> None:
    made = clip_pixels(15)
    frames = list(media_video.frames(video(write_video(tmp_path / f"a{suffix}", made))))
    assert [frame.index for frame in frames] == list(range(15))
    assert all(close(frame.pixels, pixels) for frame, pixels in zip(frames, made, strict=True))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_pictures_are_upright_as_another_reader_has_them(tmp_path: Path, degrees: int) -> None:
    path = turn(write_video(tmp_path / "phone.mp4", clip_pixels(3)), degrees)
    ok, bgr = cv2.VideoCapture(str(path)).read()  # turns by the same header
    assert ok
    (frame, *_) = media_video.frames(video(path))
    assert frame.size_hw == ((64, 80) if degrees == 180 else (80, 64))
    assert close(frame.pixels, bgr[..., ::-1])


def test_frames_from_a_number_on(tmp_path: Path) -> None:
    item = video(write_video(tmp_path / "a.mp4", clip_pixels(15)))
    assert [frame.index for frame in media_video.frames(item, start=11)] == [11, 12, 13, 14]
    assert list(media_video.frames(item, start=15)) == []


def test_samples_follow_the_clock_where_frames_do_not(tmp_path: Path) -> None:
    """Thirty frames of which the first twenty take half a second and the last ten five."""
    times = [25 * i for i in range(20)] + [500 + 500 * i for i in range(10)]
    item = video(write_video(tmp_path / "vfr.mkv", clip_pixels(30), times_ms=times))
    assert [frame.index for frame in media_video.sampled(item, fps=1)] == [0, 21, 23, 25, 27, 29]
    assert [frame.index for frame in media_video.sampled(item, fps=4)] == [0, 10, 20, *range(21, 30)]
    assert [frame.index for frame in media_video.sampled(item, every=12)] == [0, 12, 24]
    assert [frame.index for frame in media_video.sampled(item, every=12, start=13)] == [24]
    assert len(list(media_video.frames(item))) == 30


def test_a_file_that_does_not_say_how_long_it_is(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", clip_pixels(9))  # Matroska counts no frames
    assert len(list(media_video.frames(video(path)))) == 9


# ---- damage


def test_a_broken_tail_ends_in_a_reason_after_the_good_frames(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mkv", clip_pixels(40))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    mp4 = write_video(tmp_path / "b.mp4", clip_pixels(40))
    data = bytearray(mp4.read_bytes())
    middle, end = data.index(b"mdat") + (data.index(b"moov") - data.index(b"mdat")) // 2, data.index(b"moov") - 4
    data[middle:end] = bytes(end - middle)  # the index is whole, half of the pictures are gone
    mp4.write_bytes(data)
    seen: list[int] = []
    with pytest.raises(UndecodableError, match=r"the video is damaged: \d+ of 40 frames could be decoded"):
        for frame in media_video.frames(video(mp4)):
            seen.append(frame.index)
    assert seen == list(range(len(seen))) and 5 < len(seen) < 40
    frames = _until_error(media_video.frames(video(cut)))
    assert 5 < frames < 40


def _until_error(frames: Iterator[object]) -> int:
    count = 0
    try:
        for _ in frames:
            count += 1
    except UndecodableError as error:
        assert "the video is damaged" in str(error)
    return count


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.mp4", b"", "not a video, or its header is damaged"),
        ("text.avi", b"these are only words\n" * 100, "not a video, or its header is damaged"),
        ("headless.mp4", None, "not a video, or its header is damaged"),
    ],
)
def test_what_is_no_video_says_so(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    path = tmp_path / name
    if content is None:
        content = write_video(tmp_path / "good.mp4", clip_pixels(20)).read_bytes()
        content = content[: len(content) // 2]  # the index was at the end
    path.write_bytes(content)
    with pytest.raises(UndecodableError, match=reason):
        list(media_video.frames(video(path)))


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UndecodableError, match=r"it has no pictures"):
        list(media_video.frames(video(path)))


# ---- folders of frames


def test_a_folder_of_numbered_frames_is_a_video(tmp_path: Path) -> None:
    made = clip_pixels(12)
    folder = write_frames(tmp_path / "clips/walk", made)
    (tmp_path / "clips/photo.jpg").write_bytes((folder / "00000.jpg").read_bytes())
    found = find_media([tmp_path / "clips"], videos=True).items
    assert [(item.id, item.kind) for item in found] == [("photo.jpg", "image"), ("walk", "video")]
    frames = list(media_video.frames(found[1]))
    assert [frame.index for frame in frames] == list(range(12))
    assert all(close(frame.pixels, pixels) for frame, pixels in zip(frames, made, strict=True))
    assert media_video.FrameFiles().name(found[1], 3) == "00003.jpg"
    assert [item.kind for item in find_media([folder], videos=True).items] == ["video"]
    assert find_media([folder], videos=True).items[0].id == "walk"
    assert len(find_media([folder]).items) == 12  # without videos they are photos


@pytest.mark.parametrize(
    "names",
    [
        [f"IMG_{i:04d}.jpg" for i in range(12)],  # a camera's photos
        [f"{i * i:06d}.jpg" for i in range(12)],  # numbers of a dataset
        [f"{i}.jpg" for i in range(5, 15)],  # not of one width
        [f"{i:04d}.jpg" for i in range(7)],  # too few
        [*(f"{i:04d}.jpg" for i in range(12)), "cover.jpg"],
        [*(f"{i:04d}.jpg" for i in range(11)), "0011.png"],
    ],
)
def test_other_folders_hold_photos(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert {item.kind for item in find_media([tmp_path], videos=True).items} == {"image"}


def test_frames_may_be_named_frame_and_step_by_more_than_one(tmp_path: Path) -> None:
    for i in range(0, 50, 5):
        (tmp_path / f"frame_{i:05d}.png").write_bytes(b"")
    (item,) = find_media([tmp_path], videos=True).items
    assert (item.kind, media_video.FrameFiles().name(item, 2)) == ("video", "frame_00010.png")


def test_a_broken_frame_or_one_of_another_size_ends_the_folder(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "a", clip_pixels(10))
    (folder / "00006.jpg").write_bytes(b"nothing")
    with pytest.raises(UndecodableError, match=r"frame 00006.jpg: not an image"):
        list(media_video.frames(video(folder)))
    cv2.imwrite(str(folder / "00006.jpg"), np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(UndecodableError, match=r"frame 00006.jpg has another size"):
        list(media_video.frames(video(folder)))


def test_a_folder_of_frames_has_no_clock(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "a", clip_pixels(10))
    with pytest.raises(UndecodableError, match=r"no frame rate: sample it with --every N"):
        list(media_video.sampled(video(folder), fps=2))


def test_a_video_is_refused_where_only_photos_are_wanted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", clip_pixels(3))
    with pytest.raises(InputError, match="this is a video"):
        find_media([path])
    assert find_media([path], videos=True).items[0].kind == "video"


# ---- frames by number, and ahead


def test_frames_are_found_in_any_order(tmp_path: Path) -> None:
    made = clip_pixels(12)
    found = media_video.VideoFrames(str(write_video(tmp_path / "a.mp4", made)))
    for index in (0, 5, 11, 3, 3):
        assert close(found.pixels(index), made[index])
    with pytest.raises(UndecodableError, match="it has no frame 12"):
        found.pixels(12)


def test_values_come_in_order_ahead_of_their_use_and_errors_in_their_place() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i
        raise ValueError("the end")

    values = ahead(source(), 3)
    assert next(values) == 0
    seen = [0]
    with pytest.raises(ValueError, match="the end"):
        for value in values:
            assert len(made) <= value + 6
            seen.append(value)
    assert seen == list(range(20))


def test_giving_up_early_ends_the_thread() -> None:
    values = ahead(iter(range(1000)), 2)
    next(values)
    before = {thread for thread in threading.enumerate() if thread.name == "decoder"}
    assert before
    values.close()  # type: ignore[attr-defined]
    assert not any(thread.is_alive() for thread in before)
