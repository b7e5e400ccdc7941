"""How the run's database is made and opened: one writer, any number of readers, on whatever disk it lies.

A new database is made beside and renamed, so that one that is empty or half made is always damage. On a network file
system SQLite's write-ahead log is not safe; there the slower rollback journal is used. A run that may not be written
is read where it is, or, where that would need a file beside it, from a private copy.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from sam3label.core.files import close_match
from sam3label.core.text import count
from sam3label.core.whole_folder import read_marker
from sam3label.errors import StoreError
from sam3label.run import migrate
from sam3label.run.store_errors import DATABASE, LOCK, DamagedStoreError, in_words

NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "afpfs", "ceph", "lustre", "gpfs", "beegfs",
           "glusterfs", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "webdav", "davfs",
           "fuse.davfs2"}  # fmt: skip
_LOCK_SECONDS = 0.5  # that a writer waits for the lock: longer than those hold it who ask whether it is held
_STEPS = 10_000_000  # of SQLite's machine between two looks at whether a statement can still be honest
_MOST_STEPS = 100  # per byte of the database: reading it all takes about one

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE prompts (
    id INTEGER PRIMARY KEY,           -- in the order in which they were first asked
    key TEXT NOT NULL, text TEXT, source TEXT NOT NULL, class_name TEXT,
    digest TEXT NOT NULL,             -- of the exemplars it goes with; '' for a phrase
    UNIQUE (key, digest));
CREATE TABLE questions (              -- what units were asked: few, shared by many
    id INTEGER PRIMARY KEY,
    prompts TEXT NOT NULL,            -- JSON, ids of prompts, rising
    guides TEXT NOT NULL,             -- JSON, class -> digest of its exemplars at that time
    UNIQUE (prompts, guides));
CREATE TABLE items (                  -- photos and videos; size, mtime_ns and digest are NULL where unknown,
                                      -- mtime_ns of an object in storage is a number made of its etag
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, root TEXT NOT NULL, path TEXT NOT NULL,
    size INTEGER, mtime_ns INTEGER, digest TEXT) WITHOUT ROWID;
CREATE TABLE processors (             -- what computed units: a device of a machine
    id INTEGER PRIMARY KEY, host TEXT NOT NULL, device TEXT NOT NULL, kind TEXT NOT NULL,
    UNIQUE (host, device, kind));
CREATE TABLE units (
    id INTEGER PRIMARY KEY,
    item_id TEXT NOT NULL REFERENCES items(id),
    frame_start INTEGER NOT NULL, frame_stop INTEGER NOT NULL,
    height INTEGER, width INTEGER,
    error TEXT,                       -- NULL: done; else the reason why it failed
    trouble TEXT,                     -- why prompts that came later could not be asked; what is there stands
    question INTEGER REFERENCES questions(id),
    presence BLOB,                    -- float32 [frames, prompts of the question], little-endian
    last INTEGER NOT NULL,            -- 0: a part of a video after which more is to come
    processor INTEGER REFERENCES processors(id),  -- NULL where unknown
    UNIQUE (item_id, frame_start));
CREATE TABLE candidates (
    unit_id INTEGER NOT NULL REFERENCES units(id) ON DELETE CASCADE,
    id TEXT NOT NULL, frame INTEGER NOT NULL, prompt INTEGER NOT NULL REFERENCES prompts(id),
    score REAL NOT NULL, presence REAL NOT NULL,
    x REAL NOT NULL, y REAL NOT NULL, w REAL NOT NULL, h REAL NOT NULL,
    area INTEGER NOT NULL, counts BLOB NOT NULL,
    track_id INTEGER, track_score REAL, source TEXT NOT NULL);
CREATE INDEX candidates_unit ON candidates(unit_id);
CREATE TABLE given (                  -- of candidates whose object a dataset gave: what it says of it
    unit_id INTEGER NOT NULL REFERENCES units(id) ON DELETE CASCADE,
    candidate TEXT NOT NULL, hint TEXT NOT NULL,  -- JSON: {"box": [x1, y1, x2, y2] or null, "points": [[x, y, 0 or 1]]}
    named TEXT NOT NULL, attributes TEXT NOT NULL,  -- its id there; JSON, pairs
    stability REAL NOT NULL,
    PRIMARY KEY (unit_id, candidate)) WITHOUT ROWID;
CREATE TABLE "full" (                 -- prompts whose answers ran out of room in the closest views of an image
    unit_id INTEGER NOT NULL REFERENCES units(id) ON DELETE CASCADE,
    frame INTEGER NOT NULL, prompt INTEGER NOT NULL REFERENCES prompts(id),
    PRIMARY KEY (unit_id, frame, prompt)) WITHOUT ROWID;
CREATE TABLE skipped (                -- near-copies that were not labelled, and what each is like
    item_id TEXT NOT NULL REFERENCES items(id), frame INTEGER NOT NULL,
    like_item TEXT NOT NULL, like_frame INTEGER NOT NULL, distance REAL NOT NULL,
    PRIMARY KEY (item_id, frame)) WITHOUT ROWID;
CREATE TABLE looks (                  -- float16 features of the images labelled last, which the next are compared with
    id INTEGER PRIMARY KEY, item_id TEXT NOT NULL, frame INTEGER NOT NULL, features BLOB NOT NULL);
CREATE TABLE corrections (
    id INTEGER PRIMARY KEY,
    item_id TEXT NOT NULL, frame INTEGER NOT NULL, action TEXT NOT NULL, label_id TEXT, class_name TEXT,
    height INTEGER, width INTEGER, counts BLOB, track_id INTEGER,
    who TEXT NOT NULL, at TEXT NOT NULL, pull TEXT NOT NULL,
    content TEXT                      -- digest of the file the person saw, NULL where unknown
    );
CREATE INDEX corrections_item ON corrections(item_id, frame);
"""


