"""Run folder that is renamed, moved, removed or replaced while it is in use."""

import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from tiny_training import train_flags

import train
from utils.checkpoint import read_checkpoint
from utils.training import open_folder
from utils.training.checkpoints import Checkpoints
from utils.training.open_folder import OpenFolder
from utils.training.run_folder import RunFolder


def rename_parent(runs: Path) -> None:
    runs.rename(runs.with_name("runs_of_may"))


def replace(runs: Path) -> None:
    (runs / "exp").rename(runs / "mine")
    (runs / "exp").mkdir()


def remove_and_replace(runs: Path) -> None:
    shutil.rmtree(runs / "exp")
    (runs / "exp").mkdir()


CHANGES = {
    "nothing": (lambda runs: None, "runs/exp", ""),
    "renamed": (lambda runs: (runs / "exp").rename(runs / "mine"), "runs/mine", "was renamed: it is"),
    "parent renamed": (rename_parent, "runs_of_may/exp", "was renamed: it is"),
    "renamed, name taken": (replace, "runs/mine", "was renamed: it is"),
    "removed": (lambda runs: shutil.rmtree(runs / "exp"), "runs/exp", "was removed: it is made again as"),
    "parent removed": (shutil.rmtree, "runs/exp", "was removed: it is made again as"),
    "removed, name taken": (remove_and_replace, "runs/exp2", "was removed: it is made again as"),
    "a file in its place": (
        lambda runs: (shutil.rmtree(runs), runs.write_text("")),
        "runs/exp",
        "",
    ),  # cannot be made again
}


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_folder_is_found_or_made_again(tmp_path, monkeypatch, capsys, change, relative):
    monkeypatch.chdir(tmp_path)
    root = Path() if relative else tmp_path
    happen, expected, warning = CHANGES[change]
    with closing(OpenFolder(root / "runs" / "exp")) as folder:
        folder.keep(lambda path: (path / "settings").write_text("kept"))
        happen(tmp_path / "runs")
        assert [folder.path for _ in range(3)] == [root / expected] * 3
        err = capsys.readouterr().err
        assert (f"{root / expected}" in err and warning in err) if warning else not err
        if change != "a file in its place":
            assert (root / expected / "settings").read_text() == "kept"
            assert f"process {os.getpid()} on" in (root / expected / ".lock").read_text()


@pytest.mark.parametrize("change, expected", [("renamed", "runs/exp"), ("removed", "runs/exp")])
def test_a_system_that_does_not_show_open_folders(tmp_path, monkeypatch, change, expected):
    """A renamed folder counts as removed, so that the run is saved in any case. Windows has no descriptor."""
    monkeypatch.setattr(open_folder, "path_of", lambda _: None)
    for number, opened in enumerate((open_folder._open, lambda _: None)):
        monkeypatch.setattr(open_folder, "_open", opened)
        runs = tmp_path / str(number) / "runs"
        with closing(OpenFolder(runs / "exp")) as folder:
            CHANGES[change][0](runs)
            assert folder.path == runs / "exp" and folder.path.is_dir()


def test_checkpoints_follow_the_folder(make_run, tiny_cfg, tmp_path):
    run = make_run(tiny_cfg)
    with RunFolder(tmp_path / "exp", plots=False) as folder:
        checkpoints = Checkpoints(folder.weights, locate=lambda: folder.weights)
        with closing(checkpoints):
            checkpoints.save(run)
            assert checkpoints.is_saved()
            (tmp_path / "exp").rename(tmp_path / "mine")
            run.progress.epoch = 1
            checkpoints.save(run)
            assert checkpoints.is_saved() and not (tmp_path / "exp").exists()
            assert read_checkpoint(tmp_path / "mine" / "weights" / "last.pt")["epoch"] == 1
            shutil.rmtree(tmp_path / "mine" / "weights")
            checkpoints.save(run)
            assert checkpoints.is_saved() and (tmp_path / "mine" / "weights" / "best.pt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["renamed", "removed"])
def test_a_training_loses_nothing(tiny_data, tiny_cfg, tmp_path, monkeypatch, capsys, change):
    write_row = RunFolder.on_epoch

    def change_after_first_epoch(folder, run, report):
        write_row(folder, run, report)
        if report.epoch == 0:
            happen(tmp_path)

    happen, name = {
        "renamed": (lambda runs: (runs / "run").rename(runs / "mine"), "mine"),
        "removed": (lambda runs: shutil.rmtree(runs / "run"), "run"),
    }[change]
    monkeypatch.setattr(RunFolder, "on_epoch", change_after_first_epoch)
    train.main(train_flags(tiny_data, tiny_cfg, tmp_path, "--noplots", epochs=3))
    folder = tmp_path / name
    assert f"Results saved to {folder}\n" in capsys.readouterr().out and [*tmp_path.iterdir()] == [folder]
    assert len((folder / "results.csv").read_text().splitlines()) == 4
    assert read_checkpoint(folder / "weights" / "last.pt")["epoch"] == 3
    for file in ("opt.yaml", "hyp.yaml", "weights/best.pt", "weights/last-half.pt"):
        assert (folder / file).is_file(), file
