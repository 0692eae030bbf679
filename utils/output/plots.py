"""Charts of training and validation. Functions take arrays and a file name, and never change the caller's arrays.

They keep no global state, so that a background thread may draw (see Plotter).

Letters: C classes, M labels.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from utils.errors import UserError
from utils.metrics import Curves
from utils.output.drawing import PALETTE, Names, as_array, class_name
from utils.output.figure import new_figure, save_figure
from utils.output.fonts import choose_font
from utils.results_csv import METRICS, TRAIN_LOSSES, VAL_LOSSES, split_table

if TYPE_CHECKING:  # importing matplotlib takes half a second; it is done when a chart is drawn, in the background
    from matplotlib.axes import Axes

MAX_LEGEND = 20  # up to this number, each class has a legend entry
MAX_NAMED = 30  # below this number, names of classes fit on an axis at full size
MEAN_COLOR = "#0033CC"


def plot_labels(labels: np.ndarray, names: Names, file: str | Path) -> None:
    """Draw classes, shapes, centres and sizes of a data set's labels (M, 5) = class, x, y, w, h in 0...1."""
    labels = as_array(labels).reshape(-1, 5)
    figure = new_figure(10, 9)
    (bars, shapes), (centres, sizes) = figure.subplots(2, 2)
    _class_histogram(bars, labels[:, 0].astype(int), names)
    shapes.imshow(_overlaid_boxes(labels[:1000]))
    shapes.set(title="box shapes, centred", xticks=[], yticks=[])
    _density(centres, labels[:, 1], labels[:, 2], "x", "y")
    centres.invert_yaxis()  # as in an image: y points down
    centres.set_title("box centres")
    _density(sizes, labels[:, 3], labels[:, 4], "width", "height")
    sizes.set_title("box sizes")
    save_figure(figure, file, dpi=150)


def plot_label_correlogram(labels: np.ndarray, file: str | Path) -> None:
    """Draw x, y, width and height of labels (M, 5) against each other, with histograms on the diagonal."""
    values = as_array(labels).reshape(-1, 5)[:, 1:]
    titles = ("x", "y", "width", "height")
    figure = new_figure(10, 10)
    axes = figure.subplots(4, 4)
    for row in range(4):
        for column in range(4):
            panel = axes[row, column]
            if column > row:
                panel.set_axis_off()
            elif column == row:
                panel.hist(values[:, row], bins=50, range=(0, 1), color=MEAN_COLOR)
                panel.set(xlim=(0, 1), yticks=[])
            else:
                _density(panel, values[:, column], values[:, row], "", "")
            panel.set_xlabel(titles[column] if row == 3 else "")
            panel.set_ylabel(titles[row] if column == 0 else "")
            panel.tick_params(labelbottom=row == 3, labelleft=column == 0)
    save_figure(figure, file, dpi=150)


RESULT_PANELS = (*TRAIN_LOSSES, *METRICS[:2], *VAL_LOSSES, *METRICS[2:])  # two rows of five


def plot_results(csv_file: str | Path, file: str | Path) -> None:
    """Draw losses and metrics of a results.csv against the epoch.

    Cells without a number are gaps. Panels of absent columns are empty.
    """
    columns = _read_columns(csv_file)
    epochs = columns.get("epoch", np.empty(0))
    figure = new_figure(15, 7)
    for panel, key in zip(figure.subplots(2, 5).flat, RESULT_PANELS, strict=True):
        values = columns.get(key, np.full(len(epochs), np.nan))
        panel.plot(epochs, values, marker=".", markersize=5, linewidth=1.5, color=MEAN_COLOR, label="each epoch")
        panel.plot(epochs, _gaussian(values, sigma=3), linestyle=":", linewidth=2.5, color="#E07000", label="smoothed")
        panel.set_title(key, fontsize=12)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.25)
        if not np.isfinite(values).any():
            panel.set(xticks=[], yticks=[])
            panel.text(0.5, 0.5, "no values", transform=panel.transAxes, ha="center", va="center", color="gray")
    figure.axes[1].legend(fontsize=10)
    figure.supxlabel("epoch", fontsize=11)
    save_figure(figure, file, dpi=150)


