"""Threads of a training: chosen once and kept, whatever else the machine does."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from tiny_training import train_flags

import train
from utils.checkpoint import read_checkpoint, write_checkpoint
from utils.config import EACH_EPOCH, TrainOptions
from utils.training import threads as module
from utils.training.threads import Threads


@pytest.fixture
def machine(monkeypatch) -> SimpleNamespace:
    """Return a stand-in with 8 threads of PyTorch, 5 of them free, and no variable that sets them."""
    state = SimpleNamespace(threads=8, free=5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: state.threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: setattr(state, "threads", number))
    monkeypatch.setattr(module, "measure_free_threads", lambda: state.free)
    monkeypatch.delenv("OMP_NUM_THREADS"), monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    return state


def group(device: str = "cpu") -> SimpleNamespace:
    return SimpleNamespace(device=torch.device(device))


@pytest.mark.parametrize(
    "typed, stored, resumed, variable, device, processes, expected",
    [
        (None, 0, False, None, "cpu", 1, 5),  # what is free
        (3, 3, False, None, "cpu", 1, 3),
        (3, 3, False, "7", "cpu", 1, 3),  # typed before the variable, which PyTorch has read
        (None, 0, False, "8", "cpu", 1, 8),  # the variable before what is free
        (None, 2, True, "8", "cpu", 1, 2),  # the run's own number before the variable
        (None, 0, True, None, "cpu", 1, 8),  # a checkpoint of an earlier version
        (None, 0, False, None, "cuda", 1, 8),
        (None, 2, True, None, "cuda", 1, 8),
        (None, 2, True, None, "cpu", 2, 8),  # a run of one process, resumed by two
        (2, 2, True, None, "cpu", 2, 2),
    ],
)
def test_what_decides_on_the_threads(
    machine, monkeypatch, typed, stored, resumed, variable, device, processes, expected
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    options = TrainOptions(threads=stored, typed=frozenset({"threads"} if typed else ()))
    threads = Threads(options, group(device), resumed=resumed)
    assert machine.threads == expected
    threads.close()
    assert machine.threads == 8  # for what the process does next


def test_the_choice_is_said_with_what_fixes_it(machine, capsys):
    Threads(TrainOptions(), group(), resumed=False)
    assert capsys.readouterr().out == "5 of 8 threads: others use the processors too (--threads 8 takes all)\n"
    machine.threads = machine.free = 8
    Threads(TrainOptions(), group(), resumed=False)
    assert capsys.readouterr().out == ""


def test_auto_chooses_at_each_epoch_and_says_what_that_costs(machine, capsys):
    options = TrainOptions(threads=EACH_EPOCH)
    run = SimpleNamespace(options=options, environment={"threads": 8})
    threads, chosen = Threads(options, group(), resumed=True), []
    for machine.free in (5, 8, 2):
        threads.on_epoch_start(run)
        chosen.append((machine.threads, run.environment["threads"]))
    assert chosen == [(5, 5), (8, 8), (2, 2)]
    assert "no two runs are the same to the bit" in capsys.readouterr().out
    fixed = SimpleNamespace(options=TrainOptions(threads=2), environment={})
    threads.on_epoch_start(fixed)
    assert machine.threads == 2 and not fixed.environment


def test_a_resumed_run_computes_with_as_many_threads(machine, tiny_data, tiny_cfg, tmp_path, capsys):
    """It was started when 5 of 8 were free, and is resumed when 2 are."""
    train.main(train_flags(tiny_data, tiny_cfg, tmp_path, "--noplots", "--noval", epochs=1))
    folder = tmp_path / "run"
    assert yaml.safe_load((folder / "opt.yaml").read_text())["threads"] == 5 and machine.threads == 8
    machine.free = 2
    train.main(["--resume", str(folder), "--epochs", "2"])
    state, printed = read_checkpoint(folder / "weights" / "last.pt"), capsys.readouterr().out
    assert (state["epoch"], state["options"]["threads"], state["surroundings"]["threads"]) == (2, 5, 5)
    assert printed.count("CPU (5 threads)") == 2 and "no longer exact" not in printed


def test_a_run_of_an_earlier_version_keeps_pytorchs_threads(tiny_data, tiny_cfg, tmp_path, capsys):
    train.main(train_flags(tiny_data, tiny_cfg, tmp_path, "--noplots", "--noval", epochs=1))
    file = tmp_path / "run" / "weights" / "last.pt"
    content = read_checkpoint(file)
    assert content["options"].pop("threads") == 1  # chosen by the variable of the tests
    write_checkpoint(file, {key: value for key, value in content.items() if key != "anchorage"})
    train.main(["--resume", str(tmp_path / "run"), "--epochs", "2"])
    assert read_checkpoint(file)["options"]["threads"] == 0
    assert "no longer exact" not in capsys.readouterr().out
