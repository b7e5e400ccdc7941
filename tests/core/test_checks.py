"""Checks that options make of themselves."""

from __future__ import annotations

from typing import Literal

import pytest

from sam3label.core import checks
from sam3label.core.problems import Problem
from sam3label.errors import ConfigError

Fruit = Literal["apple", "pear"]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (checks.one_of("fruit", "pear", Fruit), None),
        (
            checks.one_of("fruit", "peer", Fruit),
            Problem("fruit", "'peer' is not one of apple, pear. Did you mean pear?"),
        ),
        (checks.one_of("fruit", 7, Fruit), Problem("fruit", "7 is not one of apple, pear")),
        (checks.whole("every", 1, 1), None),
        (checks.whole("limit", None, 1), None),
        (checks.whole("every", 0, 1), Problem("every", "0 is not a whole number from 1 on")),
        (checks.whole("every", True, 1), Problem("every", "True is not a whole number from 1 on")),
        (checks.whole("every", "3", 1), Problem("every", "'3' is not a whole number from 1 on")),
        (checks.within("floor", 0.5, 0, 1), None),
        (checks.within("floor", 7, 0, 1), Problem("floor", "7 is not a number from 0 to 1")),
        (checks.within("floor", float("nan"), 0, 1), Problem("floor", "nan is not a number from 0 to 1")),
        (checks.zero_or_more("simplify", 0), None),
        (checks.zero_or_more("simplify", None), Problem("simplify", "None is not a number from 0 on")),
        (checks.above_zero("fps", 0.5), None),
        (checks.above_zero("fps", float("inf")), Problem("fps", "inf is not a number over 0")),
        (checks.above_zero("fps", "fast"), Problem("fps", "'fast' is not a number over 0")),
    ],
)
def test_what_is_wrong_is_one_sentence(found: Problem | None, wanted: Problem | None) -> None:
    assert found == wanted


def test_all_problems_come_at_once() -> None:
    checks.refuse([None, None])
    with pytest.raises(ConfigError, match=r"^one: 1\ntwo: 2$"):
        checks.refuse([Problem("one", "1"), None, Problem("two", "2")])
