"""Work whose steps read what earlier ones have asked the device for: done in turns, so that one wait serves all of it.

def counted(values: Tensor) -> Steps[Tensor]:
    count = bring(values.sum())
    yield  # whoever goes on after a wait of his own finds the count there
    return values.nonzero_static(size=int(count.numpy()))
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]  # to go on at once is right too, and waits


def finish(steps: Steps[T]) -> T:
    """Return what the steps come to, all of them taken at once."""
    return _UnderWay(steps).result()


def in_turns(begun: Iterable[Steps[T]], most: int) -> Iterator[T]:
    """Yield what each comes to, in order. All under way go a step further when one more is begun.

    At most `most` stay under way: what was begun before them is taken to its end, with 0 each at once.
    """
    under_way: deque[_UnderWay[T]] = deque()
    for steps in begun:
        under_way.append(_UnderWay(steps))
        for one in under_way:
            one.step()
        while under_way and (under_way[0].done or len(under_way) > most):
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def one_ahead(begun: Iterable[T]) -> Iterator[T]:
    """Yield each once the one after it is begun: a device has work while the host reads what came before."""
    last: list[T] = []
    for one in begun:
        yield from last
        last = [one]
    yield from last


class _UnderWay(Generic[T]):
    """Steps, and what they came to."""

    def __init__(self, steps: Steps[T]) -> None:
        self._steps, self.done = steps, False
        self._result: T

    def step(self) -> None:
        if self.done:
            return
        try:
            next(self._steps)
        except StopIteration as end:
            self._result, self.done = end.value, True

    def result(self) -> T:
        while not self.done:
            self.step()
        return self._result
