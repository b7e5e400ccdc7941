"""What every writer is given, and what an export reports: plain values, no format in sight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sam3label.core import checks, masks, outlines
from sam3label.core.records import ConceptList, Label, LabeledImage, Rle
from sam3label.export.frames import FrameChoice
from sam3label.export.options import Options, Segmentation, unknown_names
from sam3label.export.photos import Placer, flat_name
from sam3label.media.video import FrameFiles


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

    def polygons(self, rle: Rle) -> list[outlines.Ring]:
        """Return rings in edge coordinates, for COCO; they are exact unless simplified."""
        rings = outlines.polygons(rle, self.simplify_px)
        back = outlines.from_polygons(rings, rle.size_hw) if self.simplify_px else rle
        self._account(1.0 if back == rle else float(masks.iou_matrix([rle], [back])[0, 0]))
        return rings

    def contour(self, rle: Rle) -> outlines.Ring:
        """Return one ring in centre coordinates, for YOLO."""
        ring = outlines.contour(rle, self.simplify_px)
        self._account(outlines.contour_iou(rle, ring))
        return ring

    def _account(self, iou: float) -> None:
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
    notes: list[str] = field(default_factory=list)  # what a writer has to say at the end
    frame_rate: Callable[[Any], float] = field(default_factory=lambda: FrameChoice().rate)  # of a MediaItem


@dataclass(slots=True)
class SplitCount:
    """What one split came to hold."""

    images: int = 0
    empty: int = 0
    reviewed: int = 0
    by_people: int = 0  # instances
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
    polygon_iou: tuple[float, float] | None = None  # mean, min, of polygons against their masks

    @property
    def images(self) -> int:
        return sum(s.images for s in self.splits.values())

    @property
    def instances(self) -> int:
        return sum(s.instances.total() for s in self.splits.values())


MANY_GROUPS = 10_000  # shares are met well enough from then on for nobody to ask how many there were


class Tally:
    """Counts what streams past, so that no second pass over a run is needed."""

    def __init__(self, splits: Iterable[str]) -> None:
        self.splits = {name: SplitCount() for name in splits}
        self.groups = Counter[str]()  # images by what keeps them in one split, as far as there are few
        self.photos_left_out = 0  # of formats that hold videos
        self.frames_left_out = 0  # by --every or --fps
        self.hollow = 0  # labels without a single pixel, left out
        self.twice = 0  # labels of classes that became one, of an object that has one already

    def count(self, sample: Sample, group: str) -> None:
        if len(self.groups) < MANY_GROUPS or group in self.groups:
            self.groups[group] += 1
        split = self.splits[sample.split]
        split.images += 1
        split.empty += not sample.image.labels
        split.reviewed += sample.image.reviewed
        split.by_people += sum(label.source == "human" for label in sample.image.labels)
        split.instances.update(label.class_id for label in sample.image.labels)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which images and labels of a run belong into a dataset, and under which names and class ids.

    `class_ids`: concept id to dataset id. `same_object`: for each class of the dataset that several concepts became,
    the mask IoU over which two labels are one object. With `whole_videos` the format holds videos, and every chosen
    frame of them; else frames are images with an id of their own.
    """

    options: Options
    class_ids: Mapping[int, int]
    same_object: Mapping[int, float] = field(default_factory=dict)
    whole_videos: bool = False

    def samples(self, images: Iterable[LabeledImage], frames: FrameChoice, tally: Tally) -> Iterator[Sample]:
        """Yield what goes into the dataset, image by image. All frames of a video are in one split."""
        for image in images:
            if image.item.kind == "image" and self.whole_videos:
                tally.photos_left_out += 1
                continue
            if not frames.keeps(image):
                tally.frames_left_out += 1
                continue
            labels = tuple(self._labels(image.labels, tally))
            if labels or self.options.empty or self.whole_videos:
                splits = self.options.splits
                sample = Sample(replace(self._named(image, frames.files), labels=labels), splits.of(image.item.id))
                tally.count(sample, splits.group(image.item.id))
                yield sample

    def _named(self, image: LabeledImage, files: FrameFiles) -> LabeledImage:
        image = image if self.whole_videos else as_photo(image, files)
        return replace(image, item=replace(image.item, id=flat_name(image.item.id))) if self.options.flat else image

    def _labels(self, labels: Iterable[Label], tally: Tally) -> Iterator[Label]:
        kept = list[Label]()
        for label in _with_pixels(labels, self.options.min_score, self.class_ids, tally):
            if self._is_twice(label, kept):
                tally.twice += 1
            else:
                kept.append(label)
                yield label

    def _is_twice(self, label: Label, kept: Iterable[Label]) -> bool:
        limit = self.same_object.get(label.class_id)
        rivals = [k.rle for k in kept if k.class_id == label.class_id] if limit is not None else []
        return bool(rivals) and float(masks.iou_matrix([label.rle], rivals).max()) > (limit or 0.0)


