"""Photos as units of work: decoded by workers, labelled in batches, one unit each.

Batches are cut from the whole list of photos, whatever is left of it: a job that goes on, or that asks what its list
got since, computes the same photos together, and so gets the same numbers. On CUDA the images of the next batch are
encoded while the masks of the one before it are read off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

import numpy as np

from sam3label.core.records import Frame, MediaItem, Undecodable, UnitResult
from sam3label.errors import InputError
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.progress import JobTally
from sam3label.labelling.questions import Guide, Question
from sam3label.media import loader
from sam3label.media.image import read_photo
from sam3label.media.memory import megapixels_that_fit

Batch = list[Frame | Undecodable]
Keys = frozenset[str]  # of the prompts that a batch is asked


def label_photos(
    guide: Guide,
    photos: Sequence[MediaItem],
    asked: Mapping[str, Keys],
    options: LabelOptions,
    tally: JobTally,
    stopped: Callable[[], bool],
) -> Iterator[list[UnitResult]]:
    """Label photos batch by batch, until `stopped` says so. Adds to the tally where the time went.

    `asked` has, by id, the keys of the prompts that are still to be put to a photo; photos not in it are left alone.
    """
    detector = guide.detector
    groups = _groups(photos, asked, options.batch_size or detector.image_batch)
    pending = [item for _, items in groups for item in items]
    workers = loader.default_workers(len(pending)) if options.workers is None else options.workers
    on_gpu = detector.device.type == "cuda"
    limit = megapixels_that_fit(workers + 1) if options.max_megapixels is None else options.max_megapixels
    read = partial(read_photo, max_megapixels=limit)
    entries = loader.entries(pending, workers, pin=on_gpu, decode=read) if pending else iter(())
    batches: Iterator[Batch] = (list(islice(entries, len(items))) for _, items in groups)
    if on_gpu and any(guide.asks_photos(key) for keys, _ in groups for key in keys):
        batches = begun(batches, detector.encode_ahead)
    before = detector.clock.seconds()
    for keys, _ in groups:
        with tally.stage("decode"):
            batch = next(batches, None)
        if batch is None or stopped():
            return
        results = _label_batch(guide, batch, options.floor, keys)
        tally.stages |= {name: s - before.get(name, 0.0) for name, s in detector.clock.seconds().items()}
        yield results


def _groups(
    photos: Sequence[MediaItem], asked: Mapping[str, Keys], batch_size: int
) -> list[tuple[Keys, list[MediaItem]]]:
    """Return the photos that are labelled together, and what they are asked."""
    groups: list[tuple[Keys, list[MediaItem]]] = []
    for start in range(0, len(photos), batch_size):
        by_keys: dict[Keys, list[MediaItem]] = {}
        for item in photos[start : start + batch_size]:
            if item.id in asked:
                by_keys.setdefault(asked[item.id], []).append(item)
        groups += by_keys.items()
    return groups


def begun(batches: Iterator[Batch], encode_ahead: Callable[[Sequence[Frame]], None]) -> Iterator[Batch]:
    """Yield the batches, each handed on once the device has begun with the one after it."""
    last = None
    for batch in batches:
        encode_ahead([entry for entry in batch if isinstance(entry, Frame)])
        if last is not None:
            yield last
        last = batch
    if last is not None:
        yield last


def _label_batch(guide: Guide, batch: Sequence[Frame | Undecodable], floor: float, keys: Keys) -> list[UnitResult]:
    asked = [(entry, _question(guide, entry)) for entry in batch]
    good = [(entry, q) for entry, q in asked if isinstance(entry, Frame) and isinstance(q, Question)]
    detections = iter(guide.detect([frame for frame, _ in good], floor, [q for _, q in good], keys) if good else ())
    results = []
    for entry, question in asked:
        if isinstance(entry, Undecodable) or isinstance(question, str):
            results.append(UnitResult(entry.item, 0, 1, None, error=str(question)))
            continue
        detection = next(detections)
        presence = np.asarray(detection.presence, dtype=np.float32)[None]  # [1, P]
        results.append(UnitResult(entry.item, 0, 1, entry.size_hw, detection.candidates, presence, stamp=entry.stamp))
    return results


def _question(guide: Guide, entry: Frame | Undecodable) -> Question | str:
    """Return what a photo is asked, or why it cannot be."""
    if isinstance(entry, Undecodable):
        return entry.reason
    try:
        return guide.question(entry)
    except InputError as error:
        return str(error)
