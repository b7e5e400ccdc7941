"""SAM 3 on video: frames in, objects that keep their identity out, in memory that does not grow with the clip.

An object may be taken back within `hotstart_delay` frames after its birth, so a frame is given out only when that time
has passed. All prompts share one encoding of the frame, in the form the model was trained with (see `detector`). What
happens in a frame is `TrackSession`'s; by whose rules, `Rules`'.

Shape legend: P prompts, N objects, K detections, h x w mask logits, H x W the frame.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam3label.core import masks
from sam3label.core.records import Frame, Prompt
from sam3label.model import both_ways, mask_runs
from sam3label.model.ask import Exemplar
from sam3label.model.checkpoint import Checkpoint
from sam3label.model.clean_masks import keep_best
from sam3label.model.detector import Detector, Looking, Seen
from sam3label.model.device import bring, rows_of, send
from sam3label.model.encode_ahead import Ahead
from sam3label.model.head import ImageState
from sam3label.model.in_steps import Steps, finish, in_turns, one_ahead
from sam3label.model.mask_runs import Instance
from sam3label.model.matching_tracks import FrameDetections
from sam3label.model.track_rules import BORDER, CONFIRM_FRAMES, OFFICIAL, Rules, TrackSettings
from sam3label.model.track_session import TrackSession
from sam3label.model.tracker_parts import TrackerParts
from sam3label.model.tracks import Beginning, Births, Tracks
from sam3label.model.weights import load_video_model

Ask = Callable[[Frame], Mapping[str, Exemplar | None]]
Begin = Callable[[Frame, Tensor], Sequence[Beginning]]  # of a frame and its encoding [1, V, g, g]
VISIBLE = 0.5  # the tracker's score of an object that it sees
READ_OFF = 3  # frames whose masks are read off meanwhile, on CUDA: each a step further in every frame


@dataclass(frozen=True, slots=True)
class TrackedObject:
    """Holds one object in one frame. `number` is its identity within the clip; both scores are in [0, 1].

    `name` is that of an object that was given.
    """

    number: int
    prompt: int  # place among the prompts
    score: float  # of the detection it was born from
    track_score: float  # of the tracker in this frame
    instance: Instance
    name: int | None = None


@dataclass(frozen=True, slots=True)
class TrackedFrame:
    """Holds one frame of a clip. `presence` float32 [P] in the order of the prompts, NaN where one was not asked."""

    frame: Frame
    presence: npt.NDArray[np.float32]
    objects: tuple[TrackedObject, ...]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Holds a frame that waits for the end of its hotstart."""

    frame: Frame
    presence: npt.NDArray[np.float32]
    tracks: Tracks


@dataclass(frozen=True, slots=True)
class _EncodedFrame:
    """Holds a frame as the model takes it, what the image encoder says of it, and its state: all that is made of it
    before anything is asked."""

    pixels: Tensor
    grid: Tensor
    state: ImageState

    def used_in(self, stream: torch.cuda.Stream) -> None:
        """Keep this memory, made in another stream, until `stream` is done with it."""
        self.pixels.record_stream(stream)
        self.grid.record_stream(stream)
        self.state.used_in(stream)


@dataclass(frozen=True, slots=True)
class _AskedFrame:
    """Holds a frame of which all was asked that no other frame decides."""

    frame: Frame
    encoded: _EncodedFrame
    asked: Looking


