"""Moving average against its formula, one tensor at a time."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from utils.ema import ModelEMA, unwrap


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    model.register_buffer("anchors", torch.ones(3, 2))
    model.register_buffer("scratch", torch.zeros(2), persistent=False)
    return model


def disturb(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        model[1].running_mean.add_(1)
        model[1].num_batches_tracked.add_(1)
        model.scratch.add_(1)


def test_decay_ramps_up(golden_folder):
    golden = np.load(golden_folder / "schedule.npz")["ema_decay"]
    ema = ModelEMA(small_model())
    ours = [ema.decay_at(n) for n in (1, 10, 100, 1000, 2000, 10000, 100000)]
    np.testing.assert_allclose(ours, golden, rtol=0, atol=1e-9)
    assert ema.decay_at(0) == 0


def test_three_updates_follow_the_formula():
    model = small_model()
    ema = ModelEMA(model, decay=0.9, tau=5)
    expected = copy.deepcopy(model.state_dict())
    for n in (1, 2, 3):
        disturb(model)
        ema.update(model)
        d = 0.9 * (1 - np.exp(-n / 5))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = d * expected[name] + (1 - d) * value
    assert ema.updates == 3
    for name, value in ema.ema.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)
    assert ema.ema[1].num_batches_tracked == 0 and model[1].num_batches_tracked == 3  # integers stay
    assert torch.equal(ema.ema.scratch, torch.zeros(2))  # what is not saved does not follow


def test_copy_is_apart_in_eval_mode_and_without_gradients():
    model = small_model().train()
    ema = ModelEMA(model)
    assert model.training and not any(module.training for module in ema.ema.modules())
    assert not any(parameter.requires_grad for parameter in ema.ema.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    own = {value.data_ptr() for value in ema.ema.state_dict().values()}
    assert own.isdisjoint(value.data_ptr() for value in model.state_dict().values())


def test_replaced_buffers_are_followed():
    model = small_model()
    ema = ModelEMA(model)
    ema.update(model)
    model.anchors = torch.full((3, 2), 9.0)  # a new tensor, as when anchors are fitted
    for _ in range(3):
        ema.update(model)
    assert ema.ema.anchors.min() > 8.9


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        setattr(self, name, model)


def test_wrappers_are_removed():
    model = small_model()
    wrapped = Wrapper(Wrapper(model, "_orig_mod"), "module")
    assert unwrap(wrapped) is model and unwrap(model) is model
    ema = ModelEMA(wrapped)
    disturb(model)
    ema.update(wrapped)
    assert list(ema.ema.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(ema.ema[0].weight, model[0].weight, rtol=0, atol=5e-3)


def test_another_layout_is_refused():
    ema = ModelEMA(small_model())
    with pytest.raises(AssertionError, match="layout"):
        ema.update(nn.Linear(2, 2))


def test_shared_weights_move_once():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    ema = ModelEMA(model, decay=0.5, tau=1e-9)
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    ema.update(model)
    torch.testing.assert_close(ema.ema[1].weight, before + 0.5)


def test_state_comes_back_exactly():
    model = small_model()
    ema = ModelEMA(model)
    for _ in range(3):
        disturb(model)
        ema.update(model)
    again = ModelEMA(small_model(seed=1))
    again.load_state_dict(copy.deepcopy(ema.state_dict()))
    disturb(model)
    ema.update(model)
    again.update(model)
    assert again.updates == ema.updates == 4
    for name, value in ema.ema.state_dict().items():
        assert torch.equal(value, again.ema.state_dict()[name]), name


def test_a_model_whose_type_changes_in_place_is_followed():
    """Buffers are replaced then, but a model without any shows it only in the contents of its parameters."""
    model = nn.Linear(2, 3)
    average = ModelEMA(model)
    average.update(model), average.update(model)
    model.double()
    with torch.no_grad():
        model.weight.add_(1)
    before = average.ema.weight.clone()
    average.update(model)
    assert average.ema.weight.dtype is torch.float32 and not torch.equal(average.ema.weight, before)
