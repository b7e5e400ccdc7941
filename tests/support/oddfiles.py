"""A folder of broken and odd photo files, each with what must become of it.

`write(folder)` makes them all and says of each by its id (POSIX path relative to the folder) the size in which it must
be labelled, or a fragment of the reason why it cannot be.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage import data

Expectation = tuple[int, int] | str  # (height, width), or a part of the reason
HEIGHT, WIDTH = 90, 120  # not square, so that a wrong orientation shows


def photo() -> npt.NDArray[np.uint8]:
    """A photo [90, 120, 3] whose four corners differ."""
    image = Image.fromarray(data.astronaut()).crop((100, 20, 400, 245)).resize((WIDTH, HEIGHT))
    pixels = np.array(image)
    for corner, colour in {
        (0, 0): (255, 0, 0),
        (0, -1): (0, 255, 0),
        (-1, 0): (0, 0, 255),
        (-1, -1): (255, 255, 0),
    }.items():
        rows = slice(0, 30) if corner[0] == 0 else slice(-30, None)
        columns = slice(0, 30) if corner[1] == 0 else slice(-30, None)
        pixels[rows, columns] = colour
    return pixels


def encoded(pixels: npt.NDArray[np.generic] | Image.Image, format: str, **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def rotated(orientation: int, format: str = "JPEG") -> bytes:
    """The photo, stored so that EXIF `orientation` turns it upright: every viewer shows `photo()`."""
    stored = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda p: np.rot90(p, -1),
    }[orientation](photo())
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    return encoded(np.ascontiguousarray(stored), format, exif=exif.tobytes(), **options)


def bomb_png(width: int, height: int) -> bytes:
    """A few bytes that promise a picture of gigapixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def frames() -> list[Image.Image]:
    return [Image.fromarray(np.roll(photo(), 20 * i, axis=1)) for i in range(3)]


