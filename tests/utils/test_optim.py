"""Groups of parameters, arguments of each optimizer, and the formula of its steps."""

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
