"""The values of one sample, from the run: shared by `push` (into the database) and `folder` (no database needed)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from sam3label.core.records import Label, LabeledImage, MediaItem
from sam3label.review import labels, reasons, survey
from sam3label.review.fiftyone.playable import frame_rate, playable
from sam3label.run.reader import Run
from sam3label.run.rows import Unit


@dataclass(frozen=True, slots=True)
class ReviewDetection:
    """One detection: everything FiftyOne will hold, `mask` cropped to `box` (parts of the image)."""

    id: str
    name: str
    box: labels.Box
    label: Label
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FrameValues:
    """The detections of one image or frame, and how they looked when pushed (`sync`).

    `predictions` is the model's selection, `ground_truth` starts as the run's labels with the corrections already
    pulled, `maybe` holds candidates that were left out and that a reason names.
    """

    frame: int
    predictions: tuple[ReviewDetection, ...]
    ground_truth: tuple[ReviewDetection, ...]
    maybe: tuple[ReviewDetection, ...]
    sync: labels.Sync

    @property
    def reviewed(self) -> bool:
        return self.sync.reviewed


@dataclass(frozen=True, slots=True)
class SampleValues:
    """One photo or one video. `metadata` is by the names FiftyOne has for it."""

    item: MediaItem
    size_hw: tuple[int, int]
    metadata: Mapping[str, Any]
    frames: tuple[FrameValues, ...]
    found: tuple[reasons.Reason, ...]

    @property
    def words(self) -> str | None:
        """All reasons in one text."""
        return reasons.sentence(self.found)

    @property
    def gains(self) -> dict[str, float]:
        """By field name, with the expected gain of all but the random sample as `total`."""
        by_kind = reasons.gains(self.found)
        total = sum(gain for kind, gain in by_kind.items() if kind != "audit")
        return {gain_field(k): v for k, v in by_kind.items()} | {"total": total}

    @property
    def tags(self) -> list[str]:
        return list(dict.fromkeys(r.kind for r in self.found))

    @property
    def reviewed(self) -> bool:
        return all(f.reviewed for f in self.frames)


def gain_field(kind: str) -> str:
    return kind.replace(" ", "_")


def done_items(run: Run) -> Iterator[tuple[MediaItem, list[Unit]]]:
    """Yield items with their done units, in item order. A photo has one unit, a video one per clip."""
    for _, units in groupby(run.done_units(), key=lambda unit: unit.item.id):
        own = list(units)
        yield own[0].item, own


def sample_values(
    run: Run, item: MediaItem, units: Sequence[Unit], whole: survey.Survey, frames_done: Iterable[int] = ()
) -> SampleValues:
    """Return all there is to say about one item, less the frames in `frames_done`. Its path is one that plays."""
    skip = set(frames_done)
    frames: list[FrameValues] = []
    found: list[reasons.Reason] = []
    for unit in units:
        for image, seen in zip(run.unit_images(unit), survey.look(run, unit), strict=True):
            own = reasons.reasons(seen, run.concepts, whole)
            found += own
            if image.frame not in skip:
                frames.append(_frame_values(image, seen, own, run.concepts.names))
    size_hw = units[0].size_hw
    assert size_hw is not None
    item = replace(item, path=playable(run, item))
    metadata = _metadata(item, size_hw, units[-1].frame_stop)
    return SampleValues(item, size_hw, metadata, tuple(frames), reasons.case(item, found).reasons)


def _metadata(item: MediaItem, size_hw: tuple[int, int], n_frames: int) -> dict[str, Any]:
    """Return metadata from the run, not the file: the size is that of the image as seen, EXIF orientation applied."""
    height, width = size_hw
    if item.kind == "image":
        return {"width": width, "height": height, "num_channels": 3}
    rate = frame_rate(item)
    return {"frame_width": width, "frame_height": height, "frame_rate": rate,
            "total_frame_count": n_frames, "duration": n_frames / rate}  # fmt: skip


def _frame_values(
    image: LabeledImage, seen: survey.SeenImage, found: Sequence[reasons.Reason], names: Sequence[str]
) -> FrameValues:
    tags: dict[str, list[str]] = {}
    for reason in found:
        for label_id in reason.label_ids:
            tags.setdefault(label_id, []).append(reason.kind)
    standing = seen.labels
    ids = {label.id for label in standing} | {label.id for label in image.labels}
    maybe = [d.label for d in seen.decisions if d.label.id in tags and d.label.id not in ids]
    truth = _detections(image.labels, names, tags)
    return FrameValues(
        image.frame,
        _detections(standing, names, tags),
        truth,
        _detections(maybe, names, tags),
        labels.Sync(image.reviewed, {d.id: labels.mark(d.label, d.name, d.box) for d in truth}, frozenset()),
    )


def _detections(
    chosen: Iterable[Label], names: Sequence[str], tags: Mapping[str, Sequence[str]]
) -> tuple[ReviewDetection, ...]:
    return tuple(
        ReviewDetection(
            labels.object_id(label.id), names[label.class_id], labels.boxed(label.rle), label,
            tuple(tags.get(label.id, ())),
        )
        for label in chosen
        if label.area > 0  # a mask without a pixel cannot be drawn, nor seen to be wrong
    )  # fmt: skip


def attributes(detection: ReviewDetection) -> dict[str, Any]:
    """Return what a detection says beside its class, box and mask."""
    label = detection.label
    return {
        "confidence": label.score,
        "presence": label.presence,
        "phrase": label.prompt,
        "candidate_id": label.id,
        "source": label.source,
        "index": label.track_id,
    }
