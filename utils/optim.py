"""Optimizers over named groups of parameters, and their weight decay."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils.cli import suggest
from utils.errors import UserError
from utils.kernels import build_sgd, can_skip_on_device, fused_setting, step_unless_skipped
from utils.muon import KERNELS, FusedMuon, Muon, find_kernels
from utils.schedule import Rates

# Entries of a group that the settings of a run determine, not its progress.
GROUP_SETTINGS = ("weight_decay", "lr_ratio", "momentum_shift", "lr_factor", "coarse")
MAX_MOMENTUM = 0.9999


class MuonSettings(NamedTuple):
    """Settings of the kernels that Muon orthogonalises, after warm-up."""

    lr: float = 0.02
    momentum: float = 0.937
    weight_decay: float = 5e-4  # decoupled
    coarse: bool = False  # products of large kernels in bfloat16


def scaled_weight_decay(weight_decay: float, batch_size: int, accumulate: int, nominal: int = 64) -> float:
    """Return the weight decay for optimizer steps over batch_size * accumulate images, given that for `nominal`."""
    return weight_decay * batch_size * accumulate / nominal


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return all parameters, frozen ones too, by group.

    bias: parameters of that name. norm: weights of normalisation layers. weight: the rest.
    """
    groups: dict[str, list[nn.Parameter]] = {"bias": [], "weight": [], "norm": []}
    for module in model.modules():
        kind = "norm" if _is_torch_norm(module) else "weight"
        for name, parameter in module.named_parameters(recurse=False):
            key = "bias" if name == "bias" else kind if name == "weight" else "weight"
            groups[key].append(parameter)
    return groups


def _is_torch_norm(module: nn.Module) -> bool:
    """Return whether the module's class is, or extends, a normalisation layer that PyTorch ships."""
    return any("Norm" in base.__name__ for base in type(module).__mro__ if base.__module__.startswith("torch.nn."))


def build_optimizer(
    model: nn.Module,
    name: str = "SGD",
    lr: float = 0.01,
    momentum: float = 0.937,
    weight_decay: float = 5e-4,
    muon: MuonSettings | None = None,
    body_factor: float = 1.0,
) -> torch.optim.Optimizer:
    """Return an optimizer with groups named bias, weight and norm, in this order. Only the second has weight decay.

    SGD uses Nesterov momentum; for Adam and AdamW `momentum` is the first beta. Muon is SGD with a fourth group, named
    kernel, whose settings `muon` default to twice `lr` and the same momentum and weight decay. A `body_factor`
    other than 1 multiplies the rates outside `model.head`. Each group is two of its name then. Raises UserError for an
    unknown name.
    """
    fused, betas = fused_setting(model.parameters()), (momentum, 0.999)
    builders: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
        "SGD": lambda groups: build_sgd(groups, lr=lr, momentum=momentum),
        "Adam": lambda groups: torch.optim.Adam(groups, lr=lr, betas=betas, **fused),
        "AdamW": lambda groups: torch.optim.AdamW(groups, lr=lr, betas=betas, **fused),
        "Muon": lambda groups: build_sgd(groups, lr=lr, momentum=momentum, kinds=(FusedMuon, Muon)),
        "RMSProp": lambda groups: torch.optim.RMSprop(groups, lr=lr, momentum=momentum),
    }
    if name not in builders:
        hint = suggest(name, builders) or "; did you mean SGD?"
        raise UserError(f"--optimizer {name}: not one of {', '.join(builders)}{hint}")
    decay = {"bias": 0.0, "weight": weight_decay, "norm": 0.0}
    groups = parameter_groups(model)
    settings = [{"params": groups[key], "weight_decay": decay[key], "name": key} for key in groups]
    if name == "Muon":
        muon = muon or MuonSettings(2 * lr, momentum, weight_decay)
        settings = split_kernels(settings, model, muon, lr=lr, momentum=momentum)
    return builders[name](split_body(settings, model, body_factor))


def split_kernels(
    groups: list[dict[str, Any]], model: nn.Module, muon: MuonSettings, *, lr: float, momentum: float
) -> list[dict[str, Any]]:
    """Return `groups` without the kernels of `model` that Muon orthogonalises, and these as a group of their own.

    Its rate stays in proportion to that of the weights, and its momentum at a constant distance, so both follow the
    same schedule. SGD itself has no momentum there.
    """
    kernels = find_kernels(model)
    taken = {id(kernel) for kernel in kernels}
    others = [{**group, "params": [entry for entry in group["params"] if id(entry) not in taken]} for group in groups]
    own = {
        "params": kernels,
        "name": KERNELS,
        "lr": muon.lr,
        "lr_ratio": muon.lr / lr,
        "momentum": 0.0,
        "nesterov": False,
        "muon_momentum": muon.momentum,
        "momentum_shift": muon.momentum - momentum,
        "weight_decay": muon.weight_decay,
        "coarse": muon.coarse,
    }
    return [*others, own]


def split_body(groups: list[dict[str, Any]], model: nn.Module, factor: float) -> list[dict[str, Any]]:
    """Return `groups`, each split into the parameters of `model.head` and all others, whose rates have a `factor`."""
    head = getattr(model, "head", None)
    if factor == 1 or not isinstance(head, nn.Module):
        return groups
    inside = {id(parameter) for parameter in head.parameters()}
    split = []
    for group in groups:
        for of_head, own in ((True, 1.0), (False, factor)):
            members = [entry for entry in group["params"] if (id(entry) in inside) == of_head]
            split.append({**group, "params": members, "lr_factor": own})
    return [group for group in split if group["params"]]


def take_step(optimizer: torch.optim.Optimizer, allowed: bool | Tensor) -> None:
    """Take a step if `allowed`. As a 0-dim tensor it needs no sync, except for RMSProp."""
    if isinstance(allowed, Tensor) and can_skip_on_device(optimizer):
        step_unless_skipped(optimizer, allowed)
    elif allowed:
        optimizer.step()


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Set learning rates from `rates.lr_<group name>`, and `rates.momentum` in groups that have a momentum.

    Adam's betas stay the same, also during warm-up. Muon's kernels follow the rate of weights and the momentum.
    """
    for group in optimizer.param_groups:
        if group["name"] == KERNELS:
            group["lr"] = rates.lr_weight * group["lr_ratio"] * group.get("lr_factor", 1.0)
            group["muon_momentum"] = min(max(rates.momentum + group["momentum_shift"], 0.0), MAX_MOMENTUM)
            continue
        group["lr"] = getattr(rates, f"lr_{group['name']}") * group.get("lr_factor", 1.0)
        if "momentum" in group:
            group["momentum"] = rates.momentum
