"""A look through all of a run's store, and what is whole of a damaged one carried into a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from sam3label.concepts.concept_list import parse_concepts
from sam3label.core import masks
from sam3label.core.problems import Problem
from sam3label.core.records import Candidate, Correction, UnitResult, Verdict
from sam3label.errors import Sam3LabelError, StoreError
from sam3label.run import row_by_row
from sam3label.run.reader import LAST_VERIFIER, TRUSTED_VERIFIERS, open_run
from sam3label.run.rows import Unit
from sam3label.run.store import Store
from sam3label.run.store_errors import DATABASE, DamagedStoreError

T = TypeVar("T")
_TOGETHER = 64  # units that are written in one transaction
_NOTES = ("concepts", "info", "exemplars", "trust", "settings", "extent", "pace", "review", "review_conflicts",
          "review_pending", "verifiers", TRUSTED_VERIFIERS, LAST_VERIFIER)  # fmt: skip


@dataclass(slots=True)
class StoreFindings:
    """What a look through a run came to: problems of the database, and photos that are not what was labelled."""

    units: int = 0
    corrections: int = 0
    problems: list[Problem] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # items of which a part cannot be read or is wrong
    changed: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether the store is whole. Photos may have changed all the same."""
        return not self.problems and not self.lost


def examine(folder: str | Path, photos: str | Path | None = None) -> StoreFindings:
    """Go through a run: the database's own checks, every unit, mask, correction and note, and the photos.

    Raises `StoreError` only where there is no run at all.
    """
    found = StoreFindings()
    try:
        store = Store.open(folder)
    except DamagedStoreError as error:
        found.problems.append(Problem("the database", f"it cannot be opened: {error.what}"))
        return found
    with store:
        found.problems += [Problem("the database", text) for text in row_by_row.integrity(store)]
        found.problems += _notes_problems(store)
        for name, unit in _units(store, found):
            found.lost += [name] if unit is None else []
            found.units += unit is not None
        _look_at(lambda: list(_near_copies(store)), "the near-copies", found)
        _look_at(lambda: _verdicts(store), "the verdicts", found)
        _look_at(lambda: list(store.transcripts()), "the transcripts", found)
        found.corrections = sum(1 for _ in _corrections(store, found))
    if found.is_sound:
        with open_run(folder, photos=photos) as run:
            found.changed = run.changed_photos()
    return found


def repair(folder: str | Path, out: str | Path) -> StoreFindings:
    """Write a new run with what is whole of a damaged one: first what people did, then what models saw and said.

    Near-copies stay left out, and what a verifier said is kept where all of it can be read.

    Raises `StoreError` when there is a run in `out`, or when not even the old one's notes can be read.
    """
    if (Path(out) / DATABASE).exists():
        raise StoreError(f"{out} holds a run already. Choose a new folder for what can be saved.")
    found = StoreFindings()
    with Store.open(folder) as old:
        notes = {key: value for key in _NOTES if (value := _note(old, key)) is not None}
        with Store.writer(out, old.prompts, old.meta("fingerprint") or {}, notes=notes) as new:
            kept = list(_corrections(old, found))
            row_by_row.carry_corrections(new, kept)
            found.corrections = len(kept)
            new.write(_look_at(lambda: list(_near_copies(old)), "the near-copies", found))
            looks = {
                (i, frame): look for i, frame, look in _look_at(lambda: list(old.looks()), "image features", found)
            }
            batch: list[UnitResult] = []
            for name, unit in _units(old, found):
                if unit is None:
                    found.lost.append(name)
                    continue
                found.units += 1
                batch.append(replace(unit, look=looks.get((name, unit.frame_start), b"")))
                if len(batch) == _TOGETHER:
                    new.write(batch)
                    batch.clear()
            new.write(batch)
            if verdicts := _look_at(lambda: _verdicts(old), "the verdicts", found):
                new.add_verdicts(verdicts)
            if transcripts := _look_at(lambda: list(old.transcripts()), "the transcripts", found):
                new.add_transcripts(transcripts)
    return found


