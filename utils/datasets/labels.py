"""Labels of a split: find its images, read and verify their label files, remember the result in a cache.

Everything the user owns is only read.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain

import numpy as np

from utils.console import info, progress_bar, warn
from utils.datasets.image_files import Sources, as_list, find_images, label_path, map_chunks
from utils.datasets.label_cache import LabelCache
from utils.datasets.label_file import ParsedLabels, parse_labels
from utils.datasets.label_index import Counts, LabelIndex, keep_paths, merge_indices, offsets_of, sum_counts
from utils.datasets.string_array import StringArray
from utils.errors import UserError, one_line
from utils.files import read_regular
from utils.images.header import image_shape
from utils.images.suffixes import IMAGE_SUFFIXES
from utils.parallel_map import MAX_WORKERS

NAMED_ROWS = 10  # skipped rows of one file that are reported one by one
MAX_LABEL_BYTES = 64 << 20  # of one label file


def load_index(
    sources: Sources,
    num_classes: int,
    *,
    prefix: str = "",
    cache: bool = True,
    progress: bool = True,
    single_cls: bool = False,
) -> LabelIndex:
    """Find and verify the images of `sources` (see `find_images`) and read their labels, from the cache if it is valid.

    `single_cls` sets every class to 0. `progress` shows the bar and reports everything that was skipped. Raises
    UserError for no image, for no usable image, and for a class id of `num_classes` or above unless `single_cls`.
    """
    sources = as_list(sources)
    paths = find_images(sources)
    if not paths:
        raise UserError(
            f"{prefix}no images in {', '.join(map(str, sources))}: expected "
            f"{' '.join(sorted(IMAGE_SUFFIXES))} files, or a list of their paths"
        )
    title = f"{prefix}Scanning {sources[0]}..."
    store = LabelCache.of_split(sources, paths, num_classes=num_classes, single_cls=single_cls) if cache else None
    index = store.read() if store else None
    is_cached = index is not None
    if index is None:
        index, kept = _scan_all(paths, num_classes, single_cls, title, progress)
        # No label at all is probably a wrong path, so no file is written to a folder that may hold no labels.
        if store and index.counts.found and not store.write(index, kept) and progress:
            warn(f"{prefix}the labels cannot be cached: no folder for the cache is writable")
    if progress:
        summary = [f"{title} {index.counts} (cached)"] if is_cached else []  # the bar of a scan leaves its own
        _report(index, prefix, *summary)
    if not index.paths:
        raise UserError(f"{prefix}none of the {len(paths)} images in {sources[0]} can be used: {index.messages[0]}")
    return index


def _report(index: LabelIndex, prefix: str, *summary: str) -> None:
    info(*summary, *(f"{prefix}{one_line(message)}" for message in index.messages))
    if index.paths and not index.counts.found:
        first = index.paths[0]
        warn(f"{prefix}no labels. Those of {first} are expected in {label_path(first)}")


def _scan_all(
    paths: list[str], num_classes: int, single_cls: bool, title: str, progress: bool
) -> tuple[LabelIndex, np.ndarray]:
    """Return the index of the usable images, and which of `paths` they are (N,) bool."""
    scan = partial(_scan, num_classes=num_classes, single_cls=single_cls)
    size = max(1, min(256, len(paths) // (8 * MAX_WORKERS)))  # small enough for a lively bar, large enough to be cheap
    parts, masks, counts = [], [], Counts()
    with progress_bar(total=len(paths), desc=title, disable=not progress) as bar:
        for part, kept in map_chunks(scan, paths, size=size):
            parts.append(part)
            masks.append(kept)
            counts = sum_counts([counts, part.counts])
            bar.set_description(f"{title} {counts}", refresh=False)
            bar.update(len(kept))
    return merge_indices(parts), np.concatenate(masks)


def _scan(paths: Sequence[str], num_classes: int | None, single_cls: bool) -> tuple[LabelIndex, np.ndarray]:
    """Return the index of the usable images, and which of `paths` they are (len(paths),) bool."""
    kept = np.zeros(len(paths), bool)
    found = missing = 0
    shapes, boxes, per_image, points, per_label, messages = [], [], [], [], [], []
    for i, path in enumerate(paths):
        try:
            shapes.append(image_shape(path))
        except ValueError as error:
            messages.append(f"{path}: image skipped: {error}")
            continue
        kept[i] = True
        parsed, notes = _read_labels(label_path(path), None if single_cls else num_classes)
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
    return index, kept


def _read_labels(path: str, num_classes: int | None) -> tuple[ParsedLabels | None, list[str]]:
    """Return the labels of a file (None if it does not exist) and messages on what was skipped.

    Raises UserError for a class that the data set does not have.
    """
    try:
        data = read_regular(path, MAX_LABEL_BYTES)
    except FileNotFoundError:
        return None, []
    except OSError as error:
        return ParsedLabels([], [], []), [f"{path}: cannot be read: {error.strerror}"]
    parsed = parse_labels(data)
    if num_classes is not None and parsed.boxes and max(box[0] for box in parsed.boxes) >= num_classes:
        raise UserError(_describe_unknown_class(path, data, num_classes))
    messages = [f"{path}:{number}: {reason}" for number, reason in parsed.problems[:NAMED_ROWS]]
    if len(parsed.problems) > NAMED_ROWS:
        messages.append(f"{path}: {len(parsed.problems) - NAMED_ROWS} more rows skipped")
    return parsed, messages


def _describe_unknown_class(path: str, data: bytes, num_classes: int) -> str:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        row = parse_labels(line).boxes
        if row and row[0][0] >= num_classes:
            return (
                f"{path}:{number}: class {row[0][0]:.0f}, but the data set names {num_classes} classes "
                f"(0...{num_classes - 1}): correct the row, or add the class to `names`"
            )
    raise AssertionError("called for a file without such a class")
