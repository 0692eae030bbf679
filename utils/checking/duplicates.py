"""Images that are the same, or nearly the same: each is compared with those of another split, or with earlier ones.

The hashes propose pairs. The gray copies decide: after brightness and contrast are made equal, nearly equal images
correlate and have no place where they differ much.
"""

from typing import NamedTuple

import numpy as np

from utils.checking.fingerprints import Fingerprints
from utils.checking.hash_search import HashTables
from utils.checking.scan import ScannedSplit

CANDIDATES = 32  # nearest hashes of an image whose gray copies are compared
MIN_CONTRAST = 4.0  # standard deviation of gray levels; flatter images are compared by their files only
MIN_CORRELATION = 0.98
MAX_LOCAL = 0.7  # difference at any place, in standard deviations
ROWS = 256  # images whose candidates are compared at a time
SAME_BOX_IOU = 0.5


class Matches(NamedTuple):
    """Match of each of N images, the closest one."""

    partners: np.ndarray  # (N,) int64 index of the other image, -1 for none
    is_copy: np.ndarray  # (N,) bool: the files are the same to the byte
    distances: np.ndarray  # (N,) float32 root mean square difference in standard deviations, 0 of a copy

    @property
    def copies(self) -> np.ndarray:
        """Indices of the images whose file is a copy."""
        return np.flatnonzero(self.is_copy)

    @property
    def alike(self) -> np.ndarray:
        """Indices of the images that are nearly the same as another but no copy, the closest first."""
        found = np.flatnonzero((self.partners >= 0) & ~self.is_copy)
        return found[np.argsort(self.distances[found], kind="stable")]


def match_images(queries: Fingerprints, others: Fingerprints | None = None) -> Matches:
    """Find the closest image for each of `queries`: among `others`, or without those among the queries before it."""
    tables = HashTables((others or queries).hashes)
    columns = tables.nearest(queries.hashes, most=CANDIDATES, only_earlier=others is None)
    partners, distances = _closest_alike(queries, others or queries, columns)
    copies = _find_copies(queries, others)
    return Matches(
        partners=np.where(copies >= 0, copies, partners),
        is_copy=copies >= 0,
        distances=np.where(copies >= 0, np.float32(0), distances),
    )


def _find_copies(queries: Fingerprints, others: Fingerprints | None) -> np.ndarray:
    """Return for each query (N,) the index of the first image with the same file, -1 for none."""
    source = others or queries
    readable = np.flatnonzero(source.readable)
    digests, first = np.unique(source.digests[readable], return_index=True)
    if not len(digests):
        return np.full(len(queries.digests), -1)
    places = np.searchsorted(digests, queries.digests).clip(max=len(digests) - 1)
    found = np.where((digests[places] == queries.digests) & queries.readable, readable[first[places]], -1)
    return found if others else np.where(found < np.arange(len(found)), found, -1)


def _closest_alike(queries: Fingerprints, others: Fingerprints, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearly equal image of each query (N,), -1 for none, and their distances (N,).

    `columns` (N, k) holds the candidates, -1 for none.
    """
    partners, distances = np.full(len(columns), -1), np.full(len(columns), np.inf, np.float32)
    busy = np.flatnonzero(columns[:, 0] >= 0)
    for start in range(0, len(busy), ROWS):
        rows = busy[start : start + ROWS]
        chosen = columns[rows]
        own, _ = _standardise(queries.copies[rows])
        theirs, contrast = _standardise(others.copies[chosen])
        difference = np.abs(own[:, None] - theirs)
        squared = np.square(difference).mean(axis=2)  # 2 - 2 * correlation
        is_alike = (squared <= 2 - 2 * MIN_CORRELATION) & (difference.max(axis=2) <= MAX_LOCAL)
        is_alike &= (chosen >= 0) & (contrast >= MIN_CONTRAST) & others.readable[chosen] & queries.readable[rows, None]
        squared = np.where(is_alike, squared, np.inf)
        best = squared.argmin(axis=1)
        least = squared[np.arange(len(rows)), best]
        partners[rows] = np.where(np.isfinite(least), chosen[np.arange(len(rows)), best], -1)
        distances[rows] = np.sqrt(least)
    return partners, distances


def correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the correlation (N,) of gray copies (N, P), row by row."""
    return (_standardise(a)[0] * _standardise(b)[0]).mean(axis=1)


def _standardise(copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return gray copies (..., P) with mean 0 and standard deviation 1, and their contrast (...)."""
    values = copies.astype(np.float32)
    values -= values.mean(axis=-1, keepdims=True)
    contrast = values.std(axis=-1)
    return values / np.maximum(contrast, MIN_CONTRAST)[..., None], contrast


def count_same_boxes(
    split: ScannedSplit, image: int, other_split: ScannedSplit, other: int, *, mirrored: bool = False
) -> tuple[int, int]:
    """Return how many boxes two images share (class, and place by IoU), and how many there are on the one with more.

    mirrored: one image is the other one's mirror image.
    """
    a, b = split.index.boxes(image), other_split.index.boxes(other)
    if not len(a) or not len(b):
        return 0, max(len(a), len(b))
    if mirrored:
        a = a * [1, -1, 1, 1, 1] + [0, 1, 0, 0, 0]  # class, cx, cy, w, h
    is_same = (_pairwise_iou(a[:, 1:], b[:, 1:]) >= SAME_BOX_IOU) & (a[:, None, 0] == b[:, 0])
    return int(min(is_same.any(axis=0).sum(), is_same.any(axis=1).sum())), max(len(a), len(b))


def _pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union (n, m) of boxes cx, cy, w, h."""
    low = np.maximum(a[:, None, :2] - a[:, None, 2:] / 2, b[:, :2] - b[:, 2:] / 2)
    high = np.minimum(a[:, None, :2] + a[:, None, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
    overlap = (high - low).clip(min=0).prod(axis=2)
    return overlap / np.maximum(a[:, 2:].prod(axis=1)[:, None] + b[:, 2:].prod(axis=1) - overlap, 1e-12)
