"""Masks from logits: pixel for pixel the full-size upsampling, at a fraction of its memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sam3label.core import masks
from sam3label.model import mask_runs
from sam3label.model.mask_runs import Instance, Upsampling, instances

SIZES = ((1, 1), (1, 700), (33, 1), (20_000, 10), (10, 20_000), (480, 640), (64, 64), (100, 64), (40, 25))


def truth(logits: torch.Tensor, size_hw: tuple[int, int]) -> np.ndarray:
    """The definition: every mask upsampled whole. One by one, because F.interpolate rounds batches in another order."""
    full = [F.interpolate(one[None, None], size_hw, mode="bilinear", align_corners=False)[0, 0] for one in logits]
    return (torch.stack(full) > 0).numpy()


def together(logits: torch.Tensor, sizes_hw: Sequence[tuple[int, int]]) -> list[Instance | None]:
    """As on a GPU: the columns of all masks at once, their code in a thread."""
    found: dict[int, Instance | None] = {}
    with ThreadPoolExecutor(1) as thread:
        for cuts in mask_runs.cut(logits, sizes_hw, Upsampling(), together=True):
            found |= thread.submit(cuts.instances).result() | cuts.settled()
    return [found.get(number) for number in range(len(logits))]


def check(logits: torch.Tensor, size_hw: tuple[int, int]) -> list[Instance | None]:
    found = instances(logits, size_hw, Upsampling())
    assert len(found) == len(logits)
    assert together(logits, [size_hw] * len(logits)) == found
    for instance, inside in zip(found, truth(logits, size_hw), strict=True):
        if instance is None:
            assert not inside.any()
            continue
        assert instance.rle == masks.encode(inside)  # the same bytes: the code is canonical too
        assert instance.area == inside.sum() > 0
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        box = (columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])
        assert instance.box_xywh == box
    return found


def noise(side: int) -> torch.Tensor:
    return torch.randn(4, side, side, generator=torch.Generator().manual_seed(side))


def integers(side: int) -> torch.Tensor:
    """Many exact zeros and many sums that are zero but for rounding."""
    return torch.randint(-2, 3, (4, side, side), generator=torch.Generator().manual_seed(side)).float()


def smooth(side: int) -> torch.Tensor:
    return F.interpolate(noise(6)[None], (side, side), mode="bicubic")[0]


def corners(side: int) -> torch.Tensor:
    """One pixel, two far corners, everything, nothing."""
    logits = torch.full((4, side, side), -3.0)
    logits[0, side // 2, side // 2] = 1.0
    logits[1, 0, 0] = logits[1, -1, -1] = 2.0
    logits[2] = 1.0
    return logits


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("make", [noise, integers, smooth, corners])
def test_equals_full_size_upsampling(make, size_hw: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    for side in (64, 5, 1):
        check(make(side), size_hw)


@settings(max_examples=60)
@given(
    grid=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    size_hw=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    levels=st.integers(1, 4),
    seed=st.integers(0, 10_000),
)
def test_equals_full_size_upsampling_of_anything(
    grid: tuple[int, int], size_hw: tuple[int, int], levels: int, seed: int
) -> None:
    values = torch.randint(-levels, levels + 1, (3, *grid), generator=torch.Generator().manual_seed(seed))
    check(values * 0.1, size_hw)


def test_masks_of_several_images_are_read_off_together() -> None:
    logits = torch.cat((smooth(32), corners(32), integers(32), noise(32)))
    sizes = [SIZES[4 + number % 5] for number in range(len(logits))]
    expected = [instances(one[None], size, Upsampling())[0] for one, size in zip(logits, sizes, strict=True)]
    assert together(logits, sizes) == expected
    assert sum(one is not None for one in expected) > 10


def test_empty_input() -> None:
    assert instances(torch.empty(0, 8, 8), (30, 40), Upsampling()) == []


def test_masks_without_a_pixel_are_none() -> None:
    logits = torch.full((2, 64, 64), -5.0)
    logits[1, 3, 3] = 1.0
    assert instances(logits, (8, 8), Upsampling()) == [
        None,
        None,
    ]  # the positive logit falls between the image's pixels


def test_masks_are_read_off_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_runs, "CHUNK_KNOTS", 5000)
    for make in (noise, smooth, corners):
        check(make(32), (150, 170))


def test_rounding_never_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits whose interpolation is 0 but for rounding take the exact way; ordinary ones hardly ever do."""
    interpolate, whole = F.interpolate, list[int]()

    def counted(values: torch.Tensor, size: Any, **how: Any) -> torch.Tensor:
        whole.append(1)
        return interpolate(values, size, **how)

    def taken(logits: torch.Tensor, size_hw: tuple[int, int]) -> int:
        upsampling = Upsampling()
        instances(logits, size_hw, upsampling)  # from here on masks alone are interpolated
        whole.clear()
        with monkeypatch.context() as patched:
            patched.setattr(F, "interpolate", counted)
            instances(logits, size_hw, upsampling)
        return len(whole)

    check(integers(20), (61, 47))
    assert taken(integers(20), (61, 47)) == 4
    assert taken(smooth(72), (300, 400)) <= 1


def test_what_a_size_needs_is_measured_once_and_forgotten_in_time() -> None:
    upsampling, here = Upsampling(kept=2), torch.device("cpu")
    first = upsampling.axis(8, (30, 40), 0, here)
    assert upsampling.axis(8, (30, 40), 0, here) is first
    for width in (41, 42):
        upsampling.axis(8, (30, width), 0, here)
    assert upsampling.axis(8, (30, 40), 0, here) is not first


@pytest.mark.parametrize("size_hw", [(77, 51), (77, 52), (52, 77), (129, 1), (1080, 1920), (33, 4001)])
def test_weights_are_those_of_full_size_upsampling(size_hw: tuple[int, int]) -> None:
    """To the bound that doubt is decided by. On a CPU they are rounded otherwise where height + width exceed 128."""
    logits = noise(288)[0]
    upsampling = Upsampling()
    rows, columns = (upsampling.axis(288, size_hw, axis, logits.device) for axis in (0, 1))

    def upsampled(values: torch.Tensor) -> torch.Tensor:
        across = columns.mix(values.T.double(), 0, size_hw[1])
        return rows.mix(across.T, 0, size_hw[0])

    full = F.interpolate(logits[None, None], size_hw, mode="bilinear", align_corners=False)[0, 0]
    assert ((full - upsampled(logits)).abs() <= upsampled(logits.abs()) * mask_runs.ROUNDING).all()


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Megabytes by which resident memory rose at most, sampled every few milliseconds."""
    process, done, peak = psutil.Process(), threading.Event(), [0.0]
    base = process.memory_info().rss

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], (process.memory_info().rss - base) / 1e6)
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def test_a_4k_image_with_100_objects_fits() -> None:
    """Full size in float32 these masks are 3.3 GB, and 829 MB as bytes."""
    side, size_hw = 288, (2160, 3840)
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    centres = torch.rand(100, 2, 1, 1, generator=torch.Generator().manual_seed(0)) * side
    radii = torch.linspace(4, 60, 100)[:, None, None]  # up to a seventh of the image
    logits = (radii - ((x - centres[:, 0]) ** 2 + (y - centres[:, 1]) ** 2).sqrt()) / 4
    with peak_memory() as peak:
        found = instances(logits, size_hw, Upsampling())
    assert peak[0] < 250
    assert all(instance is not None for instance in found)
    for number in (0, 50, 99):  # compared one by one: all at once would not fit where this runs
        assert check(logits[number : number + 1], size_hw) == [found[number]]