def plot_study(tables: Mapping[str, np.ndarray], sizes: Sequence[int], file: str | Path) -> None:
    """Draw mAP50-95 in percent against milliseconds of inference: a line per weights, a point per image size.

    tables: name of the weights -> rows (S, 10) as in study_*.txt. sizes: (S,) pixels.
    """
    figure = new_figure(8, 5)
    panel = figure.subplots()
    for number, (name, rows) in enumerate(tables.items()):
        rows = np.atleast_2d(as_array(rows))
        milliseconds, percent = rows[:, 8], 100 * rows[:, 3]
        panel.plot(milliseconds, percent, marker=".", markersize=8, color=_on_white(number), label=_shorten(name))
        for size, x, y in zip(sizes, milliseconds, percent, strict=True):
            panel.annotate(str(size), (x, y), xytext=(3, 3), textcoords="offset points", fontsize=7)
    panel.set(xlabel="inference, milliseconds per image", ylabel="mAP50-95, percent")
    panel.set_xlim(left=0)
    panel.grid(alpha=0.25)
    panel.legend()
    save_figure(figure, file, dpi=200)


def plot_curve(
    x: np.ndarray,
    ys: np.ndarray,
    names: Names,
    file: str | Path,
    *,
    xlabel: str = "Confidence",
    ylabel: str = "Metric",
    classes: Sequence[int] | None = None,
    mean: np.ndarray | None = None,
) -> None:
    """Draw a metric against confidence: x (1000,), a row of ys (C, 1000) per class, and their mean with its best point.

    names: one per row of ys; or, with `classes` (the class id of each row), the data set's names by class id.
    mean: (1000,), by default the mean of the rows, smoothed over a tenth of the range.
    """
    x, ys = as_array(x), np.atleast_2d(as_array(ys))
    if mean is None:
        mean = _box_filter(ys.mean(axis=0), fraction=0.1) if len(ys) else np.zeros_like(x)
    best = int(np.argmax(mean))
    summary = f"all classes {mean[best]:.2f} at {x[best]:.3f}"
    entries = [_shorten(name) for name in _row_names(names, len(ys), classes)]
    _curves(x, ys, entries, as_array(mean), summary, file, (xlabel, ylabel))


def plot_pr_curve(curves: Curves, ap50: np.ndarray, names: Names, file: str | Path) -> None:
    """Draw precision against recall at IoU 0.5, with each class's AP.

    curves: .recall_grid (1000,), .precision_at_recall (C', 1000), .classes (C',). ap50: (C',) in the same order.
    names: by class id, so that a class without predictions shifts no legend entry.
    """
    x, ys, ap50 = as_array(curves.recall_grid), np.atleast_2d(as_array(curves.precision_at_recall)), as_array(ap50)
    entries = _row_names(names, len(ys), as_array(curves.classes).astype(int).tolist())
    entries = [f"{_shorten(name)} {value:.3f}" for name, value in zip(entries, ap50, strict=True)]
    mean = ys.mean(axis=0) if len(ys) else np.zeros_like(x)
    average = ap50.mean() if len(ap50) else 0.0
    _curves(x, ys, entries, mean, f"all classes {average:.3f} mAP@0.5", file, ("Recall", "Precision"))


