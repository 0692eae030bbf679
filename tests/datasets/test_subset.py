"""A part of a data set keeps every picture with its own labels and polygons."""

import numpy as np
import pytest

from utils.datasets.label_index import Counts, LabelIndex
from utils.datasets.subset import take_fraction, take_images


def build_index(rng, pictures=20):
    """Pictures with 0 to 3 labels, every other label a polygon of 3 to 5 points; each number in it occurs once."""
    labels = rng.integers(0, 4, pictures)
    points = np.array([rng.integers(3, 6) if k % 2 else 0 for k in range(labels.sum())])
    cuts = [np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64) for lengths in (labels, points)]
    return LabelIndex(
        [f"{k}.png" for k in range(pictures)], np.arange(2 * pictures, dtype=np.int32).reshape(-1, 2),
        np.arange(5 * labels.sum(), dtype=np.float32).reshape(-1, 5), cuts[0],
        np.arange(2 * points.sum(), dtype=np.float32).reshape(-1, 2), cuts[1], Counts(pictures), ["a.png: corrupt"],
    )  # fmt: skip


@pytest.mark.parametrize("chosen", [[], [0], [19], [3, 4, 5], [7, 2, 2, 11], list(range(20))])
def test_each_picture_keeps_its_own(chosen):
    index = build_index(np.random.default_rng(0))
    part = take_images(index, np.array(chosen, dtype=np.int64))
    assert part.paths == [index.paths[i] for i in chosen] and len(part.labels) == part.offsets[-1]
    for place, i in enumerate(chosen):
        assert (part.shapes[place] == index.shapes[i]).all()
        assert np.array_equal(part.boxes(place), index.boxes(i))
        polygons = zip(part.polygons(place), index.polygons(i), strict=True)
        assert all(np.array_equal(a, b) for a, b in polygons)


@pytest.mark.parametrize("share, count", [(1.0, 20), (0.5, 10), (0.26, 5), (0.001, 1)])
def test_a_fraction_has_its_share_of_the_pictures_and_is_always_the_same(share, count):
    index = build_index(np.random.default_rng(0))
    part, again = take_fraction(index, share), take_fraction(index, share)
    assert len(part) == count == len(set(part.paths)) and part.paths == again.paths
    assert [int(path[:-4]) for path in part.paths] == sorted(int(path[:-4]) for path in part.paths)
    assert set(part.paths) <= set(take_fraction(index, min(1, share * 2)).paths)


def test_the_whole_is_left_alone():
    index = build_index(np.random.default_rng(0))
    assert take_fraction(index, 1.0) is index
