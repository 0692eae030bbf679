"""Nearest neighbours among 64-bit hashes by Hamming distance.

The method is multi-index hashing (Norouzi, Punjani and Fleet, arXiv 1307.2982). Two hashes that differ in seven bits at
most agree, but for one bit, in one of their four chunks. So each chunk has a table that is looked up with each bit
flipped.
"""

import numpy as np

RADIUS = 7  # bits
CHUNKS, BITS = 4, 16
FLIPS = np.array([0, *(1 << bit for bit in range(BITS))], np.int64)  # what differs in one bit at most
MAX_PAIRS = 1 << 24  # of hashes that are compared at a time


class HashTables:
    """Tables of the hashes (M,) to search in, one for each chunk of their bits."""

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes = np.asarray(hashes, np.uint64)
        keys = [_chunk(self.hashes, number) for number in range(CHUNKS)]
        self.orders = [np.argsort(key, kind="stable") for key in keys]
        sorted_keys = (key[order] for key, order in zip(keys, self.orders, strict=True))
        self.starts = [np.searchsorted(key, np.arange((1 << BITS) + 1)) for key in sorted_keys]

    def nearest(self, queries: np.ndarray, *, most: int, only_earlier: bool = False) -> np.ndarray:
        """Return the nearest hashes within RADIUS of each query: indices (n, most), -1 where there are no more.

        Ties go to the lower index. With `only_earlier`, the queries are the hashes of the tables, and only those before
        a hash are neighbours of it.
        """
        found = np.full((len(queries), most), -1, np.int64)
        queries = np.asarray(queries, np.uint64)
        size = max(1, min(1024, MAX_PAIRS // max(1, len(self.hashes))))
        for start in range(0, len(queries), size):
            part = slice(start, start + size)
            ends = np.arange(start, start + len(queries[part])) if only_earlier else None
            rows, columns = self._candidates(queries[part], most, ends)
            _fill(found[part], rows, columns, np.bitwise_count(queries[part][rows] ^ self.hashes[columns]))
        return found

    def _candidates(self, queries: np.ndarray, most: int, ends: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs (row of a query, index of a hash), each once: the nearest `most` within RADIUS, maybe more.

        `ends` (n,) are the numbers of hashes, from the first, that each query may have as neighbours.
        """
        keys = [_chunk(queries, number)[:, None] ^ FLIPS for number in range(CHUNKS)]  # (n, 17) each
        counts = [starts[key + 1] - starts[key] for starts, key in zip(self.starts, keys, strict=True)]
        if sum(int(count.sum()) for count in counts) > len(queries) * len(self.hashes) // 16:
            return self._compare_all(queries, most, ends)  # hashes so alike that tables do not help
        pairs = []
        for order, starts, key, count in zip(self.orders, self.starts, keys, counts, strict=True):
            lengths = count.ravel()
            rows = np.repeat(np.repeat(np.arange(len(queries)), len(FLIPS)), lengths)
            offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            columns = order[np.repeat(starts[key].ravel(), lengths) + offsets]
            near = np.bitwise_count(queries[rows] ^ self.hashes[columns]) <= RADIUS
            pairs.append(rows[near] * len(self.hashes) + columns[near])
        rows, columns = np.divmod(np.unique(np.concatenate(pairs)), max(1, len(self.hashes)))
        kept = slice(None) if ends is None else columns < ends[rows]
        return rows[kept], columns[kept]

    def _compare_all(self, queries: np.ndarray, most: int, ends: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the same pairs from the distances to all hashes."""
        distances = np.bitwise_count(queries[:, None] ^ self.hashes)  # (n, M)
        if ends is not None:
            distances[np.arange(len(self.hashes)) >= ends[:, None]] = 64
        within = np.stack([np.count_nonzero(distances <= limit, axis=1) for limit in range(RADIUS)])
        limits = (within < most).sum(axis=0)  # the smallest radius with that many hashes, RADIUS if there are fewer
        columns = [np.flatnonzero(row <= limit) for row, limit in zip(distances, limits, strict=True)]
        return np.repeat(np.arange(len(queries)), [len(row) for row in columns]), np.concatenate(columns)


def _chunk(hashes: np.ndarray, number: int) -> np.ndarray:
    return ((hashes >> np.uint64(BITS * number)) & np.uint64((1 << BITS) - 1)).astype(np.int64)


def _fill(found: np.ndarray, rows: np.ndarray, columns: np.ndarray, distances: np.ndarray) -> None:
    """Write the nearest columns of each row into `found` (n, most). `rows` is sorted."""
    order = np.lexsort((columns, distances, rows))
    rows, columns = rows[order], columns[order]
    ranks = np.arange(len(rows)) - np.searchsorted(rows, rows)
    kept = ranks < found.shape[1]
    found[rows[kept], ranks[kept]] = columns[kept]
