"""`where:` rules, case by case: what stands beside what, what wears what."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import candidate, concepts

from sam3label.concepts.checking import condition
from sam3label.core import masks
from sam3label.core.records import Box, Candidate, Concept, Condition, Rle
from sam3label.run.conditions import region, satisfied
from sam3label.run.decide import decide, select_labels


def rectangle(x: int, y: int, width: int, height: int) -> Rle:
    return masks.from_box((x, y, x + width, y + height), (120, 160))


PERSON = rectangle(20, 10, 30, 90)
HELMET = rectangle(25, 8, 20, 14)
HELD = rectangle(22, 60, 20, 14)  # the same helmet, in the hand
ASIDE = rectangle(100, 10, 20, 14)


def standing(where: str, other: Rle | None) -> bool:
    """Say whether a person stands under the rule beside one object of another class."""
    wanted = concepts(
        Concept(0, "person", ("person",), where=(parsed(where),)),
        Concept(1, "thing", ("thing",)),
    )
    found = [candidate("person", 0.9, PERSON), *([] if other is None else [candidate("thing", 0.8, other)])]
    return any(label.class_id == 0 for label in select_labels(found, wanted))


def parsed(text: str) -> Condition:
    return condition(text, ["person", "thing"])


@pytest.mark.parametrize(
    ("where", "other", "stands"),
    [
        ("with thing", HELMET, True),
        ("with thing", ASIDE, False),
        ("with thing", None, False),
        ("with thing at top", HELMET, True),
        ("with thing at top", HELD, False),
        ("with thing at bottom", HELD, True),
        ("without thing at top", HELMET, False),
        ("without thing at top", HELD, True),
        ("without thing", None, True),
        ("not with thing", HELMET, False),
        ("overlaps thing", rectangle(0, 0, 120, 19), True),  # 9 of the person's 90 rows: a tenth
        ("overlaps thing", rectangle(0, 0, 120, 18), False),
        ("overlaps thing.bottom", rectangle(0, 0, 120, 60), True),  # its lower third: rows 40 to 60
        ("overlaps thing.top", rectangle(0, 0, 120, 60), True),
        ("overlaps thing.top", rectangle(0, 0, 120, 15), False),
        ("inside thing", rectangle(20, 10, 30, 81), True),  # nine tenths
        ("inside thing", rectangle(20, 10, 30, 80), False),
        ("not inside thing", rectangle(0, 0, 120, 110), False),
        ("left_of thing", ASIDE, True),
        ("right_of thing", ASIDE, False),
        ("left_of thing", rectangle(100, 105, 10, 10), False),  # below its feet: they do not face each other
        ("right_of thing", rectangle(0, 20, 10, 10), True),
        ("above thing", rectangle(20, 105, 10, 10), True),
        ("below thing", rectangle(20, 0, 10, 8), True),
        ("above thing", rectangle(80, 105, 10, 10), False),
        ("beside thing", rectangle(95, 20, 10, 10), True),  # 45 pixels from it: half its height
        ("beside thing", rectangle(96, 20, 10, 10), False),
        ("not beside thing", rectangle(96, 20, 10, 10), True),
    ],
)
def test_each_relation(where: str, other: object, stands: bool) -> None:
    assert standing(where, other) is stands


def test_the_nearest_of_a_class_is_one_for_each_object() -> None:
    wanted = concepts(
        Concept(0, "player", ("player",), where=(Condition("nearest", "ball"),)), Concept(1, "ball", ("ball",))
    )
    players = [candidate("player", 0.9 - q / 10, rectangle(30 * q, 10, 10, 30), query=q) for q in range(4)]
    balls = [candidate("ball", 0.9, rectangle(43, 40, 4, 4)), candidate("ball", 0.8, rectangle(112, 40, 4, 4), query=1)]
    labels = select_labels([*players, *balls], wanted)
    assert [label.box_xywh[0] for label in labels if label.class_id == 0] == [30.0, 90.0]
    assert not select_labels(players, wanted)


def test_the_same_object_under_another_class_is_not_another_object() -> None:
    """A class of its own for bare heads asks the same phrase as its neighbor: the candidate serves both."""
    wanted = concepts(
        Concept(0, "person", ("person",)),
        Concept(1, "alone", ("person",), where=(Condition("with", "person", negated=True),)),
    )
    one, far = candidate("person", 0.9, PERSON), candidate("person", 0.8, ASIDE, query=1)
    assert [label.class_id for label in select_labels([one, far], wanted)] == [0, 0, 1, 1]
    touching = candidate("person", 0.7, rectangle(40, 10, 30, 90), query=2)
    assert [label.score for label in select_labels([one, far, touching], wanted) if label.class_id == 1] == [0.8]


def test_rules_are_judged_together_and_before_the_cap() -> None:
    """Two classes that ask for each other: neither goes because the other went; the cap counts what stands."""
    wanted = concepts(
        Concept(0, "cup", ("cup",), where=(Condition("beside", "saucer"),), max_instances=1),
        Concept(1, "saucer", ("saucer",), where=(Condition("beside", "cup"),)),
    )
    found = [
        candidate("cup", 0.9, rectangle(100, 90, 10, 10)),
        candidate("cup", 0.6, rectangle(10, 10, 10, 10), query=1),
        candidate("saucer", 0.8, rectangle(12, 20, 10, 4)),
    ]
    outcomes = {(d.label.prompt, d.label.score): d.outcome for d in decide(found, wanted)}
    assert outcomes == {("cup", 0.9): "where", ("cup", 0.6): "label", ("saucer", 0.8): "label"}


def test_all_conditions_of_a_class_must_hold() -> None:
    rules = (Condition("with", "thing", "top"), Condition("with", "thing", "bottom", negated=True))
    wanted = concepts(Concept(0, "person", ("person",), where=rules), Concept(1, "thing", ("thing",)))
    person = candidate("person", 0.9, PERSON)
    worn, held = candidate("thing", 0.8, HELMET), candidate("thing", 0.7, HELD, query=1)
    assert [d.outcome for d in decide([person, worn], wanted)] == ["label", "label"]
    assert next(d.outcome for d in decide([person, worn, held], wanted)) == "where"


Pixel = st.integers(0, 30)


@given(Pixel, Pixel, st.integers(1, 30), st.integers(1, 30))
def test_a_box_as_a_mask_is_its_pixels(x: int, y: int, w: int, h: int) -> None:
    rle = masks.from_box((x, y, x + w, y + h), (20, 25))
    expected = np.zeros((20, 25), np.bool_)
    expected[y : y + h, x : x + w] = True
    assert rle == masks.encode(expected)


@given(Pixel, Pixel, st.integers(3, 30), st.integers(3, 30))
def test_parts_lie_in_their_box_and_take_a_third(x: int, y: int, w: int, h: int) -> None:
    box: Box = (x, y, x + w, y + h)
    for part in ("top", "bottom", "left", "right"):
        left, top, right, bottom = region(box, part)
        assert x <= left < right <= x + w and y <= top < bottom <= y + h
        assert (right - left) * (bottom - top) == pytest.approx(w * h / 3)


def test_no_labels_and_no_others() -> None:
    one: Candidate = candidate("person", 0.9, PERSON)
    (label,) = select_labels([one], concepts(Concept(0, "person", ("person",))))
    assert satisfied(Condition("beside", "thing"), [], [label]) == []
    assert satisfied(Condition("nearest", "thing"), [label], []) == [False]
    assert satisfied(Condition("beside", "thing", negated=True), [label], []) == [True]
