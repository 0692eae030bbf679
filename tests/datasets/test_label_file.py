"""Label files: valid rows are read to the last digit, invalid rows are skipped and named."""

import tracemalloc

import numpy as np
import pytest

from utils.datasets.label_file import parse_labels


@pytest.mark.parametrize("data, boxes", [
    (b"", []),
    (b"\n \n\t\n", []),
    (b"1 .5 .5 .2 .4", [(1, 0.5, 0.5, 0.2, 0.4)]),
    (b"1 .5 .5 .2 .4\r\n0 .1 .1 .1 .1\r\n", [(1, 0.5, 0.5, 0.2, 0.4), (0, 0.1, 0.1, 0.1, 0.1)]),  # CRLF
    (b"\xef\xbb\xbf1 .5 .5 .2 .4", [(1, 0.5, 0.5, 0.2, 0.4)]),  # byte order mark
    (b"1.0 5e-1 .5 .2 .4", [(1, 0.5, 0.5, 0.2, 0.4)]),  # programs write classes as floats
    (b"0 .95 .5 .3 .2", [(0, 0.95, 0.5, 0.3, 0.2)]),  # may extend beyond the image: each number is in 0...1
    (b"0 1.00000001 .5 1.00000001 .2", [(0, 1.00000001, 0.5, 1.00000001, 0.2)]),  # 1 as a float32
    (b"0 .1 .1 .3 .1 .3 .4 .1 .4", [(0, 0.2, 0.25, 0.2, 0.3)]),  # polygon: its bounding box
    (b"0 1.0000004 .5 1.00004 .2", [(0, 1, 0.5, 1, 0.2)]),  # rounding errors are clipped
    (b"0 -1e-7 .5 .2 .2", [(0, 0, 0.5, 0.2, 0.2)]),
    (b"0 .9 .1 1.05 .1 1.05 .4", [(0, 0.975, 0.25, 0.15, 0.3)]),  # polygon that extends beyond the image
])  # fmt: skip
def test_good_rows(data, boxes):
    parsed = parse_labels(data)
    assert parsed.problems == []
    np.testing.assert_allclose(np.array(parsed.boxes).reshape(-1, 5), np.array(boxes).reshape(-1, 5), atol=1e-9)


@pytest.mark.parametrize("row, reason", [
    (b"0 nan .5 .2 .2", "'nan' is not a finite number"),
    (b"0 .5 .5 inf .2", "'inf' is not a finite number"),
    (b"0 .5 .5 1e400 .2", "'1e400' is not a finite number"),  # overflows to infinity
    (b"0 .5 .5 0_1 .2", "'0_1' is not a finite number"),  # Python would read it
    ("0 .5 .5 .\uff12 .2".encode(), "is not a finite number"),  # a full-width digit
    (b"0 .5 .5 .2 \x00\xff", "is not a finite number"),
    (b"cat .5 .5 .2 .2", "'cat' is not a finite number"),
    (b"0 .5 .5 .2", "4 numbers"),
    (b"0 .5 .5 .2 .2 .9", "6 numbers"),
    (b"0 .5 .5 .2 .2 .9", "remove a confidence behind the box"),
    (b"0 .1 .1 .3 .1 .3 .4 .1", "8 numbers"),  # half a point
    (b"0", "1 numbers"),
    (b"0,.5,.5,.2,.2", "spaces, not by commas"),
    (b"-1 .5 .5 .2 .2", "class -1"),
    (b".5 .5 .5 .2 .2", "class 0.5"),
    (b"0 320 240 64 48", "divide pixels"),
    (b"0 20 30 64 48", "corners (x1 y1 x2 y2) in pixels"),
    (b"0 1.000400003 .5 .2 .2", "x y w h = 1.0004 0.5 0.2 0.2 is not"),
    (b"0 1.0002000 .5 .2 .2", "x y w h = 1.0002 "),  # never printed as 1
    (b".5 .5 .2 .2 1", "the class is the first number"),
    (b"0 .5 .5 -.2 .2", "not within 0...1"),
    (b"0 .5 1.001 .2 .2", "not within 0...1"),
    (b"0 .5 .5 0 .2", "no area"),
    (b"0 .5 .5 .2 1e-50", "no area"),  # 0 as a float32
    (b"0 .1 .1 .3 .1 .2 .1", "no area"),  # a flat polygon
    (b"0 .1 .1 .3 nan .2 .1", "'nan'"),
    (b"0 .1 .1 30 .1 .2 .4", "not within 0...1"),
    (b"0 1e308 1e308 .2 .2", "divide pixels"),  # finite, though their sum is not
])  # fmt: skip
def test_a_bad_row_is_skipped_and_named_and_its_neighbours_stay(row, reason):
    parsed = parse_labels(b"0 .5 .5 .2 .2\n" + row + b"\n1 .5 .5 .2 .2\n")
    assert [box[0] for box in parsed.boxes] == [0, 1]
    [(number, text)] = parsed.problems
    assert number == 2 and reason in text


def test_an_endless_row_is_skipped_before_it_is_split():
    tracemalloc.start()
    parsed = parse_labels(b"0 .5 .5 .2 .2\n" + b"0 " * (4 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert parsed.problems == [(2, "a row of 8388608 bytes")] and len(parsed.boxes) == 1
    assert peak < 20 << 20  # split it would take thirty times its size


def test_each_row_is_read_by_its_own_length():
    parsed = parse_labels(b"0 .1 .1 .3 .1 .3 .4\n1 .5 .5 .2 .2\n")
    np.testing.assert_allclose(parsed.boxes, [(0, 0.2, 0.25, 0.2, 0.3), (1, 0.5, 0.5, 0.2, 0.2)], atol=1e-9)
    assert [len(polygon) for polygon in parsed.polygons] == [6, 0]


def test_repeated_rows_are_skipped_but_not_other_polygons_with_the_same_box():
    rows = b"1 .5 .5 .2 .2\n0 .5 .5 .2 .2\n1 .5 .5 .2 .2\n2 .1 .1 .3 .1 .3 .4\n2 .1 .1 .3 .4 .1 .4\n"
    parsed = parse_labels(rows)
    assert [box[0] for box in parsed.boxes] == [1, 0, 2, 2]
    assert [number for number, _ in parsed.problems] == [3]


@pytest.mark.parametrize(
    "values, row, box",
    [
        (8, b"0 .8 .8 .1 .1 .76 .78 .84 .78 .84 .83 .76 .83", (0, 0.8, 0.8, 0.1, 0.1)),  # kpt_shape [4, 2]
        (6, b"1 .8 .8 .1 .1 .76 .78 2 0 0 0", (1, 0.8, 0.8, 0.1, 0.1)),  # kpt_shape [2, 3], with visibility
        (6, b"1 .8 .8 .1 .1", (1, 0.8, 0.8, 0.1, 0.1)),  # without keypoints
        (6, b"1 .1 .1 .3 .1 .3 .4", "7 numbers in the row: with kpt_shape it has 5 or 11"),  # no polygon
    ],
)
def test_keypoints_behind_a_box_are_no_polygon(values, row, box):
    parsed = parse_labels(row, values)
    if isinstance(box, tuple):
        assert parsed == ([box], [()], [])
    else:
        assert parsed == ([], [], [(1, box)])
