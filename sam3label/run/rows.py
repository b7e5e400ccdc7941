"""What a row of the store stands for: items, units, candidates and what was given for them, corrections.

Reading checks what no version ever wrote: a value out of range is a `ValueError`, which `reading` calls damage.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from sam3label.core import masks
from sam3label.core.records import Box, Correction, Given, Hint, MediaItem, Rle

ITEM_COLUMNS = "items.id, items.kind, items.root, items.path"
UNITS = (
    f"SELECT {ITEM_COLUMNS}, units.id, frame_start, frame_stop, height, width, error, trouble, question, last"
    " FROM units JOIN items ON items.id = item_id"
)
CANDIDATE_COLUMNS = "id, frame, prompt, score, presence, x, y, w, h, area, counts, track_id, track_score, source"
CORRECTION_COLUMNS = "item_id, frame, action, label_id, class_name, height, width, counts, track_id, who, at, pull"


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit's row: what was labelled, how large it is, why it failed if it did, and which question it was asked.

    `trouble` says why prompts that came later could not be asked of it; its earlier answers stand.
    """

    id: int
    item: MediaItem
    frame_start: int
    frame_stop: int
    size_hw: tuple[int, int] | None
    error: str | None
    trouble: str | None = None
    question: int | None = None
    last: bool = True
    part: int = 0  # of several run folders that are read as one, which it is in


@dataclass(frozen=True, slots=True)
class Totals:
    """How far a run has come. `candidates` counts everything over the floor, not labels."""

    done: int
    failed: int
    candidates: int


def item_of(id_: str, kind: str, root: str, path: str) -> MediaItem:
    return MediaItem(id_, path, cast(Literal["image", "video"], one_of(kind, ("image", "video"))), root)


def unit_of(row: tuple[Any, ...]) -> Unit:
    item, (id_, start, stop, height, width, error, trouble, question, last) = item_of(*row[:4]), row[4:]
    if not 0 <= start < stop:
        raise ValueError(f"frames {start} to {stop}")
    size_hw = None if height is None else (int(height), int(width))
    if error is None and (size_hw is None or min(size_hw) < 1):
        raise ValueError(f"{item.id} has no size")
    return Unit(id_, item, start, stop, size_hw, error, trouble, question, bool(last))


def given_row(given: Given) -> tuple[str, str, str, float]:
    box, points = (None, ()) if given.hint is None else (given.hint.box_xyxy, given.hint.points)
    hint = {"box": box, "points": [(x, y, int(on)) for x, y, on in points]}
    return json.dumps(hint), given.id, json.dumps(given.attributes), given.stability


def given_of(hint: str, named: str, attributes: str, stability: float) -> Given:
    shown = json.loads(hint)
    box = None if shown["box"] is None else tuple(map(float, shown["box"]))
    points = tuple((float(x), float(y), bool(on)) for x, y, on in shown["points"])
    said = tuple((str(key), str(value)) for key, value in json.loads(attributes))
    given = Hint(cast(Box | None, box), points) if box or points else None
    return Given(given, str(named), said, float(stability))


def one_of(value: Any, allowed: Sequence[Any]) -> Any:
    if value not in allowed:
        raise ValueError(f"{value!r} is none of {', '.join(map(str, allowed))}")
    return value


def correction_of(row: tuple[Any, ...]) -> Correction:
    item, frame, action, label, name, h, w, counts, track, who, at, pull = row
    rle = Rle((h, w), counts) if counts else None
    if rle is not None and not masks.are_whole([rle])[0]:
        raise ValueError(f"a mask that {who or 'a person'} drew on {item} does not fit it")
    return Correction(item, frame, action, label, name, rle, track, who, at, pull)


def correction_row(one: Correction) -> tuple[Any, ...]:
    height, width = one.rle.size_hw if one.rle else (None, None)
    counts = one.rle.counts if one.rle else None
    return (one.item_id, one.frame, one.action, one.label_id, one.class_name, height, width, counts,
            one.track_id, one.who, one.at, one.pull)  # fmt: skip
