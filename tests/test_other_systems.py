"""The programs run where systems lack what Linux has: stand-ins of Windows, macOS and bare containers."""

import mmap
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_training import train_flags

from utils.checkpoint import read_checkpoint
from utils.evolution.supervise import kill_group
from utils.folder_lock import FolderInUse, FolderLock
from utils.loading.image_cache import SharedBytes

ROOT = Path(__file__).resolve().parents[1]


def run_as_on_windows(program: str, *flags: object) -> str:
    """Run a program under the stand-in of Windows. Return what it prints."""
    words = [sys.executable, ROOT / "tests" / "as_on_windows.py", program, *flags]
    done = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_train_and_detect_without_what_windows_lacks(tiny_data, tiny_cfg, tmp_path):
    """The default cache is used, and the lock is that of a system without locks."""
    printed = run_as_on_windows("train.py", *train_flags(tiny_data, tiny_cfg, tmp_path, epochs=1))
    assert "Caching images" in printed
    weights = tmp_path / "run" / "weights"
    assert read_checkpoint(weights / "last.pt")["epoch"] == 1
    cv2.imwrite(str(tmp_path / "a.png"), np.full((64, 64, 3), 200, np.uint8))
    run_as_on_windows("detect.py", "--weights", weights / "best.pt", "--source", tmp_path, "--project", tmp_path / "d")
    assert list((tmp_path / "d").rglob("a.png"))


def test_shared_memory_of_windows_is_found_by_its_name(monkeypatch):
    """No process may open the temporary file of another there."""
    memory: dict[str, mmap.mmap] = {}

    def map_memory(descriptor, length, tagname):
        assert descriptor == -1
        return memory.setdefault(tagname, make_map(-1, length))

    make_map = mmap.mmap
    monkeypatch.setattr(sys, "platform", "win32"), monkeypatch.setattr(mmap, "mmap", map_memory)
    block = SharedBytes(10)
    other = pickle.loads(pickle.dumps(block))
    other.array[3] = 7
    assert block.array.tolist() == [0, 0, 0, 7, 0, 0, 0, 0, 0, 0] and len(memory) == 1


def test_no_process_of_windows_is_interrupted_to_see_whether_it_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(sys, "platform", "win32"), monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("os.kill"))
    lock = FolderLock(tmp_path / "lock")
    (tmp_path / "lock").write_text((tmp_path / "lock").read_text().replace(str(os.getpid()), "99999999"))
    with pytest.raises(FolderInUse, match="process 99999999"):
        FolderLock(tmp_path / "lock")
    lock.close()


def test_a_training_of_a_search_is_killed_where_there_are_no_groups(monkeypatch):
    monkeypatch.delattr(os, "killpg"), monkeypatch.delattr(signal, "SIGKILL")
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda words, **_: calls.append(words))
    kill_group(123)
    assert calls == [["taskkill", "/F", "/T", "/PID", "123"]]
