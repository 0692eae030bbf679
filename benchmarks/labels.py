"""Scan and check of a data set's pictures and labels, against the textbook way; and the second start, from the cache.

    python benchmarks/labels.py             20 000 pictures of 64x48 pixels, each with 7 labels
    python benchmarks/labels.py --small     1 000, to see that it runs

The baseline opens and verifies each picture with Pillow, looks for a JPEG's end mark, and reads its label file into
lists of Python floats that are checked as arrays: one process, nothing written. Ours writes its cache too. The files
are in the memory of the system for most rows (they were just written): what is compared then is the work, not the disk.
For the rows "from the disk" the system is told to forget what the files hold before each scan (it still knows their
names, sizes and places), and the second start comes right after it. A second start always asks for the size and times
of both files of each picture, since none that was edited may go unnoticed.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import Timing, compare, machine, print_rows, row, seconds  # noqa: E402
from utils.datasets.labels import find_images, label_path, load_index  # noqa: E402

NUM_CLASSES = 80
KINDS = 200  # different pictures: the others are copies under other names


def make_set(folder: Path, count: int, rows: int, rng: np.random.Generator) -> Path:
    """A data set of `count` JPEGs with `rows` boxes each. Returns its folder of pictures."""
    pictures, labels = folder / "images/train", folder / "labels/train"
    pictures.mkdir(parents=True), labels.mkdir(parents=True)
    noise = rng.integers(0, 256, (KINDS, 6, 8, 3), np.uint8)
    jpegs = [cv2.imencode(".jpg", cv2.resize(image, (64, 48)))[1].tobytes() for image in noise]
    kinds = rng.integers(NUM_CLASSES, size=(count, rows))
    boxes = rng.uniform((0.2, 0.2, 0.01, 0.01), (0.8, 0.8, 0.4, 0.4), (count, rows, 4))
    for k in range(count):
        (pictures / f"{k:012}.jpg").write_bytes(jpegs[k % KINDS])
        (labels / f"{k:012}.txt").write_text(
            "".join(f"{kind} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for kind, (x, y, w, h) in zip(kinds[k], boxes[k]))
        )
    return pictures


def textbook_check(picture: str) -> tuple[tuple[int, int], np.ndarray]:
    """Size and labels (n, 5) of one picture; an AssertionError for whatever is wrong."""
    from PIL import Image, ImageOps  # other parts of this project do without

    image = Image.open(picture)
    image.verify()
    size = ImageOps.exif_transpose(image).size if image.getexif().get(0x0112, 1) != 1 else image.size
    assert min(size) > 9 and image.format in ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
    if image.format == "JPEG":
        with open(picture, "rb") as file:
            file.seek(-2, os.SEEK_END)
            assert file.read() == b"\xff\xd9"
    label = label_path(picture)
    if not os.path.isfile(label):
        return size, np.zeros((0, 5), np.float32)
    with open(label) as file:
        rows = [line.split() for line in file.read().splitlines() if line]
    values = np.array([[float(word) for word in words] for words in rows], np.float32)
    assert values.ndim == 2 and values.shape[1] == 5 and (values >= 0).all() and (values[:, 1:] <= 1).all()
    return size, values[np.sort(np.unique(values, axis=0, return_index=True)[1])]


def textbook_scan(pictures: Path) -> int:
    """Number of labels in the data set."""
    return sum(len(textbook_check(picture)[1]) for picture in find_images(pictures))


def scan_afresh(pictures: Path) -> int:
    (pictures.parents[1] / "labels/train.cache").unlink(missing_ok=True)
    return start(pictures)


def start(pictures: Path) -> int:
    return len(load_index(pictures, NUM_CLASSES, progress=False).labels)


def from_disk(pictures: Path, pairs: int) -> tuple[Timing, Timing]:
    """The textbook's scan against ours, and our scan against the second start after it, each scan from the disk."""
    files = [path for picture in find_images(pictures) for path in (picture, label_path(picture))]
    scans, starts = Timing([], []), Timing([], [])
    os.sync()  # what is not on the disk yet cannot be forgotten
    for _ in range(pairs):
        for scan, found in ((textbook_scan, scans.baseline), (scan_afresh, scans.ours)):
            for path in files:
                with open(path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found.append(seconds(lambda: scan(pictures)))
        starts.baseline.append(scans.ours[-1])
        starts.ours.append(seconds(lambda: start(pictures)))
    return scans, starts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=7, help="labels of each picture")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="1 000 pictures, 3 pairs")
    args = parser.parse_args()
    count, pairs = (1000, 3) if args.small else (args.pictures, args.pairs)
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_set(Path(folder), count, args.rows, np.random.default_rng(0))
        assert textbook_scan(pictures) == scan_afresh(pictures) == count * args.rows, "the two sides differ"
        first = compare(lambda: textbook_scan(pictures), lambda: scan_afresh(pictures), pairs=pairs)
        again = compare(lambda: scan_afresh(pictures), lambda: start(pictures), pairs=pairs)
        textbook_again = compare(lambda: textbook_scan(pictures), lambda: start(pictures), pairs=pairs)
        cold, cold_again = from_disk(pictures, pairs) if hasattr(os, "posix_fadvise") else (None, None)
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
