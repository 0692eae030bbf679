"""Merging of what a network finds in a whole image and in its tiles, so that every object is reported once.

A box that touches a border of its tile inside the image is a piece: the object may continue beyond. Pieces are dropped
where a larger box from another view covers them, and joined where two views agree on what both see. A box of the whole
image gives way to one of a tile that shows the entire object, since that is finer. Overlapping boxes of the rest are
suppressed as always. Only boxes of one class meet, or all if agnostic.

Legend: V views (the whole image, then its tiles), n boxes of all views, p pieces, c other boxes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from utils.inference.nms_settings import NmsSettings
from utils.nms import suppress_rows

COVERED = 0.7  # share of a piece's area within a larger box: both are of one object
AGREED = 0.5  # IoU of two boxes in the part of the image that both views see: both are of one object
# Least ratio of confidences at which a box speaks for a piece. At detect.py's default threshold every box does. At that
# of val.py, where a view has hundreds of boxes by chance, a piece of an object is no prey of theirs.
TRUSTED = 0.25
OUTWARD = np.array([-1, -1, 1, 1])  # direction of left, top, right, bottom


class Pool(NamedTuple):
    """Boxes of all views."""

    rows: np.ndarray  # (n, 6) x1, y1, x2, y2 in pixels of the image, confidence, class
    group: np.ndarray  # (n,) class, or 0 if agnostic
    view: np.ndarray  # (n,) index of the view, V for boxes that were joined
    is_cut: np.ndarray  # (n, 4) bool: left, top, right, bottom touch a border of the tile inside the image

    @property
    def is_piece(self) -> np.ndarray:
        """True (n,) for boxes whose object may continue beyond their tile."""
        return np.any(self.is_cut, axis=1)

    def take(self, chosen: np.ndarray) -> "Pool":
        """Return the boxes that an index or a mask chooses."""
        return Pool(*(values[chosen] for values in self))


def merge_views(
    found: Sequence[np.ndarray],
    tiles_xyxy: np.ndarray,
    shape: tuple[int, int],
    *,
    nms: NmsSettings,
    margin: float,
    slack: float,
) -> np.ndarray:
    """Return the objects (n, 6) of an image of a height and width, highest confidence first.

    found: detections of the whole image, then of each tile (V-1, 4), as rows (m, 6) in pixels of the image. nms: gives
    the IoU threshold, the most detections, and whether classes count. margin: pixels between a box and a border of its
    tile within which it touches the border. slack: pixels by which sides of boxes in the whole image may be wrong.
    """
    whole = np.array([[0, 0, shape[1], shape[0]]])
    views = np.concatenate((whole, tiles_xyxy, whole)).astype(np.float64)  # the last is that of joined boxes
    pool = _pool(found, views, agnostic=nms.agnostic, margin=margin)
    pool = _prefer_tiles(pool, slack=slack)
    pool = _without_covered(pool, views, ~pool.is_piece, margin=margin)
    pool = _join_pieces(pool, views)
    pool = _without_covered(pool, views, np.ones(len(pool.rows), bool), margin=margin)
    rows = torch.from_numpy(pool.rows.astype(np.float32))
    return suppress_rows(rows, nms.iou_thres, agnostic=nms.agnostic, max_det=nms.max_det).numpy()


def _pool(found: Sequence[np.ndarray], views: np.ndarray, *, agnostic: bool, margin: float) -> Pool:
    """Return the boxes of all views."""
    rows = np.concatenate(list(found)).astype(np.float64)
    view = np.repeat(np.arange(len(found)), [len(one) for one in found])
    touches = (views[view] - rows[:, :4]) * OUTWARD <= margin
    is_inner = (views[0] - views) * OUTWARD > 0  # (V+1, 4) borders of views that are not the image's
    return Pool(rows, rows[:, 5] * (not agnostic), view, touches & is_inner[view])


def _overlaps(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """Return the area that each pair of boxes (n, 4) and (m, 4) shares: (n, m)."""
    low, high = np.maximum(a_xyxy[:, None, :2], b_xyxy[:, :2]), np.minimum(a_xyxy[:, None, 2:4], b_xyxy[:, 2:4])
    return (high - low).clip(0).prod(axis=2)


def _areas(boxes_xyxy: np.ndarray) -> np.ndarray:
    return (boxes_xyxy[:, 2:4] - boxes_xyxy[:, :2]).clip(0).prod(axis=1)


def _touching_views(views: np.ndarray, view: int) -> np.ndarray:
    """Return True (V+1,) for the views that see a part of the same pixels as `view`, itself included."""
    return _overlaps(views[view : view + 1], views)[0] > 0


def _prefer_tiles(pool: Pool, *, slack: float) -> Pool:
    """Return the boxes without those of the whole image that a tile shows better, which gets the higher confidence."""
    rows, is_kept = pool.rows.copy(), np.ones(len(pool.rows), bool)
    fine = np.flatnonzero((pool.view > 0) & ~pool.is_piece)
    grown = rows[:, :4] + slack * OUTWARD
    for k in np.flatnonzero(pool.view == 0) if len(fine) else ():
        shared = _overlaps(grown[k : k + 1], grown[fine])[0]
        agreement = shared / (_areas(grown[k : k + 1]) + _areas(grown[fine]) - shared)
        trusted = rows[fine, 4] >= TRUSTED * rows[k, 4]
        same = fine[(agreement >= AGREED) & trusted & (pool.group[fine] == pool.group[k])]
        is_kept[k] = not len(same)
        rows[same, 4] = np.maximum(rows[same, 4], rows[k, 4])
    return pool._replace(rows=rows).take(is_kept)


def _without_covered(pool: Pool, views: np.ndarray, may_cover: np.ndarray, *, margin: float) -> Pool:
    """Return the boxes without the pieces that a larger box of another view covers, if it `may_cover` (n,).

    The larger box is grown by the margin: boxes of slivers are seldom exact.
    """
    grown = pool.rows[:, :4] + margin * OUTWARD
    is_kept, is_piece = np.ones(len(pool.rows), bool), pool.is_piece
    for view in np.unique(pool.view[is_piece]):
        pieces = np.flatnonzero(is_piece & (pool.view == view))
        others = np.flatnonzero(may_cover & (pool.view != view) & _touching_views(views, view)[pool.view])
        part, cover = pool.rows[pieces], pool.rows[others]
        area = _areas(part)[:, None]
        covers = (
            (pool.group[pieces][:, None] == pool.group[others])
            & (cover[:, 4] >= TRUSTED * part[:, 4:5])
            & (_areas(cover) > area)
            & (_overlaps(part, grown[others]) >= COVERED * area)
        )
        is_kept[pieces] = ~covers.any(axis=1)
    return pool.take(is_kept)


def _join_pieces(pool: Pool, views: np.ndarray) -> Pool:
    """Return the boxes, with the pieces of one object replaced by the box around them.

    It has their highest confidence. Its sides are those of the pieces that reach farthest, cut or not.
    """
    objects: dict[int, set[int]] = {}
    for pair in _agreeing_pieces(pool, views):
        members = set().union(*(objects.get(piece, {piece}) for piece in pair))
        objects.update(dict.fromkeys(members, members))
    if not objects:
        return pool
    joined = [
        _around(pool.take(np.array(sorted(members)))) for members in {id(one): one for one in objects.values()}.values()
    ]
    rows, is_cut = (np.stack(parts) for parts in zip(*joined, strict=True))
    rest = np.ones(len(pool.rows), bool)
    rest[list(objects)] = False
    kept = pool.take(rest)
    group = rows[:, 5] * pool.group.any()
    view = np.full(len(rows), len(views) - 1)
    return Pool(*(np.concatenate(pair) for pair in zip(kept, (rows, group, view, is_cut), strict=True)))


def _around(pieces: Pool) -> tuple[np.ndarray, np.ndarray]:
    """Return the row (6,) of the box around pieces, and which of its sides (4,) are cut."""
    low, high = pieces.rows[:, :2], pieces.rows[:, 2:4]
    farthest = np.concatenate((low.argmin(axis=0), high.argmax(axis=0)))
    sides = np.arange(4)
    best = pieces.rows[pieces.rows[:, 4].argmax(), 4:]
    return np.concatenate((pieces.rows[farthest, sides], best)), pieces.is_cut[farthest, sides]


def _agreeing_pieces(pool: Pool, views: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the pairs of pieces of two views that are each other's best match in the pixels that both views see."""
    is_piece = pool.is_piece
    pieces = {view: np.flatnonzero(is_piece & (pool.view == view)) for view in np.unique(pool.view[is_piece])}
    for view, own in pieces.items():
        for other in np.flatnonzero(_touching_views(views, view)):
            if other > view and other in pieces:
                theirs = pieces[other]
                agreement = _agreement(pool, own, theirs, views[view], views[other])
                best = agreement.argmax(axis=1)
                mutual = agreement.argmax(axis=0)[best] == np.arange(len(own))
                for k in np.flatnonzero(mutual & (agreement.max(axis=1) >= AGREED)):
                    yield int(own[k]), int(theirs[best[k]])


def _agreement(pool: Pool, own: np.ndarray, theirs: np.ndarray, view: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the IoU (p, c) of pieces of two views within the pixels that both see, 0 for those that may not be one."""
    a, b = pool.rows[own], pool.rows[theirs]
    low, high = np.maximum(view[:2], other[:2]), np.minimum(view[2:], other[2:])
    seen_a, seen_b = (rows[:, :4].clip(np.tile(low, 2), np.tile(high, 2)) for rows in (a, b))
    shared = _overlaps(seen_a, seen_b)
    union = _areas(seen_a)[:, None] + _areas(seen_b) - shared
    trusted = np.minimum(a[:, 4:5], b[:, 4]) >= TRUSTED * np.maximum(a[:, 4:5], b[:, 4])
    may_be_one = trusted & (pool.group[own][:, None] == pool.group[theirs])
    return np.divide(shared, union, out=np.zeros_like(shared), where=may_be_one & (union > 0))
