"""Exponential moving average of a model's weights, which validation uses and checkpoints keep."""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from utils.kernels import StateInterpolator


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of data parallel training and compilation."""
    while True:
        inner = [getattr(model, name, None) for name in ("module", "_orig_mod")]
        inner = [module for module in inner if isinstance(module, nn.Module)]
        if not inner:
            return model
        model = inner[0]


class ModelEMA:
    """Exponential moving average of a model, `.ema`, in eval mode and without gradients.

    Each update computes v = d v + (1 - d) v_model. The decay d = decay (1 - exp(-updates / tau)) rises from nearly 0,
    so early weights are soon forgotten. Floating-point parameters and buffers are averaged, in float32. Integer ones
    (batch counters) stay as they are.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, tau: float = 2000, updates: int = 0):
        self.ema = deepcopy(unwrap(model)).eval().requires_grad_(False)
        self.decay, self.tau = decay, tau
        self.updates: int | Tensor = updates  # a tensor where the device decides which updates are allowed
        self._average = StateInterpolator(self.ema)

    def decay_at(self, updates: int | Tensor) -> Any:
        """Return d after that number of updates: a float, or a float64 tensor if `updates` is a tensor."""
        if isinstance(updates, Tensor):
            return self.decay * (1 - torch.exp(updates.double() / -self.tau))
        return self.decay * (1 - math.exp(-updates / self.tau))

    @torch.no_grad()
    def update(self, model: nn.Module, allowed: bool | Tensor = True) -> None:
        """Average `model` (wrapped or not) in. Call it after each optimizer step, with whether the step was allowed.

        allowed: a 0-dim tensor needs no sync with its device. The weights of `model` are finite in any case.
        """
        if allowed is False:
            return
        self.updates = self.updates + allowed
        share = (1 - self.decay_at(self.updates)) * allowed
        self._average.move(unwrap(model), share)

    def state_dict(self) -> dict[str, Any]:
        return {"state_dict": self.ema.state_dict(), "updates": int(self.updates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.ema.load_state_dict(state["state_dict"])
        self.updates = int(state["updates"])
