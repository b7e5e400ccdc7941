"""The three-way merge of one label, mask round trips between a run and FiftyOne, and the summary's arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import rectangle

from sam3label.core import masks
from sam3label.core.records import Correction, Label, Rle
from sam3label.review import labels
from sam3label.review.merge import Merged, State, merge, stored_state
from sam3label.review.summary import (
    ReviewSummary,
    compare,
    effective_size,
    minutes_per_image,
    quality,
    ratio,
    wilson,
)

SHAPES = {name: rectangle(3 * i, 2, 9, 7) for i, name in enumerate("xyz")}
DIGEST = {name: labels.shape_digest(rle) for name, rle in SHAPES.items()}
BASE = State("cat", DIGEST["x"])
states = st.none() | st.builds(State, st.sampled_from(["cat", "dog", "owl"]), st.sampled_from(sorted(DIGEST.values())))


def corrections_for(merged: Merged) -> list[Correction]:
    """The rows a pull writes for a merge."""
    rles = {digest: SHAPES[name] for name, digest in DIGEST.items()}
    rows = []
    for action in merged.actions:
        name = merged.result.class_name if merged.result and action in ("added", "relabelled") else None
        rle = rles[merged.result.shape] if merged.result and action in ("added", "reshaped") else None
        rows.append(Correction("a", 0, action, "l", name, rle))
    return rows


@given(base=st.none() | st.just(BASE), then=states, now=states, stored=states, vouched=st.booleans())
def test_what_is_recorded_leads_to_what_the_merge_says(
    base: State | None, then: State | None, now: State | None, stored: State | None, vouched: bool
) -> None:
    """Replaying the rows on top of what is stored gives the merged label, and merging again records nothing."""
    before = history(base, stored)
    vouched = vouched and now is not None
    merged = merge(base, then, now, stored, vouched=vouched, touched=bool(before))
    rows = before + corrections_for(merged)
    assert stored_state(base, rows) == merged.result
    again = merge(base, then, now, merged.result, vouched=vouched, touched=bool(rows))
    assert again.actions == ()


def history(base: State | None, stored: State | None) -> list[Correction]:
    """Some rows after which the run holds `stored`."""
    if stored == base:
        return []
    return corrections_for(merge(base, base, stored, base))


@given(then=states, now=states, stored=states)
def test_a_decision_is_never_dropped(then: State | None, now: State | None, stored: State | None) -> None:
    """Whatever a person changed holds afterwards; what they did not change is the run's."""
    merged = merge(BASE, then, now, stored)
    if now == then:
        assert merged.result == stored
        assert merged.actions == ()
        return
    if now is None or stored is None or then is None:
        assert merged.result == now
        return
    assert merged.result is not None
    assert merged.result.class_name == (now.class_name if now.class_name != then.class_name else stored.class_name)
    assert merged.result.shape == (now.shape if now.shape != then.shape else stored.shape)


@given(then=states, now=states)
def test_nobody_else_no_conflict(then: State | None, now: State | None) -> None:
    assert not merge(BASE, then, now, then).conflict
    assert not merge(BASE, then, now, now).conflict


X, DOG, OWL = BASE, State("dog", BASE.shape), State("owl", BASE.shape)
MOVED, DOG_MOVED = State("cat", DIGEST["y"]), State("dog", DIGEST["y"])


