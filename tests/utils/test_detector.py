import pytest
import torch
from torch import nn

from models.yolo import DetectionModel
from utils.detector import Detector, Head, as_module, device_of, name_difference

TINY = {
    "nc": 2, "depth_multiple": 1.0, "width_multiple": 0.25, "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
    "backbone": [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [32, 3, 2]]],
    "head": [[[0, 1], 1, "Detect", ["nc", "anchors"]]],
}  # fmt: skip


def members(protocol: type) -> set[str]:
    """Return the names that a Protocol declares."""
    declared = {*protocol.__annotations__, *vars(protocol)}
    return {name for name in declared if not name.startswith("_")} | ({"__call__"} & declared)


def test_detection_model_satisfies_the_protocol():
    model = DetectionModel(TINY)
    assert not [name for name in members(Detector) if not hasattr(model, name)]
    assert not [name for name in members(Head) if not hasattr(model.head, name)]


def test_a_network_without_a_head_is_no_detector():
    assert {"names", "head", "fuse", "yaml"} <= {
        name for name in members(Detector) if not hasattr(nn.Conv2d(3, 8, 3), name)
    }


def test_shapes_are_those_of_the_docstrings():
    model: Detector = DetectionModel(TINY)
    L, A, C = model.head.num_levels, model.head.num_anchors, model.num_classes
    assert (L, A, C) == (2, 2, 2)
    assert len(model.names) == C
    assert model.stride.shape == model.head.stride.shape == (L,)
    assert model.stride.tolist() == [2, 4]
    assert model.head.anchors.shape == (L, A, 2)
    images = torch.zeros(1, 3, 16, 8)
    assert [tuple(level.shape) for level in model(images)] == [(1, A, 8, 4, 5 + C), (1, A, 4, 2, 5 + C)]
    decoded, raw = model.eval()(images)
    assert decoded.shape == (1, A * (32 + 8), 5 + C)
    assert len(raw) == L
    assert as_module(model) is model
    assert device_of(model) == torch.device("cpu")


@pytest.mark.parametrize(
    "one, other, difference",
    [
        ([], [], ""),
        (["a", "b"], ["a", "b"], ""),
        (["a", "b"], ["A ", "b"], ""),  # spelling
        (["0", "1"], ["a", "b"], ""),  # no names
        (["a", "b"], ["b", "a"], "class 0 is 'a' and 'b'"),
        (["a", "1"], ["a", "c"], "class 1 is '1' and 'c'"),
    ],
)
def test_the_first_name_that_differs(one, other, difference):
    assert name_difference(dict(enumerate(one)), dict(enumerate(other))) == difference
