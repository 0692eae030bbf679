"""Charts: they are written, show what they are given, and never change the caller's arrays."""

import warnings
from types import SimpleNamespace

import cv2
import matplotlib
import numpy as np
import pytest

from utils.errors import UserError
from utils.output import plots

NAMES = {0: "cat", 1: "dog", 2: "Straße"}
GRID = np.linspace(0, 1, 1000)


def legend_texts(monkeypatch, draw):
    """Return the legend entries of the figure that `draw` would have saved, and the figure."""
    found = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, file, dpi: found.append(figure))
    draw()
    return [text.get_text() for text in found[0].axes[0].get_legend().get_texts()], found[0]


# ---- figures


@pytest.mark.parametrize("count", [0, 1, 2000])
def test_charts_of_labels(tmp_path, count):
    labels = np.random.default_rng(0).uniform(0, 1, (count, 5)).astype(np.float32)
    labels[:, 0] = np.arange(count) % 3
    before = labels.copy()
    plots.plot_labels(labels, NAMES, tmp_path / "labels.jpg")
    plots.plot_label_correlogram(labels, tmp_path / "labels_correlogram.jpg")
    assert np.array_equal(before, labels)
    for file in tmp_path.iterdir():
        assert min(cv2.imread(str(file)).shape[:2]) > 1000


def test_many_classes_share_an_axis(tmp_path):
    labels = np.array([[79, 0.5, 0.5, 0.1, 0.1]])
    plots.plot_labels(labels, {i: f"class {i}" for i in range(80)}, tmp_path / "labels.jpg")
    plots.plot_confusion(np.eye(81), {i: f"class {i}" for i in range(80)}, tmp_path / "confusion.png")
    assert (tmp_path / "labels.jpg").stat().st_size > 10_000 and (tmp_path / "confusion.png").stat().st_size > 10_000


def curves(classes):
    precision = np.stack([np.linspace(1, 0, 1000)] * len(classes)) if classes else np.zeros((0, 1000))
    return SimpleNamespace(recall_grid=GRID, precision_at_recall=precision, classes=np.array(classes))


def test_pr_legend_names_the_right_classes(monkeypatch):
    """Class 1 is absent: the entry of class 2 must not move up."""
    names = {0: "cat", 1: "absent", 2: "_$x$", 3: "other"}
    ap50 = np.array([0.5, 0.25])
    texts, _ = legend_texts(monkeypatch, lambda: plots.plot_pr_curve(curves([0, 2]), ap50, names, "x.png"))
    assert texts == ["cat 0.500", "_$x$ 0.250", "all classes 0.375 mAP@0.5"]


def test_many_classes_have_one_legend_entry(monkeypatch):
    draw = lambda: plots.plot_pr_curve(curves(list(range(21))), np.full(21, 0.5), {}, "x.png")  # noqa: E731
    texts, figure = legend_texts(monkeypatch, draw)
    assert texts == ["all classes 0.500 mAP@0.5"]
    assert len(figure.axes[0].get_lines()) == 22


def test_curve_reports_its_best_point(monkeypatch):
    ys = np.stack([1 - np.abs(GRID - 0.4)] * 2)
    texts, _ = legend_texts(monkeypatch, lambda: plots.plot_curve(GRID, ys, NAMES, "x.png", classes=[0, 2]))
    assert texts[:2] == ["cat", "Straße"]
    assert texts[2].startswith("all classes 0.9") and abs(float(texts[2].split()[-1]) - 0.4) < 0.01


def test_a_peak_is_smoothed_as_published():
    """A step from 0 to 1 at index 400, with a window of a tenth: first value above zero at 350, 0.49505 at 399."""
    smooth = plots._box_filter((np.arange(1000) >= 400).astype(float), fraction=0.1)
    assert smooth.shape == (1000,) and smooth[349] == 0
    assert np.allclose(smooth[[350, 399, 400]], [1 / 101, 50 / 101, 51 / 101], atol=1e-6)


