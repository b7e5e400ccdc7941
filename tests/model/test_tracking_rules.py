"""What is remembered and what matches: the rules that need no model, each against what it says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sam3label.model import matching_tracks
from sam3label.model.matching_tracks import (
    FrameDetections,
    FrameMatches,
    Lives,
    apart,
    recently_hidden,
    without_shrunk,
)
from sam3label.model.recall import ObjectPast, Recall, Sizes, closest, recall, worth_keeping
from sam3label.model.track_rules import EXTRAS, OFFICIAL, Rules, TrackSettings
from sam3label.model.tracks import Memory, effective_iou

SIZES = Sizes(memories=7, pointers=16, conditioning=4)
LIBRARY = Rules.of("transformers")
SETTINGS = TrackSettings(
    score_threshold_detection=0.5,
    det_nms_thresh=0.1,
    assoc_iou_thresh=0.1,
    trk_assoc_iou_thresh=0.5,
    new_det_thresh=0.7,
    recondition_on_trk_masks=True,
    recondition_every_nth_frame=16,
    high_conf_thresh=0.8,
    high_iou_thresh=0.8,
    hotstart_delay=15,
    hotstart_unmatch_thresh=8,
    hotstart_dup_thresh=8,
    suppress_unmatched_only_within_hotstart=True,
    init_trk_keep_alive=30,
    max_trk_keep_alive=30,
    min_trk_keep_alive=-1,
    suppress_overlapping_based_on_recent_occlusion_threshold=0.7,
    decrease_trk_keep_alive_for_empty_masklets=False,
    fill_hole_area=16,
    max_num_objects=10000,
)


def past(now: int, conditioning: tuple[int, ...], quality: dict[int, float], backwards: bool = False) -> ObjectPast:
    return ObjectPast(now, 99 if backwards else 0, conditioning, quality, backwards)


# ---- what is recalled (V1, V8)


def test_after_an_occlusion_the_last_good_memories_are_recalled() -> None:
    """V1: object 0 was born in frame 2 and hidden in 20..27; the last frame counts always."""
    quality = {frame: 0.0 if 20 <= frame < 28 else 0.9 for frame in range(3, 28)}
    chosen = recall(past(28, (2,), quality), SIZES, OFFICIAL)
    assert chosen.conditioning == (2,)
    assert chosen.memories == ((6, 15), (5, 16), (4, 17), (3, 18), (2, 19), (1, 27))
    # pointers: one less than what was selected (15 good ones and the last), their time is their rank
    assert chosen.pointers == ((26, 2), (1, 27), *((rank, 21 - rank) for rank in range(2, 16)))
    plain = recall(past(28, (2,), quality), SIZES, LIBRARY)
    assert plain.memories == tuple((28 - frame, frame) for frame in range(22, 28))


def test_the_first_frame_is_no_good_memory_and_a_weak_one_is_none() -> None:
    quality = {0: 0.9, 1: 0.009, 2: 0.011, 3: 0.9}
    assert recall(past(4, (), quality), SIZES, OFFICIAL).memories == ((2, 2), (1, 3))
    assert recall(past(0, (), {}), SIZES, OFFICIAL).memories == ()


def test_those_born_together_are_judged_by_their_mean_score_times_their_mean_iou() -> None:
    """V1, as Meta's code computes it: not by the mean of the products, but for frames that were conditioning ones."""
    pointer = torch.zeros(1)
    litter = [Memory(pointer, seen=0.8, iou=0.0), Memory(pointer, seen=0.0, iou=0.6)]
    assert effective_iou(litter) == pytest.approx(0.4 * 0.3)
    assert effective_iou(litter[:1]) == 0.0
    downgraded = [replace(one, downgraded=True) for one in litter]
    assert effective_iou(downgraded) == 0.0


