"""The demo model's examination: held-out scenes, questions of every kind, and what the answers are worth.

An answer is the set of masks whose score is at least 0.5, compared with the truth at the photo's own size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import lessons
import numpy as np
import numpy.typing as npt
from lessons import NEVER_NAMED, UNSEEN_STRANGERS, Question, Sample, Tokenize

from sam3label.core.matching import optimal
from sam3label.demo.shapes import Scene, make_scene

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Sam3Model

EXAM_SEEDS = 2**32  # far from the training scenes' seeds and from those a user is likely to take
SIZES = ((240, 320), (288, 288), (270, 480), (320, 240))
Masks = npt.NDArray[np.bool_]  # [n, H, W]


@dataclass(frozen=True, slots=True)
class Sheet:
    """One picture of the examination with its questions; what lies left of `start` (pixels) is not judged."""

    scene: Scene
    sample: Sample
    questions: tuple[Question, ...]
    start: int = 0


@dataclass(slots=True)
class Tally:
    """Counts over questions of one kind."""

    found: int = 0
    wrong: int = 0
    missed: int = 0
    ious: list[float] = field(default_factory=list)
    presence: list[tuple[bool, bool]] = field(default_factory=list)  # (said, is)

    def summary(self) -> dict[str, float]:
        """Precision, recall, F1 at mask IoU 0.5, mean IoU of the matches, presence MCC, number of questions."""
        return {
            "f1": 2 * self.found / max(1, 2 * self.found + self.wrong + self.missed),
            "precision": self.found / max(1, self.found + self.wrong),
            "recall": self.found / max(1, self.found + self.missed),
            "mean_iou": float(np.mean(self.ious)) if self.ious else 0.0,
            "presence_mcc": matthews(self.presence),
            "negative_share": sum(not truth for _, truth in self.presence) / max(1, len(self.presence)),
            "questions": len(self.presence),
        }


def matthews(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Matthews correlation of (said, is) pairs, in [-1, 1]; 0 where one side never varies."""
    tp, fp, fn, tn = (pairs.count(key) for key in ((True, True), (True, False), (False, True), (False, False)))
    scale = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return (tp * tn - fp * fn) / scale if scale else 0.0


def score(predicted: Masks, truth: Masks, threshold: float = 0.5) -> tuple[int, list[float]]:
    """How many predictions find a target of their own (mask IoU >= threshold), and the IoUs of those."""
    if not len(predicted) or not len(truth):
        return 0, []
    iou = _iou(predicted, truth)
    rows, columns = optimal(iou)  # optimal, as evaluate's own figures
    good = [float(value) for value in iou[rows, columns] if value >= threshold]
    return len(good), good


def _iou(a: Masks, b: Masks) -> npt.NDArray[np.float32]:
    flat, other = (masks.reshape(len(masks), -1).astype(np.float32) for masks in (a, b))
    shared = flat @ other.T
    overlap: npt.NDArray[np.float32] = shared / np.maximum(flat.sum(1)[:, None] + other.sum(1)[None] - shared, 1)
    return overlap


def without_doubles(masks: Masks, nms: float) -> Masks:
    """Masks, best first, without those that overlap a better one by more than `nms`."""
    if nms >= 1 or len(masks) < 2:
        return masks
    overlap = _iou(masks, masks)
    kept: list[int] = []
    for i in range(len(masks)):
        if all(overlap[i, j] <= nms for j in kept):
            kept.append(i)
    return masks[kept]


def sheets(kind: str, count: int, side: int, cells: int, seed: int = EXAM_SEEDS) -> list[Sheet]:
    """`count` pictures with questions of one kind: words, combination, boxes, both, both_words, counter or canvas."""
    made: list[Sheet] = []
    number = 0
    while len(made) < count:
        rng = np.random.default_rng((seed, number))
        scene = make_scene(seed + number, SIZES[number % len(SIZES)])
        number += 1
        sheet = _canvas_sheet(rng, scene, seed + number, side, cells) if kind == "canvas" else None
        if kind != "canvas":
            questions = tuple(_questions(kind, rng, scene))
            sheet = Sheet(scene, lessons.to_sample(scene, side, cells), questions) if questions else None
        if sheet is not None:
            made.append(sheet)
    return made


