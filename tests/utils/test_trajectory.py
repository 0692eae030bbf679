"""Forty iterations of training from published weights follow the reference's losses, weights and moving average."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.loading import read_weights, transfer
from models.yolo import DetectionModel
from utils.config import Hyperparameters
from utils.ema import ModelEMA
from utils.loss import DetectionLoss, scale_gains
from utils.optim import build_optimizer, scaled_weight_decay, set_rates
from utils.schedule import Schedule

ITERATIONS, STEPS_PER_EPOCH, EPOCHS, BATCH, WARMUP = 40, 12, 10, 8, 100


class Run(NamedTuple):
    losses: np.ndarray  # (iterations, 4) total, box, obj, cls
    model: nn.Module
    ema: ModelEMA


def sum_of_squares(model: nn.Module) -> float:
    return sum(float(parameter.detach().double().square().sum()) for parameter in model.parameters())


def train(model: nn.Module, images: Tensor, targets: Tensor) -> Run:
    """Train in float32 on one batch, without random numbers."""
    hyp = Hyperparameters()
    plan = Schedule(hyp, EPOCHS, STEPS_PER_EPOCH, BATCH)
    plan.warmup_iterations = WARMUP  # the reference warms up longer than a third of so short a run
    gains = scale_gains(hyp.to_dict(), model.head.num_levels, model.num_classes, images.shape[-1])
    loss = DetectionLoss(model.head.anchors, model.stride, model.num_classes, gains)
    decay = scaled_weight_decay(hyp.weight_decay, BATCH, 64 // BATCH)
    optimizer = build_optimizer(model, lr=hyp.lr0, momentum=hyp.momentum, weight_decay=decay)
    ema, rows, last_step = ModelEMA(model), [], -1
    model.train()
    for iteration in range(ITERATIONS):
        rates = plan.at(iteration)
        set_rates(optimizer, rates)
        total, parts = loss(model(images), targets)
        total.backward()
        rows.append([total.item(), *(part.item() for part in parts)])
        if iteration - last_step >= rates.accumulate:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(model)
            last_step = iteration
    return Run(np.array(rows), model, ema)


@pytest.fixture(scope="module")
def golden(reference):
    return np.load(reference / "golden" / "trajectory.npz")


@pytest.fixture(scope="module")
def run(reference, golden) -> Run:
    weights = reference / "weights" / "yolov5n.pt"
    if not weights.exists():
        pytest.skip(f"{weights} is absent")
    model = DetectionModel("yolov5n.yaml")
    found = transfer(model, read_weights(weights).state_dict)
    assert found.matched == found.total
    images = torch.from_numpy(golden["images"]).float() / 255
    return train(model, images, torch.from_numpy(golden["targets"]))


def test_losses_follow(run, golden):
    scale = np.abs(golden["loss"])
    error = np.abs(run.losses - golden["loss"]) / scale
    assert error[:20].max() < 2e-3, error[:20].max(axis=1)
    assert error[20:].max() < 5e-2, error[20:].max(axis=1)


def test_it_learns(run):
    assert run.losses[-5:, 0].mean() < 0.9 * run.losses[:5, 0].mean()


def test_final_weights_and_their_average(run, golden):
    assert run.ema.updates == int(golden["ema_updates"])
    assert sum_of_squares(run.model) == pytest.approx(float(golden["final_norm"][0]), rel=1e-3)
    assert sum_of_squares(run.ema.ema) == pytest.approx(float(golden["ema_norm"][0]), rel=1e-3)
