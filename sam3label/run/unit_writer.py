"""Units are written here: each with its presences and candidates, beside what it was answered before.

Everything is part of the transaction of the caller, the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sam3label.core.records import Likeness, MediaItem, Processor, Stamp, UnitResult
from sam3label.run import correction_rows
from sam3label.run.answer_rows import Presence, columns
from sam3label.run.database import Database
from sam3label.run.prompt_rows import PromptRows
from sam3label.run.rows import Unit, given_row

LOOKS = 64  # images labelled last that a new one is compared with, to leave out near-copies
REPLACED = "the file was replaced since it was labelled, and is not labelled again yet"


class UnitWriter:
    """Writes results as rows of a store."""

    def __init__(self, db: Database, prompts: PromptRows) -> None:
        self._db, self._prompts = db, prompts
        self._processors: dict[Processor, int] = {}

    def write(self, result: UnitResult) -> None:
        """Write a unit, or note that an image was left out as a near-copy of another."""
        self.write_item(result.item, result.stamp)
        if result.like is not None:
            self._skip(result, result.like)
        else:
            self._write_unit(result)
            self._remember_look(result)

    def write_item(self, item: MediaItem, stamp: Stamp | None) -> None:
        """Write where a file is, and its stamp where that is known."""
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

    def forget(self, items: Sequence[MediaItem]) -> None:
        """Take back what was seen in files that were replaced: they count as failed."""
        ids = [(item.id,) for item in items]
        self._db.executemany("DELETE FROM candidates WHERE unit_id IN (SELECT id FROM units WHERE item_id = ?)", ids)
        self._db.executemany(
            "UPDATE units SET error = ?, question = NULL, presence = NULL WHERE item_id = ?",
            [(REPLACED, id_) for (id_,) in ids],
        )
        self._db.executemany("DELETE FROM looks WHERE item_id = ?", ids)
        correction_rows.drop_verdicts(self._db, ids)

    def carry(self, unit: Unit) -> None:
        """Let a tracked clip's answers count for the same prompts with other tiles, or refined, as they are now."""
        moved = self._prompts.carried(unit.question)
        if not moved:
            return
        (blob,) = self._db.execute("SELECT presence FROM units WHERE id = ?", (unit.id,)).fetchone()
        before = columns(self._prompts, unit.question, blob, unit.frame_stop - unit.frame_start)
        after = {moved.get(number, number): presence for number, presence in before.items()}
        for table in ("candidates", "full"):
            self._db.executemany(
                f'UPDATE "{table}" SET prompt = ? WHERE unit_id = ? AND prompt = ?',
                [(new, unit.id, old) for old, new in moved.items()],
            )
        question = self._prompts.question_carried(unit.question, tuple(sorted(after)))
        self._db.execute("UPDATE units SET question = ?, presence = ? WHERE id = ?", (question, _blob(after), unit.id))

    def undo(self) -> None:
        """Forget which questions and processors were written: their rows went with a transaction."""
        self._prompts.undo()
        self._processors.clear()

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
            unit_id, before = self._new_unit(result), {}
        else:
            unit_id = int(row[0])
            before = columns(self._prompts, row[1], row[2], result.frame_stop - result.frame_start)
        if result.error is None:
            self._write_presences(result, unit_id, before | self._answered(result))
        if row is not None:
            self._drop_answered(result, unit_id)
        self._write_candidates(result, unit_id)

    def _new_unit(self, result: UnitResult) -> int:
        height, width = result.size_hw or (None, None)
        number = self._db.execute(
            "INSERT INTO units (item_id, frame_start, frame_stop, height, width, error, last, processor)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (result.item.id, result.frame_start, result.frame_stop, height, width, result.error, result.last,
             self._processor(result.processor)),
        ).lastrowid  # fmt: skip
        assert number is not None
        return number

    def _write_presences(self, result: UnitResult, unit_id: int, presences: dict[int, Presence]) -> None:
        """Write old and new presences side by side, by the number of the prompt."""
        numbers = tuple(sorted(presences))
        self._db.execute(
            "UPDATE units SET question = ?, presence = ?, trouble = NULL, last = max(last, ?), processor = ?"
            " WHERE id = ?",
            (
                self._prompts.question(numbers),
                _blob(presences),
                result.last,
                self._processor(result.processor),
                unit_id,
            ),
        )

    def _answered(self, result: UnitResult) -> dict[int, Presence]:
        """Return a result's presences [F] by the number of the prompt; without prompts that it was not asked."""
        if result.presence is None:
            return {}
        asked = np.logical_not(np.isnan(result.presence).all(axis=0)).tolist()
        by_number = zip(self._prompts.place, result.presence.astype(np.float32).T, asked, strict=True)
        return {number: column for number, column, is_asked in by_number if is_asked}

    def _processor(self, processor: Processor | None) -> int | None:
        if processor is not None and processor not in self._processors:
            values = processor.host, processor.device, processor.kind
            self._db.execute("INSERT OR IGNORE INTO processors (host, device, kind) VALUES (?, ?, ?)", values)
            query = "SELECT id FROM processors WHERE host = ? AND device = ? AND kind = ?"
            self._processors[processor] = int(self._db.execute(query, values).fetchone()[0])
        return None if processor is None else self._processors[processor]

    def _drop_answered(self, result: UnitResult, unit_id: int) -> None:
        """Drop a unit's candidates for the prompts that it has now answered anew."""
        answered = {*self._answered(result), *(self._prompts.by_key[c.prompt] for c in result.candidates)}
        for table in ("candidates", "full"):
            self._db.executemany(
                f'DELETE FROM "{table}" WHERE unit_id = ? AND prompt = ?', [(unit_id, number) for number in answered]
            )

    def _write_candidates(self, result: UnitResult, unit_id: int) -> None:
        own = self._prompts.by_key
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
            [(unit_id, c.id, *given_row(c.given)) for c in result.candidates if c.given is not None],
        )


def _blob(presences: Mapping[int, Presence]) -> bytes | None:
    """Return presences side by side, by the number of the prompt, as a unit's row holds them."""
    rising = [presences[number] for number in sorted(presences)]
    return np.stack(rising, axis=1).astype("<f4").tobytes() if rising else None
