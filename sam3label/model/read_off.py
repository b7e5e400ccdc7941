"""Turns scored pairs into instances: the masks of the queries that are wanted, read off at the image's size.

Shape legend: P pairs, Q queries, K kept masks of h x w logits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam3label.core.records import Candidate, Frame, Prompt, Source, candidate_id
from sam3label.model import mask_runs
from sam3label.model.ask import Exemplar, Pair, Scored
from sam3label.model.clock import StageClock
from sam3label.model.device import Compute
from sam3label.model.head import Head, ImageState
from sam3label.model.mask_runs import Cuts, Instance, Upsampling
from sam3label.model.memory import CUT_TOGETHER, Batches

_UNDER_WAY = 2  # lots of masks whose code is being written while the device goes on


@dataclass(frozen=True, slots=True)
class Query:
    """Holds an answer to a pair whose mask is wanted: by query number `query`."""

    pair: Pair
    query: int
    score: float
    presence: float


class Skips:
    """Keeps the mask head's convolved skip connections of the image at hand: many of its pairs share them."""

    def __init__(self, head: Head, compute: Compute, state: ImageState) -> None:
        self._head, self._compute, self._state = head, compute, state
        self._image, self._value = -1, (torch.empty(0), torch.empty(0))

    def of(self, image: int) -> tuple[Tensor, Tensor]:
        """Return those of image number `image`: [1, D, 2h, 2w] and [1, D, 4h, 4w]."""
        if image != self._image:
            with self._compute.precision():
                self._image, self._value = image, self._head.skips(self._state, slice(image, image + 1))
        return self._value


