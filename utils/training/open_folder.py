"""Run folder that is kept open: found again when it is renamed, made again when it is removed."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from utils.console import warn
from utils.errors import UserError
from utils.files import increment_path
from utils.folder_lock import FolderLock, lock_folder


class OpenFolder:
    """Folder that is locked for this process until `close`. It is made if it is absent.

    Where the system does not show where an open folder is, a renamed one counts as removed. Windows does not rename
    it.
    """

    def __init__(self, path: Path):
        self._path, self._files = path, list[Callable[[Path], None]]()
        path.mkdir(parents=True, exist_ok=True)
        self._lock, self._descriptor = lock_run(path), _open(path)

    def close(self) -> None:
        """Unlock the folder."""
        self._lock.close()
        if self._descriptor is not None:
            os.close(self._descriptor)

    def keep(self, write: Callable[[Path], None]) -> None:
        """Call `write` with the folder now, and again if the folder has to be made again."""
        write(self.path)
        self._files.append(write)

    @property
    def path(self) -> Path:
        """Path where the folder is now. A removed folder is made again, unless that is impossible."""
        now = self._find()
        if now is None:
            self._make_again()
        elif now != self._path:
            warn(f"{self._path} was renamed: it is {now} now, and the run continues there.")
            self._path = now
        return self._path

    def _find(self) -> Path | None:
        """Return the path where the open folder is now, None if it was removed."""
        if self._is_at(self._path):
            return self._path
        now = None if self._descriptor is None else path_of(self._descriptor)
        if now is None or not self._is_at(now):
            return None
        if now == self._path.resolve():  # a file system that changes the numbers of its files
            return self._path
        is_below = not self._path.is_absolute() and now.is_relative_to(Path.cwd())
        return now.relative_to(Path.cwd()) if is_below else now

    def _is_at(self, path: Path) -> bool:
        try:
            status = os.stat(path)
            return self._descriptor is None or os.path.samestat(status, os.fstat(self._descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # it cannot be known now
            return True

    def _make_again(self) -> None:
        """Make the folder again under its name, or the next free one. Do nothing if that is impossible."""
        try:
            path = increment_path(self._path)
            lock, descriptor = lock_run(path), _open(path)
        except (UserError, OSError):  # what is written next fails, with a warning
            return
        with suppress(OSError):
            self.close()
        self._lock, self._descriptor, before, self._path = lock, descriptor, self._path, path
        for write in self._files:
            with suppress(OSError):
                write(path)
        warn(
            f"{before} was removed: it is made again as {path}, with the settings, and at the next save with last.pt "
            "and the rows of results.csv. What else was in it is gone."
        )


def lock_run(path: Path) -> FolderLock:
    """Lock a run folder for this process until the lock is closed. Raise UserError if another has it."""
    return lock_folder(
        path / ".lock",
        lambda holder: (
            f"{path}: another process is training in this folder, {holder}; wait for it, or give another --name"
        ),
    )


def _open(path: Path) -> int | None:
    """Return a descriptor of a folder, None on Windows."""
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return None


def path_of(descriptor: int) -> Path | None:
    """Return the path of an open folder, wherever it is now. None if the system does not show it."""
    try:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # Linux
    except OSError:
        pass
    try:
        import fcntl  # here, because Windows lacks it

        # pyrefly: ignore[missing-attribute] (macOS only)
        found = fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024))
        return Path(os.fsdecode(found.rstrip(b"\0")))
    except (ImportError, AttributeError, OSError):
        return None
