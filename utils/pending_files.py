"""Files that could not be written: what writes them is kept, and tried again."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from utils.console import warn
from utils.errors import UserError

Write = Callable[[Path], object]  # writes a file


class PendingFiles:
    """Files that could not be written, each with the function that writes it. One thread at a time uses them."""

    def __init__(self) -> None:
        self._writers: dict[Path, Write | None] = {}  # None: given up
        self._reasons: dict[Path, str] = {}

    def __iter__(self) -> Iterator[Path]:
        return iter(list(self._writers))

    def __bool__(self) -> bool:
        return bool(self._writers)

    def add(self, path: Path, write: Write) -> None:
        """Keep `write` for `retry`. It takes the place of an earlier one."""
        self.drop(path)
        self._writers[path] = write

    def drop(self, path: Path) -> None:
        """Forget a file that is not wanted any more."""
        self._writers.pop(path, None)
        self._reasons.pop(path, None)

    def give_up(self, path: Path) -> None:
        """Free what is needed to write a file. It stays among the missing ones."""
        self._writers[path] = None

    def move(self, folder: Path) -> None:
        """Write to `folder` from here on."""
        self._writers = {folder / path.name: write for path, write in self._writers.items()}
        self._reasons = {folder / path.name: reason for path, reason in self._reasons.items()}

    def write(self, path: Path, write: Write) -> bool:
        """Write `path`. If that fails, warn, keep `write` for `retry`, and return False."""
        self.add(path, write)
        try:
            write(path)
        except OSError as error:
            self._reasons[path] = error.strerror or type(error).__name__
            warn(
                f"{path} could not be written: {self._reasons[path]}. The previous file is kept, and it is tried again."
            )
            return False
        self.drop(path)
        return True

    def retry(self) -> dict[Path, str]:
        """Try all again, in their order. Return the files that are still missing, with the reasons."""
        for path, write in list(self._writers.items()):
            if write is not None:
                self.write(path, write)
        return {path: self._reasons.get(path, "") for path in self._writers}


def require_written(missing: Mapping[Path, str], advice: str = "") -> None:
    """Raise UserError if files are missing at the end. It names them and the first reason, and says what to type."""
    if missing:
        names, reason = ", ".join(map(str, missing)), next(iter(missing.values()))
        raise UserError(f"{names} could not be written, also at the end: {reason}. Make room on the disk{advice}")
