"""A million images with ten million boxes, against ten thousand images: start, memory, cost of an image.

    python benchmarks/scale.py             takes minutes, most of them for the scan of the million
    python benchmarks/scale.py --small     20 000 against 2 000, to check that it runs

The set is synthetic: a list of a million different paths. Each path leads through one of 2 000 linked folders to one of
500 real images and its label file. So every path is looked up and every file's times are read as in a real set, but
images come from the page cache. Both sets have the same images; validation has the smaller list.

A start is all that train.py does from parsing its options to the first batch, without imports; the labels are cached.
The cost of an image is that of the loader with its workers. Its rounds alternate between the two sets, while the
loaders of both are ready. Then every worker reads the path, the shape and the labels of every image, as it would over
many epochs, and memory is measured.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from benchmarks.process_memory import memory_of, workers_of
from benchmarks.timing import Row, Timing, format_spread, machine, print_rows, row
from utils.datasets.labels import load_index
from utils.distributed import Distributed
from utils.loading.dataset import Batch
from utils.loading.image_cache import ImageReader, SharedBytes

NUM_FILES = 500  # real images
BOXES = 10
NUM_CLASSES = 80
ENTRIES_PER_READ = 4000  # entries that a worker visits with each image it reads, when it is to visit all
WORDS = "--cfg yolov5n.yaml --weights= --imgsz 320 --batch-size 16 --workers 2 --device cpu --nosave --noplots".split()


# ---------------------------------------------------------------------------------------------------------------------
# The sets


def make_images(folder: Path, rng: np.random.Generator) -> None:
    """Write NUM_FILES images of 160x120 to images/real, with BOXES labels each in labels/real."""
    for name in ("images/real", "labels/real"):
        (folder / name).mkdir(parents=True)
    for k in range(NUM_FILES):
        image = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (160, 120))
        (folder / f"images/real/{k:04}.jpg").write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
        boxes = rng.uniform((0.2, 0.2, 0.02, 0.02), (0.8, 0.8, 0.4, 0.4), (BOXES, 4))
        (folder / f"labels/real/{k:04}.txt").write_text(
            "".join(
                f"{kind} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n"
                for kind, (x, y, w, h) in zip(rng.integers(NUM_CLASSES, size=BOXES), boxes)
            )
        )


def make_set(folder: Path, count: int) -> tuple[Path, float]:
    """Write and scan a data set of `count` paths. Return its list and the seconds of the scan."""
    for link, kind in itertools.product(range(count // NUM_FILES), ("images", "labels")):
        place = folder / kind / f"{link:05}"
        if not place.exists():
            place.symlink_to(folder / kind / "real")
    split = folder / f"list{count}.txt"
    split.write_text(
        "".join(
            f"{folder}/images/{link:05}/{k:04}.jpg\n" for link in range(count // NUM_FILES) for k in range(NUM_FILES)
        )
    )
    start = time.perf_counter()
    load_index(split, NUM_CLASSES, progress=False)
    return split, time.perf_counter() - start


def write_spec(folder: Path, train_split: Path, val_split: Path) -> Path:
    file = folder / f"{train_split.stem}.yaml"
    file.write_text(
        yaml.safe_dump(
            {"train": str(train_split), "val": str(val_split), "names": [f"kind {k}" for k in range(NUM_CLASSES)]}
        )
    )
    return file


# ---------------------------------------------------------------------------------------------------------------------
# A process that trains on one of them


class Visitor:
    """Replacement of an image reader's `read` that, once the flag is set, visits many other entries each time."""

    def __init__(self, images: ImageReader) -> None:
        self.images, self.index, self.flag, self.next = images, images.index, SharedBytes(1), 0
        self.read_image, images.read = images.read, self.read

    def read(self, i: int, rows: int | None = None) -> np.ndarray | None:
        count = ENTRIES_PER_READ * int(self.flag.array[0])
        for k in range(self.next, self.next + count):
            k %= len(self.index)
            assert self.index.paths[k]
            assert len(self.index.boxes(k)) == len(self.index.polygons(k))
            assert self.images.shape(k)
        self.next += count
        return self.read_image(i, rows)


def take(batches: "itertools.chain[Batch]", count: int) -> float:
    """Return the seconds per image."""
    start = time.perf_counter()
    num_images = sum(len(batch.images) for batch in itertools.islice(batches, count))
    return (time.perf_counter() - start) / num_images


