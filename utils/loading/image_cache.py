"""Readers of a split's images: from their files each time, or from a cache in RAM or on disk.

An image may be a view of a larger one (utils.datasets.views), which is cut out before it is resized.

Letter: N images of the split.
"""

import mmap
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from utils import console, machine
from utils.datasets.label_cache import digest, user_cache_folder
from utils.datasets.label_index import LabelIndex, offsets_of
from utils.errors import UnreadableData, UserError
from utils.image_size import ImageSize, to_sides
from utils.images.read import DamagedImage, read_resized, resize_to, resized_shapes
from utils.machine import available_memory
from utils.parallel_map import MAX_WORKERS
from utils.pixel_format import RGB
from utils.temporary_files import remove_stale, temporary_path

AUTO_SHARE = 0.1  # of free memory; smaller splits are cached in RAM by default: a mosaic reads each image 4 x an epoch
RAM_MARGIN, DISK_MARGIN = 1.1, 1.1  # a cache must fit with this factor
DISK_FORMAT = 2  # increase it whenever the content of a --cache disk file changes, or the way images are resized
RETRY_SECONDS = 1.0  # a file may be about to be replaced, or a network drive to come back
CLOCK_TICK_NS = 100_000_000  # file systems stamp files with a clock that lags behind by a tick
MAX_TRIED = 1000  # other images that are looked for after one could not be read
PART = 8  # images that a thread caches at a time
NO_BYTES = np.zeros(0, np.uint8)


