"""Views of images: which there are, how often they are drawn, and the labels that each shows."""

from itertools import product

import numpy as np
import pytest

from utils.datasets.label_index import Counts, LabelIndex, offsets_of
from utils.datasets.views import MIN_VISIBLE, cut_into_views
from utils.images.polygon_clip import clip_polygon, polygon_area
from utils.images.tiles import Tiling

TILING = Tiling(100, 0.2)


def index_of(images: list, *, ignored=()) -> LabelIndex:
    """Return the index of images ((height, width), labels). A label is class, x1, y1, x2, y2 in pixels or a polygon."""
    labels, points, lengths = [], [], []
    for (height, width), rows in images:
        for row in rows:
            polygon = np.array(row) if isinstance(row[0], tuple) else np.zeros((0, 2))
            corners = [0, *polygon.min(0), *polygon.max(0)] if len(polygon) else row
            class_index, x1, y1, x2, y2 = corners
            labels.append([class_index, (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width,
                           (y2 - y1) / height])  # fmt: skip
            points.append(polygon / [width, height])
            lengths.append(len(polygon))
    return LabelIndex(
        [f"{k}.jpg" for k in range(len(images))],
        np.array([shape for shape, _ in images], np.int32),
        np.array(labels, np.float32).reshape(-1, 5),
        offsets_of([len(rows) for _, rows in images]),
        np.concatenate([np.zeros((0, 2)), *points]).astype(np.float32),
        offsets_of(lengths),
        Counts(len(images)),
        [],
        ignored=np.array([row for _, row in ignored], np.float32).reshape(-1, 5),
        ignored_images=np.array([image for image, _ in ignored], np.int64),
    )


def in_pixels(views: LabelIndex, v: int) -> np.ndarray:
    """Return the labels (n, 5) of a view as class, x1, y1, x2, y2 in pixels of its image."""
    x1, y1, x2, y2 = views.views.windows[v].tolist()
    rows, size = views.boxes(v).astype(np.float64), np.array([x2 - x1, y2 - y1])
    centre, half = rows[:, 1:3] * size + (x1, y1), rows[:, 3:5] * size / 2
    return np.concatenate([rows[:, :1], centre - half, centre + half], 1)


def test_whole_image_then_its_tiles():
    image = ((100, 180), [(1, 10, 20, 30, 40), (2, 150, 50, 190, 60)])  # the last reaches out of the image
    views, kinds = cut_into_views(index_of([image, ((60, 100), []), image]), TILING)
    assert views.views.windows.tolist() == [
        [0, 0, 180, 100], [0, 0, 100, 100], [80, 0, 180, 100],
        [0, 0, 100, 60],  # no larger than a tile: one view
        [0, 0, 180, 100], [0, 0, 100, 100], [80, 0, 180, 100],
    ]  # fmt: skip
    assert views.views.images.tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert list(views.paths) == ["0.jpg"] * 3 + ["1.jpg"] + ["2.jpg"] * 3 and views.paths[1:4][-1] == "1.jpg"
    assert views.shapes.tolist() == [[100, 180], [100, 100], [100, 100], [60, 100], [100, 180], [100, 100], [100, 100]]
    assert (kinds.whole, kinds.filled, kinds.empty, kinds.cut) == (3, 4, 0, 0) and views.draws.tolist() == [1] * 7
    assert views.boxes(0).tolist() == index_of([image]).boxes(0).tolist()  # of the whole image: unchanged
    np.testing.assert_allclose(in_pixels(views, 1), [[1, 10, 20, 30, 40]], atol=1e-4)
    np.testing.assert_allclose(in_pixels(views, 2), [[2, 150, 50, 180, 60]], atol=1e-4)  # within the image


def test_cut_boxes_keep_their_label_by_visible_share():
    boxes = [(0, 90, 0, 114, 10), (1, 92, 50, 123, 60), (2, 60, 80, 99, 90)]
    views, kinds = cut_into_views(index_of([((100, 180), boxes)]), TILING)
    # In the tile 0...100: 10 of 24 columns, 8 of 31, and all; in the tile 80...180 all, all, 19 of 39.
    np.testing.assert_allclose(
        in_pixels(views, 1), [[0, 90, 0, 100, 10], [1, 92, 50, 100, 60], [2, 60, 80, 99, 90]], atol=1e-4
    )
    np.testing.assert_allclose(
        in_pixels(views, 2), [[0, 90, 0, 114, 10], [1, 92, 50, 123, 60], [2, 80, 80, 99, 90]], atol=1e-4
    )
    assert MIN_VISIBLE == 0.25 and kinds.cut == 0
    views, kinds = cut_into_views(index_of([((100, 180), [(0, 95, 0, 175, 10)])]), TILING)
    assert len(views.boxes(1)) == 0 and (kinds.filled, kinds.empty, kinds.cut) == (1, 0, 1)
    assert views.draws.tolist() == [1, 0, 1]  # a piece without a label would be taught as background


@pytest.mark.parametrize("seed", range(8))
def test_labels_of_tiles_are_those_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(120, 400, 2))
    low = rng.uniform(0, 0.8, (12, 2)) * (width, height)
    boxes = [(int(rng.integers(3)), *a, *b) for a, b in zip(low, (low + rng.uniform(2, 90, (12, 2))))]
    views, _ = cut_into_views(index_of([((height, width), boxes)]), TILING)
    for v in range(1, len(views)):
        x1, y1, x2, y2 = views.views.windows[v].tolist()
        expected = []
        for class_index, left, top, right, bottom in boxes:
            right, bottom = min(right, width), min(bottom, height)
            seen = max(left, x1), max(top, y1), min(right, x2), min(bottom, y2)
            if seen[0] < seen[2] and seen[1] < seen[3]:
                share = (seen[2] - seen[0]) * (seen[3] - seen[1]) / ((right - left) * (bottom - top))
                if share >= MIN_VISIBLE:
                    expected.append([class_index, *seen])
        np.testing.assert_allclose(in_pixels(views, v), np.reshape(expected, (-1, 5)), atol=1e-3)


