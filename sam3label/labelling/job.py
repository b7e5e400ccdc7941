"""The labelling run: the one loop that joins media, loader, model and store.

    loader workers decode -> this thread runs the model -> one writer thread commits, a few times a second

On CUDA the images of the next batch are encoded while the masks of the one before it are read off.
Queues are bounded, so a slow disk slows the run and never fills the memory. What the writer has committed is safe
whatever happens next; what it has not is simply labelled again by the next run.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sam3label.concepts import concept_list as concept_lists
from sam3label.concepts.exemplars import read_examples
from sam3label.core.records import Candidate, ConceptList, Frame, Label, MediaItem, Undecodable, UnitResult
from sam3label.errors import ConfigError, InputError
from sam3label.labelling import reference_check
from sam3label.labelling import videos as video_units
from sam3label.labelling.questions import Guide, Question
from sam3label.media import discovery, loader
from sam3label.media import video as media_video
from sam3label.run.decide import select_labels
from sam3label.run.reader import refuse_below_floor
from sam3label.run.store import DATABASE, Store

if TYPE_CHECKING:
    from sam3label.model.checkpoint import Checkpoint
    from sam3label.model.detector import Detection, Detector
    from sam3label.model.tracker import Tracker

_Batch = list[Frame | Undecodable]

COMMIT_SECONDS = 0.5
QUEUED_BATCHES = 4


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run. Only what changes the numbers (model, dtype, prompt_style, floor) goes into the fingerprint."""

    model: str = "facebook/sam3"
    revision: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    prompt_style: Literal["official", "transformers"] = "official"
    floor: float = 0.1  # candidates under this score are not kept; no class may have a lower threshold
    batch_size: int | None = None  # images per batch; None: from free memory
    vram_gb: float | None = None
    compiled: bool = False  # torch.compile: a slow start, then faster; the same labels, to rounding
    workers: int | None = None  # decoding processes; None: the cores less one, at most 8
    accept_exemplars: bool = False  # label by references whatever they are worth
    limit: int | None = None  # label at most this many images and videos now
    # auto: video files are tracked, and folders of numbered images are photos; else they are videos like any other
    video: Literal["auto", "track", "frames", "off"] = "auto"
    clip_frames: int = 600  # of a video that are tracked, and committed, as one
    every: int = 30  # with video "frames": label every so many frames,
    fps: float | None = None  # or so many a second
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. `objects` counts labels per class at the list's thresholds, of this session's images.

    A video is one image here, and an object tracked through it one label; `frames` counts frames of videos.
    """

    total: int  # images to label in this session
    done: int
    failed: int
    objects: Mapping[str, int]
    seconds: float
    stages: Mapping[str, float]  # seconds: waiting to decode, encode, heads, post, waiting to write; video
    frames: int = 0


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a session of labelling came to, and what the run folder holds now."""

    progress: Progress
    found: int  # images found in the sources
    already_done: int
    missing: tuple[str, ...]  # labelled before, no longer in the sources
    skipped_videos: int
    failures: tuple[tuple[str, str], ...]  # (item id, reason)
    interrupted: bool


@dataclass(slots=True)
class _Tally:
    done: int = 0
    failed: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    stages: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    frames: int = 0
    tracks: set[tuple[int, int | None]] = field(default_factory=set)  # of the video at hand: (class, track)


