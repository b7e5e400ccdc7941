"""The one decoder every room uses: uint8 RGB [H, W, 3] as a person sees the picture.

EXIF orientation is applied once; of an animation the first frame counts; transparency lies over white; numeric greys
are scaled by the rule in `_grey8`. ICC profiles are ignored, as trainers ignore them.
"""

from __future__ import annotations

import io
import math
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from sam3label.core.records import Stamp
from sam3label.errors import UndecodableError, os_reason
from sam3label.media import storage
from sam3label.media.memory import megapixels_that_fit
from sam3label.media.stamps import digest_of

# What a file may really be, whatever it is called. A closed list: PIL also knows formats that start other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "JPEG2000", "PPM", "AVIF")
BAND = 8 << 20  # pixels that become RGB at a time
_MOST_OF_OPENCV = 1 << 30  # pixels
_TIFF = b"II*\0", b"MM\0*"
TOO_LARGE = "too large"
_ODD_TIFF = "a TIFF of an unusual kind, or damaged: save it as RGB or grey"
_opening = threading.Lock()


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded photo, uint8 RGB [H, W, 3], and the stamp of the bytes it was decoded from."""

    pixels: npt.NDArray[np.uint8]
    stamp: Stamp | None = None


def decode_image(path: str | Path, max_megapixels: float | None = None) -> npt.NDArray[np.uint8]:
    """Return the pixels of `read_photo`."""
    return read_photo(path, max_megapixels).pixels


def megapixels(size_hw: tuple[int, int]) -> float:
    """Return the budget of a photo that was labelled: it is read again, whatever the budget was then."""
    return size_hw[0] * size_hw[1] / 1e6


def read_photo(path: str | Path, max_megapixels: float | None = None) -> Photo:
    """Return the file's pixels, uint8 RGB [H, W, 3], upright, writable and contiguous; hashed from the same reading.

    Raises UndecodableError with a short reason for anything that is not a whole image: a truncated file is refused,
    never filled up with grey. Images over `max_megapixels` (None: what one process may take of the free memory) are
    refused by their header, before they take memory.
    """
    limit = megapixels_that_fit() if max_megapixels is None else max_megapixels
    data, version = _read(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns of damaged metadata, which does not concern the pixels
            return Photo(_decode(data, limit), Stamp(len(data), version, digest_of([data])))
    except UndecodableError:
        raise
    except UnidentifiedImageError as error:
        known = data.startswith(_TIFF)
        raise (UndecodableError(_ODD_TIFF) if known else _undecodable(error)) from error
    except Exception as error:  # decoders answer damaged bytes with any exception there is
        raise _undecodable(error) from error


def upright_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) that `decode_image` would give, from the file's header. Raises UndecodableError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _opened(path) as image:
                turned = _orientation(image) in (5, 6, 7, 8)
                return (image.width, image.height) if turned else (image.height, image.width)
    except UndecodableError:
        raise
    except OSError as error:
        raise (_undecodable(error) if error.errno is None else UndecodableError(os_reason(error))) from error
    except Exception as error:  # as when decoding: damaged bytes give any exception there is
        raise _undecodable(error) from error


def is_too_large(path: str | Path, max_megapixels: float) -> bool:
    """Return whether `read_photo` would refuse the photo for its size alone."""
    try:
        height, width = upright_size(path)
    except UndecodableError:
        return False
    return height * width / 1e6 > max_megapixels


def _read(path: str | Path) -> tuple[bytes, int]:
    """Return the file's bytes and the time it was changed before; one that changes meanwhile is read again.

    Of an object in storage the time is 0: whoever listed it knows its version.
    """
    try:
        if storage.is_remote(path):
            return _not_empty(storage.read(str(path))), 0
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe called x.jpg would block for ever
            raise UndecodableError("not a regular file", lasting=False)
        data = Path(path).read_bytes()
    except OSError as error:
        raise UndecodableError(os_reason(error)) from error
    return _not_empty(data), status.st_mtime_ns


def _not_empty(data: bytes) -> bytes:
    if not data:
        raise UndecodableError("empty file (0 bytes)")
    return data


def _undecodable(error: Exception) -> UndecodableError:
    if isinstance(error, UnidentifiedImageError):
        return UndecodableError("not an image (unknown format, or its header is damaged)")
    if isinstance(error, MemoryError):
        return UndecodableError("not enough memory to decode it", lasting=False)
    if "truncated" in str(error).lower():
        return UndecodableError("truncated (the file ends before the picture does)")
    return UndecodableError("damaged (the decoder cannot read it)")


@contextmanager
def _opened(file: str | Path | IO[bytes], max_megapixels: float | None = None) -> Iterator[Image.Image]:
    """Open an image by its header, under our limit in place of PIL's, which is one for the whole process."""
    with _opening:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    with image:
        size = megapixels((image.height, image.width))
        if max_megapixels is not None and size > max_megapixels:
            raise UndecodableError(
                f"{TOO_LARGE} ({image.width} x {image.height}): --max-megapixels {math.ceil(size)} reads it"
            )
        yield image


