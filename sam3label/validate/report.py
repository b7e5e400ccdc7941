"""What `validate` found, as plain values. A finding drops labels at training, turns them, or is worth knowing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Effect = Literal["drops", "turns", "note"]
EXAMPLES = 10
_ORDER = ("drops", "turns", "note")
_LONGEST = 200  # letters of an example: a broken file may hold a name of a megabyte


def shown(text: str) -> str:
    """Return a text out of somebody's file, ready to print: what is no visible character becomes its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(slots=True)
class Finding:
    """One rule that some records break.

    `drops`: the readers in `who` leave them out, or refuse the dataset. `turns`: they read them turned against their
    photo. Either makes a dataset unclean.
    """

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

    def turns(self, who: str, what: str, example: str = "", count: int = 1) -> None:
        self._add("turns", who, what, example, count)

    def note(self, who: str, what: str, example: str = "", count: int = 1) -> None:
        self._add("note", who, what, example, count)

    def _add(self, effect: Effect, who: str, what: str, example: str, count: int) -> None:
        finding = self._found.setdefault((effect, who, what), Finding(effect, who, what))
        finding.count += count
        if example and len(finding.examples) < EXAMPLES:
            cut = example if len(example) <= _LONGEST else example[:_LONGEST] + " ..."
            finding.examples.append(shown(cut))

    def sorted(self) -> tuple[Finding, ...]:
        """Return what drops first, the most frequent first."""
        return tuple(sorted(self._found.values(), key=lambda f: (_ORDER.index(f.effect), -f.count)))


@dataclass(slots=True)
class Split:
    """One part of a dataset as its files state it."""

    name: str
    images: int = 0
    empty: int = 0
    instances: Counter[str] = field(default_factory=Counter)  # by class name


_SPLIT_ORDER = ("train", "val", "valid", "test")


def in_order(splits: Iterable[Split]) -> tuple[Split, ...]:
    """Return train, val, test; others after them as they came."""
    known = {name: place for place, name in enumerate(_SPLIT_ORDER)}
    return tuple(sorted(splits, key=lambda split: known.get(split.name, len(known))))


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
    """All of it. `clean` if no trainer would drop or turn anything."""

    dataset: str
    kind: str
    classes: Mapping[int, str]
    splits: tuple[Split, ...]
    consumers: tuple[Consumer, ...]
    findings: tuple[Finding, ...]
    round_trip: RoundTrip | None = None

    @property
    def clean(self) -> bool:
        return all(f.effect == "note" for f in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return everything in the report, for machines."""
        splits = [
            {"name": s.name, "images": s.images, "empty": s.empty, "instances": dict(s.instances)} for s in self.splits
        ]
        return {**asdict(replace(self, splits=())), "splits": splits, "clean": self.clean}
