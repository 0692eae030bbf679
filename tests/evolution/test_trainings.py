"""Trainings of an evolution in processes of their own: limits, logs, supervision."""

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from types import SimpleNamespace

import pytest

from utils.evolution.trainings import (
    SUPERVISOR,
    Stopwatch,
    Trainings,
    last_error_line,
    make_new_folder,
    read_rows,
    strip_progress_bars,
    to_curve,
)
from utils.metrics import Fitness


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


def run_training(folder, code, **settings):
    """Return the outcome of a training that runs `code`. sys.argv[1] is its folder."""

    def command(hyp, own, *_):
        return [sys.executable, "-c", code, str(own)]

    with closing(Trainings(command, folder, devices=["cpu"], **settings)) as trainings:
        return trainings({"lr0": 0.01}, 0)


WRITE_TWO_ROWS = """
import sys
with open(sys.argv[1] + "/results.csv", "w") as file:
    file.write("epoch, metrics/mAP_0.5, metrics/mAP_0.5:0.95\\n0, 0.5, 0.25\\n1, 0.6, 0.5\\n")
"""


@pytest.mark.parametrize(
    "times, seconds",
    [
        ([0, 1, 2, 3], 3),
        ([0, 1, 7201, 7202], 12),  # a suspended machine: one step counts MAX_STEP at most
        ([9000, 9001, 2, 3], 2),  # set back
        ([5, 5, 5], 0),
    ],
)
def test_a_jump_of_the_clock_is_no_running_time(monkeypatch, times, seconds):
    clock = SimpleNamespace(monotonic=iter(times).__next__)
    monkeypatch.setattr("utils.evolution.trainings.time", clock)
    watch = Stopwatch()
    assert [watch.tick() for _ in times[1:]][-1] == watch.seconds == seconds


def test_a_training_outlives_a_jump_of_every_clock(tmp_path, monkeypatch):
    clock, jumped = time.monotonic, time.monotonic() + 0.5
    monkeypatch.setattr("time.monotonic", lambda: clock() + (7200 if clock() > jumped else 0))
    monkeypatch.setattr("time.time", lambda: clock() + (7200 if clock() > jumped else 0))
    code = WRITE_TWO_ROWS + "import time; time.sleep(1.5)"
    assert run_training(tmp_path, code, limit=60).status == "done"


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are of POSIX")
@pytest.mark.parametrize(
    "signal_number, note",
    [(signal.SIGSTOP, "took longer than"), (signal.SIGKILL, "its supervisor was killed by signal 9: Training")],
)
def test_a_stopped_or_killed_supervisor_costs_one_generation(tmp_path, signal_number, note):
    pid_file = tmp_path / "pid"
    code = (
        f"import os, pathlib, time; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid())); "
        "print('Training', flush=True); time.sleep(97)"
    )
    started = []
    trainings = Trainings(lambda *a: [sys.executable, "-c", code], tmp_path, devices=["cpu"], limit=2.0)
    start = trainings._start

    def start_and_hurt(*args):
        process = start(*args)
        wait_for(lambda: (tmp_path / "0000" / "train.log").read_text())
        os.kill(process.pid, signal_number)
        started.append(int(pid_file.read_text()))
        return process

    trainings._start = start_and_hurt
    with closing(trainings):
        outcome = trainings({"lr0": 0.01}, 0)
    assert outcome.status == "failed" and outcome.note.startswith(note)
    wait_for(lambda: not is_running(started[0]))  # no training outlives it


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid):
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(found.strip()) and not found.startswith("Z")


@pytest.mark.parametrize("complete", [True, False])
def test_a_missing_last_row_is_a_failure_not_a_fitness(tmp_path, complete):
    seen = []
    outcome = run_training(tmp_path, WRITE_TWO_ROWS, is_complete=lambda curve: seen.append(curve) or complete)
    assert seen == [(0.275, 0.51)]
    if complete:
        assert (outcome.status, outcome.fitness, outcome.epochs) == ("done", 0.51, 2)
    else:
        assert (outcome.status, outcome.fitness, outcome.epochs) == ("failed", None, 2)
        assert outcome.note.startswith("results.csv ends after 2 epochs: the last row is missing; log: ")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EAGAIN, errno.EMFILE])
@pytest.mark.parametrize("function", ["utils.evolution.trainings.write_yaml", "subprocess.Popen"])
def test_a_training_that_cannot_start_is_tried_again(tmp_path, monkeypatch, capsys, function, error):
    monkeypatch.setattr("utils.evolution.trainings.START_PAUSES", (0, 0))
    module, name = function.rsplit(".", 1)
    real, calls = getattr(sys.modules[module], name), []

    def fails_once(*args, **named):
        calls.append(args)
        if len(calls) == 1:
            raise OSError(error, os.strerror(error))
        return real(*args, **named)

    monkeypatch.setattr(function, fails_once)
    assert run_training(tmp_path, WRITE_TWO_ROWS).status == "done"
    assert f"WARNING: a training could not start ([Errno {error}]" in capsys.readouterr().err


def test_a_full_disk_leaves_the_log_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "log").write_bytes(b"  1%|\r100%|##\n")
    monkeypatch.setattr("os.fsync", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    strip_progress_bars(tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == b"  1%|\r100%|##\n"
    assert last_error_line(tmp_path / "absent") == "the log cannot be read (No such file or directory)"


def test_a_silent_training_counts_as_hung(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.evolution.trainings.MAX_SILENCE", 1.0)
    outcome = run_training(tmp_path, "import time; time.sleep(60)")
    assert outcome.status == "failed" and outcome.note.startswith("no sign of life for")


def test_the_derived_limit_follows_the_longest_success(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.evolution.trainings.MIN_LIMIT", 0.1)
    outcome = run_training(tmp_path, "import time; time.sleep(60)", durations=[0.2])
    assert outcome.status == "failed" and "took longer than" in outcome.note


def test_trainings_on_one_cpu_know_their_number(tmp_path):
    """Otherwise each would take the cores of the others for free ones."""
    code = "import os, sys; sys.exit(' of '.join(map(os.environ.get, sys.argv[1:])))"
    command = [sys.executable, "-c", code, "OMP_NUM_THREADS", "ANCHORAGE_SIDE_BY_SIDE"]
    with closing(Trainings(lambda *a: command, tmp_path, devices=["cpu"] * 3, threads=2)) as trainings:
        assert "2 of 3" in trainings({"lr0": 0.01}, 0).note


def test_a_folder_is_never_used_twice(tmp_path):
    assert [make_new_folder(tmp_path, "0007").name for _ in range(3)] == ["0007", "0007-2", "0007-3"]


def test_rows_are_read_as_far_as_they_are_written(tmp_path):
    assert read_rows(tmp_path / "results.csv") == []
    (tmp_path / "results.csv").write_text(
        "epoch, metrics/mAP_0.5, metrics/mAP_0.5:0.95\n0, 0.5, 0.25\n1, x, 0.5\n1, nan, nan\n2, 0."
    )
    rows = read_rows(tmp_path / "results.csv")
    assert len(rows) == 2 and to_curve(rows) == (0.275, 0.0)
    assert to_curve(rows, Fitness.parse("map50")) == (0.5, 0.0)


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
