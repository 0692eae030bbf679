"""Launch record: processes that torchrun restarts find the run that they started, and no other."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.distributed import launch_token
from utils.training import launch_record
from utils.training.launch_record import find_restarted_run, write_launch_record


def test_a_launch_finds_its_own_run_and_no_other(tmp_path, monkeypatch):
    for name, launchers in (("exp", ["a:1:5", "b:2:6"]), ("exp2", ["c:3:7"]), ("exp3", [""])):
        (tmp_path / name).mkdir()
        write_launch_record(tmp_path / name, launchers)
    assert not (tmp_path / "exp3" / "launch.json").exists()  # without torchrun there is no record
    # this process started the run itself, so it is a second run and not a restart
    assert find_restarted_run(tmp_path, ["b:2:6", "d:4:8"]) is None
    # another process, maybe of the same number: each container counts from 1
    monkeypatch.setattr(launch_record, "THIS_PROCESS", "another")
    assert find_restarted_run(tmp_path, ["b:2:6", "d:4:8"]) == tmp_path / "exp"
    for others in (["b:2:9"], [""], []):
        assert find_restarted_run(tmp_path, others) is None
    (tmp_path / "exp2" / "launch.json").write_text("{")
    assert find_restarted_run(tmp_path, ["c:3:7"]) is None


@pytest.mark.parametrize(
    "first, second, same",
    [
        (
            "/tmp/torchelastic_a/none_b/attempt_0/0/error.json",
            "/tmp/torchelastic_a/none_b/attempt_1/0/error.json",
            True,
        ),
        (
            "/tmp/torchelastic_a/none_b/attempt_0/0/error.json",
            "/tmp/torchelastic_a/none_b/attempt_0/1/error.json",
            True,
        ),
        (
            "/tmp/torchelastic_a/none_b/attempt_0/0/error.json",
            "/tmp/torchelastic_c/none_d/attempt_0/0/error.json",
            False,
        ),
        ("", "", False),  # --log_dir /dev/null: the parent process, and here it is another one
    ],
    ids=["restart", "rank", "launcher", "no folder"],
)
def test_a_launcher_is_known_behind_a_wrapper(monkeypatch, first, second, same):
    """Change the parent process: with --no-python it is a wrapper, after a restart another one."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    tokens = []
    for parent, report in ((11, first), (12, second)):
        monkeypatch.setattr("os.getppid", lambda parent=parent: parent)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", report)
        tokens.append(launch_token())
    assert all(tokens) and (tokens[0] == tokens[1]) == same


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_agent_without_a_folder_is_found_above_its_wrappers(monkeypatch):
    """Let a process with torchrun's variables be the wrapper. This process, which started it, is the agent."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    tokens = []
    for _ in range(2):
        with subprocess.Popen(["sleep", "60"], env={**os.environ, "TORCHELASTIC_RUN_ID": "none"}) as wrapper:
            while not Path(f"/proc/{wrapper.pid}/environ").read_bytes():  # the kernel is still starting it
                time.sleep(0.01)
            monkeypatch.setattr("os.getppid", lambda process=wrapper.pid: process)
            with monkeypatch.context() as worker:
                worker.setenv("TORCHELASTIC_RUN_ID", "none"), worker.setenv("TORCHELASTIC_ERROR_FILE", "")
                tokens.append(launch_token())
            wrapper.kill()
    assert tokens[0] == tokens[1] and f":{os.getpid()}:" in tokens[0]
