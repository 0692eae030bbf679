"""Progress of a run: where it is, and the numbers that it carries from step to step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Progress:
    """Counters and plain values of a run, all of them part of a checkpoint."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished batches of the current epoch
    iteration: int = 0  # finished batches of the whole run
    means: list[float] | Tensor = field(default_factory=list)  # (3,) losses of the current epoch; on the device
    best_fitness: float = -1.0  # of the EMA weights
    class_maps: list[float] = field(default_factory=list)  # mAP per class in the last validation

    def losses(self, device: torch.device) -> Tensor:
        """Return the mean losses (3,) of the current epoch on `device`, zeros at its start."""
        return torch.as_tensor(self.means if self.step else [0.0] * 3, device=device)

    def finish_epoch(self) -> None:
        """Count an epoch as finished."""
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the values as plain types. Reads `means` from the device."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "iteration": self.iteration,
            "means": torch.as_tensor(self.means).tolist(),
            "best_fitness": self.best_fitness,
            "class_maps": self.class_maps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the values in `state`. Raises ValueError or KeyError, and changes nothing, if one is wrong."""
        for name in ("epoch", "step", "iteration"):
            if type(state[name]) is not int or state[name] < 0:
                raise ValueError(f"{name} is not a count")
        lists = {"means": (0, 3), "class_maps": (0, len(self.class_maps or state["class_maps"]))}
        for name, lengths in lists.items():
            value = state[name]
            if not isinstance(value, list) or len(value) not in lengths or not all(type(v) is float for v in value):
                raise ValueError(f"{name} is not a list of {lengths[-1]} numbers")
        if type(state["best_fitness"]) is not float:
            raise ValueError("best_fitness is not a number")
        self.epoch, self.step, self.iteration = state["epoch"], state["step"], state["iteration"]
        self.means, self.class_maps = list(state["means"]), list(state["class_maps"])
        self.best_fitness = state["best_fitness"]
