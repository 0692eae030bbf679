"""Draw of groups: both sides hold each class, in the shares of the division."""

import itertools

import numpy as np
import pytest
from datasets.test_subset import build_index

from utils.datasets.stratification import classes_of_images, draw_groups
from utils.errors import UserError

NO_PAIRS = np.zeros((0, 2), np.int64)


def test_classes_of_images_are_named_once_each():
    index = build_index(np.random.default_rng(0))
    index.labels[:, 0] %= 2
    expected = {(image, int(row[0])) for image in range(len(index)) for row in index.boxes(image)}
    pairs = classes_of_images(index)
    assert len(pairs) == len(expected) < len(index.labels) and set(map(tuple, pairs.tolist())) == expected


@pytest.mark.parametrize("share, seed", [(0.8, 0), (0.5, 3), (0.99, 0)])
def test_the_share_is_met_and_depends_on_the_seed_alone(share, seed):
    groups = np.arange(300)
    drawn = draw_groups(groups, share, seed, NO_PAIRS)
    assert drawn.sum() == round(300 * (1 - share)) and np.array_equal(drawn, draw_groups(groups, share, seed, NO_PAIRS))
    assert not np.array_equal(drawn, draw_groups(groups, share, seed + 1, NO_PAIRS))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_both_sides_have_an_image(share):
    assert draw_groups(np.array([0, 1]), share, 0, NO_PAIRS).sum() == 1


def test_one_group_cannot_be_divided():
    with pytest.raises(UserError, match="cannot be divided"):
        draw_groups(np.zeros(5, np.int64), 0.8, 0, NO_PAIRS)


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_divided_in_the_share_of_the_images(seed):
    rng = np.random.default_rng(seed)
    holds = rng.random((1000, 8)) < np.array([0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01])
    drawn = draw_groups(np.arange(1000), 0.8, seed, np.argwhere(holds))
    assert drawn.sum() == 200
    assert np.abs(holds[drawn].sum(0) - 0.2 * holds.sum(0)).max() < 1.5  # images, of 10 to 500


def count_divided(holds, is_val):
    """Return how many classes are on both sides."""
    return sum(len({bool(side) for side in is_val[rows]}) == 2 for rows in holds.T)


def test_as_many_classes_are_on_both_sides_as_any_division_has():
    worse = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        groups = np.sort(np.append(rng.integers(0, 6, 12), range(6)))
        holds = rng.random((len(groups), 4)) < rng.choice([0.1, 0.2, 0.4])
        sides = (np.array(sides)[groups] for sides in itertools.product([False, True], repeat=6))
        best = max(count_divided(holds, side) for side in sides if 0 < side.sum() < len(side))
        worse += count_divided(holds, draw_groups(groups, 0.8, seed, np.argwhere(holds))) < best
    assert worse <= 1  # the draw is greedy
