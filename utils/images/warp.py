"""Plane projective maps of images with their boxes and outlines, and the choice of labels to keep after them.

Images are (H, W, C), BGR with 3 channels. Coordinates are continuous pixels: pixel i spans i…i + 1.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from utils.pixel_format import grey_of

MIN_SIDE = 2.0  # pixels; a warped box must be wider and higher than this
MIN_AREA_BOX, MIN_AREA_POLYGON = 0.10, 0.01  # share of the scaled area of a label that must remain visible
MAX_ASPECT = 100.0
HORIZON = 1e-3  # smallest third coordinate of a point in front of the viewer
ROW = 32  # pixels, a multiple of OpenCV's vector length; it rounds the remainder of a row differently

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in whole pixels
Polygons = list[np.ndarray]  # outline (k, 2) of each box in pixels, (0, 2) if only the box is known


class Warp(NamedTuple):
    """Plane projective map from a canvas to an output image, in continuous coordinates."""

    matrix: np.ndarray  # (3, 3)
    scale: float  # factor of enlargement
    canvas: tuple[int, int]  # height, width
    output: tuple[int, int]
    begin: tuple[int, int] | None = None  # of a pure resize: x, y in the canvas of the first output pixel

    @property
    def is_affine(self) -> bool:
        """True without perspective."""
        return self.matrix[2, 0] == 0 and self.matrix[2, 1] == 0

    def on_whole_pixels(self) -> "Warp":
        """Shift a warp that only scales and shifts by at most half a canvas pixel, so that it has a `begin`.

        The result is a resize, which takes a third of the time of a general warp. Others stay unchanged.
        """
        (a, b, x), (c, d, y), _ = self.matrix.tolist()
        if not self.is_affine or b or c or a != d:
            return self
        begin = round(-x / a), round(-y / a)
        return self._replace(matrix=np.array([[a, 0, -begin[0] * a], [0, a, -begin[1] * a], [0, 0, 1]]), begin=begin)

    def visible_region(self) -> Box:
        """Return the part of the canvas that the output can show, with a margin for interpolation.

        With a `begin` it starts there, and may extend beyond the canvas, where everything is grey.
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
        """Return the part of the output that a part of the canvas can contribute to, in whole ROWs of pixels."""
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
        """Return the output image of a canvas, or of the part of it that begins at `origin` x, y."""
        if self.output == self.canvas == canvas.shape[:2] and np.array_equal(self.matrix, np.eye(3)):
            return canvas
        end = origin[0] + canvas.shape[1], origin[1] + canvas.shape[0]
        if self.begin == origin and self.visible_region()[2:] == end:
            scale = self.matrix[0, 0]
            return keep_channels(cv2.resize(canvas, None, fx=scale, fy=scale))[: self.output[0], : self.output[1]]
        # OpenCV counts from the centres of pixels, half a pixel off the coordinates of boxes.
        matrix = shift_matrix(-0.5, -0.5) @ self.matrix @ shift_matrix(origin[0] + 0.5, origin[1] + 0.5)
        settings = {"dsize": self.output[::-1], "flags": cv2.INTER_LINEAR, "borderValue": (grey_of(canvas.dtype),) * 4}
        if self.is_affine:
            return keep_channels(cv2.warpAffine(canvas, matrix[:2], **settings))
        return keep_channels(cv2.warpPerspective(canvas, matrix, **settings))

    def points(self, points: np.ndarray) -> np.ndarray:
        """Convert points (…, 2) from canvas to output. Points behind the viewer (only with perspective) become NaN."""
        moved = points @ self.matrix[:, :2].T + self.matrix[:, 2]
        depth = moved[..., 2:]
        return moved[..., :2] / np.where(depth > HORIZON, depth, np.nan)

    def labels(self, boxes: np.ndarray, polygons: Polygons) -> np.ndarray:
        """Return the boxes (m, 5) that remain visible.

        They are the exact visible hull of a polygon, and the hull of the warped corners of a box.
        """
        if not len(boxes):
            return boxes
        height, width = self.output
        moved = self._hulls(boxes[:, 1:])
        in_front = np.ones(len(boxes), bool)
        if not self.is_affine:
            in_front = np.isfinite(moved).all(1)
            moved = np.nan_to_num(moved)
        moved = moved.clip(0, (width, height, width, height))
        outlined = np.array([len(polygon) > 0 for polygon in polygons])
        if outlined.any():
            outlines = [np.nan_to_num(self.points(polygon)) for polygon in polygons if len(polygon)]
            moved[outlined] = visible_hulls(outlines, width, height)
        min_area = np.where(outlined, MIN_AREA_POLYGON, MIN_AREA_BOX)
        keep = in_front & is_visible(boxes[:, 1:] * self.scale, moved, min_area)
        return np.concatenate([boxes[:, :1], moved], 1)[keep].astype(np.float32)

    def _hulls(self, boxes: np.ndarray) -> np.ndarray:
        """Return xyxy (n, 4) around the four corners of each box (n, 4), NaN if one of them is behind the viewer."""
        if self.begin is not None:
            return boxes * self.matrix[0, 0] + self.matrix[[0, 1, 0, 1], 2]
        corners = self.points(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2))
        return np.concatenate([corners.min(1), corners.max(1)], 1)


