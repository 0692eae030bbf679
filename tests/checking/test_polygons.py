"""Findings on rows that are read as polygons."""

import numpy as np
import pytest
from scanned_sets import findings_of, places, scan_rows

from utils.checking.polygons import check_polygons, fill_shares, flatness
from utils.datasets.label_index import offsets_of

TRIANGLE = "0 .1 .1 .5 .1 .3 .5\n"
RECTANGLE = "0 .1 .1 .5 .1 .5 .5 .1 .5\n"


@pytest.mark.parametrize(
    "rows, checks",
    [
        ("0 .5 .5 .2 .2\n", []),
        (TRIANGLE, []),
        (TRIANGLE + TRIANGLE.replace(".1", ".2") + RECTANGLE, []),  # one of three is a rectangle
        (TRIANGLE + RECTANGLE, ["rectangle"]),
        (TRIANGLE + "0 .1 .1 .5 .5 .3 .3\n", ["flat-polygon"]),
        (TRIANGLE + "0 .1 .1 .5 .5 .5 .1 .1 .5\n", ["crossed-polygon"]),  # not flat, though its areas cancel each other
    ],
)
def test_polygons_that_are_none(tmp_path, rows, checks):
    found = findings_of(check_polygons, scan_rows(tmp_path, rows))
    assert list(found) == checks
    assert all(places(finding) == ["0.txt:2"] for finding in found.values())


def test_rows_of_keypoints_are_an_error(tmp_path):
    rows = "".join(f"0 .5 .5 .{k} .{k} .5 .5 .52 .52\n" for k in range(20, 30))
    found = findings_of(check_polygons, scan_rows(tmp_path, rows))
    assert list(found) == ["keypoints"] and found["keypoints"].count == 10 and "kpt_shape" in found["keypoints"].advice


def test_the_thickness_of_a_polygon_by_its_length():
    rectangle = np.array([[0.1, 0.1], [0.5, 0.1], [0.5, 0.2], [0.1, 0.2]])
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    line = np.array([[0.1, 0.2], [0.2, 0.3], [0.4, 0.5]])
    points = np.concatenate([rectangle, rectangle @ turn, line]).astype(np.float32)
    np.testing.assert_allclose(flatness(points, offsets_of([4, 0, 4, 3])), [0.25, 1, 0.25, 0], atol=1e-3)
    assert flatness(points[:0], offsets_of([0, 0])).tolist() == [1, 1]


def test_the_share_of_its_box_that_a_polygon_fills():
    polygons = [[], [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5], [0.1, 0.5]], [[0.2, 0.2], [0.4, 0.2], [0.3, 0.6]], []]
    points = np.array([point for polygon in polygons for point in polygon], np.float32)
    labels = np.array([[0, 0, 0, 1, 1], [0, 0, 0, 0.4, 0.4], [0, 0, 0, 0.2, 0.4], [0, 0, 0, 1, 1]], np.float32)
    shares = fill_shares(points, offsets_of([len(polygon) for polygon in polygons]), labels)
    np.testing.assert_allclose(shares, [0, 1, 0.5, 0], atol=1e-6)
    assert fill_shares(points[:0], offsets_of([0, 0]), labels[:2]).tolist() == [0, 0]
