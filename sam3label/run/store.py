"""The run store: one SQLite file that holds what the model saw and what people said about it.

A unit of work (an image, or a clip of a video) is written with its presences and its candidates in one transaction,
so progress and data cannot come apart: after a kill, a unit is either wholly there or not there at all. One process
writes at a time, guarded by a lock the operating system drops when that process dies; any number may read meanwhile.

The fingerprint holds what changes the numbers (phrases, checkpoint, precision, ...). Continuing with another one is
refused, naming the fields. Thresholds are not in it: they matter to `select` alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from sam3label.core.records import Candidate, Correction, MediaItem, Prompt, Rle, Source, UnitResult
from sam3label.errors import StoreError

DATABASE = "run.sqlite"
LOCK = "run.lock"
FORMAT = 1

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE prompts (
    position INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, text TEXT, source TEXT NOT NULL, class_name TEXT);
CREATE TABLE units (
    id INTEGER PRIMARY KEY,
    item_id TEXT NOT NULL, kind TEXT NOT NULL, path TEXT NOT NULL,
    frame_start INTEGER NOT NULL, frame_stop INTEGER NOT NULL,
    height INTEGER, width INTEGER,
    error TEXT,                       -- NULL: done; else the reason why it failed
    presence BLOB,                    -- float32 [frames, prompts], little-endian, NaN where not asked
    last INTEGER NOT NULL,            -- 0: a part of a video after which more is to come
    UNIQUE (item_id, frame_start));
CREATE TABLE candidates (
    unit_id INTEGER NOT NULL REFERENCES units(id) ON DELETE CASCADE,
    id TEXT NOT NULL, frame INTEGER NOT NULL, prompt INTEGER NOT NULL REFERENCES prompts(position),
    score REAL NOT NULL, presence REAL NOT NULL,
    x REAL NOT NULL, y REAL NOT NULL, w REAL NOT NULL, h REAL NOT NULL,
    area INTEGER NOT NULL, counts BLOB NOT NULL,
    track_id INTEGER, track_score REAL, source TEXT NOT NULL);
CREATE INDEX candidates_unit ON candidates(unit_id);
CREATE TABLE edits (
    id INTEGER PRIMARY KEY,
    item_id TEXT NOT NULL, frame INTEGER NOT NULL, action TEXT NOT NULL, label_id TEXT, class_name TEXT,
    height INTEGER, width INTEGER, counts BLOB, track_id INTEGER,
    who TEXT NOT NULL, at TEXT NOT NULL, pull TEXT NOT NULL);
CREATE INDEX edits_item ON edits(item_id, frame);
"""

_UNIT_COLUMNS = "id, item_id, path, kind, frame_start, frame_stop, height, width, error"
_CORRECTION_COLUMNS = "item_id, frame, action, label_id, class_name, height, width, counts, track_id, who, at, pull"


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit's row: what was labelled, how large it is, and why it failed if it did."""

    id: int
    item: MediaItem
    frame_start: int
    frame_stop: int
    size_hw: tuple[int, int] | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Totals:
    """How far a run has come. `candidates` counts everything over the floor, not labels."""

    done: int
    failed: int
    candidates: int


