"""What every format of the smaller kind is brought to, so that the same rules go over all: pictures with instances.

A format's module reads its files into `DatasetImage`s, one after the other, and says what only it can know.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sam3label.core import masks
from sam3label.core.records import Box, Label, Rle
from sam3label.validate.photos import check_photo, check_shared
from sam3label.validate.report import Effect, Findings, Report, Split, in_order
from sam3label.validate.roundtrip import ExportedImage, Held, Instances, Reading, compare, export_options

if TYPE_CHECKING:
    from sam3label.run.reader import Run

MOST_PIXELS = 1 << 28  # of a mask that is drawn here; PIL refuses photos of two thirds of that


@dataclass(slots=True)
class DatasetImage:
    """One image or frame as a dataset holds it. `key` is what the run's image is found by."""

    split: str
    name: str
    key: Hashable
    size_hw: tuple[int, int] | None
    photo: Path | None
    instances: list[tuple[str, Rle | Box]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Kind:
    """A format: what its instances are, what an EXIF orientation does to its readers, and how a run is compared."""

    name: str
    task: str  # one of roundtrip.MEASURES
    key: Callable[[ExportedImage], Hashable]
    turned: Effect = "note"
    videos_only: bool = False
    shown: Callable[[Sequence[Label]], Sequence[Label]] = list


@dataclass(slots=True)
class OpenedDataset:
    """A dataset that was found: its kind, its classes, its pictures, and what was noticed on the way.

    `scratch` is where it was unpacked, if it was; `check` removes it.
    """

    kind: Kind
    classes: Mapping[int, str]
    pictures: Iterable[DatasetImage]
    findings: Findings
    scratch: tempfile.TemporaryDirectory[str] | None = None


def check(path: Path, opened: OpenedDataset, run: Run | None) -> Report:
    """Go through every picture once; with the run, compare it afterwards."""
    with opened.scratch or nullcontext():
        return _check(path, opened, run)


def _check(path: Path, opened: OpenedDataset, run: Run | None) -> Report:
    findings, kind = opened.findings, opened.kind
    splits: dict[str, Split] = {}
    photos: dict[str, list[Path]] = {}
    held: dict[Hashable, tuple[Instances, Path | None]] = {}
    names = set(opened.classes.values())
    for picture in opened.pictures:
        split = splits.setdefault(picture.split, Split(picture.split))
        split.images += 1
        split.empty += not picture.instances
        split.instances.update(Counter(name for name, _ in picture.instances))
        _check_picture(picture, kind, names, findings)
        if picture.photo is not None:
            photos.setdefault(picture.split, []).append(picture.photo)
        if run is not None:
            held[picture.key] = picture.instances, picture.photo
    _check_whole(path, splits, findings)
    check_shared(photos, findings)

    def find(asked: ExportedImage) -> Held | None:
        found = held.get(kind.key(asked))
        return found and Held(*found)

    reading = Reading(kind.task, find, kind.videos_only, kind.shown)
    trip = compare(run, export_options(path), reading, findings) if run else None
    facts = in_order(splits.values())
    return Report(str(path), kind.name, dict(opened.classes), facts, (), findings.sorted(), trip)


def class_table(names: Iterable[str], first: int = 0) -> dict[int, str]:
    return dict(enumerate(names, first))


def usable_size(height: object, width: object) -> tuple[int, int] | None:
    """Return (height, width) out of a file's numbers or digits; None where they are no photo's."""
    try:
        size = int(str(height)), int(str(width))
    except ValueError:
        return None
    return size if min(size) > 0 and size[0] * size[1] <= MOST_PIXELS else None


def _check_picture(picture: DatasetImage, kind: Kind, names: set[str], findings: Findings) -> None:
    where = picture.name
    if picture.size_hw is None:
        findings.drops("every reader", "width and height are missing, or not those of a photo", where)
    if picture.photo is not None:
        check_photo(picture.photo, where, picture.size_hw, findings, kind.turned)
    for name, shape in picture.instances:
        if name not in names:
            findings.drops("every reader", "an instance's class is not among the dataset's", f"{name} in {where}")
        if isinstance(shape, Rle):
            if not masks.area(shape):
                findings.drops("every reader", "the mask has no pixel", where)
        else:
            _check_box(shape, picture.size_hw, where, findings)


def _check_box(box: Box, size_hw: tuple[int, int] | None, where: str, findings: Findings) -> None:
    x, y, w, h = box
    if not (w > 0 and h > 0):
        findings.drops("every reader", "the box is empty", where)
    elif size_hw is not None and (x < -0.5 or y < -0.5 or x + w > size_hw[1] + 0.5 or y + h > size_hw[0] + 0.5):
        findings.drops("every reader", "the box sticks out of its image", where)


def _check_whole(path: Path, splits: Mapping[str, Split], findings: Findings) -> None:
    if not splits:
        findings.drops("every reader", "there is no image", str(path))
    elif not any(split.instances.total() for split in splits.values()):
        findings.drops("every reader", "there is no instance: nothing to learn", str(path))
