"""Masks with every trait that gets lost on the way to a trainer: holes, parts, points, lines, borders."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.bool_]


def shape(kind: str, height: int = 60, width: int = 80) -> Array:
    """Masks with every trait that gets lost: holes, parts, points, lines, borders."""
    canvas = np.zeros((height, width), np.uint8)
    if kind == "donut":
        cv2.circle(canvas, (40, 30), 22, 1, -1)
        cv2.circle(canvas, (43, 28), 9, 0, -1)
    elif kind == "two holes":
        cv2.rectangle(canvas, (8, 6), (70, 50), 1, -1)
        cv2.circle(canvas, (24, 28), 8, 0, -1)
        cv2.ellipse(canvas, (52, 28), (10, 6), 30, 0, 360, 0, -1)
    elif kind == "two parts":
        cv2.circle(canvas, (20, 30), 12, 1, -1)
        cv2.circle(canvas, (56, 26), 14, 1, -1)
    elif kind == "island in a hole":
        cv2.circle(canvas, (40, 30), 26, 1, -1)
        cv2.circle(canvas, (40, 30), 18, 0, -1)
        cv2.circle(canvas, (42, 30), 7, 1, -1)
    elif kind == "pixel":
        canvas[17, 23] = 1
    elif kind == "three pixels in a row, apart":
        canvas[17, [3, 30, 61]] = 1
    elif kind == "horizontal line":
        canvas[17, 5:60] = 1
    elif kind == "vertical line":
        canvas[5:50, 9] = 1
    elif kind == "diagonal line":
        canvas[np.arange(10, 40), np.arange(20, 50)] = 1
    elif kind == "thin cross":
        canvas[30, 10:70] = canvas[5:55, 40] = 1
    elif kind == "corner of the image":
        canvas[-14:, -19:] = 1
    elif kind == "frame":
        canvas[:] = 1
        canvas[5:-5, 5:-5] = 0
    elif kind == "full":
        canvas[:] = 1
    elif kind == "touching corners":
        canvas[10:20, 10:20] = canvas[20:30, 20:30] = 1
    return canvas.astype(np.bool_)


KINDS = (
    "donut",
    "two holes",
    "two parts",
    "island in a hole",
    "pixel",
    "three pixels in a row, apart",
    "horizontal line",
    "vertical line",
    "diagonal line",
    "thin cross",
    "corner of the image",
    "frame",
    "full",
    "touching corners",
)
ONE_PART = tuple(k for k in KINDS if k not in ("two parts", "island in a hole", "three pixels in a row, apart"))
