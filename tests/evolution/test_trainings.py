"""Trainings of an evolution in processes of their own: limits, logs, supervision."""

import subprocess
import sys
import time

import pytest

from utils.evolution.trainings import (
    SUPERVISOR,
    Trainings,
    last_error_line,
    make_new_folder,
    read_rows,
    strip_progress_bars,
    to_curve,
)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "the log is empty"),
        ("a\nb\n", "b"),
        ("Traceback\n  File x\nRuntimeError: CUDA out of memory\n[W] goodbye\n", "RuntimeError: CUDA out of memory"),
        ("error: --data x: no such file\n", "error: --data x: no such file"),
        ("50%|##\r100%|####\nKilled", "Killed"),
    ],
)
def test_the_last_line_of_a_log_is_its_error(tmp_path, text, expected):
    (tmp_path / "log").write_text(text)
    assert last_error_line(tmp_path / "log") == expected


def test_a_log_keeps_what_a_terminal_would_show(tmp_path):
    (tmp_path / "log").write_bytes(b"start\n  1%|\r 50%|#\r100%|##\nend\r\nlast\r")
    strip_progress_bars(tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == b"start\n100%|##\nend\nlast"


def test_a_silent_training_counts_as_hung(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.evolution.trainings.MAX_SILENCE", 1.0)
    trainings = Trainings(lambda *a: [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, devices=["cpu"])
    outcome = trainings({"lr0": 0.01}, 0)
    assert outcome.status == "failed" and outcome.note.startswith("no sign of life for")


def test_the_derived_limit_follows_the_longest_success(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.evolution.trainings.MIN_LIMIT", 0.1)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    trainings = Trainings(lambda *a: command, tmp_path, devices=["cpu"], durations=[0.2])
    outcome = trainings({"lr0": 0.01}, 0)
    assert outcome.status == "failed" and "took longer than" in outcome.note


def test_trainings_on_one_cpu_know_their_number(tmp_path):
    """Otherwise each would take the cores of the others for free ones."""
    code = "import os, sys; sys.exit(' of '.join(map(os.environ.get, sys.argv[1:])))"
    command = [sys.executable, "-c", code, "OMP_NUM_THREADS", "ANCHORAGE_SIDE_BY_SIDE"]
    trainings = Trainings(lambda *a: command, tmp_path, devices=["cpu"] * 3, threads=2)
    assert "2 of 3" in trainings({"lr0": 0.01}, 0).note


def test_a_folder_is_never_used_twice(tmp_path):
    assert [make_new_folder(tmp_path, "0007").name for _ in range(3)] == ["0007", "0007-2", "0007-3"]


def test_rows_are_read_as_far_as_they_are_written(tmp_path):
    assert read_rows(tmp_path / "results.csv") == []
    (tmp_path / "results.csv").write_text(
        "epoch, metrics/mAP_0.5, metrics/mAP_0.5:0.95\n0, 0.5, 0.25\n1, nan, nan\n2, 0."
    )
    rows = read_rows(tmp_path / "results.csv")
    assert len(rows) == 2 and to_curve(rows) == (0.275, 0.0)


def test_a_supervised_command_dies_with_the_parent(tmp_path):
    """Grandchildren too: the parent is killed, and the pipe to the supervisor closes."""
    sleeper = (
        "import subprocess, sys, time; "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(97)', {0!r}]); time.sleep(97)"
    )
    command = [
        sys.executable,
        "-I",
        str(SUPERVISOR),
        sys.executable,
        "-c",
        sleeper.format(str(tmp_path)),
        str(tmp_path),
    ]
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, time; subprocess.Popen({command!r}, stdin=subprocess.PIPE); time.sleep(97)",
        ]
    )

    def living():
        found = subprocess.run(["ps", "-ewwo", "stat=,args="], capture_output=True, text=True).stdout.splitlines()
        return [
            line for line in found if str(tmp_path) in line and "time.sleep(97)" in line and not line.startswith("Z")
        ]

    deadline = time.monotonic() + 60
    while len(living()) < 4:  # the parent, the supervisor, the command, its child
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    while living() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not living()


@pytest.mark.parametrize(
    "code, status", [("import sys; sys.exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137), ("", 0)]
)
def test_the_supervisor_returns_the_status_of_its_command(code, status):
    command = [sys.executable, "-I", str(SUPERVISOR), sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as supervisor:
        assert supervisor.wait(timeout=60) == status  # the pipe stays open while the command runs
