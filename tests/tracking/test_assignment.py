"""Assignment: the best of all pairings, found by trying them all."""

import itertools

import numpy as np
import pytest

from utils.tracking.assignment import assign


def best_total(weights: np.ndarray) -> float:
    """Return the highest sum of weights of any pairing, where a row may have no partner."""
    n, m = weights.shape
    padded = np.concatenate((weights, np.zeros((n, n))), axis=1)
    choices = itertools.permutations(range(m + n), n)
    return max(sum(padded[i, k] for i, k in enumerate(choice)) for choice in choices)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_nothing_to_assign(shape):
    rows, columns = assign(np.zeros(shape))
    assert len(rows) == len(columns) == 0


@pytest.mark.parametrize(
    "weights, pairs",
    [
        ([[0.5]], [(0, 0)]),
        ([[0.0]], []),  # a weight of 0 is no pair
        ([[-1.0, 2.0], [1.0, -3.0]], [(0, 1), (1, 0)]),
        ([[3.0, 2.0], [2.0, 0.0]], [(0, 1), (1, 0)]),  # the best single pair is in no best pairing
        ([[3.0, 1.0], [1.0, 0.0]], [(0, 0)]),  # one good pair is worth more than two poor ones
        ([[1.0], [2.0], [1.5]], [(1, 0)]),
    ],
)
def test_pairs(weights, pairs):
    assert list(zip(*assign(np.array(weights)), strict=True)) == pairs


def test_the_total_is_that_of_the_best_of_all_pairings():
    rng = np.random.default_rng(0)
    for case in range(200):
        weights = rng.normal(-0.5, 1, rng.integers(1, 5, 2))
        weights = weights.round() if case % 2 else weights  # with ties
        rows, columns = assign(weights)
        assert len(set(rows)) == len(rows) and len(set(columns)) == len(columns)
        assert (weights[rows, columns] > 0).all() and (np.diff(rows) > 0).all()
        assert weights[rows, columns].sum() == pytest.approx(best_total(weights))


@pytest.mark.parametrize("shape, offset", [((60, 60), 0.0), ((80, 50), 0.9), ((50, 80), 0.95), ((200, 200), 0.99)])
def test_large_problems_as_scipy_solves_them(shape, offset):
    optimize = pytest.importorskip("scipy.optimize")
    weights = np.random.default_rng(1).random(shape) - offset
    rows, columns = assign(weights)
    best = weights.clip(0)[optimize.linear_sum_assignment(-weights.clip(0))].sum()
    assert weights[rows, columns].sum() == pytest.approx(best)