def train_on_request(words: list[str]) -> None:
    """Print the seconds of the start, then answer each line of standard input: a number of batches, or `visit`."""
    start = time.perf_counter()
    with Distributed.join().session() as group:
        launch = train.resolve_launch(train.parse_args(words), [])
        group = group.use(launch.options.device, launch.options.batch_size)
        run = train.build_run(launch, group)
        visitor = Visitor(run.train_loader.dataset.images)
        batches = itertools.chain.from_iterable(itertools.repeat(run.train_loader))
        next(batches)
        answer(time.perf_counter() - start)
        for line in sys.stdin:
            if line.strip() != "visit":
                answer(take(batches, int(line)))
                continue
            visitor.flag.array[0] = 1
            reads = len(run.data.train) // ENTRIES_PER_READ * run.train_loader.workers
            take(batches, reads // run.options.batch_size + 8)
            answer([memory_of(), *map(memory_of, workers_of(run.train_loader))])
        run.train_loader.close()


def answer(value: object) -> None:
    print("answer", json.dumps(value), flush=True)


class Trainer:
    """A process that runs `train_on_request`."""

    def __init__(self, spec: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", "--", "--data", str(spec), *WORDS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.start = self.read_answer()

    def read_answer(self):
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise RuntimeError("the measured process has failed")

    def request(self, line: object):
        print(line, file=self.process.stdin, flush=True)
        return self.read_answer()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


# ---------------------------------------------------------------------------------------------------------------------
# The table


def measure(specs: list[Path], starts: int, rounds: int, batches: int) -> tuple[Timing, Timing, list[list]]:
    """Return seconds per start, seconds per image, and the memory of the processes of each set: small, large."""
    start, image = Timing([], []), Timing([], [])
    for number in range(starts):
        trainers = [Trainer(spec) for spec in specs]  # one after the other
        for side, trainer in zip(start, trainers):
            side.append(trainer.start)
        if number + 1 < starts:
            for trainer in trainers:
                trainer.end()
    for number in range(-1, rounds):
        for side, trainer in list(zip(image, trainers))[:: 1 if number % 2 == 0 else -1]:
            found = trainer.request(batches)
            if number >= 0:  # the first round warms up
                side.append(found)
    memory = [trainer.request("visit") for trainer in trainers]
    for trainer in trainers:
        trainer.end()
    return start, image, memory


def memory_rows(memory: list[list[list[float]]]) -> list[Row]:
    (small, *small_workers), (large, *large_workers) = memory
    parts = [("main process, peak resident", [small[2]], [large[2]])]
    parts += [
        (f"worker, {name}", [worker[k] for worker in small_workers], [worker[k] for worker in large_workers])
        for k, name in enumerate(("its own", "its own and its part of what is shared", "peak resident"))
    ]
    return [
        Row(
            f"memory of the {name}",
            f"{max(small_values):.0f} MiB",
            f"{max(large_values):.0f} MiB",
            f"{max(small_values) / max(large_values):.2g}",
            "at most 1500 MiB",
        )
        for name, small_values, large_values in parts
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", "--pictures", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=10_000)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=60, help="of a round")
    parser.add_argument("--small", action="store_true", help="20 000 against 2 000 images, few rounds")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return train_on_request(args.words)
    few, many, starts, rounds = (
        (2000, 20_000, 1, 3) if args.small else (args.few, args.images, args.starts, args.rounds)
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder, np.random.default_rng(0))
        (few_split, few_seconds), (many_split, many_seconds) = make_set(folder, few), make_set(folder, many)
        specs = [write_spec(folder, split, few_split) for split in (few_split, many_split)]
        start, image, memory = measure(specs, starts, rounds, args.batches)
    print(f"Baseline: {few} images. Ours: {many} images, {many * BOXES} boxes.\n")
    print_rows(
        [
            Row(
                "from the cache to the first batch",
                f"{format_spread(start.baseline)} s",
                f"{format_spread(start.ours)} s",
                format_spread(start.ratios),
                "at most 10 s",
            ),
            row("a picture through the loader", image, at_least="about 1"),
            *memory_rows(memory),
        ],
        f"The scan for the cache took {few_seconds:.1f} s and {many_seconds:.1f} s.",
        machine(),
    )


if __name__ == "__main__":
    train.run_command(main)
