"""Search for images that are the same or nearly the same, as check.py does it: decoding apart from the comparison.

    python benchmarks/duplicates.py            decodes 4 000 images of 640x480, compares 100 000
    python benchmarks/duplicates.py --small    100 and 3 000, to check that it runs

The images are drawn with noise, so that a JPEG has as many bytes as a photo. The files are in the page cache. The
baseline of decoding opens the whole image. That of the comparison is the distance of every pair of hashes, without a
look at the images themselves. A hundredth of the images compared are copies with noise.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import Timing, compare, machine, print_rows, row
from utils.checking.duplicates import match_images
from utils.checking.fingerprints import SIDE, Fingerprints, difference_hash, take_fingerprints
from utils.checking.hash_search import RADIUS

HEIGHT, WIDTH, QUALITY = 480, 640, 90
KINDS = 100  # different files; the others are copies under other names
GOAL = 100_000  # images whose time is stated
BLOCK = 64  # rows of the matrix of distances


def make_images(folder: Path, count: int, rng: np.random.Generator) -> list[str]:
    """Write `count` JPEGs. Return their paths."""
    files = []
    for _ in range(min(KINDS, count)):
        image = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(image + rng.normal(0, 8, (HEIGHT, WIDTH, 1)), 0, 255).astype(np.uint8)
        files.append(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())
    paths = [folder / f"{k:06}.jpg" for k in range(count)]
    for k, path in enumerate(paths):
        path.write_bytes(files[k % len(files)])
    return list(map(str, paths))


def make_fingerprints(count: int, rng: np.random.Generator) -> Fingerprints:
    """Return fingerprints of soft images, every hundredth one a noisy copy of that before it."""
    copies = np.empty((count, SIDE * SIDE), np.uint8)
    for k in range(count):
        soft = cv2.resize(rng.integers(0, 256, (5, 6), np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        copies[k] = soft.ravel()
    repeated = np.arange(99, count, 100)
    copies[repeated] = np.clip(copies[repeated - 1] + rng.normal(0, 2, (len(repeated), SIDE * SIDE)), 0, 255)
    hashes = [difference_hash(copy.reshape(SIDE, SIDE)) for copy in copies]
    return Fingerprints(np.arange(count, dtype=np.uint64), np.array(hashes, np.uint64), copies, np.ones(count, bool))


def decode_whole(paths: list[str]) -> list[int]:
    """Return the hash of each image from all its pixels."""
    return [difference_hash(cv2.imread(path, cv2.IMREAD_GRAYSCALE)) for path in paths]


def compare_all(prints: Fingerprints) -> int:
    """Return the number of hashes with a near one before them, from the distances of all pairs."""
    found = 0
    for start in range(0, len(prints.hashes), BLOCK):
        block = prints.hashes[start : start + BLOCK]
        near = np.bitwise_count(block[:, None] ^ prints.hashes[: start + BLOCK]) <= RADIUS
        found += int(np.tril(near, start - 1).any(axis=1).sum())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="to check that it runs")
    options = parser.parse_args()
    count, many = (100, 3000) if options.small else (4000, GOAL)
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = make_images(Path(folder), count, rng)
        size = sum(Path(path).stat().st_size for path in paths) / count / 1024
        decoding = compare(partial(decode_whole, paths), partial(take_fingerprints, paths, progress=False), pairs=3)
    prints = make_fingerprints(many, rng)
    matched = compare(partial(compare_all, prints), partial(match_images, prints), pairs=1, warm_up=0)
    found = match_images(prints)
    pairs = int((found.partners[99::100] == np.arange(98, many, 100)).sum())
    each = Timing(*([value / count for value in side] for side in decoding))
    reading = min(decoding.ours) / count * GOAL
    total = reading + min(matched.ours) * GOAL / many
    print_rows(
        [
            row(f"decoding and hash of an image of {size:.0f} KB", each, at_least="1"),
            row(f"comparison of {many:,} images", matched, at_least="1", unit="s"),
        ],
        f"{pairs} of {many // 100} copies found, {len(found.alike) - pairs} other pairs.",
        f"{GOAL:,} images: {reading:.0f} s of decoding, {total:.0f} s in all; to be under 300 s.",
        machine(),
    )


if __name__ == "__main__":
    main()
