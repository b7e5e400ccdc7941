"""The device's time: where it goes, and images encoded before anything is asked of them."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sam3label.device import is_out_of_memory
from sam3label.head import ImageState
from sam3label.records import Frame


class StageClock:
    """Seconds a device spends per stage. On CUDA by events in its streams: reading them waits for nothing."""

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

    def seconds(self) -> dict[str, float]:
        """What is known so far: on CUDA, of the blocks that the device has finished."""
        while self._open and self._open[0][2].query():
            stage, start, stop = self._open.popleft()
            self._spent[stage] += start.elapsed_time(stop) / 1000
        return dict(self._spent)


class Ahead:
    """At most two batches of images encoded before they are asked for: those at hand and the next ones.

    On CUDA in a stream of their own, so that the device is busy while the host reads off the masks of what came before.
    """

    def __init__(self, device: torch.device, encode: Callable[[Sequence[Frame]], ImageState]) -> None:
        self._device, self._encode = device, encode
        self._cuda: Any = torch.cuda if device.type == "cuda" else None
        self._side = self._cuda.Stream(device) if self._cuda else None
        self._begun: deque[tuple[tuple[Frame, ...], ImageState, Any]] = deque(maxlen=2)

    def begin(self, frames: Sequence[Frame]) -> None:
        """Encode these frames. Without the memory for it, nothing happens: they are encoded when they are asked for."""
        if not frames:
            return
        try:
            self._begun.append((tuple(frames), *self._encoded(frames)))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise

    def _encoded(self, frames: Sequence[Frame]) -> tuple[ImageState, Any]:
        if self._side is None:
            return self._encode(frames), None
        self._side.wait_stream(self._cuda.current_stream(self._device))
        with self._cuda.stream(self._side):
            return self._encode(frames), self._side.record_event()

    def take(self, frames: Sequence[Frame]) -> ImageState | None:
        """The state of these very frames, if they were begun. What was begun before them is let go: nobody asked."""
        for number, (begun, state, ready) in enumerate(self._begun):
            if len(begun) == len(frames) and all(a is b for a, b in zip(begun, frames, strict=True)):
                for _ in range(number + 1):
                    self._begun.popleft()
                if ready is not None:
                    stream = self._cuda.current_stream(self._device)
                    stream.wait_event(ready)
                    state.used_in(stream)
                return state
        return None
