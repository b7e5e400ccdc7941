"""The SA-Co figures: a worked example with known numbers, and cases small enough to compute by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam3label.annotations.truth import read_truth
from sam3label.quality.evaluate import evaluate_results
from sam3label.quality.metrics import cgf1

DATA = Path(__file__).parents[1] / "data"
EPS = 1e-4


def score(*rows: list[float], truth: int | None = None) -> cgf1.PairScore:
    """A pair from its IoU rows (one per prediction); `truth` says how many truth objects when there is no row."""
    columns = len(rows[0]) if rows else truth or 0
    return cgf1.match(np.array(rows, dtype=float).reshape(len(rows), columns))


def f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall + EPS)


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_worked_example(kind: str) -> None:
    figures = evaluate_results([DATA / "saco_truth.json"], DATA / "saco_results.json").to_json()[kind]
    expected: dict[str, Any] = json.loads((DATA / "saco_expected.json").read_text())[kind]
    compared = [name for name in expected if name not in ("per_threshold", "pairs")]
    assert len(compared) == 30
    for name in compared:
        assert figures[name] == pytest.approx(expected[name], abs=1e-9), name


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_worked_example_pair_by_pair_and_per_threshold(kind: str) -> None:
    from sam3label.annotations.coco import read_results
    from sam3label.quality.evaluate import overlap

    truth = read_truth(DATA / "saco_truth.json")
    found, _ = read_results(DATA / "saco_results.json", truth)
    expected = json.loads((DATA / "saco_expected.json").read_text())[kind]
    scores = []
    for pair, row in zip(truth.pairs, expected["pairs"], strict=True):
        answers = [i for i in found.get(pair, ()) if i.score >= cgf1.MIN_SCORE]
        one = cgf1.match(overlap(kind, answers, truth.objects.get(pair, ())))  # type: ignore[arg-type]
        assert one.true_positives().tolist() == row["TPs"]
        assert (len(one.found_iou) - one.true_positives()).tolist() == row["FPs"]
        assert (len(one.truth_iou) - one.true_positives()).tolist() == row["FNs"]
        assert one.f1().mean() == pytest.approx(row["f1"], abs=1e-9)
        scores.append(one)
    curves = cgf1.curves(scores)
    for name, values in expected["per_threshold"].items():
        np.testing.assert_allclose(curves[name], values, rtol=0, atol=1e-9)


def test_iou_of_exactly_the_threshold_counts() -> None:
    assert score([0.5]).true_positives().tolist() == [1] + 9 * [0]
    # 17/20 is a tie that a threshold of 0.5 + 7 * 0.05 would miss
    assert score([17 / 20]).true_positives().tolist() == 8 * [1] + 2 * [0]
    assert score([np.nextafter(0.5, 0)]).true_positives().sum() == 0


def test_one_assignment_maximises_the_sum_and_is_judged_at_every_threshold() -> None:
    """Taking the best overlap first would leave the second prediction with nothing."""
    both = score([0.9, 0.8], [0.8, 0.0])
    assert both.true_positives().tolist() == 7 * [2] + 3 * [0]
    assert both.found_iou.tolist() == [0.8, 0.8]


def test_equal_overlaps_match_once() -> None:
    twins = score([0.7], [0.7])
    assert twins.true_positives().tolist() == 5 * [1] + 5 * [0]
    assert sorted(twins.found_iou.tolist()) == [cgf1.NOT_MATCHED, 0.7]


def test_perfect_pair_and_a_negative() -> None:
    figures = cgf1.summarize([score([1.0]), score()])
    part = 1 / (1 + EPS)
    assert figures["precision"] == figures["recall"] == pytest.approx(part, abs=1e-12)
    assert figures["F1"] == pytest.approx(f1(part, part), abs=1e-12)
    assert figures["IL_MCC"] == pytest.approx(1 / (1 + 1e-6), abs=1e-12)
    assert figures["cgF1"] == pytest.approx(f1(part, part) / (1 + 1e-6), abs=1e-12)
    assert figures["positive_macro_F1"] == pytest.approx(f1(part, part), abs=1e-12)


def test_mixed_pairs_by_hand() -> None:
    """Two found of three, one false alarm beside them; a miss; a false alarm on a negative; two true negatives."""
    pairs = [
        score([0.92, 0, 0], [0, 0.61, 0], [0, 0, 0.2]),
        score(truth=1),
        cgf1.match(np.zeros((2, 0))),
        score(),
        score(),
    ]
    figures = cgf1.summarize(pairs)
    tp, fp, positive_fp, fn = 2, 1 + 2, 1, 1 + 1
    precision, recall, positive = tp / (tp + fp + EPS), tp / (tp + fn + EPS), tp / (tp + positive_fp + EPS)
    assert figures["precision@0.5"] == pytest.approx(precision, abs=1e-12)
    assert figures["recall@0.5"] == pytest.approx(recall, abs=1e-12)
    assert figures["positive_micro_precision@0.5"] == pytest.approx(positive, abs=1e-12)
    assert figures["F1@0.5"] == pytest.approx(f1(precision, recall), abs=1e-12)
    mcc = (1 * 2 - 1 * 1) / ((1 + 1) * (1 + 1) * (2 + 1) * (2 + 1)) ** 0.5
    assert figures["IL_MCC"] == pytest.approx(mcc, abs=1e-6)
    assert figures["cgF1@0.5"] == pytest.approx(f1(positive, recall) * figures["IL_MCC"], abs=1e-12)
    assert figures["positive_macro_F1@0.5"] == pytest.approx(f1(2 / (3 + EPS), 2 / (3 + EPS)), abs=1e-12)
    assert figures["precision@0.75"] == pytest.approx(1 / (1 + 4 + EPS), abs=1e-12)
    assert [figures[f"IL_{n}"] for n in ("TP", "FP", "TN", "FN")] == [1, 1, 2, 1]
    assert figures["IL_recall"] == pytest.approx(1 / (2 + 1e-6), abs=1e-12)
    assert figures["IL_FPR"] == pytest.approx(1 / (3 + 1e-6), abs=1e-12)


def test_no_predictions_at_all() -> None:
    figures = cgf1.summarize([score(truth=2), score()])
    assert (figures["cgF1"], figures["F1"], figures["IL_MCC"]) == (0, 0, 0)
    assert figures["positive_macro_F1"] == figures["positive_macro_F1@0.5"] == -1  # 0/0: no pair has both


def test_only_negatives() -> None:
    figures = cgf1.summarize([score(), score(), cgf1.match(np.zeros((1, 0)))])
    assert (figures["IL_TN"], figures["IL_FP"], figures["IL_TP"], figures["IL_FN"]) == (2, 1, 0, 0)
    assert (figures["cgF1"], figures["IL_MCC"], figures["positive_macro_F1"]) == (0, 0, -1)


def test_no_negatives_make_mcc_zero_however_good_the_predictions() -> None:
    figures = cgf1.summarize([score([1.0]), score([1.0])])
    assert figures["IL_MCC"] == 0
    assert figures["cgF1"] == 0
    assert figures["positive_micro_F1"] > 0.999


def test_cgf1_can_be_negative() -> None:
    pairs = [score([1.0]), score(truth=1), score(truth=1), cgf1.match(np.zeros((1, 0)))]
    figures = cgf1.summarize(pairs)
    assert figures["IL_MCC"] == pytest.approx((0 - 2) / (2 * 3 * 1 * 2) ** 0.5, abs=1e-6)
    assert figures["cgF1"] < 0


def test_several_annotators_the_kindest_is_chosen() -> None:
    empty, miss, alarm = score(), score(truth=1), cgf1.match(np.zeros((1, 0)))
    good, better = score([0.8]), score([0.9])
    assert cgf1.best([good, better]) == 1
    assert cgf1.best([better, good]) == 0
    assert cgf1.best([good, score([0.8])]) == 0  # only a strictly better one replaces the first
    assert cgf1.best([alarm, good]) == 1
    assert cgf1.best([miss, empty]) == 1
    assert cgf1.best([empty, miss]) == 0
    assert cgf1.best([miss, empty, empty]) == 2  # as the official evaluator does; the figures are the same
