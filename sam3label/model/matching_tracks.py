"""Which detection is which object: matches in a frame, births, and objects taken back soon after their birth. Pure.

Detections and objects of different phrases never match. Shape legend: K detections, N objects, h x w logits, `inside`
bool: where they are over 0, on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam3label.model.clean_masks import Inside, overlaps
from sam3label.model.device import send
from sam3label.model.track_rules import CONFIRM_FRAMES, Rules, TrackSettings


@dataclass(frozen=True, slots=True)
class FrameDetections:
    """The detections of a frame, phrase after phrase: mask logits [K, h, w] on the device, the rest on the host.

    `inside` is where the logits are over 0.

    Objects of phrases that were not asked in this frame are under no detection, and that says nothing of them.
    """

    masks: Tensor
    inside: Inside
    scores: npt.NDArray[np.float32]
    phrases: npt.NDArray[np.int64]
    at_border: npt.NDArray[np.bool_]
    unasked: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class FrameMatches:
    """What became of the detections and objects of a frame, by number of the detection and place of the object."""

    born: list[int]  # detections
    unmatched: list[int]  # objects that are seen, and under no detection
    empty: list[int]  # objects that are not seen
    matched: dict[int, list[int]]  # detection -> objects it lies on
    sure: dict[int, int]  # object -> the detection that is sure enough to correct it


def match(
    found: FrameDetections, inside: Inside, phrases: Sequence[int], settings: TrackSettings, rules: Rules
) -> FrameMatches:
    """Match detections with the objects' masks [N, h, w]."""
    owners = np.asarray(phrases, np.int64)
    seen = inside.any((1, 2))
    same = found.phrases[:, None] == owners[None]
    other = np.float32(-1 if rules.phrase_by_phrase else 0)  # under every threshold, or matched where one is 0
    iou = np.full(same.shape, other)
    if same.size:
        iou = np.where(same, overlaps(found.inside, inside), other)
    new = _new(found, iou, owners, settings, rules)
    covered = (iou >= settings.trk_assoc_iou_thresh).any(0)
    clear = _clear(iou, same, settings.high_iou_thresh) if rules.clear_matches_only else iou
    matched: dict[int, list[int]] = {}
    sure: dict[int, int] = {}
    if len(owners):  # the loops match nothing where there is nothing to match
        for number, row in enumerate(clear):
            matched[number] = np.flatnonzero(row >= settings.assoc_iou_thresh).tolist()
            best = int(row.argmax())
            certain = found.scores[number] >= settings.high_conf_thresh and not new[number]
            if certain and row[best] >= settings.high_iou_thresh:
                sure[best] = number
    return FrameMatches(
        _within_limit(np.flatnonzero(new), found, owners, settings, rules),
        np.flatnonzero(seen & ~covered & ~np.isin(owners, list(found.unasked))).tolist(),
        np.flatnonzero(~seen).tolist(),
        matched,
        sure,
    )


def _new(
    found: FrameDetections,
    iou: npt.NDArray[np.float32],
    owners: npt.NDArray[np.int64],
    settings: TrackSettings,
    rules: Rules,
) -> npt.NDArray[np.bool_]:
    """Return which detections are born: sure ones on no object, and every one where nothing is tracked yet."""
    new = (found.scores >= settings.new_det_thresh) & ~(iou >= settings.assoc_iou_thresh).any(1)
    if not rules.birth_065:
        alone = ~np.isin(found.phrases, owners) if rules.phrase_by_phrase else np.full(len(new), not len(owners))
        new |= alone
    if rules.no_border_births:
        new &= ~found.at_border
    return new


def _clear(iou: npt.NDArray[np.float32], same: npt.NDArray[np.bool_], least: float) -> npt.NDArray[np.float32]:
    """Return IoU without what is ambiguous: objects under several detections, and detections on several objects."""
    high = (iou >= least) & same
    ambiguous = (high.sum(0) > 1)[None] | (high.sum(1) > 1)[:, None]
    return np.where(ambiguous & same, np.float32(0), iou)


def _within_limit(
    new: npt.NDArray[np.intp],
    found: FrameDetections,
    owners: npt.NDArray[np.int64],
    settings: TrackSettings,
    rules: Rules,
) -> list[int]:
    """Return the best new detections where more than `max_num_objects` of a phrase, or of all, would be tracked."""
    if len(owners) + len(new) <= settings.max_num_objects:
        return list(map(int, new))
    if not rules.phrase_by_phrase:
        return _best(new, found, settings.max_num_objects - len(owners))
    kept: list[int] = []
    for phrase in np.unique(found.phrases[new]):
        room = settings.max_num_objects - int((owners == phrase).sum())
        kept += _best(new[found.phrases[new] == phrase], found, room)
    return kept


def _best(new: npt.NDArray[np.intp], found: FrameDetections, room: int) -> list[int]:
    if len(new) <= room:
        return list(map(int, new))
    return list(map(int, new[np.argsort(-found.scores[new], kind="stable")[: max(room, 0)]]))


# ---- lives