@dataclass(slots=True)
class Opened:
    """A connection and what goes with it: the writer's lock, or the folder of a private copy."""

    db: Database
    lock: BaseFileLock | None = None
    copy: tempfile.TemporaryDirectory[str] | None = None
    writable: bool = True

    def close(self) -> None:
        self.db.close()
        if self.lock is not None:
            self.lock.release()
        if self.copy is not None:
            self.copy.cleanup()


# ---- reading


def open_existing(folder: Path) -> Opened:
    """Open a run for reading, and for corrections where it may be written. An older format is brought up to date."""
    path = folder / DATABASE
    if not path.is_file():
        raise StoreError(_no_run(folder))
    with in_words(folder):
        refuse_foreign(folder)
        if os.access(path, os.W_OK) and os.access(folder, os.W_OK):
            return _open_writable(folder)
        return _open_read_only(folder)


def _no_run(folder: Path) -> str:
    """Say why this is no run, and what it is or may have meant."""
    if not folder.exists():
        return f"{folder}: no such folder{close_match(folder)}. Runs are made by: sam3label run PHOTOS -o RUN"
    if read_marker(folder):
        return f"{folder} is a dataset, not the run it came from. To check it: sam3label validate {folder}"
    return f"{folder} is not a run folder (no {DATABASE} in it). Runs are made by: sam3label run PHOTOS -o RUN"


def _open_writable(folder: Path) -> Opened:
    db = connect(folder / DATABASE)
    try:
        if migrate.format_of(db, folder) != migrate.FORMAT:
            with _locked(folder):
                migrate.in_place(folder, db)
    except BaseException:
        db.close()
        raise
    return Opened(db)


def _open_read_only(folder: Path) -> Opened:
    """In place where that needs no file beside it: a log that nobody has open, or an older format, does."""
    path, log = folder / DATABASE, folder / f"{DATABASE}-wal"
    pending = log.is_file() and log.stat().st_size > 0
    shared = (folder / f"{DATABASE}-shm").is_file()
    try:
        db = connect(path, "mode=ro" if pending or shared else "mode=ro&immutable=1")
        if migrate.format_of(db, folder) == migrate.FORMAT:
            return Opened(db, writable=False)
        db.close()
    except sqlite3.OperationalError:
        if not pending:
            raise
    copy = tempfile.TemporaryDirectory(prefix="sam3label-")
    for file in (path, log) if pending else (path,):
        shutil.copy(file, copy.name)
    db = connect(Path(copy.name) / DATABASE)
    if migrate.format_of(db, folder) != migrate.FORMAT:
        migrate.upgrade(db)
    return Opened(db, copy=copy, writable=False)


def refuse_foreign(folder: Path) -> None:
    """Raise `DamagedStoreError` for a file that is empty or no database at all."""
    with (folder / DATABASE).open("rb") as file:
        head = file.read(16)
    if not head:
        raise DamagedStoreError(folder, "it is empty, 0 bytes")
    if head != b"SQLite format 3\0":
        raise DamagedStoreError(folder, "file is not a database")


