"""Run: everything that the training loop needs, and everything that a checkpoint must hold."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from utils.checkpoint import describe_model, snapshot
from utils.config import Hyperparameters, TrainOptions
from utils.console import warn
from utils.datasets.splits import Splits
from utils.detector import Detector, as_detector, as_module
from utils.device import get_rng_state, set_rng_state
from utils.distributed import Distributed
from utils.ema import ModelEMA
from utils.errors import UserError
from utils.image_size import to_shape
from utils.inference.nms_settings import COCO_NMS, VAL_NMS, NmsSettings
from utils.inference.tile_pass import Views, views_of_split
from utils.loading.loader import Loader
from utils.loading.sampler import class_weights, image_weights
from utils.loss import DetectionLoss
from utils.metrics import Metrics
from utils.schedule import EarlyStopping, Rates, Schedule, class_factor, multi_scale_size, progressive_size
from utils.training.nan_guard import NanGuard
from utils.training.progress import Progress
from utils.training.startup import tiling_of

# What the steps of each optimizer read of a parameter's state, besides the scalar `step`.
OPTIMIZER_STATE = {
    "SGD": {"momentum_buffer"},
    "Adam": {"exp_avg", "exp_avg_sq"},
    "AdamW": {"exp_avg", "exp_avg_sq"},
    "RMSprop": {"square_avg"},
}


def check_groups(groups: list[dict[str, Any]], stored: list[dict[str, Any]]) -> None:
    """Raise ValueError unless `stored` groups have the parameters, the names and the kinds of values of `groups`."""
    if len(groups) != len(stored):
        raise ValueError("the optimizer has other groups: lr_body cannot change from or to 1")
    for own, given in zip(groups, stored):
        if own["params"] != given["params"] or own["name"] != given.get("name", own["name"]):
            raise ValueError("the optimizer's groups are those of another model")
        for name, value in own.items():
            found = given.get(name, value)
            if type(value) in (int, float) and type(found) not in (int, float):
                raise ValueError(f"the optimizer's {name} is no number")


def check_optimizer_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Raise ValueError unless each tensor in `state` has the shape and type of its parameter.

    The fused steps do not check, and would read and write past the end of a smaller one.
    """
    check_groups(optimizer.state_dict()["param_groups"], state["param_groups"])
    kinds = {name for base in type(optimizer).__mro__ for name in OPTIMIZER_STATE.get(base.__name__, ())}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entry in state["state"].items():
        if type(index) is not int or not 0 <= index < len(parameters) or not (not entry or kinds <= entry.keys()):
            raise ValueError("the optimizer's state is that of another one")
        for name, value in entry.items():
            if name == "step" and (not isinstance(value, Tensor) or value.numel() == 1):
                continue
            fits = isinstance(value, Tensor) and value.shape == parameters[index].shape and value.is_floating_point()
            if not fits and value is not None:
                raise ValueError(f"the optimizer's {name} does not have the shape of its parameter")


