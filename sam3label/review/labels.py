"""A label of a run <-> a FiftyOne detection. Plain values on both sides: FiftyOne itself is not imported here.

Coordinates: a FiftyOne box is (x, y, w, h) in parts of the image, and its mask covers that box whatever the mask's own
resolution is. `AgreedLabel` is how a label looked when run and dataset last agreed. Marks are kept on the sample, so
they travel with the dataset wherever it is copied, and tell what a person changed since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.core.records import Label, Rle

ID_PREFIX = "73616d33"  # "sam3": a candidate id's 16 digits become an ObjectId's 24
APPROVED = "approved"  # tag that a person puts on a label to vouch for it alone


def object_id(label_id: str) -> str:
    """Return the 24-digit id a label has in FiftyOne; a human's label was given one there and keeps it."""
    if len(label_id) == 24:
        return label_id
    if len(label_id) == 16:
        return ID_PREFIX + label_id
    return hashlib.blake2b(label_id.encode(), digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True)
class AgreedLabel:
    """How a label looked when both sides agreed: class, mask as FiftyOne held it, mask as run-length code, tag."""

    class_name: str
    held: str
    shape: str
    approved: bool = False

    def packed(self) -> list[Any]:
        return [self.class_name, self.held, self.shape, self.approved]


@dataclass(frozen=True, slots=True)
class Sync:
    """What run and dataset agreed on, kept on each sample (frame): marks by FiftyOne label id, whether the image was
    taken over as reviewed, and which left-out candidates were taken over as labels."""

    reviewed: bool
    marks: Mapping[str, AgreedLabel]
    taken: frozenset[str]

    def packed(self) -> dict[str, Any]:
        marks = {key: value.packed() for key, value in self.marks.items()}
        return {"reviewed": self.reviewed, "marks": marks, "taken": sorted(self.taken)}


def unpack(values: Mapping[str, Any] | None) -> Sync:
    """Return the inverse of `Sync.packed`; a frame without one has agreed on nothing yet."""
    if not values:
        return Sync(False, {}, frozenset())
    marks = {key: AgreedLabel(*value) for key, value in values["marks"].items()}
    return Sync(values["reviewed"], marks, frozenset(values["taken"]))


def shape_digest(rle: Rle) -> str:
    """Return a digest that two masks of one image share exactly if they are equal."""
    return _digest(rle.counts)


def held_digest(box: Iterable[float], mask: npt.NDArray[Any] | None) -> str:
    """Return a digest of box and mask just as FiftyOne holds them: cheap, so that only edited masks are read."""
    parts = [np.asarray(list(box), np.float64).tobytes()]
    if mask is not None:
        parts += [str(mask.shape).encode(), np.packbits(mask > 0).tobytes()]
    return _digest(b"\0".join(parts))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Box:
    """A detection to be: the box in parts of the image, and the mask inside it, bool [h, w]."""

    box: tuple[float, float, float, float]
    mask: npt.NDArray[np.bool_]


def boxed(rle: Rle) -> Box:
    """Crop a mask to its box."""
    height, width = rle.size_hw
    x, y, mask = masks.crop(rle)
    h, w = mask.shape
    return Box((x / width, y / height, w / width, h / height), mask)


def mark(label: Label, name: str, detection: Box, approved: bool = False) -> AgreedLabel:
    """Return the mark of a label that is being pushed."""
    return AgreedLabel(name, held_digest(detection.box, detection.mask), shape_digest(label.rle), approved)


def rle_of(box: Iterable[float], mask: npt.NDArray[Any] | None, size_hw: tuple[int, int]) -> Rle:
    """Return a detection's mask at the image's resolution; without one, its box is filled.

    Each pixel takes the mask cell that its centre falls into. An untouched mask comes back exactly, and one that was
    brushed at the screen's resolution, in a box with fractional edges, is sampled without a shift.
    """
    height, width = size_hw
    x, y, w, h = (float(v) for v in box)
    inside = np.ones((1, 1), np.bool_) if mask is None else mask > 0
    rows = _cells(y * height, h * height, inside.shape[0], height)
    columns = _cells(x * width, w * width, inside.shape[1], width)
    full = np.zeros(size_hw, np.bool_)
    full[np.ix_(rows >= 0, columns >= 0)] = inside[np.ix_(rows[rows >= 0], columns[columns >= 0])]
    return masks.encode(full)


def _cells(start: float, extent: float, cells: int, pixels: int) -> npt.NDArray[np.int64]:
    """For each pixel of an axis the mask cell at its centre, or -1 outside."""
    if extent <= 0:
        return np.full(pixels, -1)
    index = np.floor((np.arange(pixels) + 0.5 - start) / extent * cells).astype(np.int64)
    return np.where((index >= 0) & (index < cells), index, -1)
