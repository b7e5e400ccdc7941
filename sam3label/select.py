"""Candidates and a person's corrections in, labels out: every decision after the GPU pass, and no model in sight.

`decide` says of each candidate whether it became a label and, if not, why; `select_labels` keeps those that did.
The order of the rules is the meaning:

1. score, presence and area against the class's thresholds;
2. within a class (all its phrases together: this is the synonym merge), masks overlapping by more than the class's
   `iou` are one object and the best score keeps it;
3. a `not:` candidate that covers the same object with at least the same score suppresses it;
4. in an `exclusive:` group the class with the best score keeps the object;
5. `max_instances`, best first.

"The same object" across phrases of different meaning is mask IoU of at least `SAME_OBJECT_IOU`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sam3label import masks
from sam3label.config import parse_concepts
from sam3label.errors import ConfigError
from sam3label.records import Candidate, Concept, ConceptList, Edit, Label, LabeledImage, Source, exemplar_class
from sam3label.store import Store, Totals, Unit

SAME_OBJECT_IOU = 0.5

Outcome = Literal[
    "label", "low score", "low presence", "small", "duplicate", "hard negative", "exclusive", "max_instances"
]


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one candidate as one class. `by` is the id of the candidate or label that displaced it."""

    label: Label
    outcome: Outcome
    by: str | None = None


def select_labels(candidates: Sequence[Candidate], concepts: ConceptList) -> tuple[Label, ...]:
    """The labels of one image (or frame), by class id and falling score. Pure; candidates may come in any order."""
    return tuple(d.label for d in decide(candidates, concepts) if d.outcome == "label")


def decide(candidates: Sequence[Candidate], concepts: ConceptList) -> tuple[Decision, ...]:
    """One decision for every (candidate, class that asked for it), by class id and falling score."""
    by_prompt: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_prompt.setdefault(_prompt_class(candidate) or candidate.prompt, []).append(candidate)
    claimed: set[str] = set()
    decisions: list[Decision] = []
    for concept in concepts.concepts:
        own = [c for p in (*concept.prompts, _class_key(concept.name)) for c in by_prompt.get(p, ())]
        against = [c for p in concept.negatives for c in by_prompt.get(p, ())]
        decisions += _decide_class(_labels(own, concept, claimed), against, concept)
    decisions = _exclusive(decisions, concepts)
    return tuple(_cap(decisions, concepts))


def _class_key(name: str) -> str:
    return f"class\0{name}"


def _prompt_class(candidate: Candidate) -> str | None:
    """Candidates of exemplar prompts belong to the class that their key names, `exemplar:<class>...`."""
    name = None if candidate.source == "phrase" else exemplar_class(candidate.prompt)
    return None if name is None else _class_key(name)


def _labels(candidates: Iterable[Candidate], concept: Concept, claimed: set[str]) -> list[Label]:
    """Labels-to-be, best first. A candidate that serves a second class gets a label id of its own there."""
    labels = []
    for c in candidates:
        label_id = c.id if c.id not in claimed else f"{c.id}-{concept.id}"
        claimed.add(c.id)
        labels.append(
            Label(
                label_id,
                concept.id,
                c.score,
                c.presence,
                c.box_xywh,
                c.area,
                c.rle,
                c.prompt,
                c.source,
                c.frame,
                c.track_id,
            )
        )
    return sorted(labels, key=_best_first)


def _best_first(label: Label) -> tuple[float, str]:
    return -label.score, label.id


def _decide_class(labels: Sequence[Label], against: Sequence[Candidate], concept: Concept) -> list[Decision]:
    decisions = [Decision(label, _threshold(label, concept)) for label in labels]
    decisions = _merge_duplicates(decisions, concept.iou)
    return _suppress(decisions, against) if against else decisions


def _threshold(label: Label, concept: Concept) -> Outcome:
    if label.score < concept.conf:
        return "low score"
    if label.presence < concept.presence:
        return "low presence"
    return "small" if label.area < concept.min_area else "label"


def _standing(decisions: Sequence[Decision]) -> list[int]:
    return [i for i, d in enumerate(decisions) if d.outcome == "label"]


def _merge_duplicates(decisions: list[Decision], iou: float) -> list[Decision]:
    """Greedy NMS on masks. `decisions` come best first."""
    standing = _standing(decisions)
    rles = [decisions[i].label.rle for i in standing]
    overlap = masks.iou_matrix(rles, rles)
    kept: list[int] = []
    for row, i in enumerate(standing):
        winner = next((k for k in kept if overlap[row, k] > iou), None)
        if winner is None:
            kept.append(row)
        else:
            decisions[i] = replace(decisions[i], outcome="duplicate", by=decisions[standing[winner]].label.id)
    return decisions


