"""One copy of the model that labels what it is given: what runs inside a worker's process. Knows no Ray.

    chunk -> threads read and decode -> one thread has the model -> answer

Everything that touches the device is done by one thread, in the order in which it was given. While that computes one
chunk, the next is decoded; on CUDA its images are encoded while the masks of the one before are read off. A decoder
that crashes takes the process along, and whoever gave the work finds out which photo it was.
"""

from __future__ import annotations

import os
import platform
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from sam3label.core.records import Frame, MediaItem, Processor, Stamp, Undecodable, UnitResult
from sam3label.core.text import one_line
from sam3label.labelling import reference_check
from sam3label.labelling.near_copies import NearCopies
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.photos import Decoded, PhotoBatch, label_batch
from sam3label.labelling.progress import labels_in
from sam3label.labelling.questions import Prepared
from sam3label.labelling.videos import VideoWork, frames_in, label_video, load_tracker
from sam3label.labelling.workers.local import facts_of, load_guide
from sam3label.labelling.workers.node_checkpoint import CheckpointSource, Parts, on_this_node
from sam3label.labelling.workers.work import Answered, Assignment, Facts
from sam3label.media.memory import megapixels_that_fit
from sam3label.media.stamps import stamp_of

if TYPE_CHECKING:
    from sam3label.model.tracker import Tracker

T = TypeVar("T")

_STEP_SECONDS = 1.0  # of a video, between two answers


@dataclass(frozen=True, slots=True)
class Greeting:
    """Where a worker is, and what keeps it from labelling there, in a sentence; "" for nothing."""

    host: str
    pid: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Stretch:
    """What came of a chunk or of a step of a video, and the seconds that its stages took.

    `frames` are those of a video that were labelled, `is_over` says that nothing more is to come.
    """

    answers: tuple[Answered, ...]
    stages: Mapping[str, float] = field(default_factory=dict)
    frames: int = 0
    is_over: bool = True


class LostError(Exception):
    """The worker was started anew since, and does not know the video that it is asked to go on with."""


def greet(first: MediaItem | None, stamp: Stamp | None, wanted_version: str) -> Greeting:
    """Look whether this node can label: the same program, and the first file within reach, as the driver has it."""
    return Greeting(platform.node(), os.getpid(), _problem(first, stamp, wanted_version))


def _problem(first: MediaItem | None, stamp: Stamp | None, wanted_version: str) -> str:
    here = version("sam3label")
    if here != wanted_version:
        return f"has sam3label {here}, and the driver {wanted_version}: install the same version on every node"
    if first is None or stamp is None:
        return ""
    try:
        found = stamp_of(first)
    except OSError as error:
        return (
            f"cannot read {one_line(first.path)} ({error.strerror or error}): every node must see the photos at the "
            "same path, so put them on storage that all nodes mount alike"
        )
    if found.digest != stamp.digest:
        return f"has another file at {one_line(first.path)} than the driver: mount the same storage on every node"
    return ""


