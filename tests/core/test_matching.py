"""The two ways of matching, against every possible matching of small tables."""

from __future__ import annotations

import ast
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import sam3label
from sam3label.core.matching import greedy, optimal

tables = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=5), elements=st.floats(0, 1))


def pairs(found: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int]]:
    return list(zip(*(part.tolist() for part in found), strict=True))


@given(tables)
def test_optimal_has_the_largest_sum_of_all_matchings(table: np.ndarray) -> None:
    rows, columns = optimal(table)
    assert len(set(rows.tolist())) == len(set(columns.tolist())) == min(table.shape)
    short = table if table.shape[0] <= table.shape[1] else table.T
    sums = [
        sum(short[row, column] for row, column in enumerate(chosen))
        for chosen in permutations(range(short.shape[1]), short.shape[0])
    ]
    assert table[rows, columns].sum() == pytest.approx(max(sums))


@given(tables)
def test_greedy_gives_each_row_its_best_free_column(table: np.ndarray) -> None:
    taken: set[int] = set()
    expected = []
    for row, values in enumerate(table):
        free = [(-value, column) for column, value in enumerate(values) if column not in taken and value >= 0.5]
        if free:
            taken.add(min(free)[1])
            expected.append((row, min(free)[1]))
    assert pairs(greedy(table, 0.5)) == expected


@given(tables)
def test_greedy_gives_a_row_the_same_whatever_follows(table: np.ndarray) -> None:
    whole = pairs(greedy(table, 0.3))
    for stop in range(len(table)):
        assert pairs(greedy(table[:stop], 0.3)) == [pair for pair in whole if pair[0] < stop]


def test_they_differ_where_the_first_row_takes_what_the_second_needs() -> None:
    table = np.array([[0.9, 0.8], [0.7, 0.0]])
    assert pairs(greedy(table, 0.5)) == [(0, 0)]
    assert pairs(optimal(table, 0.5)) == [(0, 1), (1, 0)]


def test_optimal_leaves_out_pairs_of_less_than_least() -> None:
    assert pairs(optimal(np.array([[0.9, 0.1], [0.2, 0.4]]), 0.5)) == [(0, 0)]
    assert pairs(optimal(np.array([[0.5]]), 0.5)) == [(0, 0)]


def test_nobody_else_in_the_package_matches() -> None:
    package = Path(sam3label.__file__).parent
    names = {
        path.name
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "linear_sum_assignment" for alias in node.names)
    }
    assert names == {"matching.py"}
