"""Findings on boxes one by one. The images have 96 x 64 pixels, and so has the planned training."""

import numpy as np
import pytest
from scanned_sets import findings_of, places, scan_rows

from utils.checking.boxes import check_boxes, edges

ORDINARY = "0 .5 .5 .4 .4\n1 .3 .4 .2 .3\n"


@pytest.mark.parametrize(
    "row, checks",
    [
        ("", []),
        ("0 .5 .5 .3 .3", []),
        ("0 .1 .5 .2 .3", []),  # touches the border, as few do
        ("0 .1 .5 .215 .3", []),  # leaves it by less than a pixel
        ("0 .1 .5 .3 .3", ["leaves-image"]),
        ("0 .5 .9 .3 .3", ["leaves-image"]),
        ("0 .5 .5 .06 .09", ["tiny-box"]),  # 5.8 x 5.8 pixels
        ("0 .5 .5 .06 .2", []),  # thin, but long
        ("0 .5 .5 .01 .01", ["speck", "tiny-box"]),
        ("0 .5 .5 .99 .99", ["giant-box"]),
        ("0 .01 .5 .02 .5", ["border-sliver"]),  # 1.9 x 32 pixels at the left border
        ("0 .3 .5 .02 .5", []),  # the same elsewhere: a pole
        ("0 .5 .01 .02 .02", ["tiny-box"]),  # at the border, but no sliver
    ],
)  # fmt: skip
def test_boxes_that_are_probably_wrong(tmp_path, row, checks):
    found = findings_of(check_boxes, scan_rows(tmp_path, ORDINARY * 1, *[ORDINARY] * 6, f"{ORDINARY}{row}\n"))
    assert sorted(found) == checks
    assert all(places(finding) == ["7.txt:3"] and finding.count == 1 for finding in found.values())


def test_many_tiny_boxes_are_a_warning_with_the_sizes_of_all_levels(tmp_path):
    rows = "0 .5 .5 .05 .05\n0 .2 .2 .14 .1\n0 .5 .5 .3 .3\n0 .5 .5 .6 .6\n"  # 4.8, 13.4, 28.8 and 57.6 pixels
    found = findings_of(check_boxes, scan_rows(tmp_path, rows))
    assert found["tiny-box"].level == "warning"
    assert list(found["tiny-box"].figures.values()) == [1, 2, 3]


def test_boxes_at_the_border_are_worth_a_note_where_they_are_many(tmp_path):
    found = findings_of(check_boxes, scan_rows(tmp_path, "0 .1 .1 .2 .2\n0 .5 .5 .2 .2\n0 .5 .5 .4 .4\n"))
    assert list(found) == ["border-box"] and found["border-box"].examples[0].detail == "2 sides"


def test_corners_in_fractions_are_an_error(tmp_path):
    rows = "".join(f"0 {k / 100} .1 {0.5 + k / 25} .95\n" for k in range(1, 11))
    found = findings_of(check_boxes, scan_rows(tmp_path, rows))
    assert found["corners"].level == "error" and found["corners"].count == 10


def test_the_distances_from_the_border(tmp_path):
    split = scan_rows(tmp_path, "0 .5 .25 .5 .5\n0 .1 .5 .4 1\n").splits["train"]
    np.testing.assert_allclose(edges(split), [[24, 0, 24, 32], [-9.6, 0, 67.2, 0]], atol=1e-4)
