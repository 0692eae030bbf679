"""Groups of parameters, arguments of each optimizer, and that the fast kernels follow the plain formula."""

import copy
import json

import pytest
import torch
from torch import nn

from utils.errors import UserError
from utils.optim import build_optimizer, parameter_groups, scaled_weight_decay, set_rates
from utils.schedule import Rates

NAMES = ["SGD", "Adam", "AdamW", "RMSProp"]


class Attention(nn.Module):
    """Holds parameters of every sort, one of them neither `weight` nor `bias`."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norms = nn.Sequential(nn.BatchNorm2d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4))
        self.attention = nn.MultiheadAttention(4, 2)
        self.scale = nn.Parameter(torch.ones(1))


def test_every_parameter_is_in_one_group():
    model = Attention()
    model.conv.weight.requires_grad = False  # frozen ones are members too
    groups = parameter_groups(model)
    named = {id(p): name for name, p in model.named_parameters()}
    assert [named[id(p)] for p in groups["bias"]] == [
        "conv.bias", "norms.0.bias", "norms.1.bias", "norms.2.bias", "attention.out_proj.bias",
    ]  # fmt: skip
    assert [named[id(p)] for p in groups["norm"]] == ["norms.0.weight", "norms.1.weight", "norms.2.weight"]
    assert {named[id(p)] for p in groups["weight"]} == {
        "scale", "conv.weight", "attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight",
    }  # fmt: skip
    assert sum(map(len, groups.values())) == len(named)


def test_own_classes_named_like_norms_decay():
    class NormHead(nn.Linear):
        pass

    assert len(parameter_groups(NormHead(2, 2))["weight"]) == 1


@pytest.mark.parametrize("cfg", ["yolov5n", "yolov5s"])
@pytest.mark.parametrize("name", NAMES)
def test_published_groups(golden_folder, cfg, name):
    yolo = pytest.importorskip("models.yolo")
    optimizer = build_optimizer(yolo.DetectionModel(f"{cfg}.yaml"), name, lr=0.01, momentum=0.937, weight_decay=5e-4)
    golden = json.loads((golden_folder / "optimizer.json").read_text())[f"{cfg}.{name}"]
    assert [group["name"] for group in optimizer.param_groups] == ["bias", "weight", "norm"]
    for group, expected in zip(optimizer.param_groups, golden, strict=True):
        ours = {key: group.get(key) for key in ("weight_decay", "lr", "nesterov", "momentum")}
        ours["betas"] = list(group["betas"]) if "betas" in group else None
        ours["tensors"], ours["parameters"] = len(group["params"]), sum(p.numel() for p in group["params"])
        assert ours == expected


@pytest.mark.parametrize("typed, meant", [("sgd", "SGD"), ("AdamQ", "Adam"), ("rmsprop", "RMSProp"), ("Lion", "SGD")])
def test_unknown_name_is_one_line(typed, meant):
    with pytest.raises(UserError, match=rf"--optimizer {typed}: .*did you mean {meant}\?$"):
        build_optimizer(nn.Linear(2, 2), typed)


def test_sgd_steps_follow_the_formula():
    model = nn.Linear(3, 2).double()
    weight = model.weight.detach().clone()
    optimizer = build_optimizer(model, lr=0.1, momentum=0.9, weight_decay=0.01)
    velocity = torch.zeros_like(weight)
    for step in range(4):
        gradient = torch.full_like(weight, 1.0 + step)
        model.weight.grad, model.bias.grad = gradient.clone(), torch.zeros(2).double()
        optimizer.step()
        decayed = gradient + 0.01 * weight
        velocity = 0.9 * velocity + decayed
        weight = weight - 0.1 * (decayed + 0.9 * velocity)
        torch.testing.assert_close(model.weight.detach(), weight)


def test_lists_that_are_kept_are_those_of_each_step():
    """Gradients come and go, states are loaded, groups are added, and momentum is 0 for a while."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.Linear(3, 2))
    theirs = copy.deepcopy(ours)
    fast = build_optimizer(ours[:3], lr=0.1, momentum=0.9, weight_decay=0.01)
    groups = [
        {"params": group, "weight_decay": 0.01 * (key == "weight")}
        for key, group in parameter_groups(theirs[:3]).items()
    ]
    slow = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, foreach=False, fused=False)
    for step in range(24):
        if step == 8:
            fast.load_state_dict(copy.deepcopy(fast.state_dict()))
        if step == 12:
            fast.add_param_group({"params": list(ours[3].parameters()), "weight_decay": 0.0})
            slow.add_param_group({"params": list(theirs[3].parameters()), "weight_decay": 0.0})
        for optimizer in (fast, slow):
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["momentum"], group["lr"] = (0.0, 0.05) if 15 < step < 18 else (0.9, 0.1)
        for k, (mine, other) in enumerate(zip(ours.parameters(), theirs.parameters(), strict=True)):
            if step % 4 or k % 3:  # in every fourth step a third of the parameters has none
                mine.grad = torch.randn_like(mine)
                other.grad = mine.grad.clone()
        fast.step()
        slow.step()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    momenta = [
        [values["momentum_buffer"] for values in optimizer.state_dict()["state"].values()] for optimizer in (fast, slow)
    ]
    torch.testing.assert_close(*momenta, rtol=1e-5, atol=1e-6)