class Store:
    """A run's database. Open it with `Store.open` (read, and corrections) or `Store.writer` (the labelling run)."""

    def __init__(self, folder: Path, connection: sqlite3.Connection, lock_fd: int | None = None) -> None:
        self.folder = folder
        self._db = connection
        self._lock_fd = lock_fd
        self.prompts = self._read_prompts()
        self._position = {p.key: i for i, p in enumerate(self.prompts)}

    # ---- opening

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Open an existing run for reading and for human corrections. Raises `StoreError` if there is none."""
        path = Path(folder)
        if not (path / DATABASE).is_file():
            raise StoreError(
                f"{path} is not a run folder (no {DATABASE} in it). Runs are made by: sam3label run ... -o {path}"
            )
        with _sqlite_errors(path):
            db = _connect(path)
            _check_format(path, db)
            return cls(path, db)

    @classmethod
    def writer(
        cls, folder: str | Path, prompts: Sequence[Prompt], fingerprint: Mapping[str, Any], *, fresh: bool = False
    ) -> Store:
        """Create the run, or continue it if its fingerprint is the same. Holds the run's lock until `close`.

        Raises `StoreError` when another process is writing, when a field of the fingerprint differs (naming it), and
        when the folder cannot be written.
        """
        path = Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock_fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(
                f"the run folder {path} cannot be written ({error.strerror}). Choose another with -o."
            ) from error
        try:
            _lock(lock_fd, path)
            with _sqlite_errors(path):
                if fresh:
                    _refuse_corrected(path)
                    _remove(path)
                store = cls(path, _connect_or_create(path, prompts, fingerprint), lock_fd)
                store.refuse_other(fingerprint)
            return store
        except BaseException:
            os.close(lock_fd)
            raise

    def close(self) -> None:
        """Close the database and let the lock go. Safe to call twice."""
        self._db.close()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- what the run was made with

    def meta(self, key: str) -> Any:
        """A JSON value by key, or None."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set_meta(self, key: str, value: Any) -> None:
        """Write a JSON value. Its own transaction."""
        with _sqlite_errors(self.folder), self._db:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def _read_prompts(self) -> tuple[Prompt, ...]:
        rows = self._db.execute("SELECT key, text, source, class_name FROM prompts ORDER BY position")
        return tuple(Prompt(key, text, cast(Source, source), name) for key, text, source, name in rows)

    def refuse_other(self, fingerprint: Mapping[str, Any]) -> None:
        """Raise `StoreError` naming every field in which the run's fingerprint differs."""
        stored = self.meta("fingerprint")
        fields = sorted(k for k in stored.keys() | dict(fingerprint).keys() if stored.get(k) != fingerprint.get(k))
        if fields:
            changes = "\n".join(f"  {k}: was {_short(stored.get(k))}, now {_short(fingerprint.get(k))}" for k in fields)
            raise StoreError(
                f"{self.folder} was labelled with other settings, and mixing them would spoil it:\n{changes}\n"
                "Use the old settings to continue, another -o for a new run, or --fresh to start this one over."
            )

    # ---- the labelling run writes

    def write(self, results: Sequence[UnitResult]) -> None:
        """Write units, presences and candidates in one transaction. A unit written before (a failure) is replaced."""
        with _sqlite_errors(self.folder), self._db:
            for result in results:
                self._write_unit(result)

    def _write_unit(self, result: UnitResult) -> None:
        item, (height, width) = result.item, result.size_hw or (None, None)
        self._db.execute(
            "DELETE FROM units WHERE item_id = ? AND (frame_start = ? OR error IS NOT NULL)",
            (item.id, result.frame_start),
        )  # candidates go with it (ON DELETE CASCADE)
        unit_id = self._db.execute(
            "INSERT INTO units (item_id, kind, path, frame_start, frame_stop, height, width, error, presence, last)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (item.id, item.kind, item.path, result.frame_start, result.frame_stop, height, width, result.error,
             None if result.presence is None else result.presence.astype("<f4").tobytes(), result.last),
        ).lastrowid  # fmt: skip
        self._db.executemany(
            "INSERT INTO candidates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (unit_id, c.id, c.frame, self._position[c.prompt], c.score, c.presence, *c.box_xywh, c.area,
                 c.rle.counts, c.track_id, c.track_score, c.source)
                for c in result.candidates
            ),
        )  # fmt: skip

    def add_corrections(self, corrections: Sequence[Correction], meta: Mapping[str, Any] | None = None) -> None:
        """Append human decisions, all or none, and with them JSON values by key. Never touches candidates."""
        with _sqlite_errors(self.folder), self._db:
            self._db.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in (meta or {}).items()]
            )
            self._db.executemany(
                f"INSERT INTO edits ({_CORRECTION_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [_correction_row(one) for one in corrections],
            )

    # ---- reading

    def done_ids(self) -> set[str]:
        """Ids of images and videos that are done. Failed ones are not among them: the next run tries them again."""
        return {row[0] for row in self._db.execute("SELECT item_id FROM units WHERE error IS NULL AND last")}

    def progress(self, item_id: str) -> tuple[int, int]:
        """Of a video: the frame to go on from, and the highest track id so far (0 for none)."""
        (stop,) = self._db.execute(
            "SELECT max(frame_stop) FROM units WHERE item_id = ? AND error IS NULL", (item_id,)
        ).fetchone()
        (track,) = self._db.execute(
            "SELECT max(track_id) FROM candidates JOIN units ON units.id = unit_id WHERE item_id = ?", (item_id,)
        ).fetchone()
        return stop or 0, track or 0

    def totals(self) -> Totals:
        done, failed = self._db.execute(
            "SELECT count(*) FILTER (WHERE error IS NULL), count(error) FROM units"
        ).fetchone()
        (candidates,) = self._db.execute("SELECT count(*) FROM candidates").fetchone()
        return Totals(done, failed, candidates)

    def units(self) -> Iterator[Unit]:
        """All units in item order, streamed: done and failed."""
        rows = self._db.execute(f"SELECT {_UNIT_COLUMNS} FROM units ORDER BY item_id, frame_start")
        for row in rows:
            yield _unit(row)

    def unit(self, item_id: str, frame: int = 0) -> Unit | None:
        """The unit that holds a frame of an item, or None."""
        row = self._db.execute(
            f"SELECT {_UNIT_COLUMNS} FROM units WHERE item_id = ? AND frame_start <= ? AND frame_stop > ?",
            (item_id, frame, frame),
        ).fetchone()
        return None if row is None else _unit(row)

    def candidates(self, unit: Unit) -> tuple[Candidate, ...]:
        """A unit's candidates in the order in which they were written."""
        if unit.size_hw is None:
            return ()
        rows = self._db.execute(
            "SELECT id, frame, prompt, score, presence, x, y, w, h, area, counts, track_id, track_score, source"
            " FROM candidates WHERE unit_id = ? ORDER BY rowid",
            (unit.id,),
        )
        keys = [p.key for p in self.prompts]
        return tuple(
            Candidate(id_, unit.item.id, frame, keys[prompt], score, presence, (x, y, w, h), area,
                      Rle(unit.size_hw, counts), track_id, track_score, source)
            for id_, frame, prompt, score, presence, x, y, w, h, area, counts, track_id, track_score, source in rows
        )  # fmt: skip

    def presence(self, unit: Unit) -> npt.NDArray[np.float32]:
        """float32 [F, P] in the order of `prompts`; NaN where a prompt was not asked. Empty for a failed unit."""
        (blob,) = self._db.execute("SELECT presence FROM units WHERE id = ?", (unit.id,)).fetchone()
        flat = np.frombuffer(blob or b"", dtype="<f4").astype(np.float32)
        return flat.reshape(-1, len(self.prompts))

    def corrections(self, item_id: str | None = None) -> list[Correction]:
        """Human decisions, oldest first: of one item, or of all."""
        where, values = ("", ()) if item_id is None else (" WHERE item_id = ?", (item_id,))
        rows = self._db.execute(f"SELECT {_CORRECTION_COLUMNS} FROM edits{where} ORDER BY id", values)
        return [
            Correction(item, frame, action, label, name, Rle((h, w), counts) if counts else None, track, who, at, pull)
            for item, frame, action, label, name, h, w, counts, track, who, at, pull in rows
        ]

    def corrected_ids(self) -> set[str]:
        """Ids of items that carry at least one human decision."""
        return {row[0] for row in self._db.execute("SELECT DISTINCT item_id FROM edits")}


