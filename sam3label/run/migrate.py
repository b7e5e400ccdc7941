"""Stores of earlier versions, brought forward: one transaction, and a copy of what was there kept beside.

Format 1 (0.1, never released) asked every unit the same prompts and knew no photo's content; format 2 did not know
what computed a unit; format 3 knew no objects that were given by hand, and format 4 no near-copies.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from sam3label.errors import StoreError
from sam3label.run.store_errors import DATABASE, DamagedStoreError

FORMAT = 5
_EXEMPLARS = "exemplars of "  # how format 1 named a class's exemplars in the fingerprint


def format_of(db: sqlite3.Connection, folder: Path) -> int:
    """Return the store's format. Raises `StoreError` for one from a newer version, and for what is no run's store."""
    try:
        row = db.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
        found = None if row is None else json.loads(row[0])
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        raise DamagedStoreError(folder, "a database, but not of a run: it has no table 'meta'") from error
    except ValueError:
        found = None
    if not isinstance(found, int) or found < 1:
        raise DamagedStoreError(folder, "it does not say which format it has")
    if found > FORMAT:
        raise StoreError(
            f"{folder / DATABASE} was written by a newer version of sam3label (format {found}; this one reads up to "
            f"{FORMAT}). Update: pip install -U sam3label"
        )
    return found


def in_place(folder: Path, db: sqlite3.Connection) -> None:
    """Bring a run's store up to date; the store as it was stays beside, as `run.format1.sqlite`."""
    kept = folder / f"run.format{format_of(db, folder)}.sqlite"
    if not kept.exists():
        partial = kept.with_name(f".{kept.name}.partial")
        partial.unlink(missing_ok=True)
        with closing(sqlite3.connect(partial)) as copy:
            db.backup(copy)
        partial.replace(kept)
    upgrade(db)


def upgrade(db: sqlite3.Connection) -> None:
    """Take the steps from the store's format to this one, all or none."""
    db.execute("PRAGMA foreign_keys = OFF")
    db.execute("PRAGMA legacy_alter_table = ON")  # renaming a table leaves others' references to its name alone
    with db:
        db.execute("BEGIN IMMEDIATE")
        found = json.loads(db.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()[0])
        if found < 2:
            _to_2(db)
        if found < 3:
            _to_3(db)
        if found < 4:
            _to_4(db)
        if found < 5:
            _to_5(db)
        if db.execute("PRAGMA foreign_key_check").fetchone():
            raise sqlite3.DatabaseError("malformed: rows point to rows that are not there")
    db.execute("PRAGMA legacy_alter_table = OFF")
    db.execute("PRAGMA foreign_keys = ON")


_TO_2 = """
ALTER TABLE prompts RENAME COLUMN position TO id;
CREATE TABLE new_prompts (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, text TEXT, source TEXT NOT NULL, class_name TEXT, digest TEXT NOT NULL,
    UNIQUE (key, digest));
INSERT INTO new_prompts SELECT id, key, text, source, class_name, '' FROM prompts;
DROP TABLE prompts;
ALTER TABLE new_prompts RENAME TO prompts;
CREATE TABLE questions (
    id INTEGER PRIMARY KEY, prompts TEXT NOT NULL, guides TEXT NOT NULL, UNIQUE (prompts, guides));
CREATE TABLE items (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, root TEXT NOT NULL, path TEXT NOT NULL,
    size INTEGER, mtime_ns INTEGER, digest TEXT) WITHOUT ROWID;
INSERT OR IGNORE INTO items SELECT item_id, kind, '', path, NULL, NULL, NULL FROM units;
CREATE TABLE new_units (
    id INTEGER PRIMARY KEY, item_id TEXT NOT NULL REFERENCES items(id),
    frame_start INTEGER NOT NULL, frame_stop INTEGER NOT NULL, height INTEGER, width INTEGER,
    error TEXT, trouble TEXT, question INTEGER REFERENCES questions(id), presence BLOB, last INTEGER NOT NULL,
    UNIQUE (item_id, frame_start));
INSERT INTO new_units
    SELECT id, item_id, frame_start, frame_stop, height, width, error, NULL, NULL, presence, last FROM units;
DROP TABLE units;
ALTER TABLE new_units RENAME TO units;
ALTER TABLE edits RENAME TO corrections;
ALTER TABLE corrections ADD COLUMN content TEXT;
DROP INDEX edits_item;
CREATE INDEX corrections_item ON corrections(item_id, frame);
"""


