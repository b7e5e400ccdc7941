"""What people and verifiers said of labels: corrections and verdicts, appended and read. Candidates are never touched.

Everything that writes is part of the transaction of the caller, the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sam3label.core.records import Correction, Verdict
from sam3label.run.database import Database
from sam3label.run.rows import CORRECTION_COLUMNS, correction_of, correction_row

# a correction counts for the file the person saw; what is not known to differ is the same
_IN_FORCE = "(content IS NULL OR items.digest IS NULL OR content = items.digest)"
_VERDICTS = """
CREATE TABLE IF NOT EXISTS verdicts (
    item_id TEXT NOT NULL, frame INTEGER NOT NULL, class_name TEXT NOT NULL,
    label_id TEXT NOT NULL,           -- '' for a verdict on the class in the image
    part TEXT NOT NULL, score REAL,   -- NULL: not sure
    verifier TEXT NOT NULL, at TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (item_id, frame, class_name, label_id, part, verifier)) WITHOUT ROWID
"""


def add_corrections(db: Database, corrections: Sequence[Correction]) -> None:
    """Append corrections, each with the digest of the file as it is now."""
    db.executemany(
        f"INSERT INTO corrections ({CORRECTION_COLUMNS}, content)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT digest FROM items WHERE id = ?))",
        [(*correction_row(one), one.item_id) for one in corrections],
    )


def carry_corrections(db: Database, corrections: Sequence[tuple[Correction, str | None]]) -> None:
    """Append corrections of another store, each with the digest of the file that the person saw."""
    db.executemany(
        f"INSERT INTO corrections ({CORRECTION_COLUMNS}, content) VALUES ({', '.join('?' * 13)})",
        [(*correction_row(one), content) for one, content in corrections],
    )


def corrections_in_force(db: Database, item_id: str | None) -> list[Correction]:
    """Return corrections of one item, or of all, oldest first; not those on a file that was replaced since."""
    where, values = ("", ()) if item_id is None else (" AND item_id = ?", (item_id,))
    rows = db.rows(
        f"SELECT {CORRECTION_COLUMNS} FROM corrections LEFT JOIN items ON items.id = item_id"
        f" WHERE {_IN_FORCE}{where} ORDER BY corrections.id",
        values,
    )
    return [correction_of(row) for row in rows]


def add_verdicts(db: Database, verdicts: Sequence[Verdict]) -> None:
    """Keep verdicts; one that was there from the same verifier is replaced. The first of them makes the table."""
    db.execute(_VERDICTS)
    db.executemany(
        f"INSERT OR REPLACE INTO verdicts VALUES ({', '.join('?' * 9)})",
        [
            (v.item_id, v.frame, v.class_name, v.label_id or "", v.part, v.score, v.verifier, v.at, v.seconds)
            for v in verdicts
        ],
    )


def drop_verdicts(db: Database, ids: Sequence[tuple[str]]) -> None:
    """Drop what verifiers said of items."""
    if _has_verdicts(db):
        db.executemany("DELETE FROM verdicts WHERE item_id = ?", ids)


def _has_verdicts(db: Database) -> bool:
    return db.one("SELECT 1 FROM sqlite_master WHERE name = 'verdicts'") is not None


def verdicts_of(db: Database, verifier: str, item_id: str | None) -> Iterator[Verdict]:
    """Yield what one verifier said, of one item or of all."""
    if not _has_verdicts(db):
        return
    where, values = ("AND item_id = ?", (item_id,)) if item_id is not None else ("", ())
    for row in db.rows(f"SELECT * FROM verdicts WHERE verifier = ? {where}", (verifier, *values)):
        item, frame, class_name, label_id, part, score, who, at, seconds = row
        yield Verdict(item, frame, class_name, label_id or None, part, score, who, at, seconds)
