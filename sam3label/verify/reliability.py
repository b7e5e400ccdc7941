"""How far a verifier can be trusted: its verdicts on what people reviewed, against what those people decided.

Until that is good enough its verdicts are shown and change nothing. The floor is a Matthews correlation (MCC) that a
verifier without eyes cannot reach: one that accepts everything has 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sam3label.core.records import Label
from sam3label.core.text import count
from sam3label.review.survey import look
from sam3label.run.reader import LAST_VERIFIER, TRUSTED_VERIFIER, Run

LEAST_CASES = 20  # verdicts on reviewed labels, and at least
LEAST_WRONG = 5  # of them on labels that people rejected
LEAST_MCC = 0.5


@dataclass(frozen=True, slots=True)
class Reliability:
    """Labels of reviewed images by what the verifier said and what the person did: kept as it was, or not."""

    accepted_kept: int = 0
    accepted_wrong: int = 0
    rejected_kept: int = 0
    rejected_wrong: int = 0

    @property
    def cases(self) -> int:
        return self.accepted_kept + self.accepted_wrong + self.rejected_kept + self.rejected_wrong

    @property
    def mcc(self) -> float:
        """Matthews correlation coefficient in [-1, 1]; 0 where one answer is all there is."""
        tp, fp, fn, tn = self.accepted_kept, self.accepted_wrong, self.rejected_kept, self.rejected_wrong
        below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        return (tp * tn - fp * fn) / math.sqrt(below) if below else 0.0

    @property
    def is_trusted(self) -> bool:
        wrong = self.accepted_wrong + self.rejected_wrong
        return self.cases >= LEAST_CASES and wrong >= LEAST_WRONG and self.mcc >= LEAST_MCC

    def sentences(self) -> Iterator[str]:
        """Yield what is known of the verifier, and whether its verdicts count."""
        if not self.cases:
            yield (
                "No verdict is on a label that a person reviewed, so nothing is known of this verifier: its verdicts "
                "are kept and change nothing. Review some images (sam3label review push), then verify again."
            )
            return
        accepts, rejects = self.accepted_kept + self.accepted_wrong, self.rejected_kept + self.rejected_wrong
        yield (
            f"Against {count(self.cases, 'reviewed label')}: accepted {accepts}, of which people kept "
            f"{interval(self.accepted_kept, accepts)}; rejected {rejects}, of which people changed or deleted "
            f"{interval(self.rejected_wrong, rejects)}; MCC {self.mcc:.2f}."
        )
        if self.is_trusted:
            yield "Its verdicts count where the concept list lets them (verify:)."
        else:
            yield (
                f"Its verdicts are kept and change nothing: that takes {LEAST_CASES} reviewed labels, {LEAST_WRONG} of "
                f"them wrong, and an MCC of {LEAST_MCC:g}."
            )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "mcc": self.mcc, "trusted": self.is_trusted}


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


def score(run: Run, verifier: str) -> Reliability:
    """Compare a verifier's verdicts on labels of reviewed photos with what became of those labels."""
    blind = run.without_verdicts()
    counts = {(said, kept): 0 for said in (True, False) for kept in (True, False)}
    for unit in run.done_units():
        verdicts = [v for v in run.verdicts(verifier, unit.item.id) if v.label_id is not None and v.score is not None]
        if not verdicts:
            continue
        image = next(blind.unit_images(unit))
        if not image.reviewed:
            continue
        before = {label.id: label for label in next(look(blind, unit)).labels}
        after = {label.id: label for label in image.labels}
        worst: dict[str, float] = {}
        for v in verdicts:
            if v.label_id is not None and v.score is not None:
                worst[v.label_id] = min(v.score, worst.get(v.label_id, 1.0))
        for label_id, said in worst.items():
            if label_id in before:
                counts[said >= 0.5, after.get(label_id) is not None and _same(before[label_id], after[label_id])] += 1
    return Reliability(counts[True, True], counts[True, False], counts[False, True], counts[False, False])


def _same(before: Label, after: Label) -> bool:
    return before.class_id == after.class_id and before.rle == after.rle


def keep(run: Run, verifier: str, trust: Reliability) -> None:
    """Let the verifier's verdicts count from now on, or no longer."""
    if trust.is_trusted:
        run.keep_note(TRUSTED_VERIFIER, verifier)
    elif run.verifier == verifier:
        run.keep_note(TRUSTED_VERIFIER, None)
    run.keep_note(LAST_VERIFIER, verifier)
    known = dict(run.note("verifiers") or {})
    run.keep_note("verifiers", known | {verifier: trust.to_json()})
