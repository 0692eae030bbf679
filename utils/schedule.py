"""Schedules over a run: learning rates, momentum, accumulation, image size and mosaics. Early stopping.

Every value is a pure function of the iteration or epoch, or of a generator argument, so a resumed run is exact.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from utils.image_size import ImageSize, scale_size, to_shape

MIN_WARMUP_ITERATIONS = 100
MAX_WARMUP_SHARE = 1 / 3  # of all iterations, so that a tiny run also sees its full learning rate
NOMINAL = 64  # images whose gradients make an optimizer step
MIN_OPTIMIZER_STEPS = 1000  # in a run; with fewer, training on a small data set ends far below its best accuracy


class Rates(NamedTuple):
    """Values for one iteration. Each `lr_*` has the name of its optimizer group."""

    lr_bias: float
    lr_weight: float
    lr_norm: float
    momentum: float
    accumulate: int


def lr_factor(epoch: float, epochs: int, lrf: float, cosine: bool = False) -> float:
    """Return the factor on the initial learning rate: 1 at epoch 0, `lrf` at `epochs`, on a line or half a cosine."""
    progress = min(epoch / epochs, 1.0)
    if cosine:
        progress = (1 - math.cos(math.pi * progress)) / 2
    return 1 + progress * (lrf - 1)


def nominal_batch(batch_size: int, iterations: int) -> int:
    """Return the nominal batch for a run of `iterations`: 64, or less if there were too few optimizer steps then."""
    if batch_size >= NOMINAL:
        return NOMINAL
    return min(NOMINAL, batch_size * max(iterations // MIN_OPTIMIZER_STEPS, 1))


def accumulation(batch_size: int, nominal: int = NOMINAL) -> int:
    """Return the batches per optimizer step after warm-up: gradients of about `nominal` images make one step."""
    return max(round(nominal / batch_size), 1)


class Schedule:
    """Learning rates, momentum and accumulation of every iteration of a run.

    hyp: mapping, or object with attributes, of lr0, lrf, momentum, warmup_epochs, warmup_momentum, warmup_bias_lr.
    The learning rate of epoch e is lr0 * lr_factor(e). During warm-up, all values change linearly up to that of
    iteration `warmup_iterations`. They start from 0 for weights and norms, warmup_bias_lr for biases, warmup_momentum
    for the momentum and 1 for the accumulation.
    """

    def __init__(
        self,
        hyp: Mapping[str, Any] | object,
        epochs: int,
        steps_per_epoch: int,
        batch_size: int,
        cosine: bool = False,
        nominal: int = NOMINAL,
    ):
        values = hyp if isinstance(hyp, Mapping) else vars(hyp)
        self.lr0, self.lrf, self.momentum = (float(values[key]) for key in ("lr0", "lrf", "momentum"))
        self.warmup_bias_lr, self.warmup_momentum = float(values["warmup_bias_lr"]), float(values["warmup_momentum"])
        self.epochs, self.steps_per_epoch, self.batch_size, self.cosine = epochs, steps_per_epoch, batch_size, cosine
        self.nominal = nominal
        self.warmup_iterations = self._warmup_length(float(values["warmup_epochs"]))

    def _warmup_length(self, warmup_epochs: float) -> int:
        if warmup_epochs <= 0:
            return 0
        wanted = max(round(warmup_epochs * self.steps_per_epoch), MIN_WARMUP_ITERATIONS)
        return min(wanted, int(self.epochs * self.steps_per_epoch * MAX_WARMUP_SHARE))

    def at(self, iteration: int) -> Rates:
        """Return the rates of `iteration`, counted from 0 over all epochs."""
        epoch = iteration // self.steps_per_epoch
        lr = self.lr0 * lr_factor(epoch, self.epochs, self.lrf, self.cosine)
        weight_lr = self._warm_up(iteration, 0.0, lr)
        return Rates(
            lr_bias=self._warm_up(iteration, self.warmup_bias_lr, lr),
            lr_weight=weight_lr,
            lr_norm=weight_lr,
            momentum=self._warm_up(iteration, self.warmup_momentum, self.momentum),
            accumulate=max(round(self._warm_up(iteration, 1.0, self.nominal / self.batch_size)), 1),
        )

    def _warm_up(self, iteration: int, start: float, end: float) -> float:
        """Return the value between `start` and `end`, which is reached after the warm-up."""
        if iteration >= self.warmup_iterations:
            return end
        return float(np.interp(iteration, (0, self.warmup_iterations), (start, end)))


class EarlyStopping:
    """Early stopping if the fitness (higher is better) has not improved for `patience` epochs. 0 never stops.

    An improvement is one by more than `min_delta` over the last improvement.
    """

    def __init__(self, patience: int = 100, min_delta: float = 0.0):
        self.patience, self.min_delta = patience, min_delta
        self.best_fitness = -math.inf
        self.best_epoch = 0

    def update(self, epoch: int, fitness: float) -> bool:
        """Record the fitness of `epoch` and return whether to stop after it. NaN is never an improvement."""
        if fitness > self.best_fitness + self.min_delta:
            self.best_fitness, self.best_epoch = float(fitness), epoch
        return self.is_over(epoch)

    def is_over(self, epoch: int) -> bool:
        """Return whether the run should stop after `epoch`, by the values recorded so far."""
        return self.best_fitness > -math.inf and 0 < self.patience <= epoch - self.best_epoch

    def state_dict(self) -> dict[str, float]:
        return {"best_fitness": self.best_fitness, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the recorded values. The settings stay as constructed, so that a resumed run may change them."""
        self.best_fitness, self.best_epoch = float(state["best_fitness"]), int(state["best_epoch"])


def mosaic_epochs(epochs: int, close_mosaic: float) -> int:
    """Return the number of first epochs with mosaics: all but `close_mosaic`, a share below 1 and else a number."""
    closed = round(close_mosaic * epochs) if close_mosaic < 1 else round(close_mosaic)
    return max(epochs - closed, 0)


def class_factor(epoch: int, epochs: int, rise: float) -> float:
    """Return the factor on the class gain of an epoch: 1 in the first one, `rise` in the last, in equal steps."""
    return 1 + (rise - 1) * epoch / max(epochs - 1, 1)


def progressive_size(epoch: int, epochs: int, imgsz: int, *, stride: int, start: float, share: float) -> int:
    """Return the longer image side of an epoch, a multiple of `stride` from about start * imgsz to imgsz.

    It rises by steps over the first `share` of the epochs, and is at least two strides (see multi_scale_size).
    """
    rising = round(share * epochs)
    if start >= 1 or epoch >= rising:
        return imgsz
    side = imgsz * (start + (1 - start) * epoch / rising)
    return min(max(int(side // stride), 2) * stride, imgsz)


def largest_size(imgsz: int, stride: int) -> int:
    """Return the largest size that multi_scale_size can return."""
    return max((imgsz * 3 // 2 + stride - 1) // stride, 2) * stride


def largest_shape(size: ImageSize, stride: int) -> tuple[int, int]:
    """Return the largest height and width of images of this size with `--multi-scale`."""
    return scale_size(size, largest_size(max(to_shape(size)), stride), stride)


def multi_scale_size(rng: np.random.Generator, imgsz: int, stride: int) -> int:
    """Draw a longer image side of about 0.5 to 1.5 times `imgsz`, a multiple of `stride` and at least two strides.

    One stride would leave a single value per channel of a one-image batch, from which batch norm cannot learn.
    """
    drawn = int(rng.integers(imgsz // 2, imgsz * 3 // 2 + stride))
    return max(drawn // stride, 2) * stride