class Stateful(Protocol):
    """Object that a checkpoint holds by its state."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any, /) -> Any: ...


@dataclass
class Run:
    """Training run. Its state is complete between optimizer steps, when no gradient is pending."""

    options: TrainOptions
    hyp: Hyperparameters
    data: Splits
    distributed: Distributed
    train_loader: Loader
    val_loader: Loader
    model: Detector
    wrapped: nn.Module  # the model in its wrapper for several devices or for compilation, or the model itself
    frozen: list[int]  # layers of the model
    loss: DetectionLoss
    schedule: Schedule
    optimizer: torch.optim.Optimizer
    ema: ModelEMA
    scaler: torch.amp.GradScaler
    early_stop: EarlyStopping
    nan_guard: NanGuard
    progress: Progress
    autocast: torch.dtype | None
    environment: dict[str, Any]  # what else the bytes of the weights depend on
    epoch_start: dict[str, Any] | None = None  # snapshot of the state at the start of the epoch, for `roll_back`
    _statistics: list[Tensor] = field(default_factory=list)  # buffers of the model before pending batches

    def members(self) -> dict[str, Stateful]:
        """Return the members that have a state of their own, by their key in a checkpoint."""
        return {
            "ema": self.ema,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "guard": self.nan_guard,
            "stopper": self.early_stop,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state: progress, random numbers, model and the members with a state."""
        own = {"rng": get_rng_state(), "model": describe_model(self.model)}
        return self.progress.state_dict() | own | {key: member.state_dict() for key, member in self.members().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over `state` in place. Raises UserError if it belongs to another model."""
        try:
            check_optimizer_state(self.optimizer, state["optimizer"])
            self.model.load_state_dict(state["model"]["state_dict"])
            for key, member in self.members().items():
                member.load_state_dict(state[key])
            self.progress.load_state_dict(state)
            set_rng_state(state["rng"])
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the checkpoint does not fit this run: {reason}; start a new run with --weights"
            ) from error

    def checkpoint(self, metrics: Metrics | None = None) -> dict[str, Any]:
        """Return the content of a checkpoint: the state, the settings and the last metrics."""
        return {
            **self.state_dict(),
            **self.settings(),
            "metrics": {} if metrics is None else {"map50": float(metrics.map50), "map": float(metrics.map)},
        }

    def settings(self) -> dict[str, Any]:
        """Return what a checkpoint holds besides state and metrics."""
        return {
            "options": {**self.options.to_dict(), "resume": False},
            "hyp": self.hyp.to_dict(),
            "surroundings": self.environment,
        }

    def weights(self) -> dict[str, Any]:
        """Return the weights of the model and of the EMA, as they are in a checkpoint."""
        return {"model": {"state_dict": self.model.state_dict()}, "ema": self.ema.state_dict()}

    def is_finished(self) -> bool:
        """Return True if all epochs are done, or if early stopping has ended the run."""
        stopped = not self.options.noval and self.early_stop.is_over(self.progress.epoch - 1)
        return self.progress.epoch >= self.options.epochs or stopped

    def begin_epoch(self) -> None:
        """Switch to training mode, with the class gain of the current epoch."""
        self.train_mode()
        self.loss.class_factor = class_factor(self.progress.epoch, self.options.epochs, self.hyp.cls_rise)

    def train_mode(self) -> None:
        """Switch to training mode, except for frozen layers, which keep their batch statistics."""
        self.wrapped.train()
        for index in self.frozen:
            self.model.model[index].eval()

    @property
    def validation_autocast(self) -> torch.dtype | None:
        """Type to validate in. 8 bits of precision, those of bfloat16, are too few to measure boxes."""
        return None if self.autocast == torch.bfloat16 else self.autocast

    def validation_nms(self, published: bool = False) -> NmsSettings:
        """Return the suppression of validations. `published`: as the figures on COCO are measured, if that is the data.

        It keeps as many detections as an image has labels.
        """
        nms = COCO_NMS if published and self.data.spec.is_coco else VAL_NMS
        return replace(nms, max_det=max(nms.max_det, self.data.val.most_labels))

    def validation_views(self, published: bool = False) -> Views:
        """Return how validations see an image: whole, and with `--tile` by tiles too, merged as `validation_nms`."""
        return views_of_split(
            tiling_of(self.options),
            self.val_loader.dataset.images,
            as_detector(self.ema.ema),
            shape=to_shape(self.options.imgsz),
            nms=self.validation_nms(published),
            batch_size=2 * self.options.batch_size,
        )

    def rates(self, iteration: int) -> Rates:
        """Return the rates of the schedule, lower after each rollback."""
        rates, factor = self.schedule.at(iteration), self.nan_guard.lr_factor
        return rates._replace(
            lr_bias=rates.lr_bias * factor, lr_weight=rates.lr_weight * factor, lr_norm=rates.lr_norm * factor
        )

    def resize_factor(self) -> float:
        """Return the factor that brings images from the loader to the size of this epoch or iteration.

        Sizes are those of the longer side. The sizes of epochs follow the hyperparameters. With `--multi-scale` each
        iteration draws one around it.
        """
        options, hyp, multiple = self.options, self.hyp, self.model.size_multiple
        epoch, start, share = self.progress.epoch, hyp.size_start, hyp.size_epochs
        full = max(to_shape(options.imgsz))
        size = progressive_size(epoch, options.epochs, full, stride=multiple, start=start, share=share)
        if not options.multi_scale:
            return size / full
        rng = np.random.default_rng([options.seed, self.progress.iteration])
        return multi_scale_size(rng, size, multiple) / (2 * full if options.quad else full)

    def note_validation(self, metrics: Metrics) -> bool:
        """Record the metrics of the current epoch. Return True if they are the best so far."""
        self.progress.class_maps = [float(value) for value in metrics.maps]
        self.early_stop.update(self.progress.epoch, metrics.fitness)
        improved = metrics.fitness > self.progress.best_fitness
        if improved:
            self.progress.best_fitness = float(metrics.fitness)
        return improved

    def sampling_weights(self) -> np.ndarray | None:
        """Return a weight per image for `--image-weights`: high for many labels of rare classes with a low mAP."""
        if not self.options.image_weights:
            return None
        by_class = class_weights(self.data.train, self.model.num_classes)
        return image_weights(self.data.train, by_class * (1 - np.array(self.progress.class_maps)) ** 2)

    def keep_epoch_start(self) -> None:
        """Take a snapshot of the state at the start of the epoch, unless there is one already."""
        if self.epoch_start is None or self.epoch_start["epoch"] != self.progress.epoch:
            self.epoch_start = snapshot(self.state_dict())

    def begin_step(self, *, batches: int) -> None:
        """Keep the batch statistics before an optimizer step of several batches, for `drop_pending`."""
        self._statistics = [buffer.clone() for buffer in as_module(self.model).buffers()] if batches > 1 else []

    @torch.no_grad()
    def drop_pending(self) -> None:
        """Return to the last optimizer step. The batches after it are trained again by a resumed run."""
        progress = self.progress
        progress.iteration = progress.epoch * len(self.train_loader) + progress.step
        for buffer, before in zip(as_module(self.model).buffers(), self._statistics):
            buffer.copy_(before)

    def roll_back(self) -> None:
        """Return to the start of the epoch, or to where the run was resumed, with lower learning rates."""
        guard = self.nan_guard
        if guard.exhausted:
            raise UserError(
                f"the loss is still NaN or infinite after {guard.rollbacks} rollbacks with a lower learning rate; try "
                "a lower lr0 in the --hyp file, --amp off, and look for damaged labels or images"
            )
        counts = guard.state_dict()
        self.load_state_dict(snapshot(self.epoch_start))  # a copy: the optimizer continues in the tensors it is given
        guard.load_state_dict(counts)
        guard.mark_rollback()
        warn(
            "NaN or infinity in several consecutive steps. Rolled back to the start of the epoch with learning rates "
            f"x {guard.lr_factor}."
        )
