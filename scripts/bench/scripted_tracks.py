"""Videos that exist as decisions only: what a detector finds of a phrase in each frame, and what a tracker answers.

Ellipses wander over a small grid. Detections come and go, come twice, or cover two things at once; tracks stay with
their thing, go over to another, stand still, or lose it. What a tracker answers depends on which object is asked and on
nothing else, so two loops are told the same as long as they decide the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TIES = (0.65, 0.7, 0.8)  # scores that are thresholds
HABITS, SHARES = ("faithful", "goes over", "stands still", "fickle"), (0.5, 0.2, 0.15, 0.15)


@dataclass(frozen=True)
class Found:
    """The detections of a phrase in a frame: logits [K, h, w], scores [K], boxes x1 y1 x2 y2 in [0, 1] [K, 4]."""

    masks: Tensor
    scores: Tensor
    boxes_xyxy: Tensor
    things: tuple[int, ...]  # what each is of


@dataclass(frozen=True)
class Answer:
    """What a tracker says of an object in a frame: logits [h, w], the logit of its score, and the expected IoU."""

    mask: Tensor
    score: float
    iou: float


@dataclass(frozen=True)
class _Thing:
    path: npt.NDArray[np.float64]  # [frames, 2]
    radii: npt.NDArray[np.float64]  # [2]
    seen: npt.NDArray[np.bool_]  # [frames]


class Story:
    """What is to be seen of one phrase."""

    def __init__(self, seed: int, phrase: int, frames: int, side: int) -> None:
        self.key, self.side = (seed, phrase), side
        rng = np.random.default_rng(self.key)
        self.things = [_thing(rng, frames, side) for _ in range(int(rng.integers(2, 6)))]
        self.first = int(rng.choice((0, 0, 1, 7))) if phrase else 0  # a phrase may have nothing to show at first
        self.found = [self._found(rng, now) for now in range(frames)]

    def answer(self, number: int, born: int, score: float, now: int) -> Answer:
        """Say what the tracker sees of the phrase's object `number`, born in a frame of a detection of this score."""
        habits = np.random.default_rng((*self.key, number, born, 1))
        chance = np.random.default_rng((*self.key, number, born, now))
        own, other = self._of(born, score), int(habits.integers(len(self.things)))
        habit, until = str(habits.choice(HABITS, p=SHARES)), born + int(habits.integers(2, 12))
        thing = self.things[other if habit == "goes over" and now >= until else own]
        lost = not thing.seen[now] or (habit == "fickle" and chance.random() < 0.4)
        where = thing.path[born if habit == "stands still" else now] + chance.normal(0, 0.15, 2)
        mask = ellipse(self.side, where, thing.radii * chance.uniform(0.97, 1.03, 2))
        kind = chance.random()
        if lost and kind < 0.8:
            return Answer(mask, float(chance.uniform(-6, -0.5)), float(chance.random()))
        if kind < 0.06:  # there, by its score, and without a pixel
            return Answer(torch.full_like(mask, -3.0), 2.0, 0.5)
        if kind < 0.14:  # too poor to be remembered
            return Answer(mask, 0.02, 0.3)
        known = float(chance.uniform(0.1, 0.8)) if kind < 0.25 else float(chance.uniform(0.8, 8))
        return Answer(mask, known, float(chance.uniform(0.2, 1)))

    def _of(self, born: int, score: float) -> int:
        found = self.found[born]
        return found.things[int((found.scores - score).abs().argmin())]

    def _found(self, rng: np.random.Generator, now: int) -> Found:
        drawn: list[tuple[Tensor, int]] = []
        for number, thing in enumerate(self.things if now >= self.first else []):
            if not thing.seen[now] or rng.random() < 0.15:
                continue
            for _ in range(2 if rng.random() < 0.12 else 1):
                spread = 0.6 if rng.random() < 0.2 else 0.2
                size = thing.radii * (0.5 if rng.random() < 0.06 else rng.uniform(0.96, 1.04, 2))
                drawn.append((ellipse(self.side, thing.path[now] + rng.normal(0, spread, 2), size), number))
        if len(drawn) > 1 and rng.random() < 0.12:  # over two things at once
            drawn.append((torch.maximum(drawn[0][0], drawn[-1][0]), drawn[0][1]))
        if now >= self.first and rng.random() < 0.08:  # of nothing
            drawn.append((ellipse(self.side, rng.uniform(0, self.side, 2), rng.uniform(2, 6, 2)), 0))
        if drawn and not now and rng.random() < 0.4:  # around all: what was found before it loses its pixels
            whole = self.side / 2
            drawn.append((ellipse(self.side, np.array((whole, whole)), np.array((whole, whole))), 0))
        if drawn and rng.random() < 0.03:  # without a pixel
            drawn.append((torch.full_like(drawn[0][0], -3.0), 0))
        scores = [rng.uniform(0.51, 1) for _ in drawn]
        if drawn and rng.random() < 0.3:
            scores[int(rng.integers(len(drawn)))] = rng.choice(TIES)  # one: no two scores of a frame are equal
        masks = torch.stack([mask for mask, _ in drawn]) if drawn else torch.empty((0, self.side, self.side))
        boxes = torch.tensor([_box(mask) for mask in masks]).reshape(-1, 4)
        return Found(masks, torch.tensor(scores, dtype=torch.float32), boxes, tuple(thing for _, thing in drawn))


