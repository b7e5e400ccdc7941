"""A run's labels against what a reader gets back from a dataset: one to one, class by class, best match first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from sam3label.core import masks
from sam3label.core.matching import optimal
from sam3label.core.records import Box, Label, LabeledImage, MediaItem, Rle, Stamp
from sam3label.core.whole_folder import read_marker
from sam3label.export.dataset import Tally, as_photo, dataset_names, selection
from sam3label.export.frames import FrameChoice
from sam3label.export.options import Options
from sam3label.export.photos import flat_name
from sam3label.media import storage
from sam3label.media.stamps import is_unchanged
from sam3label.validate.photos import read_photo
from sam3label.validate.report import Findings, Match, RoundTrip

if TYPE_CHECKING:
    from sam3label.run.reader import Run

WORST = 10
EQUAL = 0.9995  # what prints as 1.000
MEASURES = {
    "segment": "mask IoU",
    "detect": "box IoU",
    "obb": "share of the mask inside its oriented box",
}

# Instances of one image: (class name, mask or box)
Instances = Sequence[tuple[str, Rle | Box]]


@dataclass(frozen=True, slots=True)
class Held:
    """What a dataset holds of one image: its instances, and its photo if that is in it."""

    instances: Instances
    photo: Path | None = None


@dataclass(frozen=True, slots=True)
class ExportedImage:
    """One image or frame of the run. `place` counts the labelled frames of its video from 0."""

    image: LabeledImage  # frames of videos under the id that formats of photos give them
    video: str
    place: int


@dataclass(frozen=True, slots=True)
class Reading:
    """How to compare a dataset with its run.

    `held` gives what the dataset holds of an image, None when that is not in it. `shown` is what a format can keep of
    an image's labels: where it has no room for overlaps, the pixels left to each.
    """

    task: str
    held: Callable[[ExportedImage], Held | None]
    videos_only: bool = False
    shown: Callable[[Sequence[Label]], Sequence[Label]] = list


def compare(run: Run, options: Mapping[str, Any], reading: Reading, findings: Findings) -> RoundTrip:
    """Compare by the export's `options`, as its marker notes them: what it left out on purpose is not lost."""
    meant = Options.from_json(options)
    names = dataset_names(run.concepts, meant)
    matches: list[Match] = []
    total, count, lost, extra, missing = 0.0, 0, 0, 0, 0
    ids = {flat_name(item.id): item.id for item in run.items("image")} if meant.flat else {}
    for asked in _asked(run, meant, names, reading.videos_only):
        image, labels = asked.image, asked.image.labels
        held = reading.held(asked)
        if held is None:
            missing += 1
            held = Held(())
        stamp = run.stamp(ids.get(image.item.id, image.item.id)) if image.item.kind == "image" else None
        _check_replaced(held.photo, image, stamp, findings)
        found = list(_match(image, reading.shown(labels), held.instances, names, reading.task))
        count += len(found)
        total += sum(m.iou for m in found)
        lost += sum(m.iou == 0 for m in found)
        extra += max(0, len(held.instances) - len(labels))
        matches = sorted([*matches, *found], key=lambda m: m.iou)[:WORST]
    mean = total / count if count else None
    minimum = matches[0].iou if matches else None
    worst = tuple(m for m in matches if m.iou < EQUAL)
    return RoundTrip(MEASURES[reading.task], count, lost, extra, missing, mean, minimum, worst)


def export_options(path: Path) -> dict[str, Any]:
    """Return the options a dataset was exported with; none where it is not one of ours."""
    folder = path if path.is_dir() else path.parent
    marker = read_marker(folder) or read_marker(folder.parent) or {}
    return dict(marker.get("options", {}))


def _asked(run: Run, options: Options, names: Sequence[str], videos_only: bool) -> Iterator[ExportedImage]:
    """Yield what an export with these options puts into a dataset; class ids are places in `names`."""
    selected = selection(run.concepts, options, {name: i for i, name in enumerate(names)}, videos_only)
    places = Counter[str]()
    frames = FrameChoice(options.every, options.fps)
    for sample in selected.samples(run.images(), frames, Tally(["train"])):
        video = sample.image.item.id
        yield ExportedImage(as_photo(sample.image, frames.files) if videos_only else sample.image, video, places[video])
        places[video] += 1


def _check_replaced(held: Path | None, image: LabeledImage, stamp: Stamp | None, findings: Findings) -> None:
    """Name a photo that is not the one that was labelled: the dataset's own, or where it has none the run's."""
    photo = None if held is None else read_photo(held)
    if photo is not None and photo.seen_hw != image.size_hw:
        what = "the photo is not the one that was labelled: its size differs (label it again)"
        findings.drops("every trainer", what, image.item.id)
    elif stamp is not None and _is_another(image.item, stamp, held):
        what = "the photo is not the one that was labelled: its content differs (label it again)"
        findings.drops("every trainer", what, image.item.id)


def _is_another(item: MediaItem, stamp: Stamp, held: Path | None) -> bool:
    """Whether a photo's bytes are others than those labelled. What an export makes itself has bytes of its own.

    These are frames of videos and photos that EXIF turns, written upright.
    """
    try:
        if held is None or is_unchanged(replace(item, path=str(held)), stamp):
            there = held is None and (storage.is_remote(item.path) or Path(item.path).exists())
            return there and not is_unchanged(item, stamp)
        source = read_photo(storage.local_copy(item.path) if storage.is_remote(item.path) else Path(item.path))
        return source is not None and (source.orientation in (0, 1) or not is_unchanged(item, stamp))
    except OSError:
        return False


def _match(
    image: LabeledImage, labels: Sequence[Label], held: Instances, names: Sequence[str], task: str
) -> Iterable[Match]:
    for class_id in sorted({label.class_id for label in labels}):
        own = [label for label in labels if label.class_id == class_id]
        shapes = [shape for name, shape in held if name == names[class_id]]
        table = _table(own, shapes, task)
        rows, columns = optimal(table)  # optimal: a label must not lose its own shape to a neighbour
        value = {int(r): float(table[r, c]) for r, c in zip(rows, columns, strict=True)}
        for row, label in enumerate(own):
            yield Match(image.item.id, names[class_id], label.id, value.get(row, 0.0))


def _table(labels: Sequence[Label], shapes: Sequence[Rle | Box], task: str) -> npt.NDArray[np.float64]:
    """Return [labels, shapes] in the task's measure."""
    if task == "detect":
        boxes = [shape for shape in shapes if not isinstance(shape, Rle)]
        if not boxes:
            return np.zeros((len(labels), 0))
        own = np.array([masks.box_xywh(label.rle) for label in labels])
        found = coco_mask.iou(own, np.array(boxes, dtype=np.float64), [0] * len(boxes))
        return np.asarray(found, dtype=np.float64)
    size = labels[0].rle.size_hw
    others = [s for s in shapes if isinstance(s, Rle) and s.size_hw == size]  # of a replaced photo none is comparable
    rles = [label.rle for label in labels]
    return masks.cover_matrix(rles, others) if task == "obb" else masks.iou_matrix(rles, others)


def uncovered(order: Sequence[Label]) -> Iterator[Label]:
    """Yield each label with the pixels that none before it has; what has none left is dropped."""
    taken: Rle | None = None
    for label in order:
        rle = label.rle if taken is None else masks.difference(label.rle, taken)
        if masks.area(rle):
            yield replace(label, rle=rle)
        taken = label.rle if taken is None else masks.union([taken, label.rle])