def _unit(row: tuple[Any, ...]) -> Unit:
    id_, item_id, path, kind, start, stop, height, width, error = row
    return Unit(id_, MediaItem(item_id, path, kind), start, stop, None if height is None else (height, width), error)


def _correction_row(one: Correction) -> tuple[Any, ...]:
    height, width = one.rle.size_hw if one.rle else (None, None)
    counts = one.rle.counts if one.rle else None
    return (one.item_id, one.frame, one.action, one.label_id, one.class_name, height, width, counts,
            one.track_id, one.who, one.at, one.pull)  # fmt: skip


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:197] + "..."


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StoreError(
            f"another process is labelling into {path}. Wait for it, or choose another folder with -o."
        ) from error


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path / DATABASE, timeout=30, check_same_thread=False)
    db.execute("PRAGMA foreign_keys = ON")
    # WAL with NORMAL: a killed process loses nothing; only a power cut may lose the last commits, never consistency
    db.execute("PRAGMA synchronous = NORMAL")
    return db


def _connect_or_create(path: Path, prompts: Sequence[Prompt], fingerprint: Mapping[str, Any]) -> sqlite3.Connection:
    db = _connect(path)
    if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        _check_format(path, db)
        return db
    db.execute("PRAGMA journal_mode = WAL")
    statements: Iterable[str] = (s for s in _SCHEMA.split(";\n") if s.strip())
    with db:
        db.execute("BEGIN")
        for statement in statements:
            db.execute(statement)
        db.execute(
            "INSERT INTO meta VALUES ('format', ?), ('fingerprint', ?)",
            (json.dumps(FORMAT), json.dumps(dict(fingerprint))),
        )
        db.executemany(
            "INSERT INTO prompts VALUES (?, ?, ?, ?, ?)",
            ((i, p.key, p.text, p.source, p.class_name) for i, p in enumerate(prompts)),
        )
    return db


def _check_format(path: Path, db: sqlite3.Connection) -> None:
    row = db.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
    if row is None or json.loads(row[0]) != FORMAT:
        raise StoreError(f"{path / DATABASE} has another format than this version reads. Label into a new folder.")


def _refuse_corrected(path: Path) -> None:
    """What people did is never thrown away by an option."""
    if not (path / DATABASE).is_file():
        return
    with closing(sqlite3.connect(path / DATABASE)) as db:
        if not db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'edits'").fetchone()[0]:
            return
        (corrections,) = db.execute("SELECT count(*) FROM edits").fetchone()
    if corrections:
        raise StoreError(
            f"{path} holds {corrections} corrections made by people, and --fresh would throw them away. "
            "Choose another folder with -o, or delete this one yourself."
        )


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        (path / (DATABASE + suffix)).unlink(missing_ok=True)


@contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    """SQLite's and the file system's refusals in one sentence each, with the next step."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(_reason(path, str(error))) from error
    except OSError as error:
        raise StoreError(_reason(path, error.strerror or str(error))) from error


def _reason(path: Path, text: str) -> str:
    if "full" in text or "No space" in text:
        return (
            f"the disk that holds {path} is full. What was committed is safe: "
            "free some space and give the same command again."
        )
    if "readonly" in text or "unable to open" in text or "denied" in text.lower() or "Read-only" in text:
        return f"the run folder {path} cannot be written ({text}). Check its permissions, or choose another with -o."
    if "not a database" in text or "malformed" in text:
        return f"{path / DATABASE} is damaged ({text}). Restore it from a copy, or label into a new folder."
    if "locked" in text:
        return f"{path / DATABASE} is locked by another program. Close it and give the same command again."
    return f"the run store in {path} failed: {text}."
