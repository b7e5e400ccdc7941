"""The run store: one SQLite file that holds what the model saw and what people said about it.

A unit of work (an image, or a clip of a video) is written with its presences and its candidates in one transaction,
so progress and data cannot come apart: after a kill, a unit is either wholly there or not there at all. One process
writes at a time, guarded by a lock the operating system drops when that process dies; any number may read meanwhile.

The fingerprint holds what changes the numbers (checkpoint, precision, floor, ...). Continuing with another one is
refused, naming the fields. Neither thresholds nor phrases are in it: thresholds matter to `decide` alone, and each unit
knows what it was asked, so that a list may grow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.core.records import (
    Box,
    Candidate,
    Correction,
    Given,
    Hint,
    Likeness,
    MediaItem,
    Processor,
    Prompt,
    Rle,
    Source,
    Stamp,
    UnitResult,
    Verdict,
)
from sam3label.errors import StoreError
from sam3label.run import database
from sam3label.run.asked import Asked, guide_of
from sam3label.run.store_errors import DATABASE, LOCK, DamagedStoreError, in_words, reading

__all__ = ["DATABASE", "LOCK", "Store", "Totals", "Unit"]

LOOKS = 64  # images labelled last that a new one is compared with, to leave out near-copies
REPLACED = "the file was replaced since it was labelled, and is not labelled again yet"

_ITEM_COLUMNS = "items.id, items.kind, items.root, items.path"
_UNIT_COLUMNS = f"{_ITEM_COLUMNS}, units.id, frame_start, frame_stop, height, width, error, trouble, question, last"
_UNITS = f"SELECT {_UNIT_COLUMNS} FROM units JOIN items ON items.id = item_id"
_CANDIDATE_COLUMNS = "id, frame, prompt, score, presence, x, y, w, h, area, counts, track_id, track_score, source"
_CORRECTION_COLUMNS = "item_id, frame, action, label_id, class_name, height, width, counts, track_id, who, at, pull"
# a correction counts for the file the person saw; what is not known to differ is the same
_IN_FORCE = "(content IS NULL OR items.digest IS NULL OR content = items.digest)"


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


class Store:
    """A run's database. Open it with `Store.open` (read, and corrections) or `Store.writer` (the labelling job).

    `prompts` are those of the job that writes, or all that were ever asked with the exemplars that count now.
    """

    def __init__(self, folder: Path, opened: database.Opened) -> None:
        self.folder = folder
        self._opened, self._db = opened, opened.db
        self._ids: dict[str, int] = {}  # identity -> id
        self._processors: dict[Processor, int] = {}
        self._questions: dict[tuple[int, ...], int] = {}  # by the prompts' ids, with the guides that count now
        self._asked: dict[int, tuple[Asked, tuple[int, ...]]] = {}  # question -> what, and the prompts' ids
        self.guides: dict[str, str] = self.meta("exemplars") or {}  # class -> digest of its exemplars
        known = self._read_prompts()
        self.prompts = tuple(p for p in known if p.digest == self.guides.get(guide_of(p), ""))
        self._number()

    # ---- opening

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Open an existing run for reading and for corrections. Raises `StoreError` if there is none."""
        path = Path(folder)
        return cls._with(path, database.open_existing(path))

    @classmethod
    def writer(
        cls,
        folder: str | Path,
        prompts: Sequence[Prompt],
        fingerprint: Mapping[str, Any],
        *,
        notes: Mapping[str, Any] | None = None,
        fresh: bool = False,
    ) -> Store:
        """Create the run, or continue it if its fingerprint is the same. Holds the run's lock until `close`.

        Prompts that were never asked join the others. `notes`, JSON values by key, are kept from the first moment.
        Raises `StoreError` when another process is writing, when a field of the fingerprint differs (naming it), and
        when the folder cannot be written.
        """
        path = Path(folder)
        first = {"fingerprint": dict(fingerprint), **(notes or {})}
        store = cls._with(path, database.open_writer(path, first, fresh=fresh))
        try:
            store.refuse_other(fingerprint)
            store.begin(prompts, notes or {})
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def resume(cls, folder: str | Path) -> Store:
        """Open an existing run to label on. What is put to it is for `refuse_other` and `begin`."""
        path = Path(folder)
        return cls._with(path, database.open_writer(path, {}, fresh=False))

    @classmethod
    def _with(cls, folder: Path, opened: database.Opened) -> Store:
        try:
            return cls(folder, opened)
        except BaseException:
            opened.close()
            raise

    @property
    def is_writable(self) -> bool:
        """Whether this process may write into it."""
        return self._opened.writable

    def close(self) -> None:
        """Close the database and let the lock go. Safe to call twice."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- what the run was made with

    def meta(self, key: str) -> Any:
        """Return a JSON value by key, or None."""
        with reading(self.folder):
            row = self._one("SELECT value FROM meta WHERE key = ?", (key,))
            return None if row is None else json.loads(row[0])

    def set_meta(self, key: str, value: Any) -> None:
        """Write a JSON value. Its own transaction."""
        self.set_notes({key: value})

    def set_notes(self, notes: Mapping[str, Any]) -> None:
        """Write JSON values by key, all or none."""
        with in_words(self.folder), self._db:
            self._write_notes(notes)

    def refuse_other(self, fingerprint: Mapping[str, Any]) -> None:
        """Raise `StoreError` naming every field in which the run's fingerprint differs."""
        stored = self.meta("fingerprint") or {}
        fields = sorted(k for k in stored.keys() | dict(fingerprint).keys() if stored.get(k) != fingerprint.get(k))
        if fields:
            changes = "\n".join(f"  {k}: was {_short(stored.get(k))}, now {_short(fingerprint.get(k))}" for k in fields)
            raise StoreError(
                f"{self.folder} was labelled with other settings, and mixing them would spoil it:\n{changes}\n"
                "Use the old settings to continue, another -o for a new run, or --fresh to start this one over."
            )

    def _read_prompts(self) -> tuple[Prompt, ...]:
        with reading(self.folder):
            known = {}
            for id_, key, text, source, name, digest in self._rows(
                "SELECT id, key, text, source, class_name, digest FROM prompts ORDER BY id"
            ):
                prompt = Prompt(key, text, cast(Source, _one_of(source, get_args(Source))), name, digest)
                known[prompt.identity] = prompt
                self._ids[prompt.identity] = id_
            return tuple(known.values())

    def _number(self) -> None:
        """Note where each prompt stands in `prompts`, by its id."""
        self._place = {self._ids[p.identity]: i for i, p in enumerate(self.prompts)}

    def begin(self, prompts: Sequence[Prompt], notes: Mapping[str, Any]) -> None:
        """Begin to ask these prompts: new ones join the others. Keeps `notes`, JSON values by key, with them."""
        with in_words(self.folder), self._db:
            self._write_notes(notes)
            for prompt in prompts:
                if prompt.identity not in self._ids:
                    self._ids[prompt.identity] = len(self._ids)
                    self._db.execute(
                        "INSERT INTO prompts VALUES (?, ?, ?, ?, ?, ?)",
                        (self._ids[prompt.identity], prompt.key, prompt.text, prompt.source, prompt.class_name,
                         prompt.digest),
                    )  # fmt: skip
        self.prompts = tuple(prompts)
        self.guides = self.meta("exemplars") or {}
        self._questions.clear()
        self._number()

    def _write_notes(self, notes: Mapping[str, Any]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", [(key, json.dumps(value)) for key, value in notes.items()]
        )

    # ---- the labelling job writes

    def write(self, results: Sequence[UnitResult]) -> None:
        """Write units, presences and candidates in one transaction.

        A unit that failed before is replaced. One that is there gets the answers to the prompts it was asked now
        beside those it has; where these could not be asked, it keeps what it has and the reason. An image that was
        left out as a near-copy becomes no unit: it is kept with what it is like, until it is labelled after all.
        """
        try:
            with in_words(self.folder), self._db:
                for result in results:
                    self._write_item(result.item, result.stamp)
                    if result.like is not None:
                        self._skip(result, result.like)
                    else:
                        self._write_unit(result)
                        self._remember_look(result)
        except BaseException:
            self._questions.clear()  # their rows went with the transaction
            self._processors.clear()
            raise

    def _skip(self, result: UnitResult, like: Likeness) -> None:
        if result.last:  # of a video: what was labelled last of it is the last of it
            self._db.execute(
                "UPDATE units SET last = 1 WHERE id = (SELECT id FROM units WHERE item_id = ? AND error IS NULL"
                " ORDER BY frame_start DESC LIMIT 1)",
                (result.item.id,),
            )
        self._db.execute("DELETE FROM units WHERE item_id = ? AND error IS NOT NULL", (result.item.id,))
        self._db.execute(
            "INSERT OR REPLACE INTO skipped VALUES (?, ?, ?, ?, ?)",
            (result.item.id, result.frame_start, like.item_id, like.frame, like.distance),
        )

    def _remember_look(self, result: UnitResult) -> None:
        """Keep an image's features, and of those before only as many as new images are compared with."""
        here = result.item.id, result.frame_start
        self._db.execute("DELETE FROM skipped WHERE item_id = ? AND frame = ?", here)
        if result.look:
            self._db.execute("INSERT INTO looks (item_id, frame, features) VALUES (?, ?, ?)", (*here, result.look))
            self._db.execute("DELETE FROM looks WHERE id <= (SELECT max(id) FROM looks) - ?", (LOOKS,))

    def _write_unit(self, result: UnitResult) -> None:
        row = self._db.execute(
            "SELECT id, question, presence FROM units WHERE item_id = ? AND frame_start = ? AND error IS NULL",
            (result.item.id, result.frame_start),
        ).fetchone()
        if row is not None and result.error is not None:
            self._db.execute("UPDATE units SET trouble = ? WHERE id = ?", (result.error, row[0]))
            return
        if row is None:
            # what failed before goes, and with it its candidates (ON DELETE CASCADE)
            self._db.execute("DELETE FROM units WHERE item_id = ? AND error IS NOT NULL", (result.item.id,))
        unit_id = self._merged(result, row)
        if row is not None:
            self._drop_answered(result, unit_id)
        self._write_candidates(result, unit_id)

    def _write_item(self, item: MediaItem, stamp: Stamp | None) -> None:
        self._db.execute(
            "INSERT INTO items (id, kind, root, path) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
            " kind = excluded.kind, root = excluded.root, path = excluded.path",
            (item.id, item.kind, item.root, item.path),
        )
        if stamp is not None:
            self._db.execute(
                "UPDATE items SET size = ?, mtime_ns = ?, digest = ? WHERE id = ?",
                (stamp.size, stamp.version, stamp.digest, item.id),
            )

    def _merged(self, result: UnitResult, row: tuple[int, int, bytes] | None) -> int:
        """Write the unit's row with old and new answers side by side, and return its id."""
        item, (height, width) = result.item, result.size_hw or (None, None)
        if row is None:
            unit_id = self._db.execute(
                "INSERT INTO units (item_id, frame_start, frame_stop, height, width, error, last, processor)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    item.id,
                    result.frame_start,
                    result.frame_stop,
                    height,
                    width,
                    result.error,
                    result.last,
                    self._processor(result.processor),
                ),
            ).lastrowid
            assert unit_id is not None
            columns: dict[int, npt.NDArray[np.float32]] = {}
        else:
            unit_id, columns = row[0], self._columns(row[1], row[2], result.frame_stop - result.frame_start)
        if result.error is None:
            columns |= self._new_columns(result)
            blob = np.stack([columns[id_] for id_ in sorted(columns)], axis=1).astype("<f4") if columns else None
            self._db.execute(
                "UPDATE units SET question = ?, presence = ?, trouble = NULL, last = max(last, ?), processor = ?"
                " WHERE id = ?",
                (
                    self._question(tuple(sorted(columns))),
                    None if blob is None else blob.tobytes(),
                    result.last,
                    self._processor(result.processor),
                    unit_id,
                ),
            )
        return unit_id

    def _new_columns(self, result: UnitResult) -> dict[int, npt.NDArray[np.float32]]:
        """Return a unit's presences [F] by the id of the prompt; without prompts that it was not asked."""
        if result.presence is None:
            return {}
        asked = np.logical_not(np.isnan(result.presence).all(axis=0)).tolist()
        by_id = zip(self._place, result.presence.astype(np.float32).T, asked, strict=True)
        return {id_: column for id_, column, is_asked in by_id if is_asked}

    def _columns(self, question: int | None, blob: bytes | None, frames: int) -> dict[int, npt.NDArray[np.float32]]:
        ids = () if question is None else self._read_question(question)[1]
        values = np.frombuffer(blob or b"", dtype="<f4").reshape(frames, len(ids))
        return dict(zip(ids, values.T, strict=True))

    def _question(self, ids: tuple[int, ...]) -> int:
        if ids not in self._questions:
            values = json.dumps(ids), json.dumps(self.guides, sort_keys=True)
            self._db.execute("INSERT OR IGNORE INTO questions (prompts, guides) VALUES (?, ?)", values)
            row = self._db.execute("SELECT id FROM questions WHERE prompts = ? AND guides = ?", values).fetchone()
            self._questions[ids] = int(row[0])
        return self._questions[ids]

    def _processor(self, processor: Processor | None) -> int | None:
        if processor is not None and processor not in self._processors:
            values = processor.host, processor.device, processor.kind
            self._db.execute("INSERT OR IGNORE INTO processors (host, device, kind) VALUES (?, ?, ?)", values)
            query = "SELECT id FROM processors WHERE host = ? AND device = ? AND kind = ?"
            self._processors[processor] = int(self._db.execute(query, values).fetchone()[0])
        return None if processor is None else self._processors[processor]

    def _drop_answered(self, result: UnitResult, unit_id: int) -> None:
        """Drop a unit's candidates for the prompts that it has now answered anew."""
        own = {p.key: self._ids[p.identity] for p in self.prompts}
        answered = {*self._new_columns(result), *(own[c.prompt] for c in result.candidates)}
        for table in ("candidates", "full"):
            self._db.executemany(
                f'DELETE FROM "{table}" WHERE unit_id = ? AND prompt = ?', [(unit_id, id_) for id_ in answered]
            )

    def _write_candidates(self, result: UnitResult, unit_id: int) -> None:
        own = {p.key: self._ids[p.identity] for p in self.prompts}
        self._db.executemany(
            'INSERT INTO "full" VALUES (?, ?, ?)', [(unit_id, result.frame_start, own[key]) for key in result.full]
        )
        self._db.executemany(
            "INSERT INTO candidates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (unit_id, c.id, c.frame, own[c.prompt], c.score, c.presence, *c.box_xywh, c.area,
                 c.rle.counts, c.track_id, c.track_score, c.source)
                for c in result.candidates
            ),
        )  # fmt: skip
        self._db.executemany(
            "INSERT OR REPLACE INTO given VALUES (?, ?, ?, ?, ?, ?)",
            [(unit_id, c.id, *_given_row(c.given)) for c in result.candidates if c.given is not None],
        )

    def relocate(self, items: Iterable[tuple[MediaItem, Stamp | None]]) -> None:
        """Note where known files are now, and their stamps where they are known. One transaction."""
        with in_words(self.folder), self._db:
            for item, stamp in items:
                self._write_item(item, stamp)

    def forget(self, items: Sequence[MediaItem]) -> None:
        """Take back what was seen in files that were replaced: they count as failed until they are labelled again."""
        ids = [(item.id,) for item in items]
        with in_words(self.folder), self._db:
            self._db.executemany(
                "DELETE FROM candidates WHERE unit_id IN (SELECT id FROM units WHERE item_id = ?)", ids
            )
            self._db.executemany(
                "UPDATE units SET error = ?, question = NULL, presence = NULL WHERE item_id = ?",
                [(REPLACED, id_) for (id_,) in ids],
            )
            self._db.executemany("DELETE FROM looks WHERE item_id = ?", ids)

    def add_corrections(self, corrections: Sequence[Correction], meta: Mapping[str, Any] | None = None) -> None:
        """Append people's decisions, all or none, and with them JSON values by key. Never touches candidates."""
        with in_words(self.folder), self._db:
            self._write_notes(meta or {})
            self._db.executemany(
                f"INSERT INTO corrections ({_CORRECTION_COLUMNS}, content)"
                f" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT digest FROM items WHERE id = ?))",
                [(*_correction_row(one), one.item_id) for one in corrections],
            )

    def add_verdicts(self, verdicts: Sequence[Verdict]) -> None:
        """Keep a verifier's verdicts, all or none; one that was there from the same verifier is replaced.

        The table is made by the first of them: a run that nobody verified has none.
        """
        with in_words(self.folder), self._db:
            self._db.execute(_VERDICTS)
            self._db.executemany(
                f"INSERT OR REPLACE INTO verdicts VALUES ({', '.join('?' * 9)})",
                [
                    (v.item_id, v.frame, v.class_name, v.label_id or "", v.part, v.score, v.verifier, v.at, v.seconds)
                    for v in verdicts
                ],
            )

    # ---- reading

    def verdicts(self, verifier: str, item_id: str | None = None) -> Iterator[Verdict]:
        """Yield what one verifier said, of one item or of all."""
        with reading(self.folder):
            if self._one("SELECT 1 FROM sqlite_master WHERE name = 'verdicts'") is None:
                return
            where, values = ("AND item_id = ?", (item_id,)) if item_id is not None else ("", ())
            for row in self._rows(f"SELECT * FROM verdicts WHERE verifier = ? {where}", (verifier, *values)):
                item, frame, class_name, label_id, part, score, who, at, seconds = row
                yield Verdict(item, frame, class_name, label_id or None, part, score, who, at, seconds)

    def items(self) -> Iterator[tuple[MediaItem, Stamp | None]]:
        """Yield every photo and video there is a unit of, in order, with its stamp where it is known."""
        with reading(self.folder):
            for *columns, size, version, digest in self._rows(
                f"SELECT {_ITEM_COLUMNS}, size, mtime_ns, digest FROM items ORDER BY id"
            ):
                yield _item(*columns), None if digest is None else Stamp(int(size), int(version), str(digest))

    def asked(self, unit: Unit) -> Asked:
        """Return what a labelled unit was asked so far."""
        with reading(self.folder):
            return self._read_question(unit.question)[0] if unit.question is not None else Asked(frozenset(), {})

    def _read_question(self, question: int) -> tuple[Asked, tuple[int, ...]]:
        if question not in self._asked:
            row = self._one("SELECT prompts, guides FROM questions WHERE id = ?", (question,))
            if row is None:
                raise ValueError(f"question {question} is missing")
            ids = tuple(int(id_) for id_ in json.loads(row[0]))
            names = {id_: identity for identity, id_ in self._ids.items()}
            self._asked[question] = Asked(frozenset(names[id_] for id_ in ids), dict(json.loads(row[1]))), ids
        return self._asked[question]

    def done_ids(self) -> set[str]:
        """Return ids of images and videos that are done. Failed ones are not: the next run tries them again."""
        with reading(self.folder):
            return {row[0] for row in self._rows("SELECT item_id FROM units WHERE error IS NULL AND last")}

    def processors(self) -> list[tuple[Processor, int]]:
        """Return what computed the run's units, and how many each did; the busiest first."""
        with reading(self.folder):
            rows = self._rows(
                "SELECT host, device, kind, count(*) FROM units JOIN processors ON processors.id = processor"
                " GROUP BY processors.id ORDER BY count(*) DESC, host, device"
            )
            return [(Processor(str(host), str(device), str(kind)), int(units)) for host, device, kind, units in rows]

    def last_track(self, item_id: str) -> int:
        """Return the highest track id of a video so far; 0 for none."""
        with reading(self.folder):
            row = self._one(
                "SELECT max(track_id) FROM candidates JOIN units ON units.id = unit_id WHERE item_id = ?", (item_id,)
            )
            return int(row[0] or 0) if row else 0

    def totals(self) -> Totals:
        with reading(self.folder):
            done, failed = self._one("SELECT count(*) FILTER (WHERE error IS NULL), count(error) FROM units") or (0, 0)
            (candidates,) = self._one("SELECT count(*) FROM candidates") or (0,)
            return Totals(done, failed, candidates)

    def units(self, item_id: str | None = None) -> Iterator[Unit]:
        """Yield all units in item order, streamed, done and failed; or those of one item."""
        where, values = ("", ()) if item_id is None else (" WHERE item_id = ?", (item_id,))
        before: tuple[str, int] = "", -1
        with reading(self.folder):
            for row in self._rows(f"{_UNITS}{where} ORDER BY item_id, frame_start", values):
                unit = _unit(row)
                here = unit.item.id, unit.frame_start
                if here <= before and before[1] >= 0:
                    raise ValueError("units out of order")  # a circle in a damaged file would never end
                before = here
                yield unit

    def unit(self, item_id: str, frame: int = 0) -> Unit | None:
        """Return the unit that holds a frame of an item, or None."""
        with reading(self.folder):
            row = self._one(
                f"{_UNITS} WHERE item_id = ? AND frame_start <= ? AND frame_stop > ?", (item_id, frame, frame)
            )
            return None if row is None else _unit(row)

    def candidates(self, unit: Unit) -> tuple[Candidate, ...]:
        """Return a unit's candidates for `prompts`, in the order in which they were written."""
        if unit.size_hw is None:
            return ()
        with reading(self.folder):
            rows = self._rows(
                f"SELECT {_CANDIDATE_COLUMNS} FROM candidates WHERE unit_id = ? ORDER BY rowid", (unit.id,)
            )
            found = tuple(self._candidate(unit, unit.size_hw, row) for row in rows if row[2] in self._place)
            if any(candidate.source == "given" for candidate in found):
                found = self._with_given(unit, found)
            if not all(masks.are_whole([c.rle for c in found])):
                raise ValueError(f"the masks of {unit.item.id} do not fit it")
            return found

    def _with_given(self, unit: Unit, found: Sequence[Candidate]) -> tuple[Candidate, ...]:
        query = "SELECT candidate, hint, named, attributes, stability FROM given WHERE unit_id = ?"
        given = {id_: _given(*columns) for id_, *columns in self._rows(query, (unit.id,))}
        return tuple(replace(c, given=given[c.id]) if c.source == "given" else c for c in found)

    def _candidate(self, unit: Unit, size_hw: tuple[int, int], row: tuple[Any, ...]) -> Candidate:
        id_, frame, prompt, score, presence, x, y, w, h, area, counts, track_id, track_score, source = row
        if not (unit.frame_start <= frame < unit.frame_stop and 0 <= score <= 1 and 0 <= presence <= 1):
            raise ValueError(f"a candidate of {unit.item.id} is out of range")
        box = (float(x), float(y), float(w), float(h))
        return Candidate(str(id_), unit.item.id, frame, self.prompts[self._place[prompt]].key, float(score),
                         float(presence), box, int(area), Rle(size_hw, counts), track_id, track_score,
                         cast(Source, _one_of(source, get_args(Source))))  # fmt: skip

    def presence(self, unit: Unit) -> npt.NDArray[np.float32]:
        """Return float32 [F, P] in the order of `prompts`; NaN where one was not asked. Empty for a failed unit."""
        frames = 0 if unit.error is not None else unit.frame_stop - unit.frame_start
        values = np.full((frames, len(self.prompts)), np.nan, np.float32)
        if not frames:
            return values
        with reading(self.folder):
            row = self._one("SELECT presence FROM units WHERE id = ?", (unit.id,))
            for id_, column in self._columns(unit.question, row[0] if row else None, frames).items():
                if id_ in self._place:
                    values[:, self._place[id_]] = column
            return values

    def corrections(self, item_id: str | None = None) -> list[Correction]:
        """People's decisions that are in force, oldest first: of one item, or of all.

        Those on a file that was replaced since are kept, and count again when it comes back.
        """
        where, values = ("", ()) if item_id is None else (" AND item_id = ?", (item_id,))
        with reading(self.folder):
            rows = self._rows(
                f"SELECT {_CORRECTION_COLUMNS} FROM corrections LEFT JOIN items ON items.id = item_id"
                f" WHERE {_IN_FORCE}{where} ORDER BY corrections.id",
                values,
            )
            return [_correction(row) for row in rows]

    # ---- one row at a time, for a look through a store that may be damaged

    def integrity(self) -> list[str]:
        """Return what SQLite itself finds wrong with the file; empty for a sound one."""
        try:
            with in_words(self.folder):
                self._db.begin()
                found = [str(row[0]) for row in self._db.execute("PRAGMA integrity_check(5)")]
        except DamagedStoreError as error:
            return [error.what]
        return [] if found == ["ok"] else found

    def numbers(self, table: Literal["units", "corrections"]) -> tuple[list[int], bool]:
        """Return the numbers of a table's rows that can be read, from both ends, and whether these are all."""
        reached: set[int] = set()
        complete = False
        for order in ("ASC", "DESC"):
            try:
                with reading(self.folder):
                    for (number,) in self._rows(f"SELECT id FROM {table} ORDER BY id {order}"):
                        if number in reached:
                            break
                        reached.add(number)
                    else:
                        complete = complete or order == "ASC"
                    if order == "ASC":
                        complete = True
                        break
            except StoreError:
                continue
        return sorted(reached), complete

    def unit_numbered(self, number: int) -> Unit:
        """Return a unit by the number of its row. Raises `StoreError` where it cannot be read."""
        with reading(self.folder):
            row = self._one(f"{_UNITS} WHERE units.id = ?", (number,))
            if row is None:
                raise ValueError(f"unit {number} has no item")
            return _unit(row)

    def stamp(self, item_id: str) -> Stamp | None:
        """Return the stamp of a file, where it is known."""
        with reading(self.folder):
            row = self._one("SELECT size, mtime_ns, digest FROM items WHERE id = ?", (item_id,))
            return None if row is None or row[2] is None else Stamp(int(row[0]), int(row[1]), str(row[2]))

    def correction_numbered(self, number: int) -> tuple[Correction, str | None]:
        """Return a correction by the number of its row, and the digest of the file that the person saw."""
        with reading(self.folder):
            row = self._one(f"SELECT {_CORRECTION_COLUMNS}, content FROM corrections WHERE id = ?", (number,))
            if row is None:
                raise ValueError(f"correction {number} is missing")
            return _correction(row[:-1]), row[-1]

    def carry_corrections(self, corrections: Sequence[tuple[Correction, str | None]]) -> None:
        """Append corrections of another store, each with the digest of the file that the person saw."""
        with in_words(self.folder), self._db:
            self._db.executemany(
                f"INSERT INTO corrections ({_CORRECTION_COLUMNS}, content)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(*_correction_row(one), content) for one, content in corrections],
            )

    def crowded(self, least: int) -> Iterator[tuple[str, int, str]]:
        """(item id, frame, prompt's key) of every image with at least so many answers to one prompt of `prompts`."""
        with reading(self.folder):
            for item_id, frame, prompt in self._rows(
                "SELECT item_id, frame, prompt FROM candidates JOIN units ON units.id = unit_id"
                " GROUP BY unit_id, frame, prompt HAVING count(*) >= ? ORDER BY item_id, frame, prompt",
                (least,),
            ):
                if prompt in self._place:
                    yield item_id, frame, self.prompts[self._place[prompt]].key

    def full_in_tiles(self, item_id: str | None = None) -> Iterator[tuple[str, int, str]]:
        """(item id, frame, prompt's key) where answers ran out of room in the closest views: of all, or one item."""
        where, values = ("", ()) if item_id is None else (" WHERE item_id = ?", (item_id,))
        with reading(self.folder):
            for own, frame, prompt in self._rows(
                'SELECT item_id, frame, prompt FROM "full" JOIN units ON units.id = unit_id'
                f"{where} ORDER BY item_id, frame, prompt",
                values,
            ):
                if prompt in self._place:
                    yield own, frame, self.prompts[self._place[prompt]].key

    def skipped(self) -> Iterator[tuple[str, int, Likeness]]:
        """Yield (item id, frame, what it is like) of every image that was left out as a near-copy, in order."""
        with reading(self.folder):
            for item_id, frame, like, like_frame, distance in self._rows(
                "SELECT item_id, frame, like_item, like_frame, distance FROM skipped ORDER BY item_id, frame"
            ):
                yield item_id, int(frame), Likeness(like, int(like_frame), float(distance))

    def skipped_photos(self) -> int:
        """Return how many photos were left out as near-copies."""
        with reading(self.folder):
            sql = "SELECT count(*) FROM skipped JOIN items ON items.id = item_id WHERE kind = 'image'"
            return int((self._one(sql) or (0,))[0])

    def looks(self) -> Iterator[tuple[str, int, bytes]]:
        """Yield (item id, frame, features) of the images labelled last, the first of them first."""
        with reading(self.folder):
            yield from self._rows("SELECT item_id, frame, features FROM looks ORDER BY id")

    def corrected_ids(self) -> set[str]:
        """Return ids of items that carry at least one correction."""
        with reading(self.folder):
            return {row[0] for row in self._rows("SELECT DISTINCT item_id FROM corrections")}

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        self._db.begin()
        for row in self._db.execute(sql, values):  # noqa: UP028  # a half-read cursor must not be closed after its database
            yield row

    def _one(self, sql: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        self._db.begin()
        row: tuple[Any, ...] | None = self._db.execute(sql, values).fetchone()
        return row


_VERDICTS = """
CREATE TABLE IF NOT EXISTS verdicts (
    item_id TEXT NOT NULL, frame INTEGER NOT NULL, class_name TEXT NOT NULL,
    label_id TEXT NOT NULL,           -- '' for a verdict on the class in the image
    part TEXT NOT NULL, score REAL,   -- NULL: not sure
    verifier TEXT NOT NULL, at TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (item_id, frame, class_name, label_id, part, verifier)) WITHOUT ROWID
"""


def _item(id_: str, kind: str, root: str, path: str) -> MediaItem:
    return MediaItem(id_, path, cast(Literal["image", "video"], _one_of(kind, ("image", "video"))), root)


def _unit(row: tuple[Any, ...]) -> Unit:
    item, (id_, start, stop, height, width, error, trouble, question, last) = _item(*row[:4]), row[4:]
    if not 0 <= start < stop:
        raise ValueError(f"frames {start} to {stop}")
    size_hw = None if height is None else (int(height), int(width))
    if error is None and (size_hw is None or min(size_hw) < 1):
        raise ValueError(f"{item.id} has no size")
    return Unit(id_, item, start, stop, size_hw, error, trouble, question, bool(last))


def _given_row(given: Given) -> tuple[str, str, str, float]:
    hint = {"box": given.hint.box_xyxy, "points": [(x, y, int(on)) for x, y, on in given.hint.points]}
    return json.dumps(hint), given.id, json.dumps(given.attributes), given.stability


def _given(hint: str, named: str, attributes: str, stability: float) -> Given:
    shown = json.loads(hint)
    box = None if shown["box"] is None else tuple(map(float, shown["box"]))
    points = tuple((float(x), float(y), bool(on)) for x, y, on in shown["points"])
    said = tuple((str(key), str(value)) for key, value in json.loads(attributes))
    return Given(Hint(cast(Box | None, box), points), str(named), said, float(stability))


def _one_of(value: Any, allowed: Sequence[Any]) -> Any:
    if value not in allowed:
        raise ValueError(f"{value!r} is none of {', '.join(map(str, allowed))}")
    return value


def _correction(row: tuple[Any, ...]) -> Correction:
    item, frame, action, label, name, h, w, counts, track, who, at, pull = row
    rle = Rle((h, w), counts) if counts else None
    if rle is not None and not masks.are_whole([rle])[0]:
        raise ValueError(f"a mask that {who or 'a person'} drew on {item} does not fit it")
    return Correction(item, frame, action, label, name, rle, track, who, at, pull)


def _correction_row(one: Correction) -> tuple[Any, ...]:
    height, width = one.rle.size_hw if one.rle else (None, None)
    counts = one.rle.counts if one.rle else None
    return (one.item_id, one.frame, one.action, one.label_id, one.class_name, height, width, counts,
            one.track_id, one.who, one.at, one.pull)  # fmt: skip


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:197] + "..."
