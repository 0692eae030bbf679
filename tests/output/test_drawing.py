"""Boxes, text and grids: they show what they are given, and never change the caller's arrays."""

import math

import cv2
import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.output import drawing

NAMES = {0: "cat", 1: "dog"}


def batch(count=2, height=64, width=96):
    return np.full((count, 3, height, width), 50, dtype=np.uint8)


# ---- boxes on images


def test_no_boxes_draw_nothing():
    image = np.full((40, 50, 3), 9, dtype=np.uint8)
    drawn = drawing.draw_boxes(image, np.zeros((0, 4)), [], [])
    assert drawn is not image and np.array_equal(drawn, image)


def test_a_box_is_drawn_in_its_colour_on_a_copy():
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    drawn = drawing.draw_boxes(image, np.array([[20, 40, 120, 80.4]]), [""], [6], line_width=1)
    assert not image.any()
    assert tuple(drawn[80, 70]) == drawing.color(6) == (0x4F, 0x44, 0xFF)  # BGR of FF444F
    assert not drawn[60, 70].any()


@pytest.mark.parametrize(
    "box, inside",
    [
        ((50, 60, 150, 90), (slice(40, 58), slice(50, 90))),  # room above the box
        ((50, 0, 150, 90), (slice(2, 18), slice(54, 90))),  # none: the label goes into it
        ((180, 60, 199, 90), (slice(40, 58), slice(150, 199))),  # shifted left at the right border
        ((-40, 60, 30, 90), (slice(40, 58), slice(2, 30))),  # box reaches beyond the left border
    ],
)
def test_labels_stay_inside_the_image(box, inside):
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    plain = drawing.draw_boxes(image, np.array([box]), [""], [0], line_width=1, font_size=14)
    labelled = drawing.draw_boxes(image, np.array([box]), ["person"], [0], line_width=1, font_size=14)
    changed = (plain != labelled).any(axis=2)
    assert changed[inside].mean() > 0.5  # background of the label
    assert (labelled[inside] > 250).all(axis=2).any()  # white letters on blue


def test_a_label_larger_than_the_image_is_cut():
    drawn = drawing.draw_boxes(np.zeros((6, 8, 3), np.uint8), np.array([[1, 1, 6, 5]]), ["a very long name"], [1])
    assert drawn.shape == (6, 8, 3)


def test_ink_contrasts_with_every_colour_of_the_palette():
    for i in range(len(drawing.PALETTE)):
        ground, ink = np.array(drawing.color(i)), np.array(drawing._ink(drawing.color(i)))
        weights = np.array([0.114, 0.587, 0.299])
        assert abs(weights @ ground - weights @ ink) > 100, i


def test_colours_repeat_and_are_distinct():
    assert len(set(drawing.PALETTE)) == len(drawing.PALETTE) == 20
    assert drawing.color(20) == drawing.color(0) and drawing.color(np.int64(3)) == drawing.color(3.0)


# ---- grids of a batch


@pytest.fixture
def no_enlarging(monkeypatch):
    """Keep small images at their size."""
    monkeypatch.setattr(drawing, "MIN_SIDE", 0)


def test_grid_of_targets(tmp_path, no_enlarging):
    images, targets = batch(3), np.array([[0, 1, 0.5, 0.5, 0.5, 0.5], [2, 0, 0.25, 0.25, 0.5, 0.5]], dtype=np.float32)
    before = images.copy(), targets.copy()
    drawing.plot_batch(images, targets, ["a/one.jpg", "b/two.jpg", "three.png"], tmp_path / "grid.png", names=NAMES)
    grid = cv2.imread(str(tmp_path / "grid.png"))
    assert grid.shape == (128, 192, 3)  # 2 x 2 cells
    assert (grid[70:, 100:] == 255).all()  # no fourth image
    assert tuple(grid[48, 48]) == drawing.color(1)  # lower edge of the box in image 0
    assert tuple(grid[16, 96 + 48]) == drawing.color(0)  # right edge in image 2, which begins the second column
    assert np.array_equal(before[0], images) and np.array_equal(before[1], targets)


def test_float_tensors_are_not_scaled_in_place(tmp_path):
    images = torch.full((1, 3, 32, 32), 0.5)
    drawing.plot_batch(images, torch.zeros(0, 6), ["x.jpg"], tmp_path / "grid.png")
    assert (images == 0.5).all()
    assert tuple(cv2.imread(str(tmp_path / "grid.png"))[10, 10]) == (128, 128, 128)


def test_channels_are_converted_from_rgb(tmp_path):
    images = batch(1)
    images[:, 0] = 200  # red
    drawing.plot_batch(images, np.zeros((0, 6)), [], tmp_path / "grid.png")
    assert tuple(cv2.imread(str(tmp_path / "grid.png"))[20, 20]) == (50, 50, 200)


@pytest.mark.parametrize(
    "count, side, shape", [(1, 32, 128), (16, 96, 1000), (4, 320, 1000), (4, 640, 1280), (16, 640, 1920)]
)
def test_grids_are_neither_tiny_nor_huge(tmp_path, count, side, shape):
    targets = np.array([[0, 0, 0.5, 0.5, 0.5, 0.5]])
    drawing.plot_batch(batch(count, side, side), targets, [], tmp_path / "grid.png")
    grid = cv2.imread(str(tmp_path / "grid.png"))
    assert grid.shape == (shape, shape, 3)
    cell = shape // math.isqrt(count)
    edge = grid[cell * 3 // 4 - 1 : cell * 3 // 4 + 2, cell // 2]
    assert (edge == drawing.color(0)).all(1).any()


@pytest.mark.parametrize("level", [0, 255])
def test_a_box_of_nearly_white_shows_on_any_image(level):
    white = next(i for i, rgb in enumerate(drawing.PALETTE) if min(rgb) > 230)
    drawn = drawing.draw_boxes(np.full((60, 60, 3), level, np.uint8), np.array([[10, 10, 50, 50]]), [""], [white])
    assert np.abs(drawn[30].astype(int) - level).max() > 150
    assert (drawn[30] == drawing.color(white)).all(1).any()


def test_grid_of_detections_skips_low_confidences(tmp_path, no_enlarging):
    sure, unsure = [10, 20, 40, 50, 0.9, 1], [50, 20, 90, 50, 0.2, 0]
    detections = [torch.tensor([sure, unsure]), torch.zeros(0, 6)]
    drawing.plot_batch(batch(2), detections, ["a.jpg", "b.jpg"], tmp_path / "grid.png", names=NAMES)
    grid = cv2.imread(str(tmp_path / "grid.png"))
    assert tuple(grid[35, 40]) == drawing.color(1)
    assert tuple(grid[20, 70]) == (50, 50, 50)


def test_many_large_images_fit_the_limit(tmp_path):
    drawing.plot_batch(batch(20, 640, 640), np.zeros((0, 6)), ["x" * 300] * 20, tmp_path / "grid.jpg")
    assert cv2.imread(str(tmp_path / "grid.jpg")).shape == (1920, 1920, 3)  # the first 16 of 20


def test_class_text():
    assert drawing._class_text(1, float("nan"), NAMES) == "dog"
    assert drawing._class_text(1, 0.87, NAMES) == "dog 0.9"
    assert drawing._class_text(7, 0.5, NAMES) == "7 0.5"  # a class that the names lack
    assert drawing._class_text(1, float("nan"), None) == "1"


def test_unknown_image_format(tmp_path):
    with pytest.raises(UserError, match="use .jpg or .png"):
        drawing.save_image(tmp_path / "x.abc", np.zeros((2, 2, 3), np.uint8))
    assert not list(tmp_path.iterdir())
