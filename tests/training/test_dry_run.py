"""Dry run: estimates of a training, which leaves no trace."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_training import train_flags

import train
from utils.config import Hyperparameters, TrainOptions
from utils.training import dry_run
from utils.training.dry_run import describe_time, estimate_largest_batch, relative_sizes, tensor_bytes


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(dry_run, "ENOUGH_SECONDS", 0.0)


@pytest.fixture
def tiny_run(tiny_data, tiny_cfg, tmp_path) -> dict:
    """Return the flags of a tiny training as keywords."""
    words = train_flags(tiny_data, tiny_cfg, tmp_path / "runs", "--noplots", "--nbs", "8")
    return train.parse_args(words)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_dry_run_writes_nothing_and_its_estimates_add_up(tiny_run, tmp_path, capsys):
    result = train.run(**{**tiny_run, "epochs": 5, "dry_run": True})
    found, output = result.dry_run, capsys.readouterr().out
    assert found is not None and result.metrics is None and result.save_dir is None
    assert not (tmp_path / "runs").exists()
    assert found.folder == tmp_path / "runs" / "run" and f"Writes: {found.folder}: weights/ last.pt" in output
    assert (found.epochs, found.steps, found.validations) == (5, 15, 6)  # three steps an epoch, best.pt at the end
    assert found.steps_measured == dry_run.MIN_STEPS  # over the end of an epoch
    parts = 15 * found.step_seconds + 6 * found.validation_seconds
    assert found.seconds == pytest.approx(parts) and found.step_seconds > 0 and found.validation_seconds > 0
    assert found.seconds_low <= found.seconds <= found.seconds_high
    assert found.process_bytes > 2**26 and found.gpu_bytes == 0
    assert "Time: " in output and "5 epochs with 15 steps" in output and "without --dry-run" in output


def test_a_dry_run_knows_the_sizes_of_the_files(tiny_run, tmp_path):
    flags = {**tiny_run, "epochs": 2, "save_period": 1}
    found = train.run(**flags, dry_run=True).dry_run
    train.run(**flags)
    written = {file.name: file.stat().st_size for file in found.folder.glob("weights/*.pt")}
    assert found.files.keys() == written.keys() == {"last.pt", "best.pt", "last-half.pt", "epoch0.pt", "epoch1.pt"}
    for name, size in written.items():
        assert 0.7 * size < found.files[name] <= size, name


def test_a_dry_run_of_a_resumed_run_counts_what_is_left(tiny_run, tmp_path, capsys):
    train.run(**tiny_run)
    before = contents(tmp_path)
    capsys.readouterr()
    result = train.run(resume=str(tmp_path / "runs" / "run"), epochs=5, dry_run=True)
    assert contents(tmp_path) == before
    assert (result.dry_run.epochs, result.dry_run.steps, result.dry_run.validations) == (3, 9, 4)
    assert result.dry_run.folder == tmp_path / "runs" / "run" and "--dry-run F" not in capsys.readouterr().out


def test_a_dry_run_of_a_search_multiplies_one_training(tiny_run, tmp_path, capsys):
    result = train.run(**{**tiny_run, "evolve": 3, "dry_run": True})
    output = capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert (result.dry_run.validations, dict(result.dry_run.files)) == (1, {})  # only the last epoch is measured
    whole = describe_time(9 * result.dry_run.seconds)
    assert f"The search: {whole}, between" in output and "for 3 trainings and 6 repeats of the best" in output


def test_a_dry_run_with_a_wrong_flag_is_one_line(tiny_run, tmp_path):
    with pytest.raises(train.UserError, match="no such data set YAML"):
        train.run(**{**tiny_run, "data": "absent.yaml", "dry_run": True})


@pytest.mark.parametrize(
    "hyp, first, expected",
    [
        ({}, 0, [1, 1, 1, 1]),
        ({"size_start": 0.5, "size_epochs": 1.0}, 0, [1, 1, 2.25, 2.25]),  # 160 and then 240 of 320 px
        ({"size_start": 0.5, "size_epochs": 1.0}, 2, [1, 1]),
    ],
)
def test_sizes_are_relative_to_those_that_were_timed(hyp, first, expected):
    options = TrainOptions(imgsz=320, epochs=4)
    assert relative_sizes(options, Hyperparameters(**hyp), range(first, 4), stride=80) == pytest.approx(expected)


def test_the_largest_batch_of_a_cpu_follows_from_the_memory_of_an_image(make_run, tiny_cfg, monkeypatch):
    run = make_run(tiny_cfg)
    run.options = replace(run.options, batch_size=8)
    monkeypatch.setattr(dry_run, "available_memory", lambda: 100 << 20)
    monkeypatch.setattr(dry_run, "processes_on_this_machine", lambda: 1)
    fixed = sum(parameter.numel() * 4 for parameter in run.model.parameters())
    assert estimate_largest_batch(run, fixed + (8 << 20)) == 8 + 80  # a MiB an image, four fifths of what is free
    assert estimate_largest_batch(run, fixed) is None  # nothing was measured


def test_too_little_room_is_a_warning(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dry_run.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    train.run(**tiny_run, dry_run=True)
    assert f"WARNING: {tmp_path}: too little room for the checkpoints" in capsys.readouterr().err


def test_bytes_of_nested_tensors():
    content = {"a": [torch.zeros(3), (torch.zeros(2, 2, dtype=torch.float16),)], "b": {"c": torch.zeros(1)}, "d": "x"}
    assert tensor_bytes(content) == 12 + 8 + 4


@pytest.mark.parametrize("seconds, text", [(3, "0.05 min"), (2520, "42 min"), (4 * 3600, "240 min (4.0 h)")])
def test_times_are_in_minutes(seconds, text):
    assert describe_time(seconds) == text
