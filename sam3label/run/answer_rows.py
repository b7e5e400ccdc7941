"""What the model answered of a unit, read from its rows: candidates, presences, and where answers ran out of room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.core.records import Candidate, Rle, Source
from sam3label.run.database import Database
from sam3label.run.prompt_rows import PromptRows
from sam3label.run.rows import CANDIDATE_COLUMNS, Unit, given_of, one_of

Presence = npt.NDArray[np.float32]


def candidates_of(db: Database, prompts: PromptRows, unit: Unit) -> tuple[Candidate, ...]:
    """Return a unit's candidates for the prompts that count now, in the order in which they were written."""
    if unit.size_hw is None:
        return ()
    rows = db.rows(f"SELECT {CANDIDATE_COLUMNS} FROM candidates WHERE unit_id = ? ORDER BY rowid", (unit.id,))
    found = tuple(_candidate(prompts, unit, unit.size_hw, row) for row in rows if row[2] in prompts.place)
    if any(candidate.source == "given" for candidate in found):
        found = _with_given(db, unit, found)
    if not all(masks.are_whole([c.rle for c in found])):
        raise ValueError(f"the masks of {unit.item.id} do not fit it")
    return found


def _candidate(prompts: PromptRows, unit: Unit, size_hw: tuple[int, int], row: tuple[Any, ...]) -> Candidate:
    id_, frame, prompt, score, presence, x, y, w, h, area, counts, track_id, track_score, source = row
    if not (unit.frame_start <= frame < unit.frame_stop and 0 <= score <= 1 and 0 <= presence <= 1):
        raise ValueError(f"a candidate of {unit.item.id} is out of range")
    box = (float(x), float(y), float(w), float(h))
    return Candidate(str(id_), unit.item.id, frame, prompts.listed[prompts.place[prompt]].key, float(score),
                     float(presence), box, int(area), Rle(size_hw, counts), track_id, track_score,
                     cast(Source, one_of(source, get_args(Source))))  # fmt: skip


def _with_given(db: Database, unit: Unit, found: Sequence[Candidate]) -> tuple[Candidate, ...]:
    query = "SELECT candidate, hint, named, attributes, stability FROM given WHERE unit_id = ?"
    given = {id_: given_of(*columns) for id_, *columns in db.rows(query, (unit.id,))}
    return tuple(replace(c, given=given[c.id]) if c.source == "given" else c for c in found)


def presence_of(db: Database, prompts: PromptRows, unit: Unit) -> Presence:
    """Return [F, P] in the order of the prompts that count; NaN where one was not asked. Empty for a failed unit."""
    frames = 0 if unit.error is not None else unit.frame_stop - unit.frame_start
    values = np.full((frames, len(prompts.listed)), np.nan, np.float32)
    if not frames:
        return values
    row = db.one("SELECT presence FROM units WHERE id = ?", (unit.id,))
    for number, column in columns(prompts, unit.question, row[0] if row else None, frames).items():
        if number in prompts.place:
            values[:, prompts.place[number]] = column
    return values


def columns(prompts: PromptRows, question: int | None, blob: bytes | None, frames: int) -> dict[int, Presence]:
    """Return a unit's presences [F] by the number of the prompt, from the bytes that its row holds."""
    numbers = prompts.asked(question)[1]
    values = np.frombuffer(blob or b"", dtype="<f4").reshape(frames, len(numbers))
    return dict(zip(numbers, values.T, strict=True))


def crowded(db: Database, prompts: PromptRows, least: int) -> Iterator[tuple[str, int, str]]:
    """Yield (item id, frame, prompt's key) of every image with at least so many answers to one prompt that counts."""
    rows = db.rows(
        "SELECT item_id, frame, prompt FROM candidates JOIN units ON units.id = unit_id"
        " GROUP BY unit_id, frame, prompt HAVING count(*) >= ? ORDER BY item_id, frame, prompt",
        (least,),
    )
    return _named(prompts, rows)


def full(db: Database, prompts: PromptRows, item_id: str | None) -> Iterator[tuple[str, int, str]]:
    """Yield (item id, frame, prompt's key) where answers ran out of room in the closest views: of all, or one item."""
    where, values = ("", ()) if item_id is None else (" WHERE item_id = ?", (item_id,))
    rows = db.rows(
        'SELECT item_id, frame, prompt FROM "full" JOIN units ON units.id = unit_id'
        f"{where} ORDER BY item_id, frame, prompt",
        values,
    )
    return _named(prompts, rows)


def _named(prompts: PromptRows, rows: Iterator[tuple[Any, ...]]) -> Iterator[tuple[str, int, str]]:
    for item_id, frame, number in rows:
        if number in prompts.place:
            yield item_id, frame, prompts.listed[prompts.place[number]].key
