"""Checkpoints of a run: which files are written when, also where nothing is to be saved."""

import errno
import os
import time

import pytest
import torch

from utils.checkpoint import read_checkpoint
from utils.training.checkpoints import Checkpoints, SaveTimer


@pytest.fixture
def run(make_run, tiny_cfg):
    return make_run(tiny_cfg)


def names(folder) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_saves_are_due_by_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    timer = SaveTimer(10)
    for now[0], due in ((599.0, False), (600.0, True), (1000.0, True)):
        assert timer.is_due() is due
    timer.reset()
    assert not timer.is_due() and not SaveTimer(0).is_due()


def test_which_files_are_written_when(run, tmp_path):
    checkpoints = Checkpoints(tmp_path / "weights", period=2)
    weights = tmp_path / "weights"
    weights.joinpath("best.pt").touch(), weights.joinpath("epoch7.pt").touch()
    checkpoints.begin(run)
    assert checkpoints.is_saved() and names(weights) == {"last.pt"}
    run.keep_epoch_start()
    run.progress.step = run.progress.iteration = 1
    checkpoints.save(run)
    assert checkpoints.is_saved() and names(weights) == {"last.pt", "epoch-start.pt"}
    run.progress.finish_epoch()
    checkpoints.save(run)  # the first epoch is the best so far, whatever its fitness
    assert checkpoints.is_saved() and names(weights) == {"last.pt", "epoch-start.pt", "best.pt", "epoch0.pt"}
    run.progress.epoch = 2
    checkpoints.save(run)
    checkpoints.mark_finished(run)
    checkpoints.close()
    assert names(weights) == {"last.pt", "last-half.pt", "best.pt", "epoch0.pt"}
    assert read_checkpoint(weights / "best.pt")["epoch"] == 1 and read_checkpoint(weights / "last.pt")["epoch"] == 2


def test_a_full_disk_keeps_few_snapshots_in_memory_and_names_all(run, tmp_path, monkeypatch):
    """Check that a run that lacks one of its checkpoints is not marked as finished, so that it can be resumed."""
    checkpoints, original = Checkpoints(tmp_path / "weights", period=1), os.replace
    checkpoints.begin(run)

    def replace(source, target):
        if target.name.startswith("epoch"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(source, target)

    with monkeypatch.context() as full:
        full.setattr(os, "replace", replace)
        for _ in range(4):
            run.progress.finish_epoch()
            checkpoints.save(run)
        assert not checkpoints.is_saved()
        assert [path.name for path in checkpoints.unwritten()] == [f"epoch{number}.pt" for number in range(4)]
    checkpoints.mark_finished(run)
    assert [path.name for path in checkpoints.unwritten()] == ["epoch0.pt"]
    checkpoints.close()
    assert names(tmp_path / "weights") == {"last.pt", "best.pt", "epoch1.pt", "epoch2.pt", "epoch3.pt"}
    assert read_checkpoint(tmp_path / "weights/epoch2.pt")["epoch"] == 3


def test_without_a_folder_nothing_is_saved(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints(save_minutes=1e-9)
    checkpoints.begin(run)
    assert checkpoints.is_due()  # the other ranks save by their own clocks
    checkpoints.save(run)
    checkpoints.mark_finished(run)
    assert checkpoints.is_saved()
    checkpoints.close()
    assert not list(tmp_path.rglob("*"))


def test_a_checkpoint_is_the_state_with_its_settings(run):
    content = run.checkpoint()
    assert list(content)[:6] == ["epoch", "step", "iteration", "means", "best_fitness", "class_maps"]
    assert list(content)[6:] == [
        "rng", "model", "ema", "optimizer", "scaler", "guard", "stopper", "options", "hyp", "surroundings", "metrics",
    ]  # fmt: skip
    assert content["options"]["resume"] is False and "typed" not in content["options"]
    assert not any(isinstance(value, torch.Tensor) for value in content.values())