def test_outlines_are_clipped_and_their_boxes_fit_them():
    triangle = [(60, 10), (140, 10), (60, 90)]
    views, _ = cut_into_views(index_of([((100, 180), [triangle, (1, 0, 0, 10, 10)])]), TILING)
    for v, (x1, x2) in ((1, (0, 100)), (2, (80, 180))):
        outlined = views.polygons(v)[0].astype(np.float64) * 100 + (x1, 0)
        part = clip_polygon(np.array(triangle), np.array([x1, 0, x2, 100]))
        assert polygon_area(outlined) == pytest.approx(polygon_area(part), abs=0.01)
        np.testing.assert_allclose(in_pixels(views, v)[0, 1:], [*part.min(0), *part.max(0)], atol=1e-3)
    assert in_pixels(views, 2)[0].round(3).tolist() == [0, 80, 10, 140, 70]  # lower than the box, which ends at 90
    assert [len(polygon) for polygon in views.polygons(1)] == [4, 0]  # one for each label
    slim = [(10, 10), (90, 10), (90, 12), (30, 12), (30, 90), (10, 90)]  # its box is seen by half, it is not
    views, kinds = cut_into_views(index_of([((100, 180), [[(x + 70, y) for x, y in slim]])]), TILING)
    assert kinds.filled == 2 and len(views.boxes(2)) == 1


def test_empty_tiles_are_drawn_as_often_as_those_with_objects():
    views, kinds = cut_into_views(index_of([((100, 500), [(0, 5, 5, 15, 15)]), ((100, 500), [])]), TILING)
    assert (kinds.whole, kinds.filled, kinds.empty, kinds.empty_drawn) == (2, 1, 11, 1)
    assert views.epoch_size == 4 and views.draws[[0, 1, 7]].tolist() == [1, 1, 1]
    np.testing.assert_allclose(views.draws[[2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13]], 1 / 11)


def test_tiles_that_show_ignored_regions_are_never_drawn_as_empty():
    ignored = [(1, [0, 0.9, 0.5, 0.1, 0.5])]
    views, kinds = cut_into_views(
        index_of([((100, 180), [(0, 5, 5, 15, 15)]), ((100, 180), [])], ignored=ignored), TILING
    )
    assert (kinds.filled, kinds.empty, kinds.cut) == (1, 2, 1) and views.draws[-1] == 0


def test_every_object_is_whole_in_a_tile_if_it_is_no_larger_than_the_overlap():
    starts = product(range(0, 381, 19), range(0, 281, 17))
    boxes = [(0, x, y, x + 20, y + 20) for x, y in starts]
    views, _ = cut_into_views(index_of([((300, 400), boxes)]), TILING)
    whole = {tuple(row.round().astype(int)) for v in range(1, len(views)) for row in in_pixels(views, v)}
    assert set(boxes) <= whole
