"""A part of a data set, the same one each time."""

from dataclasses import replace

import numpy as np

from utils.datasets.labels import LabelIndex
from utils.datasets.string_array import StringArray


def take(index: LabelIndex, chosen: np.ndarray) -> LabelIndex:
    """The pictures number `chosen` (n,) of `index` with their labels, in that order; counts and messages stay."""
    labels = _runs(index.offsets, chosen)
    return replace(
        index, paths=StringArray(index.paths[i] for i in chosen.tolist()), shapes=index.shapes[chosen],
        labels=index.labels[labels], offsets=_cuts(np.diff(index.offsets)[chosen]),
        points=index.points[_runs(index.segment_offsets, labels)],
        segment_offsets=_cuts(np.diff(index.segment_offsets)[labels]),
    )  # fmt: skip


def fraction(index: LabelIndex, share: float, seed: int = 0) -> LabelIndex:
    """A random `share` (0 to 1) of the pictures, at least one; the same for the same pictures, share and seed.

    A smaller share is a part of a larger one.
    """
    if share >= 1:
        return index
    count = max(1, round(share * len(index)))
    chosen = np.random.default_rng([seed, len(index)]).permutation(len(index))[:count]
    return take(index, np.sort(chosen))


def _runs(offsets: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Positions in a flat array of the runs number `chosen`."""
    lengths = np.diff(offsets)[chosen]
    starts = np.repeat(offsets[:-1][chosen] - _cuts(lengths)[:-1], lengths)
    return starts + np.arange(lengths.sum())


def _cuts(lengths: np.ndarray) -> np.ndarray:
    """Where runs of these lengths begin and end."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
