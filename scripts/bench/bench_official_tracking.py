"""Our tracking beside Meta's own code, decision by decision, on scripted videos and the same random weights.

    python scripts/bench/bench_official_tracking.py                       # where sam3 and timm are installed
    python scripts/bench/bench_official_tracking.py --official CHECKOUT --sequences 24 --frames 60

Both sides are told the same detections and the same answers of the tracker (`scripted_tracks`); who is who, births,
removals, reconditioning, memories and what is given out are theirs (`official_loop`) and ours. Meta's loop takes one
phrase at a time, ours takes all of a sequence in one session. A kind of decision that never came up is no equality: it
is said so, and the exit code is 1, as it is where anything differs.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from official_loop import (
    GRID,
    LAYERS,
    SIDE,
    SIZE_HW,
    STRIDE,
    Decided,
    Features,
    Moment,
    OfficialLoop,
    Reading,
    Telling,
    build_tracker,
    scripted,
    why_not,
)
from scripted_tracks import Story, settings_of
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from random_checkpoint import draw_by_name

from sam3label.core.records import Frame, MediaItem, Prompt
from sam3label.model import matching_tracks as matching
from sam3label.model import recall as recalling
from sam3label.model import track_session
from sam3label.model import tracker as tracking
from sam3label.model.detector import Seen
from sam3label.model.mask_runs import Upsampling
from sam3label.model.matching_tracks import FrameMatches, Lives
from sam3label.model.official import from_official
from sam3label.model.track_rules import OFFICIAL, TrackSettings
from sam3label.model.track_session import TrackSession
from sam3label.model.tracker_parts import FrameFeatures, Recalled, TrackerParts
from sam3label.model.tracks import Followed

SPLIT = 4  # tokens of a pointer
# of what attention reads, in its deviations: memories are kept in bf16, of which a step is up to 0.03; another frame's
# memory or pointer is some 1 apart
SAME, FAR = 1e-3, 0.05


# ---- ours


def our_tracker(theirs: Any) -> Any:
    """Return the library's tracker with the weights of Meta's, by the names that our loader knows."""
    from transformers import AutoModel, Sam3TrackerVideoConfig

    config = Sam3TrackerVideoConfig(
        prompt_encoder_config={"image_size": GRID * STRIDE, "patch_size": STRIDE},
        memory_attention_rope_feat_sizes=[GRID, GRID],
        memory_attention_num_layers=LAYERS,
    )
    config.image_size = GRID * STRIDE
    config.vision_config.backbone_feature_sizes = [[SIDE, SIDE], [SIDE // 2, SIDE // 2], [GRID, GRID]]
    model = AutoModel.from_config(config, remove_vision_encoder=True).eval()
    wanted = {f"tracker_model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    own = {f"tracker.{name}": tensor for name, tensor in theirs.state_dict().items()}
    tensors = from_official(own, wanted, "the tracker")
    model.load_state_dict({name.removeprefix("tracker_model."): tensor for name, tensor in tensors.items()})
    return SimpleNamespace(tracker_model=model, tracker_neck=None, config=SimpleNamespace(tracker_config=config))


@dataclass
class OurNotes:
    """What our loop decides of all phrases of a sequence, and what it is told."""

    stories: Sequence[Story]
    tellings: list[Telling]
    places: dict[int, tuple[int, int]] = field(default_factory=dict)  # an object's number -> (phrase, that among its)
    asked: list[Followed] = field(default_factory=list)  # whom the mask decoder is to answer for
    readings: dict[int, tuple[int, int]] = field(default_factory=dict)  # id of what is recalled -> (phrase, object)
    moment: Moment = (0, -1)

    def of(self, phrase: int) -> Decided:
        """Return what is noted of a phrase now."""
        return self.tellings[phrase].decided[self.moment]

    def number(self, target: Followed) -> int:
        """Return an object's number among those of its phrase, which counts them as Meta's loop does."""
        if target.number not in self.places:
            before = sum(phrase == target.phrase for phrase, _ in self.places.values())
            self.places[target.number] = (target.phrase, before)
        return self.places[target.number][1]


class NotedParts(TrackerParts):
    """Our tracker's parts, with the features that both loops get, and with what attention sees noted."""

    def __init__(self, video: Any, features: Sequence[Features], notes: OurNotes) -> None:
        super().__init__(video)
        self.given, self.notes = features, notes

    def features(self, grid: Tensor) -> FrameFeatures:
        """Return those of the frame whose number stands in for its encoding."""
        fine, middle, coarse, places = self.given[int(grid)]
        return FrameFeatures(fine, middle, *(one.flatten(2).permute(2, 0, 1) for one in (coarse, places)))

    def _memory(self, objects: Sequence[Recalled], most_pointers: int) -> tuple[Tensor, Tensor, int]:
        tokens, places, pointers = super()._memory(objects, most_pointers)
        for row, one in enumerate(objects):
            phrase, number = self.notes.readings[id(one)]
            reading = self.notes.of(phrase).reads[number]
            reading.tokens, reading.places = tokens[:, row], places[:, min(row, places.shape[1] - 1)]
        return tokens, places, pointers