def test_a_conditioning_frame_just_before_takes_its_rank_and_is_not_recalled_twice() -> None:
    quality = dict.fromkeys(range(1, 10), 0.9)
    chosen = recall(past(11, (0, 10), quality), SIZES, OFFICIAL)
    assert chosen.memories == (
        (6, 5),
        (5, 6),
        (4, 7),
        (3, 8),
        (2, 9),
    )  # rank 1 is frame 10, attended to anyway
    assert (1, 10) in chosen.pointers and chosen.pointers.count((1, 10)) == 1


def test_pointers_are_of_the_four_conditioning_frames_that_are_attended_to() -> None:
    """V8"""
    conditioning = (0, 16, 32, 48, 64, 80)
    quality = {frame: 0.9 for frame in range(1, 90) if frame not in conditioning}
    chosen = recall(past(90, conditioning, quality), SIZES, OFFICIAL)
    assert chosen.conditioning == (80, 64, 48, 32)
    assert chosen.pointers[:4] == ((10, 80), (26, 64), (42, 48), (58, 32)) and len(chosen.pointers) == 4 + 14
    every = recall(past(90, conditioning, quality), SIZES, replace(OFFICIAL, few_pointers=False))
    assert [frame for _, frame in every.pointers[:6]] == list(conditioning)


def test_backwards_later_frames_come_before() -> None:
    quality = dict.fromkeys(range(31, 40), 0.9)
    chosen = recall(past(30, (40,), quality, backwards=True), SIZES, OFFICIAL)
    assert chosen.memories == tuple((rank, 30 + rank) for rank in range(6, 0, -1))
    assert chosen.pointers[0] == (10, 40)
    assert closest(past(30, (0, 10, 20, 40, 50), {}), 4) == [20, 40, 10, 50]


def as_sets(chosen: Recall) -> tuple[set[object], ...]:
    """Attention does not care for the order."""
    return set(chosen.conditioning), set(chosen.memories), set(chosen.pointers)


@pytest.mark.parametrize("rules", [OFFICIAL, LIBRARY, replace(LIBRARY, good_memories=True)])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_forgotten_is_never_recalled(rules: Rules, seed: int) -> None:
    """A life of 120 frames with occlusions and confirmations: forgetting changes no recall."""
    rng = np.random.default_rng(seed)
    full: dict[int, float] = {}
    kept: dict[int, float] = {}
    memories: set[int] = set()
    conditioning, left = [0], [0]
    good = True
    for now in range(1, 120):
        good = good if rng.random() < 0.85 else not good
        everything = recall(past(now, tuple(conditioning), full), SIZES, rules)
        assert as_sets(recall(past(now, tuple(left), kept), SIZES, rules)) == as_sets(everything)
        spatial = {frame for _, frame in everything.memories} | set(everything.conditioning)
        assert spatial <= memories | {0}
        if now % 16 == 0 and good:
            conditioning.append(now)
            left.append(now)
        else:
            full[now] = kept[now] = 0.8 if good else 0.0
        keep = worth_keeping(past(now, tuple(left), kept), SIZES, rules, settled=now > 15)
        kept = {frame: value for frame, value in kept.items() if frame in keep.pointers}
        left = [frame for frame in left if frame in keep.pointers]
        memories = ({*memories, now} & keep.memories) | (keep.memories & {now})
    assert len(kept) < 40


# ---- what matches (V9, V10)


def square(x: int, y: int, side: int) -> torch.Tensor:
    logits = torch.full((20, 20), -5.0)
    logits[y : y + side, x : x + side] = 5.0
    return logits


def found(*detections: tuple[torch.Tensor, float, int], unasked: frozenset[int] = frozenset()) -> FrameDetections:
    masks = torch.stack([mask for mask, _, _ in detections]) if detections else torch.empty((0, 20, 20))
    scores = np.array([score for _, score, _ in detections], np.float32)
    phrases = np.array([phrase for _, _, phrase in detections], np.int64)
    border = np.array([bool((mask[0] > 0).any()) for mask, _, _ in detections], bool)
    return FrameDetections(masks, (masks > 0).numpy(), scores, phrases, border, unasked)


