"""What every writer is given, and what an export reports: plain values, no format in sight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sam3label.core import masks
from sam3label.core.records import Label, LabeledImage, Rle
from sam3label.export.photos import Placement, Placer
from sam3label.export.splits import Splits
from sam3label.media import video

Segmentation = Literal["rle", "polygon"]


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may choose about an export. Defaults lose nothing.

    `classes`: names to keep, all if empty. `segmentation`: how COCO holds masks, None for the format's own default.
    `simplify_px`: how far a polygon may leave the mask's border, in pixels.
    """

    splits: Splits = field(default_factory=Splits)
    images: Placement = "hardlink"
    classes: tuple[str, ...] = ()
    min_score: float = 0.0
    keep_empty: bool = True
    segmentation: Segmentation | None = None
    simplify_px: float = 0.0
    append: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One image on its way into a dataset. The labels' class ids are the dataset's."""

    image: LabeledImage
    split: str


class Outline:
    """Draws masks as polygons within a tolerance and keeps account of what that costs in mask IoU."""

    def __init__(self, simplify_px: float = 0.0) -> None:
        self.simplify_px = simplify_px
        self.drawn = 0
        self.iou_sum = 0.0
        self.iou_min = 1.0

    def polygons(self, rle: Rle) -> list[masks.Ring]:
        """Rings in edge coordinates, for COCO."""
        rings = masks.polygons(rle, self.simplify_px)
        self._account(rle, lambda: masks.from_polygons(rings, rle.size_hw))
        return rings

    def contour(self, rle: Rle) -> masks.Ring:
        """One ring in centre coordinates, for YOLO."""
        ring = masks.contour(rle, self.simplify_px)
        self._account(rle, lambda: masks.from_contour(ring, rle.size_hw))
        return ring

    def _account(self, rle: Rle, back: Any) -> None:
        if self.simplify_px > 0:
            iou = float(masks.iou_matrix([rle], [back()])[0, 0])
            self.drawn += 1
            self.iou_sum += iou
            self.iou_min = min(self.iou_min, iou)


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how a writer writes. `classes` maps the dataset's class ids to names, in id order."""

    folder: Path
    classes: Mapping[int, str]
    splits: tuple[str, ...]
    placer: Placer
    outline: Outline = field(default_factory=Outline)
    segmentation: Segmentation | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    append: bool = False


@dataclass(slots=True)
class SplitCount:
    """What one split came to hold."""

    images: int = 0
    empty: int = 0
    reviewed: int = 0
    instances: Counter[int] = field(default_factory=Counter)  # by class id of the dataset


@dataclass(frozen=True, slots=True)
class Summary:
    """What an export did. `failed` images are in no dataset: absent means not labelled, empty means background."""

    format: str
    folder: Path
    classes: Mapping[int, str]
    splits: Mapping[str, SplitCount]
    failed: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    simplify_iou: tuple[float, float] | None = None  # mean, min

    @property
    def images(self) -> int:
        return sum(s.images for s in self.splits.values())

    @property
    def instances(self) -> int:
        return sum(s.instances.total() for s in self.splits.values())


class Tally:
    """Counts what streams past, so that no second pass over a run is needed."""

    def __init__(self, splits: Iterable[str]) -> None:
        self.splits = {name: SplitCount() for name in splits}
        self.photos_left_out = 0  # of formats that hold videos
        self.hollow = 0  # labels without a single pixel, left out

    def count(self, sample: Sample) -> None:
        split = self.splits[sample.split]
        split.images += 1
        split.empty += not sample.image.labels
        split.reviewed += sample.image.reviewed
        split.instances.update(label.class_id for label in sample.image.labels)


def samples(
    images: Iterable[LabeledImage],
    options: Options,
    class_ids: Mapping[int, int],
    tally: Tally,
    whole_videos: bool = False,
) -> Iterator[Sample]:
    """The images that belong into the dataset, with the labels that do. `class_ids`: concept id -> dataset id.

    Frames of videos are images with an id of their own, unless the format holds `whole_videos`: those get every frame.
    All frames of a video are in one split.
    """
    for image in images:
        if image.item.kind == "image" and whole_videos:
            tally.photos_left_out += 1
            continue
        split = options.splits.of(image.item.id)
        if not whole_videos:
            image = as_photo(image)
        labels = tuple(_kept(image.labels, options.min_score, class_ids, tally))
        if not labels and not options.keep_empty and not whole_videos:
            continue
        sample = Sample(replace(image, labels=labels), split)
        tally.count(sample)
        yield sample


def as_photo(image: LabeledImage) -> LabeledImage:
    """The frame of a video as an image with an id of its own, `clip.mp4/000120.jpg`; a photo as it is."""
    if image.item.kind == "image":
        return image
    name = video.frame_name(image.item, image.frame)
    return replace(image, item=replace(image.item, id=f"{image.item.id}/{name}"))


def _kept(labels: Iterable[Label], min_score: float, class_ids: Mapping[int, int], tally: Tally) -> Iterator[Label]:
    for label in labels:
        if label.score < min_score or label.class_id not in class_ids:
            continue
        area = masks.area(label.rle)
        if area == 0:
            tally.hollow += 1
            continue
        yield replace(label, class_id=class_ids[label.class_id], area=area, box_xywh=masks.box_xywh(label.rle))


def number(value: float) -> int | float:
    """For JSON: integral values without a trailing .0, others with 4 decimals."""
    return int(value) if float(value).is_integer() else round(float(value), 4)


def flat(ring: masks.Ring) -> list[int | float]:
    """[V, 2] -> x1 y1 x2 y2 ..., ready for JSON."""
    return [number(v) for v in np.asarray(ring).ravel().tolist()]