@pytest.mark.parametrize("classes", [[], [0, 1, 2]])
def test_curve_files(tmp_path, classes):
    found = curves(classes)
    plots.plot_pr_curve(found, np.full(len(classes), 0.5), NAMES, tmp_path / "PR_curve.png")
    plots.plot_curve(GRID, found.precision_at_recall, NAMES, tmp_path / "F1_curve.png", ylabel="F1", classes=classes)
    assert cv2.imread(str(tmp_path / "PR_curve.png")).shape == cv2.imread(str(tmp_path / "F1_curve.png")).shape


def test_confusion_matrix_columns_sum_to_one(monkeypatch):
    found = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, file, dpi: found.append(figure))
    matrix = np.array([[3, 0, 2], [1, 0, 0], [0, 0, 2]])
    plots.plot_confusion(matrix, {0: "cat", 1: "dog"}, "x.png")
    numbers = sorted(text.get_text() for text in found[0].axes[0].texts)
    assert numbers == ["0.25", "0.50", "0.50", "0.75"]  # the empty column of class 1 stays blank
    ticks = [text.get_text() for text in found[0].axes[0].get_yticklabels()]
    assert ticks == ["cat", "dog", "background"]
    assert matrix.sum() == 8


HEADER = "               epoch,      train/box_loss,  metrics/mAP_0.5"


@pytest.mark.parametrize("rows", ["", "0, 0.5, 0.1\n", "0,0.5,nan\n1,,\n2,0.25\n3,0.1,inf,7\n"])
def test_results_with_gaps(tmp_path, rows):
    (tmp_path / "results.csv").write_text(f"{HEADER}\n{rows}")
    plots.plot_results(tmp_path / "results.csv", tmp_path / "results.png")
    assert cv2.imread(str(tmp_path / "results.png")).shape[1] == 2250


def test_results_columns_are_read_by_name(tmp_path):
    (tmp_path / "results.csv").write_text(f"{HEADER}\n  0, 0.5, nan\n\n 1,,0.25\n")
    columns = plots._read_columns(tmp_path / "results.csv")
    assert list(columns) == ["epoch", "train/box_loss", "metrics/mAP_0.5"]
    assert np.array_equal(columns["train/box_loss"], [0.5, np.nan], equal_nan=True)
    assert np.array_equal(columns["metrics/mAP_0.5"], [np.nan, 0.25], equal_nan=True)


def test_smoothing_skips_gaps():
    assert np.array_equal(plots._gaussian(np.array([2.0, np.nan, 2.0]), sigma=3), [2, np.nan, 2], equal_nan=True)
    assert plots._gaussian(np.array([]), sigma=3).shape == (0,)


@pytest.mark.parametrize("content, message", [(None, "cannot be read"), ("", "is empty")])
def test_results_that_cannot_be_drawn(tmp_path, content, message):
    if content is not None:
        (tmp_path / "results.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        plots.plot_results(tmp_path / "results.csv", tmp_path / "results.png")


@pytest.mark.parametrize("names", [{0: "\u732b", 1: "\U00013000 $x$"}, ["caf\u00e9", "\u72d7"]])
def test_names_in_any_script_draw_without_a_warning(tmp_path, names):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.plot_confusion(np.eye(3), names, tmp_path / "confusion.png")
        plots.plot_curve(GRID, np.ones((2, 1000)), names, tmp_path / "f1.png")
        plots.plot_labels(np.array([[0, 0.5, 0.5, 0.2, 0.2], [1, 0.4, 0.5, 0.2, 0.2]]), names, tmp_path / "l.jpg")
    assert (tmp_path / "confusion.png").exists() and (tmp_path / "f1.png").exists()


def test_drawing_changes_no_global_setting(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.plot_confusion(np.eye(2), {0: "a"}, tmp_path / "x.png")
    assert dict(matplotlib.rcParams) == before
