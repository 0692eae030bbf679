"""Polygons clipped to a window, against an independent count of points inside both."""

import numpy as np
import pytest

from utils.images.polygon_clip import clip_polygon, polygon_area
from utils.images.warp import visible_hulls

WINDOW = np.array([0.0, 0.0, 10.0, 10.0])
UNIT = [[0, 0], [10, 0], [10, 10], [0, 10]]


@pytest.mark.parametrize(
    "polygon, clipped",
    [
        ([[20, 20], [30, 20], [30, 30]], []),  # outside
        ([[2, 2], [8, 2], [5, 8]], [[2, 2], [8, 2], [5, 8]]),  # inside: the same points
        ([[-5, -5], [15, -5], [15, 15], [-5, 15]], UNIT),  # around the window
        ([[5, 2], [15, 2], [15, 4], [5, 4]], [[5, 2], [10, 2], [10, 4], [5, 4]]),
        ([[10, 2], [15, 2], [15, 4], [10, 4]], []),  # touches the border only
        # A U around a corner of the window, open to the left: its lower arm alone is inside.
        ([[-4, -6], [4, -6], [4, 6], [-4, 6], [-4, 4], [2, 4], [2, -4], [-4, -4]], [[4, 0], [4, 6], [0, 6], [0, 4],
                                                                                   [2, 4], [2, 0]]),
        # The arms of an E enter from the right, the upper one below the window's edge only.
        ([[12, -3], [12, 4], [8, 4], [8, 3], [11, 3], [11, -1], [8, -1], [8, -3]], [[10, 4], [8, 4], [8, 3], [10, 3]]),
        ([], []),
    ],
)  # fmt: skip
def test_clipped_polygon(polygon, clipped):
    ours = clip_polygon(np.array(polygon, np.float64).reshape(-1, 2), WINDOW)
    assert len(ours) == len(clipped)
    assert {tuple(point) for point in ours.tolist()} == {tuple(map(float, point)) for point in clipped}


def star(rng: np.random.Generator) -> np.ndarray:
    """Return a simple polygon, mostly concave, around a point in or near the window."""
    count = int(rng.integers(3, 20))
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    return rng.uniform(-2, 12, 2) + np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.3, 9, (count, 1))


def contains(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return for each point whether it is inside, by the even-odd rule."""
    inside = np.zeros(len(points), bool)
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0)):
        if y1 != y2:
            crosses = (y1 > points[:, 1]) != (y2 > points[:, 1])
            inside ^= crosses & (points[:, 0] < x1 + (points[:, 1] - y1) / (y2 - y1) * (x2 - x1))
    return inside


@pytest.mark.parametrize("seed", range(60))
def test_clipped_polygon_encloses_the_points_of_the_polygon_in_the_window(seed):
    rng = np.random.default_rng(seed)
    polygon = star(rng)
    grid = (np.stack(np.meshgrid(np.arange(100), np.arange(100)), -1).reshape(-1, 2) + rng.uniform(0.2, 0.8, 2)) / 10
    ours = clip_polygon(polygon, WINDOW)
    expected = contains(polygon, grid)
    assert (contains(ours, grid) == expected).all() if len(ours) else not expected.any()
    assert polygon_area(ours) == pytest.approx(expected.mean() * 100, abs=1.5)
    if len(ours):
        np.testing.assert_allclose([*ours.min(0), *ours.max(0)], visible_hulls([polygon], 10, 10)[0], atol=1e-9)
    np.testing.assert_allclose(clip_polygon(polygon + 3, WINDOW + 3), ours + 3, atol=1e-9)


def test_area_of_a_polygon():
    assert polygon_area(np.array([[1, 1], [4, 1], [4, 3], [1, 3]])) == 6
    assert polygon_area(np.array([[0, 0], [2, 0]])) == polygon_area(np.zeros((0, 2))) == 0
