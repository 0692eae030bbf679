"""Decisions of a training step on the device, tested on the CPU: the same run without a device sync."""

import copy
import functools
import math
import os
import signal
from contextlib import nullcontext

import pytest
import torch
from kill_and_resume import find_differences
from test_nan_guard import (
    STEPS,
    arguments,
    assert_finite,
    at,
    into_a_gradient,
    into_a_weight,
    into_the_images,
    into_the_loss,
    rows_of,
    state_of,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import train
from utils.config import Hyperparameters
from utils.ema import ModelEMA
from utils.images.augment import ColorFlip
from utils.images.gpu_augment import apply_color_flips
from utils.loading import prefetch as prefetching
from utils.loading.dataset import Batch
from utils.loading.prefetch import one_ahead, prefetch
from utils.loss import DetectionLoss, scale_gains
from utils.optim import build_optimizer, take_step
from utils.training.nan_guard import PATIENCE, NanGuard

pytestmark = pytest.mark.usefixtures("fast_kernels")  # their plain twins may sync

OPTIMIZERS = pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Muon"])


@pytest.fixture
def is_async(monkeypatch):
    """Let every guard behave as on a GPU."""
    monkeypatch.setattr("utils.training.state.NanGuard", functools.partial(NanGuard, is_async=True))


def same(one: dict, other: dict, **close) -> None:
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, **({"rtol": 0, "atol": 0} | close), msg=name)


# ---- whole runs


@pytest.mark.parametrize("spoil", [into_the_loss, into_a_gradient, into_the_images])
@pytest.mark.parametrize("iteration", [0, 4, 2 * STEPS - 1], ids=["first", "middle", "last"])
def test_an_async_decision_skips_the_same_step(tiny_data, tiny_cfg, tmp_path, monkeypatch, spoil, iteration):
    spoil(monkeypatch, math.nan, at(iteration))
    train.main(arguments(tiny_data, tiny_cfg, tmp_path / "now", 2))
    monkeypatch.setattr("utils.training.state.NanGuard", functools.partial(NanGuard, is_async=True))
    train.main(arguments(tiny_data, tiny_cfg, tmp_path / "async", 2))
    now, then = state_of(tmp_path / "now"), state_of(tmp_path / "async")
    assert then["guard"] == now["guard"] and now["guard"]["skipped"] == 1
    assert then["ema"]["updates"] == now["ema"]["updates"] == 2 * STEPS - 1 and then["means"] == now["means"]
    same(now["model"]["state_dict"], then["model"]["state_dict"])
    same(now["ema"]["state_dict"], then["ema"]["state_dict"], rtol=1e-5, atol=1e-6)
    for key, entries in now["optimizer"]["state"].items():
        same(entries, then["optimizer"]["state"][key])


@pytest.mark.parametrize("first", [STEPS, 2 * STEPS - PATIENCE], ids=["over two epochs", "to the end of an epoch"])
def test_consecutive_non_finite_steps_roll_the_run_back_one_step_later(
    tiny_data, tiny_cfg, tmp_path, monkeypatch, is_async, first
):
    into_the_loss(monkeypatch, math.nan, at(*range(first, first + PATIENCE)))
    train.main(arguments(tiny_data, tiny_cfg, tmp_path, 4))
    guard = state_of(tmp_path)["guard"]
    assert (guard["skipped"], guard["returns"], guard["in_a_row"]) == (PATIENCE, 1, 0)
    assert_finite(tmp_path)


def test_a_non_finite_weight_is_found_by_the_end_of_the_epoch(tiny_data, tiny_cfg, tmp_path, monkeypatch, is_async):
    into_a_weight(monkeypatch, math.nan, at(4))
    train.main(arguments(tiny_data, tiny_cfg, tmp_path, 3))
    assert state_of(tmp_path)["guard"]["returns"] == 1
    assert_finite(tmp_path)


def test_an_async_decision_survives_an_interruption(tiny_data, tiny_cfg, tmp_path, monkeypatch, is_async):
    """Stop when the last non-finite step is counted but not read yet. The resumed run rolls back as the whole one."""
    monkeypatch.setattr("utils.training.state.PATIENCE", 2)
    into_the_loss(monkeypatch, math.nan, at(STEPS, STEPS + 1))
    train.main(arguments(tiny_data, tiny_cfg, tmp_path / "whole", 3))
    plain = train.prepare_images

    def prepare(run, images):
        if run.progress.iteration == STEPS + 1 and run.nan_guard.rollbacks == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(run, images)

    with monkeypatch.context() as patch:
        patch.setattr(train, "prepare_images", prepare)
        with pytest.raises(SystemExit):
            train.main(arguments(tiny_data, tiny_cfg, tmp_path / "part", 3))
    saved = state_of(tmp_path / "part")
    assert (saved["step"], saved["guard"]["in_a_row"]) == (2, 2)
    train.main(["--resume", str(tmp_path / "part" / "run"), "--project", str(tmp_path / "whole")])
    assert find_differences(tmp_path / "whole" / "run", tmp_path / "part" / "run") == []
    assert state_of(tmp_path / "part")["guard"]["returns"] == 1
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "part")


# ---- the parts


