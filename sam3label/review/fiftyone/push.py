"""Run -> FiftyOne. The first push makes the dataset; the next ones add what is new and leave people's work alone.

A photo is one document, so it arrives whole or not at all; a video's frames are documents of their own, and a push
that was cut off is completed by the next. The unique index on `item_id` makes a second copy impossible.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from sam3label.core.records import MediaItem
from sam3label.errors import InputError, StoreError
from sam3label.review import reasons
from sam3label.review.fiftyone import connect, schema
from sam3label.review.fiftyone.playable import copy_remote
from sam3label.review.fiftyone.samples import (
    FrameValues,
    ReviewDetection,
    SampleValues,
    attributes,
    done_items,
    sample_values,
)
from sam3label.review.survey import Survey, survey_run
from sam3label.run.reader import Run
from sam3label.run.rows import Unit

BATCH = 50  # samples inserted at a time: bounds memory
AUDIT = 50  # images in the random sample unless told otherwise
VIDEO_SUFFIX = " videos"

T = TypeVar("T")
Work = tuple[MediaItem, list[Unit]]


@dataclass(frozen=True, slots=True)
class Pushed:
    """One dataset after a push: samples added now, and samples that were there and stayed as they are."""

    dataset: str
    added: int
    kept: int


def push(
    run: Run,
    dataset: str | None = None,
    audit: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Pushed, ...]:
    """Bring a run into FiftyOne: photos to `dataset` (default: the run folder's name), videos to one beside it.

    `audit` is the size of the random sample; `on_progress` is called with how many of the run's
    photos and videos are there, out of how many. Raises `ReviewUnavailableError`
    without FiftyOne or its database, `InputError` when the dataset belongs to another run, `StoreError` when the run
    has nothing to review.
    """
    fo = connect.fiftyone()
    if not len(run):
        raise StoreError(f"{run.folder} has no labelled image yet, so there is nothing to review.")
    state = remember(run, dataset, audit)
    total = len(run.items())
    on_progress(0, total)
    copy_remote(run)
    whole = survey_run(run, state["audit"])
    results: list[Pushed] = []
    for kind, suffix in (("image", ""), ("video", VIDEO_SUFFIX)):
        work = [(item, units) for item, units in done_items(run) if item.kind == kind]
        if work:
            target = _target(fo, run, state["dataset"] + suffix, state["run"], video=kind == "video")
            before = sum(pushed.added + pushed.kept for pushed in results)
            results.append(_push_items(fo, run, target, work, whole, partial(_tell, on_progress, before, total)))
    return tuple(results)


def _tell(on_progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    on_progress(before + done, total)


def remember(run: Run, dataset: str | None, audit: int | None, *, keep: bool = True) -> dict[str, Any]:
    """Return the run's own note of where it was pushed. The random id ties datasets to it, whatever they are called.

    Without `keep` the note is made and not kept, for a run that may not be written.
    """
    state = run.note(connect.META) or {"run": uuid.uuid4().hex, "dataset": None, "audit": AUDIT}
    name = dataset or state["dataset"] or run.folder.resolve().name
    changed = {**state, "dataset": name, "audit": state["audit"] if audit is None else audit}
    if keep and changed != run.note(connect.META):
        run.keep_note(connect.META, changed)
    return changed


def dataset_info(run: Run, run_id: str) -> dict[str, Any]:
    """Return whose dataset it is, and what the run was made with."""
    return {"run": run_id, "folder": str(run.folder.resolve()), **run.info}


def _target(fo: Any, run: Run, name: str, run_id: str, *, video: bool) -> Any:
    """Return the dataset to push to: this run's, or a new one. An empty one of nobody's is a push that was cut off."""
    if fo.dataset_exists(name):
        dataset = fo.load_dataset(name)
        owner = connect.owner(dataset)
        if owner == run_id:
            return dataset
        if owner is not None or len(dataset):
            raise InputError(
                f"FiftyOne has a dataset '{name}' already, and it does not belong to {run.folder}. "
                "Choose another name: --dataset NAME"
            )
        fo.delete_dataset(name)
    return schema.create(fo, name, video, run.concepts.names, dataset_info(run, run_id))


def _push_items(
    fo: Any, run: Run, dataset: Any, work: Sequence[Work], whole: Survey, on_done: Callable[[int], None]
) -> Pushed:
    there = dict(zip(*dataset.values(["item_id", "id"]), strict=True))
    new = (w for w in work if w[0].id not in there)
    added = 0
    for batch in _batches(new, BATCH):
        values = [sample_values(run, item, units, whole) for item, units in batch]
        dataset.add_samples([make_sample(fo, v) for v in values], dynamic=False, progress=False)
        for v in values:
            if v.item.kind == "video":
                _add_frames(fo, dataset.one(fo.ViewField("item_id") == v.item.id), v)
            added += 1
            on_done(added)
    _refresh(fo, run, dataset, [w for w in work if w[0].id in there], whole)
    on_done(len(work))
    return Pushed(dataset.name, added, len(there))


def _batches(values: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch


# ---- one sample


def make_sample(fo: Any, values: SampleValues) -> Any:
    sample = fo.Sample(
        filepath=values.item.path,
        tags=values.tags,
        item_id=values.item.id,
        reasons=values.words,
        gain=fo.DynamicEmbeddedDocument(**values.gains),
        metadata=_metadata(fo, values),
        **{schema.STATUS: schema.REVIEWED if values.reviewed else schema.UNREVIEWED},
    )
    if values.item.kind == "image":
        for name, value in _frame_fields(fo, values.item, values.frames[0]).items():
            sample[name] = value
    return sample


def _frame_fields(fo: Any, item: MediaItem, frame: FrameValues) -> dict[str, Any]:
    fields = {
        schema.PREDICTIONS: frame.predictions,
        schema.TRUTH: frame.ground_truth,
        schema.MAYBE: frame.maybe,
    }
    made = {k: fo.Detections(detections=[_detection(fo, item, d) for d in v]) for k, v in fields.items()}
    return {**made, schema.SYNC: frame.sync.packed()}


def _detection(fo: Any, item: MediaItem, detection: ReviewDetection) -> Any:
    track = detection.label.track_id
    return fo.Detection(
        id=detection.id,
        label=detection.name,
        bounding_box=list(detection.box.box),
        mask=detection.box.mask,
        tags=list(detection.tags),
        instance=None if track is None else fo.Instance(id=track_object_id(item.id, track)),
        **attributes(detection),
    )


def track_object_id(item_id: str, track: int) -> str:
    """Return the id of one object of one video, the same in every frame and every push."""
    return hashlib.blake2b(f"{item_id}\0{track}".encode(), digest_size=12).hexdigest()


def _metadata(fo: Any, values: SampleValues) -> Any:
    kind = fo.ImageMetadata if values.item.kind == "image" else fo.VideoMetadata
    return kind(**values.metadata)


def _add_frames(fo: Any, sample: Any, values: SampleValues) -> None:
    """Add the frames. FiftyOne counts them from 1."""
    for frame in values.frames:
        sample.frames[frame.frame + 1] = fo.Frame(**_frame_fields(fo, values.item, frame))
    sample.metadata = _metadata(fo, values)
    sample.save()


# ---- samples that were there


def _refresh(fo: Any, run: Run, dataset: Any, work: Sequence[Work], whole: Survey) -> None:
    """Complete videos, and bring reasons and gains up to date where nobody has reviewed yet. Labels stay untouched."""
    columns = dataset.values(["item_id", "id", "reasons", schema.STATUS])
    rows = {item_id: (id_, words, status) for item_id, id_, words, status in zip(*columns, strict=True)}
    changed: dict[str, SampleValues] = {}
    for item, units in work:
        id_, words, status = rows[item.id]
        done: Sequence[int] = ()
        if item.kind == "video":
            done = [n - 1 for n in dataset[id_].frames]
            if status == schema.REVIEWED:  # it was vouched for as it is: nobody has seen what would come now
                continue
        values = sample_values(run, item, units, whole, done)
        if item.kind == "video" and values.frames:
            _add_frames(fo, dataset[id_], values)
        if status != schema.REVIEWED and values.words != words:
            changed[id_] = values
    if changed:
        _set_reasons(fo, dataset, changed)


def _set_reasons(fo: Any, dataset: Any, changed: Mapping[str, SampleValues]) -> None:
    """Set whole fields of ours, and of the tags only the queue's own: a person's tags stay."""
    quiet = {"key_field": "id", "progress": False}
    dataset.set_values("reasons", {id_: v.words for id_, v in changed.items()}, **quiet)
    gain = {id_: fo.DynamicEmbeddedDocument(**v.gains) for id_, v in changed.items()}
    dataset.set_values("gain", gain, **quiet)
    for kind in reasons.KINDS:
        having = [id_ for id_, v in changed.items() if kind in v.tags]
        dataset.select(having).tag_samples(kind)
        dataset.select([id_ for id_ in changed if id_ not in set(having)]).untag_samples(kind)
