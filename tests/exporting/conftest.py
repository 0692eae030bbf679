"""A small network, its images, and crowded rows of predictions."""

import pytest
import torch
from small_models import TINY, fill

from models.yolo import DetectionModel


@pytest.fixture(scope="session")
def network():
    """Return a fused network of three classes and two levels that finds something everywhere."""
    model = DetectionModel(TINY)
    fill(model)
    model.names = {0: "cat", 1: "dog's", 2: 'a "bird"'}
    with torch.no_grad():
        for convolution in model.head.convolutions:
            convolution.bias.view(2, -1)[:, 4] += 2
    return model.eval().fuse()


@pytest.fixture
def crowd():
    """Return rows (2, 600, 5+3) in few places, so that most boxes overlap others, some equal."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(2, 600, 8, generator=generator)
    rows[..., :2] = (rows[..., :2] * 4).round() * 40 + rows[..., 4:6] * 20
    rows[..., 2:4] = 30 + rows[..., 2:4] * 30
    rows[:, 100:110] = rows[:, 90:100]
    return rows
