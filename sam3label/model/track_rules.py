"""The rules by which objects are tracked: SAM 3's own ("official") or those of `transformers`' loop.

The two loops run the same weights and differ in what is remembered and when an object is born. Each difference is a
field of `Rules`, so that each can be tested and measured alone; users choose one of the two sets, official by default,
because the weights were trained with it. What the fields say was read in facebookresearch/sam3 at 96914d2 (July 2026),
and what comes of them compared with that code (`scripts/bench/bench_official_tracking.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

TrackerForm = Literal["official", "transformers"]
TrackingExtra = Literal["nms-smaller", "no-border-births", "confirm", "birth-065", "hide-lost"]
EXTRAS: tuple[TrackingExtra, ...] = get_args(TrackingExtra)

BORDER = 0.025  # of a side: an object whose box's center is closer to an edge is at the border
CONFIRM_FRAMES = 3  # in a row with a detection before an object is believed
GOOD_ENOUGH = 0.01  # effective IoU over which a frame is worth remembering


@dataclass(frozen=True, slots=True)
class Rules:
    """What is done as in the official loop (True), and otherwise as in `transformers`'."""

    # V1: memories and pointers are those of the last good frames, not of the last frames
    good_memories: bool = True
    # V2: a new object's first mask is its logits over 0 at four times their size, not over 0.5 at theirs
    first_mask_whole: bool = True
    # V3: a new object's pointer is the single-mask token's, not the best of three others'
    first_pointer_single: bool = True
    # V4: of objects born together, later ones take pixels from earlier ones before the first memory
    first_masks_apart: bool = True
    # a birth leaves the memories of other objects alone; else they are made again, from masks before cleaning
    births_leave_others: bool = True
    # V5: the first frame is gone through twice
    first_frame_twice: bool = True
    # V6: what keeps masks apart before they are remembered is applied at the memory's resolution
    fine_overlap: bool = True
    # V7: a sure detection gives the pointer, of all born together that frame is kept; the tracker's mask is given out
    pointer_from_detection: bool = True
    # V8: pointers of the conditioning frames that are attended to, not of all
    few_pointers: bool = True
    # V9: a detection on several objects, or an object under several detections, confirms nothing
    clear_matches_only: bool = True
    # V10: births look at the objects of their own phrase alone
    phrase_by_phrase: bool = True
    # V12: frames are resized bicubically, as videos are officially; photos never
    bicubic: bool = True
    # of SAM 3.1's loop, off in both forms:
    nms_smaller: bool = False  # duplicates by the share of the smaller mask
    no_border_births: bool = False  # nothing is born at the border
    # an object is shown once detections confirm it in three frames in a row; a frame gone through twice counts twice
    confirm: bool = False
    birth_065: bool = False  # a birth takes a score of 0.65, the first of a phrase as well
    hide_lost: bool = False  # an object that no detection has confirmed for long is hidden

    @classmethod
    def of(cls, form: TrackerForm, extras: Sequence[TrackingExtra] = ()) -> Rules:
        """Return the rules of a form, with some of SAM 3.1's."""
        chosen = {extra.replace("-", "_"): True for extra in extras}
        if form == "official":
            return cls(**chosen)
        off = {one.name: False for one in fields(cls)}
        return cls(**off | chosen)


OFFICIAL = Rules()


@dataclass(frozen=True, slots=True)
class TrackSettings:
    """The thresholds of tracking, by their names in a checkpoint's `config.json`."""

    score_threshold_detection: float
    det_nms_thresh: float
    assoc_iou_thresh: float
    trk_assoc_iou_thresh: float
    new_det_thresh: float
    recondition_on_trk_masks: bool
    recondition_every_nth_frame: int
    high_conf_thresh: float
    high_iou_thresh: float
    hotstart_delay: int
    hotstart_unmatch_thresh: int
    hotstart_dup_thresh: int
    suppress_unmatched_only_within_hotstart: bool
    init_trk_keep_alive: int
    max_trk_keep_alive: int
    min_trk_keep_alive: int
    suppress_overlapping_based_on_recent_occlusion_threshold: float
    decrease_trk_keep_alive_for_empty_masklets: bool
    fill_hole_area: int
    max_num_objects: int

    @classmethod
    def of(cls, config: Any, rules: Rules) -> TrackSettings:
        """Return the settings of a checkpoint's config, changed where SAM 3.1's rules ask for it."""
        settings = cls(**{one.name: getattr(config, one.name) for one in fields(cls)})
        if rules.birth_065:
            settings = replace(settings, new_det_thresh=0.65)
        if rules.hide_lost:
            settings = replace(
                settings,
                suppress_unmatched_only_within_hotstart=False,
                init_trk_keep_alive=0,
                max_trk_keep_alive=8,
                min_trk_keep_alive=-4,
            )
        return settings