class Reads(TorchDispatchMode):
    """Counter of how often a number is read from a tensor."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


@OPTIMIZERS
def test_the_optimizer_step_reads_no_tensor(name):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    guard, ema, optimizer = NanGuard(model, is_async=True), ModelEMA(model), build_optimizer(model, name)
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    with Reads() as reads:
        assert bool(torch.ones(()))
        assert reads.count == 1
        admitted = guard.allow_step(nn.utils.clip_grad_norm_(model.parameters(), 10.0))
        take_step(optimizer, admitted)
        ema.update(model, admitted)
    assert reads.count == 1 and (guard.skipped, int(ema.updates)) == (0, 1)


def test_the_loss_reads_nothing_from_the_device(monkeypatch):
    """Run on the device `meta`, whose tensors have no content: reading one is an error."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no such device
    hyp = scale_gains(Hyperparameters(cls_pw=0.5, fl_gamma=1.5), 3, 4, 64)
    anchors, strides = torch.rand(3, 3, 2) + 0.5, torch.tensor([8.0, 16.0, 32.0])
    predictions = [torch.zeros(2, 3, 64 // s, 64 // s, 9, device="meta", requires_grad=True) for s in (8, 16, 32)]
    targets = torch.tensor([[0, 1, 0.5, 0.5, 0.2, 0.2], [1, 3, 0.3, 0.7, 0.1, 0.4]])
    total, parts = DetectionLoss(anchors, strides, 4, hyp, autobalance=True)(predictions, targets)
    total.backward()
    assert predictions[0].grad.shape == predictions[0].shape and parts.box.device.type == "meta"


def test_color_flips_read_nothing_from_the_device():
    rows = torch.tensor([ColorFlip(1.1, 0.9, 1.2), ColorFlip(fliplr=True), ColorFlip(flipud=True)])
    done = apply_color_flips(torch.zeros(3, 3, 8, 8, dtype=torch.uint8, device="meta"), rows)
    assert done.device.type == "meta" and done.dtype == torch.uint8


@OPTIMIZERS
@pytest.mark.parametrize("bad", range(4), ids="no first step\nno second step\nno third step\nall of them".split("\n"))
def test_a_step_decided_on_the_device_equals_the_plain_one(name, bad):
    """Skip step number `bad`. Skipping the first one must not leave SGD with a momentum that was never written."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1))
    plain[1].bias.requires_grad = False
    other = copy.deepcopy(plain)
    optimizers = [build_optimizer(model, name, weight_decay=0.1) for model in (plain, other)]
    for step in range(3):
        gradients = [torch.randn_like(parameter) for parameter in plain.parameters()]
        for model in (plain, other):
            for parameter, gradient in zip(model.parameters(), gradients):
                parameter.grad = gradient / (0 if step == bad else 1) if parameter.requires_grad else None
        take_step(optimizers[0], step != bad)
        take_step(optimizers[1], torch.tensor(step != bad))
        same(plain.state_dict(), other.state_dict())
    assert not hasattr(optimizers[1], "found_inf")
    for one, another in zip(*(optimizer.state_dict()["state"].values() for optimizer in optimizers), strict=True):
        same(one, another)


def test_an_ema_update_decided_on_the_device_equals_the_plain_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    plain, other = ModelEMA(model, tau=5), ModelEMA(model, tau=5)
    for admitted in (False, True, True, False, True):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        before = copy.deepcopy(other.ema.state_dict())
        plain.update(model, admitted), other.update(model, torch.tensor(admitted))
        assert admitted or all(torch.equal(value, before[key]) for key, value in other.ema.state_dict().items())
    assert plain.state_dict()["updates"] == other.state_dict()["updates"] == 3
    assert type(other.state_dict()["updates"]) is int
    same(plain.ema.state_dict(), other.ema.state_dict(), rtol=1e-5, atol=1e-6)


def test_an_async_guard_lags_one_step():
    guard = NanGuard(nn.BatchNorm1d(1), patience=2, is_async=True)
    seen = [
        (bool(guard.allow_step(torch.tensor(norm))), guard.consecutive, guard.needs_rollback)
        for norm in (math.nan, math.nan, 1.0, math.nan)
    ]
    assert seen == [(False, 1, False), (False, 2, False), (True, 0, True), (False, 1, False)]
    guard.allow_step(torch.tensor(math.nan))
    assert not guard.needs_rollback
    guard.sync()
    assert guard.needs_rollback and guard.skipped == 4


# ---- batches


def batches(count: int) -> list[Batch]:
    return [Batch(torch.full((1, 3, 2, 2), k, dtype=torch.uint8), torch.zeros(0, 6), [], []) for k in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_batches_keep_their_order_and_follow_the_next_transfer(count):
    events = []

    def send(batch):
        events.append(("sent", int(batch.images[0, 0, 0, 0])))
        return lambda: batch

    for batch in one_ahead(batches(count), send):
        events.append(("used", int(batch.images[0, 0, 0, 0])))
    sent, used = ([k for what, k in events if what == kind] for kind in ("sent", "used"))
    assert sent == used == list(range(count))
    assert all(events.index(("sent", k + 1)) < events.index(("used", k)) for k in range(count - 1))
    assert all(events.index(("used", k)) < events.index(("sent", k + 2)) for k in range(count - 2))


def test_all_epochs_share_one_stream_of_a_device(monkeypatch):
    """Reuse the stream: freed memory stays with its stream, so a new one per epoch would allocate again."""
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or len(made))
    monkeypatch.setattr(prefetching, "_send", lambda batch, device, stream: lambda: (batch, stream))
    prefetching._side_stream.cache_clear()
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    streams = [{stream for _, stream in prefetch(batches(3), device)} for device in (first, second, first)]
    prefetching._side_stream.cache_clear()
    assert streams == [{1}, {2}, {1}] and made == [first, second]


def test_on_the_cpu_batches_are_unchanged():
    some = batches(3)
    assert all(ours is theirs for ours, theirs in zip(prefetch(some, torch.device("cpu")), some, strict=True))