class NotedLives(Lives):
    """Lives that keep what they said last."""

    said: tuple[set[int], frozenset[int]] = (set(), frozenset())

    def update(self, *inputs: Any) -> tuple[set[int], frozenset[int]]:
        """Note what is returned."""
        self.said = super().update(*inputs)
        return self.said


class NotedSession(TrackSession):
    """Our session, which notes what it decides."""

    def __init__(self, notes: OurNotes, *inputs: Any, **named: Any) -> None:
        super().__init__(*inputs, **named)
        self.notes = notes
        self.lives: NotedLives = NotedLives(self.settings)

    def begin(self, now: int, *inputs: Any) -> Any:
        notes = self.notes
        notes.moment = (now, notes.moment[1] + 1 if now == notes.moment[0] else 0)
        notes.asked.clear()
        notes.readings.clear()
        return super().begin(now, *inputs)

    def _recalled(self, now: int, target: Followed, quality: Mapping[int, float]) -> Recalled:
        number, recall = self.notes.number(target), recalling.recall

        def noted(*inputs: Any) -> recalling.Recall:
            chosen = recall(*inputs)
            memories = [*chosen.conditioning, *(frame for _, frame in chosen.memories)]
            self.notes.of(target.phrase).reads[number] = Reading(memories, list(chosen.pointers))
            return chosen

        with mock.patch.object(track_session, "recall", noted):
            recalled = super()._recalled(now, target, quality)
        self.notes.asked.append(target)
        self.notes.readings[id(recalled)] = (target.phrase, number)
        return recalled

    def _confirm(self, now: int, features: Any, found: Any, sure: Mapping[int, int]) -> None:
        for target in (self.targets[place] for place in sure):
            self.notes.of(target.phrase).reconditioned |= {self.notes.number(target)}
        super()._confirm(now, features, found, sure)

    def _hide_overlapping(self, now: int, tracked: Any, *inputs: Any) -> Tensor:
        before = list(self.targets)
        masks = super()._hide_overlapping(now, tracked, *inputs)
        for target, inside in zip(before, tracked.inside, strict=True):
            if target.last_hidden == now and inside.any():
                self.notes.of(target.phrase).emptied |= {self.notes.number(target)}
        return masks

    def _pass(self, now: int, features: Any, found: Any, *inputs: Any) -> Any:
        before, said = list(self.targets), list[FrameMatches]()

        def noted(*inputs: Any) -> FrameMatches:
            said.append(matching.match(*inputs))
            return said[0]

        with mock.patch.object(track_session, "match", noted):
            tracks = super()._pass(now, features, found, *inputs)
        for target in sorted((*before, *self.targets), key=lambda one: one.number):
            self.notes.number(target)
        for phrase in range(len(self.notes.stories)):
            self._note(phrase, found.phrases, before, said[0])
        return tracks

    def _note(
        self, phrase: int, phrases: npt.NDArray[np.int64], before: Sequence[Followed], matches: FrameMatches
    ) -> None:
        """Note of a phrase what was decided: `phrases` of the detections, the objects `before`."""
        own, number = self.notes.of(phrase), self.notes.number
        gone, hidden = self.lives.said
        rows = {row: k for k, row in enumerate(np.flatnonzero(phrases == phrase).tolist())}
        places = {place: number(one) for place, one in enumerate(before) if one.phrase == phrase}
        numbers = {one.number: number(one) for one in (*before, *self.targets) if one.phrase == phrase}
        own.born = tuple(rows[row] for row in matches.born if row in rows)
        own.matched = frozenset(
            (rows[row], places[place]) for row, on in matches.matched.items() if row in rows for place in on
        )
        own.unmatched = frozenset(places[place] for place in matches.unmatched if place in places)
        own.sure = frozenset((places[place], rows[row]) for place, row in matches.sure.items() if place in places)
        own.removed = frozenset(numbers[k] for k in gone & numbers.keys())
        own.hidden = frozenset(numbers[k] for k in hidden & numbers.keys())
        if self.rules.confirm:
            own.unconfirmed = frozenset(numbers[k] for k in self.unconfirmed & numbers.keys())
        own.frames = {
            number(one): {frame: memory.conditioning for frame, memory in one.memories.items()}
            for one in self.targets
            if one.phrase == phrase
        }


