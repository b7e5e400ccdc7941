"""Several run folders read as one: the shards of a job too large for one machine, or runs of different photos."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sam3label.core.records import (
    Candidate,
    ConceptList,
    Correction,
    Likeness,
    Processor,
    Stamp,
    Transcript,
    Verdict,
    VerdictUse,
    Verify,
)
from sam3label.core.text import count, one_line
from sam3label.errors import StoreError
from sam3label.run.extent import Extent
from sam3label.run.reader import Coverage, Run
from sam3label.run.rows import Totals, Unit

_SHOWN = 10  # ids in one message
SHARD = "shard"  # the field of a fingerprint in which runs that are read as one may differ


class JoinedRun(Run):
    """Run folders made with the same settings over different photos, as one `Run`. Streams, as each of them does.

    Units come in item order over all folders. Notes (where a review is, ...) are kept in the first folder, corrections
    in the folder that has their photo.
    """

    def __init__(self, parts: Sequence[Run]) -> None:
        self._parts = tuple(parts)
        super().__init__(parts[0]._store, parts[0].concepts, parts[0]._places)

    @classmethod
    def join(
        cls, folders: Sequence[str | Path], concepts: ConceptList | None = None, photos: str | Path | None = None
    ) -> Self:
        """Open several run folders: see `open_run`."""
        with ExitStack() as opened:
            parts = []
            for folder in folders:
                parts.append(opened.enter_context(Run.open(folder, concepts, photos)))
            _refuse_different(parts)
            _refuse_twice(parts)
            joined = cls(parts)
            opened.pop_all()
        return joined

    @property
    def folders(self) -> tuple[Path, ...]:
        return tuple(part.folder for part in self._parts)

    def __repr__(self) -> str:
        held = count(len(self), "image"), count(len(self.concepts.concepts), "class", "classes")
        return f"JoinedRun({count(len(self._parts), 'folder')}, {', '.join(held)})"

    def __exit__(self, *_: object) -> None:
        for part in self._parts:
            part._store.close()

    # ---- the runs as a whole

    @property
    def is_writable(self) -> bool:
        return all(part.is_writable for part in self._parts)

    @property
    def is_growing(self) -> bool | None:
        each = [part.is_growing for part in self._parts]
        return True if True in each else None if None in each else False

    def extent(self) -> Extent:
        return sum((part.extent() for part in self._parts[1:]), self._parts[0].extent())

    def totals(self) -> Totals:
        totals = [part.totals() for part in self._parts]
        return Totals(sum(t.done for t in totals), sum(t.failed for t in totals), sum(t.candidates for t in totals))

    def processors(self) -> list[tuple[Processor, int]]:
        each = Counter[Processor]()
        for part in self._parts:
            each.update(dict(part.processors()))
        return each.most_common()

    def failures(self) -> list[tuple[str, str]]:
        return sorted(row for part in self._parts for row in part.failures())

    def changed_photos(self) -> list[tuple[str, str]]:
        return sorted(row for part in self._parts for row in part.changed_photos())

    def coverage(self) -> Coverage:
        each = [part.coverage() for part in self._parts]
        asked = Counter[str]()
        for one in each:
            asked.update(one.asked)
        unlisted = dict.fromkeys(key for one in each for key in one.unlisted)
        waiting = sorted(item_id for one in each for item_id in one.waiting)
        listed = {prompt.key: asked[prompt.key] for prompt in self.prompts}
        unsought = sum((Counter(one.unsought) for one in each), Counter[str]())
        return Coverage(sum(one.units for one in each), listed, tuple(waiting), tuple(unlisted), unsought)

    def full(self) -> list[tuple[str, int, str]]:
        return sorted(row for part in self._parts for row in part.full())

    def tracked_ids(self) -> set[str]:
        return {item_id for part in self._parts for item_id in part.tracked_ids()}

    def full_of(self, item_id: str) -> list[tuple[int, str]]:
        return [row for part in self._parts for row in part.full_of(item_id)]

    def near_copies(self) -> list[tuple[str, int, Likeness]]:
        return [row for part in self._parts for row in part.near_copies()]

    def stamp(self, item_id: str) -> Stamp | None:
        return next((stamp for part in self._parts if (stamp := part.stamp(item_id))), None)

    def without_thresholds(self) -> Run:
        return JoinedRun([part.without_thresholds() for part in self._parts])

    def without_verdicts(self, but_missing: bool = False) -> Run:
        return JoinedRun([part.without_verdicts(but_missing) for part in self._parts])

    def relying_on(self, uses: Mapping[VerdictUse, str], otherwise: Verify) -> Run:
        return JoinedRun([part.relying_on(uses, otherwise) for part in self._parts])

    # ---- what was labelled

    def done_units(self) -> Iterator[Unit]:
        """Return labelled photos and clips of videos, in item order over all folders."""
        return heapq.merge(*map(self._own_units, range(len(self._parts))), key=lambda u: (u.item.id, u.frame_start))

    def _own_units(self, number: int) -> Iterator[Unit]:
        return (replace(unit, part=number) for unit in self._parts[number].done_units())

    def unit(self, item_id: str, frame: int = 0) -> Unit | None:
        for number, part in enumerate(self._parts):
            if unit := part.unit(item_id, frame):
                return replace(unit, part=number)
        return None

    def candidates(self, unit: Unit) -> tuple[Candidate, ...]:
        return self._parts[unit.part].candidates(unit)

    def presence(self, unit: Unit) -> npt.NDArray[np.float32]:
        return self._parts[unit.part].presence(unit)

    def _corrected_ids(self) -> set[str]:
        return {item_id for part in self._parts for item_id in part._corrected_ids()}

    # ---- what people said, and what others keep in a run

    def corrections(self, item_id: str | None = None) -> list[Correction]:
        return [correction for part in self._parts for correction in part.corrections(item_id)]

    def record(self, corrections: Sequence[Correction], notes: Mapping[str, Any] | None = None) -> None:
        """Append corrections, each in its photo's folder, all or none of one folder; the notes with the last of them.

        What was cut off in between is given again by whoever keeps the notes.
        """
        by_part: dict[int, list[Correction]] = {0: []}
        for one in corrections:
            by_part.setdefault(self._part_of(one.item_id, one.frame), []).append(one)
        for number in sorted(by_part, reverse=True):
            self._parts[number].record(by_part[number], notes if number == 0 else None)

    def _part_of(self, item_id: str, frame: int) -> int:
        return next((n for n, part in enumerate(self._parts) if part._store.unit(item_id, frame)), 0)

    def verdicts(self, verifier: str, item_id: str | None = None) -> Iterator[Verdict]:
        return chain.from_iterable(part.verdicts(verifier, item_id) for part in self._parts)

    def transcripts(self, item_id: str | None = None) -> Iterator[Transcript]:
        return chain.from_iterable(part.transcripts(item_id) for part in self._parts)

    def record_verdicts(self, verdicts: Sequence[Verdict]) -> None:
        """Keep verdicts, each in its photo's folder."""
        for number, part in enumerate(self._parts):
            if own := [one for one in verdicts if self._part_of(one.item_id, one.frame) == number]:
                part.record_verdicts(own)

    def rely_on(self, uses: Mapping[VerdictUse, str | None]) -> None:
        for part in self._parts:
            part.rely_on(uses)
        self._verifiers = None

    @property
    def heeds_verdicts(self) -> bool:
        return any(part.heeds_verdicts for part in self._parts)

    def counting_verdicts(self, item_id: str) -> dict[int, list[Verdict]]:
        """Return the verdicts that count: each folder trusts its own verifier."""
        return next((found for part in self._parts if (found := part.counting_verdicts(item_id))), {})