def match(found: FrameDetections, masks: torch.Tensor, *rest: Any) -> FrameMatches:
    return matching_tracks.match(found, (masks > 0).numpy(), *rest)


def test_ambiguous_matches_count_for_nothing() -> None:
    """V9: one detection on two objects, and one object under two detections."""
    one = square(2, 2, 10)
    twice = match(found((one, 0.9, 0)), torch.stack((one, one)), [0, 0], SETTINGS, OFFICIAL)
    assert twice.matched == {0: []} and twice.sure == {} and twice.born == [] and twice.unmatched == []
    both = match(found((one, 0.9, 0), (one, 0.95, 0)), torch.stack((one,)), [0], SETTINGS, OFFICIAL)
    assert both.matched == {0: [], 1: []} and both.sure == {}
    old = replace(OFFICIAL, clear_matches_only=False)
    assert match(found((one, 0.9, 0)), torch.stack((one, one)), [0, 0], SETTINGS, old).matched == {0: [0, 1]}
    clear = match(found((one, 0.9, 0)), torch.stack((one, square(14, 14, 4))), [0, 0], SETTINGS, OFFICIAL)
    assert clear.matched == {0: [0]} and clear.sure == {0: 0} and clear.unmatched == [1]


def test_a_class_is_born_as_well_beside_others_as_alone() -> None:
    """V10: its first detections need the detector's threshold only, whatever else is tracked."""
    new, tracked = square(12, 12, 6), torch.stack((square(2, 2, 6),))
    assert match(found((new, 0.55, 1)), tracked, [0], SETTINGS, OFFICIAL).born == [0]
    assert match(found((new, 0.55, 1)), tracked, [0], SETTINGS, LIBRARY).born == []
    assert match(found((new, 0.55, 0)), tracked, [0], SETTINGS, OFFICIAL).born == []  # its own phrase has a track
    assert match(found((new, 0.7, 0)), tracked, [0], SETTINGS, OFFICIAL).born == [0]
    nothing = torch.empty((0, 20, 20))
    assert match(found((new, 0.55, 0)), nothing, [], SETTINGS, LIBRARY).born == [0]


def test_no_other_rule_looks_across_phrases() -> None:
    """FrameMatches at any threshold, the limit of objects, overlap and shrinking: other phrases change nothing."""
    one, other = square(2, 2, 10), square(12, 12, 6)
    zero = replace(SETTINGS, assoc_iou_thresh=0.0, trk_assoc_iou_thresh=0.0, high_iou_thresh=0.0)
    across = match(found((one, 0.9, 1)), torch.stack((one,)), [0], zero, OFFICIAL)
    assert across.matched == {0: []} and across.sure == {} and across.born == [0] and across.unmatched == [0]
    full = replace(SETTINGS, max_num_objects=1)
    assert match(found((other, 0.9, 1)), torch.stack((one,)), [0], full, OFFICIAL).born == [0]
    assert match(found((other, 0.9, 0)), torch.stack((one,)), [0], full, OFFICIAL).born == []
    assert match(found((other, 0.9, 1)), torch.stack((one,)), [0], full, LIBRARY).born == []
    masks = (torch.stack((one, one)) > 0).numpy()
    assert recently_hidden(masks, [3, 5], [0, 0], 0.7, back=False).tolist() == [False, True]
    assert recently_hidden(masks, [3, 5], [0, 0], 0.7, back=True).tolist() == [True, False]
    assert recently_hidden(masks, [3, 5], [0, 1], 0.7, back=False).tolist() == [False, False]
    assert recently_hidden(masks, [-1, 5], [0, 0], 0.7, back=False).tolist() == [False, False]  # one never was hidden
    weak = torch.stack((one, one * 0.5))[:, None]
    assert (without_shrunk(weak, [0, 0]) > 0).flatten(1).any(1).tolist() == [True, False]
    assert (without_shrunk(weak, [0, 1]) > 0).flatten(1).any(1).tolist() == [True, True]


