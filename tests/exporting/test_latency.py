"""Latencies: what is measured, and when a batch would take too long."""

import numpy as np
import pytest
import torch
from torch import nn

from utils.exporting import latency
from utils.exporting.latency import Latency, measure_latency
from utils.inference.nms_settings import NmsSettings
from utils.pixel_format import RGB


class Counting(nn.Module):
    """A model without anything to find, which notes the shapes of its inputs."""

    names, num_classes, size_multiple = {0: "a"}, 1, 32
    device, fixed_shape, is_suppressed, pixels = torch.device("cpu"), None, False, RGB

    def __init__(self):
        super().__init__()
        self.shapes, self.weight = [], nn.Parameter(torch.zeros(1))

    def forward(self, images, augment=False):
        self.shapes.append(tuple(images.shape))
        return torch.zeros(len(images), 3, 6), None


def test_batches_of_1_and_16_at_the_input_shape():
    model = Counting()
    images = [np.zeros((20, 30, 3), np.uint8)] * 16
    single, many = measure_latency(model, images, (32, 64), NmsSettings())
    assert (single.batch_size, many.batch_size) == (1, 16)
    assert min(single[1:]) > 0 and single.runs >= latency.MIN_RUNS
    assert single.total == pytest.approx(single.preprocess + single.inference + single.nms)
    assert set(model.shapes) == {(1, 3, 32, 64), (16, 3, 32, 64)}
    assert model.shapes.count((1, 3, 32, 64)) == single.runs + 1  # one warms up


def test_a_batch_that_would_take_too_long_is_skipped(monkeypatch):
    monkeypatch.setattr(latency, "LIMIT", 0.0)
    assert [one.batch_size for one in measure_latency(Counting(), [np.zeros((20, 30, 3), np.uint8)] * 16, (32, 32),
                                                      NmsSettings())] == [1]  # fmt: skip


def test_throughput():
    assert Latency(16, 1, 2, 5, 3).images_per_second(8) == 2000
