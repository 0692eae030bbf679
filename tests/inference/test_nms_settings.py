"""NMS settings: each of them reaches the suppression."""

import pytest
import torch

from utils.inference.nms_settings import COCO_NMS, VAL_NMS, NmsSettings

# x, y, w, h, objectness, two classes: a box of both classes, the same box weaker, another one of class 1.
ROWS = torch.tensor([[
    [10.0, 10, 10, 10, 1, 0.9, 0.8],
    [10.0, 10, 10, 10, 1, 0.6, 0.1],
    [40.0, 40, 10, 10, 1, 0.1, 0.5],
]])  # fmt: skip
LABEL = torch.tensor([[1.0, 70, 70, 10, 10]])  # class, x, y, w, h


@pytest.mark.parametrize(
    "settings, expected",
    [
        (NmsSettings(), [(0.9, 0), (0.5, 1)]),
        (NmsSettings(conf_thres=0.55), [(0.9, 0)]),
        (NmsSettings(iou_thres=1.0), [(0.9, 0), (0.6, 0), (0.5, 1)]),
        (NmsSettings(max_det=1), [(0.9, 0)]),
        (NmsSettings(classes=[1]), [(0.5, 1)]),
        (NmsSettings(multi_label=True), [(0.9, 0), (0.8, 1), (0.5, 1)]),
        (NmsSettings(multi_label=True, agnostic=True), [(0.9, 0), (0.5, 1)]),
        (NmsSettings(hybrid=True), [(1.0, 1), (0.9, 0), (0.5, 1)]),
    ],
)
def test_settings(settings, expected):
    (found,) = settings.apply(ROWS, [LABEL])
    assert [(round(confidence, 4), cls) for confidence, cls in found[:, 4:].tolist()] == expected


def test_settings_of_validations():
    """The published figures are measured with these."""
    assert (VAL_NMS.conf_thres, VAL_NMS.iou_thres, VAL_NMS.max_det, VAL_NMS.multi_label) == (0.001, 0.6, 300, True)
    assert COCO_NMS.iou_thres == 0.65 and COCO_NMS.conf_thres == 0.001
