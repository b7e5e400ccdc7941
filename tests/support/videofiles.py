"""Small video files for tests, made with PyAV."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from sam3label.demo.shapes import make_clip

CODECS = {".mp4": "libx264", ".mov": "mjpeg", ".avi": "mjpeg", ".mkv": "libx264", ".webm": "libvpx-vp9"}


def clip_pixels(n: int, seed: int = 5, size_hw: tuple[int, int] = (64, 80)) -> list[np.ndarray]:
    return [scene.image for scene in make_clip(seed, n, size_hw=size_hw)]


def write_video(
    path: Path, pixels: Iterable[np.ndarray], fps: int = 10, times_ms: Sequence[int] | None = None, gop: int = 12
) -> Path:
    """`times_ms` gives each frame a time of its own: a variable frame rate."""
    pixels = list(pixels)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=fps)
        stream.height, stream.width = pixels[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if CODECS[path.suffix] == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, one in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(one, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, degrees: int) -> Path:
    """Write a rotation (90, 180 or 270, clockwise on the screen) into an MP4's track header, as phones do."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of other fields
    data[start : start + 36] = matrix
    path.write_bytes(data)
    return path


def write_frames(folder: Path, pixels: Iterable[np.ndarray], suffix: str = ".jpg") -> Path:
    """A folder of numbered frames."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(pixels):
        cv2.imwrite(str(folder / f"{number:05d}{suffix}"), one[..., ::-1])
    return folder
