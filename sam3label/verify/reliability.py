"""How far a verifier can be trusted: its verdicts on what people reviewed, against what those people decided.

Each use is weighed by itself: is a class there, are some of it missing, is a label good? Until a use is good enough its
verdicts are shown and change nothing. The floor is a Matthews correlation (MCC) that a verifier without eyes cannot
reach: one that accepts everything has 0. Whether a class is there SAM 3 says too, so a verifier must also be no worse
at that than the labels are without it. And what its verdicts do to the labels must be sure not to lower their cgF1:
where all labels of a class in a photo go, the photo counts as one without it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from sam3label.core import masks
from sam3label.core.records import USES, Label, LabeledImage, Verdict, VerdictUse, Verify
from sam3label.core.text import count
from sam3label.quality.compare import Change, cgf1_change, f1_change, table_of_matches
from sam3label.quality.metrics import cgf1
from sam3label.quality.metrics.cgf1 import PairScore
from sam3label.review.survey import look
from sam3label.run.decide import SAME_OBJECT_IOU, VETO_BELOW
from sam3label.run.reader import LAST_VERIFIER, Run
from sam3label.run.rows import Unit
from sam3label.verify.judge import masks_shown

LEAST_CASES = 20  # verdicts on what people reviewed, and at least
LEAST_WRONG = 5  # of them where the answer is no
LEAST_MCC = 0.5
_DRAWS = 1000

_SENTENCES: dict[VerdictUse, str] = {
    "presence": "Is there any? Against {cases}: it sees some in {yes}, and people in {yes_right} of them; it sees none "
    "in {no}, and people in {no_right} of them; MCC {mcc}, of the labels without it {rival:.2f}.",
    "missing": "Are all masked? Against {cases}: yes of {yes}, and people added none to {yes_right} of them; no of "
    "{no}, and people added some to {no_right} of them; MCC {mcc}.",
    "masks": "Is the label good? Against {cases}: accepted {yes}, of which people kept {yes_right}; rejected {no}, of "
    "which people changed or deleted {no_right}; MCC {mcc}.",
}
_CASES: dict[VerdictUse, tuple[str, str]] = {
    "presence": ("reviewed photo and class", "reviewed pairs of photo and class"),
    "missing": ("reviewed photo and class", "reviewed pairs of photo and class"),
    "masks": ("reviewed label", "reviewed labels"),
}


@dataclass(frozen=True, slots=True)
class Reliability:
    """One use: what the verifier said (accepted it, or rejected), by what people made of it (kept it, or it was wrong).

    Accepted is also that there is some and that all are masked. `rival` is the MCC of the labels without the verifier,
    where they answer the same question; `change` what its verdicts do to the cgF1 of the reviewed photos (F1, where
    every class is in every photo, or none is), None where they change nothing.
    """

    accepted_kept: int = 0
    accepted_wrong: int = 0
    rejected_kept: int = 0
    rejected_wrong: int = 0
    rival: float = -1.0
    change: Change | None = None
    figure: str = "cgF1"

    @property
    def cases(self) -> int:
        return self.accepted_kept + self.accepted_wrong + self.rejected_kept + self.rejected_wrong

    @property
    def mcc(self) -> float:
        """Matthews correlation coefficient in [-1, 1]; 0 where one answer is all there is."""
        return matthews(self.accepted_kept, self.accepted_wrong, self.rejected_kept, self.rejected_wrong)

    @property
    def mcc_interval(self) -> tuple[float, float]:
        """The 95 % interval of `mcc`, by drawing the cases again: what was never seen may come half a time."""
        table = np.array([self.accepted_kept, self.accepted_wrong, self.rejected_kept, self.rejected_wrong]) + 0.5
        drawn = np.random.default_rng(0).multinomial(self.cases, table / table.sum(), _DRAWS)
        low, high = np.quantile([matthews(*row) for row in drawn.tolist()], [0.025, 0.975])
        return float(low), float(high)

    @property
    def is_trusted(self) -> bool:
        wrong = self.accepted_wrong + self.rejected_wrong
        enough = self.cases >= LEAST_CASES and wrong >= LEAST_WRONG
        return enough and self.mcc >= max(LEAST_MCC, self.rival) and not self._may_harm

    @property
    def _may_harm(self) -> bool:
        return self.change is not None and self.change.interval[0] < 0

    def sentence(self, use: VerdictUse) -> str:
        """Say what is known of one use, and whether its verdicts count."""
        accepts, rejects = self.accepted_kept + self.accepted_wrong, self.rejected_kept + self.rejected_wrong
        low, high = self.mcc_interval
        known = _SENTENCES[use].format(
            cases=count(self.cases, *_CASES[use]), mcc=f"{self.mcc:.2f} ({low:.2f} to {high:.2f})",
            rival=self.rival, yes=accepts, no=rejects,
            yes_right=interval(self.accepted_kept, accepts), no_right=interval(self.rejected_wrong, rejects),
        )  # fmt: skip
        if self.change is not None:
            low, high = self.change.interval
            known += (
                f" With these verdicts {self.figure} of the reviewed photos changes by {self.change.gain:+.3f} "
                f"({low:+.3f} to {high:+.3f})."
            )
        if self.is_trusted:
            return f"{known} This counts where the concept list lets it (verify: {use})."
        if self.mcc >= LEAST_MCC and self.mcc < self.rival:
            return f"{known} This is kept and changes nothing: the labels know better."
        if self.mcc >= LEAST_MCC and self._may_harm:
            return f"{known} This is kept and changes nothing: the labels may be better without it."
        return (
            f"{known} This is kept and changes nothing: that takes {LEAST_CASES} of them, {LEAST_WRONG} where the "
            f"answer is no, and an MCC of {LEAST_MCC:g}."
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "mcc": self.mcc, "mcc_interval": list(self.mcc_interval), "trusted": self.is_trusted}


@dataclass(frozen=True, slots=True)
class VerifierTrust:
    """What a verifier is worth at each of its uses."""

    presence: Reliability = field(default=Reliability())
    missing: Reliability = field(default=Reliability())
    masks: Reliability = field(default=Reliability())

    def of(self, use: VerdictUse) -> Reliability:
        """Return one of the three."""
        found: Reliability = getattr(self, use)
        return found

    @property
    def uses(self) -> tuple[VerdictUse, ...]:
        """What it is trusted with."""
        return tuple(use for use in USES if self.of(use).is_trusted)

    def sentences(self) -> Iterator[str]:
        """Yield what is known of the verifier, and whether its verdicts count."""
        if not any(self.of(use).cases for use in USES):
            yield (
                "No verdict is on what a person reviewed, so nothing is known of this verifier: its verdicts are kept "
                "and change nothing. Review some images (sam3label review push), then verify again."
            )
        for use in USES:
            if self.of(use).cases:
                yield self.of(use).sentence(use)

    def to_json(self) -> dict[str, Any]:
        return {use: self.of(use).to_json() for use in USES}


def matthews(tp: int, fp: int, fn: int, tn: int) -> float:
    """Return Matthews' correlation of a table of two answers.

    >>> matthews(10, 0, 0, 10)
    1.0
    """
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(below) if below else 0.0


def interval(hits: int, cases: int) -> str:
    """Return a share with its 95 % interval (Wilson).

    >>> interval(9, 10)
    '0.90 (0.60 to 0.98)'
    """
    if not cases:
        return "none"
    z, share = 1.96, hits / cases
    center = (share + z * z / (2 * cases)) / (1 + z * z / cases)
    half = z * math.sqrt(share * (1 - share) / cases + z * z / (4 * cases * cases)) / (1 + z * z / cases)
    return f"{share:.2f} ({max(0.0, center - half):.2f} to {min(1.0, center + half):.2f})"


# ---- against what people decided

_Counts = Counter[tuple[VerdictUse | str, bool, bool]]  # (use, the verifier's yes, the people's yes)


def score(run: Run, verifier: str) -> VerifierTrust:
    """Compare a verifier's verdicts on reviewed photos with what became of them, and with what they would do there."""
    blind = run.without_verdicts()
    counts: _Counts = Counter()
    reviewed: list[tuple[Unit, LabeledImage]] = []
    for unit in run.done_units():
        verdicts = [v for v in run.verdicts(verifier, unit.item.id) if v.score is not None]
        if not verdicts:
            continue
        image = next(blind.unit_images(unit))
        if image.reviewed:
            before = next(look(blind, unit)).labels
            verdicts = [v for v in verdicts if not _is_stale(v, before)]
            reviewed.append((unit, image))
            _compare_labels(counts, verdicts, before, image)
            _compare_classes(counts, verdicts, before, image)
    rival = matthews(*_table(counts, "labels"))
    trust = VerifierTrust(
        Reliability(*_table(counts, "presence"), rival=rival),
        Reliability(*_table(counts, "missing")),
        Reliability(*_table(counts, "masks")),
    )
    return _weighed(trust, run, verifier, reviewed)


