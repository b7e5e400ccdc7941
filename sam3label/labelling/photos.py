"""Photos as units of work: decoded by workers, labelled in batches, one unit each.

On CUDA the images of the next batch are encoded while the masks of the one before it are read off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sam3label.core.records import Frame, MediaItem, Undecodable, UnitResult
from sam3label.errors import InputError
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.progress import JobTally
from sam3label.labelling.questions import Guide, Question
from sam3label.media import loader

Batch = list[Frame | Undecodable]


def label_photos(
    guide: Guide, photos: Sequence[MediaItem], options: LabelOptions, tally: JobTally, stopped: Callable[[], bool]
) -> Iterator[list[UnitResult]]:
    """Label photos batch by batch, until `stopped` says so. Adds to the tally where the time went."""
    detector = guide.detector
    batch_size = options.batch_size or detector.image_batch
    workers = loader.default_workers(len(photos)) if options.workers is None else options.workers
    on_gpu = detector.device.type == "cuda"
    batches = loader.batches(photos, batch_size, workers, pin=on_gpu)
    if on_gpu and guide.encodes(1)["photos"]:
        batches = begun(batches, detector.encode_ahead)
    before = detector.clock.seconds()
    while True:
        with tally.stage("decode"):
            batch = next(batches, None) if photos else None
        if batch is None or stopped():
            return
        results = _label_batch(guide, batch, options.floor)
        tally.stages |= {name: s - before.get(name, 0.0) for name, s in detector.clock.seconds().items()}
        yield results


def begun(batches: Iterator[Batch], encode_ahead: Callable[[Sequence[Frame]], None]) -> Iterator[Batch]:
    """The batches, each handed on once the device has begun with the one after it."""
    last = None
    for batch in batches:
        encode_ahead([entry for entry in batch if isinstance(entry, Frame)])
        if last is not None:
            yield last
        last = batch
    if last is not None:
        yield last


def _label_batch(guide: Guide, batch: Sequence[Frame | Undecodable], floor: float) -> list[UnitResult]:
    asked = [(entry, _question(guide, entry)) for entry in batch]
    good = [(entry, q) for entry, q in asked if isinstance(entry, Frame) and isinstance(q, Question)]
    detections = iter(guide.detect([frame for frame, _ in good], floor, [q for _, q in good]) if good else ())
    results = []
    for entry, question in asked:
        if isinstance(entry, Undecodable) or isinstance(question, str):
            results.append(UnitResult(entry.item, 0, 1, None, error=str(question)))
            continue
        detection = next(detections)
        presence = np.asarray(detection.presence, dtype=np.float32)[None]  # [1, P]
        results.append(UnitResult(entry.item, 0, 1, entry.size_hw, detection.candidates, presence))
    return results


def _question(guide: Guide, entry: Frame | Undecodable) -> Question | str:
    """What a photo is asked, or why it cannot be."""
    if isinstance(entry, Undecodable):
        return entry.reason
    try:
        return guide.question(entry)
    except InputError as error:
        return str(error)
