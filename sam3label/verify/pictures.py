"""What a verifier is shown: the photo, the same with numbered masks, one object enlarged with and without its mask.

Pixels are uint8 [H, W, 3]; pictures are JPEG bytes whose longer side is at most `SIDE`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from sam3label.core import masks
from sam3label.core.colors import Rgb
from sam3label.core.records import Candidate, Label
from sam3label.show.draw import paint_mask
from sam3label.show.lettering import Fonts

SIDE = 1008  # pixels: what SAM 3 itself saw
CROP_SIDE = 448
MASK_COLORS: tuple[Rgb, ...] = ((255, 0, 255), (0, 255, 255), (255, 255, 0))
MARGIN = 0.5  # of the object's longer side, around it

Pixels = npt.NDArray[np.uint8]
Masked = Label | Candidate


def whole(pixels: Pixels) -> bytes:
    """Return the photo as it is."""
    return _jpeg(_fitted(pixels, SIDE))


def numbered(pixels: Pixels, labels: Sequence[Masked]) -> bytes:
    """Return the photo with each label's mask painted over and its number, from 1, at its center."""
    picture = _fitted(pixels, SIDE)
    scale = picture.shape[1] / pixels.shape[1]
    for label, color in zip(labels, [contrasting(pixels, label) for label in labels], strict=True):
        paint_mask(picture, label.rle, color)
    fonts = Fonts()
    for number, label in enumerate(labels):
        x, y, w, h = (value * scale for value in label.box_xywh)
        _write(picture, fonts, str(number + 1), x + w / 2, y + h / 2)
    return _jpeg(picture)


def enlarged(pixels: Pixels, label: Masked) -> tuple[bytes, bytes]:
    """Return the label's surroundings enlarged: as they are, and with its mask."""
    x, y, w, h = label.box_xywh
    margin = MARGIN * max(w, h) + 8
    left, top = max(0, round(x - margin)), max(0, round(y - margin))
    right, bottom = min(pixels.shape[1], round(x + w + margin)), min(pixels.shape[0], round(y + h + margin))
    marked = pixels.copy()
    paint_mask(marked, label.rle, contrasting(pixels, label))
    plain, over = (_fitted(p[top:bottom, left:right], CROP_SIDE, enlarge=True) for p in (pixels, marked))
    return _jpeg(plain), _jpeg(over)


def contrasting(pixels: Pixels, label: Masked) -> Rgb:
    """Return the mask color that differs most from what is under the mask: one that is hard to miss."""
    x, y, mask = masks.crop(label.rle)
    if not mask.size:
        return MASK_COLORS[0]
    under = pixels[y : y + mask.shape[0], x : x + mask.shape[1]][mask].mean(axis=0)
    return max(MASK_COLORS, key=lambda color: float(np.abs(np.array(color) - under).max()))


def _fitted(pixels: Pixels, side: int, enlarge: bool = False) -> Pixels:
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    if scale >= 1 and not enlarge:
        return pixels.copy()
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.ascontiguousarray(cv2.resize(pixels, size, interpolation=how), np.uint8)


def _write(picture: Pixels, fonts: Fonts, text: str, x: float, y: float) -> None:
    sign = fonts.chip(text, 14, (255, 255, 255), (0, 0, 0))[: picture.shape[0], : picture.shape[1]]
    height, width = sign.shape[:2]
    top = min(max(0, round(y - height / 2)), picture.shape[0] - height)
    left = min(max(0, round(x - width / 2)), picture.shape[1] - width)
    picture[top : top + height, left : left + width] = sign


def _jpeg(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()
