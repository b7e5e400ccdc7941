"""What people, verifiers and agents said: corrections, verdicts, transcripts. Candidates are never touched.

Everything that writes is part of the transaction of the caller, the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from sam3label.core.records import Correction, Transcript, Verdict
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
    shown TEXT NOT NULL DEFAULT '',  -- stands for the masks that a question about a class showed
    PRIMARY KEY (item_id, frame, class_name, label_id, part, verifier)) WITHOUT ROWID
"""

_TRANSCRIPTS = """
CREATE TABLE IF NOT EXISTS transcripts (
    item_id TEXT NOT NULL, class_name TEXT NOT NULL, model TEXT NOT NULL, turns TEXT NOT NULL,
    outcome TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY (item_id, class_name)) WITHOUT ROWID
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
    if all(row[1] != "shown" for row in db.rows("PRAGMA table_info(verdicts)")):  # of before it was kept
        db.execute("ALTER TABLE verdicts ADD COLUMN shown TEXT NOT NULL DEFAULT ''")
    db.executemany(
        f"INSERT OR REPLACE INTO verdicts VALUES ({', '.join('?' * 10)})",
        [
            (v.item_id, v.frame, v.class_name, v.label_id or "", v.part, v.score, v.verifier, v.at, v.seconds, v.shown)
            for v in verdicts
        ],
    )


def drop_verdicts(db: Database, ids: Sequence[tuple[str]]) -> None:
    """Drop what verifiers said of items."""
    if _has(db, "verdicts"):
        db.executemany("DELETE FROM verdicts WHERE item_id = ?", ids)


def _has(db: Database, table: str) -> bool:
    return db.one("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)) is not None


def verdicts_of(db: Database, verifier: str, item_id: str | None) -> Iterator[Verdict]:
    """Yield what one verifier said, of one item or of all."""
    if not _has(db, "verdicts"):
        return
    where, values = ("AND item_id = ?", (item_id,)) if item_id is not None else ("", ())
    for row in db.rows(f"SELECT * FROM verdicts WHERE verifier = ? {where}", (verifier, *values)):
        item, frame, class_name, label_id, part, score, who, at, seconds, *shown = row
        yield Verdict(item, frame, class_name, label_id or None, part, score, who, at, seconds, *shown)


def add_transcripts(db: Database, transcripts: Sequence[Transcript]) -> None:
    """Keep conversations; one about the same photo and class is replaced. The first of them makes the table."""
    db.execute(_TRANSCRIPTS)
    db.executemany(
        "INSERT OR REPLACE INTO transcripts VALUES (?, ?, ?, ?, ?, ?)",
        [(t.item_id, t.class_name, t.model, json.dumps(t.turns), t.outcome, t.at) for t in transcripts],
    )


def transcripts_of(db: Database, item_id: str | None) -> Iterator[Transcript]:
    """Yield conversations about one item, or all."""
    if not _has(db, "transcripts"):
        return
    where, values = ("WHERE item_id = ?", (item_id,)) if item_id is not None else ("", ())
    for item, class_name, model, turns, outcome, at in db.rows(f"SELECT * FROM transcripts {where}", values):
        pairs = tuple((str(said), str(told)) for said, told in json.loads(turns))
        yield Transcript(item, class_name, model, pairs, outcome, at)
