"""SGD whose step is one kernel for each group of parameters, from lists that are built once."""

from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor


class _SgdTensors(NamedTuple):
    """Tensors that FusedSGD found in its groups and its state."""

    parameters: list[list[Tensor]]  # those with a gradient, by group
    states: list[list[dict[str, Tensor]]]  # of each of these, with its momentum
    others: list[Tensor]  # those without a gradient

    def gradients(self) -> list[list[Tensor]] | None:
        """Return the gradients, or None if one is missing."""
        found = [[parameter.grad for parameter in group] for group in self.parameters]
        complete = all(gradient is not None for group in found for gradient in group)
        return cast(list[list[Tensor]], found) if complete else None


class FusedSGD(torch.optim.SGD):
    """torch.optim.SGD(fused=True), with the same state, that builds its lists of tensors once and not at each step.

    All parameters have one type and one device. The momentum starts as zeros: a first step that the kernel skips
    (utils.kernels.step_unless_skipped) would otherwise leave it unwritten.
    """

    _tensors: _SgdTensors | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        tensors, gradients = self._current()
        for group, parameters, states, grads in zip(
            self.param_groups, tensors.parameters, tensors.states, gradients, strict=True
        ):
            if parameters:
                torch._fused_sgd_(
                    parameters,
                    grads,
                    [state["momentum_buffer"] for state in states] if group["momentum"] else [],
                    weight_decay=group["weight_decay"],
                    momentum=group["momentum"],
                    lr=group["lr"],
                    dampening=group["dampening"],
                    nesterov=group["nesterov"],
                    maximize=group["maximize"],
                    is_first_step=False,
                    grad_scale=getattr(self, "grad_scale", None),
                    found_inf=getattr(self, "found_inf", None),
                )
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._tensors = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # load_state_dict calls this, too
        self._tensors = None

    def _current(self) -> tuple[_SgdTensors, list[list[Tensor]]]:
        """Return the lists, built again if they are outdated, and the gradients."""
        tensors = self._tensors
        if tensors is not None and all(p.grad is None for p in tensors.others):
            gradients = tensors.gradients()
            if gradients is not None:
                return tensors, gradients
        tensors = self._tensors = self._find_tensors()
        gradients = tensors.gradients()
        assert gradients is not None
        return tensors, gradients

    def _find_tensors(self) -> _SgdTensors:
        parameters = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        for parameter in chain(*parameters):
            if self.state[parameter].get("momentum_buffer") is None:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return _SgdTensors(
            parameters,
            [[self.state[p] for p in group] for group in parameters],
            [p for group in self.param_groups for p in group["params"] if p.grad is None],
        )
