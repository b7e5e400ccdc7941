"""HOTA: how well objects are found, and how well they stay themselves from frame to frame. As TrackEval defines it.

Shape legend: A thresholds of overlap (alpha), G truth tracks and D predicted tracks of one sequence; in a frame, g and
d of them are to be seen. (Luiten et al. 2020, "HOTA: A Higher Order Metric for Evaluating Multi-Object Tracking".)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sam3label.core.matching import optimal

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

ALPHAS: Floats = np.arange(0.05, 0.99, 0.05)  # [A]
EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class ComparedFrame:
    """One frame: which tracks are to be seen (positions in the sequence's lists), and the IoU of each with each."""

    truth: Ids  # [g]
    found: Ids  # [d]
    iou: Floats  # [g, d]


@dataclass(frozen=True, slots=True)
class TrackCounts:
    """Counts of one sequence or of many together, each [A]. `association` and `overlap` are sums over hits."""

    tp: Floats
    fp: Floats
    fn: Floats
    association: Floats
    overlap: Floats


def count(frames: Sequence[ComparedFrame], truth: int, found: int) -> TrackCounts:
    """Count one sequence with `truth` and `found` tracks."""
    length = np.zeros(truth), np.zeros(found)  # frames in which each track is seen
    together = np.zeros((truth, found))
    for frame in frames:
        length[0][frame.truth] += 1
        length[1][frame.found] += 1
        rest = frame.iou.sum(axis=0)[None, :] + frame.iou.sum(axis=1)[:, None] - frame.iou
        share = np.divide(frame.iou, rest, out=np.zeros_like(frame.iou), where=rest > EPSILON)
        together[np.ix_(frame.truth, frame.found)] += share
    either = np.maximum(length[0][:, None] + length[1][None, :] - together, EPSILON)
    alignment = together / either
    hits = np.zeros((len(ALPHAS), truth, found))
    overlap = np.zeros(len(ALPHAS))
    for frame in frames:
        # optimal by definition: tracks that go together over the whole sequence count for more in each frame
        rows, columns = optimal(alignment[np.ix_(frame.truth, frame.found)] * frame.iou)
        iou = frame.iou[rows, columns]
        for a, alpha in enumerate(ALPHAS):
            good = iou >= alpha - EPSILON
            hits[a, frame.truth[rows[good]], frame.found[columns[good]]] += 1
            overlap[a] += iou[good].sum()
    tp = hits.sum(axis=(1, 2))
    union = np.maximum(1, length[0][:, None] + length[1][None, :] - hits)
    association = (hits * hits / union).sum(axis=(1, 2))
    return TrackCounts(tp, length[1].sum() - tp, length[0].sum() - tp, association, overlap)


def add(counts: Iterable[TrackCounts]) -> TrackCounts:
    """Add many sequences up as one."""
    total = np.zeros((5, len(ALPHAS)))
    for one in counts:
        total += (one.tp, one.fp, one.fn, one.association, one.overlap)
    return TrackCounts(*total)


def summarize(counts: TrackCounts) -> dict[str, float]:
    """Return HOTA, DetA, AssA and LocA, averaged over alpha."""
    detection = counts.tp / np.maximum(1, counts.tp + counts.fp + counts.fn)
    association = counts.association / np.maximum(1, counts.tp)
    located = np.maximum(1e-10, counts.overlap) / np.maximum(1e-10, counts.tp)
    return {
        "HOTA": float(np.sqrt(detection * association).mean()),
        "DetA": float(detection.mean()),
        "AssA": float(association.mean()),
        "LocA": float(located.mean()),
    }
