"""NMS settings: each of them reaches the suppression."""

import pytest
import torch
from known_model import Answers

from utils.class_values import Thresholds
from utils.detector import DetectionAdvice
from utils.errors import UserError
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


def test_an_image_with_many_labels_raises_max_det(capsys):
    room = NmsSettings(max_det=300).with_room(412, "an image of the val split has")
    assert room.max_det == 412 and NmsSettings().with_room(300, "it has").max_det == 300
    out, err = capsys.readouterr()
    assert out == "an image of the val split has 412 labels: up to 412 detections are kept instead of 300\n" and not err
    assert NmsSettings(max_det=100).with_room(412, "an image has", typed=True).max_det == 100
    assert "WARNING: --max-det 100: an image has 412 labels, more than can be found." in capsys.readouterr().err


def test_thresholds_are_fitted_to_the_classes_of_a_model():
    model = Answers({})
    model.advice = DetectionAdvice({1: 0.7})
    fitted = NmsSettings(Thresholds({"dark": 0.4})).fit(model)
    assert fitted.conf_thres == (0.4, 0.25) and fitted.fit(model) == fitted
    assert NmsSettings(Thresholds(auto=True)).fit(model).conf_thres == (0.25, 0.7)
    assert NmsSettings(Thresholds({"b": 0.1})).fit(model, {0: "a", 1: "b"}).conf_thres == (0.25, 0.1)
    with pytest.raises(UserError, match="^--conf-thres: there is no class 'drak'; did you mean dark?"):
        NmsSettings(Thresholds({"drak": 0.4})).fit(model)


@pytest.mark.parametrize("given, lowered", [(0.25, 0.1), (0.05, 0.05), ((0.3, 0.02), (0.1, 0.02))])
def test_thresholds_are_lowered_and_never_raised(given, lowered):
    assert NmsSettings(given).down_to(0.1) == NmsSettings(lowered)
