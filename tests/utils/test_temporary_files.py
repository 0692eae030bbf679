"""Temporary files that killed processes have left are removed at the next start, and no others."""

import os
import time

import pytest

from utils import temporary_files
from utils.files import atomic_write
from utils.temporary_files import remove_stale, temporary_path

DEAD = 2**22 + 1  # no process has such a number
HERE = temporary_files._machine()


def leave(path, kind="file"):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        (path / "images").mkdir(parents=True)
    else:
        path.write_bytes(b"half")
    return path


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize(
    "name, days, stays",
    [
        (f".train.cache.{HERE}-{DEAD}-0123abcd.tmp", 0, False),
        (f".train.cache.{HERE}-{os.getppid()}-0123abcd.tmp", 0, True),  # its process runs
        (f".train.cache.{HERE}-{os.getpid()}-0123abcd.tmp", 0, True),  # another thread writes it
        (f".train.cache.00000000-{DEAD}-0123abcd.tmp", 0, True),  # another machine's
        (f".train.cache.00000000-{DEAD}-0123abcd.tmp", 8, False),
        (f".val.cache.{HERE}-{DEAD}-0123abcd.tmp", 0, True),  # of another file
        (".train.cache.mine.tmp", 8, True),  # the user's
        (f"train.cache.{HERE}-{DEAD}-0123abcd.tmp", 8, True),
    ],
    ids=["dead", "running", "own", "elsewhere", "old", "other file", "user", "not hidden"],
)
def test_only_what_a_dead_process_left_is_removed(tmp_path, kind, name, days, stays):
    path = leave(tmp_path / name, kind)
    before = time.time() - days * 24 * 3600
    os.utime(path, (before, before))
    remove_stale(tmp_path, "train.cache")
    assert path.exists() == stays
    remove_stale(tmp_path / "absent")


def test_names_say_whose_they_are(tmp_path):
    long = tmp_path / ("ü" * 127)  # the longest name that most file systems allow
    for path in (tmp_path / "a[1]*.cache", long):
        name = temporary_path(path)
        leave(name.with_name(name.name.replace(f"-{os.getpid()}-", f"-{DEAD}-")))
        leave(name)
        remove_stale(tmp_path, path.name)
        assert list(tmp_path.iterdir()) == [name]
        name.unlink()
    with atomic_write(long):
        assert temporary_files.NAME.fullmatch(next(tmp_path.iterdir()).name)
    assert list(tmp_path.iterdir()) == [long]