_GIVEN = """
CREATE TABLE given (
    unit_id INTEGER NOT NULL REFERENCES units(id) ON DELETE CASCADE,
    candidate TEXT NOT NULL, hint TEXT NOT NULL, named TEXT NOT NULL, attributes TEXT NOT NULL, stability REAL NOT NULL,
    PRIMARY KEY (unit_id, candidate)) WITHOUT ROWID
"""


_TO_5 = """
CREATE TABLE "full" (
    unit_id INTEGER NOT NULL REFERENCES units(id) ON DELETE CASCADE,
    frame INTEGER NOT NULL, prompt INTEGER NOT NULL REFERENCES prompts(id),
    PRIMARY KEY (unit_id, frame, prompt)) WITHOUT ROWID;
CREATE TABLE skipped (
    item_id TEXT NOT NULL REFERENCES items(id), frame INTEGER NOT NULL,
    like_item TEXT NOT NULL, like_frame INTEGER NOT NULL, distance REAL NOT NULL,
    PRIMARY KEY (item_id, frame)) WITHOUT ROWID;
CREATE TABLE looks (
    id INTEGER PRIMARY KEY, item_id TEXT NOT NULL, frame INTEGER NOT NULL, features BLOB NOT NULL);
UPDATE meta SET value = '5' WHERE key = 'format';
"""


def _to_4(db: sqlite3.Connection) -> None:
    db.execute(_GIVEN)
    db.execute("UPDATE meta SET value = '4' WHERE key = 'format'")


def _to_5(db: sqlite3.Connection) -> None:
    for statement in _TO_5.split(";\n"):
        if statement.strip():
            db.execute(statement)


def _to_2(db: sqlite3.Connection) -> None:
    for statement in _TO_2.split(";\n"):
        if statement.strip():
            db.execute(statement)
    meta = {key: json.loads(value) for key, value in db.execute("SELECT key, value FROM meta")}
    fingerprint: dict[str, Any] = dict(meta.get("fingerprint") or {})
    guides = {k.removeprefix(_EXEMPLARS): fingerprint.pop(k) for k in list(fingerprint) if k.startswith(_EXEMPLARS)}
    fingerprint.pop("phrases", None)
    for name, digest in guides.items():
        db.execute("UPDATE prompts SET digest = ? WHERE class_name = ?", (digest, name))
    share_questions(db, guides)
    db.executemany(
        "INSERT OR REPLACE INTO meta VALUES (?, ?)",
        [("fingerprint", json.dumps(fingerprint)), ("exemplars", json.dumps(guides)), ("format", json.dumps(2))],
    )


def _to_3(db: sqlite3.Connection) -> None:
    db.execute(
        "CREATE TABLE processors (id INTEGER PRIMARY KEY, host TEXT NOT NULL, device TEXT NOT NULL, kind TEXT NOT NULL,"
        " UNIQUE (host, device, kind))"
    )
    db.execute("ALTER TABLE units ADD COLUMN processor INTEGER REFERENCES processors(id)")
    db.execute("UPDATE meta SET value = '3' WHERE key = 'format'")


def share_questions(db: sqlite3.Connection, guides: dict[str, str]) -> None:
    """Rewrite each unit's presence without the prompts it was not asked, and give it a question that says which."""
    (prompts,) = db.execute("SELECT count(*) FROM prompts").fetchone()
    for (unit_id,) in db.execute("SELECT id FROM units WHERE error IS NULL ORDER BY id").fetchall():
        row = db.execute("SELECT frame_start, frame_stop, presence FROM units WHERE id = ?", (unit_id,))
        start, stop, blob = row.fetchone()
        presence = np.frombuffer(blob or b"", dtype="<f4").reshape(stop - start, prompts)
        asked = np.flatnonzero(~np.isnan(presence).all(axis=0))
        values = (json.dumps(asked.tolist()), json.dumps(guides, sort_keys=True))
        db.execute("INSERT OR IGNORE INTO questions (prompts, guides) VALUES (?, ?)", values)
        (question,) = db.execute("SELECT id FROM questions WHERE prompts = ? AND guides = ?", values).fetchone()
        db.execute(
            "UPDATE units SET question = ?, presence = ? WHERE id = ?",
            (question, np.ascontiguousarray(presence[:, asked]).tobytes(), unit_id),
        )
