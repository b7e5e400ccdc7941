"""A video as units of work: clips in which objects are tracked, or sampled frames labelled like photos.

Either way a killed run loses at most the unit in flight, and continues to the same result: what a unit needs of those
before it is read from what they have left in the store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from sam3label.core import masks
from sam3label.core.records import (
    Candidate,
    Frame,
    Given,
    Likeness,
    MediaItem,
    Prompt,
    Rle,
    Stamp,
    UnitResult,
    candidate_id,
)
from sam3label.errors import InputError, UndecodableError
from sam3label.labelling.given_objects import GivenObjects, Start
from sam3label.labelling.near_copies import Compared, NearCopies, left_out
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.progress import JobTally
from sam3label.labelling.questions import Guide
from sam3label.labelling.track_ids import BEGINNING, Past, Sighting, match_tracks
from sam3label.media import video
from sam3label.media.stamps import stamp_of
from sam3label.run.asked import Wanted, in_tracking
from sam3label.run.rows import Unit
from sam3label.run.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from sam3label.model.checkpoint import Checkpoint
    from sam3label.model.detector import Detection
    from sam3label.model.tracker import Begin, TrackedFrame, TrackedObject, Tracker
    from sam3label.model.tracks import Beginning

OVERLAP = 8  # frames that a clip shares with the one before it, to recognise its objects

Track = Callable[[Iterable[Frame], Sequence[Prompt], "Begin"], Iterator["TrackedFrame"]]
Detect = Callable[[Sequence[Frame]], Sequence[tuple[Compared, "Detection | None"]]]  # no answer of a near-copy


@dataclass(frozen=True, slots=True)
class Pass:
    """Prompts that are put to a video from frame `start` on; `seen` is what they found in the last frames before it."""

    start: int
    prompts: tuple[Prompt, ...]
    seen: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class VideoWork:
    """A video, and all that whoever labels it must know of what the store has of it.

    Tracking needs the passes that are left and the number of the next track; sampling, by frame, the keys of the
    prompts that frames which are there have not answered.
    """

    item: MediaItem
    passes: tuple[Pass, ...] = ()
    next_track: int = 1
    missing: Mapping[int, frozenset[str]] = field(default_factory=dict)
    left_out: Mapping[int, Likeness] = field(default_factory=dict)  # near-copies that stay left out, by frame
    reopened: frozenset[int] = frozenset()  # those that are labelled after all

    @property
    def start(self) -> int:
        """The first frame that is labelled."""
        if self.passes:
            return self.passes[0].start
        lacking = {frame for frame, keys in self.missing.items() if keys} | self.reopened
        return min(lacking, default=max([-1, *self.missing, *self.left_out]) + 1)


def video_work(store: Store, wanted: Wanted, item: MediaItem, options: LabelOptions) -> VideoWork:
    """Read from the store how far a video is."""
    if options.tracks:
        passes = tuple(_with_past(store, one) for one in _passes(store, wanted, item))
        return VideoWork(item, passes, store.last_track(item.id) + 1)
    units = list(store.done_units(item.id))
    missing = {unit.frame_start: wanted.missing(store.asked(unit)) for unit in units}
    kept_out = {n: like for (own, n), like in left_out(store, options.skip_similar).items() if own == item.id}
    reopened = {n for own, n, _ in store.skipped() if own == item.id} - kept_out.keys()
    return VideoWork(item, missing=missing, left_out=kept_out, reopened=frozenset(reopened))


def load_tracker(checkpoint: Checkpoint, guide: Guide, options: LabelOptions) -> Tracker | None:
    """Load what follows objects, where the job does. Raises CheckpointError."""
    if not options.tracks:
        return None
    from sam3label.model.track_rules import Rules
    from sam3label.model.tracker import Tracker

    rules = Rules.of(options.tracker, options.tracking_extra)
    return Tracker.load(checkpoint, guide.detector, rules, options.both_ways)


def label_videos(
    guide: Guide,
    tracker: Tracker | None,
    works: Iterable[VideoWork],
    options: LabelOptions,
    tally: JobTally,
    stopped: Callable[[], bool],
    copies: NearCopies | None = None,
) -> Iterator[list[UnitResult]]:
    """Label videos one after the other, until `stopped` says so. A stop gives up the unit in flight."""
    for work in works:
        steps = label_video(guide, tracker, work, options, copies)
        while True:
            with tally.stage("video"):
                step = next(steps, None)
            if step is None or stopped():
                break
            tally.frames += frames_in(step, options)
            yield step


def label_video(
    guide: Guide, tracker: Tracker | None, work: VideoWork, options: LabelOptions, copies: NearCopies | None = None
) -> Iterator[list[UnitResult]]:
    """Yield each step's units, none after most frames. Sampled frames that `copies` knows are not asked."""
    stamp = _stamp(work.item)
    steps = _sampled_on(guide, work, options, copies) if tracker is None else _tracked_on(guide, tracker, work, options)
    for step in steps:
        yield [replace(result, stamp=stamp) for result in step]