def _is_stale(verdict: Verdict, labels: Sequence[Label]) -> bool:
    """Return whether the question whether all are masked was asked about other masks."""
    own = [label for label in labels if label.class_name == verdict.class_name]
    return verdict.part == "all" and bool(verdict.shown) and verdict.shown != masks_shown(own)


def _weighed(
    trust: VerifierTrust, run: Run, verifier: str, reviewed: Sequence[tuple[Unit, LabeledImage]]
) -> VerifierTrust:
    """Add what the verdicts do to the labels, each use beside those that count so far: masks first."""
    counting: dict[VerdictUse, str] = {}
    otherwise = Verify("veto", VETO_BELOW, run.floor)  # where the list lets no verdict count yet
    before = _matches(run.relying_on(counting, otherwise), reviewed)
    for use in ("masks", "presence", "missing"):
        if trust.of(use).is_trusted:
            after = _matches(run.relying_on({**counting, use: verifier}, otherwise), reviewed)
            known = _with_change(trust.of(use), before, after)
            trust = replace(trust, **{use: known})
            if known.is_trusted:
                counting[use], before = verifier, after
    return trust


def _matches(run: Run, reviewed: Sequence[tuple[Unit, LabeledImage]]) -> list[list[PairScore]]:
    """Match the labels as a run decides them with those that a person left, by photo and class."""
    rows = []
    for unit, image in reviewed:
        labels = next(look(run, unit)).labels
        rows.append([_matched(name, labels, image) for name in run.concepts.names])
    return rows


