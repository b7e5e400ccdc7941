"""Large photos in tiles: where they lie, which photos and phrases get them, and each object once.

The model sees a photo at its own input size, so what is small on a large photo vanishes. A tile is a part of the photo
that is shown to the model as a photo of its own, beside the whole. Tiles come in sizes, each twice as large as the one
before, up to the whole, and each object is the closest view's that sees it whole, with some of what is around it:
what is too large for a tile, or cut by its seam, is left to a larger one. The numbers below were chosen on drawn scenes
with known truth (scripts/bench/bench_tiles.py, other seeds); "Large images" in the documentation has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.core.records import Box, Candidate, ConceptList, Frame, Prompt, Tiles, candidate_id
from sam3label.labelling.windows import Window, in_image, once

if TYPE_CHECKING:
    from sam3label.model.detector import Detection, Detector

# `auto` tiles photos whose longer side is that many times the input: docs/howto/large-images.md, "Why twice"
AUTO_FACTOR = 2.0
SEAM = 0.02  # of a tile: what comes so near to its edge within the photo is taken for cut
MOST_OF_TILE = 0.35  # an object that takes up more of a tile's side is left to the tiles twice as large, or the whole
CLOSER = 0.25  # and one that takes up less of a closer tile's side, and lies clear of its seams, is left to that
COARSEST = 1.5  # the whole photo's side over that of the largest tiles, at least: the whole is the next view
DEEPEST = 4  # times that the model's input is enlarged at most, where answers still run out of room


def layout(size_hw: tuple[int, int], side: int, overlap: float) -> list[Window]:
    """Return tiles of at most `side` pixels that cover an image, evenly spread, which share at least `overlap` of one.

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


def pyramid(size_hw: tuple[int, int], side: int, overlap: float) -> list[Window]:
    """Return tiles of `side` pixels and of all its doubles that are clearly smaller than the image, the largest first.

    Empty for an image that one tile of `side` would hold whole.
    """
    sides = [side]
    while 2 * sides[-1] * COARSEST <= max(size_hw):
        sides.append(2 * sides[-1])
    return [window for one in reversed(sides) for window in layout(size_hw, one, overlap)]


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
        return pyramid(size_hw, rule.size or self._detector.image_size, rule.overlap)

    def detect(self, frames: Sequence[Frame], seen: Sequence[Detection], floor: float) -> list[Detection]:
        """Return what the photos come to with what their tiles add, for the prompts that these are asked.

        `seen` is what the whole photos came to: `auto` tiles large photos, and phrases whose answers ran out of room.
        Presence is the highest of all views.
        """
        return [self._joined(frame, whole, floor) for frame, whole in zip(frames, seen, strict=True)]

    def _joined(self, frame: Frame, whole: Detection, floor: float) -> Detection:
        in_tiles = {prompt.key for prompts in self._by_rule.values() for prompt in prompts}
        presence, full = whole.presence, set(whole.full) - in_tiles
        left, closest = list(whole.candidates), list[Sequence[Candidate]]()  # to the whole view, and the tiles'
        for rule, prompts in self._by_rule.items():
            parts = self._first(frame, whole, rule, prompts)
            if not parts:  # the whole is the closest view there is
                full |= set(_full(prompts, whole))
            else:
                keys = {prompt.key for prompt in parts[0].asked}
                closer = _seen_whole([p.window for p in parts if p.side == parts[0].side], frame.size_hw)
                left = [c for c in left if c.prompt not in keys or not _is_in_one(c.box_xywh, closer)]
            for found in self._in_tiles(frame, rule, parts, floor):
                closest.append(found.candidates)
                presence = np.fmax(presence, found.presence)
                full |= set(found.full)
        if presence is whole.presence:  # no tile was looked at
            return whole
        place = {prompt.key: i for i, prompt in enumerate(self._prompts)}
        ordered = tuple(sorted(once(left, *closest), key=lambda candidate: place[candidate.prompt]))
        return replace(whole, presence=presence, candidates=ordered, full=tuple(sorted(full, key=place.__getitem__)))

    def _first(self, frame: Frame, whole: Detection, rule: Tiles, prompts: Sequence[Prompt]) -> list[_Part]:
        """Return the tiles of a photo that prompts are put to, before it is known which of these run out of room."""
        asked = tuple(p for p in prompts if not np.isnan(whole.presence[self._prompts.index(p)]))
        if not rule.auto or max(frame.size_hw) >= AUTO_FACTOR * self._detector.image_size:
            return [_Part(window, asked) for window in self.windows(frame.size_hw, rule)] if asked else []
        height, width = frame.size_hw
        return self._closer(_Part(Window(0, 0, width, height), asked), whole, rule)

    def _closer(self, part: _Part, found: Detection, rule: Tiles) -> list[_Part]:
        """Return a view's quarters, for the prompts that ran out of room in it; none where they would say no more."""
        keys = _full(part.asked, found)
        full = tuple(prompt for prompt in part.asked if prompt.key in keys)
        length = max(part.window.width, part.window.height)
        side = math.ceil(length / (2 - rule.overlap))
        if not full or not self._detector.image_size / DEEPEST <= side < length:
            return []
        x, y = part.window.x, part.window.y
        quarters = layout((part.window.height, part.window.width), side, rule.overlap)
        return [_Part(replace(one, x=x + one.x, y=y + one.y), full) for one in quarters]

    def _in_tiles(self, frame: Frame, rule: Tiles, parts: Sequence[_Part], floor: float) -> Iterator[Detection]:
        """Yield what is found in tiles; with `auto` also in quarters of the finest where answers ran out of room.

        `full` of each names the phrases of which there may be more than it shows: no closer view is to come.
        """
        finest = min((part.side for part in parts), default=0)
        views = {  # by side: where the tiles half as large see an object whole
            2 * side: _seen_whole([part.window for part in parts if part.side == side], frame.size_hw)
            for side in {part.side for part in parts}
        }
        while parts:
            closer: list[_Part] = []
            for start in range(0, len(parts), self._detector.image_batch):
                some = parts[start : start + self._detector.image_batch]
                for part, detection in zip(some, self._asked(frame, some, floor), strict=True):
                    is_finest = part.side <= finest
                    quarters = self._closer(part, detection, rule) if rule.auto and is_finest else []
                    closer += quarters
                    closer_views = views.get(part.side, _NOWHERE)
                    placed = _placed(detection.candidates, part.window, frame.size_hw)
                    yield replace(
                        detection,
                        candidates=tuple(c for c in placed if not _is_in_one(c.box_xywh, closer_views)),
                        full=_full(part.asked, detection) if is_finest and not quarters else (),
                    )
            parts, finest = closer, max((part.side for part in closer), default=0)

    def _asked(self, frame: Frame, parts: Sequence[_Part], floor: float) -> list[Detection]:
        """Return what the model sees in each part; presence in the order of all prompts, NaN where one is not asked."""
        views = [replace(frame, pixels=_cut(frame.pixels, part.window)) for part in parts]
        prompts = [p for p in self._prompts if any(p in part.asked for part in parts)]
        left_out: list[dict[str, None]] = [{p.key: None for p in prompts if p not in part.asked} for part in parts]
        places = [self._prompts.index(prompt) for prompt in prompts]
        found = []
        for one in self._detector.detect(views, prompts, floor, left_out):
            presence = np.full(len(self._prompts), np.nan, np.float32)
            presence[places] = one.presence
            found.append(replace(one, presence=presence))
        return found