def run(
    sources: Sequence[str | Path],
    concepts: ConceptList,
    out: str | Path,
    options: RunOptions = RunOptions(),
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> RunSummary:
    """Label everything in `sources` into the run folder `out`, continuing what is there.

    `on_progress` is called after every batch, from this thread; `on_message` with what a user should read before the
    first one, where classes have exemplars: what the run takes, and how far the references can be trusted. Setting
    `stop` ends the run after the batch in flight, with everything labelled so far committed. Raises a `Sam3LabelError`
    for bad input, checkpoint or store; a file that cannot be labelled is no error but a failure in the summary.
    """
    from sam3label.model.checkpoint import resolve
    from sam3label.model.detector import Detector

    refuse_below_floor(concepts, options.floor)
    found = find_media(sources, options)
    examples = read_examples(concepts, found.items)
    if examples and _tracks(options) and any(item.kind == "video" for item in found.items):
        raise ConfigError(
            "exemplars are for photos and sampled frames, and there are videos to track: "
            "--video frames samples them, --video off leaves them out."
        )
    checkpoint = resolve(options.model, options.revision)
    detector = Detector.load(
        checkpoint,
        device=options.device,
        dtype=options.dtype,
        prompt_style=options.prompt_style,
        vram_gb=options.vram_gb,
        compiled=options.compiled,
    )
    fingerprint = {
        "phrases": sorted(concepts.phrases),
        "floor": options.floor,
        "video": _video_settings(options),
        **detector.describe(),
    }
    guide = Guide(detector, concepts, examples)
    fingerprint |= guide.fingerprint()
    figures = _trust(guide, found.items, out, fingerprint, options, on_message) if examples else {}
    with Store.writer(out, guide.prompts, fingerprint, fresh=options.fresh) as store:
        _describe(store, concepts, options, sources, detector)
        store.set_meta("trust", figures)
        done = store.done_ids()
        pending = [item for item in found.items if item.id not in done][: options.limit]
        job = _Job(store, guide, concepts, options, stop or threading.Event())
        progress = job.label(pending, checkpoint, on_progress)
        return RunSummary(
            progress=progress,
            found=len(found.items),
            already_done=len(done),
            missing=tuple(sorted(done - {item.id for item in found.items})),
            skipped_videos=found.videos_skipped,
            failures=tuple((u.item.id, u.error) for u in store.units() if u.error is not None),
            interrupted=progress.done + progress.failed < len(pending),
        )


def _trust(
    guide: Guide,
    items: Sequence[MediaItem],
    out: str | Path,
    fingerprint: Mapping[str, Any],
    options: RunOptions,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Say what the exemplars cost and are worth, before the run folder is touched. Returns the figures by class."""
    done, known = set[str](), dict[str, Any]()
    if not options.fresh and (Path(out) / DATABASE).is_file():
        with Store.open(out) as store:
            store.refuse_other(fingerprint)
            done, known = store.done_ids(), store.meta("trust") or {}
    pending = [item for item in items if item.id not in done][: options.limit]
    for note in (note for examples in guide.examples for note in examples.notes):
        say(note)
    say(reference_check.plan(guide, sum(item.kind == "image" for item in pending), known))
    return reference_check.check(guide, options.floor, options.accept_exemplars, known, say)


def _describe(
    store: Store, concepts: ConceptList, options: RunOptions, sources: Sequence[str | Path], detector: Detector
) -> None:
    """What the run was made with, for everyone who reads it later. Thresholds may change from session to session."""
    before = store.meta("info") or {}
    info: dict[str, Any] = {
        "model": options.model,
        **detector.describe(),
        "device": str(detector.device),
        "version": version("sam3label"),
        "created": before.get("created", datetime.now(UTC).isoformat(timespec="seconds")),
        "sources": [str(s) for s in sources],
    }
    store.set_meta("info", info)
    store.set_meta("concepts", concept_lists.dump_concepts(concepts))


class _Job:
    """One session of labelling: what stays the same in it, and its tally."""

    def __init__(
        self,
        store: Store,
        guide: Guide,
        concepts: ConceptList,
        options: RunOptions,
        stop: threading.Event,
    ) -> None:
        self.store, self.guide, self.concepts, self.options, self.stop = store, guide, concepts, options, stop
        self.detector = guide.detector
        self.tally, self.start, self.total = _Tally(), time.perf_counter(), 0

    def snapshot(self) -> Progress:
        tally, seconds = self.tally, time.perf_counter() - self.start
        return Progress(
            self.total, tally.done, tally.failed, dict(tally.objects), seconds, dict(tally.stages), tally.frames
        )

    def label(
        self, pending: Sequence[MediaItem], checkpoint: Checkpoint, on_progress: Callable[[Progress], None]
    ) -> Progress:
        """Photos first, then one video after the other."""
        self.total = len(pending)
        on_progress(self.snapshot())
        photos = [item for item in pending if item.kind == "image"]
        videos = [item for item in pending if item.kind == "video"]
        work = self._units_of(videos, checkpoint)
        if pending:
            self.detector.encode_phrases(self.concepts.phrases)
        with _Writer(self.store) as writer:
            for results in chain(self._photos(photos), work):
                with _stage(self.tally.stages, "write"):
                    writer.put(results)
                self._count(results)
                on_progress(self.snapshot())
        return self.snapshot()

    def _photos(self, photos: Sequence[MediaItem]) -> Iterator[list[UnitResult]]:
        options, detector = self.options, self.detector
        batch_size = options.batch_size or detector.image_batch
        workers = loader.default_workers(len(photos)) if options.workers is None else options.workers
        on_gpu = detector.device.type == "cuda"
        batches = loader.batches(photos, batch_size, workers, pin=on_gpu)
        if on_gpu and self.guide.encodes(1)["photos"]:
            batches = self._begun(batches)
        before = detector.clock.seconds()
        while True:
            with _stage(self.tally.stages, "decode"):
                batch = next(batches, None) if photos else None
            if batch is None or self.stop.is_set():
                return
            results = _label_batch(self.guide, batch, options.floor)
            self.tally.stages |= {name: s - before.get(name, 0.0) for name, s in detector.clock.seconds().items()}
            yield results

    def _begun(self, batches: Iterator[_Batch]) -> Iterator[_Batch]:
        """The batches, each handed on once the device has begun with the one after it."""
        last = None
        for batch in batches:
            self.detector.encode_ahead([entry for entry in batch if isinstance(entry, Frame)])
            if last is not None:
                yield last
            last = batch
        if last is not None:
            yield last

    # ---- videos

    def _units_of(self, videos: Sequence[MediaItem], checkpoint: Checkpoint) -> Iterator[list[UnitResult]]:
        """The units of the videos. What is needed to track is loaded at once: before hours of photos, not after."""
        if videos and _tracks(self.options):
            from sam3label.model.tracker import Tracker

            tracker = Tracker.load(checkpoint, self.detector)
            return self._watched(videos, lambda item: self._tracked(tracker, item))
        return self._watched(videos, self._sampled)

    def _watched(
        self, videos: Sequence[MediaItem], units_of: Callable[[MediaItem], Iterator[list[UnitResult]]]
    ) -> Iterator[list[UnitResult]]:
        """Each step's units, none after most frames. A stop gives up the unit in flight."""
        for item in videos:
            self.tally.tracks.clear()
            units = units_of(item)
            while True:
                with _stage(self.tally.stages, "video"):
                    step = next(units, None)
                if step is None or self.stop.is_set():
                    break
                yield step

    def _tracked(self, tracker: Tracker, item: MediaItem) -> Iterator[list[UnitResult]]:
        start, track_id = self.store.progress(item.id)
        before = self.store.unit(item.id, start - 1) if start else None
        past = video_units.past_of(self.store.candidates(before) if before else (), start, track_id + 1)
        for step in video_units.tracked(tracker.track, item, self.store.prompts, self.options.clip_frames, start, past):
            self.tally.frames += not step
            yield step

    def _sampled(self, item: MediaItem) -> Iterator[list[UnitResult]]:
        start, _ = self.store.progress(item.id)
        frames = media_video.sampled(item, self.options.every, self.options.fps, start)
        batch_size = self.options.batch_size or self.detector.image_batch

        def detect(batch: Sequence[Frame]) -> Sequence[Detection]:
            return self.guide.detect(batch, self.options.floor)

        for step in video_units.sampled(detect, item, frames, batch_size, start):
            self.tally.frames += sum(result.error is None for result in step)
            yield step

    # ---- counting

    def _count(self, results: Iterable[UnitResult]) -> None:
        tally = self.tally
        for result in results:
            if result.error is not None:
                tally.failed += 1
                continue
            tally.done += result.last
            tally.objects.update(self.concepts.names[label.class_id] for label in self._new_labels(result))

    def _new_labels(self, result: UnitResult) -> Iterator[Label]:
        """A unit's labels; of a track only the first."""
        frames: dict[int, list[Candidate]] = {}
        for candidate in result.candidates:
            frames.setdefault(candidate.frame, []).append(candidate)
        for candidates in frames.values():
            for label in select_labels(candidates, self.concepts):
                key = (label.class_id, label.track_id)
                if label.track_id is None or key not in self.tally.tracks:
                    self.tally.tracks.add(key)
                    yield label


def find_media(sources: Sequence[str | Path], options: RunOptions) -> discovery.Found:
    """What a run with these options labels. Numbered photos are a video only for those who ask for videos."""
    return discovery.find_media(sources, options.video != "off", numbered_folders=options.video != "auto")


def _tracks(options: RunOptions) -> bool:
    return options.video in ("auto", "track")


def _video_settings(options: RunOptions) -> str:
    """How videos are labelled, in words: a field of the fingerprint."""
    if _tracks(options):
        return f"track, clips of {options.clip_frames} frames"
    rate = f"{options.fps:g} a second" if options.fps else f"every {options.every}"
    return f"frames, {rate}" if options.video == "frames" else "off"


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


class _stage:
    """Adds the time of a `with` block to a stage."""

    def __init__(self, stages: defaultdict[str, float], name: str) -> None:
        self.stages, self.name = stages, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.stages[self.name] += time.perf_counter() - self.start


class _Writer:
    """One thread that commits results a few times a second. Its error ends the run at the next `put` or at the end."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: queue.Queue[list[UnitResult] | None] = queue.Queue(QUEUED_BATCHES)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)

    def put(self, results: list[UnitResult]) -> None:
        if self._error is None:
            self._queue.put(results)
        if self._error is not None:
            raise self._error

    def __enter__(self) -> _Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def _work(self) -> None:
        """Commit what comes within COMMIT_SECONDS as one transaction. After an error only drain."""
        last = False
        while not last:
            results, last = self._gather()
            if results and self._error is None:
                try:
                    self._store.write(results)
                except BaseException as error:
                    self._error = error

    def _gather(self) -> tuple[list[UnitResult], bool]:
        results: list[UnitResult] = []
        deadline = time.monotonic() + COMMIT_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            try:
                batch = self._queue.get(timeout=left)
            except queue.Empty:
                break
            if batch is None:
                return results, True
            results += batch
        return results, False
