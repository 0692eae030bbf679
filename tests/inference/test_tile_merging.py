"""Merging of tiles: on made-up scenes and with an ideal detector, every object is found once."""

import numpy as np
import pytest

from utils.images.tiles import Tiling, visible_share
from utils.inference.nms_settings import NmsSettings
from utils.inference.tile_merging import merge_views

NMS = NmsSettings(conf_thres=0.25, iou_thres=0.45, max_det=1000)


def see(objects, view, rng, *, least_share=0.15, least_side=0.0, noise=0.0):
    """Return what an ideal detector finds in a view: each object (n, 5) xyxy, class, clipped to what is visible.

    It misses objects that are visible by less than a share, or shorter than a side. Confidences are random.
    """
    sides = objects[:, 2:4] - objects[:, :2]
    seen = (visible_share(objects[:, :4], view) >= least_share) & (sides.max(axis=1) >= least_side)
    boxes = objects[seen, :4].clip(np.tile(view[:2], 2), np.tile(view[2:], 2))
    boxes = (boxes + rng.uniform(-noise, noise, boxes.shape)).clip(np.tile(view[:2], 2), np.tile(view[2:], 2))
    confidence = rng.uniform(0.25, 1, seen.sum())
    return np.column_stack((boxes, confidence, objects[seen, 4])).astype(np.float32)


def merge(objects, shape, tiling, rng, *, whole_sees=0.0, settings=NMS, **eyes):
    """Return the merged detections. The whole image shows objects of at least `whole_sees` pixels only."""
    tiles = tiling.grid(shape)
    whole = see(objects, np.array([0, 0, shape[1], shape[0]]), rng, least_side=whole_sees, **eyes)
    found = [whole, *(see(objects, tile, rng, **eyes) for tile in tiles)]
    return merge_views(found, tiles, shape, nms=settings, margin=2.0, slack=4.0)


def assert_found_once(objects, merged, least_iou):
    """Check that detections and objects are pairs of one class."""
    low = np.maximum(objects[:, None, :2], merged[None, :, :2])
    high = np.minimum(objects[:, None, 2:4], merged[None, :, 2:4])
    shared = (high - low).clip(0).prod(axis=2)
    area_a, area_b = ((rows[:, 2:4] - rows[:, :2]).prod(axis=1) for rows in (objects, merged))
    pairs = (shared / (area_a[:, None] + area_b - shared) >= least_iou) & (objects[:, 4:5] == merged[:, 5])
    assert len(objects) == len(merged), (objects.tolist(), merged.tolist())
    assert (pairs.sum(axis=0) == 1).all() and (pairs.sum(axis=1) == 1).all(), (objects.tolist(), merged.tolist())


@pytest.mark.parametrize("whole_sees", [0, 100, 1e9], ids=["all", "the large", "nothing"])
def test_an_object_of_any_size_and_position_is_found_once(whole_sees):
    """Move one object of every size over the seams of 3 x 3 tiles, whatever the whole image shows of it."""
    rng = np.random.default_rng(0)
    for width in (3, 8, 20, 49, 51, 90, 130, 250, 390):
        for height in (4, 18, 50, 75, 160, 399):
            for _ in range(3):
                left, top = rng.integers(0, 400 - width + 1), rng.integers(0, 400 - height + 1)
                objects = np.array([[left, top, left + width, top + height, 1.0]])
                merged = merge(objects, (400, 400), Tiling(200, 0.25), rng, whole_sees=whole_sees, least_share=0.05)
                assert_found_once(objects, merged, 0.95)


def test_positions_along_a_seam():
    rng = np.random.default_rng(1)
    for side in (5, 12, 21, 40):
        for left in range(side % 2, 200 - side, 2):
            objects = np.array([[left, 40, left + side, 40 + side, 0.0]])
            merged = merge(objects, (100, 200), Tiling(100, 0.2), rng, whole_sees=15, least_share=0.1)
            assert_found_once(objects, merged, 0.95)


def scatter(rng, shape, count, sides):
    """Return objects (n, 5) of two classes that do not overlap."""
    objects = []
    for _ in range(20 * count):
        width, height = rng.integers(*sides, 2)
        if width >= shape[1] or height >= shape[0]:
            continue
        left, top = rng.integers(0, shape[1] - width), rng.integers(0, shape[0] - height)
        box = np.array([left, top, left + width, top + height, rng.integers(2)], np.float64)
        if all(box[0] >= o[2] or box[2] <= o[0] or box[1] >= o[3] or box[3] <= o[1] for o in objects):
            objects.append(box)
        if len(objects) == count:
            break
    return np.array(objects)


@pytest.mark.parametrize("overlap", [0.2, 0.35, 0.5])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_crowded_scenes(overlap, noise):
    """Fill scenes with objects of all sizes, as near to each other as they come. Boxes are a pixel off with noise."""
    rng = np.random.default_rng(2)
    for _ in range(12):
        shape = tuple(rng.integers(150, 700, 2).tolist())
        objects = scatter(rng, shape, 40, (12, rng.integers(20, 260)))
        tiling = Tiling(int(rng.integers(120, 300)), overlap)
        merged = merge(objects, shape, tiling, rng, whole_sees=rng.choice([0, 30]), least_share=0.1, noise=noise)
        assert_found_once(objects, merged, 0.95 if noise == 0 else 0.6)
