"""Pictures: that they are written, show what they are given, and leave the caller's arrays alone."""

import threading
from types import SimpleNamespace

import cv2
import matplotlib
import numpy as np
import pytest
import torch

from utils import plots
from utils.errors import UserError

NAMES = {0: "cat", 1: "dog", 2: "Straße"}
GRID = np.linspace(0, 1, 1000)


def batch(count=2, height=64, width=96):
    return np.full((count, 3, height, width), 50, dtype=np.uint8)


def legend_texts(monkeypatch, draw):
    """Legend entries of the figure that `draw` would have saved."""
    found = []
    monkeypatch.setattr(plots, "_save", lambda figure, file, dpi: found.append(figure))
    draw()
    return [text.get_text() for text in found[0].axes[0].get_legend().get_texts()], found[0]


# ---- boxes on pictures


def test_no_boxes_leave_the_picture_as_it_is():
    image = np.full((40, 50, 3), 9, dtype=np.uint8)
    drawn = plots.draw_boxes(image, np.zeros((0, 4)), [], [])
    assert drawn is not image and np.array_equal(drawn, image)


def test_a_box_is_drawn_in_its_colour_on_a_copy():
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    drawn = plots.draw_boxes(image, np.array([[20, 40, 120, 80.4]]), [""], [6], line_width=1)
    assert not image.any()
    assert tuple(drawn[80, 70]) == plots.color(6) == (0x4F, 0x44, 0xFF)  # BGR of FF444F
    assert not drawn[60, 70].any()


@pytest.mark.parametrize(
    "box, inside",
    [
        ((50, 60, 150, 90), (slice(40, 58), slice(50, 90))),  # room above the box
        ((50, 0, 150, 90), (slice(2, 18), slice(54, 90))),  # none: the label goes into it
        ((180, 60, 199, 90), (slice(40, 58), slice(150, 199))),  # shifted left at the right border
        ((-40, 60, 30, 90), (slice(40, 58), slice(2, 30))),  # box sticks out at the left
    ],
)
def test_labels_stay_inside_the_picture(box, inside):
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    plain = plots.draw_boxes(image, np.array([box]), [""], [0], line_width=1, font_size=14)
    labelled = plots.draw_boxes(image, np.array([box]), ["person"], [0], line_width=1, font_size=14)
    changed = (plain != labelled).any(axis=2)
    assert changed[inside].mean() > 0.5  # the label's ground
    assert (labelled[inside] > 250).all(axis=2).any()  # white letters on blue


def test_letters_beyond_ascii_are_drawn():
    masks = [plots._text_mask(text, 20) for text in ("Straße", "Strase", "кошка", "ñ")]
    assert all(mask.max() > 0.9 for mask in masks)
    missing = plots._text_mask("\uffff", 20)
    assert not any(mask.shape == missing.shape and np.array_equal(mask, missing) for mask in masks)


def test_a_label_larger_than_the_picture_is_cut():
    drawn = plots.draw_boxes(np.zeros((6, 8, 3), np.uint8), np.array([[1, 1, 6, 5]]), ["a very long name"], [1])
    assert drawn.shape == (6, 8, 3)


def test_ink_contrasts_with_every_colour_of_the_palette():
    for i in range(len(plots.PALETTE)):
        ground, ink = np.array(plots.color(i)), np.array(plots._ink(plots.color(i)))
        weights = np.array([0.114, 0.587, 0.299])
        assert abs(weights @ ground - weights @ ink) > 100, i


def test_colours_repeat_and_are_distinct():
    assert len(set(plots.PALETTE)) == len(plots.PALETTE) == 20
    assert plots.color(20) == plots.color(0) and plots.color(np.int64(3)) == plots.color(3.0)


# ---- grids of a batch


def test_grid_of_targets(tmp_path):
    images, targets = batch(3), np.array([[0, 1, 0.5, 0.5, 0.5, 0.5], [2, 0, 0.25, 0.25, 0.5, 0.5]], dtype=np.float32)
    before = images.copy(), targets.copy()
    plots.plot_batch(images, targets, ["a/one.jpg", "b/two.jpg", "three.png"], tmp_path / "grid.png", names=NAMES)
    grid = cv2.imread(str(tmp_path / "grid.png"))
    assert grid.shape == (128, 192, 3)  # 2 x 2 cells
    assert (grid[70:, 100:] == 255).all()  # no fourth picture
    assert tuple(grid[48, 48]) == plots.color(1)  # lower edge of the box in picture 0
    assert tuple(grid[16, 96 + 48]) == plots.color(0)  # right edge in picture 2, which begins the second column
    assert np.array_equal(before[0], images) and np.array_equal(before[1], targets)


