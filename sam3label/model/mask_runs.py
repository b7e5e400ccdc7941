"""Mask logits -> instances: boxes, areas and run-length code at each image's size, taken on the device.

The mask of an instance is its low-resolution logits upsampled bilinearly (`F.interpolate`, align_corners=False) to
the image and cut at 0, pixel for pixel; but no pixel is computed. Logits are upsampled across only. Down each column
they are then straight lines between knots, so a run begins or ends where two neighbouring knots differ in sign: those
few leave the device, and on the host the row follows by division.

    instances = mask_runs.instances(logits, size_hw, upsampling)   # at once, or in two parts:
    for cuts in mask_runs.cut(logits, sizes_hw, upsampling):       # on the device: what it is waited for is in `cuts`
        found = cuts.instances()                                   # on the host, in any thread; then, in the first,
        found |= cuts.settled()                                    # what rounding decides
    steps = mask_runs.in_steps(logits, size_hw, upsampling)        # or a bit at a time, whenever the host has waited

Shape legend: K masks, h x w their logits, H x W the image. Runs are column-major: pixel (y, x) is number x * H + y.
R knots of a column, C columns, N edges: where runs begin and end, in turn.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.core.records import Box, Rle

if TYPE_CHECKING:
    import torch

    from sam3label.model.in_steps import Steps

CHUNK_KNOTS = 1 << 22  # held, with their sizes, until their edges are read off together: a few tens of MB
# F.interpolate and `mix` use the same weights and round every term of a sum at most four times and twice by 2**-24
# (the rest is for the rounding of the bound): a value below this share of its terms' sizes may be of either sign.
ROUNDING = 6.5 * 2.0**-24

Size = tuple[int, int]
_Runs = npt.NDArray[np.int64]  # [N, 2]: where runs start and stop in the image


@dataclass(frozen=True, slots=True)
class Instance:
    """A mask that is not empty, in the image's pixels."""

    rle: Rle
    box_xywh: Box
    area: int


