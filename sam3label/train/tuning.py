"""Fine-tuning: one step, made so that how many images fit into memory changes nothing but the time it takes.

Losses are sums over all of a step's images, divided by what the whole step has of each kind; gradients of parts of it
add up. Frozen parts keep nothing for the way back. Dropout stays off.

Shape legend: B images, P image-prompt pairs, L decoder layers, Q queries, N_b objects of image b, S pairs that go
through the mask head, M masks that are compared, K points of each, F x F cells of the truth, H x W mask cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam3label.errors import ConfigError, TuningStoppedError
from sam3label.model.memory import is_out_of_memory
from sam3label.train import losses
from sam3label.train.detector import LossWeights, Outputs, Precision, autocast, forward, learning_rate_factor
from sam3label.train.methods import Method, prepare, trained
from sam3label.train.samples import Lesson, Teacher, joined

MASKED_AN_IMAGE = 6  # pairs of an image that go through the mask head
POINTS = 2048  # at which each mask is compared
_OVERSAMPLED, _UNSURE = 3, 0.75  # points are drawn three times over; so many of those kept are where the mask is unsure
ABOUT_IOU = 0.5  # an answer that covers an object so far is about that object
_GROWN = 3.0  # times the loss of the beginning at which a training has diverged
_SMOOTH = 0.95


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a model is fine-tuned. The rate is that of adapters; weights that exist already take a share of it."""

    method: Method = "lora"
    rank: int = 16
    steps: int = 600
    rate: float = 2e-3
    images: int = 8
    pairs_an_image: int = 10
    clip: float = 1.0
    weight_decay: float = 0.01
    average: float = 0.99  # of the moving average of the weights, which is what is written
    precision: Precision = "auto"
    recompute: bool = False
    seed: int = 0
    weights: LossWeights = field(default_factory=lambda: LossWeights(mask_focal=60.0, mask_dice=5.0))

    def __post_init__(self) -> None:
        wrong = [name for name in ("rank", "steps", "images", "pairs_an_image", "rate") if getattr(self, name) <= 0]
        if wrong:
            raise ConfigError("\n".join(f"{name}: must be above 0, got {getattr(self, name)}" for name in wrong))


_SHARE = {"lora": 0.25, "heads": 1.0, "full": 0.2}  # of the rate that weights take which exist already


@dataclass(frozen=True, slots=True)
class StepTotals:
    """What a whole step has of each kind: what its sums are divided by."""

    objects: int
    pairs: int
    denied: int
    masks: int
    masked: int

    @classmethod
    def of(cls, lessons: Sequence[Lesson]) -> StepTotals:
        """Count over lessons of one image each."""
        objects = pairs = denied = drawn = masked = 0
        for lesson in lessons:
            for target, refused in zip(lesson.batch.targets, lesson.denied.tolist(), strict=True):
                denied += len(target) if refused else 0
                objects += 0 if refused else len(target)
                pairs += not refused
            chosen = masked_pairs(lesson)
            masked += len(chosen)
            drawn += sum(int(lesson.has_mask[0][lesson.batch.targets[pair]].sum()) for pair in chosen.tolist())
        return cls(max(objects, 1), max(pairs, 1), max(denied, 1), max(drawn, 1), max(masked, 1))


def masked_pairs(lesson: Lesson) -> Tensor:
    """Return the pairs whose masks are drawn, int64 [S]: the first of each image that have masks to learn from."""
    taken: dict[int, int] = {}
    chosen = []
    images = lesson.batch.image_of.tolist()
    for pair, (image, refused) in enumerate(zip(images, lesson.denied.tolist(), strict=True)):
        target = lesson.batch.targets[pair]
        if refused or not len(target) or not bool(lesson.has_mask[image][target].any()):
            continue
        if taken.get(image, 0) < MASKED_AN_IMAGE:
            taken[image] = taken.get(image, 0) + 1
            chosen.append(pair)
    return torch.tensor(chosen, dtype=torch.long, device=lesson.batch.pixels.device)


def answer(model: Any, lesson: Lesson, masked: Tensor) -> tuple[Outputs, Tensor]:
    """Run the detector, and return its outputs with the presence logits [L, P] before they are cut off.

    The library cuts them off at 10, where no gradient comes through: an unknown phrase could never be learned.
    """
    seen: list[Tensor] = []
    hook = model.detr_decoder.presence_head.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        outputs = forward(model, lesson.batch, masked)
    finally:
        hook.remove()
    return outputs, torch.stack([one.flatten() for one in seen]).float()