def frames_in(step: Sequence[UnitResult], options: LabelOptions) -> int:
    """Return how many frames a step of `label_video` has labelled: tracked ones come as steps of their own."""
    return not step if options.tracks else sum(result.error is None for result in step)


def frames_to_label(store: Store, wanted: Wanted, videos: Sequence[MediaItem], options: LabelOptions) -> int:
    """Return how many frames are still to be labelled, as far as the videos' headers say; those of each pass count."""
    left = 0
    for item in videos:
        frames, starts = video.frame_count(item), [one.start for one in _passes(store, wanted, item)]
        if options.tracks:
            left += sum(max(0, frames - start) for start in starts)
        else:
            start = min(starts, default=frames)
            step = video.frame_rate(item) / options.fps if frames and options.fps else options.every
            left += max(0, round(frames / max(step, 1)) - round(start / max(step, 1)))
    return left


def _stamp(item: MediaItem) -> Stamp | None:
    try:
        return stamp_of(item)
    except OSError:  # gone: the decoder will say so
        return None


@dataclass(frozen=True, slots=True)
class _Pass:
    """Prompts that are put to a video from frame `start` on; `before` is the unit that ends there."""

    start: int
    prompts: tuple[Prompt, ...]
    before: Unit | None


def _with_past(store: Store, one: _Pass) -> Pass:
    keys = {prompt.key for prompt in one.prompts}
    seen = store.candidates(one.before) if one.before else ()
    return Pass(one.start, one.prompts, tuple(c for c in seen if c.prompt in keys and c.frame >= one.start - OVERLAP))


def _passes(store: Store, wanted: Wanted, item: MediaItem) -> list[_Pass]:
    """Return what a video is still to be asked: prompts that got equally far go together, the farthest first."""
    units = list(store.done_units(item.id))
    end = units[-1].frame_stop if units else 0
    whole = bool(units) and units[-1].last
    missing = [wanted.missing(store.asked(unit)) for unit in units]
    by_start: dict[int, list[Prompt]] = {}
    for prompt in wanted.prompts:
        start = next((u.frame_start for u, keys in zip(units, missing, strict=True) if prompt.key in keys), end)
        if not (whole and start == end):
            by_start.setdefault(start, []).append(prompt)
    before = {unit.frame_stop: unit for unit in units}
    return [_Pass(start, tuple(by_start[start]), before.get(start)) for start in sorted(by_start, reverse=True)]


