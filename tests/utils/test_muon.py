"""Muon against polar factors by SVD in float64, its fast version against its plain twin, and its state."""

import copy
import math

import pytest
import torch
from torch import nn

from models.yolo import DetectionModel
from utils.kernels import FAST
from utils.muon import FusedMuon, Muon, find_kernels, polar_factor, polar_factors, to_kernel, to_matrix, update_scale
from utils.optim import MuonSettings, build_optimizer, set_rates, take_step
from utils.schedule import Rates

needs_fast = pytest.mark.skipif(not FAST, reason="the plain twin is in use")


class Net(nn.Module):
    """Kernels of each kind. Muon takes those with at least 8 outputs that are not in the head."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 8, 3)  # 8 x 27
        self.also_wide = nn.Conv2d(3, 8, 3, bias=False)
        self.square = nn.Conv2d(9, 9, 1)
        self.tall = nn.Conv2d(4, 32, 1)  # 32 x 4
        self.grouped = nn.Conv2d(8, 16, (1, 3), groups=4)  # 16 x 6
        self.depthwise = nn.Conv2d(10, 10, 2, groups=10)  # 10 x 4
        self.norm = nn.BatchNorm2d(8)
        self.small = nn.Conv2d(3, 7, 3)
        self.linear = nn.Linear(8, 8)
        self.head = nn.ModuleList([nn.Conv2d(8, 24, 1)])


TAKEN = {f"{name}.weight" for name in ("wide", "also_wide", "square", "tall", "grouped", "depthwise")}


def svd_polar_factor(matrix: torch.Tensor) -> torch.Tensor:
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return left @ right


def matrix_with(values: torch.Tensor, columns: int) -> torch.Tensor:
    """Return a float64 matrix with these singular values."""
    left = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, len(values), dtype=torch.float64)).Q
    return left @ torch.diag(values.double()) @ right.T


def spread_gradients(*models: nn.Module, seed: int) -> None:
    """Set the gradients of all parameters, in their memory format as autograd does."""
    generator = torch.Generator().manual_seed(seed)
    for parameters in zip(*(model.parameters() for model in models), strict=True):
        gradient = torch.randn(parameters[0].shape, generator=generator)
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


def state_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [entry["momentum_buffer"] for entry in optimizer.state_dict()["state"].values()]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


# ---- polar factors


@pytest.mark.parametrize("shape", [(8, 27), (27, 8), (16, 16), (1, 1), (1, 5), (5, 1), (130, 300), (300, 130)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_polar_factors_are_those_of_the_svd(shape, scale):
    torch.manual_seed(0)
    values = torch.linspace(1, 0.1, min(shape))
    matrix = matrix_with(values, max(shape)) * scale
    matrix = matrix if shape[0] <= shape[1] else matrix.T
    expected = svd_polar_factor(matrix)
    for found in (polar_factor(matrix.float()), polar_factors(matrix.float()[None])[0]):
        assert torch.linalg.matrix_norm(found.double() - expected, 2) < 0.05


@pytest.mark.parametrize("smallest", [0.1, 0.01, 0.004])
@pytest.mark.parametrize("rows, columns", [(12, 12), (12, 60), (128, 256)])
def test_singular_values_above_a_five_hundredth_of_the_norm_become_nearly_one(smallest, rows, columns):
    torch.manual_seed(0)
    values = torch.logspace(0, math.log10(smallest), rows)
    matrix = matrix_with(values, columns)
    found = polar_factors(matrix.float()[None])[0].double()
    singular = torch.linalg.svdvals(found)
    above = values > 2.1e-3 * values.norm()
    assert above.double().mean() > 0.5 and singular.max() < 1.03 and singular[: int(above.sum())].min() > 0.95
    assert (singular > 0.25).all()  # smaller ones end lower
    # A Gram matrix in float32 has the squares of small singular values with few digits. That is far below 5 percent.
    assert (found - polar_factor(matrix)).abs().max() < 2e-3


def test_one_large_singular_value_does_not_hide_the_small_ones_in_rounding():
    torch.manual_seed(0)
    values = torch.full((16,), 4e-3)
    values[0] = 1.0
    matrix = matrix_with(values, 108)
    assert (polar_factors(matrix.float()[None])[0].double() - svd_polar_factor(matrix)).abs().max() < 0.03


@pytest.mark.parametrize("shape", [(3, 8, 27), (2, 27, 8), (2, 16, 16), (4, 1, 1), (1, 64, 288), (1, 9, 1)])
def test_batches_equal_single_matrices(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.tensor([1.0, 1e3, 1e-3, 1.0])[: shape[0], None, None]
    together = polar_factors(matrices)
    for matrix, found in zip(matrices, together, strict=True):
        torch.testing.assert_close(found, polar_factor(matrix), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rows, columns", [(64, 64), (128, 576), (256, 256)])
@pytest.mark.parametrize("rank, noise", [(1, 0.0), (3, 1e-9), (3, 1e-6)])
def test_nearly_singular_matrices_stay_bounded(rows, columns, rank, noise):
    """The momentum of real gradients is often nearly singular. Rounding must not make its small directions explode."""
    torch.manual_seed(0)
    matrix = torch.randn(rows, rank) @ torch.randn(rank, columns) + noise * torch.randn(rows, columns)
    singular = torch.linalg.svdvals(polar_factors(matrix[None])[0].double())
    assert singular.max() < 1.03 and singular[rank - 1] > 0.95


@pytest.mark.parametrize("shape", [(2, 128, 128), (1, 256, 128), (1, 256, 1152), (1, 64, 64)])
def test_coarse_products_are_off_by_a_hundredth(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    exact, coarse = polar_factors(matrices), polar_factors(matrices, coarse=True)
    assert coarse.dtype == torch.float32
    assert (coarse - exact).abs().max() <= 0.02 * exact.abs().max()
    assert torch.linalg.matrix_norm(coarse, 2).max() < 1.04


@pytest.mark.parametrize("rank, noise", [(1, 0.0), (3, 1e-6)])
def test_coarse_products_of_nearly_singular_matrices_stay_bounded(rank, noise):
    torch.manual_seed(0)
    matrix = torch.randn(256, rank) @ torch.randn(rank, 256) + noise * torch.randn(256, 256)
    singular = torch.linalg.svdvals(polar_factors(matrix[None], coarse=True)[0].double())
    assert singular[0] < 1.03 and singular[rank - 1] > 0.95
    assert singular[rank] < 0.5  # rounding


def test_products_are_coarse_with_autocast_to_bfloat16(net):
    for settings, expected in ((MuonSettings(coarse=True), True), (MuonSettings(), False), (None, False)):
        (kernels,) = (group for group in build_optimizer(net, "Muon", muon=settings).param_groups if "coarse" in group)
        assert (kernels["name"], kernels["coarse"]) == ("kernel", expected)


@pytest.mark.parametrize("shape", [(1, 4, 9), (2, 128, 130), (1, 9, 4)])
def test_zeros_give_zeros(shape):
    assert torch.equal(polar_factors(torch.zeros(shape)), torch.zeros(shape))
    assert torch.equal(polar_factor(torch.zeros(shape[1:])), torch.zeros(shape[1:]))


def test_matrices_of_other_types():
    for dtype, result in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        assert polar_factors(torch.ones(1, 2, 3, dtype=dtype)).dtype == result


def test_kernels_and_matrices_are_the_same_in_every_memory_format():
    kernel = torch.randn(8, 3, 2, 5)
    for form in (torch.contiguous_format, torch.channels_last):
        matrix = to_matrix(kernel.to(memory_format=form))
        assert matrix.shape == (8, 30) and torch.equal(to_kernel(matrix, kernel.shape), kernel)
        assert torch.equal(matrix[:, :3], kernel[:, :, 0, 0])


@pytest.mark.parametrize("shape, scale", [((8, 3, 3, 3), 1.0), ((32, 4, 1, 1), math.sqrt(8)), ((9, 9, 1, 1), 1.0),
                                          ((64, 4, 3, 3), 4 / 3)])  # fmt: skip
def test_the_scale_is_that_of_the_flattened_shape(shape, scale):
    assert update_scale(torch.Size(shape)) == pytest.approx(scale)


# ---- groups


def test_kernels_with_8_outputs_outside_the_head_are_taken(net):
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert {names[id(kernel)] for kernel in find_kernels(net)} == TAKEN
    groups = build_optimizer(net, "Muon").param_groups
    assert [group["name"] for group in groups] == ["bias", "weight", "norm", "kernel"]
    assert {names[id(entry)] for entry in groups[1]["params"]} == {"small.weight", "linear.weight", "head.0.weight"}
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_kernels_of_a_detector():
    model = DetectionModel("yolov5n.yaml")
    kernels, head = find_kernels(model), {id(parameter) for parameter in model.head.parameters()}
    assert len(kernels) == 57 and not head & {id(kernel) for kernel in kernels}
    assert len({id(kernel) for kernel in kernels}) == 57


def test_rates_follow_the_schedule_of_weights(net):
    optimizer = build_optimizer(net, "Muon", lr=0.01, momentum=0.9, muon=MuonSettings(0.05, 0.95, 0.1))
    rates = Rates(lr_bias=0.1, lr_weight=0.004, lr_norm=0.003, momentum=0.8, accumulate=1)
    set_rates(optimizer, rates)
    *others, kernel = optimizer.param_groups
    assert [(group["lr"], group["momentum"]) for group in others] == [(0.1, 0.8), (0.004, 0.8), (0.003, 0.8)]
    assert kernel["lr"] == pytest.approx(0.02) and kernel["muon_momentum"] == pytest.approx(0.85)
    assert (kernel["momentum"], kernel["weight_decay"]) == (0, 0.1)
    for momentum, found in ((0.9, 0.95), (0.9999, 0.9999), (0.0, 0.05)):
        set_rates(optimizer, rates._replace(momentum=momentum))
        assert kernel["muon_momentum"] == pytest.approx(found)


def test_settings_default_to_twice_the_rate(net):
    kernel = build_optimizer(net, "Muon", lr=0.01, momentum=0.8, weight_decay=0.3).param_groups[-1]
    assert (kernel["lr"], kernel["muon_momentum"], kernel["weight_decay"]) == (0.02, 0.8, 0.3)


# ---- steps


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_steps_follow_the_formula_in_float64(net, memory_format):
    """Compare several steps with an independent reference: momentum, SVD, scale and decoupled decay."""
    net = net.to(memory_format=memory_format)
    optimizer = build_optimizer(net, "Muon", muon=MuonSettings(0.05, 0.9, 0.2))
    kernels = {name: weight for name, weight in net.named_parameters() if name in TAKEN}
    weights = {name: weight.detach().double().flatten(1) for name, weight in kernels.items()}
    averages = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step in range(3):
        spread_gradients(net, seed=step)
        for name, kernel in kernels.items():
            gradient = kernel.grad.double().flatten(1)
            averages[name] = 0.9 * averages[name] + (1 - 0.9) * gradient
            update = svd_polar_factor(0.9 * averages[name] + (1 - 0.9) * gradient)
            rows, columns = update.shape
            scale = math.sqrt(max(1, rows / columns))
            weights[name] = (1 - 0.05 * 0.2) * weights[name] - 0.05 * scale * update
        take_step(optimizer, True)
        for name, kernel in kernels.items():
            found = kernel.detach().double().flatten(1)
            # 5 percent of an update: singular values end between 0.95 and 1.03
            assert torch.linalg.matrix_norm(found - weights[name], 2) < (step + 1) * 0.05 * 0.05 * 3, name
            weights[name] = found
            buffer = optimizer.state[kernel]["momentum_buffer"].double().flatten(1)
            torch.testing.assert_close(buffer, averages[name], rtol=1e-5, atol=1e-6)


@needs_fast
def test_fast_steps_equal_the_plain_ones(net, monkeypatch):
    ours, theirs = net.to(memory_format=torch.channels_last), copy.deepcopy(net)
    fast = build_optimizer(ours, "Muon", weight_decay=0.1)
    monkeypatch.setattr("utils.kernels.FAST", False)
    slow = build_optimizer(theirs, "Muon", weight_decay=0.1)
    assert (type(fast), type(slow)) == (FusedMuon, Muon)
    for step in range(4):
        spread_gradients(ours, theirs, seed=step)
        fast.step()
        slow.step()
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(state_of(fast), state_of(slow), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_all_other_parameters_step_as_with_sgd(net):
    other = copy.deepcopy(net)
    muon, sgd = build_optimizer(net, "Muon"), build_optimizer(other, "SGD")
    for step in range(3):
        spread_gradients(net, other, seed=step)
        muon.step()
        sgd.step()
    for (name, one), another in zip(net.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, another) == (name not in TAKEN), name


def test_kernels_without_a_gradient_stay(net):
    optimizer = build_optimizer(net, "Muon", muon=MuonSettings(weight_decay=0.5))
    for step in range(2):
        spread_gradients(net, seed=step)
        frozen = (net.wide.weight, net.tall.weight) if step == 0 else tuple(net.parameters())
        before = [parameter.detach().clone() for parameter in frozen]
        for parameter in frozen:
            parameter.grad = None
        optimizer.step()
        assert all(torch.equal(one, another) for one, another in zip(frozen, before, strict=True))
    assert net.wide.weight not in optimizer.state or not optimizer.state[net.wide.weight]


def test_a_zero_gradient_only_decays(net):
    optimizer = build_optimizer(net, "Muon", muon=MuonSettings(0.1, 0.9, 0.5))
    spread_gradients(net, seed=0)
    before = net.wide.weight.detach().clone()
    net.wide.weight.grad.zero_()
    optimizer.step()
    torch.testing.assert_close(net.wide.weight.detach(), 0.95 * before)


@needs_fast
@pytest.mark.parametrize("after", [0, 2])
def test_a_step_that_is_not_allowed_changes_nothing(net, after):
    """The decision is a tensor, and the gradients are NaN. With `after`, there is momentum already."""
    optimizer = build_optimizer(net, "Muon")
    for step in range(after):
        spread_gradients(net, seed=step)
        take_step(optimizer, torch.tensor(True))
    before = copy.deepcopy(net)
    averages = [value.clone() for value in state_of(optimizer)]
    spread_gradients(net, seed=9)
    for parameter in net.parameters():
        parameter.grad.fill_(math.nan)
    take_step(optimizer, torch.tensor(False))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before.parameters(), strict=True))
    for value, expected in zip(state_of(optimizer), averages or [torch.zeros(1)] * 99):
        assert torch.equal(value, expected.expand_as(value))


def test_parameters_of_two_types_take_the_plain_twin(net):
    net.linear.double()
    optimizer = build_optimizer(net, "Muon")
    spread_gradients(net, seed=0)
    net.linear.weight.grad, net.linear.bias.grad = torch.ones(8, 8).double(), torch.ones(8).double()
    before = net.wide.weight.detach().clone()
    take_step(optimizer, torch.tensor(False))
    assert type(optimizer) is Muon and torch.equal(net.wide.weight, before)
    take_step(optimizer, True)
    assert not torch.equal(net.wide.weight, before)


def test_a_closure_sees_gradients_and_its_loss_comes_back(net):
    optimizer = build_optimizer(net, "Muon")

    def closure():
        loss = net.wide(torch.ones(1, 3, 4, 4)).sum()
        loss.backward()
        return loss

    before = net.wide.weight.detach().clone()
    assert optimizer.step(closure).requires_grad and not torch.equal(net.wide.weight, before)


def test_the_gradients_scale_is_not_seen_by_the_first_step(net):
    other = copy.deepcopy(net)
    spread_gradients(net, other, seed=0)
    for parameter in other.parameters():
        parameter.grad *= 1000
    for model in (net, other):
        build_optimizer(model, "Muon").step()
    torch.testing.assert_close(net.tall.weight, other.tall.weight, rtol=1e-3, atol=1e-5)


# ---- state


def test_a_restored_optimizer_takes_the_same_steps(net):
    optimizer = build_optimizer(net, "Muon")
    for step in range(2):
        spread_gradients(net, seed=step)
        optimizer.step()
    other = copy.deepcopy(net)
    again = build_optimizer(other, "Muon")
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    spread_gradients(net, other, seed=7)
    optimizer.step()
    again.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(state_of(optimizer), state_of(again), strict=True))


def test_a_grad_scaler_unscales_before_the_momentum_adds_up(net):
    """A fused SGD would do it in its kernel, which sees only the orthogonalised gradients."""
    assert build_optimizer(net, "Muon")._step_supports_amp_scaling is False
