"""Polygons whose outline crosses itself.

Legend: M labels of a split, P points, E edges of polygons.
"""

from collections.abc import Iterator

import numpy as np

MAX_POINTS = 5000  # of a polygon that is searched: the time of an odd one grows with their square, to a second
OVERSHOOT_PX = 0.1  # that both edges of a crossing reach beyond each other; less is rounding
CHUNK = 500_000  # points at a time


def count_crossings(points: np.ndarray, offsets: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Return how often the outline (M,) of each polygon crosses itself, 0 for a box row.

    Points (P, 2) are in 0…1 of the `sides` (M, 2) of their image in pixels.

    Polygons of several parts count 0: readers and converters join the parts by an edge there and back, which may cross
    others. So do those of more than MAX_POINTS points.
    """
    lengths = np.diff(offsets)
    counts = np.zeros(len(lengths), np.int64)
    searched = np.flatnonzero((lengths > 3) & (lengths <= MAX_POINTS))  # a triangle cannot cross itself
    for labels in np.array_split(searched, int(lengths[searched].sum()) // CHUNK + 1):
        counts += np.bincount(_crossed_labels(points, offsets, sides, labels), minlength=len(counts))
    for label in np.flatnonzero(counts):
        if has_bridge(points[offsets[label] : offsets[label + 1]]):
            counts[label] = 0
    return counts


def has_bridge(points: np.ndarray) -> bool:
    """Return whether an edge of a polygon (P, 2) is run back over, as between joined parts."""
    corners = [tuple(point) for point in points.tolist()]
    seen = set()
    for start, end in zip(corners, corners[1:] + corners[:1]):
        if (end, start) in seen:
            return True
        seen.add((start, end))
    return False


def _crossed_labels(points: np.ndarray, offsets: np.ndarray, sides: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the label of each crossing. Of a polygon, each edge is compared with those that start in its reach of x.

    In the order of their left ends these are the next ones, so that few pairs of edges are ever made. A polygon whose
    edges are long in x, such as a hatched area, is turned.
    """
    is_searched = np.isin(np.arange(len(offsets) - 1), labels)
    first = np.flatnonzero(np.repeat(is_searched, np.diff(offsets)))  # (E,) points
    ids = np.repeat(labels, np.diff(offsets)[labels])
    second = np.where(first + 1 < offsets[ids + 1], first + 1, offsets[ids])
    starts, ends = points[first] * sides[ids], points[second] * sides[ids]
    turned = np.isin(ids, _wide(ids, starts, ends))
    starts[turned], ends[turned] = starts[turned, ::-1], ends[turned, ::-1]
    order = np.lexsort([np.minimum(starts[:, 0], ends[:, 0]), ids])
    ids, starts, ends = ids[order], starts[order], ends[order]
    pairs = _near(ids, starts, ends)
    found = [ids[one[_cross(starts[one], ends[one], starts[two], ends[two])]] for one, two in pairs]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _wide(ids: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the labels of the polygons whose edges (E, 2), in the order of `ids`, overlap more in x than in y."""
    labels, first = np.unique(ids, return_index=True)
    if not len(labels):
        return labels
    extent = np.maximum.reduceat(starts, first) - np.minimum.reduceat(starts, first)
    overlaps = np.add.reduceat(np.abs(ends - starts), first) / np.maximum(extent, 1e-9)
    return labels[overlaps[:, 0] > overlaps[:, 1]]


def _near(ids: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of edges of one polygon whose bounding boxes overlap. Edges are in the order of their left ends."""
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    alive, distance = np.arange(len(ids)), 1
    while len(alive):
        alive = alive[alive + distance < len(ids)]
        other = alive + distance
        near = (ids[alive] == ids[other]) & (low[other, 0] <= high[alive, 0])
        alive, other = alive[near], other[near]
        level = (low[other, 1] <= high[alive, 1]) & (low[alive, 1] <= high[other, 1])
        yield alive[level], other[level]
        distance += 1


def _cross(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return whether the edges a-b and c-d (E, 2) cross. Edges that only touch do not."""
    return _separates(a, b, c, d) & _separates(c, d, a, b)


def _separates(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return whether the points c and d lie on the two sides of the line through a and b, not nearer than rounding."""
    along = b - a
    limit = OVERSHOOT_PX * np.hypot(along[:, 0], along[:, 1])
    one, other = ((along[:, 0] * (p - a)[:, 1] - along[:, 1] * (p - a)[:, 0]) for p in (c, d))
    return (np.minimum(one, other) < -limit) & (np.maximum(one, other) > limit)