def loss_parts(
    outputs: Outputs,
    presence: Tensor,
    lesson: Lesson,
    masked: Tensor,
    totals: StepTotals,
    weights: LossWeights,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return the weighted losses by name, each this part's share of the step's."""
    batch = lesson.batch
    layers, pairs, queries = outputs.logits.shape
    counts = torch.tensor([len(target) for target in batch.targets], device=outputs.logits.device)
    truth = _padded_boxes(batch.instance_boxes, batch.image_of, batch.targets)
    rows = layers * pairs
    logits, boxes = outputs.logits.reshape(rows, queries), outputs.boxes.reshape(rows, queries, 4)
    denied = lesson.denied.repeat(layers)
    cost = losses.matching_cost(logits.detach(), boxes.detach(), truth.repeat(layers, 1, 1))
    cost = (
        cost + 2 * logits.detach().sigmoid()[..., None] * denied[:, None, None]
    )  # where it is alone says who is meant
    matches = losses.hungarian(cost, counts.repeat(layers))
    about = denied[matches.row]
    asked = losses.Matches(matches.row[~about], matches.query[~about], matches.target[~about])
    wanted = truth[asked.row % pairs, asked.target]
    distance, giou, iou = losses.box_losses(boxes[asked.row, asked.query], wanted)
    present = (counts > 0).repeat(layers) & ~denied
    share = len(asked) / totals.objects
    unsure = _unsure(boxes, lesson, layers)
    entropy = losses.classification_loss(logits, asked, iou, present, weights.iou_aware, unsure=unsure)
    return {
        "classification": weights.classification * entropy * max(len(asked), 1) / totals.objects,
        "presence": weights.presence * _presence(presence, lesson.denied, counts > 0) / totals.pairs,
        "box": weights.box * distance * share,
        "giou": weights.giou * giou * share,
        "denied": weights.classification * _denied(logits, boxes, truth, matches, about, pairs) / totals.denied,
        **_mask_parts(outputs, lesson, masked, asked, totals, weights, generator),
    }


def _unsure(boxes: Tensor, lesson: Lesson, layers: int) -> Tensor:
    """Return which answers are about objects that may answer, or not: bool [L * P, Q]."""
    batch = lesson.batch
    truth = _padded_boxes(batch.instance_boxes, batch.image_of, lesson.unsure)
    counts = torch.tensor([len(row) for row in lesson.unsure], device=boxes.device)
    real = torch.arange(truth.shape[1], device=boxes.device) < counts[:, None]  # [P, T]
    iou, _ = losses.box_overlap(
        losses.corners(boxes.detach())[:, :, None], losses.corners(truth.repeat(layers, 1, 1))[:, None]
    )
    return ((iou >= ABOUT_IOU) & real.repeat(layers, 1)[:, None]).any(-1)


def _padded_boxes(boxes: Sequence[Tensor], image_of: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """Return the boxes that answer each pair, [P, T, 4], filled up with a centre box that the counts leave out."""
    most = max((len(target) for target in targets), default=0)
    padded = torch.full((len(targets), most, 4), 0.5, device=image_of.device)
    for pair, target in enumerate(targets):
        padded[pair, : len(target)] = boxes[int(image_of[pair])][target]
    return padded


def _presence(logits: Tensor, denied: Tensor, present: Tensor) -> Tensor:
    """Sum over decoder layers and pairs, those aside that say nothing of what is there."""
    truth = present.to(logits.dtype).expand_as(logits)
    each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (each * ~denied).sum()


def _denied(logits: Tensor, boxes: Tensor, truth: Tensor, matches: losses.Matches, about: Tensor, pairs: int) -> Tensor:
    """Sum of focal losses of answers that cover an object which their phrase is known not to name."""
    row, query, target = matches.row[about], matches.query[about], matches.target[about]
    if not len(row):
        return logits.sum() * 0
    iou, _ = losses.box_overlap(losses.corners(boxes[row, query]), losses.corners(truth[row % pairs, target]))
    one = logits[row, query]
    return (F.softplus(one) * one.detach().sigmoid() ** 2 * (iou.detach() >= ABOUT_IOU)).sum()


def _mask_parts(
    outputs: Outputs,
    lesson: Lesson,
    masked: Tensor,
    asked: losses.Matches,
    totals: StepTotals,
    weights: LossWeights,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    batch = lesson.batch
    layers, pairs = outputs.presence.shape
    slot_of = {pair: slot for slot, pair in enumerate(masked.tolist())}
    last = (layers - 1) * pairs
    slots, query, mine, others = [], [], [], []
    for row, number, target in zip(asked.row.tolist(), asked.query.tolist(), asked.target.tolist(), strict=True):
        pair = row - last
        if row < last or pair not in slot_of:
            continue
        image, own = int(batch.image_of[pair]), batch.targets[pair]
        if not bool(lesson.has_mask[image][own[target]]):
            continue
        slots.append(slot_of[pair])
        query.append(number)
        shown = batch.instance_masks[image]
        mine.append(shown[own[target]])
        others.append((shown[own].sum(0) - shown[own[target]]).clamp(0, 1))
    if not slots:
        return {}
    logits = outputs.masks[slots, -1, query]  # [M, H, W]
    wanted, rest = torch.stack(mine), torch.stack(others)
    at = _points(logits.detach(), generator)
    found, there, beside = (_sampled(value, at)[:, None] for value in (logits, wanted, rest))  # [M, 1, K]
    entropy, dice = _semantic(outputs, lesson, masked)
    return {
        "mask_focal": weights.mask_focal
        * losses.mask_focal_loss(found, there, weights.mask_alpha).sum()
        / totals.masks,
        "mask_dice": weights.mask_dice * losses.dice_loss(found, there).sum() / totals.masks,
        "mask_apart": weights.mask_apart * losses.apart_loss(found, beside).sum() / totals.masks,
        "semantic": (weights.semantic_entropy * entropy + weights.semantic_dice * dice) / totals.masked,
    }


def _points(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return points [M, K, 2] in [-1, 1]: most where a mask is unsure of itself, the others by chance."""
    count = len(logits)
    drawn = torch.rand(count, _OVERSAMPLED * POINTS, 2, generator=generator).to(logits.device) * 2 - 1
    unsure = -_sampled(logits, drawn).abs()
    kept = round(_UNSURE * POINTS)
    best = unsure.topk(kept, dim=1).indices[..., None].expand(-1, -1, 2)
    chance = torch.rand(count, POINTS - kept, 2, generator=generator).to(logits.device) * 2 - 1
    return torch.cat((drawn.gather(1, best), chance), 1)


def _sampled(maps: Tensor, at: Tensor) -> Tensor:
    """Return maps [M, h, w] at points [M, K, 2], [M, K]."""
    values: Tensor = F.grid_sample(maps[:, None].float(), at[:, None], mode="bilinear", align_corners=False)
    return values[:, 0, 0]


def _semantic(outputs: Outputs, lesson: Lesson, masked: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over pairs of cross-entropy and dice of "any of them here", where every object is sure and has a mask."""
    batch, size = lesson.batch, outputs.semantic.shape[-2:]
    slots, truth = [], []
    for slot, pair in enumerate(masked.tolist()):
        image, own = int(batch.image_of[pair]), batch.targets[pair]
        if bool(lesson.has_mask[image][own].all()) and not len(lesson.unsure[pair]):
            slots.append(slot)
            union = batch.instance_masks[image][own].sum(0).clamp(max=1)
            truth.append(F.adaptive_avg_pool2d(union[None], (size[0], size[1]))[0])
    if not slots:
        nothing = outputs.semantic.sum() * 0
        return nothing, nothing
    entropy, dice = losses.semantic_loss(outputs.semantic[slots], torch.stack(truth))
    return entropy * len(slots), dice * len(slots)


class Tuner:
    """One model in fine-tuning. `step` does one update; `state` and `load` make a resumed training the same one."""

    def __init__(self, model: Any, teacher: Teacher, tuning: Tuning) -> None:
        prepare(model, tuning.method, tuning.rank, recompute=tuning.recompute, seed=tuning.seed)
        self.model, self.teacher, self.tuning = model.eval(), teacher, tuning
        self.trained = trained(model)
        self.averaged = {name: value.detach().clone() for name, value in self.trained.items()}
        self.optimizer = torch.optim.AdamW(self._groups(), betas=(0.9, 0.98))
        self.steps = 0
        self.together = teacher.photos_a_step  # images that go through the model at once
        self.smooth, self.first = math.nan, math.nan  # of the total loss: now, and at the beginning
        self._maker = ThreadPoolExecutor(1, "lessons")
        self._coming: dict[int, Future[list[Lesson]]] = {}  # by step

    def _groups(self) -> list[dict[str, Any]]:
        """Adapters at the rate, weights that exist already at a share of it; weight decay for matrices only."""
        share = _SHARE[self.tuning.method]
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, value in self.trained.items():
            decay = self.tuning.weight_decay if value.ndim >= 2 else 0.0
            groups.setdefault((1.0 if ".lora_" in name else share, decay), []).append(value)
        return [
            {"params": values, "share": share, "weight_decay": decay, "lr": 0.0}
            for (share, decay), values in groups.items()
        ]

    def step(self) -> dict[str, float]:
        """Train on one batch. Returns each loss by name, and `total`. Raises TuningStoppedError where it diverged."""
        rate = self.tuning.rate * learning_rate_factor(
            self.steps, max(10, self.tuning.steps // 20), self.steps / self.tuning.steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        told = self._gradients(self._lessons())
        self._refuse_divergence(told["total"])
        self.optimizer.step()
        self.steps += 1
        keep = min(self.tuning.average, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.values()), list(self.trained.values()), 1 - keep)
        return told | {"rate": rate}

    def _lessons(self) -> list[Lesson]:
        """Return the images of this step, and have those of the next made meanwhile."""
        made = self._coming.pop(self.steps, None) or self._maker.submit(self.teacher.lesson, self.steps)
        if self.steps + 1 < self.tuning.steps:
            self._coming = {self.steps + 1: self._maker.submit(self.teacher.lesson, self.steps + 1)}
        return made.result()

    def _gradients(self, lessons: Sequence[Lesson]) -> dict[str, float]:
        """Leave the gradients of a step in the parameters; fewer images at a time where memory runs out."""
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                told = self._summed(lessons)
                norm = nn.utils.clip_grad_norm_(self.trained.values(), self.tuning.clip)
                return told | {"gradient": float(norm)}
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.together == 1:
                    raise ConfigError(
                        f"the memory of {self.model.device} does not hold the training of one image: give a smaller "
                        "--image-size, fewer --questions, or --method heads."
                    ) from error
                self.together = max(1, self.together // 2)
            if self.model.device.type == "cuda":  # outside the handler, whose traceback keeps the tensors alive
                torch.cuda.empty_cache()

    def _summed(self, lessons: Sequence[Lesson]) -> dict[str, float]:
        totals, told = StepTotals.of(lessons), dict[str, float]()
        for start in range(0, len(lessons), self.together):
            parts = self.losses(lessons[start : start + self.together], totals, start)
            torch.autograd.backward(torch.stack(list(parts.values())).sum())
            for name, value in parts.items():
                told[name] = told.get(name, 0.0) + float(value.detach())
        return told | {"total": sum(told.values())}

    def losses(self, lessons: Sequence[Lesson], totals: StepTotals, start: int = 0) -> dict[str, Tensor]:
        """Return the losses of some of a step's images; the points of masks depend on the step and on `start`."""
        lesson = joined(lessons).to(self.model.device)
        masked = masked_pairs(lesson)
        with autocast(self.model.device, self.tuning.precision):
            outputs, presence = answer(self.model, lesson, masked)
        generator = torch.Generator().manual_seed(hash((self.tuning.seed, self.steps, start)) & 0x7FFFFFFF)
        return loss_parts(outputs, presence, lesson, masked, totals, self.tuning.weights, generator)

    def _refuse_divergence(self, total: float) -> None:
        if not math.isfinite(total):
            raise TuningStoppedError(f"the loss of step {self.steps + 1} is no number: a lower --rate is steadier.")
        self.smooth = total if math.isnan(self.smooth) else _SMOOTH * self.smooth + (1 - _SMOOTH) * total
        if self.steps == max(10, self.tuning.steps // 20):
            self.first = self.smooth
        if self.smooth > _GROWN * self.first:
            raise TuningStoppedError(
                f"the loss grew from {self.first:.3g} to {self.smooth:.3g} by step {self.steps + 1}: "
                "a lower --rate is steadier."
            )

    @torch.no_grad()
    def examine(self, exams: Sequence[Lesson]) -> dict[str, float]:
        """Return the losses over photos that are not trained on, and the share of questions with the right presence.

        With the weights as they are: nothing is chosen by it.
        """
        totals, told, right, count = StepTotals.of(exams), dict[str, float](), 0, 0
        for number, exam in enumerate(exams):
            lesson = exam.to(self.model.device)
            masked = masked_pairs(lesson)
            with autocast(self.model.device, self.tuning.precision):
                outputs, presence = answer(self.model, lesson, masked)
            generator = torch.Generator().manual_seed(number)
            parts = loss_parts(outputs, presence, lesson, masked, totals, self.tuning.weights, generator)
            for name, value in parts.items():
                told[name] = told.get(name, 0.0) + float(value)
            judged = ~lesson.denied
            right += int(((presence[-1] > 0) == lesson.batch.present())[judged].sum())
            count += int(judged.sum())
        return {"total": sum(told.values()), "presence": right / max(count, 1)}

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on, fit for `torch.save`."""
        return {
            "steps": self.steps,
            "trained": {name: value.detach() for name, value in self.trained.items()},
            "averaged": self.averaged,
            "optimizer": self.optimizer.state_dict(),
            "together": self.together,
            "smooth": self.smooth,
            "first": self.first,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, with a tuner made in the same way."""
        with torch.no_grad():
            for name, value in self.trained.items():
                value.copy_(state["trained"][name])
        self.averaged = {name: state["averaged"][name].to(value.device) for name, value in self.trained.items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.together = int(state["steps"]), int(state["together"])
        self.smooth, self.first = float(state["smooth"]), float(state["first"])
