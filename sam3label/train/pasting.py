"""Objects of one photo pasted into another, with what is known of both: few photos teach more.

A thing that was seen in a dozen photos is learned together with its surroundings; the same things elsewhere, larger,
smaller and mirrored, teach the thing. Source: copy-paste (Ghiasi et al. 2021).

Shape legend: H x W pixels of the photo that is pasted into.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.train.taught import LEAST_LEFT, TaughtPhoto, TruthObject, around, is_sided

MOST_PASTED = 3  # objects
_SCALES = (0.7, 1.4)  # of what is pasted
_TURNED = 30.0  # degrees, at most
_APART = 0.1  # of an object in a region: less is beside it, and what is neither beside nor inside is not cut out
_TRIES = 8  # at a place

Rng = np.random.Generator


def rarity(samples: Sequence[TaughtPhoto]) -> list[npt.NDArray[np.float64]]:
    """Return how often to paste each photo's objects: every kind, as the phrases tell them apart, as often as others.

    What is seldom among the photos would otherwise be learned as what is never there: a class with one object in ten
    photos is asked nine times in vain.
    """
    kinds = [[_kind(sample, number) for number in range(len(sample.objects))] for sample in samples]
    counts = Counter(kind for own in kinds for kind in own)
    return [np.array([1 / counts[kind] for kind in own]) for own in kinds]


def _kind(sample: TaughtPhoto, number: int) -> frozenset[str | None]:
    return frozenset(q.phrase for q in sample.questions if number in q.answer and not q.denied)


def pasted(
    sample: TaughtPhoto,
    photo: npt.NDArray[np.uint8],
    other: TaughtPhoto,
    from_photo: npt.NDArray[np.uint8],
    weights: npt.NDArray[np.float64],
    rng: Rng,
) -> tuple[TaughtPhoto, npt.NDArray[np.uint8]]:
    """Return a photo with up to three objects of another, drawn by their weights [N], and what is known of it then.

    Photos stay as they are where an outline is not known, or the other was not asked the same.
    """
    asked = {(q.phrase, q.denied) for q in other.questions}
    whole = all(one.rle is not None for one in (*sample.objects, *other.objects))
    if not whole or not other.objects or not all(q.denied or (q.phrase, False) in asked for q in sample.questions):
        return sample, photo
    sided = any(is_sided(q.phrase) for q in (*sample.questions, *other.questions))
    own = [masks.decode(one.rle) for one in other.objects if one.rle is not None]
    answers: dict[tuple[str | None, bool], list[int]] = {(q.phrase, q.denied): list(q.answer) for q in sample.questions}
    shown = [masks.decode(one.rle) for one in sample.objects if one.rle is not None]
    made = photo.copy()
    drawn = min(int(rng.integers(1, MOST_PASTED + 1)), len(own))
    for number in rng.choice(len(own), drawn, replace=False, p=weights / weights.sum()):
        region = own[number]
        inside = [float((mask & region).sum() / max(1, mask.sum())) for mask in own]
        if any(_APART < share < 1 - _APART for share in inside):
            continue
        along = [i for i, share in enumerate(inside) if share >= 1 - _APART]
        placed = _placed(from_photo, [own[i] & region for i in along], region, made.shape[:2], shown, rng, sided)
        if placed is None:
            continue
        pixels, cover, moved = placed
        made = np.where(cover[..., None], pixels, made)
        shown = [mask & ~cover for mask in shown]
        for key, answer in answers.items():
            named = next((q.answer for q in other.questions if (q.phrase, q.denied) == key), ())
            answer += [len(shown) + place for place, i in enumerate(along) if i in named]
        shown += moved
    kept = [_object_of(mask) for mask in shown]
    questions = tuple(
        replace(q, answer=tuple(answers[q.phrase, q.denied])) if (q.phrase, q.denied) in answers else q
        for q in sample.questions
    )
    return TaughtPhoto(sample.item, sample.size_hw, tuple(kept), questions), made


def _placed(
    photo: npt.NDArray[np.uint8],
    parts: Sequence[masks.Mask],
    region: masks.Mask,
    size_hw: tuple[int, int],
    shown: Sequence[masks.Mask],
    rng: Rng,
    sided: bool,
) -> tuple[npt.NDArray[np.uint8], masks.Mask, list[masks.Mask]] | None:
    """Return a region's pixels, its cover and its parts as they lie on a photo of `size_hw`, None without a place."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    cut = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = size_hw
    scale = float(rng.uniform(*_SCALES)) * min(height / photo.shape[0], width / photo.shape[1])
    mirrored = not sided and rng.random() < 0.5
    turn, (wide, high) = _turned(region[cut].shape, scale, float(rng.uniform(-_TURNED, _TURNED)), mirrored)
    if high > height or wide > width:
        return None
    patch = np.asarray(cv2.warpAffine(photo[cut], turn, (wide, high), borderMode=cv2.BORDER_REPLICATE), np.uint8)
    small = [cv2.warpAffine(one[cut].astype(np.uint8), turn, (wide, high), flags=cv2.INTER_NEAREST) > 0
             for one in (region, *parts)]  # fmt: skip
    for _ in range(_TRIES):
        top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
        place = np.s_[top : top + high, left : left + wide]
        hidden = [float((mask[place] & small[0]).sum() / max(1, mask.sum())) for mask in shown]
        if max(hidden, default=0.0) <= 1 - LEAST_LEFT and small[0].any():
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[place] = patch
            laid = [np.zeros((height, width), bool) for _ in small]
            for mask, one in zip(laid, small, strict=True):
                mask[place] = one
            return pixels, laid[0], laid[1:]
    return None


def _turned(
    size_hw: tuple[int, ...], scale: float, degrees: float, mirrored: bool
) -> tuple[npt.NDArray[np.float64], tuple[int, int]]:
    """Return how a cut-out is turned and scaled, an affine map [2, 3], and the (width, height) that it takes then."""
    high, wide = size_hw
    cos, sin = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    linear = np.array([[-cos if mirrored else cos, -sin], [-sin if mirrored else sin, cos]])
    size = np.maximum(np.ceil(np.abs(linear) @ (wide, high)), 1)
    moved = size / 2 - linear @ np.array([wide, high]) / 2
    return np.column_stack((linear, moved)), (int(size[0]), int(size[1]))


def _object_of(mask: masks.Mask) -> TruthObject:
    box = around(mask) if mask.any() else (0.0, 0.0, 0.0, 0.0)
    return TruthObject(box, masks.encode(mask))