def test_lists_are_built_once(monkeypatch):
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model)
    seen = []
    for _ in range(3):
        model.zero_grad(set_to_none=True)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        seen.append(optimizer._lists)
    assert seen[0] is not None and seen[0] is seen[1] is seen[2]


def test_parameters_of_two_types_take_the_optimizer_of_torch():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).double())
    optimizer = build_optimizer(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.step()
    assert type(optimizer) is torch.optim.SGD
    assert all((parameter != old).all() for parameter, old in zip(model.parameters(), before, strict=True))


def test_a_closure_is_called_with_gradients():
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3)).sum()
        loss.backward()
        return loss

    before = model.weight.detach().clone()
    assert optimizer.step(closure).requires_grad and (model.weight != before).all()


@pytest.mark.parametrize("name, plain", [("Adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW)])
def test_adam_kernels_follow_the_plain_loop(name, plain):
    torch.manual_seed(0)
    ours = nn.Linear(5, 4)
    theirs = copy.deepcopy(ours)
    fast = build_optimizer(ours, name, lr=0.01, momentum=0.9, weight_decay=0.1)
    slow = plain([{"params": [theirs.bias], "weight_decay": 0.0}, {"params": [theirs.weight], "weight_decay": 0.1}],
                 lr=0.01, betas=(0.9, 0.999), foreach=False)  # fmt: skip
    for _ in range(10):
        for mine, other in zip(ours.parameters(), theirs.parameters()):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        fast.step()
        slow.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_set_rates(name):
    optimizer = build_optimizer(Attention(), name, momentum=0.937)
    set_rates(optimizer, Rates(lr_bias=0.3, lr_weight=0.2, lr_norm=0.1, momentum=0.5, accumulate=1))
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.2, 0.1]
    for group in optimizer.param_groups:
        if name.startswith("Adam"):
            assert group["betas"] == (0.937, 0.999) and "momentum" not in group
        else:
            assert group["momentum"] == 0.5


@pytest.mark.parametrize("batch, accumulate, factor", [(16, 4, 1), (40, 2, 1.25), (64, 1, 1), (128, 1, 2)])
def test_weight_decay_grows_with_the_step(batch, accumulate, factor):
    assert scaled_weight_decay(5e-4, batch, accumulate) == pytest.approx(5e-4 * factor)


@pytest.mark.parametrize("name", NAMES)
def test_state_comes_back(name):
    model = nn.Linear(3, 3)
    optimizer = build_optimizer(model, name)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    again = build_optimizer(copy.deepcopy(model), name)
    again.load_state_dict(optimizer.state_dict())
    assert [group["name"] for group in again.param_groups] == ["bias", "weight", "norm"]
    assert again.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()