class Tracker:
    """Tracks objects with a loaded SAM 3 video model, which shares its detector with photos. One clip at a time."""

    def __init__(
        self, video: Any, detector: Detector, rules: Rules, settings: TrackSettings, both_ways: bool = False
    ) -> None:
        self.detector, self.rules, self.settings, self.both_ways = detector, rules, settings, both_ways
        self.parts = TrackerParts(video)
        self._ahead = Ahead(detector.device, lambda frames: self._encoded(self.preprocess(frames[0])))

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, detector: Detector, rules: Rules = OFFICIAL, both_ways: bool = False
    ) -> Tracker:
        """Load the tracker beside a detector of the same checkpoint. Raises CheckpointError if it has none.

        `both_ways`: objects are followed to frames before their birth too.
        """
        video = load_video_model(checkpoint)
        video.detector_model = detector.model  # before the move: its own copy of the detector is not needed
        settings = TrackSettings.of(video.config, rules)
        for part in (part for part in video.children() if part is not detector.model):
            part.to(detector.device)
        return cls(video, detector, rules, settings, both_ways)

    @torch.inference_mode()
    def track(
        self,
        frames: Iterable[Frame],
        prompts: Sequence[Prompt],
        ask: Ask = lambda _: {},
        begin: Begin = lambda *_: (),
    ) -> Iterator[TrackedFrame]:
        """Track every prompt's objects through the frames of one clip, all of one size.

        `ask` gives the exemplars of a frame by prompt key, as for `Detector.detect`, `begin` the objects that are
        followed from a frame on whatever is detected. Frames come out in
        order, `hotstart_delay` of them late, or all at the end where tracking goes both ways. An error while reading
        `frames` passes through after the frames before it have come out.
        """
        source, first, failure = _until_failure(frames, self.parts.sizes.pointers)
        length = len(first) if len(first) < self.parts.sizes.pointers else sys.maxsize
        session = TrackSession(self.parts, self.rules, self.settings, length, keeps_births=self.both_ways)
        if self.both_ways:
            with both_ways.spooled() as file:
                spool = both_ways.Spool(file, self.detector.image_size)
                forward = self._forwards(session, chain(first, source), prompts, ask, begin, spool.append)
                light = [replace(one, frame=both_ways.without_pixels(one.frame)) for one in forward]
                backward, removed = self._backwards(session, spool, light, prompts, ask)
                yield from both_ways.joined(light, backward, removed, _apart)
        else:
            yield from self._forwards(session, chain(first, source), prompts, ask, begin)
        if failure:
            raise failure[0]

    def _forwards(
        self,
        session: TrackSession,
        frames: Iterable[Frame],
        prompts: Sequence[Prompt],
        ask: Ask,
        begin: Begin,
        keep: Callable[[Tensor], None] = lambda _: None,
    ) -> Iterator[TrackedFrame]:
        """Track through a clip. On CUDA the host waits once a frame: for the bits of its masks, by when the scores of
        the next one have come too, and what reading off the masks of earlier ones has asked for."""
        cuda = self.detector.device.type == "cuda"
        asked = self._asked(frames, prompts, ask)
        stepped = self._stepped(session, one_ahead(asked) if cuda else asked, begin, keep)
        yield from in_turns(stepped, READ_OFF if cuda else 0)

    def _asked(self, frames: Iterable[Frame], prompts: Sequence[Prompt], ask: Ask) -> Iterator[_AskedFrame]:
        """Yield all frames, in order, with what they are asked. On CUDA the one after is encoded meanwhile, in a
        stream of its own."""
        for frame, following in _followed(frames, looks=self.detector.device.type == "cuda"):
            encoded = self._ahead.take([frame]) or self._encoded(self.preprocess(frame))
            if following is not None:
                self._ahead.begin([following])
            yield _AskedFrame(frame, encoded, self.detector.ask(encoded.state, prompts, ask(frame)))

    def _stepped(
        self, session: TrackSession, frames: Iterable[_AskedFrame], begin: Begin, keep: Callable[[Tensor], None]
    ) -> Iterator[Steps[TrackedFrame]]:
        """Yield every frame whose time has come."""
        waiting: deque[_Waiting] = deque()
        for index, one in enumerate(frames):
            keep(one.encoded.pixels)
            presence, tracks = self._step(session, index, one, partial(begin, one.frame))
            waiting.append(_Waiting(one.frame, presence, tracks))
            if len(waiting) >= max(self.settings.hotstart_delay, 1):
                yield self._finish(waiting.popleft(), waiting, session)
        while waiting:
            yield self._finish(waiting.popleft(), waiting, session)

    def _backwards(
        self,
        forward: TrackSession,
        spool: both_ways.Spool,
        frames: Sequence[TrackedFrame],
        prompts: Sequence[Prompt],
        ask: Ask,
    ) -> tuple[dict[int, list[both_ways.Sighted]], set[int]]:
        """Return (what is seen of objects before their births, by place of the frame; those taken back on the way)."""
        never_shown = forward.removed | (forward.unconfirmed if self.rules.confirm else frozenset())
        births = both_ways.births_to_follow(forward.born, never_shown)
        rules = replace(self.rules, first_frame_twice=False, birth_065=True)  # nothing is born on the way back
        settings = replace(self.settings, new_det_thresh=math.inf)
        session = TrackSession(self.parts, rules, settings, spool.count, spool.count - 1, backwards=True)
        seen: dict[int, list[both_ways.Sighted]] = {}
        for place in range(max(births, default=-1), -1, -1):
            frame, pixels = frames[place].frame, spool.read(place, self.detector.device)
            encoded = self._encoded(pixels)
            one = _AskedFrame(frame, encoded, self.detector.ask(encoded.state, prompts, ask(frame)))
            _, tracks = self._step(session, place, one, joining=births.get(place))
            found = finish(self._objects(tracks, tracks.hidden, frame.size_hw, forward.names))
            seen[place] = [
                both_ways.Sighted(
                    one, one.number in tracks.confirmed or (one.name is not None and one.track_score >= VISIBLE)
                )
                for one in found
            ]
        return seen, session.removed

    def _step(
        self,
        session: TrackSession,
        index: int,
        one: _AskedFrame,
        begin: Callable[[Tensor], Sequence[Beginning]] = lambda _: (),
        joining: Births | None = None,
    ) -> tuple[npt.NDArray[np.float32], Tracks]:
        """Go through one frame."""
        detector, grid, size_hw = self.detector, one.encoded.grid, one.frame.size_hw
        with detector.precision():
            features = self.parts.features(grid)
            begun = session.begin(index, features)
        seen = detector.seen(one.asked, self.settings.score_threshold_detection)
        found = self._found(seen)
        with detector.precision():
            tracks = session.step(index, features, found, size_hw, begun, begin(grid))
            if joining is not None:
                session.adopt(index, features, joining, size_hw)
        return np.array([one.presence for one in seen], np.float32), tracks

    def _encoded(self, pixels: Tensor) -> _EncodedFrame:
        grid = self.detector.encode_grid(pixels)
        return _EncodedFrame(pixels, grid, self.detector.state_of_grid(grid))

    def preprocess(self, frame: Frame) -> Tensor:
        """Return a frame as the model takes it, float32 [1, 3, X, X] on the device, resized as the rules say.

        Officially OpenCV's cubic kernel, which has no antialiasing, resizes video files, and Pillow's, which has,
        folders of frames; both round to 8 bits.
        """
        if not self.rules.bicubic:
            return self.detector.preprocess([frame])
        side = (self.detector.image_size, self.detector.image_size)
        if Path(frame.item.path).is_dir():
            from PIL import Image

            resized = np.array(Image.fromarray(frame.pixels).resize(side, Image.Resampling.BICUBIC))
        else:
            resized = cv2.resize(frame.pixels, side, interpolation=cv2.INTER_CUBIC)
        pixels = send(resized, self.detector.device).permute(2, 0, 1)[None].float()
        return pixels.sub_(127.5).mul_(1 / 127.5)

    def _found(self, seen: Sequence[Seen]) -> FrameDetections:
        """Return the detections of all prompts, without duplicates. What was begun before has then arrived too."""
        side, device = self.parts.mask_side, self.detector.device
        masks = torch.cat([torch.empty((0, side, side), device=device), *(one.masks for one in seen)])
        said = torch.cat(
            [torch.empty((0, 5), device=device), *(torch.cat((one.scores[:, None], one.boxes_xyxy), 1) for one in seen)]
        )
        arriving, arrived = bring(masks > 0), bring(said).numpy()
        inside, scores, boxes = arriving.numpy(), arrived[:, 0], arrived[:, 1:]
        phrases = np.repeat(np.arange(len(seen)), [len(one.scores) for one in seen])
        kept: list[int] = []
        for phrase in range(len(seen)):
            own = np.flatnonzero(phrases == phrase)
            best = keep_best(inside[own], scores[own], self.settings.det_nms_thresh, self.rules.nms_smaller)
            kept += own[best].tolist()
        centers = (boxes[kept, :2] + boxes[kept, 2:]) / 2
        at_border = ((centers <= BORDER) | (centers >= 1 - BORDER)).any(1)
        unasked = frozenset(number for number, one in enumerate(seen) if math.isnan(one.presence))
        masks = masks if len(kept) == len(masks) else rows_of(masks, kept)
        return FrameDetections(masks, inside[kept], scores[kept], phrases[kept], at_border, unasked)

    def _finish(self, one: _Waiting, later: Sequence[_Waiting], session: TrackSession) -> Steps[TrackedFrame]:
        """Return a frame's objects at its size. Those of one prompt do not overlap: the better tracked one wins."""
        hidden = session.removed | one.tracks.hidden
        if self.rules.confirm:
            ahead = [one, *later][:CONFIRM_FRAMES][-1]
            hidden |= ahead.tracks.unconfirmed
        found = yield from self._objects(one.tracks, hidden, one.frame.size_hw, session.names)
        return TrackedFrame(one.frame, one.presence, tuple(_apart(found)))

    def _objects(
        self, tracks: Tracks, hidden: Collection[int], size_hw: tuple[int, int], names: Mapping[int, int]
    ) -> Steps[list[TrackedObject]]:
        shown = [number for number in sorted(tracks.masks) if number not in hidden]
        found: list[Instance | None] = []
        if shown:
            logits = torch.stack([tracks.masks[number] for number in shown]).float()
            found = yield from mask_runs.in_steps(logits, size_hw, self.detector.upsampling)
        return [
            TrackedObject(
                number,
                tracks.phrases[number],
                tracks.scores[number],
                tracks.track_scores[number],
                instance,
                names.get(number),
            )
            for number, instance in zip(shown, found, strict=True)
            if instance is not None
        ]