@dataclass(frozen=True, slots=True)
class Axis:
    """Bilinear upsampling of one axis: output i is low[i] and high[i] weighted by the two weights."""

    low: torch.Tensor  # int64 [n_out]
    high: torch.Tensor
    weight_low: torch.Tensor  # float32 [n_out, 1]
    weight_high: torch.Tensor
    low_host: npt.NDArray[np.int64]
    high_host: npt.NDArray[np.int64]
    weights_host: npt.NDArray[np.float32]  # [2, n_out]

    @property
    def share(self) -> npt.NDArray[np.float64]:
        """Return weight_high [n_out] in double precision."""
        share: npt.NDArray[np.float64] = self.weights_host[1].astype(np.float64)
        return share

    def reach(self, first: int, last: int) -> Size:
        """Return the outputs [start, stop) that read any of the inputs first..last."""
        start = int(np.searchsorted(self.high_host, first, side="left"))
        stop = int(np.searchsorted(self.low_host, last, side="right"))
        return start, stop

    def mix(self, values: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Return the outputs start:stop of `values` [n_in, m]."""
        mixed = values.index_select(0, self.low[start:stop]).mul_(self.weight_low[start:stop])
        return mixed.add_(values.index_select(0, self.high[start:stop]).mul_(self.weight_high[start:stop]))


class Upsampling:
    """Keeps what upsampling to a size needs, of the sizes that were asked for last: a run's images have few sizes."""

    def __init__(self, kept: int = 512) -> None:
        self._kept = kept
        self._axes: dict[tuple[int, Size, int, torch.device], Axis] = {}

    def axis(self, n_in: int, size_hw: Size, axis: int, device: torch.device) -> Axis:
        """Return how `n_in` rows (axis 0) or columns (axis 1) become those of an image of this size."""
        asked = n_in, size_hw, axis, device
        found = self._axes.pop(asked, None) or _measured(*asked)
        self._axes[asked] = found  # last: the first ones go first
        if len(self._axes) > self._kept:
            del self._axes[next(iter(self._axes))]
        return found


@dataclass(frozen=True, slots=True)
class _Region:
    """What of mask number `mask` can be inside: columns x0:x1 of the image, between the logits' rows top..bottom."""

    mask: int
    size_hw: Size
    down: Axis
    across: Axis
    top: int
    bottom: int
    x0: int
    x1: int

    @property
    def tall(self) -> int:
        """Knots of a column, and a 0 below that closes its last run."""
        return self.bottom - self.top + 2

    @property
    def knots(self) -> int:
        return self.tall * (self.x1 - self.x0)


def instances(mask_logits: torch.Tensor, size_hw: Size, upsampling: Upsampling) -> list[Instance | None]:
    """Return one instance per mask of float32 `mask_logits` [K, h, w]; None where no pixel of the image is inside.

    Equal, pixel for pixel, to `F.interpolate(mask[None, None], size_hw, mode="bilinear") > 0` of each mask. (Several
    masks in one such call can differ from that, and from it, where a value is 0 but for rounding.)
    """
    from sam3label.model.in_steps import finish

    return finish(in_steps(mask_logits, size_hw, upsampling))


def in_steps(mask_logits: torch.Tensor, size_hw: Size, upsampling: Upsampling) -> Steps[list[Instance | None]]:
    """Return what `instances` does, in four steps, and two more for each further `CHUNK_KNOTS`.

    A step waits for what the one before has asked the device for; besides only where rounding decides, and once a size.
    """
    found: dict[int, Instance | None] = {}
    for cuts in _cuts(mask_logits, [size_hw] * len(mask_logits), upsampling):
        if cuts is None:
            yield
            continue
        found |= cuts.instances()
        found |= cuts.settled()
    return [found.get(mask) for mask in range(len(mask_logits))]


def cut(
    mask_logits: torch.Tensor, sizes_hw: Sequence[Size], upsampling: Upsampling, together: bool | None = None
) -> Iterator[Cuts]:
    """Yield what leaves the device of float32 `mask_logits` [K, h, w], each of an image of its own size.

    `together`: the columns of many masks as one, in a few launches, as suits a GPU (the default there); else mask by
    mask, only the rows that each reaches, as suits a CPU.
    """
    return (cuts for cuts in _cuts(mask_logits, sizes_hw, upsampling, together) if cuts is not None)


def _cuts(
    mask_logits: torch.Tensor, sizes_hw: Sequence[Size], upsampling: Upsampling, together: bool | None = None
) -> Iterator[Cuts | None]:
    """Yield what `cut` does, and None where what is read next is on its way to the host."""
    from sam3label.model.device import bring

    together = mask_logits.device.type != "cpu" if together is None else together
    supports = bring(_supports(mask_logits))
    yield None
    for chunk in _chunks(_regions(mask_logits, supports.numpy(), sizes_hw, upsampling, whole=together)):
        value, size = (_knots_together if together else _knots_apart)(mask_logits, chunk)
        around = bring((yield from _around(value, size)))
        yield None
        yield Cuts(mask_logits, chunk, around.numpy())


def _regions(
    mask_logits: torch.Tensor,
    supports: npt.NDArray[np.int64],
    sizes_hw: Sequence[Size],
    upsampling: Upsampling,
    whole: bool,
) -> Iterator[_Region]:
    """Yield the reach of each mask's support: `whole` columns, or what is between the rows above and below it.

    Those are outside, or at the image's edge.
    """
    last = mask_logits.shape[1] - 1
    bounds: list[list[int]] = supports.tolist()
    for mask, (top, bottom, left, right) in enumerate(bounds):
        if top <= bottom:
            size_hw, sides, device = sizes_hw[mask], mask_logits.shape[1:], mask_logits.device
            down, across = (upsampling.axis(sides[axis], size_hw, axis, device) for axis in (0, 1))
            rows = (0, last) if whole else (max(top - 1, 0), min(bottom + 1, last))
            yield _Region(mask, size_hw, down, across, *rows, *across.reach(left, right))


def _supports(mask_logits: torch.Tensor) -> torch.Tensor:
    """First and last row and column with a positive logit, per mask [K, 4]; first > last where there is none."""
    import torch

    positive = mask_logits > 0
    bounds = []
    for axis in (2, 1):
        hit = positive.any(axis)  # [K, h] then [K, w]
        place = torch.arange(hit.shape[1], device=hit.device)
        bounds += [torch.where(hit, place, hit.shape[1]).amin(1), torch.where(hit, place, -1).amax(1)]
    return torch.stack(bounds, 1)


def _chunks(regions: Iterator[_Region]) -> Iterator[list[_Region]]:
    chunk: list[_Region] = []
    knots = 0
    for region in regions:
        if chunk and knots + region.knots > CHUNK_KNOTS:
            yield chunk
            chunk, knots = [], 0
        chunk.append(region)
        knots += region.knots
    if chunk:
        yield chunk


def _knots_apart(mask_logits: torch.Tensor, chunk: Sequence[_Region]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values at the knots of the regions, column by column, and the sizes of their terms."""
    import torch
    import torch.nn.functional as F

    values, sizes = [], []
    for region in chunk:
        logits = F.pad(mask_logits[region.mask, region.top : region.bottom + 1].T, (0, 1))  # [w, R + 1]
        values.append(region.across.mix(logits, region.x0, region.x1).flatten())
        sizes.append(region.across.mix(logits.abs(), region.x0, region.x1).flatten())
    return torch.cat(values), torch.cat(sizes)


def _knots_together(mask_logits: torch.Tensor, chunk: Sequence[_Region]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same of whole columns, computed at once: the numbers that `mix` gives, in its order of operations."""
    import torch.nn.functional as F

    width = mask_logits.shape[2]
    places, weights = [], []
    for region in chunk:
        across, own = region.across, slice(region.x0, region.x1)
        places.append(np.stack((across.low_host[own], across.high_host[own])) + region.mask * width)
        weights.append(across.weights_host[:, own])
    low, high = _sent(np.concatenate(places, 1), mask_logits)
    weight_low, weight_high = _sent(np.concatenate(weights, 1)[..., None], mask_logits)
    columns = F.pad(mask_logits.transpose(1, 2), (0, 1)).flatten(0, 1)  # [K * w, R + 1]
    value, size = (
        source.index_select(0, low).mul_(weight_low).add_(source.index_select(0, high).mul_(weight_high)).flatten()
        for source in (columns, columns.abs())
    )
    return value, size


def _sent(values: npt.NDArray[np.generic], beside: torch.Tensor) -> torch.Tensor:
    """Return the values on the device of another tensor. Nobody waits until they are there."""
    import torch

    here = torch.from_numpy(values)
    return here.pin_memory().to(beside.device, non_blocking=True) if beside.is_cuda else here.to(beside.device)


def _around(value: torch.Tensor, size: torch.Tensor) -> Generator[None, None, torch.Tensor]:
    """Return what is at the knots that differ in sign from the one above, or are of doubtful sign, as `Cuts` holds it.

    Yields where their number is on its way to the host: only a GPU's is waited for.
    """
    import torch
    import torch.nn.functional as F

    from sam3label.model.device import bring

    positive = F.pad(value > 0, (1, 0))
    marked = (positive[1:] != positive[:-1]) | (value.abs() < size * ROUNDING)
    if marked.is_cuda:
        count = bring(marked.sum())
        yield
        knots = marked.nonzero_static(size=int(count.numpy())).flatten()
    else:
        knots = marked.nonzero().flatten()
    above = knots - 1
    around = torch.stack((value[above], value[knots], size[above], size[knots])).double()
    return torch.cat((knots.double()[None], around))


@dataclass
class Cuts:
    """Holds masks cut down to their edges: on the host, but for the few whose sign rounding decides."""

    _mask_logits: torch.Tensor
    _chunk: list[_Region]
    _around: npt.NDArray[np.float64]  # [5, N]: the knot's number, values of the one above and of it, sizes of both
    _doubts: list[tuple[_Region, _Runs, npt.NDArray[np.int64]]] = field(default_factory=list)

    def instances(self) -> dict[int, Instance | None]:
        """Return the instances by number of the mask, those left out that `settled` must decide."""
        knots, values = self._around[0].astype(np.int64), self._around[1:]
        before, after, _, size = values
        edge = (after > 0) != (before > 0)
        place = _Places(self._chunk, knots[edge])
        x, row, unsure = place.x, np.empty_like(place.x), np.zeros(len(place.x), np.bool_)
        sizes = [region.size_hw for region in self._chunk]
        down = {region.size_hw: region.down for region in self._chunk}
        numbers = {size_hw: number for number, size_hw in enumerate(down)}
        which = np.array([numbers[size_hw] for size_hw in sizes])[place.region]
        for size_hw, number in numbers.items():
            own = which == number
            row[own], unsure[own] = _rows(place.of(own), values[:, edge][:, own], down[size_hw])
        heights = np.array([height for height, _ in sizes])[place.region]
        runs = (x * heights + row).reshape(-1, 2)
        found = np.split(runs, np.searchsorted(place.region[::2], np.arange(1, len(self._chunk))))
        doubtful = np.abs(after) < size * ROUNDING
        again = _Places(self._chunk, np.concatenate((knots[doubtful], place.knot_number[unsure])))
        doubts = set(again.region.tolist())
        for number in sorted(doubts):
            self._doubts.append((self._chunk[number], found[number], np.unique(again.x[again.region == number])))
        return {
            region.mask: _instance(own, region.size_hw)
            for number, (region, own) in enumerate(zip(self._chunk, found, strict=True))
            if number not in doubts
        }

    def settled(self) -> dict[int, Instance | None]:
        """Return, after `instances`, those that rounding decides, by upsampling their columns whole on the device."""
        return {
            region.mask: _instance(
                _settled(runs, self._mask_logits[region.mask], columns, region.size_hw), region.size_hw
            )
            for region, runs, columns in self._doubts
        }


class _Places:
    """Where knots [N] of a chunk are, by their numbers."""

    def __init__(self, chunk: Sequence[_Region], knot_number: npt.NDArray[np.int64]) -> None:
        tall, top, x0 = np.array([(region.tall, region.top, region.x0) for region in chunk]).T
        ends = np.cumsum([region.knots for region in chunk])
        self.knot_number = knot_number
        self.region = np.searchsorted(ends, knot_number, side="right")
        column, knot = np.divmod(knot_number - np.r_[0, ends[:-1]][self.region], tall[self.region])
        self.x = x0[self.region] + column
        self.logits_row = top[self.region] + knot
        self.at_head, self.at_foot = knot == 0, knot == tall[self.region] - 1

    def of(self, own: npt.NDArray[np.bool_]) -> _Edges:
        """Return those of them that are edges in images of one size."""
        return _Edges(self.logits_row[own], self.at_head[own], self.at_foot[own])


@dataclass(frozen=True, slots=True)
class _Edges:
    logits_row: npt.NDArray[np.int64]
    at_head: npt.NDArray[np.bool_]
    at_foot: npt.NDArray[np.bool_]


def _rows(
    edge: _Edges, around: npt.NDArray[np.float64], rows: Axis
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the image's row [N] of each edge, and where rounding decides it.

    `edge` has the knots that differ in sign from the one above; `around` [4, N] the values of the one above, of the
    knot, and the sizes of both.
    """
    height = len(rows.share)
    before, after, size_before, size_after = around
    above = edge.logits_row - 1
    depth = rows.low_host + rows.share  # of each row of the image, in rows of logits: never falls
    place = above + before / (before - after)
    row = np.empty_like(above)
    row[::2] = np.searchsorted(depth, place[::2], side="right")  # starts: the first row above 0
    row[1::2] = np.searchsorted(depth, place[1::2], side="left")  # stops: the first row that is not
    row[edge.at_head], row[edge.at_foot] = 0, height
    unsure = np.zeros(len(row), np.bool_)
    for near in (row - 1, row):  # the two rows that the edge is between
        inside = ~edge.at_head & ~edge.at_foot & (near >= 0) & (near < height)
        near = np.clip(near, 0, height - 1)
        share = rows.share[near]
        value = (1 - share) * before + share * after
        bound = ((1 - share) * size_before + share * size_after) * ROUNDING
        unsure |= inside & (rows.low_host[near] == above) & (np.abs(value) <= bound)
    return row, unsure


def _settled(runs: _Runs, mask: torch.Tensor, x: npt.NDArray[np.int64], size_hw: Size) -> _Runs:
    """Return the runs, those of the columns `x`, where rounding decides, replaced by what F.interpolate finds."""
    import torch
    import torch.nn.functional as F

    full = F.interpolate(mask[None, None], size_hw, mode="bilinear", align_corners=False)[0, 0]
    inside = F.pad((full[:, torch.from_numpy(x).to(mask.device)] > 0).T, (1, 1)).flatten()  # columns end to end
    edges = (inside[1:] != inside[:-1]).nonzero().flatten().cpu().numpy()
    column, row = np.divmod(edges, size_hw[0] + 2)
    exact = (x[column] * size_hw[0] + row).reshape(-1, 2)
    runs = runs[runs[:, 0] < runs[:, 1]]
    runs = np.concatenate((runs[~np.isin(runs[:, 0] // size_hw[0], x)], exact))
    return runs[np.argsort(runs[:, 0])]


def _instance(runs: _Runs, size_hw: Size) -> Instance | None:
    """Runs that each stay within a column, in order, some of them empty -> box, area and code."""
    runs = runs[runs[:, 0] < runs[:, 1]]
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


def _measured(n_in: int, size_hw: Size, axis: int, device: torch.device) -> Axis:
    """Return indices and weights as F.interpolate has them for this size and device, by upsampling indicator signals.

    Of three neighbouring inputs each has another remainder by 3, so the two that an output mixes are told apart. They
    are the ones around the output's position, which double precision finds up to the rounding that the weights settle.
    On a CPU that rounding depends on the number of channels, and on whether height + width exceed 128: so the signals
    go one at a time, as masks do, on a strip that is just wide enough.
    """
    import torch
    import torch.nn.functional as F

    n_out, beside = size_hw[axis], size_hw[1 - axis]
    place = torch.arange(n_in, device=device)
    signal = (place % 3 == torch.arange(3, device=device)[:, None]).float()  # [3, n_in]
    strip = [0, 0]
    strip[axis], strip[1 - axis] = n_out, min(beside, max(1, 129 - n_out))
    shape = (1, 1, n_in, 1) if axis == 0 else (1, 1, 1, n_in)
    mixed = [F.interpolate(one.view(shape), strip, mode="bilinear", align_corners=False)[0, 0] for one in signal]
    mixed = [one.select(1 - axis, 0) for one in mixed]
    weights = torch.stack(mixed).cpu().numpy()  # [3, n_out]
    center = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    nearest = np.clip(np.rint(center), 0, n_in - 1).astype(np.int64)
    column = np.arange(n_out)
    left, right = np.maximum(nearest - 1, 0), np.minimum(nearest + 1, n_in - 1)
    left_weight = np.where(left < nearest, weights[left % 3, column], 0.0)
    right_weight = np.where(right > nearest, weights[right % 3, column], 0.0)
    use_left = left_weight > right_weight
    low = np.where(use_left, left, nearest)
    high = np.where(use_left, nearest, right)
    weight_low = np.where(use_left, left_weight, weights[nearest % 3, column])
    weight_high = np.where(use_left, weights[nearest % 3, column], right_weight)
    both = np.stack((weight_low, weight_high)).astype(np.float32)
    return Axis(
        low=torch.from_numpy(low).to(device),
        high=torch.from_numpy(high).to(device),
        weight_low=torch.from_numpy(both[0, :, None]).to(device),
        weight_high=torch.from_numpy(both[1, :, None]).to(device),
        low_host=low,
        high_host=high,
        weights_host=both,
    )
