"""Detections of one image."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from utils.detections import Detections
from utils.errors import UserError

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


NAMED = Detections(
    np.array([[10, 20, 30, 60, 0.9, 1], [0, 0, 8, 8, 0.25, 0]], np.float32), (80, 100), "in/000042.jpg", {1: "cat"}
)
NONE = Detections(np.zeros((0, 6), np.float32), (80, 100))


def test_records():
    assert NAMED.to_records()[1] == {
        "xmin": 0, "ymin": 0, "xmax": 8, "ymax": 8, "confidence": 0.25, "class": 0, "name": "0"
    }  # fmt: skip
    assert NAMED.to_records()[0]["name"] == "cat" and NONE.to_records() == []


def test_entries_of_coco():
    first, second = NAMED.to_coco()
    assert first == {"image_id": 42, "category_id": 1, "bbox": [10, 20, 20, 40], "score": 0.9}
    assert second["category_id"] == 0 and NONE.to_coco() == []
    assert NAMED.to_coco("a", {0: 7, 1: 9})[0] | {"bbox": 0} == {
        "image_id": "a", "category_id": 9, "bbox": 0, "score": 0.9
    }  # fmt: skip
    assert replace(NAMED, path="in/bus.jpg").to_coco()[0]["image_id"] == "bus"


def test_supervision_takes_them():
    found = NAMED.to_supervision()
    assert found.xyxy.shape == (2, 4) and found.class_id.tolist() == [1, 0] and found.confidence[1] == 0.25
    assert found.data["class_name"].tolist() == ["cat", "0"]
    assert len(NONE.to_supervision()) == 0


def test_an_absent_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="needs the package supervision: type pip install supervision"):
        NAMED.to_supervision()
