"""Identities across clips: pure rules."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import rectangle

from sam3label.labelling.track_ids import Sighting, match_tracks


def moving(track: int, x: int, frames: range, prompt: str = "car", y: int = 10, side: int = 12) -> list[Sighting]:
    """A square that moves one pixel a frame to the right."""
    return [Sighting(f, prompt, track, rectangle(x + f, y, side, side)) for f in frames]


def test_the_same_masks_are_the_same_object() -> None:
    before = moving(7, 0, range(8)) + moving(3, 40, range(8))
    after = moving(0, 40, range(8)) + moving(1, 0, range(8))
    assert match_tracks(before, after) == {0: 3, 1: 7}


def test_masks_that_agree_roughly_are_the_same_object() -> None:
    assert match_tracks(moving(7, 0, range(8)), moving(0, 2, range(8))) == {0: 7}  # IoU 0.71
    assert match_tracks(moving(7, 0, range(8)), moving(0, 5, range(8))) == {}  # IoU 0.41


def test_other_prompts_are_other_objects() -> None:
    assert match_tracks(moving(7, 0, range(8)), moving(0, 0, range(8), prompt="truck")) == {}


def test_only_frames_in_which_both_are_seen_count() -> None:
    assert match_tracks(moving(7, 0, range(8)), moving(0, 0, range(5, 8))) == {0: 7}  # recognised late
    assert match_tracks(moving(7, 0, range(4)), moving(0, 0, range(4, 8))) == {}  # never together


def test_of_two_claims_the_longer_agreement_wins() -> None:
    before = moving(7, 0, range(8))
    after = moving(0, 0, range(6, 8)) + moving(1, 1, range(8))
    assert match_tracks(before, after) == {1: 7}


def test_crossing_objects_keep_apart() -> None:
    """Two squares that meet in one frame: the frames before and after tell them apart."""
    right = moving(1, 0, range(8))
    left = [Sighting(f, "car", 2, rectangle(7 - f, 10, 12, 12)) for f in range(8)]
    after = [Sighting(one.frame, "car", 5 - one.track, one.rle) for one in (*left, *right)]
    assert match_tracks(right + left, after) == {4: 1, 3: 2}


def test_nothing_to_match() -> None:
    assert match_tracks([], moving(0, 0, range(3))) == {}
    assert match_tracks(moving(0, 0, range(3)), []) == {}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["car", "dog"])), max_size=5),
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["car", "dog"])), max_size=5),
    st.randoms(),
)
def test_matching_is_one_to_one_and_ignores_order(
    old: list[tuple[int, str]], new: list[tuple[int, str]], random: object
) -> None:
    before = [s for i, (x, prompt) in enumerate(old) for s in moving(100 + i, x, range(3), prompt)]
    after = [s for i, (x, prompt) in enumerate(new) for s in moving(i, x, range(3), prompt)]
    found = match_tracks(before, after)
    assert len(set(found.values())) == len(found)
    assert all(old[track - 100][1] == new[number][1] for number, track in found.items())
    random.shuffle(before), random.shuffle(after)  # type: ignore[attr-defined]
    assert match_tracks(before, after) == found
