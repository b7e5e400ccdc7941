"""Photos as units of work: decoded by workers, labelled in batches, one unit each.

Batches are cut from the whole list of photos, whatever is left of it: a job that goes on, or that asks what its list
got since, computes the same photos together, and so gets the same numbers. On CUDA the images of the next batch are
encoded while the masks of the one before it are read off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np

from sam3label.core.records import Frame, MediaItem, Stamp, Undecodable, UnitResult
from sam3label.errors import InputError
from sam3label.labelling.near_copies import Compared, NearCopies
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.progress import JobTally
from sam3label.labelling.questions import Guide, Question
from sam3label.media.image import read_photo
from sam3label.media.memory import megapixels_that_fit
from sam3label.media.stamps import stamp_of

Decoded = list[Frame | Undecodable]
Keys = frozenset[str]  # of the prompts that a batch is asked


@dataclass(frozen=True, slots=True)
class PhotoBatch:
    """Photos that are labelled together, and the keys of the prompts that they are asked."""

    keys: Keys
    items: tuple[MediaItem, ...]


def batches_of(photos: Sequence[MediaItem], asked: Mapping[str, Keys], batch_size: int) -> list[PhotoBatch]:
    """Cut the whole list, so that a batch is the same whatever is left of the list and whoever labels it.

    `asked` has, by id, the keys of the prompts that are still to be put to a photo; photos not in it are left alone.
    New photos that `copies` knows for near-copies are not asked.
    """
    batches: list[PhotoBatch] = []
    for start in range(0, len(photos), batch_size):
        by_keys: dict[Keys, list[MediaItem]] = {}
        for item in photos[start : start + batch_size]:
            if item.id in asked:
                by_keys.setdefault(asked[item.id], []).append(item)
        batches += [PhotoBatch(keys, tuple(items)) for keys, items in by_keys.items()]
    return batches


def label_photos(
    guide: Guide,
    batches: Sequence[PhotoBatch],
    options: LabelOptions,
    tally: JobTally,
    stopped: Callable[[], bool],
    copies: NearCopies | None = None,
) -> Iterator[list[UnitResult]]:
    """Label photos batch by batch, until `stopped` says so. Adds to the tally where the time went."""
    from sam3label.media import loader  # with torch, of which a job with nothing to do has no need

    detector = guide.detector
    pending = [item for batch in batches for item in batch.items]
    workers = loader.default_workers(len(pending)) if options.workers is None else options.workers
    on_gpu = detector.device.type == "cuda"
    limit = megapixels_that_fit(workers + 1) if options.max_megapixels is None else options.max_megapixels
    read = partial(read_photo, max_megapixels=limit)
    entries = loader.entries(pending, workers, pin=on_gpu, decode=read) if pending else iter(())
    decoded: Iterator[Decoded] = (list(islice(entries, len(batch.items))) for batch in batches)
    if on_gpu and any(guide.asks_photos(key) for batch in batches for key in batch.keys):
        decoded = begun(decoded, lambda frames: detector.encode_ahead([f for f in frames if guide.labels_fit(f)]))
    before = detector.clock.seconds()
    for batch in batches:
        with tally.stage("decode"):
            photos = next(decoded, None)
        if photos is None or stopped():
            return
        results = label_batch(guide, photos, options.floor, batch.keys, copies)
        tally.stages |= {name: s - before.get(name, 0.0) for name, s in detector.clock.seconds().items()}
        yield results


def begun(batches: Iterator[Decoded], encode_ahead: Callable[[Sequence[Frame]], None]) -> Iterator[Decoded]:
    """Yield the batches, each handed on once the device has begun with the one after it."""
    last = None
    for batch in batches:
        encode_ahead([entry for entry in batch if isinstance(entry, Frame)])
        if last is not None:
            yield last
        last = batch
    if last is not None:
        yield last


def label_batch(
    guide: Guide,
    batch: Sequence[Frame | Undecodable],
    floor: float,
    keys: Keys,
    copies: NearCopies | None = None,
) -> list[UnitResult]:
    """Put the prompts of these keys to decoded photos; one unit each, in order.

    New photos that `copies` knows for near-copies are not asked.
    """
    asked = [(entry, _question(guide, entry)) for entry in batch]
    good = [(entry, q) for entry, q in asked if isinstance(entry, Frame) and isinstance(q, Question)]
    answers = iter(_answers(guide, good, floor, keys, copies))
    results = []
    for entry, question in asked:
        if isinstance(question, Undecodable):
            stamp = _stamp_of_broken(question)
            results.append(UnitResult(entry.item, 0, 1, None, error=question.reason, stamp=stamp))
        else:
            results.append(next(answers))
    return results


def _answers(
    guide: Guide, good: Sequence[tuple[Frame, Question]], floor: float, keys: Keys, copies: NearCopies | None
) -> Iterator[UnitResult]:
    """Yield a unit for each photo, in order. Looking for near-copies keeps no more than a batch's images encoded."""
    step = guide.detector.image_batch if copies else max(1, len(good))
    for some in (good[start : start + step] for start in range(0, len(good), step)):
        seen = _looked_at(guide, some, copies)
        kept = [pair for pair, one in zip(some, seen, strict=True) if one.like is None]
        found = iter(guide.detect([f for f, _ in kept], floor, [q for _, q in kept], keys) if kept else ())
        for (frame, _), one in zip(some, seen, strict=True):
            if one.like is not None:
                yield UnitResult(frame.item, 0, 1, frame.size_hw, stamp=frame.stamp, like=one.like)
                continue
            detection = next(found)
            presence = np.asarray(detection.presence, dtype=np.float32)[None]  # [1, P]
            yield UnitResult(
                frame.item, 0, 1, frame.size_hw, detection.candidates, presence, stamp=frame.stamp, look=one.look,
                full=detection.full,
            )  # fmt: skip


def _looked_at(guide: Guide, photos: Sequence[tuple[Frame, Question]], copies: NearCopies | None) -> list[Compared]:
    """Say which photos are near-copies. Those that were labelled before, or are given objects, are not asked about."""
    if copies is None:
        return [Compared() for _ in photos]
    is_new = [frame.item.id not in copies.known and not question.given for frame, question in photos]
    new = [frame for (frame, _), one in zip(photos, is_new, strict=True) if one]
    seen = iter(copies.judge(new, guide.detector.looks(new)) if new else ())
    return [next(seen) if one else Compared() for one in is_new]


def _stamp_of_broken(entry: Undecodable) -> Stamp | None:
    """Return the stamp of a file that cannot be decoded as it is. None where another try may go better."""
    try:
        return stamp_of(entry.item) if entry.lasting else None
    except OSError:
        return None


def _question(guide: Guide, entry: Frame | Undecodable) -> Question | Undecodable:
    """Return what a photo is asked, or why it cannot be."""
    if isinstance(entry, Undecodable):
        return entry
    try:
        return guide.question(entry)
    except InputError as error:
        return Undecodable(entry.item, str(error), lasting=False)
