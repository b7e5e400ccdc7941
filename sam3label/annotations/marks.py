"""Boxes as label files give them, image by image, before it is known what they are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sam3label.core.problems import Problem
from sam3label.core.records import Box, Given, Hint, Rle

Corners = tuple[float, float, float, float]  # x1, y1, x2, y2

_OUTSIDE_PX = 1.0  # tools round: a box may leave the image by this much, and is cut to it
_OUTSIDE_SHARE = 0.005


@dataclass(frozen=True, slots=True)
class Mark:
    """An object as a label file gives it; `class_name` None means the class whose exemplars are read.

    `points` are (x, y, on the object or not); where there are only these, `has_box` is False and `corners` are theirs.
    `mask` is the object's, where the file has it and has read it.
    """

    class_name: str | None
    corners: Corners  # pixels, or fractions of the image in a YOLO file
    where: str
    id: str = ""  # what the file calls it
    attributes: tuple[tuple[str, str], ...] = ()
    points: tuple[tuple[float, float, bool], ...] = ()
    has_box: bool = True
    mask: Rle | None = None

    def given(self, size_hw: tuple[int, int], relative: bool) -> Given:
        """Return the object as it was given in an image of that size, cut to it; `relative` as in `Labelled`."""
        height, width = size_hw
        across, down = (width, height) if relative else (1, 1)
        points = tuple((x * across, y * down, on) for x, y, on in self.points)
        x1, y1, x2, y2 = self.corners
        box = (
            max(x1 * across, 0.0),
            max(y1 * down, 0.0),
            min(x2 * across, float(width)),
            min(y2 * down, float(height)),
        )
        return Given(Hint(box if self.has_box else None, points), self.id, self.attributes)


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
            if mark.has_box and not (x2 > x1 and y2 > y1):  # so that NaN counts too
                yield Problem(mark.where, f"the box {_shown(mark.corners)} has no area: draw it again or remove it")
            elif limit and (min(x1, y1) < -slack or x2 > limit[0] + slack or y2 > limit[1] + slack):
                size = "" if self.relative or size_hw is None else f" of {_size(size_hw)} pixels"
                what = f"the box {_shown(mark.corners)}" if mark.has_box else f"the point ({x1:g}, {y1:g})"
                yield Problem(mark.where, f"{what} is not inside the image{size}")


def of_points(
    class_name: str,
    points: Sequence[tuple[float, float, bool]],
    where: str,
    id: str = "",
    attributes: tuple[tuple[str, str], ...] = (),
) -> Mark:
    """Return an object that is shown by points alone. Raises ValueError without one that is on it."""
    if not any(inside for _, _, inside in points):
        raise ValueError("no point is on the object")
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    return Mark(class_name, (min(xs), min(ys), max(xs), max(ys)), where, id, attributes, tuple(points), has_box=False)


def corners_of(box_xywh: Box) -> Corners:
    """Return (x1, y1, x2, y2) of (x, y, width, height)."""
    x, y, width, height = box_xywh
    return x, y, x + width, y + height


@dataclass(frozen=True, slots=True)
class LabelledDataset:
    """What a dataset of boxes says: its classes in their order, and its images with their objects.

    `photos` are the folders in which the images may lie, by the names in `images`; `files` has those whose place the
    dataset itself says.
    """

    path: Path
    form: str  # "COCO", "YOLO", ...
    classes: tuple[str, ...]
    images: tuple[Labelled, ...]
    photos: tuple[Path, ...]
    files: Mapping[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what reading it left out, in words


def some(names: Sequence[str], n: int = 5) -> str:
    """Return the first few names for a message."""
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "")


def _shown(corners: Corners) -> str:
    x1, y1, x2, y2 = corners
    return f"[{x1:g}, {y1:g}, {x2 - x1:g}, {y2 - y1:g}] (x, y, width, height)"


def _size(size_hw: tuple[int, int]) -> str:
    return f"{size_hw[1]} x {size_hw[0]}"
