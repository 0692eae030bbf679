"""Checks of polygons: rows that are read as polygons and are none.

Legend: M labels of a split, P points, K polygons.
"""

from collections.abc import Iterator

import numpy as np

from utils.checking.boxes import image_sides, label_finding
from utils.checking.crossings import count_crossings
from utils.checking.findings import Finding
from utils.checking.scan import ScannedData, ScannedSplit
from utils.datasets.labels import look_like_keypoints

FLAT = 0.005  # thickness of a polygon without area, by its length
RECTANGLE = 0.999  # share that one of four corners fills at least, which is a box
OFTEN = 0.5  # share of rectangles that is worth a note


def check_polygons(data: ScannedData) -> Iterator[Finding]:
    """Yield the findings on rows that are read as polygons."""
    for split in data.splits.values():
        if len(split.index.points):
            yield from _polygon_findings(split)


def _polygon_findings(split: ScannedSplit) -> Iterator[Finding]:
    index = split.index
    lengths = np.diff(index.segment_offsets)  # (M,) points, 0 for a box
    is_polygon = lengths > 0
    if look_like_keypoints(index):
        yield from label_finding(
            split,
            lengths,
            is_polygon,
            lambda j: f"{lengths[j]} points",
            ("error", "keypoints", "rows look like boxes with keypoints, but are read as polygons"),
            "Add kpt_shape: [number of keypoints, 2 or 3] to the data set YAML.",
        )
        return
    thickness = flatness(index.points, index.segment_offsets)
    yield from label_finding(
        split,
        -thickness,
        is_polygon & (thickness < FLAT),
        lambda j: f"{lengths[j]} points",
        ("warning", "flat-polygon", "polygons have all points on a line"),
        "Draw them again: they have no area to make a mask from.",
    )
    crossings = count_crossings(index.points, index.segment_offsets, image_sides(split))
    yield from label_finding(
        split,
        crossings,
        crossings > 0,
        lambda j: f"{lengths[j]} points, crossings: {crossings[j]}",
        ("note", "crossed-polygon", "polygons cross themselves"),
        "Look at them: often points are in a wrong order. Masks made from them have holes or wrong parts.",
    )
    fill = fill_shares(index.points, index.segment_offsets, index.labels)
    rectangle = is_polygon & (lengths <= 5) & (fill >= RECTANGLE)
    if rectangle.sum() >= OFTEN * is_polygon.sum():
        yield from label_finding(
            split,
            fill,
            rectangle,
            lambda j: f"{lengths[j]} points",
            ("note", "rectangle", "polygons are rectangles"),
            "They say no more than boxes. With copy_paste in the hyperparameters the background is pasted, too.",
            {"share": float(rectangle.sum() / is_polygon.sum())},
        )


def flatness(points: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the spread (M,) of each polygon's points across its main direction, by that along it, 1 for a box row.

    Areas would not do: outlines of several parts are joined to one, and areas of parts may cancel each other.
    """
    lengths = np.diff(offsets)
    shares = np.ones(len(lengths))
    found = np.flatnonzero(lengths)  # (K,)
    if not len(found):
        return shares
    starts, counts = offsets[:-1][found], lengths[found]
    means = np.add.reduceat(points.astype(np.float64), starts) / counts[:, None]
    x, y = (points - np.repeat(means, counts, axis=0)).T
    xx, yy, xy = (np.add.reduceat(product, starts) for product in (x * x, y * y, x * y))
    middle, root = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)  # the eigenvalues are middle - root and middle + root
    shares[found] = np.sqrt((middle - root).clip(0) / np.maximum(middle + root, 1e-30))
    return shares


def fill_shares(points: np.ndarray, offsets: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the share (M,) of its bounding box that each polygon fills, 0 for a box row.

    The area is that of the shoelace formula: parts on both sides of a crossing cancel each other.
    """
    lengths = np.diff(offsets)
    shares = np.zeros(len(labels))
    found = np.flatnonzero(lengths)  # (K,)
    if not len(found):
        return shares
    following = np.arange(1, len(points) + 1)
    following[offsets[1:][found] - 1] = offsets[:-1][found]  # the last point of each is followed by its first
    start = np.repeat(points[offsets[:-1][found]], lengths[found], axis=0)
    near = points.astype(np.float64) - start  # small numbers lose no digits
    x, y = near.T
    crosses = x * (points[following] - start)[:, 1] - (points[following] - start)[:, 0] * y
    areas = np.abs(np.add.reduceat(crosses, offsets[:-1][found])) / 2
    shares[found] = areas / labels[found, 3:].astype(np.float64).prod(1)
    return shares
