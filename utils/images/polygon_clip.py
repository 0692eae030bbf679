"""Polygons clipped to a window."""

import numpy as np


def clip_polygon(polygon: np.ndarray, window_xyxy: np.ndarray) -> np.ndarray:
    """Return the part (m, 2) float64 of a polygon (k, 2) inside a window (4,), (0, 2) if there is none.

    The window's sides clip it one after another (Sutherland and Hodgman, 1974). If several parts are left of a concave
    polygon, edges along the window's border join them.
    """
    points = np.asarray(polygon, np.float64)
    for axis in (0, 1):
        points = _clip_side(points, axis, window_xyxy[axis], sign=1)
        points = _clip_side(points, axis, window_xyxy[axis + 2], sign=-1)
    return _without_spikes(points)


def polygon_area(polygon: np.ndarray) -> float:
    """Return the area that a polygon (k, 2) encloses, 0 for fewer than three points."""
    if len(polygon) < 3:
        return 0.0
    x, y = (np.asarray(polygon, np.float64) - polygon[0]).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _clip_side(points: np.ndarray, axis: int, limit: float, *, sign: int) -> np.ndarray:
    """Return the part of a polygon where `sign` x its coordinate is at least `sign` x `limit`."""
    if not len(points):
        return points
    depth = sign * (points[:, axis] - limit)  # inside is 0 or more
    if depth.min() >= 0:
        return points
    before, depth_before = np.roll(points, 1, axis=0), np.roll(depth, 1)
    crosses = (depth >= 0) != (depth_before >= 0)
    share = np.divide(depth_before, depth_before - depth, out=np.zeros(len(points)), where=crosses)[:, None]
    crossings = before + share * (points - before)
    crossings[:, axis] = limit
    both = np.stack([crossings, points], axis=1).reshape(-1, 2)  # where an edge crosses, then where it ends
    return both[np.stack([crosses, depth >= 0], axis=1).ravel()]


def _without_spikes(points: np.ndarray) -> np.ndarray:
    """Return a polygon without points at which it turns back on itself, which enclose nothing, and without repeats."""
    kept: list[np.ndarray] = list(points)
    k = 0
    while len(kept) >= 3 and k < len(kept):
        before, here, after = kept[k - 1], kept[k], kept[(k + 1) % len(kept)]
        first, second = here - before, after - here
        if first[0] * second[1] == first[1] * second[0] and first @ second <= 0:
            del kept[k]
            k = max(k - 2, 0)
        else:
            k += 1
    return np.array(kept) if len(kept) >= 3 else np.zeros((0, 2))
