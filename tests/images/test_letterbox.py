"""Letterbox: geometry of the resized image, and boxes that map back to the original."""

import numpy as np
import pytest
import torch
from red_rectangle import canvas, red_box

from utils.images.letterbox import Letterbox, letterbox
from utils.pixel_format import GREY


def test_letterbox_has_the_reference_geometry(golden_folder):
    table = np.load(golden_folder / "letterbox.npz")
    names = table["columns"].tolist()
    for row in table["rows"]:
        want = dict(zip(names, row.tolist()))
        height, width = int(want["h"]), int(want["w"])
        image, box = letterbox(
            np.zeros((height, width, 3), np.uint8),
            (int(want["new_h"]), int(want["new_w"])),
            auto=bool(want["auto"]),
            scaleup=bool(want["scaleup"]),
        )
        assert image.shape == (want["out_h"], want["out_w"], 3)
        assert (image == GREY).all(2).sum() == want["pad_pixels"]
        # The table has half a pixel if a padding is odd. The image itself begins at the whole pixel before.
        assert box.pad == (int(want["pad_h"]), int(want["pad_w"])) and box.shape == (height, width)
        # The table has one ratio. Ours is that of each side after rounding to whole pixels.
        assert box.gain == pytest.approx((want["ratio_h"], want["ratio_w"]), abs=0.5 / min(height, width))


@pytest.mark.parametrize("shape, target, options, output, rows, columns", [
    ((1080, 810), 640, {}, (640, 480), (0, 640), (0, 480)),
    ((720, 1280), 640, {}, (384, 640), (12, 372), (0, 640)),
    ((427, 640), 640, {"auto": False, "scaleup": False}, (640, 640), (106, 533), (0, 640)),
    ((375, 500), 640, {"auto": False}, (640, 640), (80, 560), (0, 640)),
    ((375, 500), 640, {"auto": False, "scaleup": False}, (640, 640), (132, 507), (70, 570)),
    ((333, 500), (416, 416), {}, (288, 416), (5, 282), (0, 416)),
    ((100, 37), 64, {}, (64, 32), (0, 64), (4, 28)),
    ((427, 640), (448, 672), {"auto": False, "scaleup": False}, (448, 672), (10, 437), (16, 656)),
    ((640, 481), (672, 512), {"auto": False, "scaleup": False}, (672, 512), (16, 656), (15, 496)),
    ((720, 1281), 640, {"stride": 64}, (384, 640), (12, 372), (0, 640)),
    ((1, 2000), 64, {}, (32, 64), (15, 16), (0, 64)),  # at least one row
])  # fmt: skip
def test_letterbox_places_the_image(shape, target, options, output, rows, columns):
    image, box = letterbox(np.zeros((*shape, 3), np.uint8), target, **options)
    assert image.shape[:2] == output
    inside = image[..., 0] == 0
    assert np.flatnonzero(inside.any(1))[[0, -1]].tolist() == [rows[0], rows[1] - 1]
    assert np.flatnonzero(inside.any(0))[[0, -1]].tolist() == [columns[0], columns[1] - 1]
    np.testing.assert_allclose(
        box.apply(np.array([[0, 0, shape[1], shape[0]]], np.float32)),
        [[columns[0], rows[0], columns[1], rows[1]]],
        rtol=1e-6,
    )


@pytest.mark.parametrize("array", [lambda rows: np.array(rows, np.float32), torch.tensor])
def test_letterbox_undo_clips_and_inverts_apply(array):
    box = Letterbox((333, 500), (427 / 333, 640 / 500), (10, 16))
    inner = array([[3.0, 4.0, 499.0, 200.5], [0.0, 0.0, 500.0, 333.0]])
    np.testing.assert_allclose(box.undo(box.apply(inner)), inner, atol=1e-3)
    np.testing.assert_allclose(box.undo(array([[-5.0, 0.0, 900.0, 900.0]])), [[0, 0, 500, 333]])
    assert box.undo(inner[:0]).shape == (0, 4)
    assert box.undo(inner).dtype == inner.dtype
    np.testing.assert_allclose(box.undo(array([[16, 10, 656, 437]])), [[0, 0, 500, 333]], rtol=1e-6)  # integers


def test_undo_has_the_reference_vectors():
    box = Letterbox((720, 1280), (0.5, 0.5), (12, 0))
    rows = np.array([[10, 20, 630, 370], [-5, 0, 700, 400]], np.float32)
    np.testing.assert_allclose(box.undo(rows), [[20, 16, 1260, 716], [0, 0, 1280, 720]])


def test_letterbox_keeps_a_box_on_its_object():
    image, box = letterbox(canvas(300, 501, (100, 50, 250, 200)), (416, 416), auto=False)
    np.testing.assert_allclose(red_box(image), box.apply(np.array([100.0, 50, 250, 200])), atol=0.3)
