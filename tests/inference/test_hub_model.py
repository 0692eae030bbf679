"""HubModel: preprocessing and settings of the callable that torch.hub returns."""

import numpy as np
import pytest
import torch
from known_model import NAMES, Answers

from utils.errors import UserError
from utils.inference.hub_model import HubModel
from utils.inference.results import Results


class Network(Answers):
    """Answers as a model of stride 32 that notes the shapes of its inputs. The number of an image is in its centre."""

    size_multiple, fixed_shape = 32, None

    def __init__(self, rows):
        super().__init__(rows)
        self.shapes = []

    def forward(self, images, augment=False):
        self.shapes.append((*images.shape, augment))
        height, width = images.shape[2:]
        images[:, :, 0, 0] = images[:, :, height // 2, width // 2]
        return super().forward(images)


@pytest.fixture
def model():
    """Return a model that finds two objects that overlap in images of value 0, and a bright one in others."""
    rows = [(8.0, 0, 24, 16, 0.9, 0), (9.0, 0, 25, 16, 0.4, 1), (30.0, 8, 60, 30, 0.3, 1)]
    return HubModel(Network({0: rows, 1: rows[2:]}))


def image(height, width, value=0):
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize("shapes, size, expected", [
    ([(480, 640)], 640, (480, 640)),
    ([(640, 427)], 640, (640, 448)),  # rounded up
    ([(480, 640), (640, 427)], 640, (640, 640)),  # the largest of each side
    ([(720, 1280)], 640, (384, 640)),
    ([(10, 1000)], 640, (32, 640)),
    ([(30, 40)], 320, (256, 320)),  # enlarged
    ([(449, 640)], 320, (256, 320)),  # 224.5 rows
    ([(480, 640)], (320, 416), (320, 416)),  # height and width
    ([(640, 427)], (320, 640), (320, 224)),
    ([(640, 427), (384, 640)], [384, 640], (384, 640)),
    ([(480, 640)], 100, (96, 128)),
])  # fmt: skip
def test_shape_of_the_input(model, shapes, size, expected):
    results = model([image(*shape) for shape in shapes], size=size)
    assert results.s == (len(shapes), 3, *expected) and model.model.shapes == [(*results.s, False)]


def test_a_fixed_input_counts(model):
    model.model.fixed_shape = (64, 96)
    assert model(image(480, 640), size=640).s == (1, 3, 64, 96)


@pytest.mark.parametrize("size", [0, -1, (1, 2, 3), "640", 64.5])
def test_a_wrong_size_is_one_line(model, size):
    with pytest.raises(UserError, match="expected pixels, such as 640"):
        model(image(8, 8), size=size)


def test_boxes_are_in_pixels_of_each_image_and_clipped(model):
    model.model.rows = {0: [(-10.0, 24, 32, 80, 0.9, 0)]}
    square, wide = model([image(128, 128), image(64, 128)], size=64)  # the second has 16 grey rows above and below
    assert square.s == wide.s == (2, 3, 64, 64)
    assert square.xyxy[0].tolist() == [pytest.approx([0, 48, 64, 128, 0.9, 0])]
    assert wide.xyxy[0].tolist() == [pytest.approx([0, 16, 64, 64, 0.9, 0])]
    assert wide.xywhn[0].tolist() == [pytest.approx([0.25, 0.625, 0.5, 0.75, 0.9, 0])]


@pytest.mark.parametrize("settings, expected", [
    ({}, [(0.9, 0), (0.4, 1), (0.3, 1)]),
    ({"conf": 0.35}, [(0.9, 0), (0.4, 1)]),
    ({"conf": {"bright": 0.35}}, [(0.9, 0), (0.4, 1)]),
    ({"conf": {0: 0.95}}, [(0.4, 1), (0.3, 1)]),
    ({"agnostic": True}, [(0.9, 0), (0.3, 1)]),
    ({"agnostic": True, "iou": 0.95}, [(0.9, 0), (0.4, 1), (0.3, 1)]),
    ({"classes": [1]}, [(0.4, 1), (0.3, 1)]),
    ({"classes": 1}, [(0.4, 1), (0.3, 1)]),
    ({"classes": np.array([1])}, [(0.4, 1), (0.3, 1)]),
    ({"classes": torch.tensor([1])}, [(0.4, 1), (0.3, 1)]),
    ({"classes": {1}}, [(0.4, 1), (0.3, 1)]),
    ({"classes": []}, []),
    ({"max_det": 0}, []),
    ({"max_det": 1}, [(0.9, 0)]),
    ({"multi_label": True}, [(0.9, 0), (0.4, 1), (0.3, 1)]),
])  # fmt: skip
def test_settings_are_attributes(model, settings, expected):
    for name, value in settings.items():
        setattr(model, name, value)
    found = model(image(64, 64), size=64).xyxy[0][:, 4:].tolist()
    assert found == [pytest.approx(row) for row in expected]


@pytest.mark.parametrize("name, value, expected", [
    ("conf", 2, r"model.conf = 2: expected a number in 0…1, such as 0.25"),
    ("conf", None, "model.conf = None: expected a number"),
    ("conf", {"drak": 0.3}, "model.conf: there is no class 'drak'; did you mean dark"),
    ("conf", "auto", "model.conf auto: the model holds no thresholds"),
    ("iou", "high", "model.iou = 'high': expected a number"),
    ("iou", float("nan"), "model.iou = nan: expected a number"),
    ("max_det", -1, "model.max_det = -1: expected a whole number, such as 1000"),
    ("max_det", 2.5, "model.max_det = 2.5: expected a whole number"),
    ("classes", ["person"], r"model.classes = \['person'\]: expected class numbers, such as \[0, 2\]"),
    ("classes", "person", "model.classes = 'person': expected class numbers"),
    ("classes", [0.5], r"model.classes = \[0.5\]: expected class numbers"),
])  # fmt: skip
def test_a_wrong_setting_is_one_line(model, name, value, expected):
    setattr(model, name, value)
    with pytest.raises(UserError, match=expected):
        model(image(64, 64), size=64)


@pytest.mark.parametrize("names", [["a", "b"], ("a", "b"), {0: "a", 1: "b"}])
def test_names_are_a_list_or_by_number(model, names):
    model.names = names
    assert model(image(64, 64), size=64).names == {0: "a", 1: "b"}


def test_names_can_be_replaced(model):
    assert model.names == NAMES and model.stride == 32 and model.yaml is None
    model.names = {0: "a", 1: "b"}
    assert "1 a, 2 bs" in str(model(image(64, 64), size=64))


def test_one_image_or_a_list(model, tmp_path):
    assert model(image(64, 64), size=64).n == 1
    assert model((image(64, 64), image(64, 64, 1)), size=64).n == 2
    assert [len(rows) for rows in model([image(64, 64), image(64, 64, 1)], size=64).xyxy] == [3, 1]
    assert model([image(64, 64), image(64, 64)], size=64).files == ["image0.jpg", "image1.jpg"]
    assert model([]).n == 0
    assert model(torch.zeros(3, 64, 64), size=64).n == 1  # an image, not a batch


def test_a_tensor_goes_through_the_network_as_it_is(model):
    decoded, raw = model(torch.zeros(2, 3, 64, 96), augment=True)
    assert decoded.shape == (2, 3, 7) and len(raw) == 1 and model.model.shapes == [(2, 3, 64, 96, True)]


def test_times_are_measured(model):
    results = model(image(64, 64), size=64, profile=True)
    assert isinstance(results, Results) and len(results.t) == 3 and all(value > 0 for value in results.t)


def test_it_is_a_module(model):
    assert model.eval() is model and model.cpu() is model and model.to("cpu") is model
    assert len(list(model.parameters())) == 1
    model.train()
    assert model(image(64, 64), size=64).n == 1 and model.model.training  # as it was
