"""`--compile`: measured against the plain model, used if it is faster, and the same training either way."""

import copy
import shutil

import pytest
import torch
from tiny_training import train_flags
from torch import nn

import train
from utils.checkpoint import read_checkpoint
from utils.ema import unwrap
from utils.training.compile import (
    Compiled,
    best_times_alternating,
    choose_faster,
    compile_if_faster,
    compile_model,
    restore_buffers,
)

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))) or torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="torch.compile needs a C++ compiler on a CPU, and its code needs vector instructions",
)


def small_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def forward_backward(model: nn.Module, batch: torch.Tensor) -> None:
    model(batch).sum().backward()


def clock(monkeypatch, *speeds: float) -> None:
    monkeypatch.setattr("utils.training.compile.best_times_alternating", lambda sides, batches, device: speeds)


@pytest.mark.parametrize("plain, fast, used", [(2.0, 1.0, True), (1.0, 2.0, False), (1.0, 1.0, False)])
def test_the_faster_model_is_used_and_reported(monkeypatch, capsys, plain, fast, used):
    clock(monkeypatch, plain, fast)
    model, other = small_model(), small_model()
    assert choose_faster(model, other, forward_backward, []) is (other if used else model)
    printed = capsys.readouterr().out
    assert printed == (
        f"--compile is {'used' if used else 'ignored'}: a pass takes {1000 * fast:.1f} ms with it, "
        f"{1000 * plain:.1f} ms without\n"
    )


def test_a_failure_is_one_line_and_the_plain_model(capsys):
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("\n  no compiler here\nand forty lines more")

    model = small_model()
    assert choose_faster(model, Broken(), forward_backward, [torch.rand(2, 3, 4, 4)]) is model
    assert capsys.readouterr().out == "--compile is ignored: it fails here (RuntimeError: no compiler here)\n"


def test_a_measurement_leaves_no_trace():
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    with restore_buffers(model):
        forward_backward(model, torch.rand(2, 3, 4, 4))
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_side_has_every_batch_in_turn():
    calls = []
    sides = [lambda batch, name=name: calls.append((name, batch)) for name in "ab"]
    assert len(best_times_alternating(sides, [1, 2], CPU)) == 2
    assert calls[:8] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)] * 2


@pytest.fixture
def always(monkeypatch):
    """Run the measurement, but let the compiled model win."""

    def times(sides, batches, device):
        best_times_alternating(sides, batches[:1], device)
        return 2.0, 1.0

    monkeypatch.setattr("utils.training.compile.best_times_alternating", times)
    monkeypatch.setattr("utils.training.compile.ROUNDS", 1), monkeypatch.setattr("utils.training.compile.WARM_UP", 1)


def arguments(data, cfg, folder, *extra):
    return train_flags(data, cfg, folder, "--noplots", "--nbs", "8", *extra)


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # PyTorch's compiler reads it
def test_a_compiled_run_is_the_plain_one_within_float_noise(tiny_data, tiny_cfg, tmp_path, always, capsys):
    for name, extra in (("plain", []), ("compiled", ["--compile"])):
        # One epoch: after more steps the last digits have grown, and the plain run itself differs by thread count.
        train.main(arguments(tiny_data, tiny_cfg, tmp_path / name, "--freeze", "1", "--epochs", "1", *extra))
    assert "--compile is used" in capsys.readouterr().out
    plain, compiled = (
        read_checkpoint(tmp_path / name / "run" / "weights" / "last.pt") for name in ("plain", "compiled")
    )
    torch.testing.assert_close(torch.tensor(compiled["means"]), torch.tensor(plain["means"]), rtol=1e-3, atol=1e-5)
    for part in ("model", "ema"):
        assert list(compiled[part]["state_dict"]) == list(plain[part]["state_dict"])  # the published names
        ours, theirs = (
            torch.cat([value.double().flatten() for value in side[part]["state_dict"].values()])
            for side in (compiled, plain)
        )
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.slow
@needs_compiler
def test_the_compiled_model_shares_the_weights():
    model = small_model()
    compiled = compile_model(model, batch_size=2, varying=False)
    assert unwrap(compiled) is model
    forward_backward(compiled, torch.rand(2, 3, 8, 8))
    assert model[0].weight.grad is not None


class Double(nn.Module):
    """Stand-in for a compiled model: it returns twice the plain result, so that the two differ."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self._orig_mod = module

    def forward(self, images):
        return 2 * self._orig_mod(images)


def test_only_batches_of_the_common_size_are_compiled(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda model, **settings: calls.append(settings) or Double(model))
    model, images = nn.Conv2d(3, 2, 1), torch.rand(4, 3, 5, 5)
    of_four, of_all = (compile_model(model, batch_size=4, varying=varying) for varying in (False, True))
    assert [settings["dynamic"] for settings in calls] == [False, None]
    assert torch.equal(of_four(images), 2 * model(images)) and torch.equal(of_four(images[:3]), model(images[:3]))
    assert torch.equal(of_all(images[:3]), 2 * model(images[:3]))
    assert unwrap(of_four) is model


def test_only_gradients_of_a_replay_are_copied(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: Double(model))
    monkeypatch.setattr(torch.Tensor, "clone", lambda tensor: copied.append(tensor) or tensor.detach())
    copied, model = [], nn.Conv2d(3, 2, 1)
    compiled = Compiled(model, batch_size=4, graphs=True)
    for count, copies in ((4, 2), (3, 0)):
        copied.clear()
        compiled(torch.rand(count, 3, 5, 5)).sum().backward()
        assert len(copied) == copies
    compiled(torch.rand(4, 3, 5, 5))
    monkeypatch.setattr(torch.compiler, "reset", lambda: forgotten.append(True))
    forgotten = []
    compiled.discard()
    assert forgotten and compiled.compiled is model
    copied.clear()
    compiled(torch.rand(4, 3, 5, 5)).sum().backward()
    assert not copied and not model.weight._backward_hooks


def test_several_devices_train_without_compilation(capsys):
    run = type("Run", (), {"wrapped": small_model(), "model": small_model()})()
    assert compile_if_faster(run, forward_backward) is run
    assert "WARNING: --compile has no effect with several GPUs" in capsys.readouterr().err
