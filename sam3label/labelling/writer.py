"""The thread that commits what a job has labelled."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence

from sam3label.core.records import UnitResult
from sam3label.run.store import Store

COMMIT_SECONDS = 0.5
QUEUED_BATCHES = 4


class Writer:
    """One thread that commits results a few times a second. Its error ends the job at the next `put` or at the end."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: queue.Queue[Sequence[UnitResult] | None] = queue.Queue(QUEUED_BATCHES)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)

    def put(self, results: Sequence[UnitResult]) -> None:
        """Hand results over. Waits while the queue is full; raises what the thread ran into."""
        if self._error is None:
            self._queue.put(results)
        if self._error is not None:
            raise self._error

    def settle(self) -> None:
        """Wait until what was handed over is committed."""
        self._queue.join()

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def _work(self) -> None:
        """Commit what comes together as one transaction. After an error only drain."""
        last = False
        while not last:
            results, taken, last = self._gather()
            if results and self._error is None:
                try:
                    self._store.write(results)
                except BaseException as error:
                    self._error = error
            for _ in range(taken):
                self._queue.task_done()

    def _gather(self) -> tuple[list[UnitResult], int, bool]:
        """Return the next batch and what follows it within COMMIT_SECONDS; how much was taken, and if that was all."""
        results: list[UnitResult] = []
        batch, taken = self._queue.get(), 1
        deadline = time.monotonic() + COMMIT_SECONDS
        while batch is not None:
            results += batch
            if (left := deadline - time.monotonic()) <= 0:
                return results, taken, False
            try:
                batch = self._queue.get(timeout=left)
            except queue.Empty:
                return results, taken, False
            taken += 1
        return results, taken, True
