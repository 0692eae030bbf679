"""Worth of the genetic search: best fitness after a number of evaluations of known functions, without training.

    python benchmarks/evolve_search.py [--evaluations 300] [--seeds 20]

The functions live in the space of the real hyperparameters, inside their bounds:
  bowl     every gene has its own best value near the start; a few matter much, most little
  far      the best values lie anywhere in the bounds
  rotated  far, and the best value of one gene depends on the others
  noisy    far, measured with the noise of seeds (0.005); the true value of the chosen set is printed
  ripples  far, with many local maxima
  linear   far, in the plain values of all genes, noisy
Baselines: random search in the same bounds, random search on the genes' own scales, and the mutation of a single parent
that YOLOv5 users know (one of the best five, each gene times a normal step). "no recombination": ours, one parent.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import evolve
from utils.config import Hyperparameters
from utils.evolve import GENES, Generation, Search, best_first

START = {**Hyperparameters().to_dict(), "anchors": 3.0}
START = {name: START[name] for name in GENES}
MOVABLE = np.array([gene.gain > 0 for gene in GENES.values()])
NOISE = 0.005
FUNCTIONS = ("bowl", "far", "rotated", "noisy", "ripples", "linear")


def to_unit(hyp: dict[str, float], linear: bool = False) -> np.ndarray:
    """Map each value to its position between the bounds, 0 to 1, on the gene's own scale or on a linear one."""

    def place(value: float, low: float, high: float, log: bool) -> float:
        return math.log(value / low) / math.log(high / low) if log and not linear else (value - low) / (high - low)

    return np.array([place(hyp[name], low, high, log) for name, (_, low, high, log) in GENES.items()])


def from_unit(places: np.ndarray, linear: bool = False) -> dict[str, float]:
    return {
        name: low * (high / low) ** place if log and not linear else low + (high - low) * place
        for (name, (_, low, high, log)), place in zip(GENES.items(), places.tolist())
    }


def build_function(name: str, seed: int) -> Callable[[dict[str, float]], float]:
    """Return a function from hyperparameters to their true fitness, at most 0.6."""
    rng = np.random.default_rng([7, seed])
    linear = name == "linear"
    weights = rng.permutation(1 / np.arange(1, len(GENES) + 1)) * MOVABLE
    weights /= weights.sum()
    near = np.clip(to_unit(START, linear) + rng.normal(0, 0.3, len(GENES)), 0, 1)
    best = near if name == "bowl" else rng.random(len(GENES))
    turn = np.linalg.qr(rng.normal(size=(len(GENES), len(GENES))))[0] if name == "rotated" else np.eye(len(GENES))

    def fitness(hyp: dict[str, float]) -> float:
        away = (to_unit(hyp, linear) - best) * MOVABLE
        value = 0.6 * math.exp(-2 * np.sum(weights * away**2) - 2 * np.sum(weights * (turn @ away) ** 2))
        if name == "ripples":
            value -= 0.3 * float(np.mean(weights * (1 - np.cos(6 * np.pi * away))))
        return value

    return fitness


# ---- the searches: (records, number, rng) -> hyperparameters


def random_plain(records: list[Generation], number: int, rng: np.random.Generator) -> dict[str, float]:
    return keep_fixed(from_unit(rng.random(len(GENES)), linear=True))


def random_scaled(records: list[Generation], number: int, rng: np.random.Generator) -> dict[str, float]:
    return keep_fixed(from_unit(rng.random(len(GENES))))


def keep_fixed(hyp: dict[str, float]) -> dict[str, float]:
    return {name: value if GENES[name].gain else START[name] for name, value in hyp.items()}


def single_parent(records: list[Generation], number: int, rng: np.random.Generator) -> dict[str, float]:
    """Mutate one of the best five, drawn by its lead over the fifth.

    Each gene is multiplied by 1 + a normal step with probability 0.8.
    """
    parents = best_first(records)[:5]
    lead = np.array([parent.fitness for parent in parents]) - parents[-1].fitness + 1e-6
    parent = parents[rng.choice(len(parents), p=lead / lead.sum())]
    factors = np.ones(len(GENES))
    while (factors == 1).all():
        size = 0.2 * rng.random()
        steps = np.array([gene.gain * size * rng.normal() for gene in GENES.values()])
        factors = (1 + steps * (rng.random(len(steps)) < 0.8)).clip(0.3, 3.0)
    return {
        name: min(max(parent.hyp[name] * factor, low), high)
        for (name, (_, low, high, _)), factor in zip(GENES.items(), factors.tolist())
    }


def ours(records: list[Generation], number: int, rng: np.random.Generator) -> dict[str, float]:
    return Search(START, int(rng.integers(2**31))).propose((number, 0), records).hyp


def without_recombination(records: list[Generation], number: int, rng: np.random.Generator) -> dict[str, float]:
    before, evolve.RECOMBINATION = evolve.RECOMBINATION, 0.0
    try:
        return ours(records, number, rng)
    finally:
        evolve.RECOMBINATION = before


SEARCHES = {"random": random_plain, "random, scaled": random_scaled, "single parent": single_parent,
            "no recombination": without_recombination, "ours": ours}  # fmt: skip


def run(search: Callable, name: str, seed: int, evaluations: int) -> float:
    """Return the true fitness of the best set that the search measured."""
    function, rng = build_function(name, seed), np.random.default_rng([seed, 1])
    records: list[Generation] = []
    for number in range(evaluations):
        hyp = search(records, number, rng) if number else dict(START)
        measured = function(hyp) + (NOISE * rng.normal() if name in ("noisy", "linear") else 0)
        records.append(Generation(number, hyp, 0, "start" if number == 0 else "child", status="done", fitness=measured))
    return function(best_first(records)[0].hyp)


def compare(evaluations: int, seeds: int, names: tuple[str, ...] = FUNCTIONS) -> dict[str, np.ndarray]:
    """Return the results (functions, seeds) by the name of the search."""
    return {
        title: np.array([[run(search, name, seed, evaluations) for seed in range(seeds)] for name in names])
        for title, search in SEARCHES.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    results = compare(options.evaluations, options.seeds)
    start = [np.mean([build_function(name, seed)(START) for seed in range(options.seeds)]) for name in FUNCTIONS]
    print(f"Mean best fitness (at most 0.6) over {options.seeds} seeds after {options.evaluations} evaluations")
    print(f"{'':>18}", *(f"{name:>9}" for name in FUNCTIONS), f"{'mean':>9}   ours better in")
    print(f"{'start':>18}", *(f"{value:9.4f}" for value in start), f"{np.mean(start):9.4f}")
    for title, values in results.items():
        wins = "" if title == "ours" else f"{np.mean(results['ours'] > values):5.0%} of {values.size} runs"
        print(f"{title:>18}", *(f"{value:9.4f}" for value in values.mean(1)), f"{values.mean():9.4f}   {wins}")


if __name__ == "__main__":
    main()