def _tracked_on(guide: Guide, tracker: Tracker, work: VideoWork, options: LabelOptions) -> Iterator[list[UnitResult]]:
    """Track a video from where the store has it. Prompts that came later go through it on their own: their tracks get
    the ids after those there are."""
    item, next_id, ask = work.item, work.next_track, guide.in_tracking(work.item)
    whole = guide.detector.device.type == "cuda" and not tracker.rules.bicubic  # frames go to the device as they are
    read = _pinned_frames if whole else video.frames
    given = GivenObjects(item, guide.objects, guide.clicker)

    def track(frames: Iterable[Frame], prompts: Sequence[Prompt], begin: Begin) -> Iterator[TrackedFrame]:
        return tracker.track(frames, prompts, ask, begin)

    for number, one in enumerate(work.passes, 1):
        past = past_of(one.seen, one.start, next_id)
        for step in tracked(track, item, one.prompts, options.clip_frames, one.start, past, read, given):
            next_id = max((next_id, *(c.track_id + 1 for r in step for c in r.candidates if c.track_id is not None)))
            yield [
                _placed(result, guide, one.prompts, last=result.last and number == len(work.passes)) for result in step
            ]


def _placed(result: UnitResult, guide: Guide, prompts: Sequence[Prompt], last: bool) -> UnitResult:
    """Return a unit of one pass among the job's prompts. The video is done with the last pass's last unit."""
    if result.presence is None:
        return result
    return replace(result, presence=guide.spread(prompts, result.presence), last=last)


def _sampled_on(
    guide: Guide, work: VideoWork, options: LabelOptions, copies: NearCopies | None
) -> Iterator[list[UnitResult]]:
    """Label samples of a video from the first that the store has not, or has not all answers of."""
    frames = video.sampled(work.item, options.every, options.fps, work.start)
    if guide.detector.device.type == "cuda":
        frames = _pinned(frames)
    batch_size = options.batch_size or guide.detector.image_batch
    everything = frozenset(prompt.key for prompt in guide.prompts)

    def detect(batch: Sequence[Frame]) -> Sequence[tuple[Compared, Detection | None]]:
        seen = {frame: Compared(like=like) for frame, like in work.left_out.items()}
        new = [frame for frame in batch if frame.index not in work.missing and frame.index not in seen]
        if copies is not None and new:
            judged = copies.judge(new, guide.detector.looks(new))
            seen |= {frame.index: one for frame, one in zip(new, judged, strict=True)}
        left = [frame for frame in batch if seen.get(frame.index, Compared()).like is None]
        asked = [work.missing.get(frame.index, everything) for frame in left]
        found: dict[int, Detection] = {}
        for keys in dict.fromkeys(asked):
            some = [frame for frame, own in zip(left, asked, strict=True) if own == keys]
            answers = guide.detect(some, options.floor, only=keys)
            found |= {frame.index: one for frame, one in zip(some, answers, strict=True)}
        return [(seen.get(frame.index, Compared()), found.get(frame.index)) for frame in batch]

    return sampled(detect, work.item, frames, batch_size, work.start)


def _pinned_frames(item: MediaItem, start: int) -> Iterator[Frame]:
    return _pinned(video.frames(item, start))


def _pinned(frames: Iterator[Frame]) -> Iterator[Frame]:
    from sam3label.media import loader  # with torch, of which a job with nothing to do has no need

    return loader.pinned(frames)


class _Coming:
    """Frames with a look at the next one: `next` is None at the end, and `error` says why if that came early."""

    def __init__(self, source: Iterator[Frame]) -> None:
        self.source = source
        self.next: Frame | None = None
        self.error: str | None = None
        self.count = 0  # of the video's frames that are known to exist
        self.step()

    def step(self) -> None:
        try:
            self.next = next(self.source, None)
        except UndecodableError as error:
            self.next, self.error = None, str(error)
        if self.next is not None:
            self.count = self.next.index + 1

    def until(self, stop: int) -> Iterator[Frame]:
        """Yield the frames before number `stop`."""
        while self.next is not None and self.next.index < stop:
            frame = self.next
            self.step()
            yield frame