class MaskReader:
    """Computes masks and reads them off."""

    def __init__(self, head: Head, compute: Compute, batches: Batches, upsampling: Upsampling) -> None:
        self._head, self._compute, self._batches, self._upsampling = head, compute, batches, upsampling
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sam3label-masks")

    def reading(self, state: ImageState, sizes_hw: Sequence[mask_runs.Size], clock: StageClock) -> MaskReading:
        """Start to read off masks of the images of a state, which have these sizes."""
        return MaskReading(self, Skips(self._head, self._compute, state), sizes_hw, clock)

    def masks(
        self, scored: Scored, floor: float, skips: Skips, clock: StageClock
    ) -> Iterator[tuple[list[Query], Tensor]]:
        """Yield the queries that score at least `floor`, some rows of an image at a time, and logits [K, h, w]."""
        scores, presence = scored.scores, scored.presence
        for image, rows in by_image(scored.pairs, scores.max(1) >= floor):

            def made(part: slice, image: int = image, rows: list[int] = rows) -> tuple[list[Query], Tensor]:
                row, query = np.nonzero(scores[rows[part]] >= floor)
                row = np.asarray(rows[part])[row]
                with clock("heads"):
                    logits = self.logits(scored, row, query, skips.of(image))
                return [
                    Query(scored.pairs[r], q, float(scores[r, q]), float(presence[r]))
                    for r, q in zip(row.tolist(), query.tolist(), strict=True)
                ], logits

            yield from self._batches.each(len(rows), "masks", made)

    def cut(self, logits: Tensor, sizes_hw: Sequence[mask_runs.Size]) -> list[_Cut]:
        """Cut masks down to their edges, of which a thread makes instances while the device goes on."""

        def some(part: slice) -> list[tuple[int, Cuts]]:
            return [(part.start, cuts) for cuts in mask_runs.cut(logits[part], sizes_hw[part], self._upsampling)]

        made = [one for part in self._batches.each(len(logits), "cuts", some) for one in part]
        return [_Cut(first, cuts, self._writer.submit(cuts.instances)) for first, cuts in made]

    def instances(self, cut: Sequence[_Cut]) -> dict[int, Instance | None]:
        """Wait for what becomes of masks, by their numbers."""
        found: dict[int, Instance | None] = {}
        for one in cut:
            made = one.instances.result() | one.cuts.settled()
            found |= {one.first + number: instance for number, instance in made.items()}
        return found

    def logits(
        self, scored: Scored, row: npt.NDArray[np.intp], query: npt.NDArray[np.intp], skips: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Return mask logits [K, h, w] of the queries `query` of the pairs `row` of one image, rows ascending."""
        send = self._compute.send
        unique, place, counts = np.unique(row, return_inverse=True, return_counts=True)
        slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = np.zeros((len(unique), counts.max()), np.int64)  # short rows repeat query 0; those are not taken
        chosen[place, slot] = query
        pairs = send(unique)
        queries = scored.answer.queries[pairs[:, None], send(chosen)]
        with self._compute.precision():
            logits = self._head.masks(
                scored.answer.memory[pairs], scored.prompt[pairs], scored.valid[pairs], queries, skips
            )
        if counts.min() == counts.max():
            return logits.flatten(0, 1)
        return logits[send(place), send(slot)]


@dataclass(frozen=True, slots=True)
class _Cut:
    """Holds masks from number `first` on, on their way to being instances."""

    first: int
    cuts: Cuts
    instances: Future[dict[int, Instance | None]]


class MaskReading:
    """Reads off the masks of one batch of images, many at a time, whichever image and prompt they are of."""

    def __init__(self, reader: MaskReader, skips: Skips, sizes_hw: Sequence[mask_runs.Size], clock: StageClock) -> None:
        self._reader, self._skips, self._sizes_hw, self._clock = reader, skips, sizes_hw, clock
        self._queries: list[Query] = []
        self._logits: list[Tensor] = []
        self._under_way: deque[tuple[list[Query], list[_Cut]]] = deque()
        self._found: list[tuple[Query, Instance]] = []

    def take(self, scored: Scored, floor: float) -> None:
        """Add what scores at least `floor` in a chunk of pairs."""
        for queries, logits in self._reader.masks(scored, floor, self._skips, self._clock):
            self._queries += queries
            self._logits.append(logits)
            if len(self._queries) >= CUT_TOGETHER:
                self._cut()

    def found(self) -> list[tuple[Query, Instance]]:
        """Return all that has a pixel in its image, in the order in which it was taken."""
        self._cut()
        while self._under_way:
            self._finish()
        return self._found

    def _cut(self) -> None:
        if not self._queries:
            return
        queries, logits = self._queries, torch.cat(self._logits)
        self._queries, self._logits = [], []
        sizes_hw = [self._sizes_hw[query.pair.image] for query in queries]
        with self._clock("post"):
            self._under_way.append((queries, self._reader.cut(logits, sizes_hw)))
        while len(self._under_way) > _UNDER_WAY:
            self._finish()

    def _finish(self) -> None:
        queries, cut = self._under_way.popleft()
        with self._clock("post"):
            made = self._reader.instances(cut)
        self._found += [(query, one) for n, query in enumerate(queries) if (one := made.get(n)) is not None]


def by_image(pairs: Sequence[Pair], wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[int, list[int]]]:
    """Yield each image with those wanted rows of a chunk of pairs that are its own."""
    images = np.array([pair.image for pair in pairs])
    for image in np.unique(images[wanted]):
        yield int(image), np.flatnonzero(wanted & (images == image)).tolist()


def candidate(frame: Frame, prompt: Prompt, query: Query, instance: Instance) -> Candidate:
    """Return what was found in a frame as it is stored."""
    return Candidate(
        id=candidate_id(frame.item.id, frame.index, prompt.key, query.query),
        item_id=frame.item.id,
        frame=frame.index,
        prompt=prompt.key,
        score=query.score,
        presence=query.presence,
        box_xywh=instance.box_xywh,
        area=instance.area,
        rle=instance.rle,
        source=_source(prompt, query.pair.exemplar),
    )


def _source(prompt: Prompt, exemplar: Exemplar | None) -> Source:
    if exemplar is None:
        return prompt.source
    return "exemplar" if prompt.text is None else "both"
