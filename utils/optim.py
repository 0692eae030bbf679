"""Optimizers over three groups of parameters, and the weight decay they use."""

import difflib
from typing import Any

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
    makers = {
        "SGD": lambda groups: torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=True, **_kernel(model)),
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


def take_step(optimizer: torch.optim.Optimizer, admitted: bool | Tensor) -> None:
    """A step if `admitted`. As a 0-dim tensor that is not waited for: the one-kernel steps find out by themselves.

    RMSProp has no such kernel, so its steps wait.
    """
    if not isinstance(admitted, Tensor) or not optimizer.defaults.get("fused"):
        if admitted:
            optimizer.step()
        return
    _begin_momentum(optimizer)
    optimizer.grad_scale, optimizer.found_inf = None, (~admitted).float()  # what a GradScaler hands to these kernels
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf


def _begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Zeros where SGD has no momentum yet: a first step that its kernel leaves out would leave them unwritten."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def set_rates(optimizer: torch.optim.Optimizer, rates: Any) -> None:
    """Set learning rates from `rates.lr_<group name>`, and `rates.momentum` in groups that have a momentum.

    Adam's betas stay, warm-up or not.
    """
    for group in optimizer.param_groups:
        group["lr"] = getattr(rates, f"lr_{group['name']}")
        if "momentum" in group:
            group["momentum"] = rates.momentum