def _suppress(decisions: list[Decision], against: Sequence[Candidate]) -> list[Decision]:
    standing = _standing(decisions)
    overlap = masks.iou_matrix([decisions[i].label.rle for i in standing], [c.rle for c in against])
    for row, i in enumerate(standing):
        score = decisions[i].label.score
        winner = next(
            (c for k, c in enumerate(against) if overlap[row, k] >= SAME_OBJECT_IOU and c.score >= score), None
        )
        if winner is not None:
            decisions[i] = replace(decisions[i], outcome="hard negative", by=winner.id)
    return decisions


def _exclusive(decisions: list[Decision], concepts: ConceptList) -> list[Decision]:
    for group in concepts.exclusive:
        ids = {c.id for c in concepts.concepts if c.name in group}
        standing = [i for i in _standing(decisions) if decisions[i].label.class_id in ids]
        standing.sort(key=lambda i: _best_first(decisions[i].label))
        rles = [decisions[i].label.rle for i in standing]
        overlap = masks.iou_matrix(rles, rles)
        kept: list[int] = []
        for row, i in enumerate(standing):
            other = decisions[i].label.class_id
            rivals = (k for k in kept if decisions[standing[k]].label.class_id != other)
            winner = next((k for k in rivals if overlap[row, k] >= SAME_OBJECT_IOU), None)
            if winner is None:
                kept.append(row)
            else:
                decisions[i] = replace(decisions[i], outcome="exclusive", by=decisions[standing[winner]].label.id)
    return decisions


def _cap(decisions: Iterable[Decision], concepts: ConceptList) -> Iterator[Decision]:
    counts: dict[int, int] = {}
    for d in decisions:  # best first within a class
        cap = concepts.concepts[d.label.class_id].max_instances
        if d.outcome == "label":
            counts[d.label.class_id] = counts.get(d.label.class_id, 0) + 1
            if cap is not None and counts[d.label.class_id] > cap:
                d = replace(d, outcome="max_instances")
        yield d


# ---- people's corrections


def apply_edits(
    labels: Sequence[Label], decisions: Sequence[Decision], edits: Sequence[Edit], names: Sequence[str]
) -> tuple[tuple[Label, ...], bool]:
    """Labels of one image (frame) after its human decisions in order, and whether a person has reviewed it.

    What a person touched stays whatever the thresholds become; on a reviewed image nothing else stays. An edit of a
    label whose candidate is gone is kept in the store and has no effect here.
    """
    known = {d.label.id: d.label for d in decisions} | {label.id: label for label in labels}
    result = {label.id: label for label in labels}
    touched: set[str] = set()
    reviewed = False
    for edit in edits:
        if edit.label_id is None:
            reviewed = True
            continue
        touched.add(edit.label_id)
        edited = _apply(result.get(edit.label_id) or known.get(edit.label_id), edit, names)
        if edited is None:
            result.pop(edit.label_id, None)
        else:
            result[edit.label_id] = edited
    kept = (label for label in result.values() if not reviewed or label.id in touched)
    return tuple(sorted(kept, key=lambda label: (label.class_id, *_best_first(label)))), reviewed


def _apply(label: Label | None, edit: Edit, names: Sequence[str]) -> Label | None:
    if edit.action == "deleted" or (edit.class_name is not None and edit.class_name not in names):
        return None
    if edit.action == "added" and edit.rle is not None and edit.class_name is not None and edit.label_id is not None:
        return _human_label(edit.label_id, names.index(edit.class_name), edit)
    if label is None:
        return None
    source: Source = label.source if edit.action == "approved" else "human"
    label = replace(label, source=source)
    if edit.class_name is not None:
        label = replace(label, class_id=names.index(edit.class_name))
    if edit.rle is not None:
        label = replace(label, rle=edit.rle, area=masks.area(edit.rle), box_xywh=masks.box_xywh(edit.rle))
    return label


def _human_label(label_id: str, class_id: int, edit: Edit) -> Label:
    assert edit.rle is not None  # Edit checks it
    box, area = masks.box_xywh(edit.rle), masks.area(edit.rle)
    return Label(label_id, class_id, 1.0, 1.0, box, area, edit.rle, "", "human", edit.frame, edit.track_id)


# ---- a run, as everything after the GPU pass reads it


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
