"""Optimizers over three groups of parameters, and the weight decay they use."""

import difflib
from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils.errors import UserError


def scaled_weight_decay(weight_decay: float, batch_size: int, accumulate: int, nominal: int = 64) -> float:
    """Weight decay for optimizer steps over batch_size * accumulate images, given that for `nominal`."""
    return weight_decay * batch_size * accumulate / nominal


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """All parameters, frozen ones too, by group: bias (named so), norm (normalisation weights), weight (the rest)."""
    groups: dict[str, list[nn.Parameter]] = {"bias": [], "weight": [], "norm": []}
    for module in model.modules():
        kind = "norm" if _is_torch_norm(module) else "weight"
        for name, parameter in module.named_parameters(recurse=False):
            key = "bias" if name == "bias" else kind if name == "weight" else "weight"
            groups[key].append(parameter)
    return groups


def _is_torch_norm(module: nn.Module) -> bool:
    """Whether the module's class is, or extends, a normalisation layer that PyTorch ships."""
    return any("Norm" in base.__name__ for base in type(module).__mro__ if base.__module__.startswith("torch.nn."))


def build_optimizer(
    model: nn.Module, name: str = "SGD", lr: float = 0.01, momentum: float = 0.937, weight_decay: float = 5e-4
) -> torch.optim.Optimizer:
    """Optimizer with the groups bias, weight and norm, in this order and so named; only weight decays.

    SGD uses Nesterov momentum; for Adam and AdamW `momentum` is the first beta. An unknown name is a UserError.
    """
    sgd = FusedSGD if _kernel(model) and len({p.dtype for p in model.parameters()}) == 1 else torch.optim.SGD
    makers = {
        "SGD": lambda groups: sgd(groups, lr=lr, momentum=momentum, nesterov=True, **_kernel(model)),
        "Adam": lambda groups: torch.optim.Adam(groups, lr=lr, betas=(momentum, 0.999), **_kernel(model)),
        "AdamW": lambda groups: torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999), **_kernel(model)),
        "RMSProp": lambda groups: torch.optim.RMSprop(groups, lr=lr, momentum=momentum),
    }
    if name not in makers:
        near = difflib.get_close_matches(name.lower(), [n.lower() for n in makers], n=1)
        hint = next((n for n in makers if near and n.lower() == near[0]), "SGD")
        raise UserError(f"--optimizer {name}: not one of {', '.join(makers)}; did you mean {hint}?")
    decay = {"bias": 0.0, "weight": weight_decay, "norm": 0.0}
    groups = parameter_groups(model)
    return makers[name]([{"params": groups[key], "weight_decay": decay[key], "name": key} for key in groups])


def _kernel(model: nn.Module) -> dict[str, bool]:
    """One kernel for all tensors where PyTorch has it; a loop over 180 tensors costs several times as much."""
    devices = {parameter.device.type for parameter in model.parameters()}
    return {"fused": True} if len(devices) == 1 and devices <= {"cpu", "cuda"} else {}


class Lists(NamedTuple):
    """What FusedSGD found in its groups and its state, and holds on to."""

    parameters: list[list[nn.Parameter]]  # for each group those that have a gradient
    states: list[list[dict[str, Tensor]]]  # of each of these, with its momentum
    others: list[nn.Parameter]  # those that have none

    def gradients(self) -> list[list[Tensor]]:
        return [[parameter.grad for parameter in group] for group in self.parameters]


class FusedSGD(torch.optim.SGD):
    """torch.optim.SGD(fused=True), with the same state, whose lists of tensors are built once and not in each step.

    All parameters are of one type, on one device. Momentum starts as zeros, so that a first step which the kernel
    leaves out (see take_step) leaves it written.
    """

    _lists: Lists | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lists, gradients = self._current()
        scaling = {name: getattr(self, name, None) for name in ("grad_scale", "found_inf")}
        for group, parameters, states, slopes in zip(self.param_groups, lists.parameters, lists.states, gradients):
            if parameters:
                momenta = [state["momentum_buffer"] for state in states] if group["momentum"] else []
                torch._fused_sgd_(
                    parameters,
                    slopes,
                    momenta,
                    is_first_step=False,
                    **scaling,
                    **{
                        name: group[name]
                        for name in ("lr", "momentum", "weight_decay", "dampening", "nesterov", "maximize")
                    },
                )
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._lists = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # when a state is loaded, too
        self._lists = None

    def _current(self) -> tuple[Lists, list[list[Tensor]]]:
        """The lists, built anew where they do not hold any more, and the gradients."""
        lists = self._lists
        if lists is not None and all(p.grad is None for p in lists.others):
            gradients = lists.gradients()
            if all(gradient is not None for group in gradients for gradient in group):
                return lists, gradients
        parameters = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        for parameter in chain(*parameters):
            if self.state[parameter].get("momentum_buffer") is None:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self._lists = lists = Lists(
            parameters,
            [[self.state[p] for p in group] for group in parameters],
            [p for group in self.param_groups for p in group["params"] if p.grad is None],
        )
        return lists, lists.gradients()


def take_step(optimizer: torch.optim.Optimizer, admitted: bool | Tensor) -> None:
    """A step if `admitted`. As a 0-dim tensor that is not waited for: the one-kernel steps find out by themselves.

    RMSProp has no such kernel, so its steps wait.
    """
    if not isinstance(admitted, Tensor) or not optimizer.defaults.get("fused"):
        if admitted:
            optimizer.step()
        return
    optimizer.grad_scale, optimizer.found_inf = None, (~admitted).float()  # what a GradScaler hands to these kernels
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf


def set_rates(optimizer: torch.optim.Optimizer, rates: Any) -> None:
    """Set learning rates from `rates.lr_<group name>`, and `rates.momentum` in groups that have a momentum.

    Adam's betas stay, warm-up or not.
    """
    for group in optimizer.param_groups:
        group["lr"] = getattr(rates, f"lr_{group['name']}")
        if "momentum" in group:
            group["momentum"] = rates.momentum
