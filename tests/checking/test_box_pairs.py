"""Findings on boxes that nearly equal another one."""

import numpy as np
from scanned_sets import findings_of, places, scan_rows

from utils.checking.box_pairs import check_box_pairs, find_pairs, iou_of_rows
from utils.datasets.label_index import Counts, LabelIndex, offsets_of


def test_boxes_of_one_class_and_of_two(tmp_path):
    rows = "0 .5 .5 .4 .4\n1 .2 .2 .1 .1\n0 .5 .5 .41 .4\n1 .5 .5 .4 .41\n"
    found = findings_of(check_box_pairs, scan_rows(tmp_path, "0 .5 .5 .4 .4\n", rows))
    assert places(found["near-duplicate"]) == ["1.txt:3"] and found["near-duplicate"].count == 1
    assert found["near-duplicate"].examples[0].detail == "ship and ship, IoU 0.98"
    assert found["two-classes"].count == 1 and places(found["two-classes"]) == ["1.txt:4"] * 2
    assert len(found["two-classes"].examples[0].boxes) == 2


def test_equal_boxes_of_two_images_are_no_pair(tmp_path):
    assert findings_of(check_box_pairs, scan_rows(tmp_path, *["0 .5 .5 .4 .4\n"] * 3)) == {}


def test_the_search_finds_what_a_comparison_of_all_pairs_finds():
    rng = np.random.default_rng(0)
    centers, sizes = rng.uniform(0.3, 0.7, (40, 2)), rng.uniform(0.05, 0.3, (40, 2))
    many = np.repeat(np.concatenate([centers, sizes], 1), 5, axis=0)
    boxes = many * rng.uniform(0.95, 1.05, many.shape)
    boxes = boxes[rng.permutation(len(boxes))].astype(np.float32)
    counts = [0, 1, 120, 0, 79]
    labels = np.concatenate([np.zeros((len(boxes), 1), np.float32), boxes], 1)
    offsets, none = offsets_of(counts), np.zeros((0, 2), np.float32)
    index = LabelIndex(
        [str(k) for k in range(5)], np.full((5, 2), 100), labels, offsets, none, offsets_of([0] * 200), Counts(), []
    )
    pairs = find_pairs(index, 0.8)
    images = np.repeat(np.arange(5), counts)
    one, two = np.triu_indices(len(boxes), 1)
    expected = (images[one] == images[two]) & (iou_of_rows(boxes[one], boxes[two]) >= 0.8)
    assert expected.sum() > 20
    assert set(zip(pairs.first.tolist(), pairs.second.tolist())) == set(
        zip(one[expected].tolist(), two[expected].tolist())
    )


def test_iou():
    boxes = np.array([[0.5, 0.5, 0.4, 0.4]])
    others = np.array([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.2, 0.4], [0.9, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]])
    np.testing.assert_allclose(iou_of_rows(boxes, others), [1, 0.5, 0, 0], atol=1e-12)
