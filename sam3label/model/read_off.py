"""Turns scored pairs into instances: the masks of the queries that are wanted, read off at the image's size.

Shape legend: P pairs, Q queries, K kept masks of h x w logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from sam3label.model.memory import Batches


@dataclass(frozen=True, slots=True)
class Kept:
    """Holds a query over the floor with a pixel in the image: of row `row` of a chunk of pairs."""

    row: int
    query: int
    instance: mask_runs.Instance


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

    def __init__(self, head: Head, compute: Compute, batches: Batches, upsampling: mask_runs.Upsampling) -> None:
        self._head, self._compute, self._batches = head, compute, batches
        self._upsampling = upsampling

    def kept(
        self,
        scored: Scored,
        rows: list[int],
        floor: float,
        size_hw: tuple[int, int],
        skips: Callable[[], tuple[Tensor, Tensor]],
        clock: StageClock,
    ) -> list[Kept]:
        """Return every query of rows of one image that scores over the floor, empty masks left out."""
        found: list[Kept] = []

        def read(part: slice) -> list[Kept]:
            row, query = np.nonzero(scored.scores[rows[part]] >= floor)
            row = np.asarray(rows[part])[row]
            with clock("heads"):
                logits = self.logits(scored, row, query, skips())
            with clock("post"):
                instances = mask_runs.instances(logits, size_hw, self._upsampling)
            return [Kept(int(r), int(q), i) for r, q, i in zip(row, query, instances, strict=True) if i is not None]

        for part in self._batches.each(len(rows), "masks", read):
            found += part
        return found

    def logits(
        self, scored: Scored, row: npt.NDArray[np.intp], query: npt.NDArray[np.intp], skips: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Return mask logits [K, h, w] of the queries `query` of the pairs `row` of one image, rows ascending."""
        device = self._compute.device
        unique, place, counts = np.unique(row, return_inverse=True, return_counts=True)
        slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = np.zeros((len(unique), counts.max()), np.int64)  # short rows repeat query 0; those are not taken
        chosen[place, slot] = query
        pairs = torch.from_numpy(unique).to(device)
        queries = scored.answer.queries[pairs[:, None], torch.from_numpy(chosen).to(device)]
        with self._compute.precision():
            logits = self._head.masks(
                scored.answer.memory[pairs], scored.prompt[pairs], scored.valid[pairs], queries, skips
            )
        if counts.min() == counts.max():
            return logits.flatten(0, 1)
        return logits[torch.from_numpy(place).to(device), torch.from_numpy(slot).to(device)]


def by_image(pairs: Sequence[Pair], wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[int, list[int]]]:
    """Yield each image with those wanted rows of a chunk of pairs that are its own."""
    images = np.array([pair.image for pair in pairs])
    for image in np.unique(images[wanted]):
        yield int(image), np.flatnonzero(wanted & (images == image)).tolist()


def candidates(
    frame: Frame, prompts: Sequence[Prompt], pairs: Sequence[Pair], scored: Scored, kept: Sequence[Kept]
) -> Iterator[Candidate]:
    """Yield what was kept of a chunk of pairs on one frame, as candidates."""
    for one in kept:
        pair = pairs[one.row]
        prompt = prompts[pair.prompt]
        yield Candidate(
            id=candidate_id(frame.item.id, frame.index, prompt.key, one.query),
            item_id=frame.item.id,
            frame=frame.index,
            prompt=prompt.key,
            score=float(scored.scores[one.row, one.query]),
            presence=float(scored.presence[one.row]),
            box_xywh=one.instance.box_xywh,
            area=one.instance.area,
            rle=one.instance.rle,
            source=_source(prompt, pair.exemplar),
        )


def _source(prompt: Prompt, exemplar: Exemplar | None) -> Source:
    if exemplar is None:
        return prompt.source
    return "exemplar" if prompt.text is None else "both"