@dataclass(slots=True)
class Lives:
    """How long each object has gone with and without detections, by its number; and who was taken back."""

    settings: TrackSettings
    backwards: bool = False
    born: dict[int, int] = field(default_factory=dict)
    alive: dict[int, int] = field(default_factory=dict)  # counts up with a detection, down without
    without: dict[int, int] = field(default_factory=dict)  # frames without a detection
    doubled: dict[tuple[int, int], int] = field(default_factory=dict)  # (elder, younger) -> frames under one detection
    streak: dict[int, int] = field(default_factory=dict)  # frames in a row with a detection
    removed: set[int] = field(default_factory=set)

    def update(
        self,
        now: int,
        numbers: Sequence[int],
        matches: FrameMatches,
        born: Sequence[int],
        given: Sequence[int] = (),
    ) -> tuple[set[int], frozenset[int]]:
        """Return (objects that are taken back in this frame, those hidden in it). `numbers` are the objects' ids.

        Those `given` begin here without a detection, and wait for none.
        """
        settings = self.settings
        self.adopt(now, [*born, *given])
        self.streak |= dict.fromkeys(given, CONFIRM_FRAMES)
        groups = [[numbers[place] for place in places] for places in matches.matched.values()]
        confirmed = {number for group in groups for number in group}
        for number in confirmed:
            self.alive[number] = min(settings.max_trk_keep_alive, self.alive[number] + 1)
        for number in (numbers[place] for place in matches.unmatched):
            self.without[number] = self.without.get(number, 0) + 1
            self._fade(number)
        if settings.decrease_trk_keep_alive_for_empty_masklets:
            for place in matches.empty:
                self._fade(numbers[place])
        for number in (*numbers, *born):
            seen = number in confirmed or number in born
            # once confirmed, always: the streak stays where it is
            if self.streak.get(number, 0) < CONFIRM_FRAMES:
                self.streak[number] = self.streak.get(number, 0) + 1 if seen else 0
        gone, hidden = self._unconfirmed(now)
        gone |= self._duplicates(now, groups, gone)
        self.removed |= gone
        return gone, hidden

    def adopt(self, now: int, born: Sequence[int]) -> None:
        """Begin the lives of objects."""
        for number in born:
            self.born[number], self.alive[number] = now, self.settings.init_trk_keep_alive
            self.streak[number] = 0

    def unconfirmed(self, numbers: Sequence[int]) -> frozenset[int]:
        """Return the objects that detections have not yet confirmed in enough frames in a row."""
        return frozenset(number for number in numbers if self.streak[number] < CONFIRM_FRAMES)

    def _fade(self, number: int) -> None:
        self.alive[number] = max(self.settings.min_trk_keep_alive, self.alive[number] - 1)

    def _young(self, number: int, now: int) -> bool:
        age = self.born[number] - now if self.backwards else now - self.born[number]
        return age < self.settings.hotstart_delay

    def _unconfirmed(self, now: int) -> tuple[set[int], frozenset[int]]:
        settings, gone, hidden = self.settings, set[int](), set[int]()
        for number, count in self.without.items():
            if number in self.removed:
                continue
            if count >= settings.hotstart_unmatch_thresh and self._young(number, now):
                gone.add(number)
            elif self.alive[number] <= 0 and not settings.suppress_unmatched_only_within_hotstart:
                hidden.add(number)
        return gone, frozenset(hidden)

    def _duplicates(self, now: int, groups: Sequence[Sequence[int]], gone: set[int]) -> set[int]:
        """Of objects under one detection the younger ones, when they have been so for long."""
        order = max if self.backwards else min
        for group in groups:
            elder = order(group, key=self.born.__getitem__) if len(group) > 1 else None
            for number in group if elder is not None else ():
                if elder is not None and number != elder:
                    self.doubled[elder, number] = self.doubled.get((elder, number), 0) + 1
        return {
            number
            for (_, number), count in self.doubled.items()
            if number not in self.removed | gone
            and count >= self.settings.hotstart_dup_thresh
            and self._young(number, now)
        }


# ---- overlap


def recently_hidden(
    inside: Inside, last_hidden: Sequence[int], phrases: Sequence[int], least: float, back: bool
) -> npt.NDArray[np.bool_]:
    """Return bool [N]: of a phrase's objects that overlap by `least` IoU, those hidden later, if both were.

    `last_hidden`: the last frame in which each was hidden, -1 if none. `back`: time runs backwards.
    """
    owners, hidden = np.asarray(phrases), np.asarray(last_hidden)
    over = (overlaps(inside, inside) >= least) & (owners[:, None] == owners[None])
    np.fill_diagonal(over, False)
    later = hidden[:, None] < hidden[None] if back else hidden[:, None] > hidden[None]
    suppressed: npt.NDArray[np.bool_] = (over & later & (hidden > -1)[None]).any(1)
    return suppressed


def without_shrunk(masks: Tensor, phrases: Sequence[int], least: float = 0.3) -> Tensor:
    """Return logits [N, 1, a, b], at most -10 for masks with less than `least` left once a phrase's masks part."""
    out = masks.clone()
    owners = np.asarray(phrases)
    for phrase in sorted(set(phrases)):
        places = np.flatnonzero(owners == phrase)
        if len(places) < 2:
            continue
        rows = send(places, masks.device)
        own = masks[rows]
        before, after = (own > 0).sum((-1, -2)).clamp(min=1), (apart(own) > 0).sum((-1, -2))
        out[rows] = torch.where((after / before >= least)[..., None, None], own, own.clamp(max=-10.0))
    return out


def apart(masks: Tensor) -> Tensor:
    """Return logits [N, 1, a, b], at most -10 where another object's are higher."""
    if len(masks) < 2:
        return masks
    best = masks.argmax(0, keepdim=True)
    mine = best == torch.arange(len(masks), device=masks.device)[:, None, None, None]
    return torch.where(mine, masks, masks.clamp(max=-10.0))
