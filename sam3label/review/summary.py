"""How good the model was, as far as people have reviewed it.

On a reviewed image the final labels are the truth. The model's labels are matched with them one to one, class by
class, at mask IoU of at least 0.5. What people chose to review is not typical of the run (the queue shows the worst
first), so only the random audit sample says how good the run is, and it says so with a 95 % interval.

Instances of one image are not independent. The interval is Wilson's with the effective sample size, that is the number
of instances over Kish's design effect, taken from the variance of the ratio between images.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median

import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.core.matching import optimal
from sam3label.core.records import Correction, Label
from sam3label.core.text import count, verb
from sam3label.review import survey
from sam3label.review.fiftyone import connect
from sam3label.review.fiftyone.pull import CONFLICTS
from sam3label.run.reader import Run

MATCH_IOU = 0.5
Z95 = 1.959964
TOGETHER_MINUTES = 1 / 60
PAUSE_MINUTES = 10.0  # a longer gap between two reviewed images is a break, not work

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ratio:
    """hits / total with its 95 % interval; `value` is None when there was nothing to count."""

    hits: int
    total: int
    interval: tuple[float, float]

    @property
    def value(self) -> float | None:
        return self.hits / self.total if self.total else None


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """Of what the model labelled, how much was right; of what is there, how much it had found."""

    precision: Ratio
    recall: Ratio


@dataclass(frozen=True, slots=True)
class ReviewSummary:
    """`audit` is the unbiased figure, `reviewed` that of every reviewed image; by class, "" being all together."""

    images: int
    reviewed_images: int
    audit_images: int
    audit_reviewed: int
    audit: Mapping[str, ClassQuality]
    reviewed: Mapping[str, ClassQuality]
    confused: Sequence[tuple[str, str, int]]  # model said, person says, how often
    decisions: Mapping[str, int]
    minutes_per_image: float | None
    conflicts: Sequence[str]

    def to_text(self) -> str:
        """Return what `sam3label review summary` prints."""
        lines = [f"{self.reviewed_images:,} of {count(self.images, 'image')} reviewed"]
        if not self.reviewed_images:
            lines.append("Mark images as reviewed in FiftyOne (review_status), then: sam3label review pull RUN")
            return "\n".join(lines)
        decisions = ", ".join(f"{n} {action}" for action, n in sorted(self.decisions.items()))
        lines.append(f"decisions: {decisions}")
        if self.minutes_per_image is not None:
            lines.append(f"time: {self.minutes_per_image:.1f} minutes per image (median)")
        lines += ["", *_audit_lines(self)]
        lines += ["", "All reviewed images (the queue shows the worst first: not typical of the run)"]
        lines += _table(self.reviewed)
        if self.confused:
            lines += ["", "Most confused: " + ", ".join(f"{a} was {b} ({n})" for a, b, n in self.confused)]
        if self.conflicts:
            lines += ["", "Conflicts between pulls (the later stands):", *(f"  {text}" for text in self.conflicts)]
        return "\n".join(lines)


def summarize(run: Run) -> ReviewSummary:
    """Walk the reviewed images of a run."""
    state = run.note(connect.META) or {"audit": 0}
    corrections = run.corrections()
    reviewed_ids = {e.item_id for e in corrections if e.action == "reviewed"}
    ids = [item.id for item in run.items()]
    sample = set(survey.audit_sample(ids, state["audit"]))
    counts: dict[str, Counts] = {}
    confused: Counter[tuple[str, str]] = Counter()
    for unit in run.done_units():
        if unit.item.id in reviewed_ids:
            per_class = np.zeros((len(run.concepts.names), 3), np.int64)
            for seen, final in zip(survey.look(run, unit), run.unit_images(unit), strict=True):
                if final.reviewed:
                    per_class += compare(seen.labels, final.labels, run.concepts.names, confused)
            counts[unit.item.id] = counts.get(unit.item.id, 0) + per_class
    audited = [id_ for id_ in counts if id_ in sample]
    return ReviewSummary(
        images=len(ids),
        reviewed_images=len(counts),
        audit_images=len(sample),
        audit_reviewed=len(audited),
        audit=quality([counts[id_] for id_ in audited], run.concepts.names),
        reviewed=quality(list(counts.values()), run.concepts.names),
        confused=[(a, b, n) for (a, b), n in confused.most_common(10)],
        decisions=Counter[str](e.action for e in corrections),
        minutes_per_image=minutes_per_image(corrections),
        conflicts=run.note(CONFLICTS) or [],
    )


# ---- counting


def compare(
    model: Sequence[Label], truth: Sequence[Label], names: Sequence[str], confused: Counter[tuple[str, str]]
) -> Counts:
    """Return int64 [classes, (right, labelled by the model, there in truth)] of one image; confusions are added up."""
    counts = np.zeros((len(names), 3), np.int64)
    wrong: list[Label] = []
    missed: list[Label] = []
    for class_id in range(len(names)):
        own, there = ([x for x in labels if x.class_id == class_id] for labels in (model, truth))
        pairs = matched(own, there)
        counts[class_id] = len(pairs), len(own), len(there)
        wrong += [x for i, x in enumerate(own) if i not in {a for a, _ in pairs}]
        missed += [x for i, x in enumerate(there) if i not in {b for _, b in pairs}]
    for a, b in matched(wrong, missed):
        confused[names[wrong[a].class_id], names[missed[b].class_id]] += 1
    return counts


def matched(a: Sequence[Label], b: Sequence[Label]) -> list[tuple[int, int]]:
    """Return one-to-one pairs with IoU of at least `MATCH_IOU`, as many as possible."""
    overlap = masks.iou_matrix([x.rle for x in a], [x.rle for x in b])
    good = np.where(overlap >= MATCH_IOU, overlap + 1.0, 0.0)
    rows, columns = optimal(good, MATCH_IOU)  # optimal: both sides are complete, and 1 more for each pair counts pairs
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def quality(counts: Sequence[Counts], names: Sequence[str]) -> dict[str, ClassQuality]:
    """Return the quality by class, "" being all together. Classes that neither model nor truth have are left out."""
    stacked = np.stack(counts) if counts else np.zeros((0, len(names), 3), np.int64)
    columns = {"": stacked.sum(axis=1)} | {name: stacked[:, i] for i, name in enumerate(names)}
    return {
        name: ClassQuality(ratio(c[:, 0], c[:, 1]), ratio(c[:, 0], c[:, 2]))
        for name, c in columns.items()
        if c[:, 1:].any()
    }


def ratio(hits: Counts, totals: Counts) -> Ratio:
    """Return the sum of hits over sum of totals, one entry per image."""
    n, k = int(totals.sum()), int(hits.sum())
    return Ratio(k, n, wilson(k / n, effective_size(hits, totals)) if n else (0.0, 1.0))


def effective_size(hits: Counts, totals: Counts) -> float:
    """As many independent instances as would give the ratio its variance between images. Never more than there are."""
    n, images = int(totals.sum()), int((totals > 0).sum())
    p = float(hits.sum()) / n
    spread = float(((hits - p * totals) ** 2).sum()) * (images / (images - 1) if images > 1 else 1.0)
    if spread == 0:
        return float(images)  # all right, or all wrong: images are what is independent for certain
    return min(float(n), p * (1 - p) * n * n / spread)


def wilson(p: float, n: float) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion; it is never empty, also when all or none were right."""
    shrink = 1 + Z95**2 / n
    center = (p + Z95**2 / (2 * n)) / shrink
    half = Z95 / shrink * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def minutes_per_image(corrections: Iterable[Correction]) -> float | None:
    """Return median time between two images that one person marked as reviewed; None if the times do not say.

    Breaks are left out, and so are images marked together, whose times are those of one command.
    """
    seen: dict[tuple[str, str], datetime] = {}
    for one in corrections:
        if one.action == "reviewed":
            at = datetime.fromisoformat(one.at)
            seen[one.who, one.item_id] = max(at, seen.get((one.who, one.item_id), at))
    times: dict[str, list[datetime]] = defaultdict(list)
    for (who, _), at in seen.items():
        times[who].append(at)
    gaps = [(b - a).total_seconds() / 60 for own in times.values() for a, b in pairwise(sorted(own))]
    work = [gap for gap in gaps if TOGETHER_MINUTES < gap <= PAUSE_MINUTES]
    return median(work) if work else None


# ---- words


def _audit_lines(summary: ReviewSummary) -> list[str]:
    done, total = summary.audit_reviewed, summary.audit_images
    if not done:
        whole = count(total, "image")
        return [f"None of the {whole} of the random audit sample is reviewed: no unbiased figure ('review: audit')."]
    title = f"Random audit sample ({done:,} of {count(total, 'image')}): unbiased, with 95% intervals"
    if done < total:
        left = f"{count(total - done, 'image')} left {verb(total - done, 'was', 'were')}"
        title += f"\n  as long as the {left} not passed over for what they show"
    return [title, *_table(summary.audit)]


def _table(figures: Mapping[str, ClassQuality]) -> list[str]:
    width = max((len(name) for name in figures), default=0)
    width = max(width, len("all classes"))
    return [
        f"  {name or 'all classes':<{width}}  precision {_figure(q.precision)}  recall {_figure(q.recall)}"
        for name, q in figures.items()
    ]


def _figure(ratio_: Ratio) -> str:
    if ratio_.value is None:
        return f"{'-':<29}"
    low, high = ratio_.interval
    return f"{ratio_.value:.3f} [{low:.3f}, {high:.3f}] of {ratio_.total:<4}"
