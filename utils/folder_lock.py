"""Lock of a folder: one process at a time, also where the system or the file system has no locks."""

import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from utils.errors import UserError
from utils.machine import is_running


class FolderInUse(Exception):
    """Another process holds the lock. The text names it."""


class FolderLock:
    """Lock on `file`, until close() or the end of this process, however that comes. Child processes do not inherit it.

    The file names its holder. Where there are no locks, a holder that still runs keeps others out.
    """

    def __init__(self, file: Path):
        self._stream = open(file, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 (close() closes it)
        try:
            locked = _lock(self._stream)
            if locked is not True:
                self._stream.seek(0)
                _check_holder(self._stream.read().strip(), file, locks_work=locked is False)
        except BaseException:
            self._stream.close()
            raise
        self._write(f"process {os.getpid()} on {socket.gethostname()}")

    def close(self) -> None:
        """Unlock the folder."""
        self._write("")
        self._stream.close()

    def _write(self, holder: str) -> None:
        with suppress(OSError):  # a full disk
            self._stream.truncate(0)
            self._stream.write(holder)
            self._stream.flush()


def lock_folder(file: Path, explain: Callable[[FolderInUse], str]) -> FolderLock:
    """Lock a folder by a `file` in it. If another process has it, raise UserError with the message of `explain`."""
    try:
        return FolderLock(file)
    except FolderInUse as error:
        raise UserError(explain(error)) from error


def _lock(stream: TextIO) -> bool | None:
    """Lock an open file. Return False if another process has it, None where there are no locks."""
    try:
        import fcntl  # here, because only POSIX has it
    except ImportError:
        return _lock_on_windows(stream)
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _lock_on_windows(stream: TextIO) -> bool | None:
    try:
        import msvcrt
    except ImportError:
        return None
    try:
        stream.seek(1 << 30)  # a locked byte cannot be read by others: one behind the text
        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # pyrefly: ignore[missing-attribute] (Windows only)
    except OSError:
        return False
    return True


def _check_holder(holder: str, file: Path, *, locks_work: bool) -> None:
    """Raise FolderInUse unless `holder` has certainly ended."""
    if locks_work:
        raise FolderInUse(holder or "another process")
    found = re.fullmatch(r"process (\d+) on (.+)", holder)
    if found is None or (found[2] == socket.gethostname() and _has_ended(int(found[1]))):
        return
    raise FolderInUse(f"{holder} (there are no locks here: delete {file} if that has ended)")


def _has_ended(process: int) -> bool:
    """Return True also for the number of this process: an earlier one had it, before a restart of the machine."""
    return process == os.getpid() or not is_running(process)