def _decode(data: bytes, max_megapixels: float) -> npt.NDArray[np.uint8]:
    with _opened(io.BytesIO(data), max_megapixels) as image:
        plain = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
        pixels = decode_jpeg(data) if plain and image.width * image.height <= _MOST_OF_OPENCV else None
        if pixels is None:
            image.load()  # may itself turn a TIFF upright, after which its orientation reads 1
            pixels = _rgb(image)
        return _upright(pixels, _orientation(image))


def decode_jpeg(data: bytes) -> npt.NDArray[np.uint8] | None:
    """OpenCV's JPEG decoder: the same pixels as PIL's in a third of the time (12 megapixels: 61 ms, not 204).

    None where it is not to be trusted and PIL must judge: some versions fill a truncated file up with grey.
    """
    scan = _scan_start(data)
    if scan is None or data.find(b"\xff\xd9", scan) < 0:  # no end of image after the thumbnails in the header
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels: npt.NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return pixels


def _scan_start(data: bytes) -> int | None:
    """Return the offset of a JPEG's first start-of-scan marker; None if the segments before it do not add up."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return at
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Any PIL mode as RGB. Transparency goes over white, as viewers show it: what is hidden is not labelled."""
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_grey8(np.asarray(image))[:, :, None], 3, axis=2)
    rows = max(1, BAND // image.width)
    if rows >= image.height:
        return np.array(_over_white(image))
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):  # PIL and numpy hold a copy each while one is made of the other
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + band.height] = np.asarray(_over_white(band))
    return pixels


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image.convert("RGBA"))
    return page.convert("RGB")


def _grey8(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Numeric grey [H, W] to 8 bits.

    Integers keep their top 8 bits, counted from the smallest usual depth (8, 10, 12, 14, 16, 24, 32) that holds the
    image's maximum: 12-bit camera data in 16-bit files is common, and would come out black from the full range.
    Floats in [0, 1] are scaled by 255, floats in [0, 255] rounded, others stretched from
    minimum to maximum; what is not finite is as dark as the darkest.
    (16-bit *colour* is reduced by PIL, which keeps the high byte.)
    """
    if values.dtype.kind == "f":
        return _float_grey8(values.astype(np.float64))
    whole = np.maximum(values.astype(np.int64), 0)
    top = int(whole.max())
    bits = next(depth for depth in (8, 10, 12, 14, 16, 24, 32) if top < 1 << depth)
    return (whole >> (bits - 8)).astype(np.uint8)


def _float_grey8(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    known = np.isfinite(values)
    low, high = (float(values[known].min()), float(values[known].max())) if known.any() else (0.0, 0.0)
    values = np.where(known, values, low)
    if low >= 0 and high <= 1:
        values = values * 255
    elif low < 0 or high > 255:
        values = (values - low) * (255 / ((high - low) or 1.0))
    return np.rint(values).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # unreadable metadata: the pixels are as they are
        return 1


def _upright(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Undo EXIF orientation 2..8 (TIFF 6.0, tag 274); any other value means upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
