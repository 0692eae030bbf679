"""Paths as files of other machines state them, and what exists of them here."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

MAX_PATH = 4096  # characters


def existing_end(text: str, folder: str | Path, exists: Callable[[str], bool] = os.path.exists) -> str | None:
    """Return the longest end of a stated path that exists below `folder`, with slashes, None if there is none.

    Programs state absolute paths, those of Windows, and paths as seen from elsewhere. A text of more than MAX_PATH
    characters is none.
    """
    if len(text) > MAX_PATH:
        return None
    parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
    start = max((k + 1 for k, part in enumerate(parts) if part == ".." or part[1:] == ":"), default=0)
    for k in range(start, len(parts)):
        end = "/".join(parts[k:])
        if "\0" not in end and exists(os.path.join(folder, end)):
            return end
    return None


def find_moved(text: str, folders: Sequence[str]) -> str | None:
    """Return the file in one of `folders` or below them that has an end of the stated path, None if there is none."""
    for folder in folders:
        if (end := existing_end(text, folder, os.path.isfile)) is not None:
            return os.path.join(folder, *end.split("/"))
    return None
