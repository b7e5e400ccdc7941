"""Boxes as label files give them, image by image, before it is known what they are for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sam3label.core.problems import Problem
from sam3label.core.records import Box

Corners = tuple[float, float, float, float]  # x1, y1, x2, y2

_OUTSIDE_PX = 1.0  # tools round: a box may leave the image by this much, and is cut to it
_OUTSIDE_SHARE = 0.005


@dataclass(frozen=True, slots=True)
class Mark:
    """A box as a label file gives it; `class_name` None means the class whose exemplars are read."""

    class_name: str | None
    corners: Corners  # pixels, or fractions of the image in a YOLO file
    where: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """What a label file says about one image. A YOLO file is `relative`: fractions, and names without a suffix."""

    name: str
    marks: tuple[Mark, ...]
    where: str = ""
    size_hw: tuple[int, int] | None = None
    relative: bool = False

    def problems(self, size_hw: tuple[int, int] | None) -> Iterator[Problem]:
        """Yield what is wrong with the boxes, as far as it can be told from what is known of the image's size."""
        if self.size_hw and size_hw and self.size_hw != size_hw:
            yield Problem(
                self.where,
                f"its labels are for an image of {_size(self.size_hw)} pixels and it has {_size(size_hw)}: label the "
                "image as it is now",
            )
            return
        size_hw = size_hw or self.size_hw
        limit = (1.0, 1.0) if self.relative else None if size_hw is None else (size_hw[1], size_hw[0])
        slack = _OUTSIDE_SHARE if self.relative else _OUTSIDE_PX
        for mark in self.marks:
            x1, y1, x2, y2 = mark.corners
            if not (x2 > x1 and y2 > y1):  # so that NaN counts too
                yield Problem(mark.where, f"the box {_shown(mark.corners)} has no area: draw it again or remove it")
            elif limit and (min(x1, y1) < -slack or x2 > limit[0] + slack or y2 > limit[1] + slack):
                size = "" if self.relative or size_hw is None else f" of {_size(size_hw)} pixels"
                yield Problem(mark.where, f"the box {_shown(mark.corners)} is not inside the image{size}")


def corners_of(box_xywh: Box) -> Corners:
    """Return (x1, y1, x2, y2) of (x, y, width, height)."""
    x, y, width, height = box_xywh
    return x, y, x + width, y + height


def some(names: Sequence[str], n: int = 5) -> str:
    """Return the first few names for a message."""
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "")


def _shown(corners: Corners) -> str:
    x1, y1, x2, y2 = corners
    return f"[{x1:g}, {y1:g}, {x2 - x1:g}, {y2 - y1:g}] (x, y, width, height)"


def _size(size_hw: tuple[int, int]) -> str:
    return f"{size_hw[1]} x {size_hw[0]}"
