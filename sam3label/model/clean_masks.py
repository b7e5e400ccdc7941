"""Masks cleaned: duplicates removed, small holes filled, small specks cleared. Decided on the host, from bits.

The library downloads code for that when it runs, and goes without where it cannot; these need nothing.

Shape legend: K and N masks of h x w pixels, `inside` bool [N, h, w] on the host.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam3label.model.device import send

FILLED, CLEARED = 0.1, -0.1
Inside = npt.NDArray[np.bool_]


def keep_best(inside: Inside, scores: npt.NDArray[np.float32], most: float, of_smaller: bool = False) -> list[int]:
    """Return places, ascending, of the masks [K, h, w] that remain when each removes worse ones overlapping it over
    `most`.

    `most` 0 removes nothing, as in the model's config. Overlap is IoU, or the share of the smaller mask with
    `of_smaller`; of equal scores the first is kept.
    """
    if most <= 0 or len(inside) < 2:
        return list(range(len(inside)))
    overlap = overlaps(inside, inside, of_smaller)
    kept: list[int] = []
    for place in np.argsort(-scores, kind="stable").tolist():
        if not (overlap[place, kept] > most).any():
            kept.append(place)
    return sorted(kept)


def overlaps(one: Inside, other: Inside, of_smaller: bool = False) -> npt.NDArray[np.float32]:
    """Return IoU float32 [K, N] of masks [K, h, w] and [N, h, w], or the share of the smaller one."""
    a, b = _bits(one), _bits(other)
    size_a, size_b = (np.bitwise_count(bits).sum(1, dtype=np.int64) for bits in (a, b))
    shared = np.zeros((len(a), len(b)), np.int64)
    for row, bits in enumerate(a):
        shared[row] = np.bitwise_count(bits & b).sum(1, dtype=np.int64)
    whole = np.minimum(size_a[:, None], size_b) if of_smaller else size_a[:, None] + size_b - shared
    share: npt.NDArray[np.float32] = shared.astype(np.float32) / np.maximum(whole, 1).astype(np.float32)
    return share


def _bits(inside: Inside) -> npt.NDArray[np.uint64]:
    """Return the pixels of each mask as bits [N, words]."""
    packed = np.packbits(inside.reshape(len(inside), inside.shape[1] * inside.shape[2]), axis=1)
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)


def clean_masks(logits: Tensor, inside: Inside, max_area: int) -> tuple[Tensor, Inside]:
    """Return logits [N, h, w] and their pixels over 0 with holes of up to `max_area` pixels filled, specks cleared.

    Pixels that touch at a corner belong together. An object of no more than twice `max_area` keeps parts that are over
    half of it, so small objects stay. As the model was built to have its masks cleaned.
    """
    if max_area <= 0 or len(logits) == 0:
        return logits, inside
    holes = np.stack([_small_parts(~mask, max_area) for mask in inside])
    filled = inside | holes
    specks = np.stack([_small_parts(mask, min(max_area, int(mask.sum()) // 2)) for mask in filled])
    if not holes.any() and not specks.any():
        return logits, inside
    cleaned = torch.where(send(holes, logits.device), FILLED, logits)
    return torch.where(send(specks, logits.device), CLEARED, cleaned), filled & ~specks


def _small_parts(mask: Inside, max_area: int) -> Inside:
    """Return the connected parts of a mask with at most `max_area` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] <= max_area
    small[0] = False  # what is not in the mask
    found: Inside = small[labels]
    return found
