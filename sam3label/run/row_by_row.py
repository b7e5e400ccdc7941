"""A store that may be damaged, read one row at a time, so that what is whole can still be reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sam3label.core.records import Correction, Processor
from sam3label.errors import StoreError
from sam3label.run import correction_rows
from sam3label.run.rows import CORRECTION_COLUMNS, UNITS, Unit, correction_of, unit_of
from sam3label.run.store import Store
from sam3label.run.store_errors import DamagedStoreError, in_words, reading


def integrity(store: Store) -> list[str]:
    """Return what SQLite itself finds wrong with the file; empty for a sound one."""
    try:
        with in_words(store.folder):
            found = [str(row[0]) for row in store.db.rows("PRAGMA integrity_check(5)")]
    except DamagedStoreError as error:
        return [error.what]
    return [] if found == ["ok"] else found


def numbers(store: Store, table: Literal["units", "corrections"]) -> tuple[list[int], bool]:
    """Return the numbers of a table's rows that can be read, from both ends, and whether these are all."""
    reached: set[int] = set()
    for order in ("ASC", "DESC"):
        try:
            with reading(store.folder):
                for (number,) in store.db.rows(f"SELECT id FROM {table} ORDER BY id {order}"):
                    if number in reached:
                        break
                    reached.add(number)
                if order == "ASC":
                    return sorted(reached), True
        except StoreError:
            continue
    return sorted(reached), False


def unit_numbered(store: Store, number: int) -> Unit:
    """Return a unit by the number of its row. Raises `StoreError` where it cannot be read."""
    with reading(store.folder):
        row = store.db.one(f"{UNITS} WHERE units.id = ?", (number,))
        if row is None:
            raise ValueError(f"unit {number} has no item")
        return unit_of(row)


def correction_numbered(store: Store, number: int) -> tuple[Correction, str | None]:
    """Return a correction by the number of its row, and the digest of the file that the person saw."""
    with reading(store.folder):
        row = store.db.one(f"SELECT {CORRECTION_COLUMNS}, content FROM corrections WHERE id = ?", (number,))
        if row is None:
            raise ValueError(f"correction {number} is missing")
        return correction_of(row[:-1]), row[-1]


def carry_corrections(store: Store, corrections: Sequence[tuple[Correction, str | None]]) -> None:
    """Append corrections of another store, each with the digest of the file that the person saw."""
    with in_words(store.folder), store.db:
        correction_rows.carry_corrections(store.db, corrections)


def processor_of(store: Store, unit: Unit) -> Processor | None:
    """Return what computed a unit; None where that is not known."""
    with reading(store.folder):
        query = "SELECT host, device, kind FROM units JOIN processors ON processors.id = processor WHERE units.id = ?"
        row = store.db.one(query, (unit.id,))
        return None if row is None else Processor(*map(str, row))


def verifiers(store: Store) -> list[str]:
    """Return the verifiers whose verdicts are kept."""
    with reading(store.folder):
        if store.db.one("SELECT 1 FROM sqlite_master WHERE name = 'verdicts'") is None:
            return []
        return [str(row[0]) for row in store.db.rows("SELECT DISTINCT verifier FROM verdicts ORDER BY verifier")]
