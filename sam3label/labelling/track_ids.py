"""Identities across the clips of a long video. Pure: masks and numbers in, numbers out.

Clips overlap: a clip begins some frames before the part it owns, where the clip before it has labelled already. Objects
of the same prompt whose masks agree in those frames are one object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sam3label.core import masks
from sam3label.core.matching import optimal
from sam3label.core.records import Given, Rle

SAME_TRACK_IOU = 0.5


@dataclass(frozen=True, slots=True)
class Sighting:
    """An object in one frame of the overlap. `track` is its number in the clip, or its id in the video."""

    frame: int
    prompt: str
    track: int
    rle: Rle


@dataclass(frozen=True, slots=True)
class Past:
    """What the next clip must know of the part of the video before it: the end of it, and which ids are used up.

    `scores` holds the score each id was born with, `given` what is said of those that were given.
    """

    seen: tuple[Sighting, ...] = ()
    next_id: int = 1
    scores: Mapping[int, float] = field(default_factory=dict)
    given: Mapping[int, Given] = field(default_factory=dict)


BEGINNING = Past()


def match_tracks(
    before: Sequence[Sighting], after: Sequence[Sighting], least: float = SAME_TRACK_IOU
) -> dict[int, int]:
    """Return which track of `after` continues which of `before`: one to one, same prompt, the largest sum of mask IoU.

    Pairs whose mean IoU, over the frames in which both are seen, is under `least` are not the same.
    """
    old, new = _by_track(before), _by_track(after)
    if not old or not new:
        return {}
    overlaps = [[_overlaps(a, b) for a in old.items()] for b in new.items()]
    sums = np.array([[sum(pair) if _mean(pair) >= least else 0.0 for pair in row] for row in overlaps])
    ids, numbers = list(old), list(new)
    pairs = zip(*optimal(sums), strict=True)  # optimal: all tracks of both clips are there, and none comes first
    return {numbers[row][1]: ids[column][1] for row, column in pairs if sums[row, column] > 0}


_Track = tuple[tuple[str, int], dict[int, Rle]]


def _by_track(sightings: Iterable[Sighting]) -> dict[tuple[str, int], dict[int, Rle]]:
    """Return (prompt, track) -> frame -> mask, in a stable order."""
    tracks: dict[tuple[str, int], dict[int, Rle]] = {}
    for one in sightings:
        tracks.setdefault((one.prompt, one.track), {})[one.frame] = one.rle
    return dict(sorted(tracks.items()))


def _overlaps(a: _Track, b: _Track) -> list[float]:
    """Return the IoU of each frame in which both are seen; none for different prompts."""
    shared = sorted(a[1].keys() & b[1].keys()) if a[0][0] == b[0][0] else []
    return [float(masks.iou_matrix([a[1][frame]], [b[1][frame]])[0, 0]) for frame in shared]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
