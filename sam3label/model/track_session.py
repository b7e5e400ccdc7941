"""The objects of one clip, frame by frame: found again, matched, corrected, remembered, born, taken back.

A session is ours throughout: the library's, which hangs its state on dictionaries and on the model, is not used. What
the official loop and `transformers`' do differently is asked of `Rules`, one field a difference.

Objects born in one frame to one phrase are a *litter*: officially they are tracked as one batch, and share what is
remembered and corrected.

Whatever is decided is decided on the host, from bits of masks: where a frame's detections come to the host after what
the tracker said of it, it waits for both at once, and for nothing else in the frame.

Shape legend: N objects, K detections, h x w mask logits, X the side of a mask that is remembered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sam3label.model.clean_masks import Inside, clean_masks
from sam3label.model.device import Coming, bring, rows_of, send
from sam3label.model.matching_tracks import (
    FrameDetections,
    FrameMatches,
    Lives,
    apart,
    match,
    recently_hidden,
    without_shrunk,
)
from sam3label.model.recall import ObjectPast, recall, worth_keeping
from sam3label.model.track_rules import Rules, TrackSettings
from sam3label.model.tracker_parts import SURE, UNSURE, FrameFeatures, Recalled, TrackerParts, enlarge, shrink
from sam3label.model.tracks import Beginning, Births, Followed, Memory, Tracks, effective_iou

SOLID = 1024.0  # logits, positive or negative, of a mask that is given
ALWAYS_HIDDEN = 100_000  # later than any frame: an object that was taken back before it was ever seen again


@dataclass(frozen=True, slots=True)
class Begun:
    """The tracker's answer for all objects: raw logits [N, h, w] and score logits [N], on their way to the host.

    `inside` is where the masks are over 0, `said` [2, N] scores and expected IoUs, `pointers` are by place of those
    that were looked for.
    """

    raw: Tensor
    scores: Tensor
    inside: Coming
    said: Coming
    pointers: Mapping[int, Tensor]


@dataclass(frozen=True, slots=True)
class _Tracked:
    """The same on the host too: raw and cleaned logits [N, h, w], where these are over 0, score logits [N] twice."""

    raw: Tensor
    masks: Tensor
    inside: Inside
    scores: Tensor
    values: list[float]


@dataclass(frozen=True, slots=True)
class _Corrections:
    """Masks [h, w] in place of the tracker's, by place of the object: in memory, and in what is given out."""

    remembered: Mapping[int, Tensor]
    shown: Mapping[int, Tensor]


