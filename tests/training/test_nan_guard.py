"""NaN and infinity never reach the weights: the step is skipped, the run rolls back, or it stops with advice."""

import copy
import csv
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from tiny_training import train_flags

import train
from utils.checkpoint import read_checkpoint
from utils.errors import UserError
from utils.loss import DetectionLoss
from utils.training.nan_guard import MAX_ROLLBACKS, PATIENCE, NanGuard, propagate_nan

BAD = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
STEPS = 3  # of an epoch


def arguments(data, cfg, folder, epochs):
    """Return flags. With --nbs 8 every batch has its own optimizer step, so a test knows which step it spoils."""
    return train_flags(data, cfg, folder, "--noplots", "--nbs", "8", epochs=epochs)


def state_of(folder: Path) -> dict:
    return read_checkpoint(folder / "run" / "weights" / "last.pt")


def rows_of(folder: Path) -> list[dict]:
    with open(folder / "run" / "results.csv", newline="") as file:
        return [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def assert_finite(folder: Path):
    for name in ("last.pt", "best.pt", "last-half.pt"):
        content = read_checkpoint(folder / "run" / "weights" / name)
        for part in ("model", "ema"):
            for key, value in content.get(part, {}).get("state_dict", {}).items():
                assert torch.isfinite(value).all(), f"{name} {part} {key}"


# ---- places of non-finite values: each takes (monkeypatch, bad, when) with when(run) -> bool


def into_the_loss(monkeypatch, bad, when):
    plain, runs = DetectionLoss.__call__, record_runs(monkeypatch)

    def call(self, predictions, targets):
        total, parts = plain(self, predictions, targets)
        return (total * bad if total.requires_grad and when(runs[0]) else total), parts

    monkeypatch.setattr(DetectionLoss, "__call__", call)


def into_a_gradient(monkeypatch, bad, when):
    plain = train.optimizer_step

    def step(run):
        if when(run, done=1):
            next(run.model.parameters()).grad[0, 0, 0, 0] = bad
        plain(run)

    monkeypatch.setattr(train, "optimizer_step", step)


def into_a_weight(monkeypatch, bad, when):
    plain = train.optimizer_step

    def step(run):
        plain(run)
        if when(run, done=1):
            with torch.no_grad():
                next(run.model.parameters())[0, 0, 0, 0] = bad

    monkeypatch.setattr(train, "optimizer_step", step)


def into_the_images(monkeypatch, bad, when):
    plain = train.prepare_images

    def prepare(run, images):
        images = plain(run, images)
        if when(run):
            images[0, 0, 5, 5] = bad
        return images

    monkeypatch.setattr(train, "prepare_images", prepare)


def into_the_labels(monkeypatch, bad, when):
    plain, runs = DetectionLoss.__call__, record_runs(monkeypatch)

    def call(self, predictions, targets):
        if len(targets) and predictions[0].requires_grad and when(runs[0]):
            targets = targets.clone()
            targets[:, 2] = bad
        return plain(self, predictions, targets)

    monkeypatch.setattr(DetectionLoss, "__call__", call)


def record_runs(monkeypatch) -> list:
    """Keep the current run in a list, for patches that do not see it."""
    plain, runs = train.train_one_epoch, [None]

    def epoch(run, *others):
        runs[0] = run
        return plain(run, *others)

    monkeypatch.setattr(train, "train_one_epoch", epoch)
    return runs


def at(*iterations: int, after_rollback: bool = False):
    """Return a condition: the run is at one of `iterations`, of which the state counts `done` already."""

    def when(run, done: int = 0) -> bool:
        return run.progress.iteration - done in iterations and (after_rollback or run.nan_guard.rollbacks == 0)

    return when


PLACES = pytest.mark.parametrize("spoil", [into_the_loss, into_a_gradient, into_the_images, into_the_labels])


# ---- promises


@PLACES
@BAD
def test_one_non_finite_step_is_skipped_and_counted(tiny_data, tiny_cfg, tmp_path, monkeypatch, capsys, spoil, bad):
    spoil(monkeypatch, bad, at(4))
    train.main(arguments(tiny_data, tiny_cfg, tmp_path, 2))
    state = state_of(tmp_path)
    assert (state["guard"]["skipped"], state["guard"]["returns"], state["ema"]["updates"]) == (1, 0, 2 * STEPS - 1)
    assert_finite(tmp_path)
    assert all(math.isfinite(value) for row in rows_of(tmp_path) for value in row.values())
    assert "WARNING: skipped 1 optimizer steps so far" in capsys.readouterr().err


@BAD
def test_a_non_finite_weight_rolls_the_run_back(tiny_data, tiny_cfg, tmp_path, monkeypatch, capsys, bad):
    into_a_weight(monkeypatch, bad, at(4))
    train.main(arguments(tiny_data, tiny_cfg, tmp_path, 3))
    state = state_of(tmp_path)
    assert (state["guard"]["returns"], state["guard"]["rate"], state["epoch"]) == (1, 0.5, 3)
    assert_finite(tmp_path)
    assert "Rolled back to the start of the epoch with learning rates x 0.5." in capsys.readouterr().err
    assert [row["epoch"] for row in rows_of(tmp_path)] == [0, 1, 2]


def test_a_weight_spoiled_by_the_last_step_of_an_epoch_is_found(tiny_data, tiny_cfg, tmp_path, monkeypatch):
    into_a_weight(monkeypatch, math.nan, at(STEPS - 1))
    train.main(arguments(tiny_data, tiny_cfg, tmp_path, 2))
    assert state_of(tmp_path)["guard"]["returns"] == 1
    assert_finite(tmp_path)


@PLACES
def test_consecutive_non_finite_steps_roll_the_run_back(tiny_data, tiny_cfg, tmp_path, monkeypatch, spoil):
    spoil(monkeypatch, math.nan, at(*range(3, 3 + PATIENCE)))
    train.main(arguments(tiny_data, tiny_cfg, tmp_path, 4))
    guard = state_of(tmp_path)["guard"]
    assert (guard["skipped"], guard["returns"], guard["in_a_row"]) == (PATIENCE, 1, 0)
    assert_finite(tmp_path)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "Muon"])
