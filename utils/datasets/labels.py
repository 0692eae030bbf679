"""Labels of a split: find its images, read and verify their labels, remember the result in a cache.

Labels are label files, or the annotations of a COCO JSON or of Pascal VOC, whose classes are matched by their names.

Everything the user owns is only read.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.cli import suggest
from utils.console import info, progress_bar, warn
from utils.datasets.annotation_source import AnnotationSource, find_annotation_source, find_sources
from utils.datasets.image_files import Sources, as_list, find_images, label_path, map_chunks, unusual_label_folders
from utils.datasets.label_cache import LabelCache
from utils.datasets.label_file import ParsedLabels, parse_labels
from utils.datasets.label_index import Counts, LabelIndex, keep_paths, merge_indices, offsets_of, sum_counts
from utils.datasets.spec import DatasetSpec
from utils.datasets.stray_labels import find_stray_labels
from utils.datasets.string_array import StringArray
from utils.datasets.subset import sort_images
from utils.errors import UserError, one_line
from utils.files import UnreadableFile, is_lasting, read_regular, retry_reading
from utils.images.header import image_shape
from utils.images.suffixes import IMAGE_SUFFIXES
from utils.parallel_map import MAX_WORKERS
from utils.pixel_format import RGB, PixelFormat

NAMED_ROWS = 10  # skipped rows of one file that are reported one by one
REPORTED_MESSAGES = 100  # of a split, on the console
MAX_LABEL_BYTES = 64 << 20  # of one label file
MAX_UNREADABLE = 100  # images that a scan skips because of read errors
MIN_CORNERS = 8  # rows, fewer may look like corners by chance
ANY_CLASS = 1 << 24  # number of classes; the largest id that is exact as float32
CORNER_SLACK = 0.02  # by which boxes leave the image

ROW_MESSAGE = re.compile(r"\.txt:\d+: ")  # in a message about a row, behind the file's stem


class UnknownClass(UserError):
    """A class id that the data set does not name."""


class RowFormat(NamedTuple):
    """Meaning of the rows of a split's label files, and the pixel format of its images."""

    num_classes: int
    single_cls: bool = False  # every class becomes 0
    keypoint_values: int = 0  # behind the box in each row
    channels: int = RGB.channels
    bit_depth: int = RGB.bit_depth

    @property
    def pixels(self) -> PixelFormat:
        return PixelFormat(self.channels, self.bit_depth)


class Scan(NamedTuple):
    """Result of reading images and label files."""

    index: LabelIndex  # of the usable images
    kept: np.ndarray  # (N,) bool: which of the paths they are
    unreadable: int  # number of images skipped because a file could not be read this time


def load_split(
    spec: DatasetSpec,
    split: str,
    *,
    single_cls: bool = False,
    progress: bool = True,
    report: bool = True,
    any_class: bool = False,
) -> LabelIndex:
    """Return the index of a data set's split, whatever form its labels have. See `load_index`.

    Annotations of a form of their own (COCO, Pascal VOC) are read in place. With `any_class` class ids may be beyond
    the names; such an index is not cached.
    """
    if spec.division and split in ("train", "val"):
        whole = load_undivided(spec, single_cls=single_cls, progress=progress, report=report, any_class=any_class)
        return divide_split(spec, whole, single_cls=single_cls)[split]
    sources, prefix = spec.sources(split), f"{split}: "
    found = [(path, find_annotation_source(path, spec.root)) for path in sources]
    bar = progress, report
    parts = [
        _load_annotations(source, spec, prefix, bar, single_cls=single_cls, any_class=any_class)
        for _, source in found
        if source
    ]
    with_label_files = [path for path, source in found if not source]
    if with_label_files:
        index = load_index(
            with_label_files,
            ANY_CLASS if any_class else spec.num_classes,
            prefix=prefix,
            cache=not any_class,
            progress=progress,
            report=report,
            single_cls=single_cls,
            keypoint_values=spec.keypoint_values,
            pixels=spec.pixels.fill(RGB),
        )
        parts.append(index)
    return parts[0] if len(parts) == 1 else sort_images(merge_indices(parts))


def load_undivided(
    spec: DatasetSpec, *, single_cls: bool = False, progress: bool = True, report: bool = True, any_class: bool = False
) -> LabelIndex:
    """Return the index of the images that a division divides. See `load_split`.

    Its classes are those of the labels with `single_cls` too, since the division balances them. Only where the data set
    lacks one of them they all become 0.
    """
    whole = replace(spec, division=None)
    try:
        return load_split(whole, "train", progress=progress, report=report, any_class=any_class)
    except UnknownClass:
        if not single_cls:
            raise
        return load_split(whole, "train", single_cls=True, progress=progress, report=report)