def test_float_tensors_are_not_scaled_in_place(tmp_path):
    images = torch.full((1, 3, 32, 32), 0.5)
    plots.plot_batch(images, torch.zeros(0, 6), ["x.jpg"], tmp_path / "grid.png")
    assert (images == 0.5).all()
    assert tuple(cv2.imread(str(tmp_path / "grid.png"))[10, 10]) == (128, 128, 128)


def test_channels_are_turned_from_rgb(tmp_path):
    images = batch(1)
    images[:, 0] = 200  # red
    plots.plot_batch(images, np.zeros((0, 6)), [], tmp_path / "grid.png")
    assert tuple(cv2.imread(str(tmp_path / "grid.png"))[20, 20]) == (50, 50, 200)


def test_grid_of_detections_leaves_out_the_unsure(tmp_path):
    sure, unsure = [10, 20, 40, 50, 0.9, 1], [50, 20, 90, 50, 0.2, 0]
    detections = [torch.tensor([sure, unsure]), torch.zeros(0, 6)]
    plots.plot_batch(batch(2), detections, ["a.jpg", "b.jpg"], tmp_path / "grid.png", names=NAMES)
    grid = cv2.imread(str(tmp_path / "grid.png"))
    assert tuple(grid[35, 40]) == plots.color(1)
    assert tuple(grid[20, 70]) == (50, 50, 50)


def test_many_large_pictures_fit_the_limit(tmp_path):
    plots.plot_batch(batch(20, 640, 640), np.zeros((0, 6)), ["x" * 300] * 20, tmp_path / "grid.jpg")
    assert cv2.imread(str(tmp_path / "grid.jpg")).shape == (1920, 1920, 3)  # the first 16 of 20


def test_class_text():
    assert plots._class_text(1, float("nan"), NAMES) == "dog"
    assert plots._class_text(1, 0.87, NAMES) == "dog 0.9"
    assert plots._class_text(7, 0.5, NAMES) == "7 0.5"  # a class that the names lack
    assert plots._class_text(1, float("nan"), None) == "1"


def test_unknown_picture_format(tmp_path):
    with pytest.raises(UserError, match="use .jpg or .png"):
        plots.save_image(tmp_path / "x.abc", np.zeros((2, 2, 3), np.uint8))
    assert not list(tmp_path.iterdir())


# ---- figures


@pytest.mark.parametrize("count", [0, 1, 2000])
def test_labels_pictures(tmp_path, count):
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
    """Class 1 is absent: the entry of class 2 must not move to its place."""
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
    """A step from 0 to 1 at index 400 under a window of a tenth: first value above zero at 350, 0.49505 at 399."""
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
    monkeypatch.setattr(plots, "_save", lambda figure, file, dpi: found.append(figure))
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


# ---- in the background


def test_plotter_draws_in_one_other_thread_in_order():
    seen = []
    with plots.Plotter() as plotter:
        for i in range(5):
            plotter.submit(lambda i: seen.append((i, threading.current_thread().name)), i)
    assert [i for i, _ in seen] == list(range(5))
    assert {name for _, name in seen} == {"plots_0"}


def test_a_failed_picture_costs_one_line(tmp_path):
    lines = []
    with plots.Plotter(report=lines.append) as plotter:
        plotter.submit(plots.plot_results, tmp_path / "absent.csv", tmp_path / "results.png")
        plotter.submit(plots.plot_confusion, np.eye(3), {0: "a", 1: "b"}, file=tmp_path / "confusion.png")
    assert len(lines) == 1 and "plot_results" in lines[0] and "absent.csv" in lines[0]
    assert (tmp_path / "confusion.png").exists()


def test_drawing_changes_no_global_setting(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.plot_confusion(np.eye(2), {0: "a"}, tmp_path / "x.png")
    assert dict(matplotlib.rcParams) == before
