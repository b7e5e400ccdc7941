"""A run, as everything after the GPU pass reads it. Nobody else opens the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3label.concepts.concept_list import parse_concepts
from sam3label.core.records import Candidate, ConceptList, Correction, LabeledImage, MediaItem, Prompt
from sam3label.errors import ConfigError
from sam3label.run.corrections import apply_corrections
from sam3label.run.decide import Decision, decide
from sam3label.run.store import Store, Totals, Unit


@dataclass(frozen=True, slots=True)
class SeenFrame:
    """One image, or frame of a video, as the run holds it: what was seen, what became of it, and its labels.

    `presence` is by prompt key and leaves out prompts that were not asked.
    """

    candidates: tuple[Candidate, ...]
    decisions: tuple[Decision, ...]
    presence: Mapping[str, float]
    image: LabeledImage


class Run:
    """A finished or growing run, read through a concept list. Streams: memory does not grow with the run.

    Failed images are in `failures()` and nowhere else: units, frames and images are those that were labelled.
    """

    def __init__(self, store: Store, concepts: ConceptList) -> None:
        self._store = store
        self.concepts = concepts

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {len(self)} images, {len(self.concepts.concepts)} classes)"

    def __len__(self) -> int:
        """Images that are done."""
        return self.totals().done

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    # ---- the run as a whole

    @property
    def folder(self) -> Path:
        return self._store.folder

    @property
    def info(self) -> dict[str, Any]:
        """What the run was made with: `model`, `checkpoint` (identity), `created`, `version`, `sources`, ..."""
        return dict(self.note("info") or {})

    @property
    def floor(self) -> float:
        """The score under which candidates were not kept."""
        return float((self.note("fingerprint") or {}).get("floor", 0.0))

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """What the model was asked, in the order of `presence`."""
        return self._store.prompts

    def totals(self) -> Totals:
        return self._store.totals()

    def failures(self) -> list[tuple[str, str]]:
        """(item id, reason) of everything that could not be labelled."""
        return [(unit.item.id, unit.error) for unit in self._store.units() if unit.error is not None]

    def without_thresholds(self) -> Run:
        """The same run, in which every candidate over the floor passes its class's score and presence thresholds."""
        relaxed = tuple(replace(c, conf=0.0, presence=0.0) for c in self.concepts.concepts)
        return Run(self._store, replace(self.concepts, concepts=relaxed))

    # ---- what was labelled

    def done_units(self) -> Iterator[Unit]:
        """Labelled photos and clips of videos, in item order."""
        return (unit for unit in self._store.units() if unit.error is None)

    def items(self, kind: str | None = None) -> list[MediaItem]:
        """Labelled photos and videos once each, in order; of one kind, if asked."""
        items = {unit.item.id: unit.item for unit in self.done_units()}
        return [item for item in items.values() if kind in (None, item.kind)]

    def unit(self, item_id: str, frame: int = 0) -> Unit | None:
        """The labelled unit that holds a frame; None where the run has none."""
        unit = self._store.unit(item_id, frame)
        return unit if unit is not None and unit.error is None else None

    def images(self) -> Iterator[LabeledImage]:
        """Labelled images (and frames of videos) in item order; empty ones are among them."""
        corrected = self._store.corrected_ids()
        for unit in self.done_units():
            yield from self._images(unit, unit.item.id in corrected)

    def image(self, item_id: str, frame: int = 0) -> LabeledImage | None:
        """One labelled image by its id, or None when the run does not have it or it failed."""
        unit = self.unit(item_id, frame)
        return None if unit is None else next(image for image in self.unit_images(unit) if image.frame == frame)

    def unit_images(self, unit: Unit) -> Iterator[LabeledImage]:
        """The labelled frames of one unit; a photo has one."""
        return self._images(unit, corrected=True)

    def frames(self, unit: Unit) -> Iterator[SeenFrame]:
        """The frames of one unit with all that was seen in them; a photo has one."""
        keys = [prompt.key for prompt in self.prompts]
        corrections = self.corrections(unit.item.id)
        for (frame, candidates), row in zip(self._by_frame(unit), self.presence(unit).tolist(), strict=True):
            presence = {key: value for key, value in zip(keys, row, strict=True) if value == value}
            decisions = decide(candidates, self.concepts)
            image = self._image(unit, frame, decisions, corrections)
            yield SeenFrame(candidates, decisions, presence, image)

    def candidates(self, unit: Unit) -> tuple[Candidate, ...]:
        """Everything over the floor in all frames of a unit."""
        return self._store.candidates(unit)

    def presence(self, unit: Unit) -> npt.NDArray[np.float32]:
        """float32 [F, P] in the order of `prompts`; NaN where a prompt was not asked."""
        return self._store.presence(unit)

    def _images(self, unit: Unit, corrected: bool) -> Iterator[LabeledImage]:
        corrections = self.corrections(unit.item.id) if corrected else []
        for frame, candidates in self._by_frame(unit):
            yield self._image(unit, frame, decide(candidates, self.concepts), corrections)

    def _by_frame(self, unit: Unit) -> Iterator[tuple[int, tuple[Candidate, ...]]]:
        frames: dict[int, list[Candidate]] = {}
        for candidate in self.candidates(unit):
            frames.setdefault(candidate.frame, []).append(candidate)
        return ((frame, tuple(frames.get(frame, ()))) for frame in range(unit.frame_start, unit.frame_stop))

    def _image(
        self, unit: Unit, frame: int, decisions: Sequence[Decision], corrections: Sequence[Correction]
    ) -> LabeledImage:
        assert unit.size_hw is not None  # a labelled unit has a size
        labels, reviewed = tuple(d.label for d in decisions if d.outcome == "label"), False
        if own := [c for c in corrections if c.frame == frame]:
            labels, reviewed = apply_corrections(labels, decisions, own, self.concepts.names)
        return LabeledImage(unit.item, unit.size_hw, labels, reviewed, frame)

    # ---- what people said, and what others keep in a run

    def corrections(self, item_id: str | None = None) -> list[Correction]:
        """What people decided, oldest first: of one item, or of all."""
        return self._store.corrections(item_id)

    def record(self, corrections: Sequence[Correction], notes: Mapping[str, Any] | None = None) -> None:
        """Append corrections, all or none, and with them notes by key. What the model saw is never touched."""
        self._store.add_corrections(corrections, notes)

    def note(self, key: str) -> Any:
        """A JSON value that was kept in the run, or None."""
        return self._store.meta(key)

    def keep_note(self, key: str, value: Any) -> None:
        """Keep a JSON value in the run."""
        self._store.set_meta(key, value)


