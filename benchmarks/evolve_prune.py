"""Epochs that --evolve-prune saves, and how often it keeps the winner: a replay of recorded curves, no training.

    python benchmarks/evolve_prune.py [evolve.csv ...]
    python benchmarks/evolve_prune.py --record FLAGS OF TRAIN.PY      record such a table: evolve without pruning

The curves are those of generations that all ran to their end: fitness after every epoch, in the column `curve` of an
evolve.csv. Two recorded tables are in this folder. One has 24 generations of a tiny model on half of the built-in data.
The other has 8 of a larger model, too few for the rule to save much. Each table is replayed in the recorded order and
in random orders, because the order in which good and bad ideas come is chance. Both are done with one and two workers.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from utils.evolution.csv_store import read_table
from utils.evolve import GENES, falls_behind

RECORDED = [Path(__file__).with_name(name) for name in ("evolve_curves.csv", "evolve_curves_few.csv")]
ORDERS = 200


def replay(curves: Sequence[Sequence[float]], workers: int = 1) -> list[int]:
    """Return the epochs that each generation would have run. `workers` of them run at the same pace."""
    lasted = [0] * len(curves)
    known: list[Sequence[float]] = []  # curves of generations that have ended, as far as they ran
    running: list[int] = []
    waiting = list(range(len(curves)))
    while waiting or running:
        while waiting and len(running) < workers:
            running.append(waiting.pop(0))
        for number in list(running):
            lasted[number] += 1
            curve, whole = curves[number][: lasted[number]], len(curves[number])
            if lasted[number] == whole or falls_behind(curve, known, whole):
                running.remove(number)
                known.append(curve)
    return lasted


def measure(curves: Sequence[Sequence[float]], workers: int, orders: Sequence[np.ndarray]) -> tuple[float, ...]:
    """Return the mean share of epochs saved, the share of orders that keep the winner, and the mean loss of fitness."""
    saved, kept, lost = [], [], []
    for order in orders:
        ordered = [curves[k] for k in order]
        lasted = replay(ordered, workers)
        saved.append(1 - sum(lasted) / sum(map(len, ordered)))
        ends = [curve[-1] for curve, epochs in zip(ordered, lasted) if epochs == len(curve)]
        best = max(curve[-1] for curve in ordered)
        kept.append(max(ends) == best)
        lost.append(best - max(ends))
    return float(np.mean(saved)), float(np.mean(kept)), float(np.mean(lost))


def read_curves(file: Path) -> list[tuple[float, ...]]:
    """Read the curves of the generations that ran to their end, in the order of their numbers."""
    header = file.read_text().splitlines()[0]
    names = [name for name in GENES if name in [cell.strip() for cell in header.split(",")]]
    records, _ = read_table(file, names)
    ordered = sorted(records, key=lambda record: record.number)
    return [record.curve for record in ordered if record.status == "done" and record.curve]


def record(flags: list[str]) -> None:
    """Run an evolution that validates every epoch of every generation and prunes none."""
    with mock.patch("utils.evolution.run.falls_behind", return_value=False):
        train.main([*flags, "--evolve-prune"])


def main() -> None:
    if "--record" in sys.argv[1:2]:
        return record(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, default=RECORDED)
    for file in parser.parse_args().tables:
        curves = read_curves(file)
        print(
            f"{file.name}: {len(curves)} generations of {len(curves[0])} epochs, fitness "
            f"{min(c[-1] for c in curves):.4f} to {max(c[-1] for c in curves):.4f} (start {curves[0][-1]:.4f})"
        )
        rng = np.random.default_rng(0)
        given, shuffled = [np.arange(len(curves))], [rng.permutation(len(curves)) for _ in range(ORDERS)]
        for title, orders in (("recorded order", given), (f"{ORDERS} orders", shuffled)):
            for workers in (1, 2):
                saved, kept, lost = measure(curves, workers, orders)
                print(
                    f"  {title:>14}, {workers} worker(s): saves {saved:4.0%} of the epochs, "
                    f"keeps the winner in {kept:4.0%}, costs {lost:.4f} of fitness on average"
                )


if __name__ == "__main__":
    main()
