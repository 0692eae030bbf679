"""Tiles: overlapping squares that cover an image, and how much of a box each of them shows.

Legend: T tiles of an image, n boxes.
"""

import math
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError

MIN_TILE = 32  # pixels, the largest stride of most models
MAX_OVERLAP = 0.9  # at which an image has a hundred times the tiles of no overlap
DEFAULT_OVERLAP = 0.2
FLAGS = "--tile", "--tile-overlap"


@dataclass(frozen=True)
class Tiling:
    """Rule that cuts images into tiles."""

    side: int  # of a tile, in pixels of the image
    overlap: float = DEFAULT_OVERLAP  # least share of a tile that the next one sees too

    @classmethod
    def from_flags(
        cls, tile: int | None, tile_overlap: float = DEFAULT_OVERLAP, names: tuple[str, str] = FLAGS
    ) -> "Tiling | None":
        """Return the tiling that two flags, or settings of other names, describe, None if `tile` is 0 or None.

        Raises UserError.
        """
        side, share = names
        if not tile:
            if tile_overlap != DEFAULT_OVERLAP:
                raise UserError(f"{share} {tile_overlap} needs {side}: add for example {side} 640")
            return None
        if tile < MIN_TILE:
            raise UserError(f"{side} {tile}: expected the side of a tile in pixels, {MIN_TILE} or more")
        if not 0 <= tile_overlap <= MAX_OVERLAP:
            raise UserError(f"{share} {tile_overlap} is outside 0...{MAX_OVERLAP}: give for example 0.2")
        return cls(tile, tile_overlap)

    def grid(self, shape: tuple[int, int]) -> np.ndarray:
        """Return the tiles (T, 4) int64 x1, y1, x2, y2 of an image of a height and width, row by row.

        All have the same size, and none reaches beyond the image. Neighbours share at least the overlap, spread evenly.
        A side of the image that is no longer than a tile is not cut, so a small image is one tile.
        """
        (y1, height), (x1, width) = (self._starts(length) for length in shape)
        top, left = (axis.ravel() for axis in np.meshgrid(y1, x1, indexing="ij"))
        return np.stack((left, top, left + width, top + height), axis=1)

    def _starts(self, length: int) -> tuple[np.ndarray, int]:
        """Return where the tiles begin along an axis, and their length."""
        if length <= self.side:
            return np.zeros(1, np.int64), length
        step = max(self.side - math.ceil(self.side * self.overlap - 1e-9), 1)  # the longest that keeps the overlap
        gaps = math.ceil((length - self.side) / step)
        return np.arange(gaps + 1, dtype=np.int64) * (length - self.side) // gaps, self.side


def visible_share(boxes_xyxy: np.ndarray, tile_xyxy: np.ndarray) -> np.ndarray:
    """Return the share (n,) float64 in 0…1 of the area of each box (n, 4) that lies inside a tile (4,).

    A box without area is visible (1) if it lies in the tile, its border included.
    """
    boxes, tile = np.asarray(boxes_xyxy, np.float64), np.asarray(tile_xyxy, np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    seen = np.minimum(boxes[:, 2:], tile[2:]) - np.maximum(boxes[:, :2], tile[:2])
    along = np.divide(seen, sides, out=(seen >= 0).astype(np.float64), where=sides > 0)  # a side of length 0: in or out
    return along.clip(0, 1).prod(axis=1)
