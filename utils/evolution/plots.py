"""The two pictures of an evolution. Like utils.output.plots: arrays in, a file out, no global state, safe in a thread.

Letters: N generations, K hyperparameters.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.output.figure import new_figure, save_figure

if TYPE_CHECKING:  # imported when a chart is drawn, as in utils.output.plots
    from matplotlib.axes import Axes

DONE, BEST, PRUNED, FAILED = "#0033CC", "#E02020", "#E07000", "#606060"
COLUMNS = 6
DPI = 110
PAD = 3 / 72  # inches around each panel
WIDE = 30  # a range of values this many times apart is drawn on a logarithmic axis


def plot_evolve(
    names: Sequence[str],
    values: np.ndarray,
    fitness: np.ndarray,
    file: str | Path,
    *,
    best: int,
    start: int | None = None,
    logarithmic: Sequence[str] = (),
) -> None:
    """A panel per hyperparameter: fitness (N,) against its values (N, K), late generations darker.

    best, start: rows to mark with a cross and a ring. logarithmic: names whose axis is logarithmic.
    """
    from matplotlib.ticker import MaxNLocator

    values, fitness = np.asarray(values, float).reshape(len(fitness), len(names)), np.asarray(fitness, float)
    rows = math.ceil(len(names) / COLUMNS)
    fitness_title = "fitness = 0.1 mAP@0.5 + 0.9 mAP@0.5:0.95"
    figure = new_figure(2.9 * COLUMNS, 2.5 * rows + 0.6)
    panels = figure.subplots(rows, COLUMNS, squeeze=False, sharey=True).flat
    floor = lowest_shown(fitness)
    age = np.linspace(0.15, 1.0, len(fitness)) if len(fitness) > 1 else np.ones(1)
    for panel, name, column in zip(panels, names, values.T, strict=False):
        panel.scatter(
            column, np.maximum(fitness, floor), s=14, c=age, cmap="viridis_r", vmin=0, vmax=1, alpha=0.75, linewidths=0
        )
        if start is not None:
            panel.scatter(column[start], fitness[start], s=70, facecolors="none", edgecolors="black", linewidths=1.2)
        panel.scatter(column[best], fitness[best], s=90, marker="+", color=BEST, linewidths=2.2)
        if name in logarithmic and column.min() > 0 and column.max() > WIDE * column.min():
            panel.set_xscale("log")
        elif np.ptp(column) == 0:
            panel.set_xlim(column[0] - 0.5, column[0] + 0.5)
        if panel.get_xscale() == "linear":
            panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.set_title(f"{name} = {column[best]:.3g}", fontsize=11)
        panel.grid(alpha=0.25)
    for panel in list(figure.axes)[len(names) :]:
        panel.set_axis_off()
    if floor > fitness.min():
        fitness_title += f" (lower ones stand at {floor:.3g})"
    figure.supylabel(fitness_title, fontsize=12)
    save_figure(figure, file, dpi=DPI, pad=PAD)


def plot_evolve_progress(
    numbers: np.ndarray,
    fitness: np.ndarray,
    statuses: Sequence[str],
    file: str | Path,
    *,
    start: float | None = None,
    repeats: Sequence[tuple[int, float]] = (),
    winner: int | None = None,
) -> None:
    """Fitness (N,) of each generation by its number (N,), and the best so far; a failed one (NaN) is a mark below.

    start: fitness of the start, drawn as a line. repeats: number and fitness of the runs under other seeds. winner:
    number of the generation with the best mean over its seeds. What lies far below the rest stands at the lower edge.
    """
    from matplotlib.ticker import MaxNLocator

    numbers, fitness, statuses = np.asarray(numbers), np.asarray(fitness, float), np.asarray(statuses)
    figure = new_figure(11, 6)
    panel = figure.subplots()
    done, pruned, failed = (statuses == word for word in ("done", "pruned", "failed"))
    floor = lowest_shown(fitness[done])
    low = np.isfinite(fitness) & (fitness < floor)
    fitness = np.where(low, floor, fitness)
    if low.any():
        panel.plot(
            numbers[low], fitness[low], "|", color=FAILED, markersize=12, label=f"below {floor:.3g} ({low.sum()})"
        )
    panel.scatter(numbers[done], fitness[done], s=22, color=DONE, alpha=0.6, linewidths=0, label=f"done ({done.sum()})")
    if pruned.any():
        panel.scatter(
            numbers[pruned],
            fitness[pruned],
            s=26,
            marker="v",
            color=PRUNED,
            alpha=0.8,
            linewidths=0,
            label=f"pruned: fitness when it was stopped ({pruned.sum()})",
        )
    if failed.any():
        panel.plot(
            numbers[failed],
            np.zeros(failed.sum()) + 0.02,
            "x",
            color=FAILED,
            label=f"failed ({failed.sum()})",
            transform=panel.get_xaxis_transform(),
        )
    if start is not None:
        panel.axhline(start, color="black", linestyle=":", linewidth=1.3, label=f"start {start:.4g}")
    _draw_best(panel, numbers[done], fitness[done])
    if repeats:
        panel.scatter(
            *zip(*repeats, strict=True),
            s=60,
            marker="D",
            facecolors="none",
            edgecolors=BEST,
            linewidths=1.3,
            label="again with other seeds",
        )
    if winner is not None:
        panel.axvline(
            winner, color=BEST, linestyle="--", linewidth=1, alpha=0.6, label=f"best over seeds: generation {winner}"
        )
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("generation", fontsize=12)
    panel.set_ylabel("fitness", fontsize=12)
    panel.grid(alpha=0.25)
    panel.legend(fontsize=10, loc="best", framealpha=0.9)
    save_figure(figure, file, dpi=DPI, pad=PAD)


def lowest_shown(fitness: np.ndarray) -> float:
    """Where a fitness axis begins: a few disasters must not press all the others together at the top."""
    if not len(fitness):
        return 0.0
    top = float(np.max(fitness))
    return max(float(np.min(fitness)), top - 4 * (top - float(np.quantile(fitness, 0.25))))


def _draw_best(panel: "Axes", numbers: np.ndarray, fitness: np.ndarray) -> None:
    """Steps of the best fitness so far, a cross where it was reached."""
    if not len(numbers):
        return
    order = np.argsort(numbers, kind="stable")
    numbers, fitness = numbers[order], fitness[order]
    best = int(np.argmax(fitness))
    panel.step(numbers, np.maximum.accumulate(fitness), where="post", color=BEST, linewidth=2, label="best so far")
    panel.scatter(
        numbers[best],
        fitness[best],
        s=140,
        marker="+",
        color=BEST,
        linewidths=2.5,
        label=f"best {fitness[best]:.4g} (generation {numbers[best]})",
    )
