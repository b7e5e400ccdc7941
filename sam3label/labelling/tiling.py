"""Large photos in tiles: where they lie, which photos and phrases get them, and each object once.

The model sees a photo at its own input size, so what is small on a large photo vanishes. A tile is a part of the photo
that is shown to the model as a photo of its own, beside the whole. What a seam cuts is left to the tile that sees it
whole; what is larger than a tile is the whole view's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.core.records import Box, Candidate, ConceptList, Frame, Prompt, Tiles, candidate_id
from sam3label.labelling.windows import Window, in_image
from sam3label.run.saturation import is_full

if TYPE_CHECKING:
    from sam3label.model.detector import Detection, Detector

AUTO_FACTOR = (
    2.0  # `auto` tiles photos whose longer side is that many times the model's input: see docs, "Large photos"
)
SEAM = 0.03  # of a tile: what comes so near to its edge within the photo is taken for cut


def layout(size_hw: tuple[int, int], side: int, overlap: float) -> list[Window]:
    """Tiles of at most `side` pixels that cover an image, evenly spread, neighbours sharing at least `overlap` of one.

    An image that one tile would hold whole has none.
    """
    height, width = size_hw
    if max(size_hw) <= side:
        return []
    rows, columns = (_spans(length, side, overlap) for length in (height, width))
    return [Window(x, y, w, h) for y, h in rows for x, w in columns]


def _spans(length: int, side: int, overlap: float) -> list[tuple[int, int]]:
    """Return (start, size) of equal parts that cover 0..length."""
    if length <= side:
        return [(0, length)]
    step = max(1, math.floor(side * (1 - overlap)))
    count = 1 + math.ceil((length - side) / step)
    return [(round(i * (length - side) / (count - 1)), side) for i in range(count)]


class Tiler:
    """Asks a run's phrases of the tiles of its photos, class by class as the concept list says."""

    def __init__(self, detector: Detector, concepts: ConceptList, prompts: Sequence[Prompt]) -> None:
        self._detector, self._prompts = detector, prompts
        self._by_rule: dict[Tiles, list[Prompt]] = {}
        rules: dict[str, Tiles] = {}
        for concept in concepts.concepts:
            if concept.tile is not None:
                rules |= dict.fromkeys((*concept.prompts, *concept.negatives), concept.tile)
        for prompt in prompts:
            if prompt.source == "phrase" and prompt.key in rules:
                self._by_rule.setdefault(rules[prompt.key], []).append(prompt)

    def windows(self, size_hw: tuple[int, int], rule: Tiles) -> list[Window]:
        """Return the tiles of a photo of this size under a rule, whether or not `auto` would show them."""
        return layout(size_hw, rule.size or self._detector.image_size, rule.overlap)

    def detect(
        self, frames: Sequence[Frame], seen: Sequence[Detection], floor: float
    ) -> Iterator[tuple[int, Detection]]:
        """Yield (frame number, what was found in one of its tiles), for the prompts that the photo's tiles are asked.

        `seen` is what the whole photos came to: `auto` tiles large photos, and phrases whose answers ran out of room.
        """
        for index, (frame, whole) in enumerate(zip(frames, seen, strict=True)):
            for rule, prompts in self._by_rule.items():
                asked = [prompt for prompt in prompts if self._wants(rule, frame, whole, prompt)]
                if asked:
                    for detection in self._in_tiles(frame, self.windows(frame.size_hw, rule), asked, floor):
                        yield index, detection

    def _wants(self, rule: Tiles, frame: Frame, whole: Detection, prompt: Prompt) -> bool:
        if np.isnan(whole.presence[self._prompts.index(prompt)]):
            return False
        large = max(frame.size_hw) >= AUTO_FACTOR * self._detector.image_size
        return not rule.auto or large or is_full(whole.candidates, prompt.key, self._detector.queries)

    def _in_tiles(
        self, frame: Frame, windows: Sequence[Window], asked: Sequence[Prompt], floor: float
    ) -> Iterator[Detection]:
        for start in range(0, len(windows), self._detector.image_batch):
            some = windows[start : start + self._detector.image_batch]
            views = [replace(frame, pixels=_cut(frame.pixels, window)) for window in some]
            found = self._detector.detect(views, asked, floor)
            for number, (window, detection) in enumerate(zip(some, found, strict=True), start + 1):
                presence = np.full(len(self._prompts), np.nan, np.float32)
                presence[[self._prompts.index(prompt) for prompt in asked]] = detection.presence
                candidates = tuple(_placed(detection.candidates, window, number, frame.size_hw))
                yield replace(detection, presence=presence, candidates=candidates)


def _cut(pixels: npt.NDArray[np.uint8], window: Window) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(pixels[window.y : window.y + window.height, window.x : window.x + window.width])


def _placed(
    candidates: Sequence[Candidate], window: Window, number: int, size_hw: tuple[int, int]
) -> Iterator[Candidate]:
    """Return a tile's candidates as the photo's, under ids of their own; those that a seam cuts are left out."""
    for candidate in candidates:
        rle = None if _is_cut(candidate.box_xywh, window, size_hw) else in_image(candidate.rle, window, size_hw)
        if rle is not None:
            own = candidate_id(candidate.item_id, candidate.frame, candidate.id, number)
            yield replace(candidate, id=own, rle=rle, box_xywh=masks.box_xywh(rle))


def _is_cut(box_xywh: Box, window: Window, size_hw: tuple[int, int]) -> bool:
    """Return whether a tile's object is so near a seam that it may go on behind it: masks end a little early there."""
    x, y, w, h = box_xywh
    margin = SEAM * max(window.width, window.height)
    return (
        (window.x > 0 and x < margin)
        or (window.y > 0 and y < margin)
        or (window.x + window.width < size_hw[1] and x + w > window.width - margin)
        or (window.y + window.height < size_hw[0] and y + h > window.height - margin)
    )
