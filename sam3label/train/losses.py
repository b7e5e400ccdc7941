"""The training losses of SAM 3, as pure functions of tensors.

Shape legend: R rows (image-prompt pairs, one decoder layer each), Q queries, T targets of a row (padded to the
longest), M matched (row, query, target) triples, h x w mask cells. Boxes are in [0, 1]; `cxcywh` or corners `xyxy` as
named. Sources: DETR (Carion et al. 2020) for the matching and the boxes, focal loss (Lin et al. 2017), dice (Milletari
et al. 2016), the IoU-aware classification target and the presence loss of SAM 3 (Carion et al. 2025).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sam3label.core.matching import optimal


@dataclass(frozen=True, slots=True)
class Matches:
    """Which query answers for which target: three int64 tensors [M], sorted by row."""

    row: Tensor
    query: Tensor
    target: Tensor

    def __len__(self) -> int:
        return int(self.row.numel())


def corners(cxcywh: Tensor) -> Tensor:
    """Return boxes [..., 4] from center and size to corners xyxy."""
    center, half = cxcywh[..., :2], cxcywh[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def box_overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalised IoU of corner boxes [..., 4], shapes broadcast: two tensors [...]."""
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    outer = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    intersection = inner[..., 0] * inner[..., 1]
    union = _area(a) + _area(b) - intersection
    hull = (outer[..., 0] * outer[..., 1]).clamp(min=1e-9)
    iou = intersection / union.clamp(min=1e-9)
    return iou, iou - (hull - union) / hull


def _area(xyxy: Tensor) -> Tensor:
    size = xyxy[..., 2:] - xyxy[..., :2]
    return size[..., 0] * size[..., 1]


def matching_cost(logits: Tensor, boxes: Tensor, targets: Tensor) -> Tensor:
    """Return what it costs to let query q answer for target t, [R, Q, T]: class 2, box L1 5, generalised IoU 2.

    Args: logits [R, Q], boxes cxcywh [R, Q, 4], targets cxcywh [R, T, 4].
    """
    distance = (boxes[:, :, None] - targets[:, None]).abs().sum(-1)
    _, giou = box_overlap(corners(boxes)[:, :, None], corners(targets)[:, None])
    return 5 * distance - 2 * giou - 2 * logits.sigmoid()[..., None]


def hungarian(cost: Tensor, counts: Tensor, copies: int = 1) -> Matches:
    """Return the cheapest one-to-one matching of each row; with `copies` > 1 up to so many queries claim a target.

    Args: cost [R, Q, T]; counts [R], how many of the T columns are real.
    """
    costs = cost.detach().float().cpu().numpy()
    rows: list[int] = []
    queries: list[int] = []
    targets: list[int] = []
    for row, count in enumerate(counts.tolist()):
        if count:
            repeats = max(1, min(copies, costs.shape[1] // count))
            chosen, columns = optimal(-np.tile(costs[row, :, :count], (1, repeats)))  # as SAM 3 was trained
            rows += [row] * len(chosen)
            queries += chosen.tolist()
            targets += (columns % count).tolist()
    device = cost.device
    return Matches(*(torch.tensor(values, dtype=torch.long, device=device) for values in (rows, queries, targets)))


def classification_loss(
    logits: Tensor,
    matches: Matches,
    iou: Tensor,
    present: Tensor,
    iou_aware: float = 1.0,
    focus: float = 2.0,
    unsure: Tensor | None = None,
) -> Tensor:
    """Return the focal cross-entropy of the query scores towards how good each is, summed, over the number of matches.

    A matched query's target is IoU**iou_aware: with 0 it is 1, which lets a model that places boxes badly still learn
    which queries have something under them. The others' target is 0. Each term counts |target - p|**focus. Rows
    without objects are left to the presence token, and `unsure` queries count where they are matched alone.
    Args: logits [R, Q]; iou [M]; present bool [R]; unsure bool [R, Q].
    """
    target = torch.zeros_like(logits)
    target[matches.row, matches.query] = iou.detach().clamp(min=0) ** iou_aware
    weight = (target - logits.detach().sigmoid()).abs() ** focus * present[:, None]
    if unsure is not None:
        weight = weight * ~(unsure & (target == 0))
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (weight * loss).sum() / max(len(matches), 1)


def presence_loss(logits: Tensor, present: Tensor) -> Tensor:
    """Return the cross-entropy of "is there any at all", the mean over rows. Args: logits [R], present bool [R]."""
    return F.binary_cross_entropy_with_logits(logits, present.to(logits.dtype))


def box_losses(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean L1 distance, mean 1 - GIoU, and the IoUs [M] of matched cxcywh boxes [M, 4]. Zeros when M is 0."""
    if not boxes.numel():
        zero = boxes.sum()
        return zero, zero, boxes.new_zeros(0)
    iou, giou = box_overlap(corners(boxes), corners(targets))
    return (boxes - targets).abs().sum(-1).mean(), (1 - giou).mean(), iou


def mask_focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Return each mask's focal loss, a mean over cells: [M] from logits and targets in [0, 1], both [M, h, w]."""
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    miss = probability * (1 - targets) + (1 - probability) * targets
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return (weight * entropy * miss**gamma).flatten(1).mean(1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - (2 |A B| + 1) / (|A| + |B| + 1) of each mask: [M] from logits and targets in [0, 1], both [M, h, w]."""
    probability = logits.sigmoid().flatten(1)
    truth = targets.flatten(1)
    shared = 2 * (probability * truth).sum(1)
    return 1 - (shared + 1) / (probability.sum(1) + truth.sum(1) + 1)


def apart_loss(logits: Tensor, others: Tensor) -> Tensor:
    """Return the cross-entropy of each mask with nothing on the cells of other instances, the mean over them.

    [M] from logits [M, h, w] and `others` [M, h, w] in [0, 1], what instances other than the mask's own cover. 0 where
    there is no other.
    """
    entropy = F.softplus(logits) * others
    return entropy.flatten(1).sum(1) / others.flatten(1).sum(1).clamp(min=1)


def nearest_mean_loss(embedding: Tensor, masks: Tensor) -> Tensor:
    """Return how sure each cell is of its own instance among a prompt's, by the distance to their mean embeddings.

    Cross-entropy with logits of -distance**2 / (2 sqrt(C)), the mean over cells that an instance covers by more than
    half; 0 with fewer than two such instances. Args: embedding [C, h, w]; masks [N, h, w] in [0, 1].
    """
    covered = masks > 0.5
    covered = covered[covered.flatten(1).any(1)]
    if len(covered) < 2:
        return embedding.sum() * 0
    weight = covered.flatten(1).to(embedding.dtype)
    flat = embedding.flatten(1)
    means = weight @ flat.T / weight.sum(1, keepdim=True)  # [N, C]
    inside = covered.flatten(1).any(0)
    logits = -torch.cdist(flat[:, inside].T, means).square() / (2 * len(flat) ** 0.5)
    return F.cross_entropy(logits, covered.flatten(1)[:, inside].float().argmax(0))


def semantic_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean cross-entropy and mean dice loss of "any instance of the prompt here": logits and targets [R, h, w].

    The dice part counts only rows that have something to find: an empty truth has no overlap to measure.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, targets)
    filled = targets.flatten(1).any(1)
    dice = dice_loss(logits[filled], targets[filled]).mean() if filled.any() else logits.sum() * 0
    return entropy, dice
