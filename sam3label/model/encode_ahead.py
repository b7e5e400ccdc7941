"""Encodes images before anything is asked of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch

from sam3label.core.records import Frame
from sam3label.model.memory import is_out_of_memory

_TRIES = 2


class _Encoded(Protocol):
    def used_in(self, stream: torch.cuda.Stream) -> None:
        """Keep this memory, made in another stream, until `stream` is done with it."""


S = TypeVar("S", bound=_Encoded)


class Ahead(Generic[S]):
    """Keeps at most two batches of images that were encoded before they are asked for: those at hand and the next ones.

    On CUDA in a stream of their own, so that the device is busy while the host reads off the masks of what came before.
    """

    def __init__(self, device: torch.device, encode: Callable[[Sequence[Frame]], S]) -> None:
        self._device, self._encode = device, encode
        self._cuda: Any = torch.cuda if device.type == "cuda" else None
        self._side = self._cuda.Stream(device) if self._cuda else None
        self._begun: deque[tuple[tuple[Frame, ...], S, Any]] = deque(maxlen=2)
        self._failures = 0

    def begin(self, frames: Sequence[Frame]) -> None:
        """Encode these frames. Where memory does not suffice they are encoded when they are asked for.

        What does not fit twice is not tried again.
        """
        if not frames or self._failures == _TRIES:
            return
        try:
            self._begun.append((tuple(frames), *self._encoded(frames)))
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        self._failures += 1  # outside the handler, whose traceback keeps the tensors alive
        if self._cuda:
            self._cuda.empty_cache()

    def forget(self) -> None:
        """Let go of what was begun: it is encoded when it is asked for."""
        self._begun.clear()

    def _encoded(self, frames: Sequence[Frame]) -> tuple[S, Any]:
        if self._side is None:
            return self._encode(frames), None
        self._side.wait_stream(self._cuda.current_stream(self._device))
        with self._cuda.stream(self._side):
            return self._encode(frames), self._side.record_event()

    def take(self, frames: Sequence[Frame]) -> S | None:
        """Return the state of these very frames, if they were begun. What was begun before is let go: nobody asked."""
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