def tracked(
    track: Track,
    item: MediaItem,
    prompts: Sequence[Prompt],
    clip_frames: int,
    start: int = 0,
    past: Past = BEGINNING,
    read: Callable[[MediaItem, int], Iterator[Frame]] = video.frames,
    given: GivenObjects | None = None,
) -> Iterator[list[UnitResult]]:
    """Label a video from frame `start` on, `clip_frames` of it at a time. An empty list comes after each frame of it.

    A video that ends early in an error ends in a failed unit; what is before it is labelled.
    """
    coming = _Coming(read(item, max(start - OVERLAP, 0)))
    shared = deque(coming.until(start), maxlen=OVERLAP)
    while coming.next is not None:
        stop = start + clip_frames
        clip = _Clip(item, prompts, start, past, given)
        try:
            for one in track(_through(shared, coming.until(stop)), prompts, clip.begin):
                clip.add(one)
                if one.frame.index >= start:
                    yield []
        except InputError as error:  # boxes that do not fit the video
            coming.error = str(error)
            break
        last = coming.next is None and coming.error is None
        yield [clip.result(last)]
        start, past = clip.stop, clip.past()
    if coming.error is not None:
        yield [UnitResult(item, start, start + 1, None, error=coming.error)]


def _through(shared: deque[Frame], frames: Iterator[Frame]) -> Iterator[Frame]:
    """Yield the shared frames, then the rest, and let `shared` keep the last of these for the next clip."""
    yield from tuple(shared)
    for frame in frames:
        shared.append(frame)
        yield frame


