"""Findings on class ids and class names."""

import pytest
from scanned_sets import findings_of, places, scan, scan_rows, write_set

from utils.checking.classes import check_classes, similar_names

MANY = "".join(f"{k % 2} .5 .5 .{k + 10} .2\n" for k in range(40))


def test_classes_that_occur_often_have_no_finding(tmp_path):
    assert findings_of(check_classes, scan_rows(tmp_path, MANY)) == {}


def test_ids_beyond_the_names(tmp_path):
    found = findings_of(
        check_classes, scan_rows(tmp_path, MANY, "0 .5 .5 .1 .1\n2 .5 .5 .1 .1\n2 .5 .5 .2 .2\n9 .1 .1 .1 .1\n")
    )
    assert list(found) == ["unknown-class"] and found["unknown-class"].level == "error"
    assert places(found["unknown-class"]) == ["1.txt:2", "1.txt:3", "1.txt:4"]
    assert found["unknown-class"].figures == {"class 2": 2, "class 9": 1}


def test_classes_that_are_never_or_hardly_seen(tmp_path):
    splits = {"train": {"a.jpg": MANY, "b.jpg": "3 .5 .5 .2 .2\n"}, "val": {"c.jpg": "2 .5 .5 .2 .2\n"}}
    found = findings_of(check_classes, scan(write_set(tmp_path, splits, ["a", "b", "only", "few", "none"])))
    assert [example.detail for example in found["absent-class"].examples] == ["class 4 'none'"]
    details = [example.detail for example in found["rare-class"].examples]
    assert details == ["class 3 'few', boxes: 1"]


def test_nothing_is_said_of_the_classes_of_a_set_without_labels(tmp_path):
    assert findings_of(check_classes, scan_rows(tmp_path, "")) == {}


@pytest.mark.parametrize(
    "names, pairs",
    [
        ([], []),
        (["ship", "tree"], []),
        (["Car", "car"], [(0, 1)]),
        (["traffic light", "x", "traffic_light"], [(0, 2)]),
        (["apple", "apples"], [(0, 1)]),
        (["motorbike", "motorbyke", "motorbke"], [(0, 1), (0, 2), (1, 2)]),
        (["boat", "goat"], []),  # short words differ by a letter
        (["class10", "class11"], []),  # numbers do
        (["RBC", "WBC"], []),
        (["teddy bear", "bear"], []),
        (["猫", "犬"], []),
        (["+", "-"], []),
        (["+", "+"], [(0, 1)]),
    ],
)
def test_names_that_may_be_one(names, pairs):
    assert similar_names(dict(enumerate(names))) == pairs