def plot_confusion(matrix: np.ndarray, names: Names, file: str | Path) -> None:
    """Draw a confusion matrix (C+1, C+1): rows predicted, columns true, background last. Columns are scaled to 1."""
    counts = as_array(matrix).astype(np.float64)
    num_classes = len(counts) - 1
    shares = counts / np.maximum(counts.sum(axis=0, keepdims=True), 1e-9)
    figure = new_figure(12, 10)
    panel = figure.subplots()
    heat_map = panel.imshow(np.where(shares < 0.005, np.nan, shares), cmap="Blues", vmin=0.0, vmax=1.0)
    figure.colorbar(heat_map, ax=panel, shrink=0.8)
    if num_classes < MAX_NAMED:
        size = float(np.interp(num_classes, (3, MAX_NAMED), (14, 7)))
        for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
            share = shares[row, column]
            style = {"color": "white" if share > 0.5 else "black", "fontsize": size, "ha": "center", "va": "center"}
            panel.text(column, row, f"{share:.2f}", **style)
    if num_classes < 99:
        ticks = [_shorten(class_name(names, i)) for i in range(num_classes)] + ["background"]
        size = float(np.interp(num_classes, (10, MAX_NAMED, 99), (12, 9, 6)))
        style = {"fontsize": size, "parse_math": False}
        panel.set_xticks(range(num_classes + 1), ticks, rotation=90 if num_classes > 5 else 0, **style)
        panel.set_yticks(range(num_classes + 1), ticks, **style)
    panel.set_title("Confusion matrix, columns normalised", fontsize=14)
    panel.set_xlabel("True", fontsize=13)
    panel.set_ylabel("Predicted", fontsize=13)
    save_figure(figure, file, dpi=150)


# ---- parts of charts


def _curves(
    x: np.ndarray,
    ys: np.ndarray,
    entries: Sequence[str],
    mean: np.ndarray,
    summary: str,
    file: str | Path,
    axis_titles: tuple[str, str],
) -> None:
    """Draw a line per class and a thick one for their mean. More than MAX_LEGEND classes share one grey."""
    figure = new_figure(10, 6)
    panel = figure.subplots()
    named = len(ys) <= MAX_LEGEND
    lines = []
    for i, y in enumerate(ys):
        lines += panel.plot(x, y, color=_on_white(i) if named else "darkgray", linewidth=1.5 if named else 0.7)
    mean_line = panel.plot(x, mean, color="black", linewidth=3.5)
    handles, texts = (lines + mean_line, [*entries, summary]) if named else (mean_line, [summary])
    # Numbers first, texts later: matplotlib would drop an entry that begins with _, and parse $ as a formula.
    legend = panel.legend(handles, [str(i) for i in range(len(handles))], bbox_to_anchor=(1.02, 1), loc="upper left")
    for entry, text in zip(legend.get_texts(), texts, strict=True):
        entry.set(text=text, parse_math=False)
    panel.set(xlim=(0, 1), ylim=(0, 1.01), title=f"{axis_titles[1]} against {axis_titles[0].lower()}")
    panel.set_xlabel(axis_titles[0], fontsize=12)
    panel.set_ylabel(axis_titles[1], fontsize=12)
    panel.grid(alpha=0.25)
    save_figure(figure, file, dpi=150)


def _class_histogram(panel: "Axes", classes: np.ndarray, names: Names) -> None:
    num_classes = max(len(names), int(classes.max(initial=-1)) + 1, 1)
    counts = np.bincount(classes, minlength=num_classes)
    bars = panel.bar(range(num_classes), counts, color=[_on_white(i) for i in range(num_classes)])
    panel.set(ylabel="boxes", title=f"{len(classes)} boxes in {num_classes} classes")
    if num_classes < MAX_NAMED:
        ticks = [_shorten(class_name(names, i)) for i in range(num_classes)]
        size = 8 if num_classes > 15 else 10
        panel.set_xticks(range(num_classes), ticks, rotation=90, fontsize=size, parse_math=False)
        panel.bar_label(bars, fontsize=size - 1, rotation=90 if num_classes > 8 else 0, padding=2)
        panel.margins(y=0.12)
    else:
        panel.set_xlabel("classes")


