"""The SA-Co metrics (cgF1 and its parts) on (image, phrase) pairs, with the numbers of SAM 3's own evaluator.

Shape legend: D predictions and G truth objects of one pair, T IoU thresholds. A pair's predictions and truth are
matched once, by the assignment with the largest sum of IoU, and that one assignment is judged at every threshold.

The small terms in the denominators are part of the definition: without them the numbers differ in the fourth digit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sam3label.core.matching import optimal

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

IOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)  # [T]; adding 0.05 step by step would lose exact ties
MIN_SCORE = 0.5  # a prediction below this does not exist
NOT_MATCHED = -1.0

_PER_THRESHOLD = (
    "cgF1",
    "precision",
    "recall",
    "F1",
    "positive_macro_F1",
    "positive_micro_F1",
    "positive_micro_precision",
)
_IMAGE_LEVEL = ("IL_precision", "IL_recall", "IL_F1", "IL_FPR", "IL_MCC", "IL_TP", "IL_FP", "IL_TN", "IL_FN")


@dataclass(frozen=True, slots=True)
class PairScore:
    """How one pair was matched: IoU with the assigned partner, or `NOT_MATCHED`."""

    found_iou: Floats  # [D]
    truth_iou: Floats  # [G]

    @property
    def positive(self) -> bool:
        """The pair has truth objects."""
        return len(self.truth_iou) > 0

    @property
    def answered(self) -> bool:
        """The pair has predictions."""
        return len(self.found_iou) > 0

    def true_positives(self) -> Counts:
        """Return [T]; an IoU of exactly the threshold counts."""
        hits: Counts = (self.found_iou[:, None] >= IOU_THRESHOLDS).sum(axis=0)
        return hits

    def f1(self) -> Floats:
        """Return the pair's own F1, [T]; 0 where truth or predictions are missing."""
        tp = self.true_positives()
        return _f1(tp / (len(self.found_iou) + 1e-4), tp / (len(self.truth_iou) + 1e-4))


def match(iou: Floats) -> PairScore:
    """Match a pair's predictions with its truth, `iou` [D, G]. Both in file order, which decides exact ties."""
    found, truth = np.full(iou.shape[0], NOT_MATCHED), np.full(iou.shape[1], NOT_MATCHED)
    if iou.size:
        rows, columns = optimal(iou)  # as the official evaluator: once, and judged at every threshold
        found[rows] = truth[columns] = iou[rows, columns]
    return PairScore(found, truth)


def best(scores: Sequence[PairScore]) -> int:
    """Return which annotator's truth a pair is judged by: the kindest. An empty answer to an empty truth is perfect."""
    chosen = 0
    for index, score in enumerate(scores[1:], start=1):
        perfect = not score.positive and not score.answered
        if perfect or (
            (scores[chosen].positive or scores[chosen].answered) and score.f1().mean() > scores[chosen].f1().mean()
        ):
            chosen = index
    return chosen


def curves(scores: Iterable[PairScore]) -> dict[str, Floats]:
    """Return every figure by name: [T] for those that depend on the IoU threshold, [] for the image-level ones."""
    tp, fp, fn, positive_fp = np.zeros((4, len(IOU_THRESHOLDS)), dtype=np.int64)
    macro = np.zeros(len(IOU_THRESHOLDS))
    level = np.zeros((2, 2), dtype=np.int64)  # [truth or not, predictions or not]
    for score in scores:
        level[int(score.positive), int(score.answered)] += 1
        if not score.positive and not score.answered:
            continue
        hits = score.true_positives()
        tp += hits
        fp += len(score.found_iou) - hits
        fn += len(score.truth_iou) - hits
        if score.positive:
            positive_fp += len(score.found_iou) - hits
            macro += score.f1()
    precision, recall, positive_precision = tp / (tp + fp + 1e-4), tp / (tp + fn + 1e-4), tp / (tp + positive_fp + 1e-4)
    result = {
        "precision": precision,
        "recall": recall,
        "F1": _f1(precision, recall),
        "positive_micro_precision": positive_precision,
        "positive_micro_F1": _f1(positive_precision, recall),
        "positive_macro_F1": macro / level[1, 1] if level[1, 1] else np.full_like(macro, -1.0),
        **_image_level(level),
    }
    return {"cgF1": result["positive_micro_F1"] * result["IL_MCC"], **result}


def summarize(scores: Iterable[PairScore]) -> dict[str, float | int]:
    """Return every figure by name, averaged over thresholds, and `@0.5` and `@0.75`. -1 stands for undefined."""
    values = curves(scores)
    summary: dict[str, float | int] = {}
    for name in _PER_THRESHOLD:
        defined = values[name][values[name] > -1]
        summary[name] = float(defined.mean()) if len(defined) else -1.0
        for threshold in (0.5, 0.75):
            (index,) = np.flatnonzero(np.isclose(IOU_THRESHOLDS, threshold))
            summary[f"{name}@{threshold}"] = float(values[name][index])
    for name in _IMAGE_LEVEL:
        summary[name] = values[name].item()
    return summary


def _f1(precision: Floats, recall: Floats) -> Floats:
    result: Floats = 2 * precision * recall / (precision + recall + 1e-4)
    return result


def _image_level(level: Counts) -> dict[str, Floats]:
    (tn, fp), (fn, tp) = level
    precision, recall = tp / (tp + fp + 1e-6), tp / (tp + fn + 1e-6)
    product = float(tp + fp) * float(tp + fn) * float(tn + fp) * float(tn + fn)
    return {
        "IL_precision": precision,
        "IL_recall": recall,
        "IL_F1": 2 * precision * recall / (precision + recall + 1e-6),
        "IL_FPR": fp / (fp + tn + 1e-6),
        "IL_MCC": np.float64(tp * tn - fp * fn) / (product**0.5 + 1e-6),
        "IL_TP": tp,
        "IL_FP": fp,
        "IL_TN": tn,
        "IL_FN": fn,
    }
