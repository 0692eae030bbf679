"""Each speed trick against its plain twin, and the environment variable that turns all of them off.

Tolerances: two results are bit-identical unless sums are rounded in another order. Then they differ by a few units in
the last place of their type, 1.2e-7 of the larger summand in float32.
"""

import copy
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing import reductions

from models.yolo import DetectionModel
from utils import kernels
from utils.config import Hyperparameters
from utils.ema import ModelEMA
from utils.fused_sgd import FusedSGD
from utils.loss import DetectionLoss, scale_gains
from utils.optim import build_optimizer, parameter_groups, take_step

ROOT = Path(__file__).resolve().parents[2]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
LAYOUTS = [torch.channels_last, torch.contiguous_format]
ROUNDING = {"rtol": 1e-6, "atol": 1e-6}  # float32, a few summands of about 1

pytestmark = pytest.mark.usefixtures("fast_kernels")


# ---- the switch


@pytest.mark.parametrize("value, fast", [(None, True), ("", True), ("0", True), ("1", False)])
def test_one_variable_turns_every_trick_off(value, fast):
    environment = {key: text for key, text in os.environ.items() if key != "ANCHORAGE_PLAIN"}
    environment |= {} if value is None else {"ANCHORAGE_PLAIN": value}
    done = subprocess.run(
        [sys.executable, "-c", "from utils import kernels; print(kernels.FAST)"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, str(fast)), done.stderr


@pytest.mark.skipif(bool(os.environ.get("ANCHORAGE_PLAIN")), reason="the whole suite runs on the twins already")
def test_the_numbers_hold_on_the_plain_twins():
    files = [f"tests/utils/test_{name}.py" for name in ("goldens", "trajectory", "loss", "optim", "ema")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not larger_models", *files],
        cwd=ROOT, env={**os.environ, "ANCHORAGE_PLAIN": "1"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def train_three_steps(device: str, layout: torch.memory_format) -> list[Tensor]:
    """Return the losses, weights and averages of three seeded steps, the second of which is skipped."""
    torch.manual_seed(0)
    cfg = {
        "nc": 3, "depth_multiple": 1.0, "width_multiple": 0.25, "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
        "backbone": [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "C3", [32]], [-1, 1, "SPPF", [32, 5]],
                     [-1, 1, "Conv", [32, 3, 2]]],
        "head": [[[2, 3], 1, "Detect", ["nc", "anchors"]]],
    }  # fmt: skip
    model = DetectionModel(cfg).train().to(device, memory_format=layout)
    gains = scale_gains(Hyperparameters(), model.head.num_levels, model.num_classes, 64, label_smoothing=0.1)
    loss = DetectionLoss(model.head.anchors, model.stride, model.num_classes, gains, autobalance=True)
    optimizer, ema = build_optimizer(model), ModelEMA(model, tau=5)
    targets = torch.tensor([[0, 0, 0.5, 0.5, 0.3, 0.2], [0, 2, 0.5, 0.5, 0.31, 0.2], [1, 1, 0.2, 0.7, 0.5, 0.6]])
    results = []
    for step in range(3):
        total, parts = loss(model(torch.rand(2, 3, 64, 64).to(device, memory_format=layout)), targets)
        total.backward()
        allowed = torch.tensor(step != 1, device=device)
        take_step(optimizer, allowed)
        ema.update(model, allowed)
        optimizer.zero_grad(set_to_none=True)
        results += [total, *parts, loss.balance]
    assert int(ema.updates) == 2
    return [*results, *model.state_dict().values(), *ema.ema.state_dict().values()]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device", DEVICES)
def test_three_training_steps_on_the_twins(device, layout, monkeypatch):
    fast = train_three_steps(device, layout)
    monkeypatch.setattr(kernels, "FAST", False)
    for one, other in zip(fast, train_three_steps(device, layout), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # rounding, grown over three steps


# ---- the loss


def cells_of(count: int, shape: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    """Return four indices (R,) of random cells, some of them more than once."""
    dice = torch.Generator().manual_seed(seed)
    return [torch.randint(0, side, (count,), generator=dice) for side in shape]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [0, 1, 200])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("is_permuted", [True, False], ids=["channels last", "contiguous"])
def test_gathered_predictions(device, count, dtype, tolerance, is_permuted):
    B, A, H, W, values = shape = 2, 3, 4, 5, 7
    torch.manual_seed(0)
    raw = torch.randn(B, H, W, A, values).permute(0, 3, 1, 2, 4) if is_permuted else torch.randn(shape)
    raw = raw.to(device, dtype)
    cells = [index.to(device) for index in cells_of(count, shape[:4])]
    weights = torch.randn(count, values).to(device, dtype), torch.randn(B, A, H, W).to(device, dtype)
    results = []
    for gather in (kernels.gather_predictions, kernels.gather_predictions_reference):
        prediction = raw.detach().requires_grad_()
        rows, objectness = gather(prediction, *cells)
        torch.autograd.backward((rows, objectness), weights)
        results.append((rows, objectness, prediction.grad))
    (rows, objectness, gradient), expected = results
    assert torch.equal(rows, expected[0])
    assert torch.equal(objectness, expected[1])
    torch.testing.assert_close(gradient, expected[2], rtol=tolerance, atol=tolerance)  # sums over rows in one cell
    assert gradient.stride() == raw.stride()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [0, 1, 7, 5000])
def test_scattered_values(device, count):
    values = torch.rand(count, device=device)
    (index,) = cells_of(count, (50,))
    index = index.to(device)
    found = kernels.scatter_last(values, index, 50)
    expected = torch.zeros(50, device=device)
    for place, value in zip(index.tolist(), values):
        expected[place] = value
    assert torch.equal(found, expected)
    assert torch.equal(kernels.scatter_last_reference(values, index, 50), expected)


@pytest.mark.parametrize("device", ["meta", *DEVICES])
@pytest.mark.parametrize("count", [0, 3])
def test_tensors_on_their_way_to_a_device(device, count):
    tensors = [torch.arange(count), torch.rand(count, 4), torch.arange(count) * 2, torch.rand(count, 2).double()]
    moved = kernels.to_device(tensors, torch.device(device))
    expected = kernels.to_device_reference(tensors, torch.device(device))
    for one, other in zip(moved, expected, strict=True):
        assert (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        assert device == "meta" or torch.equal(one, other)


# ---- the blocks


def test_silu_overwrites_its_input_only_without_gradients():
    x = torch.linspace(-5, 5, 11)
    expected = x * x.sigmoid()
    assert torch.allclose(kernels.silu(x), expected)
    assert x[0] == -5
    with torch.no_grad():
        assert torch.allclose(kernels.silu(x), expected)
    assert torch.allclose(x, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_concatenated_maps_get_gradients_of_their_own(layout):
    maps = [torch.rand(2, width, 5, 6).to(memory_format=layout).requires_grad_() for width in (3, 4, 1)]
    weight = torch.rand(2, 8, 5, 6).to(memory_format=layout)
    found, strides = {}, []
    for join in (kernels.concat_channels, kernels.concat_channels_reference):
        doubled = [2 * part for part in maps]
        if join is kernels.concat_channels:
            for part in doubled:
                part.register_hook(lambda gradient: strides.append(gradient.is_contiguous(memory_format=layout)))
        joined = join(doubled)
        found[join] = [joined.detach(), *torch.autograd.grad(joined, maps, weight)]
    assert all(map(torch.equal, *found.values()))
    assert strides == [layout is torch.channels_last] * 3  # slices of contiguous maps are as fast


def test_concatenated_maps_may_be_traced_and_differentiated_by_function():
    maps = [torch.rand(2, width, 3, 3) for width in (1, 2)]
    traced = torch.jit.trace(lambda *parts: kernels.concat_channels([2 * part for part in parts]), tuple(maps))
    assert torch.equal(traced(*maps), 2 * torch.cat(maps, 1))

    def total(first: Tensor) -> Tensor:
        return (kernels.concat_channels([first, maps[1]]) ** 2).sum()

    assert torch.allclose(torch.func.grad(total)(maps[0]), 2 * maps[0])
    assert torch.allclose(torch.func.jvp(total, (maps[0],), (torch.ones_like(maps[0]),))[1], 2 * maps[0].sum())


def test_gradients_that_no_map_needs_are_not_copied(monkeypatch):
    maps = [torch.rand(1, 2, 3, 3).to(memory_format=torch.channels_last) for _ in range(3)]
    maps[1].requires_grad_()
    joined, contiguous, copied = kernels.concat_channels(maps), Tensor.contiguous, []
    monkeypatch.setattr(Tensor, "contiguous", lambda part, **named: copied.append(part) or contiguous(part, **named))
    joined.backward(torch.ones_like(joined))
    assert len(copied) == 1 and (maps[1].grad == 1).all()


def test_concatenated_maps_of_two_types_or_without_a_gradient():
    single, half = torch.rand(1, 2, 3, 3), torch.rand(1, 2, 3, 3, dtype=torch.bfloat16).requires_grad_()
    joined = kernels.concat_channels([single, half])
    assert joined.dtype == torch.float32 and joined.requires_grad
    joined.sum().backward()
    assert half.grad.dtype == torch.bfloat16 and (half.grad == 1).all()
    with torch.no_grad():
        assert torch.equal(kernels.concat_channels([single, half]), joined)


# ---- the optimizer step


def test_fused_sgd_follows_torch_over_changes_of_its_lists():
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
    assert type(fast) is FusedSGD
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
            if step % 4 or k % 3:  # in every fourth step a third of the parameters has no gradient
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


def test_lists_are_built_once():
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model)
    seen = []
    for _ in range(3):
        model.zero_grad(set_to_none=True)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        seen.append(optimizer._tensors)
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

    def closure() -> Tensor:
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


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSProp"])
def test_plain_optimizers_are_those_of_torch_with_the_same_state(name, monkeypatch):
    model = nn.Linear(3, 3)
    fast = build_optimizer(model, name)
    model(torch.ones(1, 3)).sum().backward()
    fast.step()
    monkeypatch.setattr(kernels, "FAST", False)
    slow = build_optimizer(model, name)
    assert type(slow).__module__.startswith("torch.optim.") and not slow.defaults.get("fused")
    slow.step()
    states = [list(optimizer.state_dict()["state"].values()) for optimizer in (fast, slow)]
    assert [state.keys() for state in states[0]] == [state.keys() for state in states[1]]


# ---- the moving average


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shapes", [[(3,)], [(2, 3), (), (0,), (4,)]], ids=["one", "several"])
def test_copied_tensors(device, shapes):
    sources = [torch.randn(shape, device=device) for shape in shapes]
    fast, plain = ([torch.zeros(shape, device=device) for shape in shapes] for _ in range(2))
    kernels.copy_tensors(fast, sources)
    kernels.copy_tensors_reference(plain, sources)
    assert all(map(torch.equal, fast, sources)) and all(map(torch.equal, plain, sources))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
@pytest.mark.parametrize("is_tensor", [False, True])
def test_interpolated_states(device, share, is_tensor):
    torch.manual_seed(0)
    source = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4)).to(
        device
    )
    source.register_buffer("scratch", torch.zeros(2, device=device), persistent=False)
    source[2].weight = source[3].weight  # a shared tensor moves once
    target = copy.deepcopy(source)
    with torch.no_grad():
        for tensor in source.state_dict().values():
            tensor.add_(torch.ones_like(tensor))
        source.scratch.add_(1)
    plain, amount = copy.deepcopy(target), torch.tensor(share, device=device) if is_tensor else share
    with torch.no_grad():
        kernels.StateInterpolator(target).move(source, amount)
        kernels.interpolate_state_reference(plain, source, amount)
    for name, value in target.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], **ROUNDING)
    assert target[1].num_batches_tracked == plain[1].num_batches_tracked == 0  # integers stay
    assert not target.scratch.any()
    assert not plain.scratch.any()  # what is not saved stays


