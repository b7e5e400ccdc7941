"""When the answers to a phrase may not be all there are: one rule for the model, the report and the review queue."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from sam3label.core.records import Candidate, Label

NEARLY_ALL = 0.95  # of the answers that the model can give: so many to one phrase mean that there may be more objects
QUERIES = 200  # of SAM 3, for runs that do not say


def is_full(answers: Iterable[Candidate | Label], prompt: str, queries: int) -> bool:
    """Return whether the answers to a prompt reach, or nearly reach, the number that the model can give at all.

    Answers over the run's floor count, whatever becomes of them: a duplicate takes up a query too, and so does one
    without a pixel, of an object too small for a mask, which only the model itself can count (`Detection.full`).
    """
    return sum(answer.prompt == prompt for answer in answers) >= enough(queries)


def enough(queries: int) -> int:
    """Return the least number of answers that is full."""
    return ceil(NEARLY_ALL * queries)