class TrackSession:
    """The objects of one clip. `step` takes its frames in their order, or backwards from the last.

    `born` holds, where `keeps_births`, what was born in each frame (of the first frame, in its last pass), and `names`
    those of the objects that were given, by their numbers.
    """

    def __init__(
        self,
        parts: TrackerParts,
        rules: Rules,
        settings: TrackSettings,
        length: int,
        first: int = 0,
        backwards: bool = False,
        keeps_births: bool = False,
    ) -> None:
        self.parts, self.rules, self.settings = parts, rules, settings
        self.first, self.backwards = first, backwards
        self.most_pointers = min(length, parts.sizes.pointers)
        self.lives = Lives(settings, backwards)
        self.targets: list[Followed] = []
        self.keeps_births = keeps_births
        self.born: dict[int, Births] = {}
        self.names: dict[int, int] = {}
        self._next = 0

    @property
    def removed(self) -> set[int]:
        """The objects that have been taken back."""
        return self.lives.removed

    @property
    def unconfirmed(self) -> frozenset[int]:
        """The objects that detections have not yet confirmed in enough frames in a row."""
        return self.lives.unconfirmed([one.number for one in self.targets])

    def step(
        self,
        now: int,
        features: FrameFeatures,
        found: FrameDetections,
        size_hw: tuple[int, int],
        begun: Begun | None = None,
        given: Sequence[Beginning] = (),
    ) -> Tracks:
        """Go through one frame, whose detections are `found`, and from which on the objects `given` are followed.

        `begun` is what `begin` returned for it, where it was called. No prompt has both detections and given objects.
        """
        tracks = self._pass(now, features, found, size_hw, begun or self.begin(now, features), given)
        if self.rules.first_frame_twice and now == self.first and self.targets:
            tracks = self._pass(now, features, found, size_hw, self.begin(now, features)).after(tracks)
        for target in self.targets:
            target.first_mask = None
        self._forget(now)
        return tracks

    def _pass(
        self,
        now: int,
        features: FrameFeatures,
        found: FrameDetections,
        size_hw: tuple[int, int],
        begun: Begun,
        given: Sequence[Beginning] = (),
    ) -> Tracks:
        tracked = self._arrived(now, begun)
        phrases, numbers = [one.phrase for one in self.targets], [one.number for one in self.targets]
        matches = match(found, tracked.inside, phrases, self.settings, self.rules)
        born = list(range(self._next, self._next + len(matches.born)))
        shown_here = list(range(self._next + len(born), self._next + len(born) + len(given)))
        self._next += len(born) + len(given)
        self.names |= {number: one.name for number, one in zip(shown_here, given, strict=True)}
        gone, hidden = self.lives.update(now, numbers, matches, born, shown_here)
        corrections = self.correct(now, features, found, matches, tracked)
        masks = self._hide_overlapping(now, tracked, phrases, gone)
        self._remember(now, features, masks, phrases, corrections.remembered)
        born += shown_here
        births = Births(
            torch.cat((rows_of(found.masks, matches.born), *(one.mask[None].to(found.masks) for one in given))),
            born,
            [*(int(found.phrases[k]) for k in matches.born), *(one.phrase for one in given)],
            [*(float(found.scores[k]) for k in matches.born), *(one.score for one in given)],
        )
        if len(births):
            if self.keeps_births:
                self.born[now] = births
            self._bear(now, features, births, size_hw, tracked)
        before = self.targets
        self.take_back(gone)
        shown = {
            one.number: corrections.shown.get(place, masks[place]) for place, one in enumerate(before[: len(masks)])
        }
        inside = np.concatenate((found.inside[matches.born], *((one.mask > 0).cpu().numpy()[None] for one in given)))
        cleaned, _ = clean_masks(births.masks, inside, self.settings.fill_hole_area)
        shown |= dict(zip(born, cleaned, strict=True))
        seen = torch.tensor(tracked.values).sigmoid().tolist()
        values = dict(zip(numbers, seen, strict=True)) | {one.number: one.score for one in before[len(masks) :]}
        return Tracks(
            {number: mask for number, mask in shown.items() if number not in gone},
            values,
            {one.number: one.score for one in self.targets},
            {one.number: one.phrase for one in self.targets},
            hidden,
            self.unconfirmed,
            frozenset({*born, *(numbers[place] for places in matches.matched.values() for place in places)}),
        )

    def adopt(self, now: int, features: FrameFeatures, births: Births, size_hw: tuple[int, int]) -> None:
        """Take in objects that were born in this frame elsewhere, under their numbers."""
        self.lives.adopt(now, births.numbers)
        before = len(self.targets)
        empty = features.tokens.new_zeros(0)
        self._bear(now, features, births, size_hw, _Tracked(empty, empty, np.empty((0, 0, 0), np.bool_), empty, []))
        for target in self.targets[before:]:
            target.first_mask = None

    # ---- finding objects again

    def begin(self, now: int, features: FrameFeatures) -> Begun:
        """Have the tracker look for all objects in a frame, which `step` is given next. Waits for nothing."""
        recalled: dict[int, Recalled] = {}
        order: list[int] = []  # places of the objects in the order in which they are answered for
        quality, side = self._quality(), self.parts.mask_side
        none = features.tokens.new_zeros((0, side, side), dtype=torch.float32)
        masks, said = [none], [none.new_zeros((2, 0))]
        for place, target in enumerate(self.targets):
            if now in target.memories and target.first_mask is not None:  # its first frame, again
                order.append(place)
                masks.append(target.first_mask[None])
                said.append(none.new_full((2, 1), SURE))
            else:
                recalled[place] = self._recalled(now, target, quality[target.litter])
        pointers: dict[int, Tensor] = {}
        if recalled:
            heads = self.parts.track(features, list(recalled.values()), self.most_pointers)
            order += recalled
            masks.append(heads.masks.float())
            said.append(torch.stack((heads.scores.float(), heads.ious.float())))
            pointers = dict(zip(recalled, heads.pointers, strict=True))
        raw, told, back = torch.cat(masks), torch.cat(said, 1), np.argsort(order)
        if (back != np.arange(len(back))).any():
            raw, told = rows_of(raw, back), rows_of(told.T, back).T
        return Begun(raw, told[0], bring(raw > 0), bring(told), pointers)

    def _arrived(self, now: int, begun: Begun) -> _Tracked:
        """Wait for what was begun, and note it."""
        scores, ious = (torch.from_numpy(values) for values in begun.said.numpy())
        seen = how_seen(scores).tolist()
        for place, pointer in begun.pointers.items():
            self.targets[place].memories[now] = Memory(pointer.clone(), seen[place], float(ious[place]))
        masks, inside = clean_masks(begun.raw, begun.inside.numpy(), self.settings.fill_hole_area)
        return _Tracked(begun.raw, masks, inside, begun.scores, scores.tolist())

    def _recalled(self, now: int, target: Followed, quality: Mapping[int, float]) -> Recalled:
        memories = target.memories
        chosen = recall(self._past(now, target, quality), self.parts.sizes, self.rules)
        spatial = [(0, frame) for frame in chosen.conditioning] + list(chosen.memories)
        return Recalled(
            [(rank, one) for rank, frame in spatial if (one := memories[frame].spatial) is not None],
            [(distance, memories[frame].pointer) for distance, frame in chosen.pointers],
        )

    def _past(self, now: int, target: Followed, quality: Mapping[int, float]) -> ObjectPast:
        conditioning = [frame for frame, one in target.memories.items() if one.conditioning]
        tracked = {frame: quality[frame] for frame, one in target.memories.items() if not one.conditioning}
        return ObjectPast(now, self.first, conditioning, tracked, self.backwards)

    def _quality(self) -> dict[int, dict[int, float]]:
        """Return litter -> frame -> the effective IoU of the objects in it."""
        litters: dict[int, dict[int, list[Memory]]] = {}
        for target in self.targets:
            frames = litters.setdefault(target.litter, {})
            for frame, memory in target.memories.items():
                frames.setdefault(frame, []).append(memory)
        return {n: {frame: effective_iou(own) for frame, own in frames.items()} for n, frames in litters.items()}

    # ---- corrections

    def correct(
        self, now: int, features: FrameFeatures, found: FrameDetections, matches: FrameMatches, tracked: _Tracked
    ) -> _Corrections:
        """Let sure detections confirm or correct objects, every so many frames, which become conditioning frames."""
        every = self.settings.recondition_every_nth_frame
        if every <= 0 or now % every:
            return _Corrections({}, {})
        sure = {p: k for p, k in matches.sure.items() if tracked.values[p] > self.settings.high_conf_thresh}
        if not sure:
            return _Corrections({}, {})
        if self.rules.pointer_from_detection:
            self._confirm(now, features, found, sure)
            return _Corrections({}, {})
        for place in sure:
            self.targets[place].memories[now].conditioning = True
        if self.settings.recondition_on_trk_masks:
            remembered = {place: tracked.masks[place].clone() for place in sure}
        else:
            remembered = {place: (found.masks[k] >= 0.5).float() for place, k in sure.items()}
        return _Corrections(remembered, {place: found.masks[k] for place, k in sure.items()})

    def _confirm(self, now: int, features: FrameFeatures, found: FrameDetections, sure: Mapping[int, int]) -> None:
        """Pointers from the detections' masks; the frame is a conditioning one of all objects of their litters."""
        given = self._given(rows_of(found.masks, list(sure.values())))
        pointers = self.parts.pointer_of(features, given, self.rules.first_pointer_single)
        for place, pointer in zip(sure, pointers, strict=True):
            memory = self.targets[place].memories[now]
            memory.pointer = pointer.clone()
            memory.seen, memory.iou, memory.given = KNOWN, 1.0, True
        litters = {self.targets[place].litter for place in sure}
        for target in self.targets:
            if target.litter in litters:
                target.memories[now].conditioning = True

    def _given(self, logits: Tensor) -> Tensor:
        """Return a detection's logits [K, h, w] as the tracker takes a mask: [K, 1, X, X] of 0 to 1."""
        if self.rules.first_mask_whole:
            return (enlarge(logits[:, None], self.parts.memory_side) > 0).float()
        return shrink((logits >= 0.5).float()[:, None], self.parts.image_side)

    # ---- memory

    def _hide_overlapping(self, now: int, tracked: _Tracked, phrases: Sequence[int], gone: Iterable[int]) -> Tensor:
        """Empty those of overlapping masks whose object was hidden last; note who is hidden."""
        least, masks = self.settings.suppress_overlapping_based_on_recent_occlusion_threshold, tracked.masks
        if least <= 0 or not len(masks):
            return masks
        gone = set(gone)
        last = [
            (ALWAYS_HIDDEN if one.number in gone else -1) if one.last_hidden is None else one.last_hidden
            for one in self.targets
        ]
        suppressed = recently_hidden(tracked.inside, last, phrases, least, self.backwards)
        hidden = suppressed | ~tracked.inside.any((1, 2))
        for target, before, is_hidden in zip(self.targets, last, hidden, strict=True):
            target.last_hidden = now if is_hidden else before
        if not suppressed.any():
            return masks
        return torch.where(send(suppressed, masks.device)[:, None, None], UNSURE, masks)

    def _remember(
        self, now: int, features: FrameFeatures, masks: Tensor, phrases: Sequence[int], instead: Mapping[int, Tensor]
    ) -> None:
        if not len(masks):
            return
        logits = masks[:, None].clone()
        for place, mask in instead.items():
            logits[place, 0] = mask
        side = self.parts.memory_side
        if self.rules.fine_overlap:
            logits = enlarge(logits, side)
        logits = without_shrunk(logits, phrases)
        appears = (logits > 0).flatten(1).any(1)
        if logits.shape[-1] != side:
            logits = shrink(logits, side)
        self._store(now, self.targets, self.parts.memory_of(features, logits.sigmoid(), appears))

    def _store(self, now: int, targets: Iterable[Followed], memories: Tensor) -> None:
        for target, memory in zip(targets, memories, strict=True):
            target.memories[now].spatial = memory.clone()  # alone: a row would keep all others

    # ---- births and removals

    def _bear(
        self,
        now: int,
        features: FrameFeatures,
        births: Births,
        size_hw: tuple[int, int],
        tracked: _Tracked,
    ) -> None:
        numbers, phrases = births.numbers, births.phrases
        given = self._given(births.masks)
        pointers = self.parts.pointer_of(features, given, self.rules.first_pointer_single)
        low, remembered = self._first_masks(given, phrases, size_hw)
        appears = given.flatten(1).gt(0).any(1)
        eldest = dict(zip(phrases[::-1], numbers[::-1], strict=True))
        born = [
            Followed(number, phrase, now, eldest[phrase], score, low[i], {
                now: Memory(pointers[i].clone(), KNOWN, 1.0, conditioning=True, given=True)
            })
            for i, (number, phrase, score) in enumerate(zip(numbers, phrases, births.scores, strict=True))
        ]  # fmt: skip
        others = [] if self.rules.births_leave_others else self._tracked_only(now)
        if others:
            again = self._to_memory(enlarge(rows_of(tracked.raw, others)[:, None], self.parts.image_side))
            remembered = torch.cat((again, remembered))
            appears = torch.cat((rows_of(tracked.scores, others) > 0, appears))
        memories = self.parts.memory_of(features, remembered, appears)
        self._store(now, [*(self.targets[place] for place in others), *born], memories)
        self.targets = self.targets + born

    def _tracked_only(self, now: int) -> list[int]:
        return [place for place, one in enumerate(self.targets) if not one.memories[now].conditioning]

    def _first_masks(self, given: Tensor, phrases: Sequence[int], size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return (logits [K, h, w] of the first frame, masks [K, 1, X, X] of 0 and 1 to remember) of given masks."""
        if not self.rules.first_masks_apart:
            high = given * (SURE - UNSURE) + UNSURE
            return shrink(high, self.parts.mask_side)[:, 0], self._to_memory(high)
        solid = torch.empty((len(given), 1, *size_hw), device=given.device)
        litters = [send(np.array(rows), given.device) for rows in _by(phrases)]
        for rows in litters:
            inside = shrink(given[rows], *size_hw) > 0.5
            later = inside.flip(0).cumsum(0).flip(0) - inside.long()  # how many of the later ones take a pixel
            solid[rows] = torch.where(inside & (later == 0), SOLID, -SOLID)
        low = shrink(solid, self.parts.mask_side)
        high = enlarge(low, self.parts.image_side)
        for rows in litters:
            high[rows] = apart(high[rows])
        return low[:, 0], shrink((high > 0).float(), self.parts.memory_side)

    def _to_memory(self, logits: Tensor) -> Tensor:
        """Return logits [K, 1, a, a] as masks of 0 and 1 at the memory's resolution."""
        side = self.parts.memory_side
        return ((logits if logits.shape[-1] == side else shrink(logits, side)) > 0).float()

    def take_back(self, gone: Iterable[int]) -> None:
        gone = set(gone)
        litters = {one.litter for one in self.targets if one.number in gone}
        self.targets = [one for one in self.targets if one.number not in gone]
        if self.rules.pointer_from_detection:
            for litter in litters:
                self._downgrade([one for one in self.targets if one.litter == litter])

    def _downgrade(self, targets: Sequence[Followed]) -> None:
        """Keep a frame a conditioning one while an object of the litter has its mask from there."""
        given = {frame for one in targets for frame, memory in one.memories.items() if memory.given}
        for target in targets:
            for frame, memory in target.memories.items():
                if memory.conditioning and frame not in given:
                    memory.conditioning, memory.downgraded = False, True

    def _forget(self, now: int) -> None:
        """Drop what no later frame reads. Changes no output."""
        quality = self._quality()
        for target in self.targets:
            age = abs(now + (-1 if self.backwards else 1) - target.born)
            past = self._past(now, target, quality[target.litter])
            keep = worth_keeping(past, self.parts.sizes, self.rules, age >= self.settings.hotstart_delay)
            target.memories = {frame: one for frame, one in target.memories.items() if frame in keep.pointers}
            for frame, memory in target.memories.items():
                if frame not in keep.memories:
                    memory.spatial = None


def how_seen(scores: Tensor) -> Tensor:
    """Return logits of scores as 0 (likely not there) to 1."""
    return (2 * scores.sigmoid() - 1).clamp(min=0)


KNOWN = float(how_seen(torch.tensor(SURE)))  # of an object whose mask is given


def _by(keys: Sequence[int]) -> list[list[int]]:
    """Return the rows of each key, in the order of their first."""
    rows: dict[int, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return list(rows.values())
