"""What the judge of doubt is given: each image as the run holds it, and what only the whole run can tell.

`look` reads one image at a time; `survey` walks the run once and keeps usual sizes, empty images among full ones, the
audit sample and how many answers the model can give. Memory grows by a few bytes a label, not with the masks.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from sam3label.core.records import Correction, Label, Verdict
from sam3label.run.decide import Decision
from sam3label.run.reader import Run
from sam3label.run.rows import Unit

NEIGHBORS = 5  # images an empty image is compared with
SIZED = 20  # labels a class needs before one of them can be called unusual
QUERIES = 200  # answers that SAM 3 can give to one phrase in one image, where the run does not say


@dataclass(frozen=True, slots=True)
class SeenImage:
    """One image (frame) as the run holds it: every candidate's fate, and the presence by prompt key."""

    item_id: str
    frame: int
    size_hw: tuple[int, int]
    decisions: tuple[Decision, ...]
    presence: Mapping[str, float]
    is_video: bool = False
    reviewed: bool = False
    corrected: frozenset[str] = frozenset()  # ids of labels that a person has decided about
    verdicts: tuple[Verdict, ...] = ()  # of the verifier that was asked last, whether or not they count
    full: frozenset[str] = frozenset()  # phrases of which the closest views were full of answers

    @property
    def labels(self) -> list[Label]:
        return [d.label for d in self.decisions if d.outcome == "label"]

    def share(self, label: Label) -> float:
        """Return the part of the image that the label covers, in [0, 1]."""
        return label.area / (self.size_hw[0] * self.size_hw[1])


@dataclass(frozen=True, slots=True)
class UsualSize:
    """Area shares of one class over the run: center and spread of their logarithm, and the middle half in plain."""

    center: float
    spread: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Survey:
    """What depends on the whole run. `empty` maps an empty image to the part of its neighbors that is not."""

    sizes: Mapping[int, UsualSize]
    empty: Mapping[str, float]
    audit: Mapping[str, int]  # item id -> rank, 0 first
    queries: int = QUERIES


# ---- reading the run


def look(run: Run, unit: Unit) -> Iterator[SeenImage]:
    """Yield the frames of one done unit; a photo has one."""
    corrections = run.corrections(unit.item.id)
    verdicts = list(run.verdicts(run.last_verifier, unit.item.id)) if run.last_verifier else []
    full = run.full_of(unit.item.id)
    for seen in run.frames(unit):
        image = seen.image
        own = tuple(verdict for verdict in verdicts if verdict.frame == image.frame)
        yield SeenImage(
            unit.item.id, image.frame, image.size_hw, seen.decisions, seen.presence,
            unit.item.kind == "video", image.reviewed, _corrected(corrections, image.frame), own,
            frozenset(phrase for frame, phrase in full if frame == image.frame),
        )  # fmt: skip


def _corrected(corrections: Sequence[Correction], frame: int) -> frozenset[str]:
    return frozenset(c.label_id for c in corrections if c.frame == frame and c.label_id is not None)


def look_at_all(run: Run) -> Iterator[SeenImage]:
    """Yield every done image and frame, in item order."""
    for unit in run.done_units():
        yield from look(run, unit)


# ---- the whole run


def survey_run(run: Run, audit: int) -> Survey:
    """Survey a whole run, with an audit sample of at most `audit` photos and videos."""
    return survey(look_at_all(run), audit, int(run.info.get("queries", QUERIES)))


def survey(seen: Iterable[SeenImage], audit: int, queries: int = QUERIES) -> Survey:
    """Walk images once. Keeps eight bytes per label and one presence vector per image."""
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
    return Survey(sizes, empty, {id_: rank for rank, id_ in enumerate(audit_sample(ids, audit))}, queries)


def usual_size(shares: Sequence[float]) -> UsualSize:
    """Return median and scaled median deviation of log shares; the spread is at least 5 %: equal sizes do not alarm."""
    logs = np.log(np.maximum(shares, 1e-12))
    center = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - center)))
    low, high = np.exp(np.quantile(logs, (0.25, 0.75))).tolist()
    return UsualSize(center, max(spread, 0.05), low, high)


def empty_among_similar(
    ids: Sequence[str], vectors: Sequence[npt.NDArray[np.float32]], is_empty: Sequence[bool]
) -> dict[str, float]:
    """Return empty images most of whose nearest images, by presence vector, have labels: id -> that part of them."""
    if len(ids) <= NEIGHBORS or not any(is_empty) or all(is_empty) or len({len(v) for v in vectors}) != 1:
        return {}
    points, empty = np.stack(vectors), np.array(is_empty)
    rows = np.flatnonzero(empty)
    nearest = np.asarray(cKDTree(points).query(points[rows], k=NEIGHBORS + 1)[1])
    found = {}
    for row, near in zip(rows.tolist(), nearest, strict=True):
        others = [i for i in near.tolist() if i != row][:NEIGHBORS]
        part = float(np.mean(~empty[others]))
        if part > 0.5:
            found[ids[row]] = part
    return found


def audit_sample(ids: Iterable[str], size: int) -> list[str]:
    """Return a random sample of items, in random order, that depends on nothing but the ids.

    The `size` smallest hashes are a uniform sample without replacement, and they still are after media were added,
    when most of the sample stays what it was.
    """
    return sorted(ids, key=lambda id_: (hashlib.blake2b(id_.encode(), digest_size=8, salt=b"audit").digest(), id_))[
        :size
    ]
