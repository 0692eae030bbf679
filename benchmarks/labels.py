"""Scan of a data set's images and labels, against the textbook way, and the second start from the cache.

    python benchmarks/labels.py             20 000 images of 64x48 pixels, each with 7 labels
    python benchmarks/labels.py --small     1 000, to check that it runs

The baseline opens and verifies each image with Pillow and looks for a JPEG's end mark. It reads the label file into
lists of Python floats, which it checks as arrays. It uses one process and writes nothing; ours writes its cache too.

In most rows the files are in the page cache, since they were just written: these rows compare the work, not the disk.
The rows "from the disk" drop the files from the page cache before each scan; metadata stays cached. The second start
follows directly. A second start always reads the size and times of both files of each image, to notice edited files.
"""

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import Timing, compare, machine, print_rows, row, seconds
from utils.datasets.image_files import find_images, label_path
from utils.datasets.label_cache import cache_file
from utils.datasets.labels import load_index

NUM_CLASSES = 80
KINDS = 200  # different images; the others are copies under other names


def make_set(folder: Path, count: int, rows: int, rng: np.random.Generator) -> Path:
    """Write a data set of `count` JPEGs with `rows` boxes each. Return its image folder."""
    images, labels = folder / "images/train", folder / "labels/train"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    noise = rng.integers(0, 256, (KINDS, 6, 8, 3), np.uint8)
    jpegs = [cv2.imencode(".jpg", cv2.resize(image, (64, 48)))[1].tobytes() for image in noise]
    kinds = rng.integers(NUM_CLASSES, size=(count, rows))
    boxes = rng.uniform((0.2, 0.2, 0.01, 0.01), (0.8, 0.8, 0.4, 0.4), (count, rows, 4))
    for k in range(count):
        (images / f"{k:012}.jpg").write_bytes(jpegs[k % KINDS])
        (labels / f"{k:012}.txt").write_text(
            "".join(f"{kind} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for kind, (x, y, w, h) in zip(kinds[k], boxes[k]))
        )
    return images


def textbook_check(path: str) -> tuple[tuple[int, int], np.ndarray]:
    """Return the size and the labels (n, 5) of one image. Raise AssertionError if anything is wrong."""
    from PIL import Image, ImageOps  # the product does not need it

    image = Image.open(path)
    image.verify()
    size = ImageOps.exif_transpose(image).size if image.getexif().get(0x0112, 1) != 1 else image.size
    assert min(size) > 9 and image.format in ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
    if image.format == "JPEG":
        with open(path, "rb") as file:
            file.seek(-2, os.SEEK_END)
            assert file.read() == b"\xff\xd9"
    label = label_path(path)
    if not os.path.isfile(label):
        return size, np.zeros((0, 5), np.float32)
    with open(label) as file:
        rows = [line.split() for line in file.read().splitlines() if line]
    values = np.array([[float(word) for word in words] for words in rows], np.float32)
    assert values.ndim == 2 and values.shape[1] == 5 and (values >= 0).all() and (values[:, 1:] <= 1).all()
    return size, values[np.sort(np.unique(values, axis=0, return_index=True)[1])]


def textbook_scan(images: Path) -> int:
    """Return the number of labels in the data set."""
    return sum(len(textbook_check(path)[1]) for path in find_images(images))


def scan_without_cache(images: Path) -> int:
    cache_file([images]).unlink(missing_ok=True)
    return start(images)


def start(images: Path) -> int:
    return len(load_index(images, NUM_CLASSES, progress=False).labels)


def from_disk(images: Path, pairs: int) -> tuple[Timing, Timing]:
    """Time the textbook's scan against ours, and our scan against the second start, each scan from the disk."""
    files = [path for image in find_images(images) for path in (image, label_path(image))]
    scans, starts = Timing([], []), Timing([], [])
    os.sync()  # dirty pages cannot be dropped
    for _ in range(pairs):
        for scan, found in ((textbook_scan, scans.baseline), (scan_without_cache, scans.ours)):
            for path in files:
                with open(path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found.append(seconds(partial(scan, images)))
        starts.baseline.append(scans.ours[-1])
        starts.ours.append(seconds(partial(start, images)))
    return scans, starts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", "--pictures", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=7, help="labels of each image")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="1 000 images, 3 pairs")
    args = parser.parse_args()
    count, pairs = (1000, 3) if args.small else (args.images, args.pairs)
    with tempfile.TemporaryDirectory() as folder:
        images = make_set(Path(folder), count, args.rows, np.random.default_rng(0))
        assert textbook_scan(images) == scan_without_cache(images) == count * args.rows, "the two sides differ"
        first = compare(lambda: textbook_scan(images), lambda: scan_without_cache(images), pairs=pairs)
        again = compare(lambda: scan_without_cache(images), lambda: start(images), pairs=pairs)
        textbook_again = compare(lambda: textbook_scan(images), lambda: start(images), pairs=pairs)
        cold, cold_again = from_disk(images, pairs) if hasattr(os, "posix_fadvise") else (None, None)
        cache_file([images]).unlink()  # it is in the user's cache folder
    print_rows(
        [
            row(f"scan and check of {count} pictures", first, at_least="3", unit="s"),
            row("second start, from the cache, against our scan", again, at_least="20", unit="s"),
            row("second start, from the cache, against the textbook's", textbook_again, at_least="20", unit="s"),
            *(
                [
                    row("scan and check, from the disk", cold, at_least="3", unit="s"),
                    row(
                        "second start right after it, against our scan from the disk",
                        cold_again,
                        at_least="20",
                        unit="s",
                    ),
                ]
                if cold
                else []
            ),
        ],
        machine(),
    )


if __name__ == "__main__":
    main()