@dataclass(frozen=True, slots=True)
class _Part:
    """A tile, and the prompts that are put to it."""

    window: Window
    asked: tuple[Prompt, ...]

    @property
    def side(self) -> int:
        return max(self.window.width, self.window.height)


def _full(asked: Sequence[Prompt], found: Detection) -> tuple[str, ...]:
    return tuple(prompt.key for prompt in asked if prompt.key in found.full)


def _cut(pixels: npt.NDArray[np.uint8], window: Window) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(pixels[window.y : window.y + window.height, window.x : window.x + window.width])


def _placed(candidates: Sequence[Candidate], window: Window, size_hw: tuple[int, int]) -> Iterator[Candidate]:
    """Yield a tile's candidates as the photo's, under ids that say where it lies, whatever else was asked.

    What a seam cuts or takes up much of the tile is left to larger views.
    """
    most = MOST_OF_TILE * max(window.width, window.height)
    for candidate in candidates:
        length = max(candidate.box_xywh[2:])
        left_out = length > most or _is_cut(candidate.box_xywh, window, size_hw)
        rle = None if left_out else in_image(candidate.rle, window, size_hw)
        if rle is not None:
            place = f"{candidate.id} {window.x} {window.y} {window.width} {window.height}"
            own = candidate_id(candidate.item_id, candidate.frame, place, 0)
            yield replace(candidate, id=own, rle=rle, box_xywh=masks.box_xywh(rle))


_Views = npt.NDArray[np.float64]  # [N, 5]: left, top, right, bottom, and how long an object may be
_NOWHERE: _Views = np.empty((0, 5))


def _seen_whole(windows: Sequence[Window], size_hw: tuple[int, int]) -> _Views:
    """Return where tiles see an object whole, and well: clear of their seams, and no longer than part of them."""
    views = [
        (
            window.x + (margin if window.x > 0 else 0),
            window.y + (margin if window.y > 0 else 0),
            window.x + window.width - (margin if window.x + window.width < size_hw[1] else 0),
            window.y + window.height - (margin if window.y + window.height < size_hw[0] else 0),
            CLOSER * max(window.width, window.height),
        )
        for window in windows
        for margin in (SEAM * max(window.width, window.height),)
    ]
    return np.array(views, np.float64).reshape(-1, 5)


def _is_in_one(box_xywh: Box, views: _Views) -> bool:
    """Return whether a closer view sees an object whole, and so answers for it."""
    x, y, w, h = box_xywh
    left, top, right, bottom, most = views.T
    return bool(((x >= left) & (y >= top) & (x + w <= right) & (y + h <= bottom) & (max(w, h) <= most)).any())


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
