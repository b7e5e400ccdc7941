"""Two models' labels of the same photos against one truth: what one gained over the other, with 95 % intervals.

Photos are drawn with replacement, the same draws for both, so that the interval is of the difference. Where photos come
in groups, groups are drawn.

Shape legend: I images, C classes, R resamples, T IoU thresholds, F numbers of a pair (`_row`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3label.annotations.coco import JudgedObject, Pair, Truth
from sam3label.core.records import Label
from sam3label.quality.calibrate import Goal, calibrate_class
from sam3label.quality.calibration_examples import read_examples
from sam3label.quality.metrics import cgf1
from sam3label.quality.metrics.average_precision import Kind
from sam3label.quality.metrics.overlap import overlap
from sam3label.quality.run_answers import instance_of, predictions_of_run
from sam3label.run.reader import Run

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
SEED = 0
_T = len(cgf1.IOU_THRESHOLDS)


@dataclass(frozen=True, slots=True)
class Change:
    """A figure before and after, and the 95 % interval of how much it changed."""

    before: float
    after: float
    interval: tuple[float, float]

    @property
    def gain(self) -> float:
        return self.after - self.before

    def to_json(self) -> dict[str, Any]:
        return {"before": self.before, "after": self.after, "gain": self.gain, "interval": list(self.interval)}


@dataclass(frozen=True, slots=True)
class ClassChange:
    """One class: F1 at IoU 0.5, image-level MCC, and F1 with thresholds cross-validated for each of the two models."""

    objects: int
    f1: Change
    mcc: Change
    calibrated: tuple[float, float] | None  # None: too few objects to calibrate

    def to_json(self) -> dict[str, Any]:
        calibrated = None if self.calibrated is None else dict(zip(("before", "after"), self.calibrated, strict=True))
        return {
            "objects": self.objects,
            "F1": self.f1.to_json(),
            "IL_MCC": self.mcc.to_json(),
            "calibrated": calibrated,
        }


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """How two models' labels compare on `images` photos; `has_negatives`: some pair does not show its class."""

    images: int
    compared: Kind
    cgf1: Change
    f1: Change  # of all classes together, at IoU 0.5
    mcc: Change
    classes: Mapping[str, ClassChange]
    has_negatives: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "compared": self.compared,
            "cgF1": self.cgf1.to_json(),
            "F1": self.f1.to_json(),
            "IL_MCC": self.mcc.to_json(),
            "classes": {name: change.to_json() for name, change in self.classes.items()},
        }