def count_objects(run: Run) -> dict[str, tuple[int, int]]:
    """Per class name, in id order: (objects, images with at least one)."""
    objects, images = Counter[int](), Counter[int]()
    for image in run.images():
        found = [label.class_id for label in image.labels]
        objects.update(found)
        images.update(set(found))
    return {c.name: (objects[c.id], images[c.id]) for c in run.concepts.concepts}


def open_run(folder: str | Path, concepts: ConceptList | None = None) -> Run:
    """Open a run for reading, with the concept list it was made with or another over the same phrases.

    Raises `StoreError` when there is no run, `ConfigError` when `concepts` asks for phrases the run never put.
    """
    store = Store.open(folder)
    try:
        run = Run(store, concepts or _own_concepts(store))
        if concepts is not None:
            _refuse_unasked(concepts, store)
            refuse_below_floor(concepts, run.floor)
    except BaseException:
        store.close()
        raise
    return run


def _own_concepts(store: Store) -> ConceptList:
    return parse_concepts(store.meta("concepts"), f"{store.folder} (the run's own concept list)")


def refuse_below_floor(concepts: ConceptList, floor: float) -> None:
    """Raise `ConfigError` where a class wants scores that a run with this floor does not keep."""
    low = [f"{c.name} ({c.conf:g})" for c in concepts.concepts if c.conf < floor]
    if low:
        raise ConfigError(
            f"the run keeps candidates with a score of at least {floor:g}, and these classes have a lower conf: "
            f"{', '.join(low[:5])}. Raise their conf, or make a run with a lower --floor."
        )


def _refuse_unasked(concepts: ConceptList, store: Store) -> None:
    asked = {p.key for p in store.prompts}
    missing = [p for p in concepts.phrases if p not in asked]
    if missing:
        raise ConfigError(
            f"the concept list asks for {', '.join(map(repr, missing[:5]))}, which this run never put to the model. "
            "Thresholds and classes may change afterwards, phrases need a new run: sam3label run ... -o OTHER"
        )
