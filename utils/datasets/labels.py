"""Find pictures, read and verify their labels, and remember the result: read-only on everything the user owns.

The one file written is the cache beside the labels.

Legend: N pictures, M labels, P polygon points.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from utils.datasets.label_file import ParsedLabels, parse_labels
from utils.datasets.string_array import StringArray
from utils.errors import UserError, one_line
from utils.files import atomic_write, check_archive, open_regular, read_regular
from utils.images.header import image_shape
from utils.images.suffixes import IMAGE_SUFFIXES
from utils.parallel_map import MAX_WORKERS, spread

CACHE_FORMAT = 2  # raise it whenever the parser or the cache's layout changes: caches of another number are not read
MANY = 2000  # pictures: from here on processes are worth their start
NAMED_ROWS = 10  # dropped rows of one file that are named one by one
MAX_LABEL_BYTES = 64 << 20  # of one label file
MAX_CACHE_BYTES = 8 << 30


class Counts(NamedTuple):
    """found + missing + empty pictures are in the index (the last two as backgrounds); corrupt ones are not."""

    found: int = 0
    missing: int = 0
    empty: int = 0
    corrupt: int = 0

    @property
    def backgrounds(self) -> int:
        return self.missing + self.empty

    def __str__(self) -> str:
        return f"{self.found} images, {self.backgrounds} backgrounds, {self.corrupt} corrupt"


@dataclass(frozen=True, eq=False)
class LabelIndex:
    """The pictures of a split and their labels, in flat arrays."""

    paths: Sequence[str]  # a StringArray where they may be many
    shapes: np.ndarray  # (N, 2) int32 height, width of the picture as it is decoded, turned by its EXIF orientation
    labels: np.ndarray  # (M, 5) float32 class, x, y, w, h: centre and size in 0…1
    offsets: np.ndarray  # (N + 1,) int64: picture i has the labels offsets[i]:offsets[i + 1]
    points: np.ndarray  # (P, 2) float32 x, y as fractions of the picture
    segment_offsets: np.ndarray  # (M + 1,) int64: label j has points[…[j]:…[j + 1]], none for a box row
    counts: Counts
    messages: list[str]  # what was left out and why, one `file: reason` or `file:line: reason` each

    def __len__(self) -> int:
        return len(self.paths)

    def boxes(self, i: int) -> np.ndarray:
        """(n, 5) class, x, y, w, h of picture i."""
        return self.labels[self.offsets[i] : self.offsets[i + 1]]

    def polygons(self, i: int) -> list[np.ndarray]:
        """For each label of picture i its (k, 2) points as fractions of the picture; (0, 2) for a box row."""
        cuts = self.segment_offsets[self.offsets[i] : self.offsets[i + 1] + 1].tolist()
        if cuts[0] == cuts[-1]:  # mere boxes, as most often
            return [self.points[:0]] * (len(cuts) - 1)
        return [self.points[a:b] for a, b in zip(cuts[:-1], cuts[1:])]


# ---- which pictures --------------------------------------------------------------------------------------------------


def is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def label_path(image_path: str | Path) -> str:
    """The picture's label file: the last folder `images` becomes `labels`, the suffix `.txt`."""
    stem = os.path.splitext(str(image_path))[0]
    folder = f"{os.sep}images{os.sep}"
    before, found, after = f"{os.sep}{stem}".rpartition(folder)  # the separator in front lets a path begin with images/
    return (f"{before}{os.sep}labels{os.sep}{after}"[1:] if found else stem) + ".txt"


def find_images(sources: str | Path | Sequence[str | Path]) -> list[str]:
    """Sorted paths of the pictures in folders (any depth, hidden names left out), list files and single files.

    A list file has a path a line; a relative one is looked for from the current folder, then from the list's own; one
    that begins `./` only from the list's own. A path listed twice counts twice. UserError where a source is absent.
    """
    sources = [sources] if isinstance(sources, (str, Path)) else sources
    paths: list[str] = []
    for source in sources:
        if os.path.isdir(source):
            paths += _walk(str(source))
        elif not os.path.isfile(source):
            raise UserError(f"{source} does not exist: expected a folder of pictures or a .txt file that lists them")
        else:
            paths += [str(source)] if is_image(str(source)) else _read_list(Path(source))
    return sorted(paths)


def _walk(folder: str) -> Iterable[str]:
    seen = set()  # real folders, so that a link to a parent does not turn into an endless path
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            seen.add(real)
            here = os.path.join(here, "")
            for name in names:  # maybe a million: as is_image says of a name that does not begin with a dot
                if name[name.rfind(".") :].lower() in IMAGE_SUFFIXES and name[0] != ".":
                    yield here + name


