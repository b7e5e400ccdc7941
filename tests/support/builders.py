"""Small values for tests: masks that are rectangles, candidates, concepts, units."""

from __future__ import annotations

from typing import Any

import numpy as np

from sam3label.core import masks
from sam3label.core.records import (
    Candidate,
    Concept,
    ConceptList,
    MediaItem,
    Prompt,
    Rle,
    Source,
    UnitResult,
    candidate_id,
)

SIZE_HW = (60, 80)


def rectangle(x: int, y: int, w: int, h: int, size_hw: tuple[int, int] = SIZE_HW) -> Rle:
    mask = np.zeros(size_hw, dtype=bool)
    mask[y : y + h, x : x + w] = True
    return masks.encode(mask)


def candidate(
    prompt: str,
    score: float,
    rle: Rle,
    *,
    item_id: str = "a.jpg",
    query: int = 0,
    presence: float = 0.9,
    source: Source = "phrase",
    frame: int = 0,
) -> Candidate:
    """A candidate whose box and area come from its mask."""
    return Candidate(
        id=candidate_id(item_id, frame, prompt, query),
        item_id=item_id,
        frame=frame,
        prompt=prompt,
        score=score,
        presence=presence,
        box_xywh=masks.box_xywh(rle),
        area=masks.area(rle),
        rle=rle,
        source=source,
    )


def concepts(*classes: str | Concept, exclusive: tuple[tuple[str, ...], ...] = ()) -> ConceptList:
    """Classes in order; a plain name asks for itself."""
    made = [c if isinstance(c, Concept) else Concept(i, c, (c,)) for i, c in enumerate(classes)]
    return ConceptList(tuple(made), exclusive)


def unit(item_id: str, *candidates: Candidate, prompts: int = 1, **fields: Any) -> UnitResult:
    """A done unit of one image, unless `error` says otherwise."""
    item = MediaItem(item_id, f"/photos/{item_id}")
    if "error" in fields:
        return UnitResult(item, 0, 1, None, **fields)
    presence = np.full((1, prompts), 0.5, dtype=np.float32)
    return UnitResult(item, 0, 1, SIZE_HW, candidates, presence, **fields)


def phrase_prompts(*phrases: str) -> list[Prompt]:
    return [Prompt(key=p, text=p) for p in phrases]