class ScriptedDetector:
    """Stands in for our detector: what it finds is scripted, and a frame's encoding is the frame's number."""

    device, image_size, upsampling = torch.device("cpu"), GRID * STRIDE, Upsampling()

    def __init__(self, stories: Sequence[Story]) -> None:
        self.stories, self.frames = stories, 0

    def precision(self) -> AbstractContextManager[None]:
        """Return a context in which nothing changes."""
        return nullcontext()

    def encode_grid(self, _pixels: Tensor) -> Tensor:
        """Return the number of the frame."""
        self.frames += 1
        return torch.tensor(self.frames - 1)

    def state_of_grid(self, grid: Tensor) -> int:
        """Return it again."""
        return int(grid)

    def ask(self, state: int, *_: Any) -> int:
        """Return it once more."""
        return state

    def seen(self, asked: int, _floor: float) -> list[Seen]:
        """Return the frame's detections, phrase by phrase."""
        found = [story.found[asked] for story in self.stories]
        return [Seen(1.0, one.scores.clone(), one.masks.clone(), one.boxes_xyxy.clone()) for one in found]


@torch.inference_mode()
def ours(
    video: Any,
    features: Sequence[Features],
    stories: Sequence[Story],
    settings: Mapping[str, Any],
    extras: Mapping[str, bool],
    without: Sequence[str] = (),
) -> list[Telling]:
    """Return what our loop decides of each phrase."""
    notes = OurNotes(stories, [Telling() for _ in stories])
    rules = replace(OFFICIAL, **extras, **dict.fromkeys(without, False))
    whole = TrackSettings(**settings, recondition_on_trk_masks=True, high_conf_thresh=0.8, high_iou_thresh=0.8)
    tracker = tracking.Tracker(video, ScriptedDetector(stories), rules, whole)  # type: ignore[arg-type]
    tracker.parts = NotedParts(video, features, notes)

    def answered(_module: Any, _inputs: Any, named: dict[str, Any], output: Any) -> Any:
        if not named["multimask_output"]:  # of a given mask
            return output
        masks, ious, tokens, _ = output
        asked, notes.asked = notes.asked[: len(masks)], notes.asked[len(masks) :]
        numbers = [notes.number(one) for one in asked]
        answers = [
            stories[one.phrase].answer(number, one.born, one.score, notes.moment[0])
            for one, number in zip(asked, numbers, strict=True)
        ]
        masks, ious = scripted(answers, numbers, masks[:, 0], ious[:, 0])
        scores = torch.tensor([one.score for one in answers])[:, None, None]
        return masks[:, None], ious[:, None], tokens, scores

    hook = video.tracker_model.mask_decoder.register_forward_hook(answered, with_kwargs=True)
    pixels = np.zeros((*SIZE_HW, 3), np.uint8)
    frames = (Frame(MediaItem("clip", "clip.mp4", "video"), now, pixels) for now in range(len(features)))
    prompts = [Prompt(str(phrase), str(phrase)) for phrase in range(len(stories))]
    try:
        with mock.patch.object(tracking, "TrackSession", partial(NotedSession, notes)):
            for one in tracker.track(frames, prompts):
                for telling in notes.tellings:
                    telling.shown[one.frame.index] = {}
                for thing in one.objects:
                    phrase, number = notes.places[thing.number]
                    notes.tellings[phrase].shown[one.frame.index][number] = _pixels(thing.instance.rle)
    finally:
        hook.remove()
    return notes.tellings


def _pixels(rle: Any) -> npt.NDArray[np.bool_]:
    from pycocotools import mask

    found: npt.NDArray[np.bool_] = mask.decode({"size": list(rle.size_hw), "counts": rle.counts}).astype(np.bool_)
    return found


# ---- beside each other


@dataclass
class Kind:
    """How often a kind of decision was compared, came up, and differed; where it differed first."""

    compared: int = 0
    came_up: int = 0
    differ: int = 0
    first: str = ""

    def add(self, times: int, same: bool, where: str) -> None:
        """Count one comparison, in which something came up so many times."""
        self.compared += 1
        self.came_up += times
        self.differ += not same
        self.first = self.first or ("" if same else where)


