"""Time of check.py on a data set, without weights, part by part.

    python benchmarks/check.py             20 000 images of 640x480, each with 7 labels
    python benchmarks/check.py --small     500, to check that it runs

The files are in the page cache, since they were just written. The first check reads everything and writes the label
cache, as a training would; the second one finds it there. CPU is that of all processes.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import check
from benchmarks.timing import Row, machine, print_rows
from utils.checking.scan import Check, ScannedData, scan_dataset
from utils.console import begin_program
from utils.datasets.locate import locate_dataset

HEIGHT, WIDTH = 480, 640
NUM_CLASSES = 10
LIMIT = "30 s"  # of a whole check of 20 000 images on 2 cores


class Cost(NamedTuple):
    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.2f} s ({self.cpu:.2f} s CPU)"


def make_set(folder: Path, count: int, rows: int, rng: np.random.Generator) -> Path:
    """Write images of smooth noise and rectangles, a tenth of them for validation. Return the data set YAML."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
    for k in range(count):
        split = "val" if k % 10 == 0 else "train"
        image = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (WIDTH, HEIGHT))
        boxes = rng.uniform((0.2, 0.2, 0.03, 0.03), (0.8, 0.8, 0.4, 0.4), (rows, 4))
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        for left, top, right, bottom in (corners * (WIDTH, HEIGHT, WIDTH, HEIGHT)).astype(int):
            image[top:bottom, left:right] = rng.integers(0, 256, 3)
        cv2.imwrite(str(folder / "images" / split / f"{k:06}.jpg"), image)
        text = "".join(f"{rng.integers(NUM_CLASSES)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for x, y, w, h in boxes)
        (folder / "labels" / split / f"{k:06}.txt").write_text(text)
    file = folder / "data.yaml"
    names = [f"kind {k}" for k in range(NUM_CLASSES)]
    file.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {names}\n")
    return file


def measure(function: Callable[[], Any]) -> tuple[Cost, Any]:
    """Return the cost of a call, and its result. Ended child processes are included."""
    before, start = os.times(), time.perf_counter()
    result = function()
    wall = time.perf_counter() - start
    multiprocessing.active_children()  # joins those that have ended, so that their time is counted
    after = os.times()
    return Cost(wall, sum(after[:4]) - sum(before[:4])), result


def run_check(one: Check, data: ScannedData) -> int:
    return len(list(one(data)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=7, help="labels of each image")
    parser.add_argument("--small", action="store_true", help="500 images")
    args = parser.parse_args()
    count = 500 if args.small else args.images
    with tempfile.TemporaryDirectory() as folder:
        file = make_set(Path(folder), count, args.rows, np.random.default_rng(0))
        begin_program(quiet=True)
        words = ["--data", str(file), "--project", f"{folder}/runs", "-q"]
        first, _ = measure(lambda: check.main(words))
        again, _ = measure(lambda: check.main(words))
        spec = locate_dataset(str(file))
        cached, data = measure(lambda: scan_dataset(spec, 640))
        parts = [
            (one.__name__.removeprefix("check_"), measure(partial(run_check, one, data))[0]) for one in check.CHECKS
        ]
    rows = [Row(f"check of {count} images of {WIDTH}x{HEIGHT}", "-", str(first), "-", LIMIT)]
    rows.append(Row("second check, with the label cache", "-", str(again), "-", "-"))
    rows.append(Row("of it: labels from the cache", "-", str(cached), "-", "-"))
    rows += [Row(f"of it: {name}", "-", str(cost), "-", "-") for name, cost in parts]
    print_rows(rows, machine())


if __name__ == "__main__":
    main()