def _notes_problems(store: Store) -> Iterator[Problem]:
    for key in ("fingerprint", *_NOTES):
        try:
            value = store.meta(key)
            if key == "concepts" and value is None:
                yield Problem("the run's concept list", "it is missing: give one with -c")
            elif key == "concepts":
                parse_concepts(value, "the run's own list")
        except Sam3LabelError as error:
            yield Problem(f"the note {key!r}", f"it cannot be read: {error}")


def _note(store: Store, key: str) -> object:
    try:
        return store.meta(key)
    except StoreError:
        return None


def _look_at(read: Callable[[], list[T]], what: str, found: StoreFindings) -> list[T]:
    """Return what is read, or nothing and a problem where it cannot be."""
    try:
        return read()
    except StoreError:
        found.problems.append(Problem(what, "they cannot be read"))
        return []


def _verdicts(store: Store) -> list[Verdict]:
    return [verdict for name in row_by_row.verifiers(store) for verdict in store.verdicts(name)]


def _near_copies(store: Store) -> Iterator[UnitResult]:
    """Yield what was left out as a near-copy, as it was written. Raises `StoreError`."""
    skipped = list(store.skipped())
    wanted = {item_id for item_id, _, _ in skipped}
    items = {item.id: (item, stamp) for item, stamp in store.items() if item.id in wanted} if wanted else {}
    for item_id, frame, like in (row for row in skipped if row[0] in items):
        item, stamp = items[item_id]
        yield UnitResult(item, frame, frame + 1, None, last=False, stamp=stamp, like=like)


def _units(store: Store, found: StoreFindings) -> Iterator[tuple[str, UnitResult | None]]:
    """Yield (item id or row, its unit if it is whole) of every unit that can be reached."""
    numbers, complete = row_by_row.numbers(store, "units")
    if not complete:
        found.problems.append(Problem("the table of units", "a part of it cannot be read"))
    for number in numbers:
        name = f"unit {number}"
        try:
            unit = row_by_row.unit_numbered(store, number)
            name = unit.item.id
            yield name, _whole(store, unit)
        except StoreError:
            yield name, None


def _whole(store: Store, unit: Unit) -> UnitResult:
    """Return a unit with all that belongs to it. Raises `StoreError` where something of it is not as it was written."""
    stamp = store.stamp(unit.item.id)
    if unit.error is not None:
        return UnitResult(unit.item, unit.frame_start, unit.frame_stop, None, error=unit.error, stamp=stamp)
    candidates, presence = store.candidates(unit), store.presence(unit)
    full = tuple(key for _, frame, key in store.full(unit.item.id) if frame == unit.frame_start)
    if not all(_fits(candidate) for candidate in candidates):
        raise DamagedStoreError(store.folder, f"a mask of {unit.item.id} is not the one that was written")
    if ((presence < 0) | (presence > 1)).any():
        raise DamagedStoreError(store.folder, f"a presence of {unit.item.id} is not between 0 and 1")
    return UnitResult(
        unit.item, unit.frame_start, unit.frame_stop, unit.size_hw, candidates, np.asarray(presence, np.float32),
        last=unit.last, stamp=stamp, processor=row_by_row.processor_of(store, unit), full=full,
    )  # fmt: skip


def _fits(candidate: Candidate) -> bool:
    """Return whether area and box are those of the mask: they were computed from it."""
    same_box = np.allclose(candidate.box_xywh, masks.box_xywh(candidate.rle), atol=1e-3)
    return candidate.area == masks.area(candidate.rle) and bool(same_box)


def _corrections(store: Store, found: StoreFindings) -> Iterator[tuple[Correction, str | None]]:
    numbers, complete = row_by_row.numbers(store, "corrections")
    if not complete:
        found.problems.append(Problem("the table of corrections", "a part of it cannot be read"))
    for number in numbers:
        try:
            yield row_by_row.correction_numbered(store, number)
        except StoreError:
            found.problems.append(Problem(f"correction {number}", "it cannot be read"))
