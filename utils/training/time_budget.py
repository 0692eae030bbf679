"""Time budget of a run: `--time` settles its number of epochs by the speed of a copy of the model on its own batches.

Rank 0 measures before the run begins. It exchanges no gradients with other processes there, so with several a run
takes longer by that. The number is stored as `--epochs` would be, and nothing is measured again.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch

from utils.config import Hyperparameters, TrainOptions
from utils.console import info
from utils.datasets.splits import Splits, require_images
from utils.detector import Detector, as_module
from utils.distributed import Distributed
from utils.image_size import describe_size, to_shape
from utils.images.tiles import Tiling
from utils.inference.preprocess import to_network_input
from utils.loading.dataset import Batch
from utils.loading.loader import Loader
from utils.loss import DetectionLoss, scale_gains
from utils.optim import build_optimizer
from utils.schedule import NOMINAL, progressive_size
from utils.training.loaders import build_loaders
from utils.training.recipe import apply_recipe
from utils.training.startup import Setup, complete_options, tiling_of

WARM_UP = 2  # batches that are not counted
MIN_BATCHES, MAX_BATCHES, ENOUGH_SECONDS = 3, 20, 10.0
MAX_EPOCHS = 10_000


class Speed(NamedTuple):
    """Seconds that parts of a run take."""

    load: float  # waiting for a training batch
    step: float  # the rest of a training batch, at the full image size
    validation: float
    steps: int  # training batches of an epoch


def settle_run(
    options: TrainOptions,
    hyp: Hyperparameters,
    model: Detector,
    data: Splits,
    *,
    weights: str,
    distributed: Distributed,
    autocast: torch.dtype | None,
) -> tuple[TrainOptions, Hyperparameters]:
    """Return options and hyperparameters of a new run with what `--recipe` chooses and the epochs of `--time`.

    A recipe chooses by the number of batches, and may change image sizes, and so the epochs that fit the time.
    """
    speed, images = None, data.train.epoch_size
    if options.time:
        require_images(data)
        sized = complete_options(
            options.replace(nbs=options.nbs or NOMINAL),
            model,
            weights=weights,
            cfg=options.cfg,
            num_images=images,
            distributed=distributed,
            autocast=autocast,
        )
        options = options.replace(imgsz=sized.imgsz, batch_size=sized.batch_size)
        speed = measure_speed(options, hyp, model, data, distributed=distributed, autocast=autocast)
        options = options.replace(epochs=fit_epochs(options, hyp, speed, stride=model.size_multiple))
    options, hyp = apply_recipe(options, hyp, weights=weights, num_images=images)
    if speed:
        epochs = fit_epochs(options, hyp, speed, stride=model.size_multiple)
        options = options.replace(epochs=epochs)
        used = run_seconds(options, hyp, speed, epochs, stride=model.size_multiple)
        info(
            f"--time {options.time:g}: {epochs} epochs of {speed.steps} batches will take about {used / 3600:.3g} h "
            f"({speed.load + speed.step:.3g} s a batch at {describe_size(options.imgsz)}, {speed.validation:.3g} s a "
            "validation)"
        )
    return options, hyp


def run_seconds(options: TrainOptions, hyp: Hyperparameters, speed: Speed, epochs: int, *, stride: int) -> float:
    """Return the seconds that a run of `epochs` takes, with all its validations."""
    areas = sum(area_of_epoch(options, hyp, epoch, epochs, stride=stride) for epoch in range(epochs))
    validations = 1 + (1 if options.noval else epochs)  # the last one is that of best.pt
    return speed.steps * (epochs * speed.load + areas * speed.step) + validations * speed.validation


def area_of_epoch(options: TrainOptions, hyp: Hyperparameters, epoch: int, epochs: int, *, stride: int) -> float:
    """Return the area of the images in an epoch of `epochs`, in parts of that of the full size."""
    full = max(to_shape(options.imgsz))
    size = progressive_size(epoch, epochs, full, stride=stride, start=hyp.size_start, share=hyp.size_epochs)
    return (size / full) ** 2


def fit_epochs(options: TrainOptions, hyp: Hyperparameters, speed: Speed, *, stride: int) -> int:
    """Return the largest number of epochs that `--time` is enough for, at least 1."""

    def fits(epochs: int) -> bool:
        return run_seconds(options, hyp, speed, epochs, stride=stride) <= 3600 * options.time

    low, high = 1, 2
    while high < MAX_EPOCHS and fits(high):
        low, high = high, min(2 * high, MAX_EPOCHS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def measure_speed(
    options: TrainOptions,
    hyp: Hyperparameters,
    model: Detector,
    data: Splits,
    *,
    distributed: Distributed,
    autocast: torch.dtype | None,
) -> Speed:
    """Return how fast this process trains and validates a copy of the model on its share of the batches."""
    device = distributed.device
    probe = copy.deepcopy(model).to(device, memory_format=torch.channels_last)
    cache = None if options.cache in ("ram", "disk") else options.cache  # None caches only what takes a moment
    train_loader, val_loader = build_loaders(Setup(options.replace(cache=cache), hyp, data, probe, []), distributed)
    gains = scale_gains(hyp, len(probe.stride), probe.num_classes, options.imgsz)
    loss = DetectionLoss(probe.head.anchors, probe.stride, probe.num_classes, gains)
    module = as_module(probe)
    optimizer = build_optimizer(module, options.optimizer, lr=1e-9)

    def train(batch: Batch) -> None:
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            predictions = module(to_network_input(batch.images, device, autocast))
        loss(predictions, batch.targets.to(device))[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def validate(batch: Batch) -> None:
        module(to_network_input(batch.images, device))

    with closing(train_loader), closing(val_loader):
        module.train()
        load, step = measure_batches(train_loader, train, device)
        module.eval()
        per_batch = sum(measure_batches(val_loader, validate, device))
    views = 1 + tiles_per_image(tiling_of(options), data.val.shapes)
    return Speed(load, step, per_batch * len(val_loader) * views, len(train_loader))


def tiles_per_image(tiling: Tiling | None, shapes: np.ndarray) -> float:
    """Return the mean number of tiles that validation looks at besides each image, from heights and widths (N, 2)."""
    if tiling is None or not len(shapes):
        return 0.0
    kinds, counts = np.unique(shapes, axis=0, return_counts=True)
    grids = [len(tiling.grid((height, width))) for height, width in kinds.tolist()]
    return float(np.average([size if size > 1 else 0 for size in grids], weights=counts))


def measure_batches(loader: Loader, act: Callable[[Batch], None], device: torch.device) -> tuple[float, float]:
    """Return the mean seconds that waiting for a batch and acting on it take, without the first ones."""
    load = step = 0.0
    count = -WARM_UP
    batches = endless(loader)
    while count < MIN_BATCHES or (count < MAX_BATCHES and load + step < ENOUGH_SECONDS):
        start = time.perf_counter()
        batch = next(batches)
        loaded = time.perf_counter()
        act(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if count >= 0:
            load, step = load + loaded - start, step + time.perf_counter() - loaded
        count += 1
    return load / count, step / count


def endless(loader: Loader) -> Iterator[Batch]:
    """Yield the batches of one epoch after another."""
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1