class Report:
    """Counts decisions of every kind, and how far tensors are apart."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = defaultdict(Kind)
        self.events: dict[str, int] = defaultdict(int)
        self.tokens = self.rounded = self.far = 0
        self.largest = 0.0
        self.pixels = self.flipped = 0

    def compare(self, name: str, theirs: Telling, ours: Telling) -> None:
        """Compare what two loops say of a phrase."""
        for event, times in theirs.events.items():
            self.events[event] += times
        for moment in sorted({*theirs.decided, *ours.decided}):
            self._decided(f"{name}, frame {moment[0]}", theirs.decided[moment], ours.decided[moment])
        self._downgraded(theirs)
        for frame, shown in theirs.shown.items():
            own, where = ours.shown[frame], f"{name}, frame {frame}"
            if not frame:  # there the official code gives out its second pass, and we the first: on purpose
                continue
            self.kinds["objects given out"].add(len(shown), shown.keys() == own.keys(), where)
            for number in shown.keys() & own.keys():
                self.pixels += shown[number].size
                self.flipped += int((shown[number] != own[number]).sum())

    def _decided(self, where: str, theirs: Decided, ours: Decided) -> None:
        for kind, attribute in (
            ("births (V10)", "born"),
            ("a detection on an object (V9)", "matched"),
            ("objects without a detection", "unmatched"),
            ("sure detections (V9)", "sure"),
            ("reconditioned objects (V7)", "reconditioned"),
            ("objects taken back", "removed"),
            ("objects hidden for want of detections", "hidden"),
            ("objects emptied for overlap", "emptied"),
            ("objects not yet confirmed", "unconfirmed"),
        ):
            one, other = getattr(theirs, attribute), getattr(ours, attribute)
            self.kinds[kind].add(len(one), one == other, f"{where}: {one or '{}'} / {other or '{}'}")
        own = {number: {frame: theirs.frames.get(number, {}).get(frame) for frame in kept}
               for number, kept in ours.frames.items()}  # fmt: skip
        self.kinds["conditioning frames (V7)"].add(
            sum(sum(frames.values()) for frames in theirs.frames.values()),
            own == ours.frames and theirs.frames.keys() == ours.frames.keys(),
            f"{where}: {own} / {ours.frames}",
        )
        for number in theirs.reads.keys() | ours.reads.keys():
            self._read(f"{where}, object {number}", theirs.reads.get(number), ours.reads.get(number))

    def _read(self, where: str, theirs: Reading | None, ours: Reading | None) -> None:
        if theirs is None or ours is None:
            self.kinds["memories read (V1)"].add(1, False, where)
            return
        self._same_frames("memories read (V1)", where, theirs.memories, ours.memories)
        self._same_frames("pointers read, and their distance (V8)", where, theirs.pointers, ours.pointers)
        rows = _rows(theirs, ours)
        for tokens, own in ((theirs.tokens, ours.tokens), (theirs.places, ours.places)):
            if rows is None or tokens is None or own is None or not len(rows) == len(tokens) == len(own):
                self.far += 1
            else:
                self._near(tokens[rows], own)

    def _same_frames(self, kind: str, where: str, theirs: Sequence[Any], ours: Sequence[Any]) -> None:
        same = sorted(theirs) == sorted(ours)
        self.kinds[kind].add(len(theirs), same, f"{where}: {theirs} / {ours}")

    def _near(self, theirs: Tensor, ours: Tensor) -> None:
        apart, spread = (theirs - ours).abs(), ours.std()
        self.tokens += apart.numel()
        self.rounded += int((apart > SAME * spread).sum())
        self.far += int((apart > FAR * spread).sum())
        self.largest = max(self.largest, float((apart / spread).max()))

    def _downgraded(self, theirs: Telling) -> None:
        """Count frames that are conditioning ones no more, and those that are for others' sake."""
        before: dict[int, dict[int, bool]] = {}
        for moment in sorted(theirs.decided):
            decided = theirs.decided[moment]
            for number, frames in decided.frames.items():
                lost = [f for f, kept in before.get(number, {}).items() if kept and not frames.get(f)]
                self.events["frames that are conditioning ones no more"] += len(lost)
                mates = frames.get(moment[0]) and number not in decided.reconditioned and number in before
                self.events["frames kept for one born together"] += bool(mates and moment[0] and decided.reconditioned)
            before = decided.frames

    def lines(self) -> Iterable[str]:
        """Yield what was counted."""
        width = max(map(len, self.kinds))
        yield f"{'':{width}}  compared   came up    differ"
        for name, kind in self.kinds.items():
            yield f"{name:{width}}  {kind.compared:8d}  {kind.came_up:8d}  {kind.differ:8d}  {kind.first}".rstrip()
        for name, times in sorted(self.events.items()):
            yield f"  {times:6d} {name}"
        yield f"numbers that attention reads: {self.tokens}; over {SAME:g} of their deviation apart: {self.rounded}, "
        yield f"over {FAR:g}: {self.far}; at most {self.largest:.1e}"
        yield f"pixels given out: {self.pixels}, other {self.flipped}"

    def verdict(self) -> str | None:
        """Say what keeps the two from being called equal, or None."""
        never = [name for name, kind in self.kinds.items() if not kind.came_up]
        never += [name for name in EVENTS if not self.events[name]]
        differ = [name for name, kind in self.kinds.items() if kind.differ]
        differ += ["what attention reads"] if self.far else []
        differ += ["pixels given out"] if self.flipped else []
        said = {"never came up": ", ".join(never), "differ": ", ".join(differ)}
        return "; ".join(f"{what}: {names}" for what, names in said.items() if names) or None


