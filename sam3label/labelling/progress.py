"""How far a job is: its tally while it works, and what others are told of it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sam3label.core.records import Candidate, ConceptList, UnitResult
from sam3label.run.decide import select_labels

FoundLabel = tuple[int, int | None]  # (class, track)


@dataclass(frozen=True, slots=True)
class WorkerPace:
    """A worker of several: what it does, how many photos and frames it has labelled, and how many a second."""

    name: str
    state: str
    steps: int
    per_second: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job stands. `objects` counts labels per class at the list's thresholds, of this session's images.

    A video is one image here, and an object tracked through it one label; `frames` counts frames of videos.
    """

    total: int  # images to label in this session
    done: int
    failed: int
    objects: Mapping[str, int]
    seconds: float
    stages: Mapping[str, float]  # seconds: waiting to decode, encode, heads, post, waiting to write; video
    frames: int = 0
    frames_total: int = 0  # of the videos to label in this session, as far as their headers say
    videos: int = 0  # of `total`
    videos_finished: int = 0
    before: int = 0  # images that earlier sessions labelled
    workers: tuple[WorkerPace, ...] = ()  # where there are several
    skipped: int = 0  # near-copies among the photos, which were left out

    @property
    def finished(self) -> int:
        """Images of this session that are over, labelled, failed or left out."""
        return self.done + self.failed + self.skipped

    @property
    def steps(self) -> tuple[int, int]:
        """(done, all) of this session's work, a photo being one step and a frame of a video another."""
        photos = self.finished - self.videos_finished
        return photos + self.frames, self.total - self.videos + max(self.frames_total, self.frames)

    @property
    def seconds_left(self) -> float | None:
        """By the pace of photos and of frames, each for itself. None while nothing is finished.

        Before the first frame of a video, and the first photo, one is taken to be as slow as the other.
        """
        photos, in_videos = self.finished - self.videos_finished, self.stages.get("video", 0.0)
        if not photos and not self.frames:
            return 0.0 if self.finished == self.total else None
        photo = (self.seconds - in_videos) / photos if photos else in_videos / self.frames
        frame = in_videos / self.frames if self.frames else photo
        left = self.total - self.videos - photos
        return left * photo + max(0, self.frames_total - self.frames) * frame


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
    not_tried: int = 0  # of the failures: those of earlier sessions whose files have not changed since


class JobTally:
    """What a session has labelled so far, and where its time went."""

    def __init__(
        self, concepts: ConceptList, total: int, videos: int = 0, frames_total: int = 0, before: int = 0
    ) -> None:
        self.concepts, self.total, self.start = concepts, total, time.perf_counter()
        self.videos, self.frames_total, self.before = videos, frames_total, before
        self.done = self.failed = self.skipped = self.frames = self.videos_finished = 0
        self.objects = Counter[str]()
        self.stages = defaultdict[str, float](float)
        self.workers: tuple[WorkerPace, ...] = ()
        self.tracks = defaultdict[str, set[FoundLabel]](set)  # of the videos at hand, by id

    def snapshot(self) -> Progress:
        """Return the tally as it is now, for those who watch."""
        return Progress(
            total=self.total,
            done=self.done,
            failed=self.failed,
            objects=dict(self.objects),
            seconds=time.perf_counter() - self.start,
            stages=dict(self.stages),
            frames=self.frames,
            frames_total=self.frames_total,
            videos=self.videos,
            videos_finished=self.videos_finished,
            before=self.before,
            workers=self.workers,
            skipped=self.skipped,
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a `with` block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] += time.perf_counter() - start

    def count(self, result: UnitResult, found: Collection[FoundLabel]) -> None:
        """Take in a unit that the job has just labelled, and what `labels_in` finds in it. A track counts once."""
        known = self.tracks[result.item.id] if result.item.kind == "video" else set[FoundLabel]()
        for one in found:
            self.objects[self.concepts.names[one[0]]] += one not in known
        known.update(one for one in found if one[1] is not None)
        if result.item.kind == "video" and (result.last or result.error is not None):
            self.videos_finished += 1
            del self.tracks[result.item.id]
        self.failed += result.error is not None
        left_out = result.like is not None and result.item.kind == "image"
        self.skipped += left_out
        self.done += result.error is None and result.last and not left_out


def labels_in(result: UnitResult, concepts: ConceptList) -> tuple[FoundLabel, ...]:
    """Return the labels of a unit at the list's thresholds; of each track one."""
    frames: dict[int, list[Candidate]] = {}
    for candidate in result.candidates:
        frames.setdefault(candidate.frame, []).append(candidate)
    found = [(x.class_id, x.track_id) for some in frames.values() for x in select_labels(some, concepts)]
    return (*(one for one in found if one[1] is None), *dict.fromkeys(one for one in found if one[1] is not None))
