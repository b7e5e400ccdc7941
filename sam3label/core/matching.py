"""One-to-one matching of two groups, in the two ways there are: the best as a whole, or each in turn.

`optimal` looks for the largest sum, so no pair takes a partner that another pair needs more: right where both groups
are complete. `greedy` serves the first row first: right where rows are ranked and a later one must not change what an
earlier one gets, as when a score threshold cuts the list.

Shape legend: A rows, B columns, K pairs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Positions = npt.NDArray[np.int64]


def optimal(value: Floats, least: float = -np.inf) -> tuple[Positions, Positions]:
    """Pair rows with columns of `value` [A, B] so that the sum of values is the largest; rows [K] and columns [K].

    Pairs of less than `least` are left out afterwards: to keep them from costing others their partner, give them 0.
    Rows come in order, and K is min(A, B) without `least`. Example: optimal(iou, 0.5).
    """
    from scipy.optimize import linear_sum_assignment  # 0.3 s that a run with nothing to do has no use for

    rows, columns = linear_sum_assignment(value, maximize=True)
    good = value[rows, columns] >= least
    return rows[good], columns[good]


def greedy(value: Floats, least: float) -> tuple[Positions, Positions]:
    """Pair each row of `value` [A, B], from the first on, with the free column it values most; rows and columns [K].

    A row without a free column of at least `least` stays alone; of equal columns the first is taken.
    """
    free = np.array(value, dtype=np.float64)
    pairs = []
    for row in np.flatnonzero((free >= least).any(axis=1)).tolist():
        column = int(free[row].argmax())
        if free[row, column] >= least:
            pairs.append((row, column))
            free[:, column] = -np.inf
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return rows, columns
