"""Plane projective maps of pictures with their boxes and outlines, and what of these remains worth learning.

Images are BGR uint8 (H, W, 3). Coordinates are continuous pixels: pixel i spans i…i + 1.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

GREY = 114  # value of every pixel that no picture covers
MIN_SIDE = 2.0  # pixels; a warped box must be wider and higher
MIN_AREA_BOX, MIN_AREA_POLYGON = 0.10, 0.01  # share of its scaled area that must remain visible
MAX_ASPECT = 100.0
HORIZON = 1e-3  # smallest third coordinate of a point in front of the viewer
ROW = 32  # pixels, a multiple of what OpenCV works on at once: the rest of a row it rounds otherwise

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in whole pixels
Polygons = list[np.ndarray]  # for each box its (k, 2) outline in pixels, (0, 2) where only the box is known


class Warp(NamedTuple):
    """A plane projective map from a canvas to an output picture, in continuous coordinates."""

    matrix: np.ndarray  # (3, 3)
    scale: float  # how much it enlarges
    canvas: tuple[int, int]  # height, width
    output: tuple[int, int]
    begin: tuple[int, int] | None = None  # x, y of the pixel of the canvas that the output begins with: a mere resize

    @property
    def is_affine(self) -> bool:
        return self.matrix[2, 0] == 0 and self.matrix[2, 1] == 0

    def on_whole_pixels(self) -> "Warp":
        """If it only scales and shifts, shifted on by at most half a pixel of the canvas, so that `begin` is known.

        Such a warp is a resize, which takes a third of the time of a general one. Others are left as they are.
        """
        (a, b, x), (c, d, y), _ = self.matrix.tolist()
        if not self.is_affine or b or c or a != d:
            return self
        begin = round(-x / a), round(-y / a)
        return self._replace(matrix=np.array([[a, 0, -begin[0] * a], [0, a, -begin[1] * a], [0, 0, 1]]), begin=begin)

    def visible_region(self) -> Box:
        """The part of the canvas that the output can show, with room for interpolation.

        With a `begin` it starts there, and may reach beyond the canvas, where all is grey.
        """
        height, width = self.canvas
        if self.begin is not None:
            (x, y), (h, w) = self.begin, self.output
            return x, y, x + math.ceil(w / self.matrix[0, 0]) + 1, y + math.ceil(h / self.matrix[0, 0]) + 1
        if not self.is_affine:
            return 0, 0, width, height
        h, w = self.output
        corners = np.linalg.inv(self.matrix) @ np.array([[0, w, w, 0], [0, 0, h, h], [1, 1, 1, 1]])
        low, high = np.floor(corners[:2].min(1)) - 2, np.ceil(corners[:2].max(1)) + 2
        x1, y1 = np.clip(low, 0, (width, height)).astype(int).tolist()
        x2, y2 = np.clip(high, 0, (width, height)).astype(int).tolist()
        return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)

    def output_region(self, box: Box) -> Box:
        """The part of the output that this part of the canvas can have a share in, in whole ROWs of pixels."""
        height, width = self.output
        if self.begin is None:
            return 0, 0, width, height
        (left, top), scale = self.begin, float(self.matrix[0, 0])
        x1, x2 = (box[0] - left - 1) * scale, (box[2] - left + 1) * scale
        y1, y2 = (box[1] - top - 1) * scale, (box[3] - top + 1) * scale
        return (
            max(math.floor(x1 / ROW) * ROW, 0),
            max(math.floor(y1), 0),
            min(math.ceil(x2 / ROW) * ROW, width),
            min(math.ceil(y2), height),
        )

    def image(self, canvas: np.ndarray, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Output picture of a canvas, or of the part of it that begins at `origin` x, y."""
        if self.output == self.canvas == canvas.shape[:2] and np.array_equal(self.matrix, np.eye(3)):
            return canvas
        end = origin[0] + canvas.shape[1], origin[1] + canvas.shape[0]
        if self.begin == origin and self.visible_region()[2:] == end:
            scale = self.matrix[0, 0]
            return cv2.resize(canvas, None, fx=scale, fy=scale)[: self.output[0], : self.output[1]]
        # OpenCV counts from the centres of pixels, half a pixel off the coordinates in which boxes are given.
        matrix = shift_matrix(-0.5, -0.5) @ self.matrix @ shift_matrix(origin[0] + 0.5, origin[1] + 0.5)
        settings = {"dsize": self.output[::-1], "flags": cv2.INTER_LINEAR, "borderValue": (GREY,) * 3}
        if self.is_affine:
            return cv2.warpAffine(canvas, matrix[:2], **settings)
        return cv2.warpPerspective(canvas, matrix, **settings)

    def points(self, points: np.ndarray) -> np.ndarray:
        """(…, 2) canvas -> (…, 2) output; NaN for points behind the viewer, which only perspective has."""
        moved = points @ self.matrix[:, :2].T + self.matrix[:, 2]
        depth = moved[..., 2:]
        return moved[..., :2] / np.where(depth > HORIZON, depth, np.nan)

    def labels(self, boxes: np.ndarray, polygons: Polygons) -> np.ndarray:
        """(m, 5) boxes of what remains visible: of polygons their exact visible hull, of boxes the hull of corners."""
        if not len(boxes):
            return boxes
        height, width = self.output
        moved, seen = self._hulls(boxes[:, 1:]), True
        if not self.is_affine:
            seen = np.isfinite(moved).all(1)
            moved = np.nan_to_num(moved)
        moved = moved.clip(0, (width, height, width, height))
        outlined = np.array([len(polygon) > 0 for polygon in polygons])
        if outlined.any():
            outlines = [np.nan_to_num(self.points(polygon)) for polygon in polygons if len(polygon)]
            moved[outlined] = visible_hulls(outlines, width, height)
        least = np.where(outlined, MIN_AREA_POLYGON, MIN_AREA_BOX)
        keep = seen & candidates(boxes[:, 1:] * self.scale, moved, least)
        return np.concatenate([boxes[:, :1], moved], 1)[keep].astype(np.float32)

    def _hulls(self, boxes: np.ndarray) -> np.ndarray:
        """(n, 4) xyxy around the four corners of each box (n, 4); NaN where one of them is behind the viewer."""
        if self.begin is not None:
            return boxes * self.matrix[0, 0] + self.matrix[[0, 1, 0, 1], 2]
        corners = self.points(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2))
        return np.concatenate([corners.min(1), corners.max(1)], 1)