def test_training_does_not_change_the_snapshot_of_a_rollback(tiny_data, tiny_cfg, tmp_path, monkeypatch, optimizer):
    """Take a copy, since the run may have to roll back once more."""
    kept, plain = [], train.Run.roll_back

    def roll_back(run):
        kept.append((run.epoch_start, copy.deepcopy(run.epoch_start)))
        plain(run)

    monkeypatch.setattr(train.Run, "roll_back", roll_back)
    into_the_loss(monkeypatch, math.nan, at(*range(3, 3 + PATIENCE)))
    train.main([*arguments(tiny_data, tiny_cfg, tmp_path, 4), "--optimizer", optimizer])
    [(now, then)] = kept
    old, new = (
        [value for entry in state["optimizer"]["state"].values() for value in entry.values()] for state in (then, now)
    )
    assert len(old) == len(new) > 0
    for one, other in zip(old, new):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_loss_that_stays_non_finite_stops_the_run_with_advice(tiny_data, tiny_cfg, tmp_path, monkeypatch):
    into_the_loss(monkeypatch, math.nan, at(*range(3, 1000), after_rollback=True))
    with pytest.raises(UserError, match=r"still NaN or infinite after 3 rollbacks.*try a lower lr0") as wrong:
        train.main(arguments(tiny_data, tiny_cfg, tmp_path, 50))
    assert "\n" not in str(wrong.value)
    state = state_of(tmp_path)  # from before the NaNs: the run can be resumed at a lower rate
    assert state["epoch"] >= 1 and all(torch.isfinite(value).all() for value in state["model"]["state_dict"].values())


