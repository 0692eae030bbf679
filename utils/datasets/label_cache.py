"""Cache of a split's labels: a file in the user's cache folder, never beside the data.

It is valid while no image, label file or setting has changed.
"""

import hashlib
import os
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from utils.datasets.image_files import label_path, map_chunks
from utils.datasets.label_index import ARRAYS, Counts, LabelIndex, keep_paths
from utils.datasets.string_array import StringArray
from utils.environment import variable
from utils.files import atomic_write, check_archive, open_regular
from utils.parallel_map import MAX_WORKERS
from utils.pixel_format import RGB
from utils.temporary_files import remove_stale

CACHE_FORMAT = 4  # raise it when the parser or the layout changes: caches with another number are not read
MAX_CACHE_BYTES = 8 << 30


@dataclass(frozen=True)
class LabelCache:
    """Cache of one split, valid for exactly these images, label files and settings."""

    place: Path  # the file
    settings: dict[str, int]  # the format of the cache, and what the rows mean
    paths: list[str]  # of all images, usable or not
    stamps: np.ndarray  # (N, 6) int64, see `stamp_files`

    @classmethod
    def of_split(cls, sources: Sequence[str | Path], paths: list[str], *, settings: Mapping[str, int]) -> "LabelCache":
        """Return the cache of the images `paths` that were found in `sources`, as they are on disk now.

        It is valid for equal `settings` only: what the rows mean.
        """
        numbers = {"format": CACHE_FORMAT} | dict(settings)
        return cls(cache_file(sources), numbers, paths, stamp_files(paths))

    def read(self) -> LabelIndex | None:
        """Return the index that was written for these images, labels and settings, or None for any other file."""
        try:
            with open_regular(self.place, MAX_CACHE_BYTES) as opened, np.load(opened, allow_pickle=False) as arrays:
                check_archive(self.place)
                data = {name: arrays[name] for name in arrays.files}
            stored = RGB._asdict() | data  # caches of older versions are of RGB images
            same = all(int(stored[name]) == value for name, value in self.settings.items())
            scanned = StringArray.from_bytes(data["paths"])
            if not same or not np.array_equal(data["stamps"], self.stamps) or scanned != StringArray(self.paths):
                return None
            index = LabelIndex(
                paths=keep_paths(scanned, data["kept"].astype(bool)),
                counts=Counts(*map(int, data["counts"])),
                messages=list(StringArray.from_bytes(data["messages"])),
                **{name: data[name] for name in ARRAYS},
            )
            return index if is_consistent(index) else None
        except Exception:  # zip and NumPy raise anything for a damaged file; the labels are read again
            return None

    def write(self, index: LabelIndex, kept: np.ndarray) -> bool:
        """Write the cache. Return False if its folder is not writable.

        `kept` (N,) bool says which of `paths` are in the index.
        """
        content: dict[str, Any] = {
            **self.settings,
            **{name: getattr(index, name) for name in ARRAYS},
            "paths": StringArray(self.paths).data,
            "stamps": self.stamps,
            "kept": kept,
            "counts": np.array(index.counts),
            "messages": StringArray(index.messages).data,
        }
        try:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(self.place.parent, self.place.name)
            with atomic_write(self.place, sync=False) as file:  # a damaged cache is detected and written again
                np.savez(file, **content)
        except OSError:
            return False
        return True


def is_consistent(index: LabelIndex) -> bool:
    """Return whether shapes and types are right and all offsets point into their arrays."""

    def fits(offsets: np.ndarray, runs: int, total: int) -> bool:
        return (
            offsets.shape == (runs + 1,)
            and offsets.dtype == np.int64
            and offsets[0] == 0
            and offsets[-1] == total
            and bool((np.diff(offsets) >= 0).all())
        )

    arrays = (
        (index.shapes, np.int32, 2),
        (index.labels, np.float32, 5),
        (index.points, np.float32, 2),
        (index.ignored, np.float32, 5),
    )
    images = index.ignored_images
    return (
        all(array.dtype == dtype and array.ndim == 2 and array.shape[1] == width for array, dtype, width in arrays)
        and len(index.shapes) == len(index.paths)
        and fits(index.offsets, len(index.paths), len(index.labels))
        and fits(index.segment_offsets, len(index.labels), len(index.points))
        and images.shape == (len(index.ignored),)
        and images.dtype == np.int64
        and bool((np.diff(images, prepend=0, append=max(0, len(index) - 1)) >= 0).all())
    )


