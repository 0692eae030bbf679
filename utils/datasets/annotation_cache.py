"""Cache of the index of a COCO JSON or a Pascal VOC folder: a file in the home folder, never beside the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.datasets.annotations import NamedIndex
from utils.datasets.label_cache import MAX_CACHE_BYTES, digest, is_consistent, stamp_each, user_cache_folder
from utils.datasets.label_index import ARRAYS, REGION_ARRAYS, Counts, LabelIndex
from utils.datasets.string_array import StringArray
from utils.files import atomic_write, check_archive, open_regular
from utils.pixel_format import PixelFormat
from utils.temporary_files import remove_stale

CACHE_FORMAT = 2  # raise it when the readers or the layout change: caches with another number are not read


@dataclass(frozen=True)
class AnnotationCache:
    """Cache of one source, valid while none of the files that the index was made of has changed."""

    place: Path
    files: list[str] | None  # all files as they are now, None if the cache itself says which
    pixels: PixelFormat

    @classmethod
    def of_source(cls, places: Sequence[str], files: list[str] | None, pixels: PixelFormat) -> "AnnotationCache":
        """Return the cache of a source that reads these files and folders, with images decoded to `pixels`."""
        absolute = [Path(place).absolute() for place in places]
        place = user_cache_folder() / "labels" / f"{digest('annotations', str(pixels), *absolute)[:16]}.cache"
        return cls(place, files, pixels)

    def read(self) -> NamedIndex | None:
        """Return the index that was written, or None if a file has changed or the cache cannot be read."""
        try:
            with open_regular(self.place, MAX_CACHE_BYTES) as opened, np.load(opened, allow_pickle=False) as arrays:
                check_archive(self.place)
                data = {name: arrays[name] for name in arrays.files}
            files = list(StringArray.from_bytes(data["files"]))
            if int(data["format"]) != CACHE_FORMAT or self.files not in (None, files):
                return None
            if not np.array_equal(data["stamps"], stamp_each(files)):
                return None
            index = LabelIndex(
                paths=StringArray.from_bytes(data["paths"]),
                counts=Counts(*map(int, data["counts"])),
                messages=list(StringArray.from_bytes(data["messages"])),
                pixels=self.pixels,
                **{name: data[name] for name in (*ARRAYS, *REGION_ARRAYS)},
            )
            names = list(StringArray.from_bytes(data["names"]))
            return NamedIndex(names, index) if is_consistent(index) and _fits(names, index) else None
        except Exception:  # zip and NumPy raise anything for a damaged file; the annotations are read again
            return None

    def write(self, named: NamedIndex, files: list[str], stamps: np.ndarray) -> None:
        """Write the cache if its folder is writable.

        `files`: all that the index was made of, with their stamps (F, 3) from before they were read.
        """
        index, names = named.index, StringArray(named.names)
        if list(names) != named.names:  # one is empty or holds a zero byte
            return
        try:
            content: dict[str, Any] = {
                "format": np.array(CACHE_FORMAT),
                "files": StringArray(files).data,
                "stamps": stamps,
                "names": names.data,
                "paths": StringArray(index.paths).data,
                "counts": np.array(index.counts),
                "messages": StringArray(index.messages).data,
                **{name: getattr(index, name) for name in (*ARRAYS, *REGION_ARRAYS)},
            }
            self.place.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(self.place.parent, self.place.name)
            with atomic_write(self.place, sync=False) as file:  # a damaged cache is detected and written again
                np.savez(file, **content)
        except (OSError, UnicodeEncodeError):  # a name in the annotations is no valid text
            pass  # the annotations are read again the next time


def _fits(names: list[str], index: LabelIndex) -> bool:
    classes = np.concatenate([index.labels[:, 0], index.ignored[:, 0]])
    return bool(((classes >= 0) & (classes < max(1, len(names)))).all())
