"""How far references can be trusted, before they label anything: each is labelled from the others and compared with
its own labels. What comes out is the same labels as a run's, by the same rules, so the figure is the one to expect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3label.concepts.exemplars import Examples, Reference
from sam3label.core.matching import greedy
from sam3label.core.records import Label
from sam3label.core.text import count, verb
from sam3label.errors import ConfigError
from sam3label.labelling.questions import Guide, pictures
from sam3label.run.decide import select_labels

LEAST_F1 = 0.3
MATCH_IOU = 0.5  # of boxes: references may have no masks


@dataclass(frozen=True, slots=True)
class Trust:
    """What labelling the references of a class from one another came to. `conf` is the class's threshold then."""

    class_name: str
    references: int
    found: int
    wrong: int
    missed: int
    conf: float

    @property
    def precision(self) -> float:
        return self.found / max(1, self.found + self.wrong)

    @property
    def recall(self) -> float:
        return self.found / max(1, self.found + self.missed)

    @property
    def f1(self) -> float:
        return 2 * self.found / max(1, 2 * self.found + self.wrong + self.missed)

    @property
    def measured(self) -> bool:
        """One reference says nothing about another."""
        return self.references > 1

    @property
    def trusted(self) -> bool:
        return self.measured and self.f1 >= LEAST_F1

    def sentence(self) -> str:
        """Return the figures in words."""
        if not self.measured:
            return f"{self.class_name}: one reference cannot be measured against another"
        least = "" if self.trusted else f" (the least to be trusted is {LEAST_F1:.2f})"
        return (
            f"{self.class_name}: {count(self.references, 'reference')}, each labelled from the others: "
            f"precision {self.precision:.2f}, recall {self.recall:.2f}, F1 {self.f1:.2f}{least}"
        )

    @classmethod
    def from_json(cls, figures: Mapping[str, Any]) -> Trust:
        """Return the inverse of `to_json`."""
        return cls(**{one.name: figures[one.name] for one in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        figures = {"precision": self.precision, "recall": self.recall, "f1": self.f1} if self.measured else {}
        return {**asdict(self), **{key: round(value, 4) for key, value in figures.items()}}


def measure(guide: Guide, examples: Examples, floor: float) -> Trust:
    """Label each reference of a class from the others and compare.

    Only the class itself is asked for, with its phrases and hard negatives where it has some.
    """
    alone = guide.alone(examples)
    showing = sum(reference.shows_class for reference in examples.references)
    counts = np.zeros(3, np.int64)
    if showing > 1:
        step = guide.detector.image_batch
        for start in range(0, len(examples.references), step):
            some = examples.references[start : start + step]
            for reference, detection in zip(some, alone.detect([r.frame() for r in some], floor), strict=True):
                counts += compared(select_labels(detection.candidates, alone.concepts), reference)
    found, wrong, missed = (int(count) for count in counts)
    return Trust(examples.concept.name, showing, found, wrong, missed, examples.concept.conf)


def encodes(examples: Examples) -> int:
    """Return how many pictures `measure` encodes."""
    if sum(reference.shows_class for reference in examples.references) < 2 or examples.concept.exemplars is None:
        return 0
    rules, count = examples.concept.exemplars, len(examples.references)
    if rules.mode == "tokens":
        return count
    return count * (pictures(examples) + bool(examples.concept.negatives))


def check(
    guide: Guide, floor: float, accept: bool, known: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure every class with references, say the figures, and return them by class for the store.

    `known` has figures of an earlier session over the same references: they hold while the class's threshold does.
    Raises ConfigError for references not to be trusted, unless `accept`.
    """
    figures = []
    for examples in (e for e in guide.examples if e.references):
        if _holds(known, examples):
            figures.append(Trust.from_json(known[examples.concept.name]))
        else:
            figures.append(measure(guide, examples, floor))
        say(figures[-1].sentence())
    if not accept:
        refuse_poor(figures)
    return {trust.class_name: trust.to_json() for trust in figures}


def plan(guide: Guide, n_images: int, known: Mapping[str, Any]) -> str:
    """Return how many pictures the run will encode, which is what it costs, in a sentence."""
    parts = {name: n for name, n in guide.encodes(n_images).items() if n}
    measuring = sum(encodes(e) for e in guide.examples if not _holds(known, e))
    if measuring:
        parts["to measure the references first"] = measuring
    each = " + ".join(f"{n:,} {name}" for name, n in parts.items())
    photos, all_of_them = count(n_images, "photo"), count(sum(parts.values()), "image encode")
    return f"{photos} {verb(n_images, 'takes', 'take')} {all_of_them}{f': {each}' if len(parts) > 1 else ''}"


def _holds(known: Mapping[str, Any], examples: Examples) -> bool:
    """Return whether figures of an earlier session over the same references still say what labels are worth."""
    before = known.get(examples.concept.name)
    return before is not None and before["conf"] == examples.concept.conf


def refuse_poor(figures: Iterable[Trust]) -> None:
    """Raise ConfigError naming every class whose references are not good enough to label by."""
    poor = [trust for trust in figures if not trust.trusted]
    if poor:
        lines = "".join(f"\n  {trust.sentence()}" for trust in poor)
        raise ConfigError(
            f"labelling by these references is not to be trusted:{lines}\n"
            "Look at them as they are used (sam3label preview), correct their boxes (every object of the "
            "class must have one), add references that look like the photos, or give the class a phrase. "
            "To label nevertheless: --accept-exemplars"
        )


def compared(labels: Sequence[Label], reference: Reference) -> npt.NDArray[np.int64]:
    """Return (found, wrong, missed): best label first, each truth box is found by the label that overlaps it most."""
    truth = _truth(reference)
    boxes = np.array([label.box_xywh for label in labels], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    overlap = np.array([_iou(box, truth) for box in boxes]).reshape(len(labels), len(truth))
    found = len(greedy(overlap, MATCH_IOU)[0])  # greedy: labels are ranked, and the better one is believed first
    return np.array((found, len(labels) - found, len(truth) - found))


def _truth(reference: Reference) -> npt.NDArray[np.float64]:
    """Return the positive boxes [N, 4] as (x1, y1, x2, y2) in pixels."""
    if reference.boxes is None:
        return np.zeros((0, 4))
    height, width = reference.size_hw
    boxes = reference.boxes.boxes_xyxy[list(reference.boxes.positive)]
    return np.asarray(boxes * np.array((width, height) * 2, np.float64), np.float64)


def _iou(box: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    corners = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = (corners[1] - corners[0]).clip(min=0).prod(1)
    areas = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1)
    return np.asarray(shared / np.maximum(areas - shared, 1e-9))
