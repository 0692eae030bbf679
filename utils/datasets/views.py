"""Views of a split's images for training: each image whole, and its tiles, with the labels that they show.

The views are an index like any other, so sampling, augmentation and caches treat them as images.
Legend: N images, V views, T tiles of an image, n labels of an image, m those that a view shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from utils.boxes import xywh_to_xyxy
from utils.datasets.label_index import LabelIndex, Views, offsets_of
from utils.datasets.string_array import TakenStrings
from utils.images.polygon_clip import clip_polygon, polygon_area
from utils.images.tiles import Tiling, visible_share

MIN_VISIBLE = 0.25  # share of an object that a tile must show to keep its label
MAX_EMPTY = 1.0  # tiles without objects that an epoch draws, as a multiple of those with objects


class Labels(NamedTuple):
    """Labels of one view."""

    boxes: np.ndarray  # (m, 5) float32 class, cx, cy, w, h as fractions of the view
    polygons: Sequence[np.ndarray]  # (k, 2) float32 of each label, as fractions; (0, 2) for a box row


NO_POINTS = np.zeros((0, 2), np.float32)
NO_LABELS = Labels(np.zeros((0, 5), np.float32), [])
EMPTY = -1  # in place of the draws of an empty tile, which depend on how many there are


@dataclass(frozen=True)
class Kinds:
    """Number of views of each kind."""

    whole: int
    filled: int  # tiles that show an object
    empty: int  # tiles that show no part of any object
    cut: int  # tiles that show only small parts of objects, which are never drawn

    @property
    def empty_drawn(self) -> int:
        """Number of empty tiles that each epoch draws."""
        return min(self.empty, round(MAX_EMPTY * self.filled))


def cut_into_views(index: LabelIndex, tiling: Tiling) -> tuple[LabelIndex, Kinds]:
    """Return the views of all images, and how many there are of each kind.

    The views of an image follow each other, the whole image first. An image that is one tile has no others. An epoch
    draws every view once, but of the empty tiles only as many as there are tiles with objects.
    """
    grids = {shape: tiling.grid(shape) for shape in set(map(tuple, index.shapes.tolist()))}
    builder = _ViewBuilder()
    for i, shape in enumerate(map(tuple, index.shapes.tolist())):
        own = Labels(index.boxes(i), index.polygons(i))
        builder.add(i, (0, 0, *shape[::-1]), own, draws=1)
        grid = grids[shape]
        if len(grid) > 1:
            objects, ignored = _Objects(own, shape), _corners_px(index.regions(i), shape)
            for tile in grid:
                labels, shows_parts = objects.seen_in(tile)
                blank = not shows_parts and not (len(ignored) and visible_share(ignored, tile).any())
                builder.add(i, tile, labels, draws=1 if len(labels.boxes) else EMPTY if blank else 0)
    return builder.build(index)


class _Objects:
    """Labels of one image, in pixels, from which those of its tiles are cut."""

    def __init__(self, labels: Labels, shape: tuple[int, int]) -> None:
        self.size = np.array(shape[::-1], np.float64)
        self.classes = labels.boxes[:, :1]
        self.corners = _corners_px(labels.boxes, shape).clip(0, np.tile(self.size, 2))  # (n, 4)
        self.polygons = [polygon * self.size if len(polygon) else polygon for polygon in labels.polygons]
        self.areas = [polygon_area(polygon) for polygon in self.polygons]

    def seen_in(self, tile: np.ndarray) -> tuple[Labels, bool]:
        """Return the labels that a tile (4,) keeps, and whether it shows any part of an object."""
        shares = visible_share(self.corners, tile)
        if not shares.any():
            return NO_LABELS, False
        corners, polygons = self.corners.copy(), list(self.polygons)
        for j in np.flatnonzero((shares > 0) & (shares < 1)).tolist():
            if self.areas[j] > 0:
                polygons[j] = clip_polygon(polygons[j], tile)
                shares[j] = polygon_area(polygons[j]) / self.areas[j]
                if len(polygons[j]):
                    corners[j] = *polygons[j].min(0), *polygons[j].max(0)
        keep = np.flatnonzero(shares >= MIN_VISIBLE)
        origin, size = tile[:2].astype(np.float64), (tile[2:] - tile[:2]).astype(np.float64)
        low, high = ((corners[keep, k : k + 2] - origin).clip(0, size) / size for k in (0, 2))
        boxes = np.concatenate([self.classes[keep], (low + high) / 2, high - low], 1, dtype=np.float32)
        outlines = [_as_fractions(polygons[j], origin, size) for j in keep.tolist()]
        return Labels(boxes, outlines), bool((shares > 0).any())


def _as_fractions(polygon: np.ndarray, origin: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return a polygon (k, 2) in fractions of the window at `origin` of `size`, both x, y."""
    return ((polygon - origin) / size).clip(0, 1).astype(np.float32) if len(polygon) else NO_POINTS


def _corners_px(boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return (n, 4) float64 xyxy in pixels of boxes (n, 5) class, cx, cy, w, h in fractions."""
    return xywh_to_xyxy(boxes[:, 1:].astype(np.float64)) * np.array([*shape[::-1]] * 2, np.float64)


class _ViewBuilder:
    """Collects views, and builds their index."""

    def __init__(self) -> None:
        self.images: list[int] = []
        self.windows: list[Sequence[int]] = []
        self.labels: list[Labels] = []
        self.draws: list[int] = []

    def add(self, image: int, window_xyxy: Sequence[int] | np.ndarray, labels: Labels, *, draws: int) -> None:
        """Add a view of an image."""
        self.images.append(image)
        self.windows.append(tuple(map(int, window_xyxy)))
        self.labels.append(labels)
        self.draws.append(draws)

    def build(self, index: LabelIndex) -> tuple[LabelIndex, Kinds]:
        """Return the index of the views."""
        images, windows = np.array(self.images, np.int64), np.array(self.windows, np.int32).reshape(-1, 4)
        draws = np.array(self.draws, np.float64)
        whole = np.diff(images, prepend=-1) > 0
        kinds = Kinds(*(int(rows.sum()) for rows in (whole, ~whole & (draws == 1), draws == EMPTY, draws == 0)))
        draws[draws == EMPTY] = kinds.empty_drawn / max(kinds.empty, 1)
        polygons = [polygon for labels in self.labels for polygon in labels.polygons]
        views = replace(
            index,
            paths=TakenStrings(index.paths, images),
            shapes=np.ascontiguousarray((windows[:, 2:] - windows[:, :2])[:, ::-1]),
            labels=np.concatenate([labels.boxes for labels in self.labels]),
            offsets=offsets_of([len(labels.boxes) for labels in self.labels]),
            points=np.concatenate([index.points[:0], *polygons]),
            segment_offsets=offsets_of(list(map(len, polygons))),
            ignored=index.ignored[:0],
            ignored_images=index.ignored_images[:0],
            draws=draws,
            views=Views(images, windows, index.shapes),
        )
        return views, kinds