def ellipse(side: int, center: npt.NDArray[np.float64], radii: npt.NDArray[np.float64]) -> Tensor:
    """Return logits [side, side] of an ellipse."""
    places = torch.arange(side, dtype=torch.float32)
    (x, y), (a, b) = center.tolist(), radii.tolist()
    far = ((places[None] - x) / a) ** 2 + ((places[:, None] - y) / b) ** 2
    logits: Tensor = (4 * (1 - far)).clamp(min=-8)
    return logits


def _thing(rng: np.random.Generator, frames: int, side: int) -> _Thing:
    radii = rng.uniform(3, side / 4, 2)
    speed = rng.uniform(-0.5, 0.5, 2)
    path = rng.uniform(0, side, 2) + np.arange(frames)[:, None] * speed
    path = side - np.abs(side - path % (2 * side))  # it turns at an edge
    seen = np.ones(frames, np.bool_)
    for _ in range(int(rng.integers(0, 3))):
        start = int(rng.integers(1, frames))
        seen[start : start + int(rng.integers(3, 12))] = False
    return _Thing(path, radii, seen)


def _box(mask: Tensor) -> list[float]:
    rows, columns = torch.nonzero(mask > 0, as_tuple=True)
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0]
    side = mask.shape[-1]
    return [float(columns.min()) / side, float(rows.min()) / side, (float(columns.max()) + 1) / side,
            (float(rows.max()) + 1) / side]  # fmt: skip


def settings_of(seed: int) -> tuple[dict[str, Any], dict[str, bool]]:
    """Return (thresholds by the name that both loops have for them, SAM 3.1's rules by our names) of a sequence.

    Those that a threshold stays at officially (0.8 for sure detections) stay; the rest is set so that it comes up.
    """
    rng = np.random.default_rng((seed, 99))
    hide = bool(rng.random() < 0.4)
    alive = (0, 8, -4) if hide else (30, 30, -1)
    settings: Mapping[str, Any] = {
        "score_threshold_detection": 0.5,
        "det_nms_thresh": 0.0,  # what is scripted is what is left
        "assoc_iou_thresh": 0.1,
        "trk_assoc_iou_thresh": 0.5,
        "new_det_thresh": 0.7,
        "hotstart_delay": int(rng.choice((6, 10, 15))),
        "hotstart_unmatch_thresh": int(rng.choice((3, 5))),
        "hotstart_dup_thresh": int(rng.choice((2, 4))),
        "recondition_every_nth_frame": int(rng.choice((2, 3, 4, 16), p=(0.3, 0.3, 0.3, 0.1))),
        "suppress_unmatched_only_within_hotstart": not hide,
        "init_trk_keep_alive": alive[0],
        "max_trk_keep_alive": alive[1],
        "min_trk_keep_alive": alive[2],
        "decrease_trk_keep_alive_for_empty_masklets": bool(rng.random() < 0.3),
        "suppress_overlapping_based_on_recent_occlusion_threshold": 0.7,
        "fill_hole_area": int(rng.choice((0, 4, 16))),
        "max_num_objects": int(rng.choice((10_000, 3), p=(0.8, 0.2))),
    }
    extras = {"hide_lost": hide, "no_border_births": bool(rng.random() < 0.3), "confirm": bool(rng.random() < 0.4)}
    return dict(settings), extras