@pytest.mark.parametrize(
    ("then", "now", "stored", "actions", "result", "conflict"),
    [
        (X, DOG, X, ("relabelled",), DOG, False),
        (X, MOVED, X, ("reshaped",), MOVED, False),
        (X, DOG_MOVED, X, ("relabelled", "reshaped"), DOG_MOVED, False),
        (X, None, X, ("deleted",), None, False),
        (None, X, None, ("approved",), X, False),  # a deletion taken back
        (X, DOG, MOVED, ("relabelled",), DOG_MOVED, False),  # class here, mask there: both hold
        (X, DOG, OWL, ("relabelled",), DOG, True),
        (X, DOG, DOG, (), DOG, False),
        (X, None, DOG, ("deleted",), None, True),
        (X, None, None, (), None, False),
        (X, DOG, None, ("relabelled",), DOG, True),
    ],
)
def test_merges_by_hand(
    then: State | None,
    now: State | None,
    stored: State | None,
    actions: tuple[str, ...],
    result: State | None,
    conflict: bool,
) -> None:
    assert merge(BASE, then, now, stored) == Merged(actions, result, conflict)  # type: ignore[arg-type]


def test_vouching_records_itself_once_and_speaks_against_what_others_did() -> None:
    assert merge(BASE, X, X, X, vouched=True).actions == ("approved",)
    assert merge(BASE, X, X, X, vouched=True, touched=True).actions == ()
    assert merge(BASE, X, X, None, vouched=True, touched=True) == Merged(("approved",), X, True)
    assert merge(BASE, X, X, DOG, vouched=True, touched=True) == Merged(("relabelled",), X, True)


def test_a_label_of_a_person_that_was_deleted_is_added_again() -> None:
    assert merge(None, None, DOG, None).actions == ("added",)


# ---- masks


@st.composite
def masks_in_images(draw: st.DrawFn) -> Rle:
    h, w = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**32 - 1))
    mask = np.random.default_rng(seed).random((h, w)) < draw(st.floats(0.01, 0.9))
    mask[draw(st.integers(0, h - 1)), draw(st.integers(0, w - 1))] = True
    return masks.encode(mask)


@given(masks_in_images())
def test_an_untouched_mask_comes_back_exactly(rle: Rle) -> None:
    held = labels.boxed(rle)
    assert labels.rle_of(held.box, held.mask, rle.size_hw) == rle
    as_the_app_returns_it = held.mask.astype(np.uint8) * 255
    assert labels.rle_of(held.box, as_the_app_returns_it, rle.size_hw) == rle
    assert labels.held_digest(held.box, as_the_app_returns_it) == labels.held_digest(held.box, held.mask)


@pytest.mark.parametrize("scale", [2, 3])
def test_a_mask_at_another_resolution_is_sampled_without_a_shift(scale: int) -> None:
    rle = masks.encode(np.pad(np.eye(8, 12, dtype=bool) | np.eye(8, 12, 3, dtype=bool), ((4, 3), (5, 2))))
    held = labels.boxed(rle)
    larger = held.mask.repeat(scale, 0).repeat(scale, 1)
    assert labels.rle_of(held.box, larger, rle.size_hw) == rle


def test_fractional_edges_take_the_pixels_whose_centres_are_inside() -> None:
    rle = labels.rle_of((1.4 / 10, 2.6 / 10, 3.2 / 10, 2.0 / 10), np.ones((7, 9), np.uint8), (10, 10))
    assert masks.box_xywh(rle) == (1.0, 3.0, 4.0, 2.0)
    assert masks.area(rle) == 8


def test_a_box_without_a_mask_is_filled_and_what_sticks_out_is_cut() -> None:
    assert masks.box_xywh(labels.rle_of((0.5, 0.5, 0.9, 0.2), None, (10, 20))) == (10.0, 5.0, 10.0, 2.0)
    assert masks.area(labels.rle_of((0.5, 0.5, 0.0, 0.2), None, (10, 20))) == 0


def test_label_ids_have_a_place_in_fiftyone() -> None:
    assert labels.object_id("0123456789abcdef") == "73616d330123456789abcdef"
    assert labels.object_id("6b01073b95e54ab29ef687d8") == "6b01073b95e54ab29ef687d8"
    assert len({labels.object_id(f"0123456789abcdef-{i}") for i in range(9)}) == 9


# ---- the summary's arithmetic


