"""Sheets of many labelled images, for a first look."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageColor

from sam3label.core.files import write_whole
from sam3label.core.records import Label
from sam3label.errors import OutputError, UndecodableError
from sam3label.media.image import decode_image
from sam3label.media.video import VideoFrames
from sam3label.run.reader import Run
from sam3label.show.draw import Pixels, draw_labels
from sam3label.show.lettering import Fonts

CELL_PX = 400
MARGIN_PX = 10
TITLE_PX = 15
DRAWN_IMAGES = 48
BACKGROUND, INK = "#16181d", "#d7dae0"


def contact_sheet(
    images: Sequence[tuple[Pixels, Sequence[Label], str]],
    names: Sequence[str],
    path: str | Path,
    columns: int = 0,
    cell: int = CELL_PX,
) -> None:
    """Write a PNG grid of (pixels, labels, title), `cell` pixels each. `columns` 0: a grid a little wider than high."""
    if not images:
        raise OutputError(f"No contact sheet was written to {path}: there is no image to show.")
    columns = min(columns or math.ceil(math.sqrt(len(images) * 1.2)), len(images))
    fonts = Fonts()
    cells = [
        (Image.fromarray(draw_labels(pixels, labels, names, cell, fonts=fonts)), title)
        for pixels, labels, title in images
    ]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(picture.height for picture, _ in row) for row in rows]
    step_x, gap_y = cell + MARGIN_PX, TITLE_PX + 2 * MARGIN_PX
    sheet = Image.new("RGB", (columns * step_x + MARGIN_PX, MARGIN_PX + sum(h + gap_y for h in heights)), BACKGROUND)
    top = MARGIN_PX
    for row, height in zip(rows, heights, strict=True):
        for index, (picture, title) in enumerate(row):
            left = MARGIN_PX + index * step_x
            sheet.paste(picture, (left + (cell - picture.width) // 2, top + height - picture.height))
            _write_title(sheet, title, left, top + height + MARGIN_PX // 2, cell, fonts)
        top += height + gap_y
    png = io.BytesIO()
    sheet.save(png, format="PNG")
    write_whole(path, png.getvalue())


def drawn_sheet(run: Run, drawn: Sequence[tuple[str, int, Label]], path: str | Path, most: int = DRAWN_IMAGES) -> int:
    """Write a sheet of labels (item id, frame, label) on their images, the first `most` of them; returns how many.

    Images that can no longer be read are left out.
    """
    by_image: dict[tuple[str, int], list[Label]] = {}
    for item_id, frame, label in drawn:
        by_image.setdefault((item_id, frame), []).append(label)
    shown: list[tuple[Pixels, Sequence[Label], str]] = []
    for (item_id, frame), labels in by_image.items():
        unit = run.unit(item_id, frame)
        if unit is None or len(shown) == most:
            continue
        try:
            path_of = unit.item.path
            pixels = decode_image(path_of) if unit.item.kind == "image" else VideoFrames(path_of).pixels(frame)
        except UndecodableError:
            continue
        shown.append((pixels, labels, f"{item_id} {frame}" if frame else item_id))
    if shown:
        contact_sheet(shown, run.concepts.names, path)
    return len(shown)


def _write_title(sheet: Image.Image, title: str, left: int, top: int, wide: int, fonts: Fonts) -> None:
    title = fonts.written(title)
    text = title
    while len(text) > 1 and fonts.width_of(text, TITLE_PX) > wide - 8:
        title = title[1:]  # the end of a path says more than its beginning
        text = "…" + title
    chip = fonts.chip(text, TITLE_PX, ImageColor.getrgb(INK)[:3], ImageColor.getrgb(BACKGROUND)[:3])
    sheet.paste(Image.fromarray(chip), (left, top))
