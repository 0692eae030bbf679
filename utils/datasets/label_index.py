"""Index of a split: its images and their labels in flat arrays.

Legend: N images, M labels, P polygon points, K ignored regions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from utils.datasets.string_array import StringArray
from utils.pixel_format import RGB, PixelFormat

NO_REGIONS = np.zeros((0, 5), np.float32), np.zeros(0, np.int64)
ARRAYS = ("shapes", "labels", "offsets", "points", "segment_offsets")  # of a LabelIndex that label files give
REGION_ARRAYS = ("ignored", "ignored_images")  # that other annotations may add


class Counts(NamedTuple):
    """Number of images by the state of their files.

    Found, missing and empty are about the label file; those images are in the index, the last two as backgrounds.
    Corrupt images are not in the index.
    """

    found: int = 0
    missing: int = 0
    empty: int = 0
    corrupt: int = 0

    @property
    def backgrounds(self) -> int:
        return self.missing + self.empty

    def __str__(self) -> str:
        return f"{self.found} images, {self.backgrounds} backgrounds, {self.corrupt} corrupt"


class Views(NamedTuple):
    """Parts of images that an index of V views has as its images."""

    images: np.ndarray  # (V,) int64 ascending, number of the image that each is cut from
    windows: np.ndarray  # (V, 4) int32 x1, y1, x2, y2 in its pixels
    shapes: np.ndarray  # (N, 2) int32 height, width of those images


@dataclass(frozen=True, eq=False)
class LabelIndex:
    """The images of a split and their labels, in flat arrays."""

    paths: Sequence[str]  # a StringArray if there may be many
    shapes: np.ndarray  # (N, 2) int32 height, width of the decoded image, rotated as its EXIF orientation says
    labels: np.ndarray  # (M, 5) float32 class, cx, cy, w, h in 0…1
    offsets: np.ndarray  # (N + 1,) int64: image i has labels[offsets[i] : offsets[i + 1]]
    points: np.ndarray  # (P, 2) float32 x, y in 0…1
    segment_offsets: np.ndarray  # (M + 1,) int64: label j has points[…[j] : …[j + 1]], none for a box row
    counts: Counts
    messages: list[str]  # `file: reason` or `file:line: reason` for everything that was skipped
    pixels: PixelFormat = RGB  # that images are decoded to
    # Regions of many or doubtful objects: no labels, and detections in them are neither correct nor wrong.
    ignored: np.ndarray = field(default_factory=lambda: NO_REGIONS[0])  # (K, 5) float32 like labels
    ignored_images: np.ndarray = field(default_factory=lambda: NO_REGIONS[1])  # (K,) int64 image of each, ascending
    views: Views | None = None  # of an index of views (utils.datasets.views); None: each image is whole
    draws: np.ndarray | None = None  # (N,) float64 mean number of times that an epoch draws each image; None: once

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def epoch_size(self) -> int:
        """Number of images that a training epoch draws."""
        return len(self) if self.draws is None else round(float(self.draws.sum()))

    @property
    def most_labels(self) -> int:
        """Largest number of labels in one image, 0 without images."""
        return int(np.diff(self.offsets).max(initial=0))

    def boxes(self, i: int) -> np.ndarray:
        """Return the labels (n, 5) of image i: class, cx, cy, w, h."""
        return self.labels[self.offsets[i] : self.offsets[i + 1]]

    def polygons(self, i: int) -> list[np.ndarray]:
        """Return the points (k, 2) of each label of image i: x, y in 0…1, none for a box row."""
        ends = self.segment_offsets[self.offsets[i] : self.offsets[i + 1] + 1].tolist()
        if ends[0] == ends[-1]:  # boxes only, the usual case
            return [self.points[:0]] * (len(ends) - 1)
        return [self.points[a:b] for a, b in pairwise(ends)]

    def regions(self, i: int) -> np.ndarray:
        """Return the ignored regions (k, 5) of image i: class, cx, cy, w, h."""
        first, last = np.searchsorted(self.ignored_images, (i, i + 1))
        return self.ignored[first:last]


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the offsets (n + 1,) int64 of runs of these lengths in a flat array."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def keep_paths(paths: StringArray, kept: np.ndarray) -> StringArray:
    """Return the paths for which `kept` (len(paths),) is true."""
    if len(paths) == len(kept) and kept.all():
        return paths
    return StringArray(path for path, keep in zip(paths, kept.tolist(), strict=True) if keep)


def sum_counts(counts: Iterable[Counts]) -> Counts:
    """Return the sums field by field, zeros for no counts."""
    totals = [sum(field) for field in zip(*counts)]
    return Counts(*totals)


def _packed(index: LabelIndex) -> StringArray:
    return index.paths if isinstance(index.paths, StringArray) else StringArray(index.paths)


def merge_indices(parts: Sequence[LabelIndex]) -> LabelIndex:
    """Concatenate indices in their order."""

    def join(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    def join_offsets(name: str) -> np.ndarray:
        return offsets_of(np.concatenate([np.diff(getattr(part, name)) for part in parts]))

    return LabelIndex(
        paths=StringArray.concatenate(map(_packed, parts)),
        shapes=join("shapes"),
        labels=join("labels"),
        offsets=join_offsets("offsets"),
        points=join("points"),
        segment_offsets=join_offsets("segment_offsets"),
        counts=sum_counts(part.counts for part in parts),
        messages=[message for part in parts for message in part.messages],
        pixels=parts[0].pixels,
        ignored=join("ignored"),
        ignored_images=np.concatenate(
            [part.ignored_images + start for part, start in zip(parts, offsets_of(list(map(len, parts))), strict=False)]
        ),
    )
