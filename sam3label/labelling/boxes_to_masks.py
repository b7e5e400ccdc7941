"""A dataset of boxes and points becomes a run: each object keeps its class, id and attributes, and gets a mask.

The job is like `job.label`'s: the same loader, store, writer and progress, the same way to go on after a kill; only
what is asked of a photo is not phrases but the objects that its dataset has on it, all of them in one image encode.
What is made of masks that come back wrong is for `run.decide`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sam3label.annotations.label_files import read_dataset
from sam3label.annotations.marks import LabelledDataset
from sam3label.annotations.photos_of import LabelledPhotos, find_photos
from sam3label.concepts.concept_list import concepts_from, dump_concepts
from sam3label.core.records import ConceptList, Frame, Given, MediaItem, Undecodable, UnitResult, exemplar_key
from sam3label.core.text import count
from sam3label.errors import InputError
from sam3label.labelling.given_objects import candidate
from sam3label.labelling.job import Standing, extent_of
from sam3label.labelling.options import DEFAULTS, LabelOptions
from sam3label.labelling.progress import JobTally, Progress, RunSummary, labels_in
from sam3label.labelling.run_folder import refuse_unfit
from sam3label.labelling.run_log import RunLog, chosen, command_line
from sam3label.labelling.writer import Writer
from sam3label.media.discovery import Found
from sam3label.run.asked import Wanted
from sam3label.run.store import Store
from sam3label.run.store_errors import DATABASE

if TYPE_CHECKING:
    from sam3label.model.checkpoint import Checkpoint
    from sam3label.model.interactive import Clicker

_FORM = "objects"  # of an exemplar prompt: in the digest that tells one dataset from another


@dataclass(frozen=True, slots=True)
class MaskJob:
    """A dataset that is to get masks: its photos, what it says of them, and its classes as a concept list."""

    dataset: LabelledDataset
    photos: LabelledPhotos
    concepts: ConceptList

    @classmethod
    def of(
        cls, path: str | Path, photos: str | Path | None = None, *, snap: bool = False, conf: float = 0.5
    ) -> MaskJob:
        """Read a dataset and find its photos. Raises InputError, ConfigError.

        `conf` is the IoU that the model must expect of a mask for it to be believed; `snap` sets boxes to their masks.
        """
        dataset = read_dataset(path)
        if not dataset.classes:
            raise InputError(f"{dataset.path} has no object of any class: there is nothing to make masks of.")
        found = find_photos(dataset, None if photos is None else Path(photos))
        rules = {"prompts": [], "exemplars": {"objects": str(dataset.path.absolute())}, "snap": snap, "conf": conf}
        concepts = concepts_from({"names": list(dataset.classes), "concepts": dict.fromkeys(dataset.classes, rules)})
        return cls(dataset, found, concepts)

    @property
    def guides(self) -> dict[str, str]:
        """By class, a digest of all its objects: others are asked anew."""
        said: dict[str, list[Any]] = {name: [] for name in self.concepts.names}
        for id_, labelled in self.photos.labels.items():
            for mark in labelled.marks:
                said[str(mark.class_name)].append((id_, mark.corners, mark.points, mark.id, mark.attributes))
        return {
            name: f"{_FORM} {hashlib.blake2b(json.dumps(sorted(own)).encode(), digest_size=8).hexdigest()}"
            for name, own in said.items()
        }

    def sentences(self) -> Iterator[str]:
        """Yield what a user should read before the first photo."""
        objects = sum(len(image.marks) for image in self.dataset.images)
        yield (
            f"{self.dataset.form}: {count(objects, 'object')} of {count(len(self.concepts.names), 'class', 'classes')} "
            f"on {count(len(self.photos.items), 'photo')}, each of which is encoded once"
        )
        yield from self.dataset.notes


def mask_boxes(
    job: MaskJob,
    out: str | Path,
    options: LabelOptions = DEFAULTS,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> RunSummary:
    """Make masks of a dataset's boxes in the run folder `out`, continuing what is there.

    A photo that is missing, or that its boxes do not fit, is a failure in the summary. Raises a `Sam3LabelError` for
    a bad checkpoint or store.
    """
    refuse_unfit(out)
    with RunLog(out) as log:
        log.begin([job.dataset.path], job.concepts, options)

        def tell(progress: Progress) -> None:
            log.pace(progress)
            on_progress(progress)

        summary = _mask_boxes(job, out, options, tell, log.also(on_message), stop, log)
        log.end(summary)
    return summary


def _mask_boxes(
    job: MaskJob,
    out: str | Path,
    options: LabelOptions,
    on_progress: Callable[[Progress], None],
    on_message: Callable[[str], None],
    stop: threading.Event | None,
    log: RunLog,
) -> RunSummary:
    for sentence in job.sentences():
        on_message(sentence)
    items, wanted = job.photos.items, Wanted.of(job.concepts, job.guides)
    found = Found(list(items), Counter())
    with ExitStack() as held:
        goes_on = not options.fresh and (Path(out) / DATABASE).exists()
        known = held.enter_context(Store.resume(out)) if goes_on else None
        before = Standing.of(known, job.concepts, wanted, items, options, on_message)
        notes = _notes(job, known, options)
        if known is not None and before.is_complete and known.meta("settings") == _settings(options):
            before.note(known, notes)
            nothing = JobTally(job.concepts, 0, before=len(before.done)).snapshot()
            on_progress(nothing)
            return before.summary(known, nothing, found, interrupted=False)
        on_message(f"loading the model {options.model} ...")
        clicker, checkpoint = _loaded(options)
        if clicker.detector.size_note:
            on_message(clicker.detector.size_note)
        made = clicker.detector.describe()
        fingerprint = {"masks of": job.dataset.form, **made}
        if known is not None:
            known.refuse_other(fingerprint)
        notes["info"] |= made | {"device": str(clicker.detector.device), "checkpoint": checkpoint.identity}
        pending = before.pending(items, None)[: options.limit]
        store = known or held.enter_context(
            Store.writer(out, wanted.prompts, fingerprint, notes=notes, fresh=options.fresh)
        )
        store.begin(wanted.prompts, notes)
        log.open()
        before.note(store, extent_of(store, items, 0))
        tally = JobTally(job.concepts, len(pending), before=len(before.done) - before.reopened)
        on_progress(tally.snapshot())
        with Writer(store) as writer:
            for results in _photos(job, clicker, pending, options, tally, (stop or threading.Event()).is_set):
                with tally.stage("write"):
                    writer.put(results)
                for result in results:
                    tally.count(result, labels_in(result, job.concepts))
                on_progress(tally.snapshot())
        progress = tally.snapshot()
        return before.summary(store, progress, found, interrupted=progress.done + progress.failed < len(pending))


def _loaded(options: LabelOptions) -> tuple[Clicker, Checkpoint]:
    from sam3label.model.checkpoint import resolve
    from sam3label.model.detector import Detector
    from sam3label.model.interactive import Clicker

    checkpoint = resolve(options.model, options.revision, options.image_size)
    detector = Detector.load(checkpoint, device=options.device, dtype=options.dtype, vram_gb=options.vram)
    return Clicker.load(checkpoint, detector), checkpoint


def _settings(options: LabelOptions) -> dict[str, Any]:
    return {
        "model": options.model,
        "revision": options.revision,
        "dtype": options.dtype,
        "image_size": options.image_size,
    }


def _notes(job: MaskJob, known: Store | None, options: LabelOptions) -> dict[str, Any]:
    before = {} if known is None else known.meta("info") or {}
    info = {
        **before,
        "model": options.model,
        "version": version("sam3label"),
        "created": before.get("created", datetime.now(UTC).isoformat(timespec="seconds")),
        "sources": [str(job.dataset.path)],
        "command": command_line(),
        "options": chosen(options),
    }
    concepts = dump_concepts(job.concepts)
    return {"info": info, "concepts": concepts, "exemplars": job.guides, "settings": _settings(options)}


def _photos(
    job: MaskJob,
    clicker: Clicker,
    pending: Sequence[MediaItem],
    options: LabelOptions,
    tally: JobTally,
    stopped: Callable[[], bool],
) -> Iterator[list[UnitResult]]:
    """Yield the units of photos, batch by batch, until `stopped` says so."""
    from sam3label.media import loader
    from sam3label.media.image import read_photo
    from sam3label.media.memory import megapixels_that_fit

    batch_size = options.batch_size or clicker.detector.image_batch
    workers = loader.default_workers(len(pending)) if options.workers is None else options.workers
    limit = megapixels_that_fit(workers + 1) if options.max_megapixels is None else options.max_megapixels
    read = partial(read_photo, max_megapixels=limit)
    entries = loader.entries(pending, workers, decode=read) if pending else iter(())
    before = clicker.detector.clock.seconds()
    while not stopped():
        with tally.stage("decode"):
            batch = list(islice(entries, batch_size))
        if not batch:
            return
        results = _masked(job, clicker, batch)
        tally.stages |= {name: s - before.get(name, 0.0) for name, s in clicker.detector.clock.seconds().items()}
        yield results


def _masked(job: MaskJob, clicker: Clicker, batch: Sequence[Frame | Undecodable]) -> list[UnitResult]:
    asked = [_objects(job, entry) for entry in batch]
    good = [one for one in asked if not isinstance(one, Undecodable)]
    hints = [[given.hint for _, given in own if given.hint is not None] for _, own in good]
    found = iter(clicker.masks([frame for frame, _ in good], hints) if good else ())
    results = []
    for one in asked:
        if isinstance(one, Undecodable):
            results.append(UnitResult(one.item, 0, 1, None, error=one.reason))
            continue
        frame, own = one
        pairs = enumerate(zip(own, next(found), strict=True))
        candidates = tuple(candidate(frame, n, exemplar_key(name), given, c) for n, ((name, given), c) in pairs)
        presence = np.ones((1, len(job.concepts.names)), np.float32)
        results.append(UnitResult(frame.item, 0, 1, frame.size_hw, candidates, presence, stamp=frame.stamp))
    return results


def _objects(job: MaskJob, entry: Frame | Undecodable) -> tuple[Frame, list[tuple[str, Given]]] | Undecodable:
    """Return a photo and its objects with their classes, or why it cannot get masks."""
    if isinstance(entry, Undecodable):
        if entry.item.id in job.photos.missing:
            return replace(entry, reason=f"there is no such photo ({entry.item.path}): say where it is with --photos")
        return entry
    labelled = job.photos.labels[entry.item.id]
    wrong = list(map(str, labelled.problems(entry.size_hw)))
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return Undecodable(entry.item, "; ".join(wrong[:3]) + more)
    return entry, [(str(mark.class_name), mark.given(entry.size_hw, labelled.relative)) for mark in labelled.marks]