class Database(sqlite3.Connection):
    """A connection that gives up on a statement that damage has made endless. Each reading starts the count anew."""

    path: Path
    steps = 0

    def rows(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield a query's rows as they are read."""
        self.steps = 0
        for row in self.execute(sql, values):  # noqa: UP028  # a half-read cursor must not be closed after its database
            yield row

    def one(self, sql: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """Return a query's first row, or None."""
        self.steps = 0
        row: tuple[Any, ...] | None = self.execute(sql, values).fetchone()
        return row

    def lost(self) -> bool:
        """Return whether a statement has run too long; True interrupts it."""
        self.steps += _STEPS
        return self.steps > 10 * _STEPS + _MOST_STEPS * self.path.stat().st_size


def connect(path: Path, how: str = "mode=rw") -> Database:
    """Open a database file by one of SQLite's ways: `mode=rw`, `mode=ro`, `mode=ro&immutable=1`."""
    uri = f"{path.absolute().as_uri()}?{how}"
    db = sqlite3.connect(uri, uri=True, timeout=30, check_same_thread=False, factory=Database)
    db.path = path
    db.set_progress_handler(db.lost, _STEPS)
    db.execute("PRAGMA foreign_keys = ON")
    # WAL with NORMAL: a killed process loses nothing; only a power cut may lose the last commits, never consistency
    db.execute("PRAGMA synchronous = NORMAL")
    return db


# ---- writing


def open_writer(folder: Path, meta: Mapping[str, Any], *, fresh: bool) -> Opened:
    """Open the run for labelling, or make it with these JSON values. Holds the run's lock until it is closed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder)
    except OSError as error:
        raise StoreError(
            f"the run folder {folder} cannot be written ({error.strerror}). Choose another with -o."
        ) from error
    try:
        with in_words(folder):
            if fresh:
                _refuse_corrected(folder)
                _remove(folder)
            if not (folder / DATABASE).exists():
                _create(folder, meta)
            refuse_foreign(folder)
            db = connect(folder / DATABASE)
            if migrate.format_of(db, folder) != migrate.FORMAT:
                migrate.in_place(folder, db)
            _choose_journal(db, folder)
            return Opened(db, lock)
    except BaseException:
        lock.release()
        raise


def _locked(folder: Path) -> BaseFileLock:
    lock = FileLock(folder / LOCK, timeout=_LOCK_SECONDS, mode=0o644, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise StoreError(
            f"another process is labelling into {folder}. Wait for it, or choose another folder with -o."
        ) from error
    return lock


def is_in_use(folder: Path) -> bool | None:
    """Return whether a process is labelling into a run now; None where this one may not ask."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0, mode=0o644, thread_local=False):
            return False
    except Timeout:
        return True
    except OSError:
        return None


def _create(folder: Path, meta: Mapping[str, Any]) -> None:
    new = folder / f".{DATABASE}.new"
    new.unlink(missing_ok=True)
    with closing(sqlite3.connect(new)) as db, db:
        db.execute("BEGIN")
        for statement in statements(SCHEMA):
            db.execute(statement)
        values = {"format": migrate.FORMAT, **meta}
        db.executemany("INSERT INTO meta VALUES (?, ?)", [(key, json.dumps(value)) for key, value in values.items()])
    new.replace(folder / DATABASE)


def statements(script: str) -> Iterable[str]:
    return (statement for statement in script.split(";\n") if statement.strip())


def _choose_journal(db: sqlite3.Connection, folder: Path) -> None:
    if network_of(folder) is None:
        db.execute("PRAGMA journal_mode = WAL")
        return
    db.execute("PRAGMA locking_mode = EXCLUSIVE")  # a log left from a local disk is read without shared memory
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("PRAGMA locking_mode = NORMAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("SELECT count(*) FROM meta").fetchone()  # lets the exclusive lock go


def network_of(folder: Path, mounts: str | None = None) -> str | None:
    """Return the kind of network file system a folder lies on; None for a local disk, or where the system does not say.

    `mounts` is the text of Linux's /proc/mounts.
    """
    if mounts is None:
        table = Path("/proc/mounts")
        if sys.platform != "linux" or not table.is_file():
            return None
        mounts = table.read_text(encoding="utf-8", errors="replace")
    real, best, kind = str(folder.resolve()), "", None
    for fields in (line.split(" ") for line in mounts.splitlines()):
        point = fields[1].replace("\\040", " ") if len(fields) > 2 else ""
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if point and inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind if kind in NETWORK else None


def _refuse_corrected(folder: Path) -> None:
    """Refuse to start over where people corrected: an option never throws their work away."""
    path = folder / DATABASE
    if not path.is_file() or not path.stat().st_size:
        return
    refuse_foreign(folder)
    with closing(connect(path)) as db:
        tables = [
            name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE name IN ('edits', 'corrections')")
        ]
        made = sum(db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables)
    if made:
        raise StoreError(
            f"{folder} holds {count(made, 'correction')} made by people, and --fresh would throw them away. "
            "Choose another folder with -o, or delete this one yourself."
        )


def _remove(folder: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        (folder / (DATABASE + suffix)).unlink(missing_ok=True)