def keep_channels(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, C) as it is, and one of (H, W), which OpenCV makes of a single channel, as (H, W, 1)."""
    return image if image.ndim == 3 else image[:, :, None]


def shift_matrix(x: float, y: float) -> np.ndarray:
    """Return the matrix (3, 3) of a shift."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def visible_hulls(polygons: Polygons, width: float, height: float) -> np.ndarray:
    """Return the hull xyxy (n, 4) of each polygon's part inside the window 0…width, 0…height, or zeros without one.

    The hull is exact. The window clips each edge (Liang and Barsky, 1984). A corner of the window counts if it is
    inside the polygon (even-odd rule), which also covers an object that fills the window.
    """
    lengths = np.array([len(polygon) for polygon in polygons])
    starts = np.cumsum(lengths) - lengths
    a = np.concatenate(polygons).astype(np.float64)  # (E, 2) edges from a to b
    follower = np.arange(1, len(a) + 1)
    follower[starts + lengths - 1] = starts
    b = a[follower]
    step = np.where(b == a, 1e-30, b - a)
    window = np.array([width, height], np.float64)
    crossings = np.stack([-a / step, (window - a) / step])  # (2, E, 2) parameters at which edges meet the sides
    enter = np.maximum(crossings.min(0).max(1), 0.0)[:, None]
    leave = np.minimum(crossings.max(0).min(1), 1.0)[:, None]
    ends = np.stack([a + enter * (b - a), a + leave * (b - a)])  # (2, E, 2)
    low = np.minimum.reduceat(np.where(enter <= leave, ends.min(0), np.inf), starts)
    high = np.maximum.reduceat(np.where(enter <= leave, ends.max(0), -np.inf), starts)
    for corner in np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64):
        beyond = a + (corner[1] - a[:, 1:]) / step[:, 1:] * (b - a)  # x where the corner's row meets the edge's line
        crosses = ((a[:, 1] > corner[1]) != (b[:, 1] > corner[1])) & (beyond[:, 0] > corner[0])
        inside = (np.add.reduceat(crosses.astype(np.int64), starts) % 2 == 1)[:, None]
        low, high = np.where(inside, np.minimum(low, corner), low), np.where(inside, np.maximum(high, corner), high)
    return np.where(np.isfinite(low).all(1, keepdims=True), np.concatenate([low, high], 1), 0.0)


def is_visible(before: np.ndarray, after: np.ndarray, min_area: float | np.ndarray) -> np.ndarray:
    """Return (n,) bool, True for boxes `after` (n, 4) a warp that are large enough to learn from.

    `before` (n, 4) are the same boxes, scaled but not clipped. `min_area` is the share of their area to keep.
    """
    w1, h1 = (before[:, 2:] - before[:, :2]).T
    w2, h2 = (after[:, 2:] - after[:, :2]).T
    aspect = np.maximum(w2 / (h2 + 1e-16), h2 / (w2 + 1e-16))
    return (w2 > MIN_SIDE) & (h2 > MIN_SIDE) & (w2 * h2 / (w1 * h1 + 1e-16) > min_area) & (aspect < MAX_ASPECT)
