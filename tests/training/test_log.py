"""Console log of a training, also where no progress bar can be drawn."""

from types import SimpleNamespace

import pytest
import torch

from utils import console
from utils.errors import UnreadableData
from utils.schedule import Schedule
from utils.training.log import RunLog, print_stop
from utils.training.observer import EpochReport, StepReport
from utils.training.signals import Interrupted


@pytest.fixture
def run(make_run, tiny_cfg):
    run = make_run(tiny_cfg)
    run.train_loader = Batches()
    run.data = SimpleNamespace(val=SimpleNamespace(most_labels=7))
    return run


class Batches:
    """Loader of three batches."""

    readers = "images read by the main process"

    def __len__(self) -> int:
        return 3


def log_an_epoch(run, folder) -> None:
    log, batch = RunLog(lambda: folder), SimpleNamespace(targets=torch.zeros(57, 6))
    log.on_start(run)
    log.on_epoch_start(run)
    for step in range(3):
        log.on_batch(run, StepReport(step, batch, torch.tensor([0.1, 0.02, 0.003]) + step, 640))
    rates = Schedule(run.hyp.to_dict(), 100, 3, 16).at(0)
    log.on_epoch(run, EpochReport(0, [0.1, 0.02, 0.003], None, rates))
    run.progress.finish_epoch()
    log.on_trained(run)
    log.on_end(run)
    log.close()


def test_without_a_terminal_an_epoch_is_one_line(run, tmp_path, capsys):
    log_an_epoch(run, tmp_path)
    said = capsys.readouterr()
    lines = [line.split() for line in said.out.splitlines()]
    assert ["0/99", "0G", "2.1", "2.02", "2.003", "57", "640"] in lines
    assert sum(line[:1] == ["0/99"] for line in lines) == 1 and said.err == ""
    assert "1 epochs completed" in said.out and "Training for 100 epochs" in said.out


def test_quiet_leaves_warnings_and_the_results(run, tmp_path, capsys):
    console.begin_program(quiet=True)
    try:
        run.nan_guard.load_state_dict({"skipped": 2, "in_a_row": 0, "returns": 0, "rate": 1.0})
        skipped_before = run.nan_guard.skipped
        log_an_epoch(run, tmp_path)
        said = capsys.readouterr()
    finally:
        console.begin_program()
    assert skipped_before == 2 and said.err == ""  # skipped in an earlier part of the run
    results, command = said.out.splitlines()
    assert results == f"Results saved to {tmp_path}" and command.startswith("Next: python detect.py")


def test_skipped_steps_are_reported_once_per_epoch(run, tmp_path, capsys):
    log, report = (
        RunLog(lambda: tmp_path),
        EpochReport(0, [0.0] * 3, None, Schedule(run.hyp.to_dict(), 100, 3, 16).at(0)),
    )
    log.on_start(run)
    run.nan_guard.load_state_dict({"skipped": 2, "in_a_row": 0, "returns": 0, "rate": 1.0})
    log.on_epoch(run, report), log.on_epoch(run, report)
    assert capsys.readouterr().err == (
        "WARNING: skipped 2 optimizer steps so far (NaN or infinite loss or gradients).\n"
    )


@pytest.mark.parametrize("saved, code", [(True, 75), (False, 1)])
def test_the_command_to_resume(tmp_path, capsys, saved, code):
    assert print_stop(Interrupted("SIGTERM"), tmp_path / "a b", saved=saved) == code
    said = capsys.readouterr().out
    assert said.startswith("\nInterrupted (SIGTERM), ") and ("could NOT be saved" in said) is not saved
    assert said.endswith(f"Resume with: python train.py --resume '{tmp_path}/a b'\n")
    assert print_stop(UnreadableData("a.jpg: gone"), tmp_path, saved=saved) == code
    said = capsys.readouterr().err
    assert said.startswith("error: a.jpg: gone; the state ") and ("could NOT be saved" in said) is not saved
    assert said.endswith(f"Resume with: python train.py --resume {tmp_path}\n") and said.count("\n") == 1


def test_a_run_that_saves_nothing_names_no_command(capsys):
    for reason in (Interrupted("SIGTERM"), UnreadableData("a.jpg: gone")):
        assert print_stop(reason, None, saved=False) == 1
    assert "".join(capsys.readouterr()).count("--score-only saves no state") == 2
