"""Exported files as networks: layouts, batches of other sizes, and outputs that fit no detector."""

from pathlib import Path

import pytest
import torch

from utils.errors import UserError
from utils.inference.exported_model import ExportedModel
from utils.inference.runtime import InputShape

NAMES = {"names": "{0: 'dark', 1: 'bright'}"}
ROWS = torch.tensor([[10.0, 20, 4, 6, 0.5, 0.2, 0.8], [30, 20, 10, 10, 0.9, 0.6, 0.4]])


class Answer:
    """A runtime that gives one output per image, multiplied by the image's value."""

    title, device = "answers", torch.device("cpu")

    def __init__(self, output, properties=NAMES, shape=(None, None, None)):
        self.outputs = output if isinstance(output, list) else [output]
        self.properties, self.input_shape, self.sizes = properties, InputShape(shape), []

    def run(self, images):
        self.sizes.append(len(images))
        return [images[:, :1, 0, 0].reshape(-1, *[1] * output.ndim) * output for output in self.outputs]


def open_answer(*args, **settings):
    return ExportedModel(Path("best.onnx"), Answer(*args, **settings))


def images(*values):
    return torch.stack([torch.full((3, 32, 64), float(value)) for value in values])


def test_batches_are_split_and_filled_for_a_static_file():
    """The first call is that of the blank images."""
    model = open_answer(ROWS, shape=(2, 32, 64))
    found, raw = model(images(1, 2, 3, 4, 5))
    assert raw is None and model.runtime.sizes == [2, 2, 2, 2] and model.fixed_shape == (32, 64)
    assert torch.equal(found, torch.stack([ROWS * value for value in (1, 2, 3, 4, 5)]))


def test_a_dynamic_file_gets_the_batch_as_it_is():
    model = open_answer(ROWS)
    assert model(images(1, 1, 1))[0].shape == (3, 2, 7) and model.runtime.sizes == [1, 3] and model.fixed_shape is None


@pytest.mark.parametrize("layout, output", [
    ("yolov5", ROWS),
    ("yolov8", torch.cat((ROWS[:, :4], ROWS[:, 5:] * ROWS[:, 4:5]), 1).T),
    ("deepstream", torch.tensor([[8.0, 17, 12, 23, 0.4, 1], [25, 15, 35, 25, 0.54, 0]])),
    ("nms", torch.tensor([[8.0, 17, 12, 23, 0.4, 1], [25, 15, 35, 25, 0.54, 0], [0, 0, 0, 0, 0, 0]])),
])  # fmt: skip
def test_each_layout_becomes_rows(layout, output):
    model = open_answer(output, {**NAMES, "layout": layout})
    rows = model(images(1))[0][0]
    assert torch.allclose(rows[:2, :4], ROWS[:, :4])
    best = (rows[:2, 5:] * rows[:2, 4:5]).max(1)
    assert torch.allclose(best.values, torch.tensor([0.4, 0.54])) and best.indices.tolist() == [1, 0]
    assert not rows[2:].any() or layout == "nms"
    assert model.is_suppressed == (layout == "nms")


def test_without_metadata_the_output_counts_the_classes():
    model = open_answer(ROWS, {})
    assert (model.num_classes, model.names, model.size_multiple) == (2, {0: "0", 1: "1"}, 32)


@pytest.mark.parametrize("output, properties", [
    (ROWS[0], NAMES),  # one axis less
    (ROWS[:, :6], NAMES),  # one class less
    (ROWS.T, {}),  # too few columns
    (torch.zeros(2, 4), {}),
    ([torch.zeros(14, 4, 4)], {**NAMES, "layout": "raw", "anchors": "[[1,2,3,4],[5,6,7,8]]", "strides": "[8,16]"}),
    ([torch.zeros(13, 4, 4)], {**NAMES, "layout": "raw", "anchors": "[[1,2,3,4]]", "strides": "[8]"}),
])  # fmt: skip
def test_outputs_of_another_shape_are_refused(output, properties):
    with pytest.raises(UserError, match="best.onnx: its output has the shape"):
        open_answer(output, properties)(images(1))


def test_choices_that_a_file_cannot_follow():
    model = open_answer(ROWS, shape=(1, 32, 64))
    with pytest.raises(UserError, match="--augment needs PyTorch weights"):
        model.check_choices(augment=True)
    with pytest.raises(UserError, match="export it with --dynamic"):
        model.check_choices(sizes=True)
    model.check_choices()