def test_a_model_in_another_type_is_followed():
    source = nn.Linear(2, 3).double()
    target = copy.deepcopy(source).float()
    with torch.no_grad():
        source.weight.add_(1)
        expected = copy.deepcopy(target)
        kernels.interpolate_state_reference(expected, source, 0.5)
        kernels.StateInterpolator(target).move(source, 0.5)
    assert torch.equal(target.weight, expected.weight) and target.weight.dtype is torch.float32


@pytest.mark.parametrize("fast", [True, False])
def test_another_layout_is_refused(fast, monkeypatch):
    monkeypatch.setattr(kernels, "FAST", fast)
    with pytest.raises(AssertionError, match="layout"):
        kernels.StateInterpolator(nn.Conv2d(2, 2, 1)).move(nn.Linear(2, 2, bias=False), 0.5)


# ---- data workers


class FakeCache:
    """Stand-in for PyTorch's records of shared memory."""

    def __init__(self):
        self.lock, self.freed = threading.Lock(), 0

    def free_dead_references(self) -> None:
        assert self.lock.locked()
        self.freed += 1


@pytest.mark.parametrize("fast, freed", [(True, 1), (False, 0)])
def test_records_of_shared_memory_are_dropped(fast, freed, monkeypatch):
    cache = FakeCache()
    monkeypatch.setattr(reductions, "shared_cache", cache)
    monkeypatch.setattr(kernels, "FAST", fast)
    kernels.free_shared_cache()
    assert cache.freed == freed
    monkeypatch.delattr(reductions, "shared_cache")
    kernels.free_shared_cache()  # the name is private: a version of PyTorch without it is fine


def test_pytorch_has_the_records_of_shared_memory():
    assert callable(reductions.shared_cache.free_dead_references)