def _refuse_different(parts: Sequence[Run]) -> None:
    """Raise `StoreError` naming every field in which a run differs from the first."""
    first = _settings(parts[0])
    for part in parts[1:]:
        own = _settings(part)
        fields = sorted(name for name in first.keys() | own.keys() if first.get(name) != own.get(name))
        if fields:
            lines = "".join(f"\n  {name}: {_short(first.get(name))} and {_short(own.get(name))}" for name in fields)
            raise StoreError(
                f"{parts[0].folder} and {part.folder} were made with different settings, and cannot be read as one:"
                f"{lines}\nLabel both with the same settings, or read them one by one."
            )


def _refuse_twice(parts: Sequence[Run]) -> None:
    """Raise `StoreError` naming photos that several runs hold."""
    both: list[str] = []
    for item_id, group in groupby(heapq.merge(*map(_ids, parts)), key=lambda row: row[0]):
        folders = [str(folder) for _, folder in group]
        if len(folders) > 1:
            both.append(f"\n  {one_line(item_id)}: {' and '.join(folders)}")
            if len(both) > _SHOWN:
                break
    if both:
        more = "\n  ... and more" if len(both) > _SHOWN else ""
        raise StoreError(
            f"these runs hold the same photos, and cannot be read as one:{''.join(both[:_SHOWN])}{more}\n"
            "Leave one of the runs out, or label one with another name for its source: new=FOLDER."
        )


def _ids(run: Run) -> Iterator[tuple[str, Path]]:
    return ((item.id, run.folder) for item, _ in run._store.items())


def _settings(run: Run) -> dict[str, Any]:
    fields = {name: value for name, value in (run.note("fingerprint") or {}).items() if name != SHARD}
    fields |= {f"exemplars of {name}": digest for name, digest in run._store.guides.items()}
    fields |= {f"class {concept.name}": concept for concept in run.concepts.concepts}
    return {**fields, "exclusive": run.concepts.exclusive, "classes": run.concepts.names}


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 160 else text[:157] + "..."