def compare(before: Run, after: Run, truth: Truth, groups: Sequence[str] = ()) -> BeforeAfter:
    """Judge two runs over the same photos by a truth of both. `groups` names each image's group, in truth order."""
    judged, first, _ = predictions_of_run(before, truth)
    _, second, _ = predictions_of_run(after, truth)
    boxes_only = any(one.rle is None for found in truth.objects.values() for one in found)
    kind: Kind = "bbox" if boxes_only else "segm"
    images, names = list(truth.images), dict(truth.categories)
    tables = [_table(kind, judged, answers.answers, images, list(names)) for answers in (first, second)]
    weights = _draws([groups[i] for i in range(len(images))] if groups else [str(i) for i in images])
    calibrated = [_calibrated(run, truth, kind) for run in (before, after)]
    classes = {}
    for column, (category, name) in enumerate(names.items()):
        one = [table[:, column : column + 1] for table in tables]
        objects = sum(len(found) for pair, found in truth.objects.items() if pair[1] == category)
        both = (calibrated[0].get(name), calibrated[1].get(name))
        classes[name] = ClassChange(
            objects, _change(one, weights, _f1), _change(one, weights, _mcc),
            None if both[0] is None or both[1] is None else (both[0], both[1]),
        )  # fmt: skip
    level = tables[0][..., 4 * _T :].sum(axis=(0, 1))
    return BeforeAfter(
        len(images), kind, _change(tables, weights, _cgf1), _change(tables, weights, _f1),
        _change(tables, weights, _mcc), classes, bool(level[0] + level[1]),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two models agree on photos nobody has judged: F1 at IoU 0.5 of one's labels by the other's.

    Where neither has any label they agree.
    """

    images: int
    answers: int  # labels of the first
    f1: float
    interval: tuple[float, float]
    classes: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images, "answers": self.answers, "F1": self.f1, "interval": list(self.interval),
            "classes": dict(self.classes),
        }  # fmt: skip


def agreement(before: Run, after: Run, names: Sequence[str]) -> Agreement | None:
    """Compare two runs' labels of the classes `names`, photo by photo; None where there is nothing to compare."""
    wanted = [concept.id for concept in before.concepts.concepts if concept.name in names]
    rows: list[Floats] = []
    answers = 0
    for image in before.images():
        other = after.image(image.item.id, image.frame)
        if other is None:
            continue
        row = []
        for class_id in wanted:
            one, two = (_of_class(labels, class_id) for labels in (image.labels, other.labels))
            answers += len(one)
            row.append(_row(cgf1.match(overlap("segm", two, one))))
        rows.append(np.array(row))
    if not rows or not wanted:
        return None
    table = np.stack(rows)  # [I, C, F]
    drawn = _agreed(np.einsum("ri,icf->rf", _draws([str(i) for i in range(len(rows))]), table))
    by_class = {name: _agreed(table[:, column].sum(axis=0)[None])[0] for column, name in enumerate(
        concept.name for concept in before.concepts.concepts if concept.id in wanted)}  # fmt: skip
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Agreement(
        len(rows), answers, float(_agreed(table.sum(axis=(0, 1))[None])[0]), (float(low), float(high)),
        {name: float(value) for name, value in by_class.items()},
    )  # fmt: skip


def _of_class(labels: Sequence[Label], class_id: int) -> list[JudgedObject]:
    return [instance_of(label) for label in labels if label.class_id == class_id]


def table_of(run: Run, truth: Truth) -> Floats:
    """Count one run's masks against a truth, for `cgf1_change`: [I, C, F], images in truth order."""
    judged, answers, _ = predictions_of_run(run, truth)
    return _table("segm", judged, answers.answers, list(truth.images), list(truth.categories))


def table_of_matches(scores: Sequence[Sequence[cgf1.PairScore]]) -> Floats:
    """Count what was matched in each class of each image, for `cgf1_change`: [I, C, F]."""
    return np.stack([np.stack([_row(score) for score in image]) for image in scores])


def cgf1_change(before: Floats, after: Floats) -> Change:
    """Return what `compare` says of cgF1, from tables of the same images."""
    return _change([before, after], _draws([str(row) for row in range(len(before))]), _cgf1)


def f1_change(before: Floats, after: Floats) -> Change:
    """Return the same of F1 at IoU 0.5."""
    return _change([before, after], _draws([str(row) for row in range(len(before))]), _f1)


# ---- counting


def _table(
    kind: Kind,
    truth: Truth,
    answers: Mapping[Pair, Sequence[JudgedObject]],
    images: Sequence[int],
    categories: Sequence[int],
) -> Floats:
    """Return [I, C, F]; pairs that may not be judged are zeros."""
    table = np.zeros((len(images), len(categories), 4 * _T + 4))
    place = {image: row for row, image in enumerate(images)}
    for pair in truth.pairs:
        objects = [one for one in truth.objects.get(pair, ()) if not one.crowd]
        score = cgf1.match(overlap(kind, answers.get(pair, ()), objects))
        table[place[pair[0]], categories.index(pair[1])] = _row(score)
    return table


def _row(score: cgf1.PairScore) -> Floats:
    """Return TP, FP, FN and FP where there is truth, each [T], then one of TN, FP, FN, TP of the image."""
    hits = score.true_positives().astype(float)
    false = len(score.found_iou) - hits
    level = np.zeros(4)
    level[2 * score.positive + score.answered] = 1
    return np.concatenate((hits, false, len(score.truth_iou) - hits, false * score.positive, level))


def _draws(groups: Sequence[str]) -> Floats:
    """Return how often each image is drawn, [R, I]: images of a group together."""
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    weights = np.random.default_rng(SEED).multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    return np.asarray(weights[:, [names[group] for group in groups]], dtype=np.float64)


def _change(tables: Sequence[Floats], weights: Floats, figure: Any) -> Change:
    """Return a figure of both tables [I, C, F], and the interval of its change."""
    before, after = (float(figure(table.sum(axis=(0, 1))[None])[0]) for table in tables)
    drawn = [figure(np.einsum("ri,icf->rf", weights, table)) for table in tables]
    low, high = np.quantile(drawn[1] - drawn[0], [0.025, 0.975])
    return Change(before, after, (float(low), float(high)))


def _f1(sums: Floats) -> Floats:
    """F1 at IoU 0.5, [R] from sums [R, F]; 0 where there is nothing."""
    hits, false, missed = sums[:, 0], sums[:, _T], sums[:, 2 * _T]
    all_ = 2 * hits + false + missed
    return np.divide(2 * hits, all_, out=np.zeros_like(hits), where=all_ > 0)


def _agreed(sums: Floats) -> Floats:
    """F1 as `_f1`, and 1 where there is nothing."""
    return np.where(sums[:, : 3 * _T : _T].any(axis=1), _f1(sums), 1.0)


def _mcc(sums: Floats) -> Floats:
    tn, fp, fn, tp = sums[:, 4 * _T :].T
    root: Floats = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.asarray((tp * tn - fp * fn) / (root + 1e-6))


def _cgf1(sums: Floats) -> Floats:
    """SA-Co's figure, as `cgf1.summarize` has it."""
    tp, _, fn, fp = (sums[:, part * _T : (part + 1) * _T] for part in range(4))
    precision, recall = tp / (tp + fp + 1e-4), tp / (tp + fn + 1e-4)
    return np.asarray((2 * precision * recall / (precision + recall + 1e-4)).mean(axis=1) * _mcc(sums))


def _calibrated(run: Run, truth: Truth, kind: Kind) -> dict[str, float]:
    """Return F1 by class with thresholds chosen for this run, each image judged by those chosen without it."""
    found: dict[str, float] = {}
    for class_id, examples in read_examples(run, truth, [], kind).items():
        result = calibrate_class(run.concepts.concepts[class_id], examples, Goal(), 5, run.floor)
        if result.before is not None and result.after is not None:
            found[result.name] = result.after.f
    return found
