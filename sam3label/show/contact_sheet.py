"""Pictures of labels: one image with its masks and names drawn on it, and sheets of many such images.

Pixels are uint8 [H, W, 3] RGB; masks are run-length codes of the same H x W. Drawing happens at the size of the
picture that is asked for, so a 40 megapixel photo costs one resize, and edges are smooth at any scale.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter, ImageFont

from sam3label.core import masks
from sam3label.core.files import write_whole
from sam3label.core.records import Label
from sam3label.errors import OutputError

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]
Rgb = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

CELL_PX = 400
MARGIN_PX = 10
TITLE_PX = 15
FILL = 0.42  # how much of a mask's pixel is its class colour
BACKGROUND = "#16181d"


def class_color(class_id: int) -> Rgb:
    """A colour for a class id: neighbours lie a golden angle apart on the hue circle, so small ids never look alike."""
    hue = (0.02 + class_id * 0.61803398875) % 1.0
    lightness = (0.55, 0.68, 0.45)[class_id // 8 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.88)
    return round(red * 255), round(green * 255), round(blue * 255)


def class_name(class_id: int, names: Sequence[str]) -> str:
    return names[class_id] if 0 <= class_id < len(names) else f"class {class_id}"


def draw_labels(pixels: Pixels, labels: Sequence[Label], names: Sequence[str], max_side: int = CELL_PX) -> Image.Image:
    """The image with every label's mask, outline, name and score, its longer side `max_side` pixels."""
    height, width = pixels.shape[:2]
    scale = max_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    ordered = sorted(labels, key=lambda label: -label.area)  # small objects stay visible on large ones
    for label in ordered:
        _paint_mask(picture, label)
    _write_names(picture, ordered, names, scale)
    return picture


def contact_sheet(
    images: Sequence[tuple[Pixels, Sequence[Label], str]], names: Sequence[str], path: str | Path, columns: int = 0
) -> None:
    """Write a PNG grid of (pixels, labels, title). `columns` 0 chooses a grid a little wider than high."""
    if not images:
        raise OutputError(f"No contact sheet was written to {path}: there is no image to show.")
    columns = min(columns or math.ceil(math.sqrt(len(images) * 1.2)), len(images))
    cells = [(draw_labels(pixels, labels, names), title) for pixels, labels, title in images]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(picture.height for picture, _ in row) for row in rows]
    step_x, gap_y = CELL_PX + MARGIN_PX, TITLE_PX + 2 * MARGIN_PX
    sheet = Image.new("RGB", (columns * step_x + MARGIN_PX, MARGIN_PX + sum(h + gap_y for h in heights)), BACKGROUND)
    top = MARGIN_PX
    for row, height in zip(rows, heights, strict=True):
        for index, (picture, title) in enumerate(row):
            left = MARGIN_PX + index * step_x
            sheet.paste(picture, (left + (CELL_PX - picture.width) // 2, top + height - picture.height))
            _write_title(sheet, title, left, top + height + MARGIN_PX // 2)
        top += height + gap_y
    png = io.BytesIO()
    sheet.save(png, format="PNG")
    write_whole(path, png.getvalue())


def _paint_mask(picture: Image.Image, label: Label) -> None:
    """Blend one mask and its outline into the picture, by coverage, so that edges are smooth."""
    mask = Image.fromarray(masks.decode(label.rle).astype(np.uint8) * 255)
    coverage = mask.resize(picture.size, Image.Resampling.BILINEAR, reducing_gap=3.0)
    steep = max(1.0, picture.width / mask.width)  # an enlarged edge is blurred over this many pixels: make it one
    coverage = coverage.point(lambda value: (value - 127.5) * steep + 127.5)
    color = class_color(label.class_id)
    picture.paste(color, mask=coverage.point(lambda value: value * FILL))
    edge = ImageChops.subtract(coverage.filter(ImageFilter.MaxFilter(3)), coverage.filter(ImageFilter.MinFilter(3)))
    picture.paste(color, mask=edge)


def _write_names(picture: Image.Image, labels: Sequence[Label], names: Sequence[str], scale: float) -> None:
    """A chip with name and score at each box, moved away from chips that are already there."""
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(10, min(14, picture.width // 28)))
    taken: list[Rectangle] = []
    for label in labels:
        color = class_color(label.class_id)
        score = "" if label.source == "human" else f" {label.score:.2f}"  # a person's label has none
        text = class_name(label.class_id, names) + score
        _, _, right, bottom = draw.textbbox((0, 0), text, font=font)
        box = tuple(value * scale for value in label.box_xywh)
        chip = _free_place((box[0], box[1], box[2], box[3]), (right + 6, bottom + 5), picture.size, taken)
        taken.append(chip)
        draw.rectangle(chip, fill=color)
        draw.text((chip[0] + 3, chip[1] + 1), text, font=font, fill=_ink(color))


def _free_place(
    box: Rectangle, chip_wh: tuple[float, float], size_wh: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Above the box, else inside its top or bottom, else below or in its middle: the first that hides no chip."""
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
    """Black or white, whichever reads better on the colour."""
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else (255, 255, 255)


def _write_title(sheet: Image.Image, title: str, left: int, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TITLE_PX)
    text = title
    while len(text) > 1 and draw.textlength(text, font=font) > CELL_PX:
        title = title[1:]  # the end of a path says more than its beginning
        text = "…" + title
    draw.text((left, top), text, font=font, fill=ImageColor.getrgb("#d7dae0"))
