"""The grid of tiles and the visible share of boxes, against counts of single pixels."""

import numpy as np
import pytest

from utils.errors import UserError
from utils.images.tiles import Tiling, visible_share


@pytest.mark.parametrize("overlap", [0, 0.1, 0.2, 1 / 3, 0.5, 0.9])
@pytest.mark.parametrize("side", [1, 7, 10, 32])
def test_tiles_cover_a_line_with_the_overlap(side: int, overlap: float) -> None:
    """Check every length: all pixels are covered, no tile reaches outside, neighbours share the overlap."""
    for length in range(1, 120):
        tiles = Tiling(side, overlap).grid((1, length))
        starts, ends = tiles[:, 0], tiles[:, 2]
        assert starts[0] == 0 and ends[-1] == length
        assert (ends - starts == min(side, length)).all()
        shared = ends[:-1] - starts[1:]
        assert (shared >= np.ceil(side * overlap - 1e-9).clip(max=side - 1)).all()
        assert np.ptp(shared) <= 1 if len(shared) else length <= side  # spread evenly


def test_the_grid_has_no_tile_too_many() -> None:
    """One tile fewer would not cover the line with the overlap."""
    for length in range(33, 300):
        count = len(Tiling(32, 0.25).grid((length, 10)))
        assert 32 + 24 * (count - 2) < length <= 32 + 24 * (count - 1)


def test_the_grid_is_row_by_row() -> None:
    tiles = Tiling(640, 0.2).grid((640, 1152))
    assert tiles.tolist() == [[0, 0, 640, 640], [512, 0, 1152, 640]]
    assert Tiling(640).grid((300, 500)).tolist() == [[0, 0, 500, 300]]
    assert Tiling(640).grid((641, 400)).tolist() == [[0, 0, 400, 640], [0, 1, 400, 641]]


def test_visible_share_counts_pixels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        low = rng.integers(0, 30, (6, 2))
        boxes = np.concatenate((low, low + rng.integers(1, 20, (6, 2))), axis=1)
        x1, y1, x2, y2 = tile = np.array([8, 5, 8 + rng.integers(1, 25), 5 + rng.integers(1, 25)])
        for share, (left, top, right, bottom) in zip(visible_share(boxes, tile), boxes, strict=True):
            canvas = np.zeros((60, 60), bool)
            canvas[top:bottom, left:right] = True
            assert share == pytest.approx(canvas[y1:y2, x1:x2].sum() / canvas.sum(), abs=1e-12)


def test_visible_share_of_lines_points_and_nothing() -> None:
    tile = np.array([10, 10, 20, 20])
    boxes = np.array([[5, 12, 15, 12], [12, 12, 12, 12], [20, 20, 20, 20], [21, 12, 21, 14], [30, 12, 40, 14]])
    assert visible_share(boxes, tile).tolist() == [0.5, 1, 1, 0, 0]
    assert visible_share(np.zeros((0, 4)), tile).shape == (0,)


def test_flags_that_name_no_tiling() -> None:
    assert Tiling.from_flags(None) is None and Tiling.from_flags(0) is None
    assert Tiling.from_flags(640, 0.5) == Tiling(640, 0.5)
    for tile, overlap, words in ((-5, 0.2, "--tile -5"), (640, 1.0, "--tile-overlap 1.0"), (None, 0.3, "needs --tile")):
        with pytest.raises(UserError, match=words):
            Tiling.from_flags(tile, overlap)
