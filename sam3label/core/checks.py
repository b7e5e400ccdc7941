"""Checks that options make of themselves: every problem at once, in one `ConfigError`.

A check returns what is wrong, or None. An option is called by its field's name, which is its name on the command line
and in a file of options too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, TypeGuard, get_args

from sam3label.core.problems import Problem
from sam3label.errors import ConfigError


def refuse(problems: Iterable[Problem | None]) -> None:
    """Raise `ConfigError` with all problems, one a line, if there are any."""
    if found := [problem for problem in problems if problem is not None]:
        raise ConfigError("\n".join(map(str, found)))


def one_of(name: str, value: object, choices: Any) -> Problem | None:
    """Check that a value is one of a `Literal`: the same that the command line offers."""
    allowed = get_args(choices)
    if value in allowed:
        return None
    return Problem(name, f"{value!r} is not one of {', '.join(allowed)}{did_you_mean(str(value), allowed)}")


def whole(name: str, value: object, least: int) -> Problem | None:
    """Check that a value is a whole number from `least` on. None stands for the default of an option that has one."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        return None
    return Problem(name, f"{value!r} is not a whole number from {least} on")


def within(name: str, value: object, least: float, most: float) -> Problem | None:
    """Check that a value is a number from `least` to `most`. None stands for the default of an option that has one."""
    if value is None or (_is_number(value) and least <= value <= most):
        return None
    return Problem(name, f"{value!r} is not a number from {least:g} to {most:g}")


def above_zero(name: str, value: object) -> Problem | None:
    """Check that a value is a finite number over 0. None stands for the default of an option that has one."""
    if value is None or (_is_number(value) and 0 < value < math.inf):
        return None
    return Problem(name, f"{value!r} is not a number over 0")


def zero_or_more(name: str, value: object) -> Problem | None:
    """Check that a value is a finite number from 0 on."""
    if _is_number(value) and 0 <= value < math.inf:
        return None
    return Problem(name, f"{value!r} is not a number from 0 on")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the hint that ends a sentence about an unknown name; empty where nothing known is like it."""
    near = get_close_matches(name, list(known), 1)
    return f". Did you mean {near[0]}?" if near else ""
