"""Fit of anchors to 850 000 boxes in 1000 generations, against the metric written as ratios in torch.

python benchmarks/autoanchor.py                   generations of the baseline are timed and scaled up to 1000
python benchmarks/autoanchor.py --baseline-generations 1000
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import compare, print_rows, row
from utils.autoanchor import _draw_factors, _evolve, anchor_fitness, fit_anchors

THRESHOLD, ANCHORS, GENERATIONS = 4.0, 9, 1000


def synthetic_sizes(count: int) -> np.ndarray:
    """Return (N, 2) widths and heights in pixels, distributed like those of COCO at 640."""
    rng = np.random.default_rng(0)
    area_root = np.exp(rng.normal(np.log(60), 1.0, count)).clip(3, 630)
    aspect = np.exp(rng.normal(0, 0.5, count))
    return np.stack([area_root * aspect**0.5, area_root / aspect**0.5], 1).clip(2, 640).astype(np.float32)


def fitness_as_ratios(anchors: torch.Tensor, wh: torch.Tensor) -> float:
    ratios = wh[:, None] / anchors[None]  # (N, n, 2)
    closeness = torch.min(ratios, 1 / ratios).min(2)[0]
    best = closeness.max(1)[0]
    return float((best * (best > 1 / THRESHOLD).float()).mean())


def evolve_as_ratios(anchors: np.ndarray, wh: torch.Tensor, generations: int) -> np.ndarray:
    rng, best = np.random.default_rng(0), fitness_as_ratios(torch.from_numpy(anchors), wh)
    for _ in range(generations):
        candidate = np.maximum(anchors * _draw_factors(anchors.shape, rng), 2.0).astype(np.float32)
        fitness = fitness_as_ratios(torch.from_numpy(candidate), wh)
        if fitness > best:
            anchors, best = candidate, fitness
    return anchors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boxes", type=int, default=850_000)
    parser.add_argument("--baseline-generations", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    wh, share = synthetic_sizes(options.boxes), options.baseline_generations / GENERATIONS
    start, tensor = fit_anchors(wh, ANCHORS, THRESHOLD, 0, np.random.default_rng(0)), torch.from_numpy(wh)
    timing = compare(
        lambda: evolve_as_ratios(start, tensor, options.baseline_generations),
        lambda: _evolve(start, wh, THRESHOLD, GENERATIONS, np.random.default_rng(0), False),
        pairs=options.pairs,
    )
    timing = type(timing)([seconds / share for seconds in timing.baseline], timing.ours)
    fitted = _evolve(start, wh, THRESHOLD, GENERATIONS, np.random.default_rng(0), False)
    gap = abs(anchor_fitness(fitted, wh, THRESHOLD) - fitness_as_ratios(torch.from_numpy(np.float32(fitted)), tensor))
    print_rows(
        [row(f"AutoAnchor, {options.boxes} boxes, {GENERATIONS} generations", timing, at_least="20", unit="s")],
        f"The fitness of the fitted anchors by both metrics differs by {gap:.1e}. The baseline ran "
        f"{options.baseline_generations} generations; its time is scaled up to {GENERATIONS}.",
    )


if __name__ == "__main__":
    main()