def dataset_names(concepts: ConceptList, options: Options) -> tuple[str, ...]:
    """Return the dataset's class names in concept order. Raises `ConfigError` for one that the run does not have."""
    given = {"--classes": options.classes, "--map": options.map}
    checks.refuse(unknown_names(key, names, concepts.names) for key, names in given.items())
    kept = (name for name in concepts.names if not options.classes or name in options.classes)
    return tuple(dict.fromkeys(options.map.get(name, name) for name in kept))


def selection(
    concepts: ConceptList, options: Options, dataset_ids: Mapping[str, int], whole_videos: bool = False
) -> Selection:
    """Return the selection of `options`; `dataset_ids` are the dataset's class ids by name."""
    wanted = [c for c in concepts.concepts if not options.classes or c.name in options.classes]
    class_ids = {c.id: dataset_ids[options.map.get(c.name, c.name)] for c in wanted}
    sources = Counter(class_ids.values())
    limits = {i: min(c.iou for c in wanted if class_ids[c.id] == i) for i, n in sources.items() if n > 1}
    return Selection(options, class_ids, limits, whole_videos)


def as_photo(image: LabeledImage, files: FrameFiles) -> LabeledImage:
    """Return the frame of a video as an image with an id of its own, `clip.mp4/000120.jpg`; a photo as it is."""
    if image.item.kind == "image":
        return image
    name = files.name(image.item, image.frame)
    return replace(image, item=replace(image.item, id=f"{image.item.id}/{name}"))


def _with_pixels(
    labels: Iterable[Label], min_score: float, class_ids: Mapping[int, int], tally: Tally
) -> Iterator[Label]:
    for label in _best_first_in_class(labels, class_ids):
        if label.score < min_score or label.class_id not in class_ids:
            continue
        area = masks.area(label.rle)
        if area == 0:
            tally.hollow += 1
            continue
        box = masks.box_xywh(label.rle) if label.given is None else label.box_xywh  # a person's stays as it was drawn
        yield replace(label, class_id=class_ids[label.class_id], area=area, box_xywh=box)


def _best_first_in_class(labels: Iterable[Label], class_ids: Mapping[int, int]) -> Iterable[Label]:
    """Sort only where classes become one: a person's labels first, then by score, so that the best stay."""
    if len(set(class_ids.values())) == len(class_ids):
        return labels
    return sorted(labels, key=lambda x: (class_ids.get(x.class_id, -1), x.source != "human", -x.score))


def number(value: float) -> int | float:
    """Return a number for JSON: integral values without a trailing .0, others with 4 decimals."""
    return int(value) if float(value).is_integer() else round(float(value), 4)


def flat(ring: outlines.Ring) -> list[int]:
    """Return [V, 2] in edge coordinates, which are whole numbers -> x1 y1 x2 y2 ..., ready for JSON."""
    return ring.astype(np.int64).ravel().tolist()
