"""Search among 64-bit hashes, against the distances of all pairs."""

import numpy as np
import pytest

from utils.checking.hash_search import RADIUS, HashTables


def all_hashes(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    if kind == "random":
        base = rng.integers(0, 2**64, count // 2, np.uint64)
        flips = (np.uint64(1) << rng.integers(0, 64, (count // 2, 8)).astype(np.uint64)).astype(np.uint64)
        return np.concatenate([base, base ^ np.bitwise_xor.reduce(flips, axis=1)])  # 8 bits away at most
    return rng.integers(0, 2**12, count, np.uint64)  # alike: all pairs are compared


@pytest.mark.parametrize("kind", ["random", "alike"])
@pytest.mark.parametrize("only_earlier", [False, True])
def test_the_nearest_are_those_of_all_pairs(kind, only_earlier):
    hashes, most = all_hashes(kind, 600), 5
    found = HashTables(hashes).nearest(hashes, most=most, only_earlier=only_earlier)
    distances = np.bitwise_count(hashes[:, None] ^ hashes)
    for row, columns in enumerate(found):
        near = [k for k in range(row if only_earlier else 600) if distances[row, k] <= RADIUS]
        expected = sorted(near, key=lambda k: (distances[row, k], k))[:most]
        assert columns[columns >= 0].tolist() == expected


def test_no_hash_and_no_query():
    none = np.zeros(0, np.uint64)
    assert HashTables(none).nearest(np.array([1], np.uint64), most=2).tolist() == [[-1, -1]]
    assert HashTables(np.array([1], np.uint64)).nearest(none, most=2).shape == (0, 2)


def test_a_hash_with_seven_other_bits_is_found_and_one_with_eight_is_not():
    hashes = np.array([0b1111111, 0b11111111], np.uint64) << np.uint64(13)  # across two chunks
    assert HashTables(hashes).nearest(np.zeros(1, np.uint64), most=2).tolist() == [[0, -1]]