def _read_list(file: Path) -> Iterable[str]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a text file that lists pictures, one path a line ({error})") from error
    folder = str(file.parent)
    for line in filter(is_image, map(str.strip, text.splitlines())):
        if line.startswith("./"):
            yield os.path.join(folder, line[2:])
        elif os.path.isabs(line) or os.path.exists(line):
            yield line
        else:
            beside = os.path.join(folder, line)
            yield beside if os.path.exists(beside) else line


# ---- the scan --------------------------------------------------------------------------------------------------------


def _scan_label_file(path: str, num_classes: int | None) -> tuple[ParsedLabels | None, list[str]]:
    """Labels of a file (None where it does not exist) and messages; UserError for a class the data set lacks."""
    try:
        data = read_regular(path, MAX_LABEL_BYTES)
    except FileNotFoundError:
        return None, []
    except OSError as error:
        return ParsedLabels([], [], []), [f"{path}: cannot be read: {error.strerror}"]
    parsed = parse_labels(data)
    if num_classes is not None and parsed.boxes and max(box[0] for box in parsed.boxes) >= num_classes:
        raise UserError(_unknown_class(path, data, num_classes))
    messages = [f"{path}:{number}: {reason}" for number, reason in parsed.problems[:NAMED_ROWS]]
    if len(parsed.problems) > NAMED_ROWS:
        messages.append(f"{path}: {len(parsed.problems) - NAMED_ROWS} more rows left out")
    return parsed, messages


def _unknown_class(path: str, data: bytes, num_classes: int) -> str:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        row = parse_labels(line).boxes
        if row and row[0][0] >= num_classes:
            return (
                f"{path}:{number}: class {row[0][0]:.0f}, but the data set names {num_classes} classes "
                f"(0...{num_classes - 1}): correct the row, or add the class to `names`"
            )
    raise AssertionError("called for a file without such a class")


