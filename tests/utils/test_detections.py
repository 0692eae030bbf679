"""Detections of one image."""

import numpy as np

from utils.detections import Detections

ROWS = np.array([[20.5, 10.4, 60.6, 50, 0.876, 1], [0, 0, 99.5, 100, 0.51, 0]], dtype=np.float32)


def test_columns():
    found = Detections(ROWS, (100, 200), "/a/cat.jpg", {0: "dog", 1: "cat"})
    assert len(found) == 2 and found.boxes_xyxy.shape == (2, 4) and found.classes.dtype == np.int64
    assert found.classes.tolist() == [1, 0] and found.confidence.tolist() == ROWS[:, 4].tolist()


def test_no_detections():
    found = Detections(np.zeros((0, 6), np.float32), (100, 200))
    assert len(found) == 0 and found.boxes_xyxy.shape == (0, 4) and found.rounded().rows.shape == (0, 6)


def test_rounding_is_of_boxes_only_and_leaves_the_original():
    found = Detections(ROWS.copy(), (100, 200), "/a/cat.jpg")
    rounded = found.rounded()
    assert rounded.boxes_xyxy.tolist() == [[20, 10, 61, 50], [0, 0, 100, 100]]  # halves go to the even number
    assert rounded.rows.dtype == np.float32 and (rounded.rows[:, 4:] == ROWS[:, 4:]).all()
    assert (found.rows == ROWS).all() and rounded.path == "/a/cat.jpg"
