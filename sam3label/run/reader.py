"""A run, as everything after the GPU pass reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sam3label.concepts.concept_list import parse_concepts
from sam3label.core.records import Candidate, ConceptList, LabeledImage
from sam3label.errors import ConfigError
from sam3label.run.corrections import apply_edits
from sam3label.run.decide import decide
from sam3label.run.store import Store, Totals, Unit


class Run:
    """A finished or growing run, read through a concept list. Streams: memory does not grow with the run."""

    def __init__(self, store: Store, concepts: ConceptList) -> None:
        self.store = store
        self.concepts = concepts

    def __len__(self) -> int:
        """Images that are done."""
        return self.store.totals().done

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    @property
    def info(self) -> dict[str, Any]:
        """What the run was made with: `model`, `checkpoint` (identity), `created`, `version`, `sources`, ..."""
        return dict(self.store.meta("info") or {})

    def totals(self) -> Totals:
        return self.store.totals()

    def images(self) -> Iterator[LabeledImage]:
        """Labelled images (and frames of videos) in item order; failed ones are not among them, empty ones are."""
        edited = self.store.edited_ids()
        for unit in self.store.units():
            if unit.error is None:
                yield from self.unit_images(unit, edited=unit.item.id in edited)

    def image(self, item_id: str, frame: int = 0) -> LabeledImage | None:
        """One labelled image by its id, or None when the run does not have it or it failed."""
        unit = self.store.unit(item_id, frame)
        if unit is None or unit.error is not None:
            return None
        return next(image for image in self.unit_images(unit) if image.frame == frame)

    def unit_images(self, unit: Unit, edited: bool = True) -> Iterator[LabeledImage]:
        """The labelled frames of one done unit; a photo has one."""
        assert unit.size_hw is not None
        frames: dict[int, list[Candidate]] = {}
        for candidate in self.store.candidates(unit):
            frames.setdefault(candidate.frame, []).append(candidate)
        edits = self.store.edits(unit.item.id) if edited else []
        for frame in range(unit.frame_start, unit.frame_stop):
            decisions = decide(frames.get(frame, ()), self.concepts)
            labels = tuple(d.label for d in decisions if d.outcome == "label")
            reviewed = False
            if own := [e for e in edits if e.frame == frame]:
                labels, reviewed = apply_edits(labels, decisions, own, self.concepts.names)
            yield LabeledImage(unit.item, unit.size_hw, labels, reviewed, frame)

    def candidates(self, item_id: str) -> tuple[tuple[Candidate, ...], dict[str, float]]:
        """All candidates of an image, and its presence by prompt key (prompts that were not asked are left out)."""
        unit = self.store.unit(item_id)
        if unit is None or unit.error is not None:
            return (), {}
        presence = self.store.presence(unit)[0]
        return self.store.candidates(unit), {
            p.key: float(v) for p, v in zip(self.store.prompts, presence, strict=True) if v == v
        }

    def failures(self) -> list[tuple[str, str]]:
        """(item id, reason) of everything that could not be labelled."""
        return [(unit.item.id, unit.error) for unit in self.store.units() if unit.error is not None]


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
    if concepts is None:
        return Run(store, parse_concepts(store.meta("concepts"), f"{folder} (the run's own concept list)"))
    try:
        _refuse_unasked(concepts, store)
        refuse_below_floor(concepts, (store.meta("fingerprint") or {}).get("floor", 0.0))
    except BaseException:
        store.close()
        raise
    return Run(store, concepts)


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
