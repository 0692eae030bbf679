"""Outlines that cross themselves, compared with all pairs of edges."""

import numpy as np
import pytest

from utils.checking.crossings import MAX_POINTS, OVERSHOOT_PX, count_crossings, has_bridge
from utils.datasets.coco import join_parts
from utils.datasets.label_index import offsets_of

SQUARE = [(10, 10), (50, 10), (50, 50), (10, 50)]
BOW_TIE = [(10, 10), (50, 50), (50, 10), (10, 50)]
STAR = [(50, 0), (80, 95), (0, 35), (100, 35), (20, 95)]
SIDES = np.array([100.0, 200.0])  # of the image in pixels


def counted(*polygons, sides=SIDES) -> list[int]:
    points = np.array([point for polygon in polygons for point in polygon], np.float32).reshape(-1, 2) / SIDES
    offsets = offsets_of([len(polygon) for polygon in polygons])
    return count_crossings(points.astype(np.float32), offsets, np.tile(sides, (len(polygons), 1))).tolist()


@pytest.mark.parametrize(
    "polygon, crossings",
    [
        ([], 0),  # a box row
        (SQUARE, 0),
        (BOW_TIE, 1),
        (STAR, 5),
        ([*BOW_TIE, BOW_TIE[0]], 1),  # closed by its first point
        ([(10, 10), (50, 10), (30, 10), (30, 50)], 0),  # edges upon each other
        ([(10, 10), (50, 10), (50, 50), (30, 10), (10, 50)], 0),  # touches its own edge
        ([(10, 10), (50, 10), (50, 50), (30, 10 - OVERSHOOT_PX / 2), (10, 50)], 0),  # beyond it by a rounding
        ([(10, 10), (50, 10), (50, 50), (30, 10 - OVERSHOOT_PX * 2), (10, 50)], 2),
        (join_parts([SQUARE, [(60, 10), (90, 10), (75, 50)]]), 0),  # two parts
        (join_parts([SQUARE, [(30, 5), (90, 30), (30, 80)]]), 0),  # two parts that overlap
        (join_parts([SQUARE, [(50, 50), (20, 30), (90, 5)]]), 0),  # two parts that overlap and share a corner
    ],
)
def test_the_crossings_of_an_outline(polygon, crossings):
    assert counted(polygon) == [crossings]
    assert counted(SQUARE, polygon, [], BOW_TIE) == [0, crossings, 0, 1]  # each is counted for its own label


def test_no_polygon():
    assert counted() == [] and counted([], []) == [0, 0]


def test_very_long_outlines_are_not_searched(monkeypatch):
    monkeypatch.setattr("utils.checking.crossings.MAX_POINTS", 300)
    zigzag = [(k / 4, 10 if k % 2 else 150) for k in range(298)]
    through = [*zigzag, (80, 80), (0, 80)]
    assert counted(through)[0] > 100 and counted([*through, (0, 90)]) == [0]


def wave(points: int, bite: float = 0.0) -> list[tuple[float, float]]:
    """Return a wavy outline around (50, 100). With `bite` one of its points lies across the outline."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radii = 40 + 5 * np.sin(9 * angles)
    radii[points // 3] += bite
    return [(50 + r * np.cos(a), 100 + r * np.sin(a)) for r, a in zip(radii, angles, strict=True)]


@pytest.mark.parametrize("points", [400, 2000, MAX_POINTS])
def test_long_outlines_are_searched(points):
    spike = wave(points, bite=-95)  # out of the opposite side and back
    assert [counted(outline, sides=20 * SIDES) for outline in (wave(points), spike)] == [[0], [2]]


def test_a_hatched_area_is_searched_in_both_directions():
    hatched = [(x, k / 40) for k in range(1000) for x in ((10, 90) if k % 2 else (90, 10))]
    assert counted(hatched) == counted([(y, x) for x, y in hatched]) == [0]


@pytest.mark.parametrize("seed", range(5))
def test_the_count_is_that_of_all_pairs_of_edges(seed, monkeypatch):
    monkeypatch.setattr("utils.checking.crossings.CHUNK", 20)
    rng = np.random.default_rng(seed)
    polygons = [20.0 * rng.integers(0, 6, (int(rng.integers(3, 12)), 2)) for _ in range(12)]
    expected = [0 if has_bridge(polygon) else crossings_of_pairs(polygon) for polygon in polygons]
    assert counted(*polygons) == expected and sum(expected) > 10


def crossings_of_pairs(polygon: np.ndarray) -> int:
    """Count the pairs of edges a + s * u, b + t * v that meet at 0 < s, t < 1."""
    following = np.roll(polygon, -1, axis=0)
    found = 0
    for i in range(len(polygon)):
        for j in range(i):
            u, v = following[i] - polygon[i], following[j] - polygon[j]
            if abs(np.linalg.det([u, -v])) > 1e-9:
                s, t = np.linalg.solve(np.array([u, -v]).T, polygon[j] - polygon[i])
                found += 1e-9 < s < 1 - 1e-9 and 1e-9 < t < 1 - 1e-9
    return int(found)