def shift_matrix(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def visible_hulls(polygons: Polygons, width: float, height: float) -> np.ndarray:
    """(n, 4) xyxy hull of the part of each polygon inside the window 0…width, 0…height; zeros where none is.

    Exact: each edge is cut by the window (Liang and Barsky, 1984), and a corner of the window counts where it lies
    inside the polygon (even-odd rule), which also serves an object that fills the window.
    """
    lengths = np.array([len(polygon) for polygon in polygons])
    starts = np.cumsum(lengths) - lengths
    a = np.concatenate(polygons).astype(np.float64)  # (E, 2) edges from a to b
    follower = np.arange(1, len(a) + 1)
    follower[starts + lengths - 1] = starts
    b = a[follower]
    step = np.where(b == a, 1e-30, b - a)
    window = np.array([width, height], np.float64)
    cuts = np.stack([-a / step, (window - a) / step])  # (2, E, 2) parameter at which an edge meets each side
    enter = np.maximum(cuts.min(0).max(1), 0.0)[:, None]
    leave = np.minimum(cuts.max(0).min(1), 1.0)[:, None]
    ends = np.stack([a + enter * (b - a), a + leave * (b - a)])  # (2, E, 2)
    low = np.minimum.reduceat(np.where(enter <= leave, ends.min(0), np.inf), starts)
    high = np.maximum.reduceat(np.where(enter <= leave, ends.max(0), -np.inf), starts)
    for corner in window * [[0, 0], [1, 0], [1, 1], [0, 1]]:
        beyond = a + (corner[1] - a[:, 1:]) / step[:, 1:] * (b - a)  # x where the corner's row meets the edge's line
        crosses = ((a[:, 1] > corner[1]) != (b[:, 1] > corner[1])) & (beyond[:, 0] > corner[0])
        inside = (np.add.reduceat(crosses.astype(np.int64), starts) % 2 == 1)[:, None]
        low, high = np.where(inside, np.minimum(low, corner), low), np.where(inside, np.maximum(high, corner), high)
    return np.where(np.isfinite(low).all(1)[:, None], np.concatenate([low, high], 1), 0.0)


def candidates(before: np.ndarray, after: np.ndarray, min_area: float | np.ndarray) -> np.ndarray:
    """(n,) bool: which of the boxes `after` (n, 4) a warp are still worth learning, compared with `before` (n, 4)."""
    w1, h1 = (before[:, 2:] - before[:, :2]).T
    w2, h2 = (after[:, 2:] - after[:, :2]).T
    aspect = np.maximum(w2 / (h2 + 1e-16), h2 / (w2 + 1e-16))
    return (w2 > MIN_SIDE) & (h2 > MIN_SIDE) & (w2 * h2 / (w1 * h1 + 1e-16) > min_area) & (aspect < MAX_ASPECT)