def _questions(kind: str, rng: np.random.Generator, scene: Scene) -> Iterator[Question]:
    things = scene.things
    if kind == "words":  # 40 % negative over all pictures, the empty ones included
        for _ in range(10 if things else 2):
            yield lessons.ask_words(rng, things, bool(things) and bool(rng.random() < 0.612), UNSEEN_STRANGERS)
    elif kind == "combination":
        for color, shape in NEVER_NAMED:
            answer = tuple(i for i, thing in enumerate(things) if (thing.color, thing.shape) == (color, shape))
            near = any(thing.color == color or thing.shape == shape for thing in things)
            if answer or (near and rng.random() < 0.1):
                yield Question(f"{color} {shape}", answer=answer)
    elif things:
        for _ in range(3):
            question = lessons.ask_boxes(rng, things) if kind == "boxes" else lessons.ask_both(rng, things)
            label = 0 if kind == "counter" else 1
            if kind == "boxes" or (question.exemplars[0][1] == label and question.phrase != lessons.VISUAL):
                yield replace(question, exemplars=()) if kind == "both_words" else question


def _canvas_sheet(rng: np.random.Generator, target: Scene, seed: int, side: int, cells: int) -> Sheet | None:
    """Three references of one kind from other photos, boxes alone."""
    if not target.things:
        return None
    name = str(rng.choice(sorted({thing.name for thing in target.things})))
    found: list[tuple[Scene, int]] = []
    other = seed + 2**20
    while len(found) < 3:
        scene = make_scene(other, SIZES[other % len(SIZES)])
        other += 1
        numbers = [k for k, thing in enumerate(scene.things, start=1) if thing.name == name]
        if numbers:
            found.append((scene, numbers[0]))
    canvas, wanted = lessons.compose_canvas(target, found, share=0.3, margin=0.25)
    answer = tuple(i for i, thing in enumerate(canvas.things) if thing.name == name)
    question = Question(lessons.VISUAL, tuple((i, 1) for i in wanted), answer)
    sample = lessons.to_sample(canvas, side, cells)
    return Sheet(canvas, sample, (question,), start=canvas.size_hw[1] - target.size_hw[1])


def examine(
    model: Sam3Model, tokenize: Tokenize, paper: Sequence[Sheet], threshold: float = 0.5, nms: float = 1.0
) -> dict[str, float]:
    """Ask the model every question of the sheets and summarise its answers.

    With `nms` below 1, an answer whose mask overlaps a better one's by more (IoU) is left out, as when labels are
    selected; the model itself is meant to do without.
    """
    import torch

    from sam3label.train.detector import forward

    tally = Tally()
    for first in range(0, len(paper), 8):
        some = paper[first : first + 8]
        batch = lessons.collate([(sheet.sample, sheet.questions) for sheet in some], tokenize).to(model.device)
        with torch.no_grad():
            outputs = forward(model, batch, torch.arange(len(batch), device=model.device))
        presence = outputs.presence[-1].sigmoid()
        scores = outputs.logits[-1].sigmoid() * presence[:, None]
        asked = [(sheet, question) for sheet in some for question in sheet.questions]
        for pair, (sheet, question) in enumerate(asked):
            order = scores[pair].argsort(descending=True)
            masks = _full_size(outputs.masks[pair, -1, order[scores[pair, order] >= threshold]], sheet)
            _mark(tally, sheet, question, without_doubles(masks, nms), bool(presence[pair] >= 0.5))
    return tally.summary()


def _full_size(logits: Tensor, sheet: Sheet) -> Masks:
    """Mask logits at the photo's size, thresholded at 0; what is mostly left of the judged part is dropped."""
    from torch.nn import functional as F

    if not len(logits):
        return np.zeros((0, *sheet.scene.size_hw), bool)
    whole = F.interpolate(logits[None], sheet.scene.size_hw, mode="bilinear", align_corners=False)[0] > 0
    masks = whole.cpu().numpy()
    left = masks[..., : sheet.start].sum((1, 2)) * 2 > masks.sum((1, 2))
    kept: Masks = masks[~left]
    return kept


def _mark(tally: Tally, sheet: Sheet, question: Question, masks: Masks, said: bool) -> None:
    wanted = [sheet.scene.mask(i + 1) for i in question.answer]
    truth = np.array([mask for mask in wanted if not mask[:, : sheet.start].any()])
    good, ious = score(masks, truth)
    tally.found += good
    tally.wrong += len(masks) - good
    tally.missed += len(truth) - good
    tally.ious += ious
    tally.presence.append((said, bool(len(question.answer))))