def _rows(theirs: Reading, ours: Reading) -> Tensor | None:
    """Return the rows of Meta's tokens in the order of ours: attention does not care for the order, we go by frames.

    None where they are not of the same memories and pointers.
    """
    if sorted(theirs.memories) != sorted(ours.memories) or sorted(theirs.pointers) != sorted(ours.pointers):
        return None
    memory, pointer = torch.arange(GRID**2), torch.arange(SPLIT)
    rows = [memory + theirs.memories.index(frame) * GRID**2 for frame in ours.memories]
    start = len(theirs.memories) * GRID**2
    rows += [pointer + start + theirs.pointers.index(one) * SPLIT for one in ours.pointers]
    return torch.cat(rows)


EVENTS = (
    "births below 0.7 beside tracks of another phrase",
    "births kept off",
    "births in the second pass",
    "matches that are ambiguous",
    "removed as unmatched",
    "removed as double",
    "frames that are conditioning ones no more",
    "frames kept for one born together",
    "recalled by four of more conditioning frames",
    "recalled past a poor frame",
)


def early_births(stories: Sequence[Story], tellings: Sequence[Telling]) -> int:
    """Count births below 0.7 in frames before which another phrase had tracks and this one none."""
    count = 0
    for phrase, telling in enumerate(tellings):
        for moment, decided in telling.decided.items():
            others = (one.decided.get((moment[0] - 1, 0)) for one in tellings if one is not telling)
            scores = stories[phrase].found[moment[0]].scores[list(decided.born)]
            if any(one is not None and one.frames for one in others):
                count += int((scores < 0.7).sum())
    return count


def random_features(frames: int) -> list[Features]:
    """Return features of a scene that hardly changes."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((1, 32, SIDE, SIDE), (1, 64, SIDE // 2, SIDE // 2), (1, 256, GRID, GRID))
    scene = [torch.randn(shape, generator=generator) for shape in shapes]
    places = torch.randn(shapes[2], generator=generator)
    return [
        (*(one + 0.2 * torch.randn(one.shape, generator=generator) for one in scene), places)  # type: ignore[misc]
        for _ in range(frames)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Our tracking beside Meta's own code, decision by decision.")
    parser.add_argument("--official", type=Path, help="a checkout of facebookresearch/sam3; else what is installed")
    parser.add_argument("--sequences", type=int, default=24, help="every other one has three phrases")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", nargs="*", default=(), help="fields of Rules that ours goes without: it must show")
    arguments = parser.parse_args()
    if reason := why_not(arguments.official):
        print(reason)
        return 0
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # Meta's, of every model built and of every limit reached
    theirs = build_tracker()
    draw_by_name(theirs, 0)
    video, features, report = our_tracker(theirs), random_features(arguments.frames), Report()
    loop, since = OfficialLoop(theirs, features), time.perf_counter()
    for seed in range(arguments.seed, arguments.seed + arguments.sequences):
        settings, extras = settings_of(seed)
        stories = [Story(seed, phrase, arguments.frames, SIDE) for phrase in range(3 if seed % 2 else 1)]
        told = [loop.run(story, settings, extras) for story in stories]
        own = ours(video, features, stories, settings, extras, arguments.without)
        for phrase, pair in enumerate(zip(told, own, strict=True)):
            report.compare(f"sequence {seed}, phrase {phrase}", *pair)
        report.events["births below 0.7 beside tracks of another phrase"] += early_births(stories, told)
        print(f"\r{seed + 1 - arguments.seed} of {arguments.sequences}", end="\r", file=sys.stderr, flush=True)
    print(f"{arguments.sequences} sequences of {arguments.frames} frames, {time.perf_counter() - since:.0f} s")
    print("\n".join(report.lines()))
    verdict = report.verdict()
    print("equal" if verdict is None else verdict)
    return 0 if verdict is None else 1


if __name__ == "__main__":
    sys.exit(main())
