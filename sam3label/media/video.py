"""Frames of videos, in the order in which they are shown, upright, one at a time.

A video is a container file (decoded by FFmpeg through PyAV) or a folder of numbered frames (decoded like photos). A
frame's index is its place in that order, counted as frames are decoded: neither frame counts nor rates written in a
file are believed. All frames of a video have the size of its first. A video in storage is decoded from a copy in the
cache, so that a connection that breaks never looks like a video that ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from sam3label.core.records import Frame, MediaItem
from sam3label.core.text import count
from sam3label.errors import UndecodableError, os_reason
from sam3label.media import discovery, storage
from sam3label.media.ahead import ahead
from sam3label.media.image import decode_image

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]

AHEAD = 8  # frames decoded ahead of their use: two batches of a GPU
_MISSING = 0.1  # share of the frames a file promises that may be missing without a word: edit lists cut some off


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded frame whose colours are computed on demand. `seconds` from the start, None where nobody knows."""

    index: int
    seconds: float | None
    pixels: Callable[[], Pixels]

    def frame(self, item: MediaItem) -> Frame:
        return Frame(item, self.index, self.pixels())


def pictures(item: MediaItem) -> Iterator[Picture]:
    """Return every frame of a video that can be decoded.

    Raises UndecodableError at the end of what could be read: at once when nothing could, after the last good frame
    when the file is damaged.
    """
    if is_folder(item):
        return _folder_pictures(Path(item.path))
    return _file_pictures(item.path)


def is_folder(item: MediaItem) -> bool:
    """Return whether a video is a folder of numbered frames."""
    return not storage.is_remote(item.path) and Path(item.path).is_dir()


def frames(item: MediaItem, start: int = 0) -> Iterator[Frame]:
    """Return frames from number `start` on, decoded ahead by a thread. Errors as `pictures`."""
    return ahead((one.frame(item) for one in pictures(item) if one.index >= start), AHEAD)


def sampled(item: MediaItem, every: int = 1, fps: float | None = None, start: int = 0) -> Iterator[Frame]:
    """Return every `every`-th frame, or the first of each 1/`fps` seconds; decoded ahead. Errors as `pictures`."""
    chosen = _by_time(pictures(item), fps) if fps else (one for one in pictures(item) if one.index % every == 0)
    return ahead((one.frame(item) for one in chosen if one.index >= start), AHEAD)


def _by_time(source: Iterable[Picture], fps: float) -> Iterator[Picture]:
    last = -1
    for one in source:
        if one.seconds is None:
            raise UndecodableError("a folder of frames has no frame rate: sample it with --every N instead of --fps")
        tick = int(one.seconds * fps + 1e-6)
        if tick > last:
            last = tick
            yield one


class FrameFiles:
    """The files of photos and of frames. The folder that was asked for last is listed once."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._listed: list[Path] = []

    def name(self, item: MediaItem, index: int) -> str:
        """Return the file name of a frame: its own in a folder of frames, else its number as a JPEG."""
        file = self.source(item, index)
        return file.name if file else f"{index:06d}.jpg"

    def number(self, item: MediaItem, name: str) -> int | None:
        """Return the number of the frame of that file name, with or without suffix; None where there can be none."""
        stem = PurePosixPath(name).stem
        if is_folder(item):
            return next((index for index, file in enumerate(self._frames(item)) if file.stem == stem), None)
        return int(stem) if stem.isdecimal() else None

    def source(self, item: MediaItem, index: int) -> Path | None:
        """Return the file that is a photo, or a frame of a folder of frames; None for a frame of a container file.

        Of a photo in storage only the name is one of a file.
        """
        if item.kind == "image":
            return Path(item.path)
        return self._frames(item)[index] if is_folder(item) else None

    def _frames(self, item: MediaItem) -> list[Path]:
        folder = Path(item.path)
        if folder != self._folder:
            self._folder, self._listed = folder, discovery.numbered(folder)
        return self._listed


class VideoFrames:
    """Frames of one video by number, decoded once when asked for in rising order."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        self._rest, self._next = pictures(MediaItem(self.path, self.path, "video")), 0

    def pixels(self, index: int) -> Pixels:
        """Return a frame's pixels. Raises UndecodableError when the video has no such frame (any more)."""
        if index < self._next:
            self._open()
        for one in self._rest:
            self._next = one.index + 1
            if one.index == index:
                return one.pixels()
        raise UndecodableError(f"it has no frame {index}")


