"""Fingerprints of images: the digest of the file, a perceptual hash and a small gray copy.

The hash (dHash) has a bit for each pair of horizontal neighbours in 9 x 8 gray pixels: is the right one brighter?
Resizing, compression and brightness change few of its bits.
"""

import io
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

import cv2
import numpy as np

from utils.console import progress_bar
from utils.datasets.image_files import map_chunks
from utils.files import read_regular, retry_reading
from utils.images.header import JPEG, MAX_BYTES, header_shape

SIDE = 16  # of the gray copies
MIN_DECODED = 4 * SIDE  # pixels: sides of a JPEG that is decoded at a fraction of its size
REDUCED = {8: cv2.IMREAD_REDUCED_GRAYSCALE_8, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2}
CHUNK = 64  # images


class Fingerprints(NamedTuple):
    """Fingerprints of N images."""

    digests: np.ndarray  # (N,) uint64 of the file's bytes
    hashes: np.ndarray  # (N,) uint64
    copies: np.ndarray  # (N, SIDE * SIDE) uint8
    readable: np.ndarray  # (N,) bool: the other fields of the others are zero

    def __getitem__(self, part: slice | np.ndarray) -> "Fingerprints":  # pyrefly: ignore[bad-override]
        return Fingerprints(*(np.asarray(field)[part] for field in self._asdict().values()))

    def mirrored(self) -> "Fingerprints":
        """Return the fingerprints of the images mirrored left to right, which are no files: the digests are 0."""
        brighter = np.unpackbits(self.hashes.astype(">u8").view(np.uint8)).reshape(-1, 8, 8)  # (N, row, column)
        hashes = np.packbits(1 - brighter[:, :, ::-1]).view(">u8").astype(np.uint64)
        copies = self.copies.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(self.copies.shape)
        return Fingerprints(np.zeros_like(self.digests), hashes, copies, self.readable)


def take_fingerprints(paths: Sequence[str], *, progress: bool = True) -> Fingerprints:
    """Read and decode the images once, usual JPEGs at an eighth of their size, in parallel."""
    parts = []
    with progress_bar(total=len(paths), desc="Comparing images", disable=not progress) as bar:
        for part in map_chunks(_take_chunk, list(paths), size=CHUNK):
            parts.append(part)
            bar.update(len(part.hashes))
    return _join(parts)


def _join(parts: Sequence[Fingerprints]) -> Fingerprints:
    parts = [*parts, _empty(0)]
    return Fingerprints(*(np.concatenate(fields) for fields in zip(*map(tuple, parts), strict=True)))


def _empty(count: int) -> Fingerprints:
    return Fingerprints(
        digests=np.zeros(count, np.uint64),
        hashes=np.zeros(count, np.uint64),
        copies=np.zeros((count, SIDE * SIDE), np.uint8),
        readable=np.zeros(count, bool),
    )


def _take_chunk(paths: Sequence[str]) -> Fingerprints:
    found = _empty(len(paths))
    for i, path in enumerate(paths):
        try:
            data = retry_reading(partial(read_regular, path, MAX_BYTES))
            gray = _decode_gray(data)
        except (OSError, ValueError, cv2.error, MemoryError):
            continue  # other checks report files that cannot be read
        if gray is None:
            continue
        found.digests[i] = int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
        found.hashes[i] = difference_hash(gray)
        found.copies[i] = _shrink(gray, SIDE, SIDE).ravel()
        found.readable[i] = True
    return found


def _decode_gray(data: bytes) -> np.ndarray | None:
    """Return gray uint8 (H, W), rotated by the EXIF orientation, at a fraction of the size if that is faster."""
    side = min(header_shape(io.BytesIO(data)))  # checks the size before the decoder allocates it
    buffer = np.frombuffer(data, np.uint8)
    if data.startswith(JPEG):
        factor = next((factor for factor in REDUCED if side // factor >= MIN_DECODED), None)
        return cv2.imdecode(buffer, REDUCED[factor] if factor else cv2.IMREAD_GRAYSCALE)
    gray = cv2.imdecode(buffer, cv2.IMREAD_ANYDEPTH)
    if gray is None or gray.dtype == np.uint8:
        return gray
    gray = np.nan_to_num(gray.astype(np.float32))
    return (gray * (255 / max(float(gray.max()), 1e-6))).clip(0, 255).astype(np.uint8)


def _shrink(gray: np.ndarray, width: int, height: int) -> np.ndarray:
    return cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA)


def difference_hash(gray: np.ndarray) -> int:
    """Return the 64 bits of a gray image (H, W)."""
    small = _shrink(gray, 9, 8)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")
