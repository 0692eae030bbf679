"""Names of result files: one per source, legal on every file system, and a table of those that differ from theirs."""

import csv
import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from utils.files import named_errors
from utils.images.frames import Frame
from utils.temporary_files import shorten_name

MAX_NAME = 80  # characters of a name with folders in it
MAX_STEM_BYTES = 235  # of the 255 of a file name: the rest is for numbers, `.`, suffix
MAX_SUFFIX_BYTES = len(".jpeg")
UNFIT_FOR_FILES = re.compile(r"[^\w.\- ]")
FORMULA = re.compile(r"[=+\-@\t\r]")  # first letters of a cell that spreadsheets run


def spreadsheet_cell(text: str) -> str:
    """Return text for a CSV file in one line, with `'` before what a spreadsheet would run as a formula."""
    text = " ".join(text.splitlines())
    return f"'{text}" if FORMULA.match(text) else text


def comparable(name: str) -> str:
    """Return a name in the form in which some file systems compare it: without case, in one Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()


def claim_first_free(candidates: Iterable[str], taken: set[str]) -> str:
    """Return the first of `candidates` that is not `taken`, and add it there in comparable form."""
    free = next(name for name in candidates if comparable(name) not in taken)
    taken.add(comparable(free))
    return free


def numbered(name: str) -> Iterator[str]:
    """Yield name_2, name_3, …"""
    return (f"{name}_{n}" for n in itertools.count(2))


class RenamedTable:
    """Table renamed.csv in the run folder: which source, or class, a changed name belongs to.

    A table of an earlier run is removed. Without a changed name there is no table.
    """

    def __init__(self, folder: Path):
        self.file = folder / "renamed.csv"
        self.file.unlink(missing_ok=True)

    def add(self, result: str, source: str) -> None:
        """Append a row at once: a run that is killed needs it too."""
        is_new = not self.file.exists()
        # A name that is not UTF-8 is written with \udc.. in place of such bytes.
        with (
            named_errors(self.file),
            self.file.open("a", newline="", encoding="utf-8", errors="backslashreplace") as stream,
        ):
            rows = [["Result", "Source"]] if is_new else []
            csv.writer(stream).writerows([*rows, [spreadsheet_cell(result), spreadsheet_cell(source)]])


class OutputNames:
    """Unique names for the outputs of sources: a/cat.jpg, b/cat.jpg and cat.png do not overwrite each other.

    `renamed` gets those that differ from the stem of their source.
    """

    def __init__(self, renamed: RenamedTable | None = None) -> None:
        self._by_path: dict[str, str] = {}
        self._taken: set[str] = set()
        self._renamed = renamed

    def stem(self, frame: Frame) -> str:
        """Return the source's own stem if it is short enough and still free, else a shorter one or one with _2, _3."""
        if frame.path not in self._by_path:
            own = Path(frame.path).stem if frame.kind in ("image", "video") else frame.path
            stem = own if frame.kind in ("image", "video") else UNFIT_FOR_FILES.sub("_", own)
            if frame.kind != "image" or len(os.fsencode(stem)) > 255 - MAX_SUFFIX_BYTES:
                stem = shorten_name(stem, MAX_STEM_BYTES)
            free = stem if not self._clashes(stem, frame.kind) else self._numbered(stem, frame.kind)
            self._taken.add(comparable(free))
            self._by_path[frame.path] = free
            if free != own and self._renamed:
                self._renamed.add(free, frame.path)
        return self._by_path[frame.path]

    def _numbered(self, stem: str, kind: str) -> str:
        candidates = numbered(shorten_name(stem, MAX_STEM_BYTES))
        return next(name for name in candidates if not self._clashes(name, kind))

    def _clashes(self, stem: str, kind: str) -> bool:
        """Return True if outputs of another source have this name.

        Frame 7 of a video `a` has the label file a_7.txt, which an image `a_7` may have claimed.
        """
        stem = comparable(stem)
        frames = re.compile(re.escape(stem) + r"_\d+")
        return stem in self._taken or (kind != "image" and any(frames.fullmatch(other) for other in self._taken))


def class_folders(names: Mapping[int, str]) -> dict[str, str]:
    """Return a folder name for each class name, another one for each: `a/b` and `a:b` are two folders.

    Names that are legal as they are keep themselves.
    """
    taken: set[str] = set()
    fit = {
        name: UNFIT_FOR_FILES.sub("_", shorten_name(name, MAX_STEM_BYTES)).strip(". ") or "_" for name in names.values()
    }
    legal_first = sorted(fit, key=lambda name: fit[name] != name)
    return {name: claim_first_free([fit[name], *islice(numbered(fit[name]), len(fit))], taken) for name in legal_first}


def unique_names(paths: Sequence[str]) -> dict[str, str]:
    """Return a file name without suffix for each path.

    It is the stem. If several paths share a stem, their names also have the last folders and the suffix, as in
    exp2_weights_best_pt: as few folders as make the names different. Names that differ by case alone count as shared,
    and long ones are cut, as OutputNames does.
    """
    names: dict[str, str] = {}
    by_stem: dict[str, list[str]] = {}  # strings, which take less memory than Paths: there may be a million
    for path in map(Path, paths):
        names[str(path)] = path.stem
    for path, stem in names.items():
        by_stem.setdefault(comparable(stem), []).append(path)
    taken = {stem for stem, group in by_stem.items() if len(group) == 1}
    for group in by_stem.values():
        for path, name in zip(group, _disambiguate(group), strict=True) if len(group) > 1 else ():
            name = shorten_name(name, MAX_STEM_BYTES)
            names[path] = claim_first_free(itertools.chain([name, f"{name}_"], numbered(name)), taken)
    return names


def _disambiguate(paths: Sequence[str]) -> list[str]:
    """Return names of paths that share a stem: folders, stem and suffix, joined by `_`.

    The number of folders is the lowest that makes the names different, or 1 if longer names exceed MAX_NAME.
    """
    parts = [Path(path).parts for path in paths]
    files = [f"{Path(path).stem}_{Path(path).suffix[1:]}" for path in paths]

    def names(depth: int) -> list[str]:
        return [
            "_".join((*(part for part in folders[-1 - depth : -1] if os.sep not in part), file))
            for folders, file in zip(parts, files, strict=True)
        ]

    for depth in range(1, max(map(len, parts))):
        found = names(depth)
        if max(map(len, found)) > MAX_NAME:
            break
        if len(set(found)) == len(found):
            return found
    return names(1)
