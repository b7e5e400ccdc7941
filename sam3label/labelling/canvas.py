"""Composites that show a model examples beside a target: pure geometry, there and back.

    +-------+---------------------+
    | crop  |                     |     the strip takes 1 - share of the width, the target the rest, both the full
    |-------|       target        |     height; each crop is an example's box with some of what is around it, scaled
    | crop  |                     |     to fit its cell of the strip, on mid-grey
    +-------+---------------------+

The demo checkpoint was trained on this layout. Masks found on the composite are column-major run-length code, in which
the target is simply what follows the strip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.core.records import BoxPrompt, Rle
from sam3label.labelling.windows import Window

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]
Box4 = npt.NDArray[np.float32]  # (x1, y1, x2, y2)

GREY = 128
GAP_PX = 4  # between a crop and its cell, both sides together
MARGIN = 0.25  # of the example's longer side, around it
MOST_CROPS = 4
OVERLAP = 0.2  # of a tile with the next


@dataclass(frozen=True, slots=True)
class Crop:
    """An example with its surroundings; `box` in the crop's pixels."""

    pixels: Pixels
    box: Box4
    positive: bool


@dataclass(frozen=True, slots=True)
class Canvas:
    """A composite [H, strip + W, 3] of crops and a target H x W, and the crops' boxes on it."""

    pixels: Pixels
    strip: int
    boxes: BoxPrompt


def cut(image: Pixels, box_xyxy: Box4, positive: bool = True, margin: float = MARGIN) -> Crop:
    """Return the crop around a box given in fractions of the image."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = (float(v) for v in box_xyxy * np.array((width, height, width, height), np.float32))
    pad = round(margin * (max(x2 - x1, y2 - y1) - 1))
    left, top = max(int(x1 + 0.01) - pad, 0), max(int(y1 + 0.01) - pad, 0)  # a box edge is exact but for rounding
    right, bottom = min(int(np.ceil(x2 - 0.01)) + pad, width), min(int(np.ceil(y2 - 0.01)) + pad, height)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    box = np.array((x1 - left, y1 - top, x2 - left, y2 - top), np.float32)
    return Crop(image[top:bottom, left:right].copy(), box, positive)


def compose(target: Pixels, crops: Sequence[Crop], share: float) -> Canvas:
    """Return the composite of a target and 1 to `MOST_CROPS` crops. `share` of its width is the target's."""
    height, width = target.shape[:2]
    strip = max(1, round((1 - share) / share * width))
    pixels = np.full((height, strip + width, 3), GREY, np.uint8)
    pixels[:, strip:] = target
    cell = height // len(crops)
    boxes = [_paste(pixels, crop, i * cell, cell, strip) for i, crop in enumerate(crops)]
    scale = np.array((strip + width, height) * 2, np.float32)
    return Canvas(pixels, strip, BoxPrompt(np.stack(boxes) / scale, tuple(crop.positive for crop in crops)))


def _paste(pixels: Pixels, crop: Crop, top: int, cell: int, strip: int) -> Box4:
    """Put a crop into the middle of its cell, as large as fits, and return its box on the composite."""
    height, width = crop.pixels.shape[:2]
    scale = min(max(1, cell - GAP_PX) / height, max(1, strip - GAP_PX) / width)
    size = max(1, int(width * scale)), max(1, int(height * scale))
    patch = cv2.resize(crop.pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    y, x = top + (cell - size[1]) // 2, (strip - size[0]) // 2
    y, x = max(y, 0), max(x, 0)
    room = pixels[y : y + size[1], x : min(x + size[0], strip)]
    room[:] = patch[: room.shape[0], : room.shape[1]]
    grown = np.array((size[0] / width, size[1] / height) * 2, np.float32)
    return crop.box * grown + np.array((x, y, x, y), np.float32)


def on_target(rle: Rle, strip: int) -> Rle | None:
    """Return the part of a composite's mask that lies on the target, as its mask; None if most lies on the strip."""
    height, width = rle.size_hw
    edges = np.cumsum(masks.to_runs(rle)) - strip * height
    lengths = np.diff(np.maximum(edges, 0), prepend=0)
    inside = int(lengths[1::2].sum())
    if 2 * inside < masks.area(rle) or not inside:
        return None
    start = int(np.argmax(edges > 0))  # the first run that reaches the target
    lengths = np.concatenate(([0], lengths[start:])) if start % 2 else lengths[start:]
    return masks.from_runs(lengths, (height, width - strip))


def windows(size_hw: tuple[int, int], tiles: int) -> list[Window]:
    """Return the whole image and, where `tiles` > 1, its `tiles` x `tiles` overlapping parts, one a composite."""
    height, width = size_hw
    whole = Window(0, 0, width, height)
    if tiles == 1:
        return [whole]
    parts = [(y, x) for y in _spans(height, tiles) for x in _spans(width, tiles)]
    return [whole, *(Window(x[0], y[0], x[1], y[1]) for y, x in parts)]


def _spans(length: int, parts: int) -> list[tuple[int, int]]:
    """Return (start, size) of equal overlapping parts that cover 0..length."""
    size = min(length, int(np.ceil(length / (parts - OVERLAP * (parts - 1)))))
    return [(round(i * (length - size) / (parts - 1)), size) for i in range(parts)]


def largest(crops: Sequence[Crop]) -> list[Crop]:
    """Return the crops of one image that a canvas may show, largest first: they say most."""
    ordered = sorted(crops, key=lambda crop: -crop.pixels.shape[0] * crop.pixels.shape[1])
    positive, negative = ([c for c in ordered if c.positive is sign][:MOST_CROPS] for sign in (True, False))
    return [*positive, *negative]


def choose(by_image: Sequence[Sequence[Crop]]) -> list[Crop]:
    """Return at most `MOST_CROPS`: the first of each image, then the second, ...; a negative one is the last."""
    turns = [crops[i] for i in range(MOST_CROPS) for crops in _signed(by_image, True) if i < len(crops)]
    against = [crops[i] for i in range(MOST_CROPS) for crops in _signed(by_image, False) if i < len(crops)]
    return [*turns[: MOST_CROPS - bool(against)], *against][:MOST_CROPS]


def _signed(by_image: Sequence[Sequence[Crop]], sign: bool) -> list[list[Crop]]:
    return [[crop for crop in crops if crop.positive is sign] for crops in by_image]
