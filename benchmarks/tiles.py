"""Small objects: trained for equal minutes with and without tiles, measured on whole images with and without them.

    python benchmarks/tiles.py                                        large drawn images, objects of 8 to 16 px
    python benchmarks/tiles.py --minutes 5 10 20                      time against gain
    python benchmarks/tiles.py --data aquarium.yaml --weights yolov5n.pt --recipe small

The network's size is --imgsz in all rows. The minutes are those of --time: train.py settles the epochs that fit, so a
training on tiles has fewer of them. Peak memory is that of the process of the training.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import val
from utils.files import write_yaml

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ((1280, 1280), (1200, 1600), (960, 1440))  # height, width
SIDES = 8, 16  # pixels of an object, least and most
COUNTS = {"train": 60, "val": 20}


def draw_set(folder: Path, seed: int = 0) -> Path:
    """Draw large images with tiny discs and crosses on mottled ground. Return the YAML of the set."""
    rng = np.random.default_rng(seed)
    for split, count in COUNTS.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            image, rows = draw_image(rng, SHAPES[number % len(SHAPES)])
            cv2.imwrite(str(folder / "images" / split / f"{number:03}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
            (folder / "labels" / split / f"{number:03}.txt").write_text("\n".join(rows))
    file = folder / "tiny-objects.yaml"
    write_yaml(file, {"path": str(folder), "train": "images/train", "val": "images/val", "names": ["disc", "cross"]})
    return file


def draw_image(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """Return an image and its label rows: objects in one part of it, and larger shapes that are no objects."""
    height, width = shape
    image = cv2.resize(rng.integers(70, 180, (height // 40, width // 40, 3), dtype=np.uint8), (width, height))
    image = cv2.add(image, rng.integers(0, 25, (height, width, 3), dtype=np.uint8))
    for _ in range(25):
        centre = rng.integers(0, (width, height)).tolist()
        color = rng.integers(0, 255, 3).tolist()
        cv2.ellipse(image, centre, rng.integers(25, 90, 2).tolist(), float(rng.uniform(0, 180)), 0, 360, color, 3)
    rows = []
    middle, spread = rng.uniform(0.3, 0.7, 2) * (width, height), min(shape) / 4
    for _ in range(int(rng.integers(20, 40))):
        side = int(rng.integers(SIDES[0], SIDES[1] + 1))
        x, y = (rng.normal(middle, spread).clip(0, (width - side, height - side))).astype(int).tolist()
        class_index = int(rng.integers(2))
        color = (rng.choice([20, 235]) + rng.integers(-20, 20, 3)).clip(0, 255).tolist()
        draw_object(image[y : y + side, x : x + side], class_index, color)
        rows.append(f"{class_index} {(x + side / 2) / width} {(y + side / 2) / height} {side / width} {side / height}")
    return image, rows


def draw_object(box: np.ndarray, class_index: int, color: list[int]) -> None:
    """Draw a disc (class 0) or a cross (class 1) that fills a square part of an image."""
    side = len(box)
    if class_index == 0:
        cv2.circle(box, (side // 2, side // 2), (side - 1) // 2, color, -1)
    else:
        thickness = max(side // 4, 2)
        cv2.line(box, (0, 0), (side - 1, side - 1), color, thickness)
        cv2.line(box, (side - 1, 0), (0, side - 1), color, thickness)


class Training(NamedTuple):
    """Result of a training."""

    best: Path
    minutes: float
    epochs: int
    memory: float  # GB


def train(options: argparse.Namespace, data: str, folder: Path, minutes: float, tile: int) -> Training:
    """Train in a process of its own, with tiles unless `tile` is 0."""
    folder = folder / f"{minutes:g}-{'tiles' if tile else 'whole'}"
    words = ["--data", data, "--imgsz", options.imgsz, "--batch-size", options.batch_size, "--time", minutes / 60]
    words += ["--weights", options.weights, *([] if options.weights else ["--cfg", "yolov5n.yaml"])]
    words += ["--recipe", options.recipe, "--seed", options.seed, "--workers", 1, "--threads", options.threads]
    words += ["--noplots", "--noval", "--cache", "ram", "--project", folder.parent, "--name", folder.name, "--exist-ok"]
    words += ["--tile", tile, *(["--tile-overlap", options.tile_overlap] if tile else [])]
    start = time.perf_counter()
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, ROOT / "train.py", *map(str, words)], stdout=log, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"train.py failed:\n{Path(log.name).read_text()[-2000:]}")
    spent = (time.perf_counter() - start) / 60
    epochs = len((folder / "results.csv").read_text().splitlines()) - 1
    return Training(folder / "weights" / "best.pt", spent, epochs, used.ru_maxrss / 2**20)


def measure(options: argparse.Namespace, data: str, trained: Training, tile: int) -> tuple[float, float, float]:
    """Return mAP50, mAP50-95 and milliseconds per image of a validation on whole images."""
    words = {"tile": tile, "tile_overlap": options.tile_overlap} if tile else {}
    with redirect_stdout(sys.stderr):  # the table alone is printed
        found = val.run(
            weights=str(trained.best), data=data, imgsz=options.imgsz, batch_size=16, exist_ok=True,
            project=str(trained.best.parents[2]), name="val", **words,
        )  # fmt: skip
    speed = found.metrics.speed
    return found.metrics.map50, found.metrics.map, speed.preprocess + speed.inference + speed.nms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="data set YAML; the drawn set without it")
    parser.add_argument("--weights", default="", help="weights to start from; from scratch without them")
    parser.add_argument("--recipe", default="yolov5")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--tile", type=int, default=320)
    parser.add_argument("--tile-overlap", type=float, default=0.2)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10.0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| minutes | trained on | looks at | mAP50 | mAP50-95 | ms/image | epochs | minutes taken | peak memory |")
    print("|" + " --- |" * 9)
    with tempfile.TemporaryDirectory() as name:
        data = options.data or str(draw_set(Path(name) / "set"))
        for minutes in options.minutes:
            for trained_on in (0, options.tile):
                trained = train(options, data, Path(name), minutes, trained_on)
                for looks_at in (0, options.tile):
                    map50, map_all, speed = measure(options, data, trained, looks_at)
                    words = ["tiles too" if tile else "whole images" for tile in (trained_on, looks_at)]
                    print(
                        f"| {minutes:g} | {words[0]} | {words[1]} | {map50:.3f} | {map_all:.3f} | {speed:.1f} | "
                        f"{trained.epochs} | {trained.minutes:.1f} | {trained.memory:.2f} GB |",
                        flush=True,
                    )
    print(f"\n--imgsz {options.imgsz}, --tile {options.tile}, --tile-overlap {options.tile_overlap}")


if __name__ == "__main__":
    main()
