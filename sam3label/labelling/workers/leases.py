"""Who has what: the bookkeeping of work that is given away to workers that may die. Pure; knows no Ray.

Photos are leased as chunks of whole batches, a video as one. When a worker dies, all it had comes back. Which photo it
was is not known then, so every photo of these batches is tried alone, by a worker that has nothing else; what comes of
that is thrown away, and the batch is computed again as it was cut, so that its numbers are the same. A photo that three
deaths point to is a failed unit. A video is given up after three deaths without a unit between them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sam3label.core.records import MediaItem
from sam3label.core.text import one_line
from sam3label.labelling.photos import PhotoBatch

MOST_DEATHS = 3
APART = 5  # deaths of a batch whose photos all pass alone, until they are computed one by one


@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """What one worker has: batches of photos, one photo to be tried alone, or a video.

    `known` has, by id, why photos of the batches cannot be labelled.
    """

    batches: tuple[PhotoBatch, ...] = ()
    video: MediaItem | None = None
    tried: MediaItem | None = None
    known: Mapping[str, str] = field(default_factory=dict)

    @property
    def photos(self) -> int:
        """How many photos it is about."""
        return sum(len(batch.items) for batch in self.batches)

    @property
    def is_alone(self) -> bool:
        """Whether the worker that has it may have nothing else."""
        return self.tried is not None or self.video is not None


@dataclass(slots=True)
class _Suspect:
    """A batch that a worker died on: which of its photos are still to be tried alone, and deaths by photo."""

    batch: PhotoBatch
    untried: set[str]
    deaths: dict[str, int]
    batch_deaths: int = 1
    bad: dict[str, str] = field(default_factory=dict)


class Leases:
    """Work that waits, work that is given away, and what came of it."""

    def __init__(self, batches: Sequence[PhotoBatch], videos: Iterable[MediaItem], least: int = 1) -> None:
        """Cut chunks of whole batches, of at least so many photos where batches are smaller."""
        # videos before photos: what takes longest is not begun last
        self._alone = deque(Lease(video=item) for item in videos)
        self._chunks = deque(Lease(batches=chunk) for chunk in _chunks(batches, least))
        self._given: set[Lease] = set()
        self._suspects: dict[PhotoBatch, _Suspect] = {}
        self._video_deaths: dict[str, int] = {}

    @property
    def is_over(self) -> bool:
        """Whether everything came to an end."""
        return not self._alone and not self._chunks and not self._given

    def give(self, *, idle: bool) -> Lease | None:
        """Return work for a worker, or None. What must be alone goes first: until a worker is idle nobody gets more."""
        waiting = self._alone or self._chunks
        if not waiting or (self._alone and not idle):
            return None
        lease = waiting.popleft()
        self._given.add(lease)
        return lease

    def done(self, lease: Lease) -> None:
        """Take note that a worker is through with a lease."""
        self._given.discard(lease)
        if lease.tried is not None:
            self._tried(lease.batches[0], lease.tried)
        elif self._suspects:
            for batch in lease.batches:
                self._suspects.pop(batch, None)

    def progressed(self, lease: Lease) -> None:
        """Take note that a unit of a video is labelled."""
        if lease.video is not None:
            self._video_deaths.pop(lease.video.id, None)

    def back(self, leases: Iterable[Lease]) -> None:
        """Take leases back that nobody is to blame for."""
        for lease in leases:
            self._given.discard(lease)
            (self._alone if lease.is_alone else self._chunks).appendleft(lease)

    def died(self, leases: Iterable[Lease], cause: str) -> list[tuple[MediaItem, str]]:
        """Take back what a worker had when it died. Returns videos that are given up, each with the reason."""
        given_up = []
        for lease in leases:
            self._given.discard(lease)
            if lease.video is not None:
                deaths = self._video_deaths[lease.video.id] = self._video_deaths.get(lease.video.id, 0) + 1
                if deaths < MOST_DEATHS:
                    self._alone.appendleft(lease)
                else:
                    given_up.append((lease.video, _reason(cause)))
            elif lease.tried is not None:
                self._died_alone(lease.batches[0], lease.tried, cause)
            else:
                for batch in lease.batches:
                    self._suspected(batch, cause)
        return given_up

    def _suspected(self, batch: PhotoBatch, cause: str) -> None:
        suspect = self._suspects.get(batch)
        if suspect is None:
            ids = {item.id for item in batch.items}
            suspect = self._suspects[batch] = _Suspect(batch, ids, dict.fromkeys(ids, 1))
        else:
            suspect.batch_deaths += 1
            suspect.untried = suspect.deaths.keys() - suspect.bad.keys()
            for id_ in suspect.untried:
                suspect.deaths[id_] += 1
        if suspect.batch_deaths >= APART and len(batch.items) > 1:
            del self._suspects[batch]
            alone = [replace(batch, items=(item,)) for item in batch.items]
            self._chunks.extendleft(Lease(batches=(one,), known=dict(suspect.bad)) for one in alone)
            return
        if suspect.batch_deaths >= APART:  # the one photo of its batch, which passes and then does not
            suspect.bad |= dict.fromkeys(suspect.untried, _reason(cause))
            suspect.untried.clear()
        self._try_each(suspect, [item for item in batch.items if item.id in suspect.untried])
        if not suspect.untried:
            self._again(suspect)

    def _try_each(self, suspect: _Suspect, items: Sequence[MediaItem]) -> None:
        self._alone.extendleft(Lease(batches=(suspect.batch,), tried=item) for item in items)

    def _tried(self, batch: PhotoBatch, item: MediaItem) -> None:
        suspect = self._suspects[batch]
        suspect.untried.discard(item.id)
        if not suspect.untried:
            self._again(suspect)

    def _died_alone(self, batch: PhotoBatch, item: MediaItem, cause: str) -> None:
        suspect = self._suspects[batch]
        suspect.deaths[item.id] += 1
        if suspect.deaths[item.id] < MOST_DEATHS:
            self._try_each(suspect, [item])
            return
        suspect.bad[item.id] = _reason(cause)
        self._tried(batch, item)

    def _again(self, suspect: _Suspect) -> None:
        self._chunks.appendleft(Lease(batches=(suspect.batch,), known=dict(suspect.bad)))


def _chunks(batches: Sequence[PhotoBatch], least: int) -> Iterable[tuple[PhotoBatch, ...]]:
    chunk: list[PhotoBatch] = []
    photos = 0
    for batch in batches:
        chunk.append(batch)
        photos += len(batch.items)
        if photos >= least:
            yield tuple(chunk)
            chunk, photos = [], 0
    if chunk:
        yield tuple(chunk)


def _reason(cause: str) -> str:
    return f"the worker that labelled it died {MOST_DEATHS} times ({one_line(cause)})"
