"""Files that could not be written are tried again, and what is missing at the end is an error."""

import errno
import os
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.pending_files import PendingFiles, require_written


class Disk:
    """Writer of empty files that fails while it is full."""

    full = True

    def write(self, path: Path) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.touch()


def test_a_file_is_written_once_there_is_room(tmp_path, capsys):
    disk, pending, file = Disk(), PendingFiles(), tmp_path / "a"
    assert not pending.write(file, disk.write) and list(pending) == [file]
    assert pending.retry() == {file: "No space left on device"}
    disk.full = False
    assert pending.retry() == {} and file.exists() and not pending
    assert capsys.readouterr().err.count("a could not be written: No space left on device. The previous file") == 1


def test_a_later_content_takes_the_place_of_an_earlier_one(tmp_path):
    pending, file = PendingFiles(), tmp_path / "a"
    pending.add(file, lambda path: path.write_text("earlier"))
    pending.add(file, lambda path: path.write_text("later"))
    assert pending.retry() == {} and file.read_text() == "later"


def test_files_follow_their_folder(tmp_path):
    disk, pending = Disk(), PendingFiles()
    pending.write(tmp_path / "a", disk.write)
    (tmp_path / "new").mkdir()
    pending.move(tmp_path / "new")
    disk.full = False
    assert pending.retry() == {} and (tmp_path / "new/a").exists() and not (tmp_path / "a").exists()


def test_what_is_given_up_stays_missing_and_what_is_dropped_does_not(tmp_path):
    disk, pending = Disk(), PendingFiles()
    for name in "abc":
        pending.write(tmp_path / name, disk.write)
    pending.give_up(tmp_path / "a")
    pending.drop(tmp_path / "b")
    disk.full = False
    missing = pending.retry()
    assert missing == {tmp_path / "a": "No space left on device"} and (tmp_path / "c").exists()
    with pytest.raises(UserError, match="a could not be written, also at the end: No space left on device. Make room"):
        require_written(missing)
    require_written({})
