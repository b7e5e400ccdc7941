"""Computes values in a thread, ahead of their use."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def ahead(source: Iterable[T], most: int, weight: Callable[[T], int] = lambda _: 1) -> Iterator[T]:
    """Yield the same values, computed by a thread while those that wait weigh less than `most`, or none waits.

    The source's error is raised here, in its place.
    """
    line = _Line[T](most)

    def work() -> None:
        try:
            for value in source:
                if not line.put(value, weight(value)):
                    return
            line.end(None)
        except Exception as error:
            line.end(error)

    worker = threading.Thread(target=work, name="decoder", daemon=True)
    worker.start()
    try:
        yield from line
    finally:
        line.leave()
        worker.join()


class _Line(Iterator[T]):
    """Queues values up to a weight, until an end."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._values: deque[tuple[T, int]] = deque()
        self._changed = threading.Condition()
        self._ended = self._left = False
        self._error: Exception | None = None

    def put(self, value: T, weight: int) -> bool:
        """Add a value once there is room. False where nobody takes values any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or not self._values or self._held + weight <= self._most)
            self._values.append((value, weight))
            self._held += weight
            self._changed.notify_all()
            return not self._left

    def end(self, error: Exception | None) -> None:
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def leave(self) -> None:
        """Take no values any more."""
        with self._changed:
            self._left = True
            self._values.clear()
            self._changed.notify_all()

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._values or self._ended)
            if self._values:
                value, weight = self._values.popleft()
                self._held -= weight
                self._changed.notify_all()
                return value
        if self._error is not None:
            raise self._error
        raise StopIteration
