"""Which workers a job has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from sam3label.core.records import MediaItem
from sam3label.labelling.workers.work import Assignment, Say, Workers

Start = Callable[[Assignment, MediaItem | None, Say], AbstractContextManager[Workers]]


@contextmanager
def started(assignment: Assignment, first: MediaItem | None, say: Say) -> Iterator[Workers]:
    """The workers that the options ask for, their models loaded. Raises a `Sam3LabelError` where they cannot be had.

    `first` is the first file to label, which every machine must be able to read.
    """
    if assignment.options.ray is None:
        from sam3label.labelling.workers.local import LocalWorker

        yield LocalWorker(assignment)
        return
    from sam3label.labelling.workers.ray_cluster import on_ray

    with on_ray(assignment, first, say) as workers:
        yield workers
