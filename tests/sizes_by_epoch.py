"""Sizes of the network's input in a training, epoch by epoch, without a model and images."""

from functools import partial
from types import SimpleNamespace

import torch

import train
from utils.config import Hyperparameters, TrainOptions
from utils.training.run import Run


def sizes_by_epoch(shape: tuple[int, int], epochs: int, hyp: Hyperparameters, **options) -> list[tuple[int, int]]:
    """Return height and width of the input in each epoch, which has one iteration, of a run at a height and width."""
    run = SimpleNamespace(
        options=TrainOptions(imgsz=list(shape), epochs=epochs, **options),
        hyp=hyp,
        model=SimpleNamespace(size_multiple=32),
        distributed=SimpleNamespace(device=torch.device("cpu")),
        autocast=None,
    )
    run.resize_factor = partial(Run.resize_factor, run)
    images, found = torch.zeros(1, 3, *shape, dtype=torch.uint8), []
    for epoch in range(epochs):
        run.progress = SimpleNamespace(epoch=epoch, iteration=epoch)
        height, width = train.prepare_images(run, images).shape[2:]
        found.append((height, width))
    return found
