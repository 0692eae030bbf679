"""Run-length masks by hand, and against pycocotools."""

import numpy as np
import pytest

from utils.datasets.run_length import decode_counts, decode_mask, mask_box, mask_outlines
from utils.errors import UserError

SQUARE = {"size": [4, 5], "counts": [5, 2, 2, 2, 9]}  # rows 1 and 2 of columns 1 and 2


def test_runs_go_down_the_columns():
    assert decode_mask(SQUARE).tolist() == [[0] * 5, [0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0] * 5]
    assert mask_box(SQUARE) == (1, 1, 3, 3)
    assert mask_outlines(SQUARE) == [[(1.5, 1.5), (1.5, 2.5), (2.5, 2.5), (2.5, 1.5)]]


def test_compressed_counts():
    assert decode_counts("522O9"[:3]) == [5, 2, 2]
    assert decode_counts("52203") == [5, 2, 2, 2, 5]  # from the fourth on, differences to the last but one
    assert decode_counts("T3") == [100]  # 4 + 96: the low 5 bits, more follow, then 3
    assert decode_counts("555N") == [5, 5, 5, 3]  # a negative difference


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"size": [4, 5], "counts": [3]}, "3 pixels in its counts, but its size is 4 x 5"),
        ({"size": [4, 5], "counts": [-1, 21]}, "expected a list of numbers from 0 to"),
        ({"size": [4], "counts": [4]}, r"size \[4\]: expected"),
        ({"counts": [4]}, "size None: expected"),
        ({"size": [4, 5], "counts": "~~"}, "'~' is no character|end within"),
        ({"size": [4, 5], "counts": "\x10"}, "no character of compressed counts"),
        ({"size": [1, 1], "counts": "o"}, "end within a number"),
        ({"size": [2, 2], "counts": [4]}, "the mask is empty"),
        ({"size": [1 << 20, 1 << 20], "counts": [1 << 20] * 9}, "pixels in its counts"),
        ({"size": [1, 10**4000], "counts": [1]}, "size .*: expected"),
        ({"size": [4, 5], "counts": [10**4000]}, "expected a list of numbers from 0 to"),
        ({"size": [4, 5], "counts": "`" * 1_000_000 + "0"}, "too large"),  # 5 million bits in one number
    ],
)
def test_masks_that_cannot_be_decoded(wrong, message):
    with pytest.raises(UserError, match=message):
        mask_box(wrong)


@pytest.mark.long
def test_masks_are_those_of_pycocotools():
    mask = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for k in range(300):
        pixels = (rng.random(rng.integers(1, 60, 2)) < rng.random()).astype(np.uint8)
        pixels[rng.integers(len(pixels))] = k % 2
        encoded = mask.encode(np.asfortranarray(pixels))
        encoded["counts"] = encoded["counts"].decode()
        assert np.array_equal(decode_mask(encoded), pixels)
        if pixels.any():
            x1, y1, x2, y2 = mask_box(encoded)
            assert [x1, y1, x2 - x1, y2 - y1] == mask.toBbox(encoded).tolist()
