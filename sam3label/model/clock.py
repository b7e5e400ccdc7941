"""Measures where the device's time goes."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class StageClock:
    """Counts seconds a device spends per stage, on CUDA by events in its streams: reading them waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device: Any = torch.cuda if device.type == "cuda" else None
        self._spent: Counter[str] = Counter()
        self._open: deque[tuple[str, Any, Any]] = deque()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        if self._device is None:
            since = time.perf_counter()
            yield
            self._spent[stage] += time.perf_counter() - since  # type: ignore[assignment]
            return
        start, stop = (self._device.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        stop.record()
        self._open.append((stage, start, stop))
        self._close()

    def seconds(self) -> dict[str, float]:
        """Return the seconds known so far: on CUDA, of the blocks that the device has finished."""
        self._close()
        return dict(self._spent)

    @property
    def open_blocks(self) -> int:
        """Return how many blocks' times are not known yet."""
        return len(self._open)

    def _close(self) -> None:
        while self._open and self._open[0][2].query():
            stage, start, stop = self._open.popleft()
            self._spent[stage] += start.elapsed_time(stop) / 1000
