"""Which photos to review next so that a training learns most: those with much to correct that are unlike the rest.

The queue asks what is wrong with a run; this asks what a batch of photos would teach. One after another the photo is
taken whose expected gain times its distance to the nearest one that was reviewed or taken before is largest (k-centre,
weighted), so that ten copies of the worst photo are proposed once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sam3label.core.records import MediaItem
from sam3label.review.reasons import Case, Reason, cases, sentence
from sam3label.review.survey import survey_run
from sam3label.run.reader import Run

Features = Callable[[Sequence[MediaItem]], Mapping[str, npt.NDArray[np.float32]]]

POOL = 8  # times as many photos as are asked for are looked at: those with the largest gain,
LEAST_POOL = 64  # and at least so many
CENTERS = 512  # reviewed photos that others are compared with
QUIET = 0.05  # gain of a photo that nothing is said of: the model may be sure and wrong


@dataclass(frozen=True, slots=True)
class Proposal:
    """A photo to review: its expected corrections, how unlike the nearest known photo it is (0 to 2), and why."""

    item: MediaItem
    gain: float
    distance: float
    why: str


def propose(run: Run, count: int, features: Features) -> list[Proposal]:
    """Return at most `count` photos that nobody has reviewed, the most useful first."""
    every = [case for case in cases(run, survey_run(run, 0)) if case.item.kind == "image"]
    known = [case.item for case in every if case.reviewed][-CENTERS:]
    open_ = sorted((case for case in every if not case.reviewed), key=lambda case: (-_gain(case), case.item.id))
    pool = open_[: max(POOL * count, LEAST_POOL)]
    vectors = features([*known, *(case.item for case in pool)])
    pool = [case for case in pool if case.item.id in vectors]
    if not pool:
        return []
    points = np.stack([vectors[case.item.id] for case in pool])
    centers = [vectors[item.id] for item in known if item.id in vectors]
    nearest = np.full(len(pool), 1.0) if not centers else (1 - points @ np.stack(centers).T).min(axis=1)
    order = _spread(points, nearest, np.array([_gain(case) for case in pool]), count)
    return [Proposal(pool[n].item, _gain(pool[n]), distance, _why(pool[n].reasons)) for n, distance in order]


def _spread(
    points: npt.NDArray[np.float32], nearest: npt.NDArray[np.float32], gain: npt.NDArray[np.float64], count: int
) -> list[tuple[int, float]]:
    """Return rows of `points` [N, D] in the order in which they are taken, with their distance then."""
    left = nearest.astype(np.float64)
    taken: list[tuple[int, float]] = []
    for _ in range(min(count, len(points))):
        best = int(np.argmax(np.maximum(left, 1e-6) * gain * (left > -1)))
        taken.append((best, float(left[best])))
        left = np.minimum(left, 1 - points @ points[best])
        left[[row for row, _ in taken]] = -1
    return taken


def _gain(case: Case) -> float:
    return QUIET + sum(gain for kind, gain in case.gains.items() if kind != "audit")


def _why(found: Sequence[Reason]) -> str:
    return sentence([reason for reason in found if reason.kind != "audit"][:2]) or "nothing seems wrong with it"
