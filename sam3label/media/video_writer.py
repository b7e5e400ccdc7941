"""H.264 files, written in one place: pictures in, a file that appears whole or not at all.

OpenCV's wheels cannot write H.264, and browsers and FiftyOne play little else, so PyAV's own x264 encodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from sam3label.errors import OutputError

if TYPE_CHECKING:
    import av

Pixels = npt.NDArray[np.uint8]  # [H, W, 3] RGB

SUFFIXES = (".mp4", ".mov")
_CLOCK = Fraction(1, 90_000)  # of frames that come with their times


class VideoWriter:
    """Writes one H.264 video; use it in a `with` block, and call `write` for each picture.

    Pictures have the size of the first. With `timed` each comes with its time; else they follow at `rate` a second.
    `repeatable` gives the same bytes for the same pictures every time, at a few per cent more of them: x264's
    macroblock tree, left out then, chooses other bits from run to run. Raises `OutputError` where the file cannot be
    written; nothing is left of it then, and an older file of that name stays.

    >>> with VideoWriter("out.mp4", rate=25) as video:
    ...     for value in (0, 128, 255):
    ...         video.write(np.full((48, 64, 3), value, np.uint8))
    >>> video.frames
    3
    """

    def __init__(
        self, path: str | Path, rate: float, *, crf: int = 20, timed: bool = False, repeatable: bool = False
    ) -> None:
        self.path = Path(path)
        self.frames = 0
        self._partial = self.path.with_name(f".{self.path.stem}.partial{self.path.suffix}")
        self._rate = Fraction(rate).limit_denominator(1001)
        self._timed = timed
        self._options = {"crf": str(crf)} | ({"x264-params": "mbtree=0"} if repeatable else {})
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> Self:
        import av

        with _told(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self._partial), "w", format=self.path.suffix[1:].lower())
        return self

    def write(self, pixels: Pixels, seconds: float | None = None) -> None:
        """Add one picture, uint8 [H, W, 3]; `seconds` from the start, for a `timed` video."""
        import av

        with _told(self.path):
            if self._stream is None:
                self._stream = self._new_stream(pixels)
            frame = av.VideoFrame.from_ndarray(_even(pixels), format="rgb24")
            if self._timed and seconds is not None:
                frame.pts, frame.time_base = round(seconds / _CLOCK), _CLOCK
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with _told(self.path):
                if kind is None and self._stream is not None:
                    self._container.mux(self._stream.encode(None))
                self._container.close()
                if kind is None and self.frames:
                    self._partial.replace(self.path)
        finally:
            self._partial.unlink(missing_ok=True)

    def _new_stream(self, pixels: Pixels) -> av.VideoStream:
        height, width = pixels.shape[:2]
        stream: av.VideoStream = self._container.add_stream("libx264", rate=self._rate, options=self._options)
        stream.height = height + height % 2
        stream.width = width + width % 2
        stream.pix_fmt = "yuv420p"
        if self._timed:
            stream.codec_context.time_base = _CLOCK
        return stream


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns what the disk or the encoder refuses into one sentence."""
    import av

    try:
        yield
    except (OSError, av.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} cannot be written ({reason}). Give another place with -o.") from error


def _even(pixels: Pixels) -> Pixels:
    """Return the picture with even sides, as H.264 wants: the last row or column is repeated."""
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(pixels)
