"""The run store: one SQLite file that holds what the model saw and what people said about it.

A unit of work (an image, or a clip of a video) is written with its presences and its candidates in one transaction,
so progress and data cannot come apart: after a kill, a unit is either wholly there or not there at all. One process
writes at a time, guarded by a lock the operating system drops when that process dies; any number may read meanwhile.

The fingerprint holds what changes the numbers (checkpoint, precision, floor, ...). Continuing with another one is
refused, naming the fields. Neither thresholds nor phrases are in it: thresholds matter to `decide` alone, and each unit
knows what it was asked, so that a list may grow.

`Store` opens the file, holds its transactions and answers for damage; what the rows are is in the modules beside it
that are named after them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sam3label.core.records import (
    Candidate,
    Correction,
    Likeness,
    MediaItem,
    Processor,
    Prompt,
    Stamp,
    Transcript,
    UnitResult,
    Verdict,
)
from sam3label.errors import StoreError
from sam3label.run import answer_rows, correction_rows, database
from sam3label.run.asked import Asked
from sam3label.run.prompt_rows import PromptRows
from sam3label.run.rows import ITEM_COLUMNS, UNITS, Totals, Unit, item_of, unit_of
from sam3label.run.store_errors import in_words, reading
from sam3label.run.unit_writer import UnitWriter


class Store:
    """A run's database. Open it with `Store.open` (read, and corrections) or `Store.writer` (the labelling job).

    `db` is for the modules of the run folder's room alone.
    """

    def __init__(self, folder: Path, opened: database.Opened) -> None:
        self.folder = folder
        self._opened, self.db = opened, opened.db
        guides = self.meta("exemplars") or {}
        with reading(folder):
            self._prompts = PromptRows(self.db, guides)
        self._writer = UnitWriter(self.db, self._prompts)

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

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Prompts of the job that writes, or all that were ever asked with the exemplars that count now."""
        return self._prompts.listed

    @property
    def guides(self) -> Mapping[str, str]:
        """The digest of each class's exemplars, by the class's name."""
        return self._prompts.guides

    def meta(self, key: str) -> Any:
        """Return a JSON value by key, or None."""
        with reading(self.folder):
            row = self.db.one("SELECT value FROM meta WHERE key = ?", (key,))
            return None if row is None else json.loads(row[0])

    def set_meta(self, key: str, value: Any) -> None:
        """Write a JSON value. Its own transaction."""
        self.set_notes({key: value})

    def set_notes(self, notes: Mapping[str, Any]) -> None:
        """Write JSON values by key, all or none."""
        with in_words(self.folder), self.db:
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

    def begin(self, prompts: Sequence[Prompt], notes: Mapping[str, Any]) -> None:
        """Begin to ask these prompts: new ones join the others. Keeps `notes`, JSON values by key, with them."""
        with in_words(self.folder), self.db:
            self._write_notes(notes)
            self._prompts.add(prompts)
        self._prompts.ask(prompts, self.meta("exemplars") or {})

    def _write_notes(self, notes: Mapping[str, Any]) -> None:
        self.db.executemany(
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
            with in_words(self.folder), self.db:
                for result in results:
                    self._writer.write(result)
        except BaseException:
            self._writer.undo()
            raise

    def renamings(self, guides: Mapping[str, str]) -> dict[str, str]:
        """Return, by their old names, the classes that the exemplars in `guides` show to have another name now."""
        with reading(self.folder):
            return self._prompts.renamings(guides)

    def rename_classes(self, names: Mapping[str, str]) -> None:
        """Give classes with exemplars, by their old names, new ones: their answers stay. One transaction."""
        trust = self.meta("trust") or {}
        with in_words(self.folder), self.db:
            self._prompts.rename(names)
            self._write_notes({"trust": {names.get(name, name): figures for name, figures in trust.items()}})

    def carry_tracked(self) -> None:
        """Let what tracked videos answered count for the job's prompts, whatever tiles these have. One transaction."""
        with in_words(self.folder), self.db:
            for unit in [unit for unit in self.done_units() if unit.item.kind == "video"]:
                self._writer.carry(unit)

    def relocate(self, items: Iterable[tuple[MediaItem, Stamp | None]]) -> None:
        """Note where known files are now, and their stamps where they are known. One transaction."""
        with in_words(self.folder), self.db:
            for item, stamp in items:
                self._writer.write_item(item, stamp)

    def forget(self, items: Sequence[MediaItem]) -> None:
        """Take back what was seen in files that were replaced: they count as failed until they are labelled again."""
        with in_words(self.folder), self.db:
            self._writer.forget(items)

    # ---- what people and verifiers say

    def add_corrections(self, corrections: Sequence[Correction], meta: Mapping[str, Any] | None = None) -> None:
        """Append people's decisions, all or none, and with them JSON values by key. Never touches candidates."""
        with in_words(self.folder), self.db:
            self._write_notes(meta or {})
            correction_rows.add_corrections(self.db, corrections)

    def corrections(self, item_id: str | None = None) -> list[Correction]:
        """Return people's decisions that are in force, oldest first: of one item, or of all.

        Those on a file that was replaced since are kept, and count again when it comes back.
        """
        with reading(self.folder):
            return correction_rows.corrections_in_force(self.db, item_id)

    def corrected_ids(self) -> set[str]:
        """Return ids of items that carry at least one correction."""
        with reading(self.folder):
            return {row[0] for row in self.db.rows("SELECT DISTINCT item_id FROM corrections")}

    def add_verdicts(self, verdicts: Sequence[Verdict]) -> None:
        """Keep a verifier's verdicts, all or none; one that was there from the same verifier is replaced.

        The table is made by the first of them: a run that nobody verified has none.
        """
        with in_words(self.folder), self.db:
            correction_rows.add_verdicts(self.db, verdicts)

    def verdicts(self, verifier: str, item_id: str | None = None) -> Iterator[Verdict]:
        """Yield what one verifier said, of one item or of all."""
        with reading(self.folder):
            yield from correction_rows.verdicts_of(self.db, verifier, item_id)

    def add_transcripts(self, transcripts: Sequence[Transcript]) -> None:
        """Keep conversations of an agent, all or none; an earlier one about the same photo and class is replaced."""
        with in_words(self.folder), self.db:
            correction_rows.add_transcripts(self.db, transcripts)

    def transcripts(self, item_id: str | None = None) -> Iterator[Transcript]:
        """Yield conversations of an agent, about one photo or all."""
        with reading(self.folder):
            yield from correction_rows.transcripts_of(self.db, item_id)

    # ---- items and units

    def items(self) -> Iterator[tuple[MediaItem, Stamp | None]]:
        """Yield every photo and video there is a unit of, in order, with its stamp where it is known."""
        with reading(self.folder):
            for *columns, size, version, digest in self.db.rows(
                f"SELECT {ITEM_COLUMNS}, size, mtime_ns, digest FROM items ORDER BY id"
            ):
                yield item_of(*columns), None if digest is None else Stamp(int(size), int(version), str(digest))

    def stamp(self, item_id: str) -> Stamp | None:
        """Return the stamp of a file, where it is known."""
        with reading(self.folder):
            row = self.db.one("SELECT size, mtime_ns, digest FROM items WHERE id = ?", (item_id,))
            return None if row is None or row[2] is None else Stamp(int(row[0]), int(row[1]), str(row[2]))

    def units(self, item_id: str | None = None) -> Iterator[Unit]:
        """Yield all units in item order, streamed, done and failed; or those of one item."""
        where, values = ("", ()) if item_id is None else (" WHERE item_id = ?", (item_id,))
        before: tuple[str, int] = "", -1
        with reading(self.folder):
            for row in self.db.rows(f"{UNITS}{where} ORDER BY item_id, frame_start", values):
                unit = unit_of(row)
                here = unit.item.id, unit.frame_start
                if here <= before and before[1] >= 0:
                    raise ValueError("units out of order")  # a circle in a damaged file would never end
                before = here
                yield unit

    def done_units(self, item_id: str | None = None) -> Iterator[Unit]:
        """Yield the units that did not fail, in the same order."""
        return (unit for unit in self.units(item_id) if unit.error is None)

    def unit(self, item_id: str, frame: int = 0) -> Unit | None:
        """Return the unit that holds a frame of an item, or None."""
        with reading(self.folder):
            row = self.db.one(
                f"{UNITS} WHERE item_id = ? AND frame_start <= ? AND frame_stop > ?", (item_id, frame, frame)
            )
            return None if row is None else unit_of(row)

    def done_ids(self) -> set[str]:
        """Return ids of images and videos that are done. Failed ones are not: the next run tries them again."""
        with reading(self.folder):
            return {row[0] for row in self.db.rows("SELECT item_id FROM units WHERE error IS NULL AND last")}

    def processors(self) -> list[tuple[Processor, int]]:
        """Return what computed the run's units, and how many each did; the busiest first."""
        with reading(self.folder):
            rows = self.db.rows(
                "SELECT host, device, kind, count(*) FROM units JOIN processors ON processors.id = processor"
                " GROUP BY processors.id ORDER BY count(*) DESC, host, device"
            )
            return [(Processor(str(host), str(device), str(kind)), int(units)) for host, device, kind, units in rows]

    def totals(self) -> Totals:
        with reading(self.folder):
            done, failed = self.db.one("SELECT count(*) FILTER (WHERE error IS NULL), count(error) FROM units") or (
                0,
                0,
            )
            (candidates,) = self.db.one("SELECT count(*) FROM candidates") or (0,)
            return Totals(done, failed, candidates)

    def skipped(self) -> Iterator[tuple[str, int, Likeness]]:
        """Yield (item id, frame, what it is like) of every image that was left out as a near-copy, in order."""
        with reading(self.folder):
            for item_id, frame, like, like_frame, distance in self.db.rows(
                "SELECT item_id, frame, like_item, like_frame, distance FROM skipped ORDER BY item_id, frame"
            ):
                yield item_id, int(frame), Likeness(like, int(like_frame), float(distance))

    def skipped_photos(self) -> int:
        """Return how many photos were left out as near-copies."""
        with reading(self.folder):
            sql = "SELECT count(*) FROM skipped JOIN items ON items.id = item_id WHERE kind = 'image'"
            return int((self.db.one(sql) or (0,))[0])

    def looks(self) -> Iterator[tuple[str, int, bytes]]:
        """Yield (item id, frame, features) of the images labelled last, the first of them first."""
        with reading(self.folder):
            yield from self.db.rows("SELECT item_id, frame, features FROM looks ORDER BY id")

    # ---- what the model answered

    def asked(self, unit: Unit) -> Asked:
        """Return what a labelled unit was asked so far."""
        with reading(self.folder):
            return self._prompts.asked(unit.question)[0]

    def candidates(self, unit: Unit) -> tuple[Candidate, ...]:
        """Return a unit's candidates for `prompts`, in the order in which they were written."""
        with reading(self.folder):
            return answer_rows.candidates_of(self.db, self._prompts, unit)

    def presence(self, unit: Unit) -> answer_rows.Presence:
        """Return float32 [F, P] in the order of `prompts`; NaN where one was not asked. Empty for a failed unit."""
        with reading(self.folder):
            return answer_rows.presence_of(self.db, self._prompts, unit)

    def last_track(self, item_id: str) -> int:
        """Return the highest track id of a video so far; 0 for none."""
        with reading(self.folder):
            row = self.db.one(
                "SELECT max(track_id) FROM candidates JOIN units ON units.id = unit_id WHERE item_id = ?", (item_id,)
            )
            return int(row[0] or 0) if row else 0

    def crowded(self, least: int) -> Iterator[tuple[str, int, str]]:
        """Yield (item id, frame, prompt's key) of every image with that many answers to one of `prompts`, or more."""
        with reading(self.folder):
            yield from answer_rows.crowded(self.db, self._prompts, least)

    def full(self, item_id: str | None = None) -> Iterator[tuple[str, int, str]]:
        """Yield (item id, frame, prompt's key) where answers ran out of room in the closest views: of all, or one."""
        with reading(self.folder):
            yield from answer_rows.full(self.db, self._prompts, item_id)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:197] + "..."
