"""Subset of a data set: every image keeps its own labels and polygons."""

from dataclasses import replace

import numpy as np
import pytest

from utils.datasets.label_cache import is_consistent
from utils.datasets.label_index import Counts, LabelIndex, merge_indices
from utils.datasets.subset import sort_images, take_fraction, take_images


def build_index(rng, images=20):
    """Return images with 0 to 3 labels, every other one a polygon of 3 to 5 points. All numbers in it differ."""
    labels = rng.integers(0, 4, images)
    points = np.array([rng.integers(3, 6) if k % 2 else 0 for k in range(labels.sum())])
    offsets = [np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64) for lengths in (labels, points)]
    return LabelIndex(
        [f"{k}.png" for k in range(images)], np.arange(2 * images, dtype=np.int32).reshape(-1, 2),
        np.arange(5 * labels.sum(), dtype=np.float32).reshape(-1, 5), offsets[0],
        np.arange(2 * points.sum(), dtype=np.float32).reshape(-1, 2), offsets[1], Counts(images), ["a.png: corrupt"],
    )  # fmt: skip


@pytest.mark.parametrize("chosen", [[], [0], [19], [3, 4, 5], [7, 2, 2, 11], list(range(20))])
def test_each_image_keeps_its_own(chosen):
    index = build_index(np.random.default_rng(0))
    part = take_images(index, np.array(chosen, dtype=np.int64))
    assert part.paths == [index.paths[i] for i in chosen] and len(part.labels) == part.offsets[-1]
    for place, i in enumerate(chosen):
        assert (part.shapes[place] == index.shapes[i]).all()
        assert np.array_equal(part.boxes(place), index.boxes(i))
        polygons = zip(part.polygons(place), index.polygons(i), strict=True)
        assert all(np.array_equal(a, b) for a, b in polygons)


@pytest.mark.parametrize("chosen", [[], [0], [19], [3, 4, 5], [7, 2, 2, 11]])
def test_ignored_regions_stay_with_their_images(chosen):
    ignored = np.arange(25, dtype=np.float32).reshape(-1, 5)
    index = replace(build_index(np.random.default_rng(0)), ignored=ignored, ignored_images=np.array([2, 2, 4, 7, 19]))
    assert [len(index.regions(i)) for i in range(20)] == [0, 0, 2, 0, 1, 0, 0, 1, *[0] * 11, 1]
    part = take_images(index, np.array(chosen, dtype=np.int64))
    assert is_consistent(merge_indices([index, part]))
    for several, first in ((part, 0), (merge_indices([index, part]), 20), (merge_indices([part, index, part]), 0)):
        for place, i in enumerate(chosen):
            assert several.regions(first + place).tolist() == index.regions(i).tolist()


def test_images_are_sorted_with_their_labels():
    index = build_index(np.random.default_rng(0))
    back = sort_images(take_images(index, np.random.default_rng(1).permutation(20)))
    order = sorted(range(20), key=index.paths.__getitem__)
    assert list(back.paths) == [index.paths[i] for i in order]
    assert all(np.array_equal(back.boxes(place), index.boxes(i)) for place, i in enumerate(order))


@pytest.mark.parametrize("fraction, count", [(1.0, 20), (0.5, 10), (0.26, 5), (0.001, 1)])
def test_a_fraction_has_its_share_of_the_images_and_is_always_the_same(fraction, count):
    index = build_index(np.random.default_rng(0))
    part, again = take_fraction(index, fraction), take_fraction(index, fraction)
    assert len(part) == count == len(set(part.paths)) and part.paths == again.paths
    assert [int(path[:-4]) for path in part.paths] == sorted(int(path[:-4]) for path in part.paths)
    assert set(part.paths) <= set(take_fraction(index, min(1, fraction * 2)).paths)


def test_the_whole_is_left_alone():
    index = build_index(np.random.default_rng(0))
    assert take_fraction(index, 1.0) is index