class _Clip:
    """The frames of one clip as they come, becoming a unit. Frames before `start` only tell who is who."""

    def __init__(
        self, item: MediaItem, prompts: Sequence[Prompt], start: int, past: Past, given: GivenObjects | None
    ) -> None:
        self.item, self.prompts, self.start, self.before, self.given = item, prompts, start, past, given
        self.begun: list[tuple[int, Start]] = []  # (frame, what begins there): their places are their names
        self.stop = start
        self.next_id = past.next_id
        self.size_hw: tuple[int, int] | None = None
        self.early: list[Sighting] = []
        self.ids: dict[int, int] | None = None  # number in the clip -> id in the video
        self.candidates: list[Candidate] = []
        self.heard = np.zeros(len(prompts), np.float32)  # each prompt's presence when it was last asked
        self.presence: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = []

    def add(self, tracked: TrackedFrame) -> None:
        index, self.size_hw = tracked.frame.index, tracked.frame.size_hw
        if index < self.start:
            names = [prompt.key for prompt in self.prompts]
            found = [one for one in tracked.objects if one.name is None]  # who the others are is known
            self.early += [Sighting(index, names[o.prompt], o.number, o.instance.rle) for o in found]
            return
        if self.ids is None:
            self.ids = match_tracks(self.before.seen, self.early)
        self.stop = index + 1
        presence = self._with_given(tracked)
        self.presence.append(presence)
        self.heard = np.where(np.isnan(presence), self.heard, presence)
        for one in tracked.objects:
            self._see(index, one.prompt, self._track_of(one), one.score, one.track_score, one.instance.rle, one.name)
        seen = {one.name for one in tracked.objects}
        for name, (frame, start) in enumerate(self.begun):
            if frame == index and name not in seen:  # nothing came of it, which is to be said
                place = self._place_of(start)
                self._see(index, place, self._new_track(), start.score, start.score, _nothing(tracked.frame), name)

    def begin(self, frame: Frame, grid: Tensor) -> list[Beginning]:
        """Return the objects that are given in a frame, or taken over from the clip before."""
        from sam3label.model.tracks import Beginning

        if self.given is None or not any(prompt.source == "given" for prompt in self.prompts):
            return []
        starts = self.given.starts(frame, grid, self.start, self.before)
        first = len(self.begun)
        self.begun += [(frame.index, one) for one in starts]
        return [Beginning(s.logits, self._place_of(s), s.score, first + n) for n, s in enumerate(starts)]

    def _place_of(self, start: Start) -> int:
        return next(n for n, prompt in enumerate(self.prompts) if prompt.key == start.shown.prompt)

    def _with_given(self, tracked: TrackedFrame) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """Return a frame's presences: a prompt of given objects is not asked, and is answered by their being there."""
        there = {one.prompt for one in tracked.objects}
        presence = tracked.presence.copy()
        for place, prompt in enumerate(self.prompts):
            if prompt.source == "given":
                presence[place] = place in there
        return presence

    def _track_of(self, one: TrackedObject) -> int:
        assert self.ids is not None
        if one.number not in self.ids:
            known = None if one.name is None else self.begun[one.name][1].shown.track
            self.ids[one.number] = self._new_track() if known is None else known
        return self.ids[one.number]

    def _new_track(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    def _see(
        self, index: int, place: int, track: int, score: float, track_score: float, rle: Rle, name: int | None
    ) -> None:
        prompt, given = self.prompts[place], None
        if name is not None:
            frame, start = self.begun[name]
            given = start.shown.given if frame == index else replace(start.shown.given, hint=None, stability=1.0)
            if frame == index and start.shown.mask is not None:
                rle = start.shown.mask  # a person's stays as it was drawn
        self.candidates.append(
            Candidate(
                id=candidate_id(self.item.id, index, in_tracking(prompt.identity), track),
                item_id=self.item.id,
                frame=index,
                prompt=prompt.key,
                score=self.before.scores.get(track, score),
                presence=float(self.heard[place]),
                box_xywh=masks.box_xywh(rle),
                area=masks.area(rle),
                rle=rle,
                track_id=track,
                track_score=track_score,
                source=prompt.source,
                given=given,
            )
        )

    def result(self, last: bool) -> UnitResult:
        candidates, presence = tuple(self.candidates), np.stack(self.presence)
        return UnitResult(self.item, self.start, self.stop, self.size_hw, candidates, presence, last=last)

    def past(self) -> Past:
        return past_of(self.candidates, self.stop, self.next_id)


def past_of(candidates: Iterable[Candidate], stop: int, next_id: int) -> Past:
    """Return what the clip that starts at frame `stop` must know, from the candidates of the one before it."""
    seen, scores, given = [], {}, dict[int, Given]()
    for one in candidates:
        if one.frame >= stop - OVERLAP and one.track_id is not None:
            seen.append(Sighting(one.frame, one.prompt, one.track_id, one.rle))
            scores[one.track_id] = one.score
            if one.given is not None:
                given[one.track_id] = one.given
    return Past(tuple(seen), next_id, scores, given)


def _nothing(frame: Frame) -> Rle:
    return masks.encode(np.zeros(frame.size_hw, np.bool_))


def sampled(
    detect: Detect,
    item: MediaItem,
    frames: Iterator[Frame],
    batch_size: int,
    done: int = 0,
) -> Iterator[list[UnitResult]]:
    """Label `frames` of a video like photos, one unit each. Frames before number `done` are labelled already.

    Units that were computed together come together, and belong into one transaction: so a resumed run computes the
    same frames together, and gets the same numbers to the last bit.
    """
    coming, stop = _Coming(frames), done
    while coming.next is not None:
        batch = list(islice(coming.until(1 << 62), batch_size))
        last = coming.next is None and coming.error is None
        yield [
            _sample(frame, seen, found, last=last and frame is batch[-1])
            for frame, (seen, found) in zip(batch, detect(batch), strict=True)
        ]
        stop = batch[-1].index + 1
    if coming.error is not None:
        yield [UnitResult(item, stop, stop + 1, None, error=coming.error)]


def _sample(frame: Frame, seen: Compared, found: Detection | None, last: bool) -> UnitResult:
    where = frame.item, frame.index, frame.index + 1, frame.size_hw
    if found is None:
        return UnitResult(*where, like=seen.like, last=last)
    presence = np.asarray(found.presence, np.float32)[None]
    return UnitResult(*where, found.candidates, presence, last=last, look=seen.look, full=found.full)
