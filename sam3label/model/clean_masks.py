"""Mask logits cleaned: duplicates removed, small holes filled, small specks cleared.

The library downloads code for that when it runs, and goes without where it cannot; these need nothing.

Shape legend: K and N masks, h x w logits.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FILLED, CLEARED = 0.1, -0.1


def keep_best(logits: Tensor, scores: Tensor, most: float, of_smaller: bool = False) -> Tensor:
    """Return places, ascending, of masks [K, h, w] that remain when each removes worse ones overlapping it over `most`.

    `most` 0 removes nothing, as in the model's config. Overlap is IoU of logits over 0, or the share of the smaller
    mask with `of_smaller`; of equal scores the first is kept.
    """
    if most <= 0 or len(logits) < 2:
        return torch.arange(len(logits), device=logits.device)
    inside = (logits > 0).flatten(1)
    overlap = overlaps(inside, inside, of_smaller).cpu().numpy()
    kept: list[int] = []
    for place in np.argsort(-scores.float().cpu().numpy(), kind="stable").tolist():
        if not (overlap[place, kept] > most).any():
            kept.append(place)
    return torch.tensor(sorted(kept), device=logits.device)


def overlaps(one: Tensor, other: Tensor, of_smaller: bool = False) -> Tensor:
    """Return IoU [K, N] of masks bool [K, P] and [N, P] of P pixels, or the share of the smaller one."""
    a, b = one.float(), other.float()
    with torch.autocast(one.device.type, enabled=False):  # counts of pixels, which bf16 would round
        shared = a @ b.T
    size_a, size_b = a.sum(1)[:, None], b.sum(1)[None]
    whole = torch.minimum(size_a, size_b) if of_smaller else size_a + size_b - shared
    return shared / whole.clamp(min=1)


def clean_masks(logits: Tensor, max_area: int) -> Tensor:
    """Return logits [N, h, w] with holes of up to `max_area` pixels filled and specks of up to that many cleared.

    Pixels that touch at a corner belong together. An object of no more than twice `max_area` keeps parts that are over
    half of it, so small objects stay. As the model was built to have its masks cleaned.
    """
    if max_area <= 0 or len(logits) == 0:
        return logits
    inside = (logits > 0).cpu().numpy()
    holes = np.stack([_small_parts(~mask, max_area) for mask in inside])
    inside |= holes
    specks = np.stack([_small_parts(mask, min(max_area, int(mask.sum()) // 2)) for mask in inside])
    filled = torch.where(torch.from_numpy(holes).to(logits.device), FILLED, logits)
    return torch.where(torch.from_numpy(specks).to(logits.device), CLEARED, filled)


def _small_parts(mask: npt.NDArray[np.bool_], max_area: int) -> npt.NDArray[np.bool_]:
    """Return the connected parts of a mask with at most `max_area` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] <= max_area
    small[0] = False  # what is not in the mask
    found: npt.NDArray[np.bool_] = small[labels]
    return found
