"""What a report counts: one pass over the run, in memory that does not grow with it."""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3label.core.records import ConceptList, Label, LabeledImage
from sam3label.run.decide import VETO_BELOW, Verdicts, select_labels
from sam3label.run.reader import Run, SeenFrame

MAX_EMBEDDED = 100_000  # candidates
SCORE_BINS = 20
PRESENCE_BINS = 10
DECIDERS = (
    "people",
    "verifier",
    "agent",
    "model",
    "dropped by people",
    "dropped by the verifier",
    "found by the verifier",
)
SIZE_EDGES = (0, 8, 16, 32, 64, 128, 256, 512, 1024, np.inf)  # square root of the area, in pixels


@dataclass(slots=True)
class _Embedded:
    """Candidates for the sliders: of every `step`-th image."""

    step: int
    images: int = 0
    rows: dict[int, list[tuple[float, float, int]]] = field(default_factory=lambda: defaultdict(list))

    def to_json(self, classes: int) -> dict[str, Any]:
        columns = [np.array(self.rows.get(c, []), dtype=np.float64).reshape(-1, 3) for c in range(classes)]
        flat = np.concatenate(columns) if columns else np.zeros((0, 3))
        return {
            "images": self.images,
            "step": self.step,
            "counts": [len(c) for c in columns],
            "score": _base64(flat[:, 0].astype("<f8")),
            "presence": _base64(flat[:, 1].astype("<f8")),
            "image": _base64(flat[:, 2].astype("<u4")),
        }


def _base64(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()


@dataclass(slots=True)
class ReportCounts:
    """What the pass over all images adds up."""

    embedded: _Embedded
    images: int = 0
    photos: int = 0  # of the images; the others are frames of videos
    empty: int = 0
    reviewed: int = 0
    objects: Counter[int] = field(default_factory=Counter)
    shown: Counter[int] = field(default_factory=Counter)  # images with at least one
    together: Counter[tuple[int, int]] = field(default_factory=Counter)
    scores: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)  # candidates, [SCORE_BINS]
    sizes: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)  # labels, [len(SIZE_EDGES) - 1]
    presence: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)  # images and those labelled, [2, bins]
    deciders: Counter[tuple[int, str]] = field(default_factory=Counter)  # labels by class and one of DECIDERS


def tally_run(run: Run, on_unit: Callable[[], None] = lambda: None) -> ReportCounts:
    """Add up a whole run; `on_unit` is called after each photo and clip."""
    totals = run.totals()
    tally = ReportCounts(_Embedded(max(1, -(-totals.candidates // MAX_EMBEDDED))))
    everything = run.without_thresholds().concepts
    for unit in run.done_units():
        verdicts, corrections = run.counting_verdicts(unit.item.id), run.corrections(unit.item.id)
        for seen in run.frames(unit):
            _add(tally, run.concepts, seen, everything)
            frame = seen.image.frame
            touched = {one.label_id for one in corrections if one.frame == frame and one.label_id is not None}
            _add_deciders(tally, run.concepts, seen, touched, Verdicts(verdicts.get(frame, ())))
        on_unit()
    return tally


def _add(tally: ReportCounts, concepts: ConceptList, seen: SeenFrame, everything: ConceptList) -> None:
    standing = select_labels(seen.candidates, everything)
    _add_counts(tally, seen.image)
    _add_histograms(tally, concepts, seen.image, standing, seen.presence)
    if tally.images % tally.embedded.step == 0:
        for label in standing:
            tally.embedded.rows[label.class_id].append((label.score, label.presence, tally.embedded.images))
        tally.embedded.images += 1
    tally.images += 1
    tally.photos += seen.image.item.kind == "image"


def _add_deciders(
    tally: ReportCounts, concepts: ConceptList, seen: SeenFrame, touched: Set[str], said: Verdicts
) -> None:
    """Count whose word made each label one, or none: a person's, a trusted verifier's, an agent's, or the model's
    alone."""
    kept = {label.id for label in seen.image.labels}
    for label in seen.image.labels:
        concept = concepts.concepts[label.class_id]
        if label.id in touched:
            who = "people"
        elif label.source == "agent":
            who = "agent"
        elif concept.verify.missing_conf is not None and label.score < concept.conf and label.given is None:
            who = "found by the verifier"
        else:
            heard = said.heard_of(label.class_name, label.id)
            who = "verifier" if heard is not None and heard >= VETO_BELOW else "model"
        tally.deciders[label.class_id, who] += 1
    for decision in seen.decisions:
        if decision.label.id not in kept and decision.outcome in ("label", "verdict"):
            who = "people" if decision.outcome == "label" else "the verifier"
            tally.deciders[decision.label.class_id, f"dropped by {who}"] += 1


def _add_counts(tally: ReportCounts, image: LabeledImage) -> None:
    found = Counter(label.class_id for label in image.labels)
    tally.objects += found
    tally.shown.update(found.keys())
    tally.together.update((a, b) for a in found for b in found if a < b)
    tally.empty += not found
    tally.reviewed += image.reviewed


def _add_histograms(
    tally: ReportCounts,
    concepts: ConceptList,
    image: LabeledImage,
    standing: Sequence[Label],
    presence: Mapping[str, float],
) -> None:
    labelled = {label.class_id for label in image.labels}
    for concept in concepts.concepts:
        scores = tally.scores.setdefault(concept.id, np.zeros(SCORE_BINS, np.int64))
        scores += np.histogram([x.score for x in standing if x.class_id == concept.id], SCORE_BINS, (0, 1))[0]
        sides = [label.area**0.5 for label in image.labels if label.class_id == concept.id]
        tally.sizes.setdefault(concept.id, np.zeros(len(SIZE_EDGES) - 1, np.int64))
        tally.sizes[concept.id] += np.histogram(sides, SIZE_EDGES)[0]
        asked = [presence[p] for p in concept.prompts if p in presence]
        if asked:
            bins = tally.presence.setdefault(concept.id, np.zeros((2, PRESENCE_BINS), np.int64))
            bins[:, min(int(max(asked) * PRESENCE_BINS), PRESENCE_BINS - 1)] += (1, concept.id in labelled)
