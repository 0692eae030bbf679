"""A whole training epoch with --workers 1, against the training steps alone on batches in memory.

    python benchmarks/epoch.py --data coco128.yaml
    python benchmarks/epoch.py -- --imgsz 320 --cache off        flags after -- go to train.py

The ratio is the rate of the epoch divided by the rate of the steps alone: 1 means that loading costs nothing. If the
model uses all cores, train.py loads between the steps. The last rows use a worker process that reads ahead.
"""

import argparse
import dataclasses
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from benchmarks.batches import BatchesInMemory
from benchmarks.timing import Row, compare, format_spread, print_rows
from utils.device import tune_malloc
from utils.distributed import Distributed
from utils.training import loaders
from utils.training.signals import SignalHandler

WORDS = "--cfg yolov5n.yaml --imgsz 320 --batch-size 16 --workers 1 --epochs 100 --device cpu --noautoanchor".split()


def epoch(run: train.Run) -> None:
    """Run one epoch of train.py's loop. The state moves on, so the next call runs the next epoch."""
    run.progress.step = 0
    with SignalHandler() as signals:
        train.train_one_epoch(run, train.Observer(), train.Checkpoints(), signals)
    run.progress.epoch += 1


def measure(words: list[str], cache: str, pairs: int, ahead: bool) -> Row:
    group = Distributed.join().use("cpu", None)
    with mock.patch.object(loaders, "cores_for_loading", return_value=None) if ahead else nullcontext():
        run = train.build_run(train.resolve_launch(train.parse_args([*WORDS, *words, "--cache", cache]), []), group)
    alone = dataclasses.replace(run, train_loader=BatchesInMemory(run.train_loader))
    timing = compare(lambda: epoch(alone), lambda: epoch(run), pairs=pairs)
    num_images = len(run.data.train)
    sides = [f"{format_spread([num_images / value for value in side])} images/s" for side in timing]
    run.train_loader.close()
    part = (
        f"training epoch, {num_images} pictures, {run.options.imgsz}, --cache {cache}{', read ahead' if ahead else ''}"
    )
    return Row(part, *sides, f"{format_spread(timing.ratios)} of the rate", "-" if ahead else "0.93 of the rate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/shapes.yaml")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    tune_malloc()
    print_rows(
        [
            measure(["--data", options.data, *options.words], cache, options.pairs, ahead)
            for ahead in (False, True)
            for cache in ("ram", "off")
        ],
        "Without the flag, --cache is ram for a set as small as this one.",
    )


if __name__ == "__main__":
    main()
