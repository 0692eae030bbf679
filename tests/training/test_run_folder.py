"""Folder of a run: an interrupted run in it is kept whole, whenever a process is killed."""

import os
from pathlib import Path

import pytest

from utils.checkpoint import write_checkpoint
from utils.errors import UserError
from utils.training.resume import find_checkpoint
from utils.training.run_folder import RunFolder, keep_interrupted_run

CONTENT = {
    "results.csv": b"rows",
    "opt.yaml": b"options",
    "hyp.yaml": b"hyp",
    "weights/best.pt": b"best",
    "weights/epoch-start.pt": b"start",
    "weights/epoch0.pt": b"epoch",
}


class Killed(BaseException):
    """Stand-in for SIGKILL."""


def make_interrupted_run(run: Path) -> None:
    (run / "weights").mkdir(parents=True)
    for name, data in CONTENT.items():
        (run / name).write_bytes(data)
    write_checkpoint(run / "weights" / "last.pt", {"epoch": 1, "iteration": 3, "options": {}})


def is_whole(run: Path) -> bool:
    return all((run / name).is_file() and (run / name).read_bytes() == data for name, data in CONTENT.items())


@pytest.mark.parametrize("links", [True, False], ids=["links", "copies"])
def test_an_interrupted_run_is_whole_whenever_its_move_is_killed(tmp_path, monkeypatch, links):
    """The process is killed after each change of the disk in turn, and a second one finds what it left."""
    changes = {"left": 0}

    def killing(function):
        def call(*args, **named):
            if changes["left"] == 0:
                raise Killed
            changes["left"] -= 1
            return function(*args, **named)

        return call

    def link(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", killing(os.link if links else link))
    for name in ("mkdir", "rename", "unlink"):
        monkeypatch.setattr(Path, name, killing(getattr(Path, name)))
    count, killed = 0, True
    while killed:
        project, run, count = tmp_path / str(count), tmp_path / str(count) / "exp", count + 1
        changes["left"] = 1000
        make_interrupted_run(run)
        changes["left"] = count
        try:
            keep_interrupted_run(run)
            killed = False
        except Killed:
            pass
        changes["left"] = 1000
        assert is_whole(find_checkpoint(True, str(project)).parents[1]), count
        with RunFolder(run, plots=False, new_run=True):
            kept = list(run.glob("interrupted*"))
            assert all(map(is_whole, kept)) and len(kept) in ([1] if links else [1, 2]), count
            assert not [name for name in CONTENT if (run / name).exists() and (run / "weights" / "last.pt").exists()]
        assert not list(run.glob(".interrupted*"))
    assert count > 15


def test_a_run_that_was_moved_aside_is_offered(tmp_path):
    make_interrupted_run(tmp_path / "exp")
    keep_interrupted_run(tmp_path / "exp")
    kept = tmp_path / "exp" / "interrupted" / "weights" / "last.pt"
    with pytest.raises(UserError, match=f"no checkpoint .*; a state after 1 epochs is whole: --resume {kept}"):
        find_checkpoint(str(tmp_path / "exp"), "")
