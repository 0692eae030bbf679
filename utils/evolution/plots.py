"""Charts of an evolution. Functions take arrays and a file name and keep no global state, so that a thread may draw.

Letters: N generations, K hyperparameters.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.metrics import Fitness
from utils.metrics import fitness as default_fitness
from utils.output.figure import new_figure, save_figure

if TYPE_CHECKING:  # imported when a chart is drawn, as in utils.output.plots
    from matplotlib.axes import Axes

DONE, BEST, PRUNED, FAILED = "#0033CC", "#E02020", "#E07000", "#606060"
COLUMNS = 6
DPI = 110
PAD = 0.04167  # inches around each panel
WIDE = 30  # a range whose ends are this many times apart gets a logarithmic axis


def plot_evolve(
    names: Sequence[str],
    values: np.ndarray,
    fitness: np.ndarray,
    file: str | Path,
    *,
    best: int,
    start: int | None = None,
    logarithmic: Sequence[str] = (),
    measure: Fitness = default_fitness,
) -> None:
    """Draw a panel per hyperparameter: fitness (N,) against its values (N, K), late generations darker.

    best, start: rows to mark with a cross and a ring. logarithmic: names whose axis is logarithmic.
    """
    values, fitness = np.asarray(values, float).reshape(len(fitness), len(names)), np.asarray(fitness, float)
    rows = math.ceil(len(names) / COLUMNS)
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
        _scale_axis(panel, column, logarithmic=name in logarithmic)
        panel.set_title(f"{name} = {column[best]:.3g}", fontsize=11)
        panel.grid(alpha=0.25)
    for panel in list(figure.axes)[len(names) :]:
        panel.set_axis_off()
    title = f"fitness = {measure}"
    if floor > fitness.min():
        title += f" (lower ones are drawn at {floor:.3g})"
    figure.supylabel(title, fontsize=12)
    save_figure(figure, file, dpi=DPI, pad=PAD)


def _scale_axis(panel: "Axes", values: np.ndarray, *, logarithmic: bool) -> None:
    """Choose the scale and the ticks of the axis of a hyperparameter's values."""
    from matplotlib.ticker import MaxNLocator

    if logarithmic and values.min() > 0 and values.max() > WIDE * values.min():
        panel.set_xscale("log")
    elif np.ptp(values) == 0:
        panel.set_xlim(values[0] - 0.5, values[0] + 0.5)
    if panel.get_xscale() == "linear":
        panel.xaxis.set_major_locator(MaxNLocator(4))


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
    """Draw the fitness (N,) of each generation by its number (N,), and the best so far.

    A failed generation (NaN) is a mark at the bottom. Fitness far below the rest is drawn at the lower edge.
    start: fitness of the start, a dotted line. repeats: (number, fitness) of the runs under other seeds.
    winner: number of the generation with the best mean over its seeds.
    """
    from matplotlib.ticker import MaxNLocator

    numbers, fitness, status = np.asarray(numbers), np.asarray(fitness, float), np.asarray(statuses)
    done = status == "done"
    floor = lowest_shown(fitness[done])
    low = np.isfinite(fitness) & (fitness < floor)
    fitness = np.where(low, floor, fitness)
    figure = new_figure(11, 6)
    panel = figure.subplots()
    if low.any():
        label = f"below {floor:.3g} ({low.sum()})"
        panel.plot(numbers[low], fitness[low], "|", color=FAILED, markersize=12, label=label)
    _draw_generations(panel, numbers, fitness, status)
    if start is not None:
        panel.axhline(start, color="black", linestyle=":", linewidth=1.3, label=f"start {start:.4g}")
    _draw_best(panel, numbers[done], fitness[done])
    if repeats:
        x, y = zip(*repeats, strict=True)
        label = "again with other seeds"
        panel.scatter(x, y, s=60, marker="D", facecolors="none", edgecolors=BEST, linewidths=1.3, label=label)
    if winner is not None:
        label = f"best over seeds: generation {winner}"
        panel.axvline(winner, color=BEST, linestyle="--", linewidth=1, alpha=0.6, label=label)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("generation", fontsize=12)
    panel.set_ylabel("fitness", fontsize=12)
    panel.grid(alpha=0.25)
    panel.legend(fontsize=10, loc="best", framealpha=0.9)
    save_figure(figure, file, dpi=DPI, pad=PAD)


def _draw_generations(panel: "Axes", numbers: np.ndarray, fitness: np.ndarray, status: np.ndarray) -> None:
    """Draw a mark per generation, by its status."""
    done, pruned, failed = status == "done", status == "pruned", status == "failed"
    panel.scatter(numbers[done], fitness[done], s=22, color=DONE, alpha=0.6, linewidths=0, label=f"done ({done.sum()})")
    if pruned.any():
        label, style = f"pruned: fitness when it was stopped ({pruned.sum()})", {"marker": "v", "color": PRUNED}
        panel.scatter(numbers[pruned], fitness[pruned], s=26, alpha=0.8, linewidths=0, label=label, **style)
    if failed.any():
        label, bottom = f"failed ({failed.sum()})", np.full(failed.sum(), 0.02)
        panel.plot(numbers[failed], bottom, "x", color=FAILED, label=label, transform=panel.get_xaxis_transform())


def lowest_shown(fitness: np.ndarray) -> float:
    """Return the lower end of a fitness axis, so that a few very low values do not squeeze all others at the top."""
    if not len(fitness):
        return 0.0
    top = float(np.max(fitness))
    return max(float(np.min(fitness)), top - 4 * (top - float(np.quantile(fitness, 0.25))))


def _draw_best(panel: "Axes", numbers: np.ndarray, fitness: np.ndarray) -> None:
    """Draw the best fitness so far as steps, with a cross where it was reached."""
    if not len(numbers):
        return
    order = np.argsort(numbers, kind="stable")
    numbers, fitness = numbers[order], fitness[order]
    best = int(np.argmax(fitness))
    panel.step(numbers, np.maximum.accumulate(fitness), where="post", color=BEST, linewidth=2, label="best so far")
    label = f"best {fitness[best]:.4g} (generation {numbers[best]})"
    panel.scatter(numbers[best], fitness[best], s=140, marker="+", color=BEST, linewidths=2.5, label=label)
