"""Accuracy with each speed-up on and off: the same training over several seeds.

    python benchmarks/accuracy.py --data bccd.yaml                 all variants and seeds one after the other: hours
    python benchmarks/accuracy.py --data bccd.yaml --variants all-on no-bf16 --seeds 0 1 2

Prints mAP50 and mAP50-95 of the best epoch by variant and seed. Speed-ups that give the same bits stay on: malloc
settings, the loss's own backward pass, NMS, caches. With --project, the finished runs of an earlier call are
kept and the others are run. --finished trains nothing and prints the results that exist.
"""

import argparse
import csv
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import optim
from utils.images import augment
from utils.metrics import fitness

WORDS = "--cfg yolov5n.yaml --imgsz 320 --batch-size 16 --epochs 60 --cos-lr --workers 1 --noplots --exist-ok".split()
VARIANTS = {
    "all-on": "default",
    "no-bf16": "float32 instead of bfloat16 (--amp off)",
    "no-resize": "a general warp instead of a resize for mosaics",
    "no-channels-last": "the contiguous memory format",
    "no-fused": "optimizer and EMA as loops over the tensors",
}


@contextmanager
def without(variant: str) -> Iterator[list[str]]:
    """Switch a speed-up off. Yields the flags to add to the command line."""
    with ExitStack() as patches:
        if variant == "no-resize":
            patches.enter_context(mock.patch.object(augment.Warp, "on_whole_pixels", lambda warp: warp))
        if variant == "no-channels-last":
            patches.enter_context(mock.patch.object(torch, "channels_last", torch.contiguous_format))
        if variant == "no-fused":
            patches.enter_context(mock.patch.object(optim, "_kernel", return_value={"foreach": False}))
            patches.enter_context(mock.patch.object(torch, "_foreach_lerp_", lerp_one_by_one))
        yield ["--amp", "off"] if variant == "no-bf16" else []


def lerp_one_by_one(own: list[torch.Tensor], theirs: list[torch.Tensor], weight: float) -> None:
    for mine, other in zip(own, theirs, strict=True):
        mine.mul_(1 - weight).add_(other, alpha=weight)


def train_variant(variant: str, words: list[str]) -> None:
    import train

    with without(variant) as extra:
        train.main([*words, *extra])


def best_epoch(folder: Path) -> tuple[float, float, int] | None:
    """Return mAP50 and mAP50-95 of the best epoch and the number of epochs, or None without results."""
    file = folder / "results.csv"
    if not file.is_file():
        return None
    with file.open(newline="") as lines:
        rows = [{key.strip(): float(value) for key, value in line.items()} for line in csv.DictReader(lines)]
    scores = [(row["metrics/mAP_0.5"], row["metrics/mAP_0.5:0.95"]) for row in rows]
    return (*max(scores, key=lambda score: fitness(0, 0, *score)), len(rows)) if scores else None


def measure(variant: str, seed: int, options: argparse.Namespace) -> tuple[float, float] | None:
    """Return mAP50 and mAP50-95 of the run. Train it if it is missing; with --finished return None instead."""
    folder = Path(options.project) / f"{variant}-{seed}"
    found = best_epoch(folder)
    if not (found and found[2] == options.epochs and (folder / "weights" / "best.pt").is_file()):
        if options.finished:
            return None
        words = [*WORDS, "--data", options.data, "--epochs", options.epochs, "--seed", seed]
        words += ["--project", options.project, "--name", folder.name]
        subprocess.run(
            [sys.executable, __file__, "--work", variant, "--", *map(str, words)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        found = best_epoch(folder)
    return found[:2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/shapes.yaml")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--project", default="runs/accuracy")
    parser.add_argument("--finished", action="store_true", help="train nothing")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return train_variant(options.work, options.words)
    heads = [f"seed {seed}" for seed in options.seeds]
    print(f"| variant | {' | '.join(heads)} | mean mAP50 | mean mAP50-95 |\n|{' --- |' * (len(heads) + 3)}")
    for variant in options.variants:
        scores = [measure(variant, seed, options) for seed in options.seeds]
        cells = ["-" if score is None else "{:.3f} / {:.3f}".format(*score) for score in scores]
        means = [f"{mean(column):.3f}" for column in zip(*filter(None, scores))] or ["-", "-"]
        print(f"| {VARIANTS[variant]} | {' | '.join(cells)} | {' | '.join(means)} |", flush=True)
    print(f"\nmAP50 / mAP50-95 of the best of {options.epochs} epochs; {Path(options.data).stem}, {' '.join(WORDS)}")


if __name__ == "__main__":
    main()