def divide_split(spec: DatasetSpec, whole: LabelIndex, *, single_cls: bool = False) -> dict[str, LabelIndex]:
    """Return train and val of what `load_undivided` returns."""
    assert spec.division
    parts = spec.division.divide_index(whole, spec.root, spec.names)
    return {split: as_single_class(part) for split, part in parts.items()} if single_cls else parts


def as_single_class(index: LabelIndex) -> LabelIndex:
    """Return the index with every class set to 0."""
    labels, ignored = (np.concatenate([0 * rows[:, :1], rows[:, 1:]], 1) for rows in (index.labels, index.ignored))
    return replace(index, labels=labels, ignored=ignored)


def find_split_images(spec: DatasetSpec, split: str, index: LabelIndex | None = None) -> list[str]:
    """Return the images of a split, usable or not.

    Of a division and of annotations of a form of their own they are the usable ones, those of `index`. It is read if it
    is None.
    """
    if spec.division or any(find_sources(spec.sources(split), spec.root)):
        return list((index or load_split(spec, split, single_cls=True, progress=False)).paths)
    return find_images(spec.sources(split))


def _load_annotations(
    source: AnnotationSource,
    spec: DatasetSpec,
    prefix: str,
    bar: tuple[bool, bool],  # as progress and report of `load_index`
    *,
    single_cls: bool,
    any_class: bool,
) -> LabelIndex:
    """Return the index of a source, with its classes numbered as in the data set.

    Raises UnknownClass for an object of a class that the data set does not name, unless `single_cls`. With `any_class`
    such classes get numbers beyond the names.
    """
    progress, report = bar
    title = f"{prefix}Scanning {source.listing or source.file}..."
    names, index = source.load(spec.pixels.fill(RGB), title=title, progress=progress)
    if not index.paths:
        first = f": {index.messages[0]}" if index.messages else ""
        raise UserError(f"{prefix}no image of {source.file} can be used{first}")
    numbers = {name: number for number, name in spec.names.items()}
    if not (single_cls or any_class):
        _require_names(index, names, numbers, source.file, spec.file)
    extra = iter(range(len(numbers), len(numbers) + len(names)))
    own = [0 if single_cls else numbers[name] if name in numbers else next(extra) for name in names]
    if progress and report:
        info(f"{title} {index.counts}", *(f"{prefix}{one_line(message)}" for message in index.messages))
        if not index.counts.found:
            warn(f"{prefix}no labels: the annotations in {source.file} hold no object")
    return replace(
        index, labels=_renumber(index.labels, own), ignored=_renumber(index.ignored, own), pixels=spec.pixels.fill(RGB)
    )


def _renumber(rows: np.ndarray, numbers: list[int]) -> np.ndarray:
    """Return rows (n, 5) with class k replaced by numbers[k]."""
    classes = np.array([*numbers, 0], np.float32)[rows[:, 0].astype(np.int64)]
    return np.concatenate([classes[:, None], rows[:, 1:]], 1)


def _require_names(index: LabelIndex, names: Sequence[str], numbers: Mapping[str, int], file: Path, data: Path) -> None:
    """Raise UnknownClass if an object's class is none of the data set's."""
    classes = np.concatenate([index.labels[:, 0], index.ignored[:, 0]]).astype(np.int64)
    absent = [names[number] for number in classes if names[number] not in numbers]
    if absent:
        raise UnknownClass(
            f"{file}: {len(absent)} objects of classes that {data} does not name, the first is {absent[0]!r}"
            f"{suggest(absent[0], numbers)}. Add it to `names:`, or remove `names:` to take those of the annotations"
        )


