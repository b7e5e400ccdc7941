"""Mask logits of one image -> instances: boxes, areas and run-length code at the image's size, taken on the device.

The mask of an instance is its low-resolution logits upsampled bilinearly (`F.interpolate`, align_corners=False) to
the image and cut at 0, pixel for pixel; but only the part that can be inside is ever computed, a few columns at a time,
and only the positions where runs begin and end leave the device.

Shape legend: K masks, h x w their logits, H x W the image. Runs are column-major: pixel (y, x) is number x * H + y.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sam3label import masks
from sam3label.records import Box, Rle

if TYPE_CHECKING:
    import torch

PIECE_PIXELS = 1 << 21  # of one mask computed at a time: a few tens of MB whatever the image
CHUNK_PIXELS = 1 << 23  # held as one byte each until their runs are read off together
# F.interpolate and `_upsample` use the same weights and each round every term of a sum at most four times by 2**-24
# (the half is for the rounding of the bound): a value below this share of its terms' sizes may be of either sign.
ROUNDING = 8.5 * 2.0**-24

_Runs = npt.NDArray[np.int64]  # [N, 2]: where runs start and stop in the image


@dataclass(frozen=True, slots=True)
class Instance:
    """A mask that is not empty, in the image's pixels."""

    rle: Rle
    box_xywh: Box
    area: int