def test_a_rollback_is_exact_after_an_interruption(tiny_data, tiny_cfg, tmp_path, monkeypatch):
    """Interrupt the run within the epoch of the rollback, whose start is then read from a file."""
    monkeypatch.setattr("utils.training.nan_guard.PATIENCE", 2), monkeypatch.setattr("utils.training.state.PATIENCE", 2)
    into_the_loss(monkeypatch, math.nan, at(4, 5))
    train.main(arguments(tiny_data, tiny_cfg, tmp_path / "whole", 3))
    plain = train.prepare_images

    def prepare(run, images):
        if run.progress.iteration == 3 and run.nan_guard.rollbacks == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(run, images)

    with monkeypatch.context() as patch:
        patch.setattr(train, "prepare_images", prepare)
        with pytest.raises(SystemExit) as end:
            train.main(arguments(tiny_data, tiny_cfg, tmp_path / "part", 3))
    assert end.value.code == 75 and state_of(tmp_path / "part")["iteration"] == 4
    assert (tmp_path / "part" / "run" / "weights" / "epoch-start.pt").is_file()
    train.main(["--resume", str(tmp_path / "part" / "run")])
    one, other = state_of(tmp_path / "whole"), state_of(tmp_path / "part")
    assert one["guard"] == other["guard"] and one["guard"]["returns"] == 1
    for name, value in one["model"]["state_dict"].items():
        assert torch.equal(value, other["model"]["state_dict"][name]), name
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "part")
    assert not (tmp_path / "part" / "run" / "weights" / "epoch-start.pt").exists()


def test_a_changed_run_rolls_back_to_where_it_was_resumed(tiny_data, tiny_cfg, tmp_path, monkeypatch):
    """Ignore the state at the start of the epoch, which is that of another optimizer."""
    monkeypatch.setattr("utils.training.nan_guard.PATIENCE", 2), monkeypatch.setattr("utils.training.state.PATIENCE", 2)
    plain = train.prepare_images

    def prepare(run, images):
        if run.progress.iteration == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(run, images)

    with monkeypatch.context() as patch:
        patch.setattr(train, "prepare_images", prepare)
        with pytest.raises(SystemExit):
            train.main(arguments(tiny_data, tiny_cfg, tmp_path, 3))
    into_the_loss(monkeypatch, math.nan, at(4, 5))
    train.main(["--resume", str(tmp_path / "run"), "--optimizer", "AdamW"])
    state = state_of(tmp_path)
    assert (state["epoch"], state["guard"]["returns"], state["guard"]["skipped"]) == (3, 1, 2)
    assert_finite(tmp_path)


# ---- the parts


@BAD
def test_batch_statistics_of_a_skipped_step_are_restored(bad):
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    guard = NanGuard(model)
    model(torch.rand(4, 2, 3, 3))
    assert guard.allow_step(torch.tensor(1.0))
    good = model[0].running_mean.clone()
    model(torch.full((4, 2, 3, 3), bad))
    assert not guard.allow_step(torch.tensor(bad)) and torch.equal(model[0].running_mean, good)
    assert (guard.skipped, guard.consecutive, guard.needs_rollback) == (1, 1, False)


@BAD
def test_a_non_finite_loss_makes_every_gradient_nan(bad):
    weight = torch.ones(3, requires_grad=True)
    propagate_nan((weight * torch.tensor([1.0, 1.0, bad])).sum()).backward()
    assert weight.grad.isnan().all()
    weight.grad = None
    propagate_nan(weight.sum()).backward()
    assert torch.equal(weight.grad, torch.ones(3))


def test_at_most_three_rollbacks():
    guard = NanGuard(torch.nn.BatchNorm1d(1))
    for number in range(MAX_ROLLBACKS):
        assert not guard.exhausted
        for _ in range(PATIENCE):
            guard.allow_step(torch.tensor(math.nan))
        assert guard.needs_rollback
        guard.mark_rollback()
        assert guard.lr_factor == 0.5 ** (number + 1)
    assert guard.exhausted