def _followed(frames: Iterable[Frame], looks: bool) -> Iterator[tuple[Frame, Frame | None]]:
    """Yield each frame with the one after it, which is read only where that `looks`."""
    if not looks:
        yield from ((frame, None) for frame in frames)
        return
    before: Frame | None = None
    for frame in frames:
        if before is not None:
            yield before, frame
        before = frame
    if before is not None:
        yield before, None


def _until_failure(frames: Iterable[Frame], n: int) -> tuple[Iterator[Frame], list[Frame], list[Exception]]:
    """Return the rest of the frames, the first `n`, and a list that gets the error that ended them early."""
    failure: list[Exception] = []

    def guarded() -> Iterator[Frame]:
        try:
            yield from frames
        except Exception as error:
            failure.append(error)

    source = guarded()
    return source, list(islice(source, n)), failure


def _apart(objects: Sequence[TrackedObject]) -> Iterator[TrackedObject]:
    """Take from each object what others of its prompt with a better tracker score have; drop what has no pixel left."""
    for one in objects:
        better = [
            other.instance.rle
            for other in objects
            if other.prompt == one.prompt and (-other.track_score, other.number) < (-one.track_score, one.number)
        ]
        if not masks.iou_matrix([one.instance.rle], better).any():
            yield one
            continue
        left = masks.difference(one.instance.rle, masks.union(better))
        if area := masks.area(left):
            yield replace(one, instance=Instance(left, masks.box_xywh(left), area))
