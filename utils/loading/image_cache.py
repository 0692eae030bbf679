"""The pictures of a split, read over and over: from their files, or from a cache in memory or on the disk."""

import mmap
import os
import shutil
import sys
import tempfile
import threading
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.datasets.label_cache import digest, is_writable, user_cache_folder
from utils.datasets.label_index import LabelIndex
from utils.errors import UserError
from utils.images.read import read_resized, resized_shapes
from utils.parallel_map import MAX_WORKERS

AUTO_SHARE = 0.1  # of the free memory is taken unasked, since a mosaic reads each picture four times an epoch
DISK_FORMAT = 2  # raise it whenever what --cache disk keeps of a picture, or how it is resized, changes


class SharedBytes:
    """A block of memory that worker processes see too, however they are started."""

    def __init__(self, size: int) -> None:
        if hasattr(os, "memfd_create"):  # plain memory: /dev/shm is often tiny in containers
            self.file = os.fdopen(os.memfd_create("anchorage-images"), "r+b")
            self.path = f"/proc/{os.getpid()}/fd/{self.file.fileno()}"
        else:
            self.file = tempfile.NamedTemporaryFile(prefix="anchorage-images-")
            self.path = self.file.name
        self.file.truncate(max(size, 1))
        self._map(size)

    def _map(self, size: int) -> None:
        self.size = size
        self.array = np.frombuffer(mmap.mmap(self.file.fileno(), max(size, 1)), np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        with open(self.path, "r+b") as self.file:
            self._map(state["size"])

    def __del__(self) -> None:
        self.file.close()  # the memory itself lives as long as the array


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


class ImageReader:
    """Pictures of an index, resized so that the long side is `size`."""

    in_files = True  # each is read from one, again and again

    def __init__(self, index: LabelIndex, size: int, *, smooth: bool) -> None:
        self.index, self.size, self.smooth = index, size, smooth
        self.shapes = resized_shapes(index.shapes, size).astype(np.int32)  # (N, 2)
        self.reported = SharedBytes(len(index))  # one flag a picture, so that one worker alone warns of it, and once

    def shape(self, i: int) -> tuple[int, int]:
        return tuple(self.shapes[i].tolist())

    def read(self, i: int, rows: int | None = None) -> np.ndarray | None:
        """BGR picture i, or at least its upper `rows` rows; None, with one warning, if it cannot be read (any more).

        Not to be written to.
        """
        try:
            return read_resized(self.index.paths[i], self.shape(i), smooth=self.smooth, rows=rows)
        except UserError as error:
            if not self.reported.array[i]:
                self.reported.array[i] = 1
                warn(f"{error}; grey and without labels instead")
            return None

    def expect(self, i: int) -> None:
        """Ask the system for the file of picture i ahead of its reading, which is not waited for."""
        prefetch_file(self.index.paths[i])

    def bytes_needed(self) -> int:
        return int(self.shapes.prod(1, dtype=np.int64).sum() * 3)


class RamCache(ImageReader):
    """All pictures read once, into one block of memory shared with the workers."""

    in_files = False

    def __init__(self, index: LabelIndex, size: int, *, smooth: bool, progress: bool) -> None:
        super().__init__(index, size, smooth=smooth)
        self.starts = np.concatenate([[0], np.cumsum(self.shapes.prod(1, dtype=np.int64) * 3)])
        self.block = SharedBytes(int(self.starts[-1]))
        self.readable = np.zeros(len(index), bool)
        title = f"Caching images ({self.starts[-1] / 2**30:.1f}GB ram)"
        with ThreadPool(2 * min(MAX_WORKERS, os.cpu_count() or 1)) as pool:  # one reads while another decodes
            done = pool.imap_unordered(self._fill, range(len(index)), chunksize=8)
            for _ in tqdm(done, total=len(index), desc=title, disable=not progress, dynamic_ncols=True):
                pass

    def _view(self, i: int) -> np.ndarray:
        return self.block.array[self.starts[i] : self.starts[i + 1]].reshape(*self.shape(i), 3)

    def _fill(self, i: int) -> None:
        picture = super().read(i)
        if picture is not None:
            self._view(i)[:] = picture
            self.readable[i] = True

    def read(self, i: int, rows: int | None = None) -> np.ndarray | None:
        if not self.readable[i]:
            return None
        view = self._view(i)
        view.flags.writeable = False
        return view


class DiskCache(ImageReader):
    """Each picture kept decoded and resized in a file of its own, valid for one size and two times of the original.

    Of the times, that of modification may be set back (cp -p, rsync), that of change cannot.
    """

    def __init__(self, index: LabelIndex, size: int, *, smooth: bool) -> None:
        super().__init__(index, size, smooth=smooth)
        self.writable = True
        self.folders = {folder: self._place(folder) for folder in {os.path.dirname(path) for path in index.paths}}

    @staticmethod
    def _place(folder: str) -> Path:
        """Beside the folder of pictures: images/train -> images/train.npy_cache; elsewhere if that is read-only."""
        absolute = Path(folder).absolute()
        beside = absolute.with_name(f"{absolute.name}.npy_cache")
        return beside if is_writable(beside.parent) else user_cache_folder() / "images" / digest(absolute)[:16]

    def _file(self, i: int) -> Path:
        folder, name = os.path.split(self.index.paths[i])
        return self.folders[folder] / f"{name}.{self.size}{'s' if self.smooth else ''}.npy"

    def expect(self, i: int) -> None:
        prefetch_file(self._file(i)) or super().expect(i)

    def read(self, i: int, rows: int | None = None) -> np.ndarray | None:
        place = self._file(i)
        height, width = self.shape(i)
        try:
            status = os.stat(self.index.paths[i])
        except OSError:
            return super().read(i)  # warns
        stamp = np.array([DISK_FORMAT, status.st_size, status.st_mtime_ns, status.st_ctime_ns, height, width], np.int64)
        stamp = stamp.view(np.uint8)
        data = _load_bytes(place)
        if data.shape == (stamp.size + height * width * 3,) and np.array_equal(data[: stamp.size], stamp):
            return data[stamp.size :].reshape(height, width, 3)
        picture = super().read(i)
        if picture is not None and self.writable:
            self._write(place, np.concatenate([stamp, picture.reshape(-1)]))
        return picture

    def _write(self, place: Path, data: np.ndarray) -> None:
        """Rename into place what is on the disk: half a file would pass for a whole one by its stamp."""
        temporary = place.with_name(f".{place.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                np.save(file, data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, place)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self.writable = False
            warn(f"--cache disk: {place.parent} cannot be written ({error.strerror}); going on uncached")

    def room(self) -> tuple[int, int]:
        """Bytes still to be written, and bytes free where they go."""
        present = sum(
            entry.stat().st_size for place in self.folders.values() if place.is_dir() for entry in os.scandir(place)
        )
        place = next(iter(self.folders.values()))
        existing = next(parent for parent in place.parents if parent.is_dir())
        return max(0, self.bytes_needed() - present), shutil.disk_usage(existing).free


def prefetch_file(path: str | Path) -> bool:
    """Let the system begin to read a file into its memory; whether there is one. Nothing where a system cannot."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would be waited for
    except OSError:
        return False
    try:
        with suppress(OSError, AttributeError):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(file)
    return True


def _load_bytes(place: Path) -> np.ndarray:
    """The bytes in a .npy file; none for a file that is absent or damaged."""
    try:
        with open(place, "rb") as file:
            data = np.lib.format.read_array(file, allow_pickle=False)
        return data if data.dtype == np.uint8 else np.zeros(0, np.uint8)
    except Exception:  # whatever a damaged file makes numpy raise: the picture is read anew
        return np.zeros(0, np.uint8)


def available_memory() -> int:
    """Bytes that can be taken without swapping: of the machine, and of the container if it has a limit."""
    try:
        memory = _read_table("/proc/meminfo")
        free = int(memory["MemAvailable:"]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        cached = int(_read_table("/sys/fs/cgroup/memory.stat")["inactive_file"])  # given back when it is needed
        return min(free, limit - used + cached)
    except (OSError, KeyError, ValueError):  # no container, or one without a limit ("max")
        return free


def _read_table(path: str) -> dict[str, str]:
    """First word of each line -> second word."""
    return {words[0]: words[1] for words in map(str.split, Path(path).read_text().splitlines()) if len(words) > 1}


def open_images(
    index: LabelIndex, size: int, *, smooth: bool, cache: str | None, copies: int, progress: bool
) -> ImageReader:
    """Pictures with the cache asked for (None, "ram", "disk"), or without one, saying so, where it does not fit.

    "auto" is "ram" for pictures that take no more than AUTO_SHARE of the free memory, else None.
    """
    pictures = ImageReader(index, size, smooth=smooth)
    if cache in ("ram", "auto"):
        need, free = pictures.bytes_needed() * copies, available_memory()
        if need * (1.1 if cache == "ram" else 1 / AUTO_SHARE) < free:
            return RamCache(index, size, smooth=smooth, progress=progress)
        if cache == "auto":
            return pictures
    elif cache == "disk":
        on_disk = DiskCache(index, size, smooth=smooth)
        need, free = on_disk.room()
        if 1.1 * need < free:
            return on_disk
    elif cache is None:
        return pictures
    else:
        raise UserError(f"--cache {cache}: expected ram or disk")
    if progress:
        print(f"--cache {cache}: {need / 2**30:.1f}GB required, {free / 2**30:.1f}GB available, not caching images")
    return pictures