def label(class_id: int, rle: Rle, label_id: str = "l") -> Label:
    return Label(label_id, class_id, 0.9, 0.9, masks.box_xywh(rle), masks.area(rle), rle, "p")


def test_compare_counts_and_names_confusions() -> None:
    confused: Counter[tuple[str, str]] = Counter()
    a, b, far = rectangle(0, 0, 10, 10), rectangle(2, 0, 10, 10), rectangle(50, 40, 9, 9)
    counts = compare([label(0, a), label(0, far)], [label(0, b), label(1, far)], ["cat", "dog"], confused)
    assert counts.tolist() == [[1, 2, 1], [0, 0, 1]]
    assert confused == {("cat", "dog"): 1}


def test_compare_takes_the_assignment_with_most_matches() -> None:
    """One label could take the only partner of another: greedy matching would lose a pair."""
    wide, left = rectangle(0, 0, 20, 10), rectangle(0, 0, 14, 10)
    both = rectangle(0, 0, 17, 10)
    counts = compare(
        [label(0, both), label(0, left)], [label(0, rectangle(0, 0, 10, 10)), label(0, wide)], ["c"], Counter()
    )
    assert counts.tolist() == [[2, 2, 2]]


def test_wilson_against_published_values() -> None:
    """81 of 263 (Newcombe 1998, table I): 0.2553 to 0.3662; and 0 of 20: 0.0000 to 0.1611."""
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_instances_that_go_wrong_together_count_for_less() -> None:
    together = np.array([10, 0, 10, 10, 0]), np.array([10] * 5)
    spread = np.array([6] * 5), np.array([10] * 5)
    assert effective_size(*together) == pytest.approx(4.0)
    assert effective_size(*spread) == 5.0  # no variance between images: the images are what is known to be independent
    assert effective_size(np.array([6, 7, 5, 6, 6]), np.array([10] * 5)) == 50.0


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """1,500 audits of 40 images, whose objects share their image's luck: 95 % of intervals should hold 0.8."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1500):
        totals = rng.integers(1, 12, 40)
        hits = rng.binomial(totals, rng.beta(4.0, 1.0, 40))
        low, high = ratio(hits, totals).interval
        held += low <= 0.8 <= high
    assert 0.925 <= held / 1500 <= 0.975


def test_nothing_reviewed_says_what_to_do() -> None:
    empty = ReviewSummary(5, 0, 5, 0, {}, {}, [], {}, None, [])
    assert empty.to_text() == (
        "0 of 5 images reviewed\nMark images as reviewed in FiftyOne (review_status), then: sam3label review pull RUN"
    )


def test_summary_in_words() -> None:
    counts = [np.array([[3, 4, 3], [0, 0, 1]])] * 10
    figures = quality(counts, ["cat", "dog"])
    text = ReviewSummary(50, 10, 20, 10, figures, figures, [("cat", "dog", 3)], {"deleted": 10}, 1.5, ["x"]).to_text()
    assert "Random audit sample (10 of 20 images): unbiased, with 95% intervals" in text
    assert "as long as the 10 images left were not passed over for what they show" in text
    assert "all classes  precision 0.750 [" in text
    assert "Most confused: cat was dog (3)" in text
    assert "time: 1.5 minutes per image (median)" in text
    dog = next(line for line in text.splitlines() if line.strip().startswith("dog"))
    assert "precision -" in dog
    assert "recall 0.000 [0.000, 0." in dog


def test_minutes_per_image_leave_breaks_and_bulk_out() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    minutes = [0, 2, 3, 3, 60, 62]
    rows = [
        Correction(f"{i}.jpg", 0, "reviewed", who="anna", at=(start + timedelta(minutes=m)).isoformat())
        for i, m in enumerate(minutes)
    ]
    assert minutes_per_image(rows) == 2.0
    assert minutes_per_image(rows[2:4]) is None
    assert math.isclose(minutes_per_image(rows[:2]) or 0, 2.0)