def _overlaid_boxes(labels: np.ndarray, side: int = 1000) -> np.ndarray:
    """Return a white RGB canvas with the boxes of labels (M, 5), all centred, large ones below small ones."""
    canvas = np.full((side, side, 3), 255, dtype=np.uint8)
    for index, _, _, w, h in labels[np.argsort(-labels[:, 3] * labels[:, 4], kind="stable")]:
        half = np.array([w, h]) * side / 2
        low, high = (side / 2 - half).round().astype(int), (side / 2 + half).round().astype(int)
        rgb = [round(255 * part) for part in _on_white(int(index))]
        cv2.rectangle(canvas, tuple(low.tolist()), tuple(high.tolist()), rgb, 2, cv2.LINE_AA)
    return canvas


def _density(panel: "Axes", x: np.ndarray, y: np.ndarray, xlabel: str, ylabel: str) -> None:
    """Draw a 2-D histogram over the unit square. For contrast, colours saturate at the 0.9 quantile of filled cells."""
    counts, _, _ = np.histogram2d(x, y, bins=50, range=((0, 1), (0, 1)))
    filled = counts[counts > 0]
    top = max(float(np.quantile(filled, 0.9)), 1.0) if len(filled) else 1.0
    shown = np.where(counts > 0, counts, np.nan).T
    panel.imshow(shown, origin="lower", extent=(0, 1, 0, 1), cmap="viridis_r", vmin=0, vmax=top, aspect="auto")
    panel.set(xlabel=xlabel, ylabel=ylabel)


def _on_white(index: int) -> tuple[float, float, float]:
    """Return the matplotlib colour of a class on white: light palette entries are darkened to be visible."""
    rgb = np.array(PALETTE[index % len(PALETTE)]) / 255
    lightness = float(rgb @ (0.299, 0.587, 0.114))
    red, green, blue = rgb * min(1.0, 0.62 / max(lightness, 1e-6))
    return red, green, blue


def _read_columns(csv_file: str | Path) -> dict[str, np.ndarray]:
    """Read the columns of a CSV file by their stripped names. A cell that is empty, absent or no number is nan."""
    try:
        rows = [row for row in split_table(Path(csv_file).read_bytes()) if row]
    except OSError as error:
        raise UserError(f"{csv_file}: cannot be read ({error.strerror}); give a training run's results.csv") from error
    if not rows:
        raise UserError(f"{csv_file}: is empty; the first line must name the columns (epoch, train/box_loss, ...)")
    header = [cell.strip() for cell in rows[0]]
    table = np.full((len(rows) - 1, len(header)), np.nan)
    for r, row in enumerate(rows[1:]):
        for c, cell in enumerate(row[: len(header)]):
            table[r, c] = _number(cell)
    return dict(zip(header, table.T, strict=True))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _gaussian(values: np.ndarray, *, sigma: float) -> np.ndarray:
    """Return the Gaussian mean over neighbours within 4 sigma. Gaps (nan) carry no weight and stay gaps."""
    if not len(values):
        return values
    radius = math.ceil(4 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), kernel)[radius : radius + len(values)]
    weight = np.convolve(known.astype(float), kernel)[radius : radius + len(values)]
    return np.where(known, total / np.maximum(weight, 1e-12), np.nan)


def _box_filter(values: np.ndarray, *, fraction: float) -> np.ndarray:
    """Return the moving mean over an odd window of about `fraction` of the values. The ends repeat the last value."""
    half = round(len(values) * fraction / 2)
    padded = np.pad(values, half, mode="edge")
    return np.convolve(padded, np.full(2 * half + 1, 1 / (2 * half + 1)), mode="valid")


def _row_names(names: Names, rows: int, classes: Sequence[int] | None) -> list[str]:
    if classes is not None:
        assert len(classes) == rows, (len(classes), rows)
        return [class_name(names, int(index)) for index in classes]
    assert len(names) == rows, f"{len(names)} names for {rows} curves: give classes= too"
    return [str(name) for name in (names.values() if isinstance(names, Mapping) else names)]


def _shorten(text: str, limit: int = 24) -> str:
    text = choose_font(text).text
    return text if len(text) <= limit else text[: limit - 1] + "…"