class SharedBytes:
    """Block of memory that worker processes share, whether they are forked or spawned."""

    file: IO[bytes] | None = None  # open as long as this; on Windows the name of the memory is enough

    def __init__(self, size: int) -> None:
        if sys.platform == "win32":  # no process may open the temporary file of another there
            self.path = f"anchorage-images-{uuid.uuid4().hex}"
            self._map(size)
            return
        if hasattr(os, "memfd_create"):  # ordinary memory: /dev/shm is often tiny in containers
            self.file = os.fdopen(os.memfd_create("anchorage-images"), "r+b")
            self.path = f"/proc/{os.getpid()}/fd/{self.file.fileno()}"
        else:
            self.file = tempfile.NamedTemporaryFile(prefix="anchorage-images-")  # noqa: SIM115 (see above)
            self.path = self.file.name
        self.file.truncate(max(size, 1))
        self._map(size)

    def _map(self, size: int) -> None:
        self.size = size
        settings: dict[str, Any] = {"tagname": self.path} if self.file is None else {}
        descriptor = -1 if self.file is None else self.file.fileno()
        self.array = np.frombuffer(mmap.mmap(descriptor, max(size, 1), **settings), np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        if sys.platform == "win32":
            self._map(state["size"])
            return
        with open(self.path, "r+b") as self.file:
            self._map(state["size"])

    def __del__(self) -> None:
        if self.file is not None:
            self.file.close()  # the memory itself lives as long as the array


class ImageReader:
    """Reader of the images of a split, fitted into `size`: one side, or height and width.

    `smooth` averages pixels where an image shrinks.
    """

    reads_files = True  # each `read` reads a file

    def __init__(self, index: LabelIndex, size: ImageSize, *, smooth: bool) -> None:
        self.index, self.size, self.smooth, self.pixels = index, size, smooth, index.pixels
        self.shapes = resized_shapes(index.shapes, size).astype(np.int32)  # (N, 2) height, width
        self.damaged = SharedBytes(len(index))  # a flag per image, so that only one worker warns of it, and once
        self.opened_at = time.time_ns() - CLOCK_TICK_NS

    def shape(self, i: int) -> tuple[int, int]:
        """Return height and width of image i."""
        height, width = self.shapes[i].tolist()
        return height, width

    def read(self, i: int, rows: int | None = None) -> np.ndarray | None:
        """Return image i (H, W, C), or at least its upper `rows` rows. It must not be written to.

        Return None, with one warning, if the image was damaged before this reader was opened: a scan of labels sees
        not all of that. Raise UnreadableData if it is gone, damaged or changed since then, after another try.
        """
        return self._guarded(i, lambda: self._read_file(i, rows))

    def read_views(self, part: range) -> Iterator[np.ndarray | None]:
        """Yield the images of a part of `parts()` as `read` does. Views of one image are cut from it decoded once."""
        views = self.index.views
        if views is None:
            yield from (ImageReader.read(self, i) for i in part)
            return
        height, width = views.shapes[views.images[part[0]]].tolist()
        whole = self._guarded(part[0], lambda: self._read_rows(part[0], (height, width), rows=None))
        for i in part:
            yield None if whole is None else self._cut(i, whole)

    def parts(self) -> list[range]:
        """Return all images in parts to read together: a few images, or the views of one."""
        views, count = self.index.views, len(self.index)
        if views is None:
            return [range(first, min(first + PART, count)) for first in range(0, count, PART)]
        ends = offsets_of(np.bincount(views.images, minlength=len(views.shapes))).tolist()
        return [range(first, last) for first, last in pairwise(ends)]

    def _guarded(self, i: int, decode: Callable[[], np.ndarray]) -> np.ndarray | None:
        """Return what `decode` makes of the file of image i, with the errors and the second try of `read`."""
        file = i if self.index.views is None else int(self.index.views.images[i])
        if self.damaged.array[file]:
            return None
        try:
            return decode()
        except UserError as error:
            if isinstance(error, DamagedImage) and self._is_unchanged(i):
                self.damaged.array[file] = 1
                console.warn(f"{error}. A grey image without labels is used instead.", all_ranks=True)
                return None
        time.sleep(RETRY_SECONDS)
        try:
            return decode()
        except UserError as error:
            raise UnreadableData(f"{error}{self._describe_others(i)}") from error

    def _read_file(self, i: int, rows: int | None) -> np.ndarray:
        views = self.index.views
        if views is None or self.is_whole(i):
            return self._read_rows(i, self.shape(i), rows=rows)
        height, width = views.shapes[views.images[i]].tolist()
        return self._cut(i, self._read_rows(i, (height, width), rows=int(views.windows[i, 3])))

    def _read_rows(self, i: int, shape: tuple[int, int], *, rows: int | None) -> np.ndarray:
        """Read the whole image of image or view i, resized to `shape`, or at least its upper `rows` rows."""
        views = self.index.views
        height, width = (self.index.shapes[i] if views is None else views.shapes[views.images[i]]).tolist()
        # A tile is cut out first, and smoothed when it is resized.
        return read_resized(
            self.index.paths[i], shape, smooth=self.smooth, rows=rows, original=(height, width), pixels=self.pixels
        )

    def _cut(self, i: int, whole: np.ndarray) -> np.ndarray:
        """Return view i, resized, from at least the upper rows of its image."""
        assert self.index.views is not None
        x1, y1, x2, y2 = self.index.views.windows[i].tolist()
        return resize_to(whole[y1:y2, x1:x2], self.shape(i), smooth=self.smooth)

    def is_whole(self, i: int) -> bool:
        """Return True unless image i is a tile."""
        views = self.index.views
        return views is None or np.array_equal(views.shapes[views.images[i]], self.index.shapes[i])

    def _is_unchanged(self, i: int) -> bool:
        """Return True if the file of image i is older than this reader."""
        try:
            status = os.stat(self.index.paths[i])
        except OSError:
            return False
        return max(status.st_mtime_ns, status.st_ctime_ns) < self.opened_at

    def _describe_others(self, i: int) -> str:
        """Return how many other images of the split cannot be opened, "" for none. Not all of many are tried."""
        numbers = np.linspace(0, len(self.index) - 1, min(len(self.index), MAX_TRIED), dtype=int).tolist()
        tried = {self.index.paths[k] for k in numbers} - {self.index.paths[i]}
        absent = sum(not os.access(path, os.R_OK) for path in tried)
        return f"; {absent} of {len(tried)} other images cannot be opened either" if absent else ""

    def prefetch(self, i: int) -> None:
        """Ask the OS to read the file of image i ahead, without waiting for it."""
        prefetch_file(self.index.paths[i])

    def bytes_needed(self) -> int:
        """Return the number of bytes of all images."""
        return int(self.shapes.prod(1, dtype=np.int64).sum() * self.pixels.bytes_per_pixel)


class RamCache(ImageReader):
    """Cache of all images in one block of RAM, which the workers share."""

    reads_files = False

    def __init__(self, index: LabelIndex, size: ImageSize, *, smooth: bool) -> None:
        super().__init__(index, size, smooth=smooth)
        self.starts = np.concatenate(
            [[0], np.cumsum(self.shapes.prod(1, dtype=np.int64) * self.pixels.bytes_per_pixel)]
        )
        self.block = SharedBytes(int(self.starts[-1]))
        self.readable = np.zeros(len(index), bool)
        title = f"Caching images ({self.starts[-1] / 2**30:.1f}GB ram)"
        with (
            ThreadPoolExecutor(
                2 * min(MAX_WORKERS, machine.usable_cores())
            ) as pool,  # one thread reads while another decodes
            console.progress_bar(total=len(index), desc=title, unit="image") as bar,
        ):
            for part in pool.map(self._fill, self.parts()):
                bar.update(len(part))

    def _view(self, i: int) -> np.ndarray:
        levels = self.block.array[self.starts[i] : self.starts[i + 1]].view(self.pixels.dtype)
        return levels.reshape(*self.shape(i), self.pixels.channels)

    def _fill(self, part: range) -> range:
        for i, image in zip(part, self.read_views(part), strict=True):
            if image is not None:
                self._view(i)[:] = image
                self.readable[i] = True
        return part

    def read(self, i: int, rows: int | None = None) -> np.ndarray | None:
        """Return image i, read-only, or None if it was damaged before."""
        if not self.readable[i]:
            return None
        view = self._view(i)
        view.flags.writeable = False
        return view


class DiskCache(ImageReader):
    """Cache of each image, decoded and resized, in a file of its own.

    A file is valid for one image size and pixel format, and for one size, mtime and ctime of the original. The mtime
    may be set back (cp -p, rsync), the ctime cannot.
    """

    def __init__(self, index: LabelIndex, size: ImageSize, *, smooth: bool) -> None:
        super().__init__(index, size, smooth=smooth)
        self.writable = True
        self.folders = {
            folder: self._cache_folder(folder) for folder in {os.path.dirname(path) for path in index.paths}
        }
        for folder in self.folders.values():
            remove_stale(folder)

    @staticmethod
    def _cache_folder(folder: str) -> Path:
        """Return the folder beside: images/train -> images/train.npy_cache, or one elsewhere if that is read-only."""
        absolute = Path(folder).absolute()
        beside = absolute.with_name(f"{absolute.name}.npy_cache")
        return beside if _is_writable(beside.parent) else user_cache_folder() / "images" / digest(absolute)[:16]

    def _file(self, i: int) -> Path:
        folder, name = os.path.split(self.index.paths[i])
        if self.index.views is not None and not self.is_whole(i):
            name += "." + "_".join(map(str, self.index.views.windows[i].tolist()))
        pixels = "" if self.pixels == RGB else f".{self.pixels.channels}x{self.pixels.bit_depth}"
        size = "x".join(map(str, to_sides(self.size)))
        return self.folders[folder] / f"{name}.{size}{'s' if self.smooth else ''}{pixels}.npy"

    def prefetch(self, i: int) -> None:
        """Ask the OS to read the cached file of image i ahead, or else the original."""
        if not prefetch_file(self._file(i)):
            super().prefetch(i)

    def read(self, i: int, rows: int | None = None) -> np.ndarray | None:
        """Return image i from its cached file, which is written if it is absent or out of date."""
        file = self._file(i)
        height, width = self.shape(i)
        try:
            status = os.stat(self.index.paths[i])
        except OSError:
            return super().read(i)  # tries again
        header = np.array(
            [DISK_FORMAT, status.st_size, status.st_mtime_ns, status.st_ctime_ns, height, width], np.int64
        ).view(np.uint8)
        data = _load_bytes(file)
        size = header.size + height * width * self.pixels.bytes_per_pixel
        if data.shape == (size,) and np.array_equal(data[: header.size], header):
            return data[header.size :].view(self.pixels.dtype).reshape(height, width, self.pixels.channels)
        image = super().read(i)
        if image is not None and self.writable:
            self._write(file, np.concatenate([header, np.ascontiguousarray(image).reshape(-1).view(np.uint8)]))
        return image

    def _write(self, file: Path, data: np.ndarray) -> None:
        """Write a temporary file, fsync and rename it. The header of half a file would pass for that of a whole one."""
        temporary = temporary_path(file)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as stream:
                np.save(stream, data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, file)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self.writable = False
            problem = f"--cache disk: {file.parent} cannot be written ({error.strerror})"
            console.warn(f"{problem}. Images stay uncached.", all_ranks=True)

    def disk_space_needed(self) -> int:
        """Return the number of bytes still to be written."""
        cached = 0
        for folder in self.folders.values():
            with suppress(OSError), os.scandir(folder) as entries:  # absent, or cleared by another process meanwhile
                cached += sum(entry.stat().st_size for entry in entries)
        return max(0, self.bytes_needed() - cached)

    def disk_space_free(self) -> int:
        """Return the number of free bytes on the disk of the first cache folder."""
        folder = next(iter(self.folders.values()))
        return shutil.disk_usage(next(parent for parent in folder.parents if parent.is_dir())).free


def prefetch_file(path: str | Path) -> bool:
    """Ask the OS to read a file ahead into its page cache. Return False if the file does not exist."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # else opening a pipe would block
    except OSError:
        return False
    try:
        with suppress(OSError, AttributeError):  # a system without posix_fadvise
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(file)
    return True


def _is_writable(folder: Path) -> bool:
    """Return whether files may be added. A folder without any write permission counts as read-only for root too."""
    return folder.is_dir() and os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def _load_bytes(file: Path) -> np.ndarray:
    """Return the bytes in a .npy file, none if it is absent or damaged."""
    try:
        with open(file, "rb") as stream:
            data = np.lib.format.read_array(stream, allow_pickle=False)
        return data if data.dtype == np.uint8 else NO_BYTES
    except Exception:  # numpy raises all kinds for a damaged file; the image itself is read instead
        return NO_BYTES


def open_images(index: LabelIndex, size: ImageSize, *, smooth: bool, cache: str | None, copies: int) -> ImageReader:
    """Return a reader with the cache `cache`: None, "ram", "disk" or "auto".

    "auto" is "ram" for a split that takes at most AUTO_SHARE of free memory, else None. `copies` is the number of
    processes that each keep a cache in RAM. If a cache does not fit, images are read uncached, and a line says so.
    """
    if cache not in (None, "auto", "ram", "disk"):
        raise UserError(f"--cache {cache}: expected ram or disk")
    reader = ImageReader(index, size, smooth=smooth)
    if cache is None:
        return reader
    if cache == "disk":
        on_disk = DiskCache(index, size, smooth=smooth)
        needed, free = on_disk.disk_space_needed(), on_disk.disk_space_free()
        if needed * DISK_MARGIN < free:
            return on_disk
    else:
        needed, free = reader.bytes_needed() * copies, available_memory()
        if needed * (RAM_MARGIN if cache == "ram" else 1 / AUTO_SHARE) < free:
            return RamCache(index, size, smooth=smooth)
        if cache == "auto":
            return reader
    console.info(
        f"--cache {cache}: {needed / 2**30:.1f}GB required, {free / 2**30:.1f}GB available, not caching images"
    )
    return reader
