"""Memory of a training, epoch by epoch: the main process, its data workers, and the growth.

    python benchmarks/memory.py                              twice 24 epochs of yolov5n on 500 synthetic images
    python benchmarks/memory.py --small                      twice 4 short epochs
    python benchmarks/memory.py --readers helpers -- --imgsz 640   flags after -- go to train.py

In the first training helper processes load the images between the steps, as where the model uses all cores. In the
second, workers read ahead, as where cores are free, for example with a GPU.

The training is train.py's own, with validation, checkpoints and charts, in this process. The peak is the largest
resident memory within the epoch and its validation; it is reset after each epoch. Shared memory counts in the peak of
each process that maps it. In the last row it is divided among them, so that row is the memory of the whole training.
The first epochs fill caches and pools, so growth is measured from the third epoch to the last.
"""

import argparse
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from benchmarks.process_memory import memory_of, reset_peak, workers_of
from benchmarks.scale import NUM_FILES, make_images, write_spec
from benchmarks.timing import Row, machine, print_rows
from utils.training import loaders

READERS = ("helpers", "workers")


class Epoch(NamedTuple):
    """Memory in MiB."""

    main: float  # peaks
    training_worker: float  # the largest one
    validation_worker: float
    gpu: float
    total: float  # of all processes, at the end of the epoch


class Watch:
    """Recorder of a run's memory after each epoch."""

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []
        self.loaders = ()

    def build_run(self, *arguments: Any) -> train.Run:
        run = self.build(*arguments)
        self.loaders = run.train_loader, run.val_loader
        return run

    def on_epoch(self, log: train.RunLog, *arguments: Any) -> None:
        self.done(log, *arguments)
        main, training, validation = (
            memory_of(),
            *([memory_of(pid) for pid in workers_of(loader)] for loader in self.loaders),
        )
        gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
        self.epochs.append(
            Epoch(
                main.peak,
                *(max([worker.peak for worker in workers], default=0.0) for workers in (training, validation)),
                gpu,
                main.share + sum(worker.share for worker in training + validation),
            )
        )
        print(
            f"memory after epoch {len(self.epochs)}: "
            + ", ".join(f"{name} {value:.0f} MiB" for name, value in self.epochs[-1]._asdict().items()),
            flush=True,
        )
        for process in ("self", *(pid for loader in self.loaders for pid in workers_of(loader))):
            reset_peak(process)
        if gpu:
            torch.cuda.reset_peak_memory_stats()

    def __enter__(self) -> "Watch":
        self.build, self.done = train.build_run, train.RunLog.on_epoch
        self.patches = (
            mock.patch.object(train, "build_run", self.build_run),
            mock.patch.object(train.RunLog, "on_epoch", lambda log, *rest: self.on_epoch(log, *rest)),
        )
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patch in self.patches:
            patch.stop()


def rows_of(epochs: list[Epoch], readers: str) -> list[Row]:
    rows = []
    for name, values in zip(
        (
            "main process, peak",
            "training worker, peak",
            "validation worker, peak",
            "GPU, peak",
            "all processes, at the end of an epoch",
        ),
        zip(*epochs),
    ):
        third, last = values[min(2, len(values) - 1)], values[-1]
        if third:  # there may be no GPU, and no workers
            rows.append(
                Row(
                    f"{name}, read by {readers}",
                    f"third epoch {third:.0f} MiB",
                    f"last epoch {last:.0f} MiB",
                    f"{last / third - 1:+.1%} in {max(len(values) - 3, 0)} epochs",
                    "flat",
                )
            )
    return rows


def train_and_watch(readers: str, epochs: int, count: int, words: list[str]) -> list[Row]:
    multiprocessing.set_start_method(None, force=True)  # this process was spawned; its workers must not be
    with (
        tempfile.TemporaryDirectory() as name,
        Watch() as watch,
        mock.patch.object(loaders, "cores_for_loading", return_value=2 if readers == "helpers" else None),
    ):
        folder = Path(name)
        make_images(folder, np.random.default_rng(0))
        split = folder / "list.txt"
        split.write_text("".join(f"{folder}/images/real/{k:04}.jpg\n" for k in range(count)))
        flags = f"--cfg yolov5n.yaml --weights= --imgsz 160 --batch-size 16 --workers 2 --epochs {epochs}"
        data = write_spec(folder, split, split)
        train.main([*flags.split(), "--data", str(data), "--project", str(folder / "runs"), *words])
    return rows_of(watch.epochs, readers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--images", "--pictures", type=int, default=NUM_FILES, help=f"at most {NUM_FILES}")
    parser.add_argument("--small", action="store_true", help="4 epochs of 64 images")
    parser.add_argument("--readers", nargs="+", default=READERS, choices=READERS)
    parser.add_argument("words", nargs="*", help="for train.py")
    args = parser.parse_args()
    epochs, count = (4, 64) if args.small else (args.epochs, args.images)
    rows = []
    for readers in args.readers:  # each in a process of its own, so that the memory of the first is not in the second
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            rows += pool.submit(train_and_watch, readers, epochs, count, args.words).result()
    print_rows(rows, machine())


if __name__ == "__main__":
    train.run_command(main)