def with_bad_exif() -> bytes:
    jpeg = encoded(photo(), "JPEG")
    segment = b"Exif\0\0" + b"MM\0*\xff\xff\xff\xff" + b"garbage" * 3
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def thumbnail_then_truncated() -> bytes:
    """A truncated JPEG whose EXIF thumbnail is whole, end marker included."""
    thumbnail = b"Exif\0\0" + encoded(photo()[::4, ::4], "JPEG")
    jpeg = encoded(photo(), "JPEG", quality=95)
    whole = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + jpeg[2:]
    return whole[: len(whole) * 2 // 3]


def transparent() -> Image.Image:
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:, : WIDTH // 2] = 0
    return Image.fromarray(np.dstack([photo(), alpha]))


def palette_with_transparency() -> bytes:
    image = Image.fromarray(photo()).quantize(64)
    return encoded(image, "PNG", transparency=0)


def grey16(top: int) -> npt.NDArray[np.uint16]:
    return (photo()[..., 1].astype(np.float64) / 255 * top).astype(np.uint16)


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _zeroed(content: bytes) -> bytes:
    """The file with the middle tenth of it lost."""
    start, stop = len(content) * 45 // 100, len(content) * 55 // 100
    return content[:start] + bytes(stop - start) + content[stop:]


SIZE = (HEIGHT, WIDTH)
TRUNCATED = "truncated"
NOT_AN_IMAGE = "not an image"

# name -> (content, expectation)
FILES: dict[str, tuple[Callable[[], bytes], Expectation]] = {
    "plain.jpg": (lambda: encoded(photo(), "JPEG"), SIZE),
    "UPPER.JPG": (lambda: encoded(photo(), "JPEG"), SIZE),
    "progressive.jpeg": (lambda: encoded(photo(), "JPEG", progressive=True), SIZE),
    "grey.jpg": (lambda: encoded(photo()[..., 0], "JPEG"), SIZE),
    "cmyk.jpg": (lambda: encoded(Image.fromarray(photo()).convert("CMYK"), "JPEG"), SIZE),
    "two-pictures.jpg": (lambda: encoded(frames()[0], "MPO", save_all=True, append_images=frames()[1:]), SIZE),
    "trailing-data.jpg": (lambda: encoded(photo(), "JPEG") + b"\xff\xda motion photo" * 100, SIZE),
    "bad-exif.jpg": (with_bad_exif, SIZE),
    **{f"exif-{i}.jpg": (lambda i=i: rotated(i), SIZE) for i in range(1, 9)},
    "exif-6.png": (lambda: rotated(6, "PNG"), SIZE),
    "exif-6.webp": (lambda: rotated(6, "WEBP"), SIZE),
    "exif-6.tif": (lambda: rotated(6, "TIFF"), SIZE),
    "plain.png": (lambda: encoded(photo(), "PNG"), SIZE),
    "grey16-full.png": (lambda: encoded(grey16(65535), "PNG"), SIZE),
    "grey16-12bit.tif": (lambda: encoded(grey16(4095), "TIFF"), SIZE),
    "float.tiff": (lambda: encoded((photo()[..., 1] / 255).astype(np.float32), "TIFF"), SIZE),
    "one-bit.png": (lambda: encoded(Image.fromarray(photo()).convert("1"), "PNG"), SIZE),
    "palette.png": (lambda: encoded(Image.fromarray(photo()).quantize(64), "PNG"), SIZE),
    "palette-transparent.png": (palette_with_transparency, SIZE),
    "rgba.png": (lambda: encoded(transparent(), "PNG"), SIZE),
    "grey-alpha.png": (lambda: encoded(transparent().convert("LA"), "PNG"), SIZE),
    "plain.webp": (lambda: encoded(photo(), "WEBP"), SIZE),
    "animated.webp": (lambda: encoded(frames()[0], "WEBP", save_all=True, append_images=frames()[1:]), SIZE),
    "animated.png": (lambda: encoded(frames()[0], "PNG", save_all=True, append_images=frames()[1:]), SIZE),
    "pages.tif": (lambda: encoded(frames()[0], "TIFF", save_all=True, append_images=frames()[1:]), SIZE),
    "lzw.tif": (lambda: encoded(photo(), "TIFF", compression="tiff_lzw"), SIZE),
    "plain.bmp": (lambda: encoded(photo(), "BMP"), SIZE),
    "one-pixel.png": (lambda: encoded(photo()[:1, :1], "PNG"), (1, 1)),
    "wide.jpg": (lambda: encoded(np.resize(photo(), (10, 20_000, 3)), "JPEG"), (10, 20_000)),
    "tall.png": (lambda: encoded(np.resize(photo(), (20_000, 10, 3)), "PNG"), (20_000, 10)),
    "really-a-png.jpg": (lambda: encoded(photo(), "PNG"), SIZE),
    "really-a-gif.png": (lambda: encoded(frames()[0], "GIF", save_all=True, append_images=frames()[1:]), SIZE),
    "Übung 写真 🚜.jpg": (lambda: encoded(photo(), "JPEG"), SIZE),
    "two words/with space.jpg": (lambda: encoded(photo(), "JPEG"), SIZE),
    "x.jpg/inside.jpg": (lambda: encoded(photo(), "JPEG"), SIZE),
    "empty.jpg": (lambda: b"", "empty file"),
    "text.jpg": (lambda: b"This is not a photo.\n" * 20, NOT_AN_IMAGE),
    "page.png": (lambda: b"<!doctype html><title>404</title>" * 9, NOT_AN_IMAGE),
    "header-only.jpg": (lambda: encoded(photo(), "JPEG")[:20], NOT_AN_IMAGE),
    "zeros.jpg": (lambda: bytes(5000), NOT_AN_IMAGE),
    "truncated.jpg": (lambda: _half(encoded(photo(), "JPEG")), TRUNCATED),
    "truncated-progressive.jpg": (lambda: _half(encoded(photo(), "JPEG", progressive=True)), TRUNCATED),
    "truncated-last-byte.jpg": (lambda: encoded(photo(), "JPEG")[:-1], TRUNCATED),
    "truncated-with-thumbnail.jpg": (thumbnail_then_truncated, TRUNCATED),
    "truncated-cmyk.jpg": (lambda: _half(encoded(Image.fromarray(photo()).convert("CMYK"), "JPEG")), TRUNCATED),
    "truncated.png": (lambda: _half(encoded(photo(), "PNG")), TRUNCATED),
    "truncated.webp": (lambda: _half(encoded(photo(), "WEBP", lossless=True)), "damaged"),
    "truncated.bmp": (lambda: _half(encoded(photo(), "BMP")), TRUNCATED),
    "truncated.tif": (lambda: _half(encoded(photo(), "TIFF")), TRUNCATED),
    "truncated-lzw.tif": (
        lambda: _half(encoded(photo(), "TIFF", compression="tiff_lzw")),
        "a TIFF of an unusual kind, or damaged",
    ),
    "damaged-lzw.tif": (lambda: _zeroed(encoded(photo(), "TIFF", compression="tiff_lzw")), "damaged"),
    "damaged.png": (lambda: encoded(photo(), "PNG").replace(b"IDAT", b"IDAX", 1), "damaged"),
    "bomb.png": (lambda: bomb_png(60_000, 60_000), "too large"),
}


@dataclass(frozen=True)
class Odd:
    """One odd file: labelled in `size_hw`, or failed with `reason` in its reason."""

    name: str
    size_hw: tuple[int, int] | None = None
    reason: str = ""


def write(folder: Path) -> list[Odd]:
    """Write everything in FILES, and what is no ordinary file: broken links, looping links, a pipe, hidden files."""
    for name, (content, _) in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content())
    (folder / ".hidden.jpg").write_bytes(b"never looked at")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "inside.jpg").write_bytes(b"never looked at")
    (folder / "notes.txt").write_text("not a photo, and not named like one")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "two words" / "up").symlink_to("..", target_is_directory=True)
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "link.jpg").symlink_to("plain.jpg")
    os.mkfifo(folder / "pipe.jpg")
    links: dict[str, Expectation] = {
        "self.jpg": "too many levels of symbolic links",
        "gone.jpg": "no such file",
        "link.jpg": SIZE,
        "pipe.jpg": "not a regular file",
    }
    wanted = {name: expectation for name, (_, expectation) in FILES.items()} | links
    return [Odd(name, reason=want) if isinstance(want, str) else Odd(name, want) for name, want in wanted.items()]
