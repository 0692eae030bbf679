"""What changes from iteration to iteration: learning rates, momentum, accumulation, image size; and when to stop early.

Every value is a pure function of the iteration (or of a generator handed in), so a resumed run continues exactly.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

MIN_WARMUP_ITERATIONS = 100
MAX_WARMUP_SHARE = 1 / 3  # of all iterations, so that a tiny run also sees its full learning rate
NOMINAL = 64  # pictures whose gradients make an optimizer step
ENOUGH_STEPS = 1000  # of the optimizer in a run; with fewer, small data sets stop far short of what they allow


class Rates(NamedTuple):
    """Values for one iteration; `lr_*` are named after the optimizer's groups."""

    lr_bias: float
    lr_weight: float
    lr_norm: float
    momentum: float
    accumulate: int


def lr_factor(epoch: float, epochs: int, lrf: float, cosine: bool = False) -> float:
    """Share of the initial learning rate in `epoch`: from 1 at 0 to `lrf` at `epochs`, on a line or half a cosine."""
    progress = min(epoch / epochs, 1.0)
    if cosine:
        progress = (1 - math.cos(math.pi * progress)) / 2
    return 1 + progress * (lrf - 1)


def nominal_batch(batch_size: int, iterations: int) -> int:
    """The nominal batch for a run of so many iterations: 64, or less where that leaves too few (ENOUGH_STEPS) steps."""
    if batch_size >= NOMINAL:
        return NOMINAL
    return min(NOMINAL, batch_size * max(iterations // ENOUGH_STEPS, 1))


def accumulation(batch_size: int, nominal: int = NOMINAL) -> int:
    """Batches per optimizer step after warm-up: gradients of about `nominal` images make one step."""
    return max(round(nominal / batch_size), 1)


class Schedule:
    """Learning rates, momentum and accumulation of every iteration of a run.

    `hyp` is a mapping, or an object with attributes, of lr0, lrf, momentum, warmup_epochs, warmup_momentum and
    warmup_bias_lr. Epoch e aims at lr0 * lr_factor(e). Over the first `warmup_iterations` (that one included) values
    run linearly toward the aim: weights and norms from 0, biases from warmup_bias_lr, momentum from warmup_momentum,
    accumulation from 1.
    """

    def __init__(
        self,
        hyp: Mapping[str, float] | Any,
        epochs: int,
        steps_per_epoch: int,
        batch_size: int,
        cosine: bool = False,
        nominal: int = NOMINAL,
    ):
        read = hyp.__getitem__ if isinstance(hyp, Mapping) else lambda key: getattr(hyp, key)
        self.lr0, self.lrf, self.momentum = float(read("lr0")), float(read("lrf")), float(read("momentum"))
        self.warmup_bias_lr, self.warmup_momentum = float(read("warmup_bias_lr")), float(read("warmup_momentum"))
        self.epochs, self.steps_per_epoch, self.batch_size, self.cosine = epochs, steps_per_epoch, batch_size, cosine
        self.nominal = nominal
        self.warmup_iterations = self._warmup_length(float(read("warmup_epochs")))

    def _warmup_length(self, warmup_epochs: float) -> int:
        if warmup_epochs <= 0:
            return 0
        wanted = max(round(warmup_epochs * self.steps_per_epoch), MIN_WARMUP_ITERATIONS)
        return min(wanted, int(self.epochs * self.steps_per_epoch * MAX_WARMUP_SHARE))

    def at(self, iteration: int) -> Rates:
        """Rates of `iteration`, counted from 0 over all epochs."""
        epoch = iteration // self.steps_per_epoch
        lr = self.lr0 * lr_factor(epoch, self.epochs, self.lrf, self.cosine)
        weight_lr = self._warm(iteration, 0.0, lr)
        return Rates(
            lr_bias=self._warm(iteration, self.warmup_bias_lr, lr),
            lr_weight=weight_lr,
            lr_norm=weight_lr,
            momentum=self._warm(iteration, self.warmup_momentum, self.momentum),
            accumulate=max(round(self._warm(iteration, 1.0, self.nominal / self.batch_size)), 1),
        )

    def _warm(self, iteration: int, start: float, aim: float) -> float:
        if iteration >= self.warmup_iterations:
            return aim
        return float(np.interp(iteration, (0, self.warmup_iterations), (start, aim)))


class EarlyStopping:
    """Says when fitness (higher is better) has not strictly improved for `patience` epochs; patience 0 never stops."""

    def __init__(self, patience: int = 100):
        self.patience = patience
        self.best_fitness = -math.inf
        self.best_epoch = 0

    def update(self, epoch: int, fitness: float) -> bool:
        """Take note of the fitness of `epoch`; True asks to stop after it. NaN is never an improvement."""
        if fitness > self.best_fitness:
            self.best_fitness, self.best_epoch = float(fitness), epoch
        return self.is_over(epoch)

    def is_over(self, epoch: int) -> bool:
        """Whether the run should have stopped after `epoch`, by what was seen so far."""
        return self.best_fitness > -math.inf and 0 < self.patience <= epoch - self.best_epoch

    def state_dict(self) -> dict[str, float]:
        return {"best_fitness": self.best_fitness, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what was seen; patience stays as constructed, so that a resumed run may change it."""
        self.best_fitness, self.best_epoch = float(state["best_fitness"]), int(state["best_epoch"])


def largest_size(imgsz: int, stride: int) -> int:
    """The largest that multi_scale_size can give."""
    return (imgsz * 3 // 2 + stride - 1) // stride * stride


def multi_scale_size(rng: np.random.Generator, imgsz: int, stride: int) -> int:
    """A random image side of about 0.5 to 1.5 times `imgsz`, a multiple of `stride` and at least one stride."""
    drawn = int(rng.integers(imgsz // 2, imgsz * 3 // 2 + stride))
    return max(drawn // stride, 1) * stride
