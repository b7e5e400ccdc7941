"""Objects that a person showed by a box, points or a mask: labels of photos, and in tracked videos where tracks begin.

The tracker half of SAM 3 makes the mask of a box or points, from the encoding of the image that everything else is
asked of too; a mask that is given stays as it is. In videos the object is followed from there whatever is detected.

Shape legend: V channels of the image encoder, g x g cells, h x w = 4g x 4g mask logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sam3label.concepts.exemplars import Examples, listed
from sam3label.core import masks
from sam3label.core.records import Candidate, Frame, Given, MediaItem, Rle, candidate_id, exemplar_key
from sam3label.errors import InputError
from sam3label.labelling.track_ids import Past
from sam3label.run.decide import shape_of

if TYPE_CHECKING:
    from torch import Tensor

    from sam3label.model.interactive import Clicked, Clicker


@dataclass(frozen=True, slots=True)
class Shown:
    """An object that is given: its prompt's key, what is said of it, its mask where that is known.

    `track` is its id in the video, where it has been followed before.
    """

    prompt: str
    given: Given
    mask: Rle | None = None
    track: int | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """An object with the mask that its track begins with: logits [h, w], and the IoU that the model expects of it."""

    shown: Shown
    logits: Tensor
    score: float


class GivenObjects:
    """The objects that are given in the frames of one video."""

    def __init__(self, item: MediaItem, examples: Sequence[Examples], clicker: Clicker | None) -> None:
        self._examples = [one for one in examples if one.has_boxes_in(item) and one.gives_objects]
        self._clicker = clicker

    def starts(self, frame: Frame, grid: Tensor, start: int, past: Past) -> list[Start]:
        """Return the tracks that begin in a frame, whose encoding is `grid` [1, V, g, g].

        In frames before `start`, which the clip before has labelled, these are its objects where the past has them
        first. Raises InputError where an object is not inside the frame.
        """
        shown = list(shown_on(frame, self._examples) if frame.index >= start else followed(past, frame.index))
        if not shown:
            return []
        assert self._clicker is not None
        hints = [one.given.hint for one in shown if one.mask is None and one.given.hint is not None]
        answer = self._clicker.ask(self._clicker.features(grid), [frame.size_hw], [hints])
        asked = zip(answer.masks, answer.ious.clamp(0, 1).tolist(), answer.stability.tolist(), strict=True)
        side = self._clicker.mask_side
        found = []
        for one in shown:
            if one.mask is not None:
                found.append(Start(one, _logits(one.mask, side).to(grid.device), 1.0))
                continue
            logits, iou, stability = next(asked)
            assert one.given.hint is not None
            if not bool((logits > 0).any()):  # so that there is something to follow
                logits = _logits(shape_of(one.given.hint, frame.size_hw), side).to(grid.device)
            found.append(Start(replace(one, given=replace(one.given, stability=stability)), logits, iou))
        return found


def shown_on(frame: Frame, examples: Iterable[Examples]) -> Iterator[Shown]:
    """Yield the objects that are given on a photo or a frame. Raises InputError where one does not fit it."""
    for own in examples:
        labelled = own.labels_of(frame)
        if labelled is None:
            continue
        wrong = list(labelled.problems(frame.size_hw))
        if wrong:
            raise InputError(listed(wrong))
        key = exemplar_key(own.concept.name)
        for mark in labelled.marks:
            if mark.class_name != own.concept.name:
                continue
            given, mask = mark.given(frame.size_hw, labelled.relative), mark.mask
            if mask is not None and mask.size_hw != frame.size_hw:
                raise InputError(f"{mark.where}: its mask is not of an image of {frame.size_hw} (height, width)")
            yield Shown(key, given if mask is None else replace(given, hint=None), mask)


def masked(
    clicker: Clicker, frames: Sequence[Frame], shown: Sequence[Sequence[Shown]], grids: Sequence[Tensor | None]
) -> list[list[Candidate]]:
    """Return the objects that are given on photos with their masks, in order. `grids` as of `Clicker.masks`."""
    hints = [[one.given.hint for one in own if one.mask is None and one.given.hint is not None] for own in shown]
    found = []
    for frame, own, answers in zip(frames, shown, clicker.masks(frames, hints, grids), strict=True):
        clicked = iter(answers)
        found.append(
            [
                candidate(frame, n, one.prompt, one.given, next(clicked)) if one.mask is None
                else _candidate(frame, n, one.prompt, one.given, one.mask, 1.0)
                for n, one in enumerate(own)
            ]
        )  # fmt: skip
    return found


def candidate(frame: Frame, number: int, prompt: str, given: Given, clicked: Clicked) -> Candidate:
    """Return an object of a photo, the `number`-th that is given there, with the mask that the model made of it."""
    rle = clicked.instance.rle if clicked.instance else masks.encode(np.zeros(frame.size_hw, np.bool_))
    return _candidate(frame, number, prompt, replace(given, stability=clicked.stability), rle, clicked.iou)


def _candidate(frame: Frame, number: int, prompt: str, given: Given, rle: Rle, score: float) -> Candidate:
    id_, box, area = candidate_id(frame.item.id, frame.index, prompt, number), masks.box_xywh(rle), masks.area(rle)
    return Candidate(id_, frame.item.id, frame.index, prompt, score, 1.0, box, area, rle, source="given", given=given)


def followed(past: Past, frame: int) -> Iterator[Shown]:
    """Yield the given objects that the past has in this frame and in none before it."""
    for one in past.seen:
        before = (other.frame for other in past.seen if other.track == one.track)
        if one.frame == frame == min(before) and one.track in past.given:
            yield Shown(one.prompt, replace(past.given[one.track], hint=None), one.rle, one.track)


def _logits(rle: Rle, side: int) -> Tensor:
    """Return a mask as logits [side, side], positive where it covers more than half of a cell."""
    import torch
    from torch.nn import functional as F

    from sam3label.model.tracker_parts import SURE

    whole = torch.from_numpy(masks.decode(rle)).float()[None, None]
    share = F.interpolate(whole, (side, side), mode="bilinear", align_corners=False, antialias=True)[0, 0]
    return (2 * share - 1) * SURE
