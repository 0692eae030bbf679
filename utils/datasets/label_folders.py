"""Folders of labels that are not where YOLOv5 expects them: `label/`, `Labels/`, `annotations/` and others."""

import os
from collections.abc import Sequence
from functools import lru_cache

from utils.errors import UserError
from utils.images.suffixes import IMAGE_SUFFIXES

NOT_LABELS = {"classes.txt", "labels.txt", "names.txt", "notes.txt", "readme.txt", "predefined_classes.txt"}
LABEL_FOLDERS = {"labels", "label", "annotations", "annotation", "txt", "yolo", "yolo_labels", "labels_yolo"}
IMAGE_FOLDERS = {"images", "image", "imgs", "img", "jpegimages", "data"}


def find_label_folder(folder: str) -> str | None:
    """Return the folder of labels for a folder of images, None if there is none.

    Its name is one of `LABEL_FOLDERS`, in any case of letters. It is in the folder itself, beside it, or beside the
    last folder above that is named for images. Some of its text files have names of images. Raises UserError for
    several such folders.
    """
    bases = _bases(folder)
    candidates = _find_candidates(bases, tuple(_mtime(base) for base, _ in bases))
    if not candidates:
        return None
    fitting = _fitting(folder, candidates, tuple(map(_mtime, (folder, *candidates))))
    if len(fitting) > 1:
        raise UserError(
            f"{folder}: its labels are in {' or in '.join(fitting)}: each has files named like the images. Rename the "
            "right folder to labels, or move the others away"
        )
    return fitting[0] if fitting else None


def holds_texts(folder: str) -> bool:
    """Return whether text files that may be labels are in a folder."""
    return bool(_list_stems(folder, _mtime(folder)))


def _bases(folder: str) -> tuple[tuple[str, str], ...]:
    """Return where folders of labels may be, and what is below such a folder: "" or `train/`."""
    above, name = os.path.split(folder)
    parts = folder.split(os.sep)
    last = next((k for k in reversed(range(len(parts))) if parts[k].lower() in IMAGE_FOLDERS), None)
    bases = [(folder, ""), (above, name)]
    if last is not None:
        bases.append((os.sep.join(parts[:last]) or os.sep * folder.startswith(os.sep), os.sep.join(parts[last + 1 :])))
    return tuple(bases)


@lru_cache(maxsize=1024)
def _find_candidates(bases: Sequence[tuple[str, str]], mtimes: tuple[int, ...]) -> tuple[str, ...]:
    """Return folders of labels below `bases` that changed last at `mtimes`."""
    found = []
    for (base, below), mtime in zip(bases, mtimes, strict=True):
        if mtime:
            names = sorted(name for name in _list_names(base) if name.lower() in LABEL_FOLDERS)
            found += [os.path.join(base, name, below).rstrip(os.sep) for name in names]
    return tuple(filter(os.path.isdir, dict.fromkeys(found)))


@lru_cache(maxsize=1024)
def _fitting(folder: str, candidates: tuple[str, ...], mtimes: tuple[int, ...]) -> list[str]:
    """Return the candidates with a text file named like an image in `folder`."""
    names = _list_names(folder)
    images = {os.path.splitext(name)[0] for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES}
    return [
        candidate
        for candidate, mtime in zip(candidates, mtimes[1:], strict=True)
        if candidate != folder and not images.isdisjoint(_list_stems(candidate, mtime))
    ]


@lru_cache(maxsize=64)
def _list_stems(folder: str, mtime: int) -> frozenset[str]:
    """Return the names without suffix of the text files in a folder that changed last at `mtime`, 0 if it is absent."""
    names = (name for name in _list_names(folder) if mtime and name[-4:].lower() == ".txt")
    return frozenset(name[:-4] for name in names if name.lower() not in NOT_LABELS)


def _list_names(folder: str) -> list[str]:
    """Return the names in a folder, none if it cannot be listed."""
    try:
        return os.listdir(folder or os.curdir)
    except OSError:
        return []


def _mtime(folder: str) -> int:
    """Return when a folder changed last in ns, 0 if it is absent."""
    try:
        return os.stat(folder or os.curdir).st_mtime_ns
    except OSError:
        return 0