def test_a_phrase_that_was_not_asked_says_nothing_of_its_objects() -> None:
    tracked = torch.stack((square(2, 2, 6),))
    assert match(found(), tracked, [0], SETTINGS, OFFICIAL).unmatched == [0]
    assert match(found(unasked=frozenset({0})), tracked, [0], SETTINGS, OFFICIAL).unmatched == []


def test_masks_kept_apart_share_no_pixel() -> None:
    both = torch.stack((square(2, 2, 10), 2 * square(6, 6, 10)))[:, None]
    inside = apart(both) > 0
    assert not (inside[0] & inside[1]).any() and (inside[0] | inside[1]).equal((both > 0).any(0))


# ---- lives


def lived(settings: TrackSettings, unmatched: list[bool]) -> tuple[Lives, list[tuple[set[int], frozenset[int]]]]:
    """Object 0 from frame 0 on, without a detection where `unmatched`."""
    lives, said = Lives(settings), []
    lives.update(0, [], FrameMatches([0], [], [], {}, {}), [0])
    for now, without in enumerate(unmatched, start=1):
        matches = FrameMatches([], [0], [], {}, {}) if without else FrameMatches([], [], [], {0: [0]}, {})
        said.append(lives.update(now, [0], matches, []))
    return lives, said


def test_an_object_without_detections_is_taken_back_while_it_is_young_only() -> None:
    _, said = lived(SETTINGS, [True] * 8)
    assert [gone for gone, _ in said] == [set()] * 7 + [{0}]
    lives, said = lived(SETTINGS, [False] * 10 + [True] * 40)
    assert not lives.removed and not any(hidden for _, hidden in said)


def test_hiding_by_keep_alive_is_an_extra() -> None:
    settings = TrackSettings.of(SimpleNamespace(**vars_of(SETTINGS)), Rules.of("official", ["hide-lost"]))
    _, said = lived(settings, [False] * 10 + [True] * 9 + [False] * 2)
    assert [bool(hidden) for _, hidden in said] == [False] * 17 + [True] * 3 + [False]  # up to 8, down 9, up 2


def test_confirmation_takes_three_frames_in_a_row_and_is_for_life() -> None:
    for unmatched, confirmed in (
        ([False] * 2, True),
        ([False, True, False, False], False),
        ([False] * 2 + [True], True),
    ):
        lives, _ = lived(SETTINGS, unmatched)
        assert lives.unconfirmed([0]) == (frozenset() if confirmed else {0})


# ---- SAM 3.1's rules


def vars_of(settings: TrackSettings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in TrackSettings.__annotations__}


def test_the_extras_are_off_in_both_forms_and_on_one_by_one() -> None:
    assert Rules.of("official") == OFFICIAL == Rules()
    for extra in EXTRAS:
        name = extra.replace("-", "_")
        assert not getattr(OFFICIAL, name) and not getattr(LIBRARY, name)
        assert Rules.of("official", [extra]) == replace(OFFICIAL, **{name: True})


def test_birth_at_065_is_for_the_first_of_a_phrase_too() -> None:
    rules = Rules.of("official", ["birth-065"])
    settings = TrackSettings.of(SimpleNamespace(**vars_of(SETTINGS)), rules)
    nothing = torch.empty((0, 20, 20))
    scores = [(square(2, 2, 4), 0.64, 0), (square(10, 10, 4), 0.66, 0)]
    assert match(found(*scores), nothing, [], settings, rules).born == [1]


def test_nothing_is_born_at_the_border_where_that_is_asked() -> None:
    rules = Rules.of("official", ["no-border-births"])
    nothing = torch.empty((0, 20, 20))
    detections = found((square(2, 0, 4), 0.9, 0), (square(10, 10, 4), 0.9, 0))
    assert match(detections, nothing, [], SETTINGS, rules).born == [1]
    assert match(detections, nothing, [], SETTINGS, OFFICIAL).born == [0, 1]