class Replica:
    """A loaded model and what it is asked. Its methods may be called by several threads at once."""

    def __init__(
        self, assignment: Assignment, source: CheckpointSource, readers: int = 1, parts: Parts | None = None
    ) -> None:
        """Load the model; `readers` is how many threads decode. Raises MissingCheckpointError, and a `Sam3LabelError`.

        `parts` are the checkpoint's files, for a node that has none.
        """
        from sam3label.model.checkpoint import with_image_size
        from sam3label.model.device import processor_of

        self._assignment = assignment
        self._options = assignment.options
        checkpoint = with_image_size(on_this_node(source, parts), self._options.image_size)
        self._guide = load_guide(checkpoint, assignment)
        detector = self._guide.detector
        detector.encode_phrases(assignment.concepts.phrases)
        self._load_tracker = partial(load_tracker, checkpoint, self._guide, self._options)
        self._tracker: Tracker | None = None
        self._processor: Processor = processor_of(detector.device)
        self.facts: Facts = facts_of(detector)
        self._readers = ThreadPoolExecutor(readers, "reader")
        most = self._options.max_megapixels
        self._megapixels = megapixels_that_fit(readers + 1) if most is None else most
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._clock: dict[str, float] = {}
        self._video: tuple[int, Iterator[list[UnitResult]]] | None = None
        threading.Thread(target=self._work, name="model", daemon=True).start()

    # ---- before the photos

    def check_references(
        self, n_images: int, known: Mapping[str, Any], say: Callable[[str], None]
    ) -> tuple[dict[str, Any], Prepared]:
        """Return the figures of `reference_check`, and what other workers need instead of the reference images."""

        def work() -> tuple[dict[str, Any], Prepared]:
            say(reference_check.plan(self._guide, n_images, known))
            options = self._options
            figures = reference_check.check(self._guide, options.floor, options.accept_exemplars, known, say)
            return figures, self._guide.prepare()

        return self._do(work)

    def take(self, prepared: Prepared) -> None:
        """Take over what another worker has made of the reference images."""
        self._do(lambda: self._guide.take(prepared))

    # ---- photos

    def label(
        self, batches: Sequence[PhotoBatch], known: Mapping[str, str], copies: NearCopies | None = None
    ) -> Stretch:
        """Label photos, each batch as one. `known` has, by id, why some of them cannot be.

        What `copies` finds to be a near-copy of one before it is left out.
        """
        jobs = []
        for batch in batches:
            photos = [
                _done(Undecodable(item, known[item.id])) if item.id in known else self._readers.submit(self._read, item)
                for item in batch.items
            ]
            jobs.append(_Job(partial(self._label, photos, batch, copies), photos))
            self._jobs.put(jobs[-1])
        parts: list[Stretch] = [job.answer.result() for job in jobs]
        stages: dict[str, float] = {}
        for name, seconds in chain.from_iterable(part.stages.items() for part in parts):
            stages[name] = stages.get(name, 0.0) + seconds
        return Stretch(tuple(answer for part in parts for answer in part.answers), stages)

    def _read(self, item: MediaItem) -> Frame | Undecodable:
        from sam3label.media import loader
        from sam3label.media.image import read_photo

        read = partial(read_photo, max_megapixels=self._megapixels)
        return next(loader.entries([item], 0, self._guide.detector.device.type == "cuda", read))

    def _label(
        self, photos: Sequence[Future[Frame | Undecodable]], batch: PhotoBatch, copies: NearCopies | None
    ) -> Stretch:
        since = time.perf_counter()
        decoded: Decoded = [photo.result() for photo in photos]
        waited = time.perf_counter() - since
        answer = self._answer(label_batch(self._guide, decoded, self._options.floor, batch.keys, copies))
        return Stretch((answer,), {"decode": waited, **self._spent()})

    def _spent(self) -> dict[str, float]:
        now = self._guide.detector.clock.seconds()
        spent = {name: seconds - self._clock.get(name, 0.0) for name, seconds in now.items()}
        self._clock = now
        return spent

    def _answer(self, results: Sequence[UnitResult]) -> Answered:
        made = [replace(result, processor=self._processor) for result in results]
        return Answered(made, [labels_in(result, self._assignment.concepts) for result in made])

    # ---- videos

    def watch(self, ticket: int, work: VideoWork | None, batch_size: int, copies: NearCopies | None = None) -> Stretch:
        """Label a video on for about a second, or to its next units. The first call with a ticket brings the work,
        and what compares its frames."""
        return self._do(lambda: self._watch(ticket, work, replace(self._options, batch_size=batch_size), copies))

    def _watch(self, ticket: int, work: VideoWork | None, options: LabelOptions, copies: NearCopies | None) -> Stretch:
        if work is not None:
            if self._tracker is None:
                self._tracker = self._load_tracker()
            self._video = ticket, label_video(self._guide, self._tracker, work, options, copies)
        if self._video is None or self._video[0] != ticket:
            raise LostError
        since, frames = time.perf_counter(), 0
        while True:
            step = next(self._video[1], None)
            spent = {"video": time.perf_counter() - since}
            if step is None:
                self._video = None
                return Stretch((), spent, frames)
            frames += frames_in(step, options)
            if step or spent["video"] > _STEP_SECONDS:
                answers = (self._answer(step),) if step else ()
                return Stretch(answers, spent, frames, is_over=False)

    # ---- the thread that has the model

    def _do(self, work: Callable[[], T]) -> T:
        job = _Job(work)
        self._jobs.put(job)
        answer: T = job.answer.result()
        return answer

    def _work(self) -> None:
        following: _Job | None = None
        while True:
            job = following or self._jobs.get()
            following = self._next()
            if following is not None:
                self._begin(following)
            job.run()

    def _next(self) -> _Job | None:
        try:
            return self._jobs.get_nowait()
        except queue.Empty:
            return None

    def _begin(self, job: _Job) -> None:
        """Have the device encode the photos of the next batch, where it can do that beside its other work."""
        detector = self._guide.detector
        if detector.device.type == "cuda" and job.photos and all(photo.done() for photo in job.photos):
            decoded = (photo.result() for photo in job.photos)
            detector.encode_ahead([entry for entry in decoded if isinstance(entry, Frame)])


class _Job:
    """Something for the thread that has the model, and the photos it is about."""

    def __init__(self, work: Callable[[], Any], photos: Sequence[Future[Frame | Undecodable]] = ()) -> None:
        self._does, self.photos = work, photos
        self.answer: Future[Any] = Future()

    def run(self) -> None:
        try:
            self.answer.set_result(self._does())
        except BaseException as error:
            self.answer.set_exception(error)


def _done(entry: Frame | Undecodable) -> Future[Frame | Undecodable]:
    future: Future[Frame | Undecodable] = Future()
    future.set_result(entry)
    return future