def _scan(paths: Sequence[str], num_classes: int | None, single_cls: bool) -> tuple[LabelIndex, np.ndarray]:
    """Index of the usable ones among `paths`, and which those are, (len(paths),) bool."""
    kept = np.zeros(len(paths), bool)
    found = missing = 0
    shapes, boxes, per_image, points, per_label, messages = [], [], [], [], [], []
    for i, path in enumerate(paths):
        try:
            shapes.append(image_shape(path))
        except ValueError as error:
            messages.append(f"{path}: picture left out: {error}")
            continue
        kept[i] = True
        parsed, notes = _scan_label_file(label_path(path), None if single_cls else num_classes)
        messages += notes
        rows = parsed.boxes if parsed else []
        missing, found = missing + (parsed is None), found + bool(rows)
        boxes += rows
        per_image.append(len(rows))
        for polygon in parsed.polygons if parsed else []:
            points += polygon
            per_label.append(len(polygon) // 2)
    labels = np.fromiter(chain.from_iterable(boxes), np.float32, 5 * len(boxes)).reshape(-1, 5)
    if single_cls:
        labels[:, 0] = 0
    counts = Counts(found, missing, len(shapes) - found - missing, len(paths) - len(shapes))
    index = LabelIndex(
        _kept(StringArray(paths), kept),
        np.array(shapes, np.int32).reshape(-1, 2),
        labels,
        _cuts(per_image),
        np.array(points, np.float32).reshape(-1, 2),
        _cuts(per_label),
        counts,
        messages,
    )
    return index, kept


def _kept(paths: StringArray, kept: np.ndarray) -> StringArray:
    if len(paths) == len(kept) and kept.all():
        return paths
    return StringArray(path for path, keep in zip(paths, kept.tolist(), strict=True) if keep)


def _cuts(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where runs of these lengths begin and end in a flat array."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _merge(parts: list[LabelIndex]) -> LabelIndex:
    def join(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    def rejoin(name: str) -> np.ndarray:
        return _cuts(np.concatenate([np.diff(getattr(part, name)) for part in parts]))

    return LabelIndex(
        StringArray.concatenate(part.paths for part in parts),
        join("shapes"),
        join("labels"),
        rejoin("offsets"),
        join("points"),
        rejoin("segment_offsets"),
        Counts(*map(sum, zip(*(part.counts for part in parts)))),
        [message for part in parts for message in part.messages],
    )


def load_index(
    sources: str | Path | Sequence[str | Path],
    num_classes: int,
    *,
    prefix: str = "",
    cache: bool = True,
    progress: bool = True,
    single_cls: bool = False,
) -> LabelIndex:
    """Find and verify the pictures of `sources` (see `find_images`) and read their labels, from the cache if it holds.

    `single_cls` sets every class to 0. `progress` prints the bar and what was left out. UserError: no picture, none
    usable, or a class id of `num_classes` and above (unless `single_cls`), named with file and line.
    """
    sources = [sources] if isinstance(sources, (str, Path)) else list(sources)
    paths = find_images(sources)
    if not paths:
        raise UserError(
            f"{prefix}no pictures in {', '.join(map(str, sources))}: expected "
            f"{' '.join(sorted(IMAGE_SUFFIXES))} files, or a list of their paths"
        )
    stamps = _stamps(paths) if cache else None
    places = _cache_places(sources, paths) if cache else []
    key = {"format": CACHE_FORMAT, "num_classes": num_classes, "single_cls": int(single_cls)}
    index = next(filter(None, (_read_cache(place, key, paths, stamps) for place in places)), None)
    if index is None:
        index, kept = _scan_all(paths, num_classes, single_cls, f"{prefix}Scanning {sources[0]}", progress)
        # No label at all is most likely a mistake in a path: it leaves no file in a place where no labels are.
        worth_it = cache and index.counts.found > 0
        if worth_it and not _write_cache(places, key, paths, stamps, kept, index) and progress:
            print(f"{prefix}the labels cannot be cached: no folder for it can be written")
    elif progress:
        print(f"{prefix}Scanning {sources[0]}... {index.counts} (cached)")
    if progress:
        print(*(f"{prefix}{one_line(message)}\n" for message in index.messages), sep="", end="", flush=True)
        if index.paths and not index.counts.found:
            print(f"{prefix}no labels: those of {index.paths[0]} are expected in {label_path(index.paths[0])}")
    if not index.paths:
        raise UserError(f"{prefix}none of the {len(paths)} pictures in {sources[0]} can be used: {index.messages[0]}")
    return index


def _scan_all(
    paths: list[str], num_classes: int, single_cls: bool, title: str, progress: bool
) -> tuple[LabelIndex, np.ndarray]:
    # Small enough for a lively bar, large enough to be cheap.
    chunks = _chunks(paths, max(1, min(256, len(paths) // (8 * MAX_WORKERS))))
    scan = partial(_scan, num_classes=num_classes, single_cls=single_cls)
    parts, masks, counts = [], [], Counts()
    with tqdm(total=len(paths), desc=f"{title}...", disable=not progress, dynamic_ncols=True) as bar:
        for part, kept in spread(scan, chunks, heavy=len(paths) >= MANY):
            parts.append(part)
            masks.append(kept)
            counts = Counts(*map(sum, zip(counts, part.counts)))
            bar.set_description(f"{title}... {counts}", refresh=False)
            bar.update(len(kept))
    return _merge(parts), np.concatenate(masks)


def _chunks(paths: list[str], size: int) -> list[list[str]]:
    return [paths[k : k + size] for k in range(0, len(paths), size)]


# ---- the cache -------------------------------------------------------------------------------------------------------


def user_cache_folder() -> Path:
    """Where derived files go when the data set's own folders are read-only."""
    return Path.home() / ".cache" / "anchorage"


def is_writable(folder: Path) -> bool:
    """Whether files may be added. A folder without any write permission is left alone by the superuser too."""
    return folder.is_dir() and os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def _stamps(paths: list[str]) -> np.ndarray:
    """(N, 6) int64: size, time of modification and of change in ns of each picture and of its label file, -1 if absent.

    Programs may set the first of the times back (cp -p, rsync, touch -r), but not the second.
    """
    chunks = _chunks(paths, max(16, min(4096, -(-len(paths) // (4 * MAX_WORKERS)))))
    return np.concatenate(list(spread(_stamps_of, chunks, heavy=len(paths) >= MANY)))


def _stamps_of(paths: list[str]) -> np.ndarray:
    columns = [], []
    for folder, pictures in groupby(paths, _folder):
        names = [path[len(folder) :] for path in pictures]
        columns[0].append(_stat(folder, names))
        labels = _folder(label_path(folder + names[0]))  # a folder's pictures have their labels in one folder too
        columns[1].append(_stat(labels, [name[: name.rfind(".")] + ".txt" for name in names]))
    return np.concatenate([np.concatenate(column) for column in columns], 1)


def _folder(file: str) -> str:
    """The folder of a file with the separator at its end; nothing for a mere name."""
    return file[: file.rfind(os.sep) + 1]


def _stat(folder: str, names: Sequence[str]) -> np.ndarray:
    """(n, 3) int64: size and two times of files in a folder, which are looked up from there, not from the root."""
    values, stat = [], os.stat
    with _entered(folder) as (place, prefix):
        for name in names:
            try:
                status = stat(prefix + name, dir_fd=place)
                values += status.st_size, status.st_mtime_ns, status.st_ctime_ns
            except OSError:
                values += -1, -1, -1
    return np.fromiter(values, np.int64, len(values)).reshape(-1, 3)


@contextmanager
def _entered(folder: str) -> Iterator[tuple[int | None, str]]:
    """A descriptor of the folder and nothing, or None and the folder: what a name in it is to be looked up by."""
    try:
        place = os.open(folder or os.curdir, os.O_PATH)  # unlike the right to read, that to pass is all it takes
    except (AttributeError, OSError):
        yield None, folder
        return
    try:
        yield place, ""
    finally:
        os.close(place)


def _cache_places(sources: list[str | Path], paths: list[str]) -> list[Path]:
    """Places of the cache, best first: labels/train -> labels/train.cache, train.txt -> train.cache.

    Splits that are put together of several sources share a labels folder: their names tell them apart.
    """
    folder = Path(label_path(paths[0])).absolute().parent
    beside = folder.with_name(f"{folder.name}.cache")
    if len(sources) > 1:
        beside = folder.with_name(f"{folder.name}-{digest(*sources)[:8]}.cache")
    elif Path(sources[0]).suffix.lower() == ".txt":
        beside = Path(sources[0]).absolute().with_suffix(".cache")
    private = user_cache_folder() / "labels" / f"{digest(beside)[:16]}.cache"
    return [beside, private] if is_writable(beside.parent) else [private]


def digest(*texts: str | Path) -> str:
    return hashlib.sha256("\0".join(map(str, texts)).encode(errors="surrogateescape")).hexdigest()


def _write_cache(
    places: list[Path], key: dict[str, int], paths: list[str], stamps: np.ndarray, kept: np.ndarray, index: LabelIndex
) -> bool:
    """Write the cache to the first place that takes it; False where none does."""
    arrays = {name: getattr(index, name) for name in ("shapes", "labels", "offsets", "points", "segment_offsets")}
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(place, sync=False) as file:  # a damaged one is noticed, and made again
                np.savez(
                    file,
                    **key,
                    **arrays,
                    paths=StringArray(paths).data,
                    stamps=stamps,
                    kept=kept,
                    counts=np.array(index.counts),
                    messages=StringArray(index.messages).data,
                )
            return True
        except OSError:
            continue
    return False


def _read_cache(place: Path, key: dict[str, int], paths: list[str], stamps: np.ndarray) -> LabelIndex | None:
    """The index as it was written for exactly these pictures, labels and settings; None for whatever else is there."""
    try:
        with open_regular(place, MAX_CACHE_BYTES) as file, np.load(file, allow_pickle=False) as arrays:
            check_archive(place)
            data = {name: arrays[name] for name in arrays.files}
        same = all(int(data[name]) == value for name, value in key.items()) and np.array_equal(data["stamps"], stamps)
        scanned = StringArray.from_bytes(data["paths"])
        if not same or scanned != StringArray(paths):
            return None
        index = LabelIndex(
            _kept(scanned, data["kept"].astype(bool)),
            data["shapes"],
            data["labels"],
            data["offsets"],
            data["points"],
            data["segment_offsets"],
            Counts(*map(int, data["counts"])),
            list(StringArray.from_bytes(data["messages"])),
        )
        return index if _is_consistent(index) else None
    except Exception:  # whatever a damaged file makes zip and numpy raise: the labels are read anew
        return None


def _is_consistent(index: LabelIndex) -> bool:
    """Whether every offset of a cache points into its arrays, so that a damaged file is scanned anew, not believed."""

    def cuts(offsets: np.ndarray, runs: int, total: int) -> bool:
        return (
            offsets.shape == (runs + 1,)
            and offsets.dtype == np.int64
            and offsets[0] == 0
            and offsets[-1] == total
            and bool((np.diff(offsets) >= 0).all())
        )

    arrays = (index.shapes, np.int32, 2), (index.labels, np.float32, 5), (index.points, np.float32, 2)
    return (
        all(array.dtype == dtype and array.ndim == 2 and array.shape[1] == width for array, dtype, width in arrays)
        and len(index.shapes) == len(index.paths)
        and cuts(index.offsets, len(index.paths), len(index.labels))
        and cuts(index.segment_offsets, len(index.labels), len(index.points))
    )
