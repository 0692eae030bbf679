"""Exponential moving average of a model's weights: what is validated and saved."""

import math
import operator
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

Slot = tuple[dict[str, Any], str]  # a module's own table of parameters or buffers, and a name in it


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside wrappers of data parallel training and compilation."""
    while True:
        inner = [getattr(model, name, None) for name in ("module", "_orig_mod")]
        inner = [module for module in inner if isinstance(module, nn.Module)]
        if not inner:
            return model
        model = inner[0]


def _float_slots(model: nn.Module) -> list[Slot]:
    """Where the floating-point entries of the state_dict live, each tensor once.

    Places and not tensors: a buffer may be replaced (new anchors, a change of device) between two updates.
    """
    slots, seen = [], set()
    for module in model.modules():
        lasting = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for table, names in ((module._parameters, module._parameters), (module._buffers, lasting)):
            for name in names:
                tensor = table[name]
                if tensor is not None and tensor.is_floating_point() and id(tensor) not in seen:
                    seen.add(id(tensor))
                    slots.append((table, name))
    return slots


class ModelEMA:
    """Keeps `.ema`, a copy of `model` in eval mode without gradients, that follows it: v = d v + (1 - d) v_model.

    The decay d = decay (1 - exp(-updates / tau)) rises from nearly 0, so that early weights are soon forgotten.
    Floating-point parameters and buffers follow, integer ones (batch counters) stay. Float32 throughout.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, tau: float = 2000, updates: int = 0):
        self.ema = deepcopy(unwrap(model)).eval().requires_grad_(False)
        self.decay, self.tau, self.updates = decay, tau, updates  # a tensor where updates are decided on a device
        self._own = _float_slots(self.ema)
        self._source: nn.Module | None = None
        self._theirs: list[Slot] = []
        self._alike: list[Tensor] = []  # tensors of both, found to be of the same type and device

    def decay_at(self, updates: int) -> float:
        return self.decay * (1 - math.exp(-updates / self.tau))

    @torch.no_grad()
    def update(self, model: nn.Module, admitted: bool | Tensor = True) -> None:
        """Take one step toward `model` (wrapped or not); call it after each optimizer step, with whether it was taken.

        admitted: as a 0-dim tensor it is not waited for; the weights of `model` are finite in any case.
        """
        if admitted is False:
            return
        model = unwrap(model)
        if model is not self._source:
            self._source, self._theirs = model, _float_slots(model)
            assert [name for _, name in self._theirs] == [name for _, name in self._own], "the models differ in layout"
        own = [table[name] for table, name in self._own]
        theirs = [table[name] for table, name in self._theirs]
        known = len(self._alike) == 2 * len(own) and all(map(operator.is_, own + theirs, self._alike))
        if not known or not _are_alike(theirs[0], own[0]):  # a model's type changes within its parameters
            self._alike = own + theirs if all(map(_are_alike, theirs, own)) else []
            theirs = [their.to(device=mine.device, dtype=mine.dtype) for their, mine in zip(theirs, own)]
        self.updates = self.updates + admitted
        if isinstance(admitted, Tensor):
            self._follow(own, theirs, admitted)
        else:
            torch._foreach_lerp_(own, theirs, 1 - self.decay_at(self.updates))

    def _follow(self, own: list[Tensor], theirs: list[Tensor], admitted: Tensor) -> None:
        """The step of `update`, of size 0 where it was not admitted: its share is known on the device only."""
        decay = self.decay * (1 - torch.exp(self.updates.double() / -self.tau))  # as decay_at
        way = torch._foreach_sub(theirs, own)
        torch._foreach_mul_(way, ((1 - decay) * admitted).float())
        torch._foreach_add_(own, way)

    def state_dict(self) -> dict[str, Any]:
        return {"state_dict": self.ema.state_dict(), "updates": int(self.updates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.ema.load_state_dict(state["state_dict"])
        self.updates = int(state["updates"])


def _are_alike(tensor: Tensor, other: Tensor) -> bool:
    return tensor.dtype is other.dtype and tensor.device == other.device