def _matched(name: str, labels: Sequence[Label], image: LabeledImage) -> PairScore:
    """Match labels of a class with those that a person left there."""
    own, truth = ([label.rle for label in some if label.class_name == name] for some in (labels, image.labels))
    return cgf1.match(masks.iou_matrix(own, truth))


def _with_change(
    known: Reliability, before: Sequence[Sequence[PairScore]], after: Sequence[Sequence[PairScore]]
) -> Reliability:
    """Add how much better or worse the labels are with the verdicts."""
    tables = table_of_matches(before), table_of_matches(after)
    if np.array_equal(*tables):
        return known
    if len({pair.positive for pairs in before for pair in pairs}) < 2:  # then cgF1 is 0
        return replace(known, change=f1_change(*tables), figure="F1")
    return replace(known, change=cgf1_change(*tables))


def _table(counts: _Counts, use: str) -> tuple[int, int, int, int]:
    return counts[use, True, True], counts[use, True, False], counts[use, False, True], counts[use, False, False]


def _compare_labels(counts: _Counts, verdicts: Sequence[Verdict], labels: Sequence[Label], image: LabeledImage) -> None:
    before, after = {label.id: label for label in labels}, {label.id: label for label in image.labels}
    worst: dict[str, float] = {}
    for v in verdicts:
        if v.label_id is not None and v.score is not None:
            worst[v.label_id] = min(v.score, worst.get(v.label_id, 1.0))
    for label_id in worst.keys() & before.keys():
        kept = label_id in after and _same(before[label_id], after[label_id])
        counts["masks", worst[label_id] >= VETO_BELOW, kept] += 1


def _compare_classes(
    counts: _Counts, verdicts: Sequence[Verdict], labels: Sequence[Label], image: LabeledImage
) -> None:
    for v in verdicts:
        if v.label_id is not None or v.score is None:
            continue
        before = [label for label in labels if label.class_name == v.class_name]
        after = [label for label in image.labels if label.class_name == v.class_name]
        if v.part == "any":
            counts["presence", v.score >= VETO_BELOW, bool(after)] += 1
            counts["labels", bool(before), bool(after)] += 1
        elif v.part == "all":
            counts["missing", v.score >= VETO_BELOW, _had_all(before, after)] += 1


def _had_all(before: Sequence[Label], after: Sequence[Label]) -> bool:
    """Return whether each object that a person left there had a mask before."""
    if not before or not after:
        return not after
    overlap = masks.iou_matrix([label.rle for label in after], [label.rle for label in before])
    return bool(np.all(overlap.max(axis=1) >= SAME_OBJECT_IOU))


def _same(before: Label, after: Label) -> bool:
    return before.class_id == after.class_id and before.rle == after.rle


def keep(run: Run, verifier: str, trust: VerifierTrust) -> None:
    """Let the verifier's verdicts count from now on where they are good enough, and elsewhere no longer."""
    lost = {use: None for use, name in run.verifiers.items() if name == verifier and use not in trust.uses}
    run.rely_on({**lost, **dict.fromkeys(trust.uses, verifier)})
    run.keep_note(LAST_VERIFIER, verifier)
    known = dict(run.note("verifiers") or {})
    run.keep_note("verifiers", known | {verifier: trust.to_json()})