@dataclass(frozen=True, slots=True)
class _Axis:
    """Bilinear upsampling of one axis: output i is low[i] and high[i] weighted by the two weights."""

    low: torch.Tensor  # int64 [n_out]
    high: torch.Tensor
    weight_low: torch.Tensor  # float32 [n_out]
    weight_high: torch.Tensor
    low_host: npt.NDArray[np.int64]
    high_host: npt.NDArray[np.int64]

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """The outputs [start, stop) that read any of the inputs first..last."""
        start = int(np.searchsorted(self.high_host, first, side="left"))
        stop = int(np.searchsorted(self.low_host, last, side="right"))
        return start, stop

    def mix(self, values: torch.Tensor, start: int, stop: int, first: int) -> torch.Tensor:
        """The outputs start:stop of `values` [n, m], whose m entries are the inputs from number `first` on."""
        low, high = self.low[start:stop] - first, self.high[start:stop] - first
        mixed = values.index_select(1, low).mul_(self.weight_low[start:stop])
        return mixed.add_(values.index_select(1, high).mul_(self.weight_high[start:stop]))


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows y0:y1, columns x0:x1 of the upsampled mask number `mask`."""

    mask: int
    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def area(self) -> int:
        return (self.y1 - self.y0) * (self.x1 - self.x0)


def instances(mask_logits: torch.Tensor, size_hw: tuple[int, int]) -> list[Instance | None]:
    """One instance per mask of float32 `mask_logits` [K, h, w]; None where no pixel of the image is inside.

    Equal, pixel for pixel, to `F.interpolate(mask[None, None], size_hw, mode="bilinear") > 0` of each mask. (Several
    masks in one such call can differ from that, and from it, where a value is 0 but for rounding.)
    """
    if len(mask_logits) == 0:
        return []
    rows = _axis(mask_logits.shape[1], size_hw[0], False, mask_logits.device)
    columns = _axis(mask_logits.shape[2], size_hw[1], True, mask_logits.device)
    runs: list[list[_Runs]] = [[] for _ in range(len(mask_logits))]
    for chunk in _chunks(_pieces(mask_logits, rows, columns)):
        for piece, found in zip(chunk, _piece_runs(mask_logits, chunk, rows, columns, size_hw), strict=True):
            runs[piece.mask].append(found)
    return [_instance(found, size_hw) for found in runs]


def _pieces(mask_logits: torch.Tensor, rows: _Axis, columns: _Axis) -> Iterator[_Piece]:
    """What must be computed: the reach of each mask's support, split so that no piece is large."""
    for mask, (top, bottom, left, right) in enumerate(_supports(mask_logits)):
        if top > bottom:
            continue
        y0, y1 = rows.reach(top, bottom)
        x0, x1 = columns.reach(left, right)
        if y0 == y1:  # in a small image the support can fall between two rows; between columns the range is empty
            continue
        step = max(1, PIECE_PIXELS // max(1, y1 - y0))
        for x in range(x0, x1, step):
            yield _Piece(mask, y0, y1, x, min(x + step, x1))


def _supports(mask_logits: torch.Tensor) -> list[list[int]]:
    """First and last row and column with a positive logit, per mask; first > last where there is none. One sync."""
    import torch

    positive = mask_logits > 0
    bounds = []
    for axis in (2, 1):
        hit = positive.any(axis)  # [K, h] then [K, w]
        place = torch.arange(hit.shape[1], device=hit.device)
        bounds += [torch.where(hit, place, hit.shape[1]).amin(1), torch.where(hit, place, -1).amax(1)]
    return torch.stack(bounds, 1).tolist()


def _chunks(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    chunk: list[_Piece] = []
    pixels = 0
    for piece in pieces:
        if chunk and pixels + piece.area > CHUNK_PIXELS:
            yield chunk
            chunk, pixels = [], 0
        chunk.append(piece)
        pixels += piece.area
    if chunk:
        yield chunk


def _piece_runs(
    mask_logits: torch.Tensor, chunk: list[_Piece], rows: _Axis, columns: _Axis, size_hw: tuple[int, int]
) -> list[_Runs]:
    """The runs of each piece, computed together so that the device is waited for once."""
    import torch

    # Where a sum is near 0 its negative terms equal its positive ones, which are at most the largest logit.
    tolerance = mask_logits.amax((1, 2)) * (2 * ROUNDING)
    inside, doubt = [], []
    for piece in chunk:
        values = _upsample(mask_logits[piece.mask], piece, rows, columns)
        inside.append(_closed(values > 0))
        doubt.append(values.abs_().min() <= tolerance[piece.mask])
    found = _runs(torch.cat(inside), chunk, size_hw[0])
    for number in torch.stack(doubt).nonzero().flatten().tolist():
        mask, piece = mask_logits[chunk[number].mask], chunk[number]
        if _rounding_decides(mask, piece, rows, columns):
            found[number] = _runs(_closed(_exact(mask, piece, size_hw)), [piece], size_hw[0])[0]
    return found


def _rounding_decides(mask: torch.Tensor, piece: _Piece, rows: _Axis, columns: _Axis) -> bool:
    """The bound again, pixel by pixel: far tighter, and computed only where the coarse one was not enough."""
    sizes = _upsample(mask.abs(), piece, rows, columns).mul_(ROUNDING)
    return bool((_upsample(mask, piece, rows, columns).abs_() <= sizes).any())


def _upsample(mask: torch.Tensor, piece: _Piece, rows: _Axis, columns: _Axis) -> torch.Tensor:
    """float32 [x1 - x0, y1 - y0]: the piece transposed, because runs go down columns."""
    top, bottom = int(rows.low_host[piece.y0]), int(rows.high_host[piece.y1 - 1])
    across = columns.mix(mask[top : bottom + 1], piece.x0, piece.x1, 0)
    return rows.mix(across.T.contiguous(), piece.y0, piece.y1, top)


def _exact(mask: torch.Tensor, piece: _Piece, size_hw: tuple[int, int]) -> torch.Tensor:
    """The piece by F.interpolate itself, for values so close to 0 that rounding decides their side."""
    import torch.nn.functional as F

    full = F.interpolate(mask[None, None], size_hw, mode="bilinear", align_corners=False)[0, 0]
    return full[piece.y0 : piece.y1, piece.x0 : piece.x1].T > 0


def _closed(inside: torch.Tensor) -> torch.Tensor:
    """Columns [x, y] laid end to end, each followed by an outside pixel so that no run crosses into the next."""
    import torch.nn.functional as F

    return F.pad(inside, (0, 1)).flatten()


def _runs(flat: torch.Tensor, chunk: list[_Piece], height: int) -> list[_Runs]:
    """Runs of each piece, in the image's positions, from the pieces' closed columns laid end to end."""
    import torch.nn.functional as F

    padded = F.pad(flat, (1, 0))
    edges = (padded[1:] != padded[:-1]).nonzero().flatten().cpu().numpy().reshape(-1, 2)
    tall = np.array([piece.y1 - piece.y0 + 1 for piece in chunk])
    offsets = np.cumsum(tall * [piece.x1 - piece.x0 for piece in chunk])
    found = []
    parts = np.split(edges, np.searchsorted(edges[:, 0], offsets[:-1]))
    for piece, part, high, end in zip(chunk, parts, tall, offsets, strict=True):
        column, row = np.divmod(part[:, 0] - (end - high * (piece.x1 - piece.x0)), high)
        start = (piece.x0 + column) * height + piece.y0 + row
        found.append(np.stack((start, start + part[:, 1] - part[:, 0]), 1))
    return found


def _instance(pieces: list[_Runs], size_hw: tuple[int, int]) -> Instance | None:
    """Runs that each stay within a column, in order -> box, area and code."""
    runs = np.concatenate(pieces) if pieces else np.empty((0, 2), np.int64)
    if len(runs) == 0:
        return None
    height, width = size_hw
    start, stop = runs[:, 0], runs[:, 1]
    x, top = np.divmod(start, height)
    bottom = top + (stop - start)
    box = (float(x[0]), float(top.min()), float(x[-1] + 1 - x[0]), float(bottom.max() - top.min()))
    apart = start[1:] != stop[:-1]  # a run to the foot of a column and one from the head of the next are one run
    edges = np.stack((start[np.r_[True, apart]], stop[np.r_[apart, True]]), 1).ravel()
    counts = np.diff(edges, prepend=0, append=height * width)
    counts = counts[:-1] if counts[-1] == 0 else counts
    return Instance(masks.from_runs(counts.astype(np.uint32), size_hw), box, int((stop - start).sum()))


@lru_cache(maxsize=64)
def _axis(n_in: int, n_out: int, horizontal: bool, device: torch.device) -> _Axis:
    """Indices and weights as F.interpolate has them on this device, read off by upsampling indicator signals.

    Of three neighbouring inputs each has another remainder by 3, so the two that an output mixes are told apart. They
    are the ones around the output's position, which double precision finds up to the rounding that the weights settle.
    """
    import torch
    import torch.nn.functional as F

    place = torch.arange(n_in, device=device)
    signal = (place % 3 == torch.arange(3, device=device)[:, None]).float()  # [3, n_in]
    if horizontal:
        mixed = F.interpolate(signal[None, :, None], (1, n_out), mode="bilinear", align_corners=False)[0, :, 0]
    else:
        mixed = F.interpolate(signal[None, :, :, None], (n_out, 1), mode="bilinear", align_corners=False)[0, :, :, 0]
    weights = mixed.cpu().numpy()  # [3, n_out]
    centre = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    nearest = np.clip(np.rint(centre), 0, n_in - 1).astype(np.int64)
    column = np.arange(n_out)
    left, right = np.maximum(nearest - 1, 0), np.minimum(nearest + 1, n_in - 1)
    left_weight = np.where(left < nearest, weights[left % 3, column], 0.0)
    right_weight = np.where(right > nearest, weights[right % 3, column], 0.0)
    use_left = left_weight > right_weight
    low = np.where(use_left, left, nearest)
    high = np.where(use_left, nearest, right)
    weight_low = np.where(use_left, left_weight, weights[nearest % 3, column])
    weight_high = np.where(use_left, weights[nearest % 3, column], right_weight)
    return _Axis(
        low=torch.from_numpy(low).to(device),
        high=torch.from_numpy(high).to(device),
        weight_low=torch.from_numpy(weight_low.astype(np.float32)).to(device),
        weight_high=torch.from_numpy(weight_high.astype(np.float32)).to(device),
        low_host=low,
        high_host=high,
    )
