"""Masks, outlines and names on pixels: the one way in which sheets, reports, previews and videos draw labels.

Pixels are uint8 [H, W, 3] RGB; masks are run-length codes of the same H x W. Drawing happens at the size of the picture
that is asked for, so a 40 megapixel photo costs one resize, and edges are smooth at any scale.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from sam3label.core import masks
from sam3label.core.colors import Rgb, class_color
from sam3label.core.records import Label, Rle
from sam3label.show.lettering import Fonts

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]
Rectangle = tuple[float, float, float, float]

FILL = 0.42  # how much of a mask's pixel is its color
MOST_NAMES = 0.15  # of the picture that names may cover: in a crowd they would hide what they name


def class_name(class_id: int, names: Sequence[str], fonts: Fonts) -> str:
    """Return what a picture calls the class: its name, or its number where no font can write the name."""
    named = 0 <= class_id < len(names) and fonts.readable(names[class_id])
    return names[class_id] if named else f"class {class_id}"


def draw_labels(
    pixels: Pixels,
    labels: Sequence[Label],
    names: Sequence[str],
    max_side: int | None = None,
    *,
    tracks: bool = False,
    fonts: Fonts | None = None,
) -> Pixels:
    """Draw every label's mask, outline and name on a copy whose longer side is `max_side` (by default as it is).

    A label has its class's color, and its score beside the name unless a person drew it. With `tracks` it has its
    track's color and number instead, so that an object can be followed through a video. Where there is no room for all
    names, the largest objects of each class have theirs. Whoever draws many pictures gives `fonts`, so that names are
    looked up once.

    Returns uint8 [h, w, 3].
    """
    fonts = fonts or Fonts()
    picture = _resized(pixels, max_side)
    ordered = sorted(labels, key=lambda label: -label.area)  # small objects stay visible on large ones
    for label in ordered:
        paint_mask(picture, label.rle, _color(label, tracks))
    scale = picture.shape[1] / pixels.shape[1]
    taken: list[Rectangle] = []
    room = MOST_NAMES * picture.shape[0] * picture.shape[1]
    for label in _by_turns(ordered):
        x, y, w, h = (value * scale for value in label.box_xywh)
        name = _text(label, names, tracks, fonts)
        color = _color(label, tracks)
        chip = fonts.chip(name, _letters(picture), _ink(color), color)
        if taken and room < chip.shape[0] * chip.shape[1]:
            break
        room -= chip.shape[0] * chip.shape[1]
        _put_chip(picture, (x, y, w, h), chip, taken)
    return picture


def _by_turns(labels: Sequence[Label]) -> list[Label]:
    """Return the first label of each class, then the second of each, and so on."""
    turns: Counter[int] = Counter()
    numbered = []
    for label in labels:
        numbered.append((turns[label.class_id], label))
        turns[label.class_id] += 1
    return [label for _, label in sorted(numbered, key=lambda pair: pair[0])]


def paint_mask(picture: Pixels, rle: Rle, color: Rgb) -> None:
    """Blend one mask and its outline into the picture (any size of the same shape), by coverage: edges are smooth."""
    cover, top, left = coverage(rle, picture.shape[0], picture.shape[1])
    height, width = cover.shape
    if not height or not width:
        return
    part = picture[top : top + height, left : left + width]
    side = 3 + 2 * (picture.shape[0] // 1080)  # pixels an outline is wide, and one more
    edge = cv2.morphologyEx(cover, cv2.MORPH_GRADIENT, np.ones((side, side), np.uint8))
    # the fill first, the outline over it
    kept = (1 - cover / 255 * FILL) * (1 - edge / 255)
    part[...] = np.rint(part * kept[..., None] + np.array(color) * (1 - kept[..., None])).astype(np.uint8)


def outline(box_xywh: Rectangle, size_hw: tuple[int, int]) -> Rle:
    """Return a frame along a box, for what has no mask: as thick as half a per cent of the image, in its size."""
    height, width = size_hw
    line = max(1, max(height, width) // 200)
    x, y = (min(round(low), high - 1) for low, high in zip(box_xywh[:2], (width, height), strict=True))
    right, bottom = round(box_xywh[0] + box_xywh[2]), round(box_xywh[1] + box_xywh[3])
    frame = np.ones((max(1, bottom - y), max(1, right - x)), np.bool_)
    frame[line:-line, line:-line] = False
    return masks.paste(x, y, frame, size_hw)


def _resized(pixels: Pixels, max_side: int | None) -> Pixels:
    height, width = pixels.shape[:2]
    if max_side is None:
        return pixels.copy()
    scale = max_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resized = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.array(resized)


def coverage(rle: Rle, height: int, width: int) -> tuple[npt.NDArray[np.uint8], int, int]:
    """Return (uint8 [h, w] of how much of each pixel a mask covers, top, left) in a picture of height x width."""
    x, y, mask = masks.crop(rle)
    if not mask.size:
        return np.zeros((0, 0), np.uint8), 0, 0
    rows = _axis(y, mask.shape[0], rle.size_hw[0], height)
    columns = _axis(x, mask.shape[1], rle.size_hw[1], width)
    source = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
    source[y - rows.start :, x - columns.start :][: mask.shape[0], : mask.shape[1]] = mask * 255
    box = (columns.box[0], rows.box[0], columns.box[1], rows.box[1])
    size = columns.shown[1] - columns.shown[0], rows.shown[1] - rows.shown[0]
    cover = np.asarray(Image.fromarray(source).resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0))
    steep = width / rle.size_hw[1]  # an enlarged edge is blurred over this many pixels: make it one
    if steep > 1:
        cover = np.clip((cover - 127.5) * steep + 127.5, 0, 255).astype(np.uint8)
    return cover, rows.shown[0], columns.shown[0]


@dataclass(frozen=True, slots=True)
class _Axis:
    """One side of a mask's box and a margin: pixels of the mask [start, stop), those of the picture that they fill,
    and where these begin and end inside the former."""

    start: int
    stop: int
    shown: tuple[int, int]
    box: tuple[float, float]


def _axis(first: int, extent: int, full: int, shown: int) -> _Axis:
    scale = shown / full
    margin = math.ceil(4 / scale) + 2
    start, stop = max(0, first - margin), min(full, first + extent + margin)
    low, high = math.ceil(start * scale), shown if stop == full else math.floor(stop * scale)
    first_px, last_px = max(0.0, low / scale - start), min(high / scale - start, float(stop - start))
    return _Axis(start, stop, (low, high), (first_px, last_px))


# ---- names


def _color(label: Label, tracks: bool) -> Rgb:
    return class_color(label.track_id if tracks and label.track_id is not None else label.class_id)


def _text(label: Label, names: Sequence[str], tracks: bool, fonts: Fonts) -> str:
    name = class_name(label.class_id, names, fonts)
    if tracks:
        return name if label.track_id is None else f"{name} #{label.track_id}"
    return name if label.source == "human" else f"{name} {label.score:.2f}"  # a person's label has no score


def _letters(picture: Pixels) -> int:
    """Return how many pixels high names are written."""
    height, width = picture.shape[:2]
    letters: int = max(10, min(14, width // 28), height // 60)
    return letters


def _put_chip(picture: Pixels, box_xywh: Rectangle, chip: Pixels, taken: list[Rectangle]) -> None:
    """Put a chip with a name at the box, moved away from chips that are already there."""
    height, width = picture.shape[:2]
    chip = chip[:height, :width]
    place = _free_place(box_xywh, (chip.shape[1], chip.shape[0]), (width, height), taken)
    taken.append(place)
    left, top = round(place[0]), round(place[1])
    part = picture[top : top + chip.shape[0], left : left + chip.shape[1]]
    part[...] = chip[: part.shape[0], : part.shape[1]]


def _free_place(
    box: Rectangle, chip_wh: tuple[float, float], size_wh: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Return a place above the box, inside its top or bottom, below or in its middle: the first that hides no chip."""
    left, top, _, height = box
    wide, high = chip_wh
    bottom, middle = top + height, top + height / 2
    x = max(0.0, min(left, size_wh[0] - wide))
    places = []
    for y in (top - high, top, bottom - high, bottom, middle, middle + high, middle - high):
        y = max(0.0, min(y, size_wh[1] - high))
        places.append((x, y, x + wide, y + high))
    free = (place for place in places if not any(_overlap(place, other) for other in taken))
    return next(free, places[0])


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _ink(color: Rgb) -> Rgb:
    """Return black or white, whichever reads better on the color."""
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else (255, 255, 255)
