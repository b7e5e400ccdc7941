"""What an object is recalled by in a frame: which of its frames are attended to, and what is worth keeping. Pure.

An object's frames are *conditioning* (its mask came from a detection there) or tracked. Attention sees spatial memories
of a few conditioning frames and of some tracked ones, each with a rank (1: the nearest), and pointers with a distance.

"Before" a frame means later where time runs backwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sam3label.model.track_rules import GOOD_ENOUGH, Rules


@dataclass(frozen=True, slots=True)
class ObjectPast:
    """An object's frames before `now`. `quality` of the tracked ones is their effective IoU, of all born together."""

    now: int
    first: int  # the session's first frame, in the direction of time
    conditioning: Sequence[int]  # in the order in which they became so
    quality: Mapping[int, float]
    backwards: bool = False

    def distance(self, frame: int) -> int:
        """Return how many frames `frame` lies before now."""
        return frame - self.now if self.backwards else self.now - frame

    def back(self, n: int) -> int:
        """Return the frame that lies `n` frames before now."""
        return self.now + n if self.backwards else self.now - n


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is attended to: spatial memories, pointers and conditioning frames (-1: all)."""

    memories: int
    pointers: int
    conditioning: int


@dataclass(frozen=True, slots=True)
class Recall:
    """The frames attended to: conditioning memories; (rank, frame) of tracked ones; (distance, frame) of pointers."""

    conditioning: tuple[int, ...]
    memories: tuple[tuple[int, int], ...]
    pointers: tuple[tuple[int, int], ...]


def recall(past: ObjectPast, sizes: Sizes, rules: Rules) -> Recall:
    """Choose the frames that an object is recalled by."""
    chosen = closest(past, sizes.conditioning)
    others = set(past.conditioning) - set(chosen)
    ranked = _good(past, sizes.pointers) if rules.good_memories else None
    memories = []
    for rank in range(sizes.memories - 1, 0, -1):
        frame = past.back(rank) if ranked is None else ranked[-rank] if rank <= len(ranked) else None
        if frame is not None and (frame in past.quality or frame in others):
            memories.append((rank, frame))
    attended = chosen if rules.few_pointers else past.conditioning
    pointers = [(past.distance(frame), frame) for frame in attended if past.distance(frame) >= 0]
    for rank in range(1, sizes.pointers):
        if ranked is not None and rank >= len(ranked):
            break
        frame = past.back(rank) if ranked is None else ranked[-rank]
        if frame in past.quality or (frame in others and rules.few_pointers):
            pointers.append((rank, frame))
    return Recall(tuple(chosen), tuple(memories), tuple(pointers))


def closest(past: ObjectPast, most: int) -> list[int]:
    """Return at most `most` conditioning frames: the nearest before now, the nearest after it, then by distance."""
    frames = list(past.conditioning)
    if most == -1 or len(frames) <= most:
        return frames
    lower = [frame for frame in frames if frame < past.now]
    upper = [frame for frame in frames if frame >= past.now]
    chosen = [max(lower)] if lower else []
    chosen += [min(upper)] if upper else []
    rest = sorted((frame for frame in frames if frame not in chosen), key=lambda frame: abs(frame - past.now))
    return chosen + rest[: most - len(chosen)]


def _good(past: ObjectPast, most: int) -> list[int]:
    """Return the last good tracked frames, oldest first, at most `most` - 1; the frame before now always ends them.

    Frame 0 is never one where time runs forwards.
    """
    if past.now == past.first:
        return []
    good = _worth_remembering(past)[: max(most - 1, 1)][::-1]
    return good if past.back(1) in good else [*good, past.back(1)]


@dataclass(frozen=True, slots=True)
class Keep:
    """The frames of which pointers are kept, and those of which spatial memories are kept too."""

    pointers: frozenset[int]
    memories: frozenset[int]


def worth_keeping(past: ObjectPast, sizes: Sizes, rules: Rules, settled: bool) -> Keep:
    """Choose what later frames may read of an object's, once frame `past.now` is done. The rest can be forgotten.

    Until an object is `settled`, those born with it may still be taken back, which changes what was good: all is kept.
    """
    seen = [*past.quality, *past.conditioning]
    if rules.good_memories and not settled:
        return Keep(frozenset(seen), frozenset(seen))
    near = sorted(past.conditioning, key=past.distance)
    attended = near if sizes.conditioning == -1 else near[: sizes.conditioning]
    if rules.good_memories:
        good = _worth_remembering(past)
        pointers, memories = good[: sizes.pointers], good[: sizes.memories - 1]
    else:
        pointers = _within(seen, past, sizes.pointers - 1)
        memories = _within(seen, past, sizes.memories - 1)
    anchors = attended if rules.few_pointers else near
    return Keep(frozenset((*pointers, *anchors, past.now)), frozenset((*memories, *attended, past.now)))


def _worth_remembering(past: ObjectPast) -> list[int]:
    """Return the good tracked frames, nearest first."""
    good = [frame for frame, quality in past.quality.items() if quality > GOOD_ENOUGH]
    return sorted((frame for frame in good if past.backwards or frame != past.first), key=past.distance)


def _within(frames: Iterable[int], past: ObjectPast, n: int) -> list[int]:
    return [frame for frame in frames if past.distance(frame) < n]
