"""What is wrong with something that a user wrote, collected so that one message can list all of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where: `where` is a line of a file, a file, or another place that the user knows.

    >>> print(Problem("concepts.yaml:7", "concepts.helmet.conf: got 1.7; allowed: a number from 0 to 1"))
    concepts.yaml:7: concepts.helmet.conf: got 1.7; allowed: a number from 0 to 1
    """

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def first_of(problems: Iterable[Problem], most: int, indent: str = "") -> list[str]:
    """Return the lines of a message that lists problems, cut after so many."""
    lines = [f"{indent}{problem}" for problem in problems]
    more = [f"{indent}... and {len(lines) - most} more"] if len(lines) > most else []
    return [*lines[:most], *more]
