"""What `validate` found, as plain values. A finding either drops labels at training or is worth knowing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Effect = Literal["drops", "note"]
EXAMPLES = 10


@dataclass(slots=True)
class Finding:
    """One rule that some records break. `drops`: the trainers in `who` leave them out, or refuse the dataset."""

    effect: Effect
    who: str
    what: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Findings:
    """Collects findings: one per rule, with a count and the first examples."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], Finding] = {}

    def drops(self, who: str, what: str, example: str = "", count: int = 1) -> None:
        self._add("drops", who, what, example, count)

    def note(self, who: str, what: str, example: str = "", count: int = 1) -> None:
        self._add("note", who, what, example, count)

    def _add(self, effect: Effect, who: str, what: str, example: str, count: int) -> None:
        finding = self._found.setdefault((effect, who, what), Finding(effect, who, what))
        finding.count += count
        if example and len(finding.examples) < EXAMPLES:
            finding.examples.append(example)

    def sorted(self) -> tuple[Finding, ...]:
        """Drops first, the most frequent first."""
        return tuple(sorted(self._found.values(), key=lambda f: (f.effect != "drops", -f.count)))


@dataclass(slots=True)
class Split:
    """One part of a dataset as its files state it."""

    name: str
    images: int = 0
    empty: int = 0
    instances: Counter[str] = field(default_factory=Counter)  # by class name


@dataclass(frozen=True, slots=True)
class Consumer:
    """What came of loading the dataset as a consumer does."""

    name: str
    result: str


@dataclass(frozen=True, slots=True)
class Match:
    """One label of the run and how much of it the dataset gives back."""

    image: str
    class_name: str
    label_id: str
    iou: float


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """The run's labels against the dataset's. `measure` says what `iou` is; `extra` instances are not in the run."""

    measure: str
    labels: int
    lost: int
    extra: int
    images_missing: int
    mean: float | None
    minimum: float | None
    worst: tuple[Match, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All of it. `clean` if no trainer would drop anything."""

    dataset: str
    kind: str
    classes: Mapping[int, str]
    splits: tuple[Split, ...]
    consumers: tuple[Consumer, ...]
    findings: tuple[Finding, ...]
    round_trip: RoundTrip | None = None

    @property
    def clean(self) -> bool:
        return not any(f.effect == "drops" for f in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Everything in the report, for machines."""
        splits = [
            {"name": s.name, "images": s.images, "empty": s.empty, "instances": dict(s.instances)} for s in self.splits
        ]
        return {**asdict(replace(self, splits=())), "splits": splits, "clean": self.clean}