# ---- where the cache is ----------------------------------------------------------------------------------------------


def cache_file(sources: Sequence[str | Path]) -> Path:
    """Return the file of the cache of a split. Its name is a digest of the sources, so each split has its own."""
    return user_cache_folder() / "labels" / f"{digest(*(Path(source).absolute() for source in sources))[:16]}.cache"


def user_cache_folder() -> Path:
    """Return the folder of derived files, `~/.cache/anchorage` unless XDG_CACHE_HOME names another cache folder."""
    chosen = variable("XDG_CACHE_HOME") or ""
    if os.path.isabs(chosen):  # the specification has programs ignore relative paths
        return Path(chosen) / "anchorage"
    try:
        return Path.home() / ".cache" / "anchorage"
    except RuntimeError:  # neither a variable HOME nor an entry of the user, as in containers
        return Path(tempfile.gettempdir()) / f"anchorage-{getattr(os, 'getuid', int)()}"


def digest(*texts: str | Path) -> str:
    """Return the SHA-256 of the texts, in hexadecimal."""
    return hashlib.sha256("\0".join(map(str, texts)).encode(errors="surrogateescape")).hexdigest()


# ---- stamps ----------------------------------------------------------------------------------------------------------


def stamp_files(paths: list[str]) -> np.ndarray:
    """Return (N, 6) int64: size, mtime and ctime in ns of each image and of its label file, -1 if absent.

    Programs may set the mtime back (cp -p, rsync, touch -r), but not the ctime.
    """
    size = max(16, min(4096, -(-len(paths) // (4 * MAX_WORKERS))))
    return np.concatenate(list(map_chunks(_stamp_chunk, paths, size=size)))


def stamp_each(files: list[str]) -> np.ndarray:
    """Return (F, 3) int64: size, mtime and ctime in ns of each file, -1 if absent."""
    return np.concatenate(list(map_chunks(_stamp_files, files, size=4096))) if files else np.zeros((0, 3), np.int64)


def _stamp_files(files: list[str]) -> np.ndarray:
    groups = ((folder, [file[len(folder) :] for file in group]) for folder, group in groupby(files, _folder))
    return np.concatenate([_stat(folder, names) for folder, names in groups])


def _stamp_chunk(paths: list[str]) -> np.ndarray:
    of_images, of_labels = [], []
    for folder, group in groupby(paths, _folder):
        names = [path[len(folder) :] for path in group]
        of_images.append(_stat(folder, names))
        labels = _folder(label_path(folder + names[0]))  # all images of a folder have their labels in one folder
        of_labels.append(_stat(labels, [name[: name.rfind(".")] + ".txt" for name in names]))
    return np.concatenate([np.concatenate(of_images), np.concatenate(of_labels)], 1)


def _folder(file: str) -> str:
    """Return the folder of a file with a separator at the end, or "" for a bare name."""
    return file[: file.rfind(os.sep) + 1]


def _stat(folder: str, names: Sequence[str]) -> np.ndarray:
    """Return (n, 3) int64: size, mtime and ctime of files, looked up relative to the folder, which is faster."""
    values, stat = [], os.stat
    with _open_folder(folder) as (descriptor, prefix):
        for name in names:
            try:
                status = stat(prefix + name, dir_fd=descriptor)
                values += status.st_size, status.st_mtime_ns, status.st_ctime_ns
            except OSError:
                values += -1, -1, -1
    return np.fromiter(values, np.int64, len(values)).reshape(-1, 3)


@contextmanager
def _open_folder(folder: str) -> Generator[tuple[int | None, str]]:
    """Yield (descriptor of the folder, ""), or (None, the folder) if it cannot be opened: `dir_fd` and name prefix."""
    try:
        descriptor = os.open(folder or os.curdir, os.O_PATH)  # needs only the permission to traverse, not to read
    except (AttributeError, OSError):
        yield None, folder
        return
    try:
        yield descriptor, ""
    finally:
        os.close(descriptor)
