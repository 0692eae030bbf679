"""Names of temporary files and folders, and removal of those that a killed process has left."""

import functools
import glob
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.machine import is_running

NAME = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)  # machine and process
MAX_NAME_BYTES = 200  # of the file that it becomes; most file systems allow 255 in all
OLD_SECONDS = 7 * 24 * 3600.0  # another machine's are left alone for so long


def temporary_path(path: Path) -> Path:
    """Return a free hidden name beside `path`. It says which process uses it, on which machine."""
    name = shorten_name(path.name, MAX_NAME_BYTES)
    return path.with_name(f".{name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def remove_stale(folder: Path, name: str | None = None) -> None:
    """Remove what was to become the file or folder `name`, or any other, in `folder`, if its process has ended."""
    pattern = "*" if name is None else glob.escape(shorten_name(name, MAX_NAME_BYTES))
    for path in folder.glob(f".{pattern}.*.tmp"):
        with suppress(OSError):
            if _is_stale(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def draft_folder(path: Path) -> Generator[Path]:
    """Yield a new hidden folder beside `path`. It is removed at the end, unless the block has renamed it."""
    remove_stale(path.parent, path.name)
    draft = temporary_path(path)
    draft.mkdir()
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def shorten_name(name: str, max_bytes: int) -> str:
    """Return the first letters of a file name that fit into `max_bytes` as the system encodes it."""
    while len(os.fsencode(name)) > max_bytes:
        name = name[: min(len(name) - 1, max_bytes)]
    return name


def _is_stale(path: Path) -> bool:
    found = NAME.fullmatch(path.name)
    if found is None:  # not ours
        return False
    is_dead = found[1] == _machine() and not is_running(int(found[2]))
    return is_dead or time.time() - path.lstat().st_mtime > OLD_SECONDS


@functools.cache
def _machine() -> str:
    """Return 8 digits for this machine, or this container: process numbers are its own."""
    try:
        processes = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        processes = 0
    return hashlib.sha256(f"{socket.gethostname()} {processes}".encode()).hexdigest()[:8]
