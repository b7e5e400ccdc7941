"""Which images are worth a person's hour, and why: pure functions over what the run stored.

Every reason has a gain in (0, 1]: how much a look may correct, 1 being "probably wrong". Two steps, so that memory
does not grow with the masks: `survey` walks the run once and keeps what depends on the whole of it (usual sizes, empty
images among full ones, the audit sample); `reasons` then judges one image at a time.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from sam3label.core import masks
from sam3label.core.records import Concept, ConceptList, Label
from sam3label.run.decide import SAME_OBJECT_IOU, Decision
from sam3label.run.reader import Run
from sam3label.run.store import Unit

Kind = Literal[
    "near threshold",
    "presence disagrees",
    "two classes",
    "synonyms disagree",
    "hard negative",
    "empty among similar",
    "unusual size",
    "audit",
]
KINDS: tuple[Kind, ...] = (
    "near threshold", "presence disagrees", "two classes", "synonyms disagree", "hard negative",
    "empty among similar", "unusual size", "audit",
)  # fmt: skip

NEAR = 0.1  # a score this close to its class's threshold could fall on either side
NEIGHBOURS = 5  # images an empty image is compared with
SIZED = 20  # labels a class needs before one of them can be called unusual
UNUSUAL = 3.5  # robust standard deviations (of log area share) beyond which a size is unusual


@dataclass(frozen=True, slots=True)
class Seen:
    """One image (frame) as the run holds it: every candidate's fate, and the presence by prompt key."""

    item_id: str
    frame: int
    size_hw: tuple[int, int]
    decisions: tuple[Decision, ...]
    presence: Mapping[str, float]
    is_video: bool = False

    @property
    def labels(self) -> list[Label]:
        return [d.label for d in self.decisions if d.outcome == "label"]

    def share(self, label: Label) -> float:
        """The part of the image that the label covers, in [0, 1]."""
        return label.area / (self.size_hw[0] * self.size_hw[1])


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an image is worth a look. `label_ids` name the labels and candidates it is about."""

    kind: Kind
    words: str
    gain: float
    label_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UsualSize:
    """Area shares of one class over the run: centre and spread of their logarithm, and the middle half in plain."""

    centre: float
    spread: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Survey:
    """What depends on the whole run. `empty` maps an empty image to the part of its neighbours that is not."""

    sizes: Mapping[int, UsualSize]
    empty: Mapping[str, float]
    audit: Mapping[str, int]  # item id -> rank, 0 first


# ---- reading the run


def look(run: Run, unit: Unit) -> Iterator[Seen]:
    """The frames of one done unit; a photo has one."""
    for seen in run.frames(unit):
        image = seen.image
        is_video = unit.item.kind == "video"
        yield Seen(unit.item.id, image.frame, image.size_hw, seen.decisions, seen.presence, is_video)


def look_at_all(run: Run) -> Iterator[Seen]:
    """Every done image and frame, in item order."""
    for unit in run.done_units():
        yield from look(run, unit)


# ---- the whole run


def survey(seen: Iterable[Seen], audit: int) -> Survey:
    """Walk the run once. Keeps eight bytes per label and one presence vector per image."""
    shares: dict[int, array[float]] = {}
    ids: dict[str, None] = {}
    photos: list[str] = []
    vectors: list[npt.NDArray[np.float32]] = []
    is_empty: list[bool] = []
    for image in seen:
        ids[image.item_id] = None
        labels = image.labels
        for label in labels:
            shares.setdefault(label.class_id, array("d")).append(image.share(label))
        if not image.is_video:
            photos.append(image.item_id)
            vectors.append(np.array(list(image.presence.values()), np.float32))
            is_empty.append(not labels)
    sizes = {class_id: usual_size(values) for class_id, values in shares.items() if len(values) >= SIZED}
    empty = empty_among_similar(photos, vectors, is_empty)
    return Survey(sizes, empty, {id_: rank for rank, id_ in enumerate(audit_sample(ids, audit))})


def usual_size(shares: Sequence[float]) -> UsualSize:
    """Median and scaled median deviation of log shares; the spread is at least 5 %: equal sizes do not alarm."""
    logs = np.log(np.maximum(shares, 1e-12))
    centre = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - centre)))
    low, high = np.exp(np.quantile(logs, (0.25, 0.75))).tolist()
    return UsualSize(centre, max(spread, 0.05), low, high)


def empty_among_similar(
    ids: Sequence[str], vectors: Sequence[npt.NDArray[np.float32]], is_empty: Sequence[bool]
) -> dict[str, float]:
    """Empty images most of whose nearest images, by presence vector, have labels: id -> that part of them."""
    if len(ids) <= NEIGHBOURS or not any(is_empty) or all(is_empty) or len({len(v) for v in vectors}) != 1:
        return {}
    points, empty = np.stack(vectors), np.array(is_empty)
    rows = np.flatnonzero(empty)
    nearest = np.asarray(cKDTree(points).query(points[rows], k=NEIGHBOURS + 1)[1])
    found = {}
    for row, near in zip(rows.tolist(), nearest, strict=True):
        others = [i for i in near.tolist() if i != row][:NEIGHBOURS]
        part = float(np.mean(~empty[others]))
        if part > 0.5:
            found[ids[row]] = part
    return found


def audit_sample(ids: Iterable[str], size: int) -> list[str]:
    """A random sample of items, in random order, that depends on nothing but the ids.

    The `size` smallest hashes are a uniform sample without replacement, and they still are after media were added,
    when most of the sample stays what it was.
    """
    return sorted(ids, key=lambda id_: (hashlib.blake2b(id_.encode(), digest_size=8, salt=b"audit").digest(), id_))[
        :size
    ]


# ---- one image


def reasons(seen: Seen, concepts: ConceptList, whole: Survey) -> tuple[Reason, ...]:
    """Every reason to look at one image, by kind in the order of `KINDS`."""
    found = [
        *_near_threshold(seen, concepts),
        *_presence_disagrees(seen, concepts),
        *_two_classes(seen, concepts),
        *_synonyms_disagree(seen, concepts),
        *_hard_negative(seen, concepts),
        *_unusual_size(seen, concepts, whole.sizes),
    ]
    if (part := whole.empty.get(seen.item_id)) is not None and not seen.labels:
        words = f"empty, though {part:.0%} of the {NEIGHBOURS} images most like it have labels"
        found.append(Reason("empty among similar", words, part))
    if (rank := whole.audit.get(seen.item_id)) is not None:
        words = f"random audit sample: number {rank + 1} of {len(whole.audit)}"
        found.append(Reason("audit", words, 1 - rank / len(whole.audit)))
    return tuple(sorted(found, key=lambda r: (KINDS.index(r.kind), -r.gain)))


def _near_threshold(seen: Seen, concepts: ConceptList) -> Iterator[Reason]:
    standing = seen.labels
    for decision in seen.decisions:
        label = decision.label
        concept = concepts.concepts[label.class_id]
        distance = label.score - concept.conf
        if decision.outcome not in ("label", "low score") or abs(distance) >= NEAR:
            continue
        if decision.outcome == "low score" and _covered(label, [x for x in standing if x.class_id == concept.id]):
            continue
        side = "a label, just over" if distance >= 0 else "left out, just under"
        words = f"{concept.name} {label.score:.2f} is {side} the threshold {concept.conf:.2f}"
        yield Reason("near threshold", words, 1 - abs(distance) / NEAR, (label.id,))


def _covered(label: Label, others: Sequence[Label]) -> bool:
    overlap = masks.iou_matrix([label.rle], [x.rle for x in others])
    return bool((overlap >= SAME_OBJECT_IOU).any())


def _presence_disagrees(seen: Seen, concepts: ConceptList) -> Iterator[Reason]:
    best: dict[str, Label] = {}
    for decision in seen.decisions:
        label = decision.label
        if label.prompt not in best or label.score > best[label.prompt].score:
            best[label.prompt] = label
    for concept in concepts.concepts:
        for phrase in concept.prompts:
            presence = seen.presence.get(phrase)
            if presence is None:
                continue
            top = best.get(phrase)
            query = top.score / top.presence if top is not None and top.presence > 0 else 0.0
            if (presence >= 0.5) != (query >= 0.5):
                yield _disagreement(phrase, presence, query, top)


def _disagreement(phrase: str, presence: float, query: float, label: Label | None) -> Reason:
    if presence >= 0.5:
        words = f"'{phrase}' is said to be there (presence {presence:.2f}), but no object convinces (best {query:.2f})"
    else:
        words = f"'{phrase}' is said to be absent (presence {presence:.2f}), but one object convinces ({query:.2f})"
    return Reason("presence disagrees", words, min(1.0, abs(presence - query)), (label.id,) if label else ())


def _two_classes(seen: Seen, concepts: ConceptList) -> Iterator[Reason]:
    labels = seen.labels
    overlap = masks.iou_matrix([x.rle for x in labels], [x.rle for x in labels])
    for i, j in combinations(range(len(labels)), 2):
        a, b = labels[i], labels[j]
        if a.class_id != b.class_id and overlap[i, j] >= SAME_OBJECT_IOU:
            yield _rivals(a, b, concepts)
    by_id = {x.id: x for x in labels}
    for decision in seen.decisions:
        if decision.outcome == "exclusive" and (winner := by_id.get(decision.by or "")) is not None:
            yield _rivals(winner, decision.label, concepts)


def _rivals(a: Label, b: Label, concepts: ConceptList) -> Reason:
    high, low = sorted((a, b), key=lambda x: -x.score)
    names = concepts.names
    words = f"one object is {names[high.class_id]} ({high.score:.2f}) and {names[low.class_id]} ({low.score:.2f})"
    return Reason("two classes", words, low.score / high.score if high.score > 0 else 1.0, (high.id, low.id))


def _synonyms_disagree(seen: Seen, concepts: ConceptList) -> Iterator[Reason]:
    for concept in concepts.concepts:
        if len(concept.prompts) > 1:
            own = [d.label for d in seen.decisions if d.label.class_id == concept.id]
            for label in (d.label for d in seen.decisions if d.outcome == "label" and d.label.class_id == concept.id):
                yield from _lone_synonym(label, own, concept)


def _lone_synonym(label: Label, own: Sequence[Label], concept: Concept) -> Iterator[Reason]:
    """A label that another phrase of its class did not find, not even under the threshold."""
    if label.prompt not in concept.prompts:
        return
    others = [p for p in concept.prompts if p != label.prompt]
    silent = [p for p in others if not _covered(label, [x for x in own if x.prompt == p])]
    if silent:
        quoted = " nor ".join(f"'{p}'" for p in silent)
        words = f"{concept.name} found by '{label.prompt}' ({label.score:.2f}) but not by {quoted}"
        yield Reason("synonyms disagree", words, len(silent) / len(others), (label.id,))


def _hard_negative(seen: Seen, concepts: ConceptList) -> Iterator[Reason]:
    for decision in seen.decisions:
        if decision.outcome == "hard negative":
            label = decision.label
            words = f"{concepts.names[label.class_id]} {label.score:.2f} was suppressed by its `not:` phrases"
            yield Reason("hard negative", words, label.score, (label.id,))


def _unusual_size(seen: Seen, concepts: ConceptList, sizes: Mapping[int, UsualSize]) -> Iterator[Reason]:
    for label in seen.labels:
        usual = sizes.get(label.class_id)
        if usual is None:
            continue
        share = seen.share(label)
        deviation = (math.log(max(share, 1e-12)) - usual.centre) / usual.spread
        if abs(deviation) > UNUSUAL:
            words = (
                f"{concepts.names[label.class_id]} covers {_percent(share)} of the image; "
                f"half of them cover {_percent(usual.low)} to {_percent(usual.high)}"
            )
            yield Reason("unusual size", words, min(1.0, abs(deviation) / (2 * UNUSUAL)), (label.id,))


def _percent(part: float) -> str:
    return f"{100 * part:.2g}%" if part < 0.995 else "100%"


def gains(found: Iterable[Reason]) -> dict[Kind, float]:
    """Expected corrections by kind: the sum of an image's gains. Kinds without a reason are 0."""
    total: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
    for reason in found:
        total[reason.kind] += reason.gain
    return total