def load_index(
    sources: Sources,
    num_classes: int,
    *,
    prefix: str = "",
    cache: bool = True,
    progress: bool = True,
    report: bool = True,
    single_cls: bool = False,
    keypoint_values: int = 0,
    pixels: PixelFormat = RGB,
) -> LabelIndex:
    """Find and verify the images of `sources` (see `find_images`) and read their labels, from the cache if it is valid.

    `single_cls` sets every class to 0. `keypoint_values` is the number of values behind the box in each row.
    `pixels` is what the images are decoded to, which must be possible for all of them.
    `progress` shows the bar and, with `report`, reports everything that was skipped. Raises UserError for no usable
    image and for many unreadable ones, UnknownClass for a class id of `num_classes` or above unless `single_cls`.
    """
    sources = as_list(sources)
    paths = find_images(sources)
    if not paths:
        raise UserError(
            f"{prefix}no images in {', '.join(map(str, sources))}: expected "
            f"{' '.join(sorted(IMAGE_SUFFIXES))} files, or a list of their paths"
        )
    title = f"{prefix}Scanning {sources[0]}..."
    rows = RowFormat(num_classes, single_cls, keypoint_values, *pixels)
    store = LabelCache.of_split(sources, paths, settings=rows._asdict()) if cache else None
    index = store.read() if store else None
    is_cached = index is not None
    if index is None:
        scan = _scan_all(paths, rows, title, progress)
        index = scan.index
        if store and not _write_cache(store, scan) and progress:
            warn(
                f"{prefix}the labels cannot be cached: {store.place.parent} is not writable. Set XDG_CACHE_HOME to a "
                "folder that is"
            )
    if progress and report:
        summary = [f"{title} {index.counts} (cached)"] if is_cached else []  # the bar of a scan leaves its own
        if keypoint_values:
            summary.append(f"{prefix}kpt_shape: each row is a box and {keypoint_values} values, which are not used")
        _report(index, prefix, *summary)
        _report_label_folders(paths, prefix)
        _warn_of_stray_labels(sources, paths, prefix)
    if not index.paths:
        raise UserError(f"{prefix}none of the {len(paths)} images in {sources[0]} can be used: {index.messages[0]}")
    return replace(index, pixels=pixels)


def _write_cache(store: LabelCache, scan: Scan) -> bool:
    """Write the cache if the scan is worth keeping. Return False if its folder is not writable.

    No label at all is probably a wrong path. A file that could not be read this time may be whole.
    """
    return not scan.index.counts.found or scan.unreadable > 0 or store.write(scan.index, scan.kept)


def _report(index: LabelIndex, prefix: str, *summary: str) -> None:
    shown, rest = index.messages[:REPORTED_MESSAGES], index.messages[REPORTED_MESSAGES:]
    info(*summary, *(f"{prefix}{one_line(message)}" for message in shown))
    if rest:
        info(f"{prefix}{len(rest)} more images and rows are skipped: check.py counts them all")
    if index.paths and not index.counts.found:
        warn(f"{prefix}no labels. {one_line(describe_absent_labels(index))}")
    if look_like_corners(index.labels):
        warn(
            f"{prefix}the rows look like corners (class x1 y1 x2 y2), but they are read as class, centre x, centre y, "
            "width, height. Convert them if so"
        )
    if look_like_keypoints(index):
        warn(
            f"{prefix}the rows look like boxes with keypoints, but they are read as polygons. If so, add kpt_shape: "
            "[number of keypoints, 2 or 3] to the data set YAML"
        )


def describe_absent_labels(index: LabelIndex) -> str:
    """Return why an index has no labels: all rows were refused, or the label files are elsewhere."""
    refused = next(filter(ROW_MESSAGE.search, index.messages), None)
    if refused:
        return f"All rows of the label files were refused, the first is {refused}"
    first = index.paths[0]
    return f"Those of {first} are expected in {label_path(first)}"


def look_like_corners(labels: np.ndarray) -> bool:
    """Return whether labels (M, 5) are probably corners: always x2 > x1 and y2 > y1, and many leave the image."""
    x, y, w, h = labels[:, 1:].T
    if len(labels) < MIN_CORNERS or not ((w > x) & (h > y)).all():
        return False
    outside = np.maximum.reduce([x + w / 2 - 1, y + h / 2 - 1, w / 2 - x, h / 2 - y]) > CORNER_SLACK
    return bool(outside.mean() > 0.2)


def look_like_keypoints(index: LabelIndex) -> bool:
    """Return whether all polygons probably are a box (x y w h) and points in it, as many in each row."""
    counts = np.diff(index.segment_offsets)
    if len(counts) < MIN_CORNERS or counts.min() < 4 or counts.min() < counts.max():
        return False
    points = index.points.reshape(len(counts), -1, 2)  # (M, K, 2)
    center, half, rest = points[:, :1], points[:, 1:2] / 2, points[:, 2:]
    inside = (np.abs(rest - center) <= half + CORNER_SLACK).all()
    return bool(inside and (center >= half - CORNER_SLACK).all() and (center + half <= 1 + CORNER_SLACK).all())


def _report_label_folders(paths: list[str], prefix: str) -> None:
    """Report where the labels are if it is no usual place."""
    others = unusual_label_folders(paths)
    if others:
        folder, labels = next(iter(others.items()))
        more = f" (and those of {len(others) - 1} more folders so)" if len(others) > 1 else ""
        info(f"{prefix}the labels of the images in {folder} are read from {labels}{more}")