# ---- a folder of frames


def _folder_pictures(folder: Path) -> Iterator[Picture]:
    size_hw: tuple[int, int] | None = None
    for index, path in enumerate(discovery.numbered(folder)):
        try:
            pixels = decode_image(path)
        except UndecodableError as error:
            raise UndecodableError(f"frame {path.name}: {error}") from error
        size_hw = size_hw or pixels.shape[:2]
        if pixels.shape[:2] != size_hw:
            raise UndecodableError(f"frame {path.name} has another size than those before it")
        yield Picture(index, None, partial(_same, pixels))


def _same(pixels: Pixels) -> Pixels:
    return pixels


# ---- a container file


def _file_pictures(path: str) -> Iterator[Picture]:
    import av

    if storage.is_remote(path):
        try:
            path = str(storage.local_copy(path))
        except OSError as error:
            raise UndecodableError(os_reason(error)) from error
    try:
        container = av.open(path)
    except (av.FFmpegError, OSError) as error:
        raise UndecodableError(f"not a video, or its header is damaged ({_short(error)})") from error
    with container:
        stream = container.streams.best("video")
        if stream is None:
            raise UndecodableError("it has no pictures (sound only?)")
        stream.thread_type = "AUTO"
        flaws = list[str]()
        size_hw, index = None, 0
        for picture in _decoded(container, stream, flaws):
            size_hw = size_hw or (picture.height, picture.width)
            yield Picture(index, _seconds(picture, stream, index), partial(_upright, picture, size_hw))
            index += 1
        _refuse_damaged(index, stream.frames, flaws)


def _decoded(container: Any, stream: Any, flaws: list[str]) -> Iterator[Any]:
    """Yield what can be decoded; packets that cannot be are left out and noted in `flaws`."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError as error:  # nothing more can be found in the file
            flaws.append(_short(error))
            return
        try:
            yield from packet.decode()
        except av.FFmpegError as error:
            flaws.append(_short(error))


def _refuse_damaged(found: int, promised: int, flaws: list[str]) -> None:
    if flaws or found < promised * (1 - _MISSING) or not found:
        of = f"{found} of {count(promised, 'frame')}" if promised else count(found, "frame")
        why = f" ({flaws[0]})" if flaws else ""
        raise UndecodableError(f"the video is damaged: {of} could be decoded{why}")


def _seconds(picture: Any, stream: Any, index: int) -> float:
    """Return when the frame is shown; from the rate where the file does not say."""
    if picture.pts is not None:
        return float((picture.pts - (stream.start_time or 0)) * picture.time_base)
    return index / float(stream.average_rate or stream.guessed_rate or 25)


def _upright(picture: Any, size_hw: tuple[int, int]) -> Pixels:
    """Colours of a frame, turned as its file says, in the raw size of the video's first frame."""
    height, width = size_hw
    pixels: Pixels = picture.reformat(width=width, height=height, format="rgb24").to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, round(picture.rotation / 90) % 4))


def _short(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def frame_rate(item: MediaItem) -> float:
    """Return frames per second, on average; 25 for a folder of frames and for files that do not say."""
    import av

    if is_folder(item):
        return 25.0
    try:
        with _headers(item.path) as file, av.open(file) as container:
            stream = container.streams.best("video")
            return float(stream.average_rate or stream.guessed_rate or 25) if stream else 25.0
    except (av.FFmpegError, OSError) as error:
        raise UndecodableError(f"not a video, or its header is damaged ({_short(error)})") from error


@contextmanager
def _headers(path: str) -> Iterator[str | IO[bytes]]:
    """Give what PyAV opens for the headers alone: a video in storage is not copied for that."""
    if storage.is_remote(path):
        with storage.opened(path) as file:
            yield file
    else:
        yield path


def frame_count(item: MediaItem) -> int:
    """Return how many frames a video has, by its header; 0 where that does not say, and for a file that is none."""
    import av

    if is_folder(item):
        return len(discovery.numbered(Path(item.path)))
    try:
        with _headers(item.path) as file, av.open(file) as container:
            stream = container.streams.best("video")
            if stream is None:
                return 0
            seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
            return int(stream.frames or seconds * float(stream.average_rate or 0))
    except (av.FFmpegError, OSError):
        return 0
