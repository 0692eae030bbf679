"""Lock of a folder: one process at a time, also where there are no locks."""

import os
import socket
import sys

import pytest

from utils.folder_lock import FolderInUse, FolderLock

HERE = socket.gethostname()
LOCKS = ["locks", "no locks", "no fcntl"]


@pytest.fixture(params=LOCKS)
def file(request, tmp_path, monkeypatch):
    """Return the path of a lock file: with locks, on a file system without them, on a system without fcntl."""
    if request.param == "no locks":

        def lockf(*_):
            raise OSError(37, "No locks available")

        monkeypatch.setattr("fcntl.lockf", lockf)
    elif request.param == "no fcntl":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    return tmp_path / ".lock"


def test_the_file_names_its_holder_until_it_is_closed(file):
    for _ in range(2):
        lock = FolderLock(file)
        assert file.read_text() == f"process {os.getpid()} on {HERE}"
        lock.close()
        assert file.read_text() == ""


@pytest.mark.parametrize(
    "holder, refused",
    [
        ("", False),
        (f"process {os.getppid()} on {HERE}", True),  # it runs
        (f"process {2**22 + 1} on {HERE}", False),  # it has died: no process has such a number
        (f"process {os.getpid()} on {HERE}", False),  # as this one, but from before a restart of the machine
        ("process 1 on another-host", True),  # unknown: better refuse
        ("\x00\x00", False),  # a power cut
    ],
    ids=["empty", "running", "dead", "same number", "other host", "zeros"],
)
@pytest.mark.parametrize("file", LOCKS[1:], indirect=True)
def test_without_locks_a_holder_that_may_run_keeps_others_out(file, holder, refused):
    file.write_text(holder)
    if not refused:
        return FolderLock(file).close()
    with pytest.raises(FolderInUse, match=f"{holder} .there are no locks here: delete {file} if that has ended"):
        FolderLock(file)
    assert file.read_text() == holder


@pytest.mark.parametrize("file", LOCKS[:1], indirect=True)
def test_a_lock_that_ended_with_its_process_is_free_whatever_the_file_says(file):
    file.write_text("process 1 on another-host")
    FolderLock(file).close()
