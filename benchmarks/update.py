"""Optimizer step and EMA update together, against a Python loop over the tensors.

python benchmarks/update.py
"""

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import compare, print_rows, row
from models.yolo import DetectionModel
from utils.ema import ModelEMA
from utils.optim import build_optimizer

LR, MOMENTUM, DECAY = 0.01, 0.937, 5e-4


def our_update(model: DetectionModel) -> Callable[[], None]:
    """Return a function that runs the optimizer step and the EMA update of train.py."""
    optimizer, ema = build_optimizer(model), ModelEMA(model)

    def update() -> None:
        optimizer.step()
        ema.update(model)

    return update


def plain_update(model: DetectionModel) -> Callable[[], None]:
    """Return a function that runs SGD with Nesterov momentum and the EMA, one tensor at a time."""
    average = copy.deepcopy(model).eval()
    velocities = [torch.zeros_like(parameter) for parameter in model.parameters()]

    @torch.no_grad()
    def update() -> None:
        for parameter, velocity in zip(model.parameters(), velocities):
            gradient = parameter.grad + DECAY * parameter if parameter.ndim > 1 else parameter.grad
            velocity.mul_(MOMENTUM).add_(gradient)
            parameter.add_(gradient.add(velocity, alpha=MOMENTUM), alpha=-LR)
        theirs = model.state_dict()
        for name, mine in average.state_dict().items():
            if mine.is_floating_point():
                mine.mul_(0.999).add_(theirs[name], alpha=0.001)

    return update


def main() -> None:
    rows = []
    for size in ("n", "s"):
        models = [DetectionModel(f"yolov5{size}.yaml").train() for _ in range(2)]
        for model in models:
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 1e-6)
        timing = compare(plain_update(models[0]), our_update(models[1]), pairs=15, times=(5, 20))
        rows.append(row(f"optimizer and EMA update, yolov5{size}", timing, at_least="4"))
    print_rows(rows)


if __name__ == "__main__":
    main()
