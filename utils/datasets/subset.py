"""Subset of a data set, the same one each time."""

from dataclasses import replace

import numpy as np

from utils.datasets.label_index import LabelIndex, offsets_of
from utils.datasets.string_array import StringArray


def take_images(index: LabelIndex, chosen: np.ndarray) -> LabelIndex:
    """Return the images number `chosen` (n,) with their labels, in that order. Counts and messages are unchanged."""
    labels = _positions(index.offsets, chosen)
    of_images = np.searchsorted(index.ignored_images, np.arange(len(index) + 1))  # offsets of the ignored regions
    return replace(
        index,
        paths=StringArray(index.paths[i] for i in chosen.tolist()),
        shapes=index.shapes[chosen],
        labels=index.labels[labels],
        offsets=offsets_of(np.diff(index.offsets)[chosen]),
        points=index.points[_positions(index.segment_offsets, labels)],
        segment_offsets=offsets_of(np.diff(index.segment_offsets)[labels]),
        ignored=index.ignored[_positions(of_images, chosen)],
        ignored_images=np.repeat(np.arange(len(chosen)), np.diff(of_images)[chosen]),
    )


def sort_images(index: LabelIndex) -> LabelIndex:
    """Return the index with its images in the order of their paths."""
    paths = list(index.paths)
    return take_images(index, np.array(sorted(range(len(paths)), key=paths.__getitem__), np.int64))


def take_fraction(index: LabelIndex, fraction: float, seed: int = 0) -> LabelIndex:
    """Return a random fraction (0…1) of the images, at least one: the same for the same index, fraction and seed.

    A smaller fraction is a subset of a larger one.
    """
    if fraction >= 1:
        return index
    count = max(1, round(fraction * len(index)))
    chosen = np.random.default_rng([seed, len(index)]).permutation(len(index))[:count]
    return take_images(index, np.sort(chosen))


def _positions(offsets: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the positions in a flat array of the runs number `chosen`."""
    lengths = np.diff(offsets)[chosen]
    starts = np.repeat(offsets[:-1][chosen] - offsets_of(lengths)[:-1], lengths)
    return starts + np.arange(lengths.sum())
