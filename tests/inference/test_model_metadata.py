"""Metadata of exports: there and back, as YOLOv5 writes it, and damaged."""

import pytest

from utils.detector import DetectionAdvice
from utils.errors import UserError
from utils.inference.model_metadata import ModelMetadata

FULL = ModelMetadata(
    names={0: "cat", 1: "dog's", 2: 'a "bird"', 3: "é"},
    stride=64,
    layout="nms",
    imgsz=(384, 640),
    batch=4,
    dynamic=True,
    half=True,
    strides=(8, 16),
    anchors=((10.0, 13.5), (30.0, 61.0)),
    nms={"conf_thres": 0.25},
    description="d",
    version="1",
    date="2026",
    license="mine",
    advice=DetectionAdvice({0: 0.25, 3: 0.4}, 412),
)


def test_there_and_back():
    assert ModelMetadata.from_properties(FULL.to_properties(), "x") == FULL


def test_of_yolov5():
    found = ModelMetadata.from_properties({"stride": "32", "names": "{0: 'person', 1: 'bicycle'}"}, "x")
    assert found == ModelMetadata(names={0: "person", 1: "bicycle"})
    assert ModelMetadata.from_properties({"names": "['a', 'b']"}, "x").names == {0: "a", 1: "b"}
    assert ModelMetadata.from_properties({}, "x") == ModelMetadata(names={})


@pytest.mark.parametrize("properties, message", [
    ({"task": "segment"}, "a model for the task 'segment'"),
    ({"layout": "yolov99"}, "layout: 'yolov99' is none of yolov5"),
    ({"names": "{0: 'a'"}, "names: .* cannot be read"),
    ({"names": "{1: 'a'}"}, "names"),
    ({"names": "{}"}, "names"),
    ({"names": "__import__('os')"}, "names"),
    ({"names": "7"}, "names"),
    ({"stride": "0"}, "stride"),
    ({"stride": "[]"}, "stride"),
    ({"stride": "'a'"}, "stride"),
    ({"imgsz": "[]"}, "imgsz"),
    ({"imgsz": "{}"}, "imgsz"),
    ({"batch": "-1"}, "batch"),
    ({"batch": "1e400"}, "batch"),
    ({"anchors": "[1]"}, "anchors"),
    ({"names": "[" * 100_000}, "names"),
    ({"advice": "[]"}, "advice"),
    ({"advice": "{}"}, "advice"),
    ({"advice": '{"thresholds": {"0": 2}, "most_labels": 3}'}, "advice"),
])  # fmt: skip
def test_damage_is_named(properties, message):
    with pytest.raises(UserError, match=f"^best.onnx: .*{message}"):
        ModelMetadata.from_properties(properties, "best.onnx")