def _warn_of_stray_labels(sources: Sequence[str | Path], paths: list[str], prefix: str) -> None:
    whole_folders = all(Path(source).is_dir() for source in sources)
    for message in find_stray_labels(paths, whole_folders=whole_folders).messages():
        warn(f"{prefix}{one_line(message)}")


def _scan_all(paths: list[str], rows: RowFormat, title: str, progress: bool) -> Scan:
    """Read all images and label files."""
    parts, counts = [], Counts()
    size = max(1, min(256, len(paths) // (8 * MAX_WORKERS)))  # small enough for a lively bar, large enough to be cheap
    with progress_bar(total=len(paths), desc=title, disable=not progress) as bar:
        for part in map_chunks(partial(_scan, rows=rows), paths, size=size):
            parts.append(part)
            _limit_unreadable(sum(part.unreadable for part in parts), part.index.messages)
            counts = sum_counts([counts, part.index.counts])
            bar.set_description(f"{title} {counts}", refresh=False)
            bar.update(len(part.kept))
    kept = np.concatenate([part.kept for part in parts])
    return Scan(merge_indices([part.index for part in parts]), kept, sum(part.unreadable for part in parts))


def _limit_unreadable(count: int, messages: list[str]) -> None:
    if count > MAX_UNREADABLE:
        raise UserError(
            f"more than {MAX_UNREADABLE} files cannot be read, the last is {messages[-1]}. Look at the disk or the "
            "network, then start again"
        )


def _scan(paths: Sequence[str], rows: RowFormat) -> Scan:
    """Read images and their label files."""
    kept = np.zeros(len(paths), bool)
    found = missing = unreadable = 0
    shapes, boxes, per_image, points, per_label, messages = [], [], [], [], [], []
    for i, path in enumerate(paths):
        try:
            shape = image_shape(path, rows.pixels)
            parsed, notes = _read_labels(label_path(path), rows)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            messages.append(f"{path}: image skipped: {error}")
            if isinstance(error, UnreadableFile):
                unreadable += 1
                _limit_unreadable(unreadable, messages)
            continue
        kept[i] = True
        shapes.append(shape)
        messages += notes
        labels = parsed.boxes if parsed else []
        missing, found = missing + (parsed is None), found + bool(labels)
        boxes += labels
        per_image.append(len(labels))
        for polygon in parsed.polygons if parsed else []:
            points += polygon
            per_label.append(len(polygon) // 2)
    labels = np.fromiter(chain.from_iterable(boxes), np.float32, 5 * len(boxes)).reshape(-1, 5)
    if rows.single_cls:
        labels[:, 0] = 0
    index = LabelIndex(
        paths=keep_paths(StringArray(paths), kept),
        shapes=np.array(shapes, np.int32).reshape(-1, 2),
        labels=labels,
        offsets=offsets_of(per_image),
        points=np.array(points, np.float32).reshape(-1, 2),
        segment_offsets=offsets_of(per_label),
        counts=Counts(found, missing, len(shapes) - found - missing, len(paths) - len(shapes)),
        messages=messages,
    )
    return Scan(index, kept, unreadable)


def _read_labels(path: str, rows: RowFormat) -> tuple[ParsedLabels | None, list[str]]:
    """Return the labels of a file (None if it does not exist) and messages on what was skipped.

    Raises ValueError if the file cannot be read, which is an UnreadableFile if the next try may succeed. Raises
    UnknownClass for a class that the data set does not have.
    """
    try:
        data = retry_reading(partial(read_regular, path, MAX_LABEL_BYTES))
    except FileNotFoundError:
        return None, []
    except OSError as error:
        kind = ValueError if is_lasting(error) else UnreadableFile
        raise kind(f"its label file {path} cannot be read: {error.strerror}") from error
    parsed = parse_labels(data, rows.keypoint_values)
    num_classes = rows.num_classes
    if not rows.single_cls and parsed.boxes and max(box[0] for box in parsed.boxes) >= num_classes:
        raise UnknownClass(_describe_unknown_class(path, data, rows))
    messages = [f"{path}:{number}: {reason}" for number, reason in parsed.problems[:NAMED_ROWS]]
    if len(parsed.problems) > NAMED_ROWS:
        messages.append(f"{path}: {len(parsed.problems) - NAMED_ROWS} more rows skipped")
    return parsed, messages


def _describe_unknown_class(path: str, data: bytes, rows: RowFormat) -> str:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        row = parse_labels(line, rows.keypoint_values).boxes
        if row and row[0][0] >= rows.num_classes:
            return (
                f"{path}:{number}: class {row[0][0]:.0f}, but the data set names {rows.num_classes} classes "
                f"(0...{rows.num_classes - 1}): correct the row, or add the class to `names`"
            )
    raise AssertionError("called for a file without such a class")
