"""Geometry: boxes stay on their objects, whatever happens to the picture."""

import cv2
import numpy as np
import pytest
import torch

from utils.images import augment
from utils.images.augment import (
    AugmentSettings,
    ColorFlip,
    Scene,
    Tile,
    copy_paste,
    mixup,
    mosaic,
    multiply_hsv,
    place_labels,
    random_perspective,
    sample_color_flip,
    sample_warp,
)
from utils.images.letterbox import Letterbox, letterbox
from utils.images.warp import GREY, Warp, is_visible, visible_hulls

RED = (0, 0, 255)
NONE = np.zeros((0, 2), np.float32)


def canvas(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """A black picture with one red rectangle x1, y1, x2, y2."""
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = RED
    return image


def red_box(image: np.ndarray) -> np.ndarray:
    """xyxy around what is red in a picture, to a fraction of a pixel: edge pixels count by how red they are."""
    amount = (image[..., 2].astype(float) - image[..., 1]).clip(0) / 255
    rows, columns = amount.max(1), amount.max(0)
    ends = []
    for line in (columns, rows):
        inside = np.flatnonzero(line > 0.05)
        first, last = inside[0], inside[-1]
        ends.append((first + 1 - line[first], last + line[last]))
    (x1, x2), (y1, y2) = ends
    return np.array([x1, y1, x2, y2])


# ---- letterbox


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
        # The table has half a pixel where a margin is odd; the picture itself begins at the whole pixel before.
        assert box.pad == (int(want["pad_h"]), int(want["pad_w"])) and box.shape == (height, width)
        # The table has one ratio; ours is that of the sides as they came out, rounded to whole pixels.
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
    ((1, 2000), 64, {}, (32, 64), (15, 16), (0, 64)),  # never less than one row of picture
])  # fmt: skip
def test_letterbox_places_the_picture(shape, target, options, output, rows, columns):
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


@pytest.mark.parametrize("kind", [lambda rows: np.array(rows, np.float32), torch.tensor])
def test_letterbox_undo_clips_and_inverts_apply(kind):
    box = Letterbox((333, 500), (427 / 333, 640 / 500), (10, 16))
    inner = kind([[3.0, 4.0, 499.0, 200.5], [0.0, 0.0, 500.0, 333.0]])
    np.testing.assert_allclose(box.undo(box.apply(inner)), inner, atol=1e-3)
    np.testing.assert_allclose(box.undo(kind([[-5.0, 0.0, 900.0, 900.0]])), [[0, 0, 500, 333]])
    assert box.undo(inner[:0]).shape == (0, 4)
    assert box.undo(inner).dtype == inner.dtype
    np.testing.assert_allclose(box.undo(kind([[16, 10, 656, 437]])), [[0, 0, 500, 333]], rtol=1e-6)  # whole numbers


def test_scale_back_vectors():
    box = Letterbox((720, 1280), (0.5, 0.5), (12, 0))
    rows = np.array([[10, 20, 630, 370], [-5, 0, 700, 400]], np.float32)
    np.testing.assert_allclose(box.undo(rows), [[20, 16, 1260, 716], [0, 0, 1280, 720]])


def test_letterbox_keeps_a_box_on_its_object():
    image, box = letterbox(canvas(300, 501, (100, 50, 250, 200)), (416, 416), auto=False)
    np.testing.assert_allclose(red_box(image), box.apply(np.array([100.0, 50, 250, 200])), atol=0.3)


# ---- the warp


class Fixed:
    """A generator whose uniform draws are given."""

    def __init__(self, draws):
        self.draws = np.array(draws, float)

    def uniform(self, low, high, size):
        return self.draws

    def random(self):
        return 0.5


# Draws in -1...1 of the vectors below: px, py, angle, gain, two shears, two shifts.
DRAWS = [
    0.6888437030500962,
    0.515908805880605,
    -0.15885683833831,
    -0.4821664994140733,
    0.02254944273721704,
    -0.19013172509917142,
    0.5675971780695452,
    -0.3933745478421451,
]
BOXES = np.array(
    [[0, 100, 200, 300, 400], [1, 600, 600, 900, 1000], [2, 1270, 10, 1279, 30], [3, 620, 640, 660, 650]], np.float32
)


def fixed_warp(**hyp) -> Warp:
    settings = AugmentSettings(translate=0.1, scale=0.5, **hyp)
    return sample_warp((1280, 1280), (640, 640), settings=settings, rng=Fixed(DRAWS))


@pytest.mark.parametrize("hyp, kept", [
    ({}, {0: (0, 0, 98.29452, 112.68401), 1: (325.96955, 264.46736, 553.64457, 568.03406),
          3: (341.14788, 294.82403, 371.50455, 302.4132)}),
    ({"degrees": 10, "shear": 5}, {0: (0, 0, 106.97986, 109.79706), 1: (318.943, 264.12704, 554.36134, 570.25186),
                                   3: (340.95743, 294.65502, 371.49955, 302.58278)}),
    ({"degrees": 10, "shear": 5, "perspective": 0.001}, {1: (324.04848, 262.57285, 527.27266, 530.44737),
                                                         3: (340.82383, 294.65266, 371.29335, 302.43859)}),
])  # fmt: skip
def test_warped_boxes(hyp, kept):
    warp = fixed_warp(**hyp)
    assert warp.scale == pytest.approx(0.75891675)
    rows = warp.labels(BOXES, [NONE] * 4)
    assert rows.dtype == np.float32 and rows[:, 0].tolist() == list(kept)
    np.testing.assert_allclose(rows[:, 1:], list(kept.values()), atol=2e-3)


def test_warped_polygons_give_tighter_boxes():
    outlines = [
        np.array([(100, 200), (300, 200), (300, 400), (100, 400)], np.float32),
        np.array([(600, 600), (900, 700), (700, 1000)], np.float32),
    ]
    rows = fixed_warp(degrees=10, shear=5).labels(BOXES[:2], outlines)
    want = [(0, 0.09251, 0.09148, 105.89593, 109.79368), (1, 326.7614, 264.12704, 552.40674, 568.56176)]
    np.testing.assert_allclose(rows, want, atol=0.1)  # the exact hull, against one of a thousand points


def test_box_and_polygon_rows_may_be_mixed():
    outline = np.array([(600, 600), (900, 700), (700, 1000)], np.float32)
    warp = fixed_warp(degrees=10, shear=5)
    mixed = warp.labels(BOXES, [NONE, outline, NONE, NONE])
    np.testing.assert_allclose(mixed[[0, 2]], warp.labels(BOXES, [NONE] * 4)[[0, 2]])
    np.testing.assert_allclose(mixed[1], warp.labels(BOXES[1:2], [outline])[0])


def test_a_warp_that_only_scales_begins_with_a_whole_pixel():
    warp = fixed_warp()
    assert warp.begin is None
    moved = warp.on_whole_pixels()
    assert moved.begin is not None and moved.begin == moved.visible_region()[:2]
    np.testing.assert_allclose(moved.points(np.array([moved.begin], float)), [[0, 0]], atol=1e-9)
    assert np.abs(moved.matrix - warp.matrix).max() <= warp.scale / 2 and moved.scale == warp.scale
    turned = fixed_warp(degrees=10)
    assert turned.on_whole_pixels() is turned


def test_a_warp_without_labels_or_points():
    warp = fixed_warp()
    assert warp.labels(np.zeros((0, 5), np.float32), []).shape == (0, 5)
    assert warp.points(np.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize("before, after, area, keep", [
    (100, (2, 50), 0.10, False),  # not wider than 2
    (100, (2.1, 48), 0.10, False),
    (100, (2.1, 48), 0.01, True),
    (100, (40, 24.9), 0.10, False),  # 0.0996 of the area
    (100, (40, 24.9), 0.01, True),
    (100, (350, 3), 0.01, False),  # more than 100 times as wide as high
    (100, (100, 100), 0.10, True),
])  # fmt: skip
def test_candidates(before, after, area, keep):
    old, new = np.array([[0, 0, before, before]], float), np.array([[0, 0, *after]], float)
    assert is_visible(old, new, area).tolist() == [keep]


def test_candidates_of_nothing():
    assert is_visible(np.zeros((0, 4)), np.zeros((0, 4)), 0.1).shape == (0,)


def perspective_of(image, boxes, polygons, settings, seed=0):
    """Output picture and boxes of a random perspective."""
    scene = random_perspective(image, boxes, polygons=polygons, settings=settings, rng=np.random.default_rng(seed))
    return scene.image(), scene.boxes


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("hyp", [{"scale": 0.5, "translate": 0.1}, {"scale": 0.9}, {"translate": 0.2}])
def test_upright_warps_keep_a_box_on_its_object(seed, hyp):
    image, boxes = canvas(200, 300, (140, 90, 180, 120)), np.array([[7, 140, 90, 180, 120]], np.float32)
    warped, rows = perspective_of(image, boxes, [NONE], AugmentSettings(**hyp), seed)
    assert warped.shape == image.shape
    if len(rows):
        assert rows[0, 0] == 7
        np.testing.assert_allclose(red_box(warped), rows[0, 1:], atol=0.6)  # shrinking skips pixels at the edges


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "hyp",
    [
        {"degrees": 40},
        {"shear": 15},
        {"perspective": 0.001},
        {"degrees": 20, "shear": 5, "scale": 0.3, "translate": 0.1, "perspective": 0.0005},
    ],
)
def test_tilting_warps_keep_boxes_around_and_outlines_on_their_object(seed, hyp):
    image, boxes = canvas(240, 320, (130, 100, 190, 150)), np.array([[0, 130, 100, 190, 150]], np.float32)
    outline = np.array([(130, 100), (190, 100), (190, 150), (130, 150)], np.float32)
    settings = AugmentSettings(**hyp)
    warped, rows = perspective_of(image, boxes, [NONE], settings, seed)
    _, exact = perspective_of(image, boxes, [outline], settings, seed)
    assert len(rows) == len(exact) == 1
    np.testing.assert_allclose(red_box(warped), exact[0, 1:], atol=1.2)  # corners fade, so a pixel more is allowed
    assert (rows[0, 1:3] <= exact[0, 1:3] + 1e-3).all() and (rows[0, 3:] >= exact[0, 3:] - 1e-3).all()


def test_no_settings_leave_the_picture_itself():
    image = canvas(40, 60, (10, 10, 30, 30))
    same, rows = perspective_of(image, BOXES[:0], [], AugmentSettings())
    assert same is image and rows.shape == (0, 5)


def test_objects_that_reach_behind_the_viewer_are_dropped():
    warp = Warp(np.array([[1, 0, 0], [0, 1, 0], [-0.01, 0, 1]]), 1.0, (200, 200), (200, 200))
    boxes = np.array([[0, 10, 10, 40, 40], [1, 50, 10, 150, 40]], np.float32)  # the horizon is at x = 100
    assert warp.labels(boxes, [NONE, NONE])[:, 0].tolist() == [0]
    assert warp.labels(boxes, [square(*box[1:]) for box in boxes])[:, 0].tolist() == [0]


# ---- hull of what is visible


def brute_force_hull(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    """Of 20 000 points along each edge those inside the window, and the window's corners inside the polygon."""
    t = np.linspace(0, 1, 20_000)[:, None]
    points = [a + t * (b - a) for a, b in zip(polygon, np.roll(polygon, -1, 0))]
    corners = [(0, 0), (width, 0), (width, height), (0, height)]
    outline = polygon.astype(np.float32)[:, None]
    points.append(np.array([c for c in corners if cv2.pointPolygonTest(outline, c, False) > 0], float).reshape(-1, 2))
    points = np.concatenate(points)
    points = points[((points >= 0) & (points <= (width, height))).all(1)]
    return np.concatenate([points.min(0), points.max(0)]) if len(points) else np.zeros(4)


def test_visible_hulls_are_those_of_densely_sampled_polygons():
    rng = np.random.default_rng(5)
    polygons = [rng.uniform(-40, 90, (rng.integers(3, 9), 2)) for _ in range(200)]
    for polygon, hull in zip(polygons, visible_hulls(polygons, 50, 40), strict=True):
        np.testing.assert_allclose(hull, brute_force_hull(polygon, 50, 40), atol=0.02)


@pytest.mark.parametrize("polygon, hull", [
    ([(-10, -10), (90, -10), (90, 90), (-10, 90)], (0, 0, 50, 40)),  # fills the window: no edge is visible
    ([(10, 10), (20, 10), (20, 20), (10, 20)], (10, 10, 20, 20)),  # inside
    ([(60, 0), (70, 0), (70, 40)], (0, 0, 0, 0)),  # beside it
    ([(-10, 20), (25, -15), (60, 20), (25, 55)], (0, 0, 50, 40)),  # a diamond that cuts off all corners
    ([(0, 0), (50, 0), (50, 40), (0, 40)], (0, 0, 50, 40)),  # the window itself
    ([(5, 5), (5, 5), (5, 5)], (5, 5, 5, 5)),  # a point
])  # fmt: skip
def test_visible_hull(polygon, hull):
    other = np.array([(1.0, 2.0), (3.0, 2.0), (3.0, 4.0)])
    rows = visible_hulls([other, np.array(polygon, float), other], 50, 40)
    np.testing.assert_allclose(rows, [(1, 2, 3, 4), hull, (1, 2, 3, 4)], atol=1e-9)


# ---- mosaic


def tiles_of(images: list[np.ndarray], boxes: list[np.ndarray], polygons: list | None = None) -> list[Tile]:
    polygons = polygons or [[NONE] * len(rows) for rows in boxes]
    return [
        Tile(image.shape[:2], rows, outlines, lambda rows, image=image: image[:rows])
        for image, rows, outlines in zip(images, boxes, polygons)
    ]


def mosaic_of(tiles: list[Tile], size: int, **options) -> tuple[np.ndarray, np.ndarray]:
    scene = mosaic(tiles, size, **options)
    return scene.image(), scene.boxes


def textbook_mosaic(tiles: list[Tile], size: int, settings: AugmentSettings, rng) -> np.ndarray:
    """The whole canvas of twice the size, tile by tile, and then the warp: the same draws in the same order."""
    y, x = rng.uniform(size / 2, 3 * size / 2, 2).astype(int)
    warp = sample_warp((2 * size, 2 * size), (size, size), settings=settings, rng=rng).on_whole_pixels()
    padded = np.full((4 * size, 4 * size, 3), GREY, np.uint8)  # with a margin of one size around, to be cut off
    for (row, column), tile in zip(((0, 0), (0, 1), (1, 0), (1, 1)), tiles):
        h, w = tile.shape
        top, left = size + y - h * (1 - row), size + x - w * (1 - column)
        padded[top : top + h, left : left + w] = tile.read(h)
    return interpolated(padded[size : 3 * size, size : 3 * size], warp)


def interpolated(canvas: np.ndarray, warp: Warp) -> np.ndarray:
    """What a warp shows of a canvas, grey around it: bilinear, in float64, without OpenCV."""
    height, width = warp.output
    v, u = np.mgrid[:height, :width] + 0.5
    x, y, one = np.einsum("ij,jhw->ihw", np.linalg.inv(warp.matrix), np.stack([u, v, np.ones_like(u)]))
    x, y = x / one - 0.5, y / one - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    total = np.zeros((height, width, 3))
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        i, j = top + row, left + column
        inside = (i >= 0) & (i < canvas.shape[0]) & (j >= 0) & (j < canvas.shape[1])
        pixels = np.where(inside[..., None], canvas[i.clip(0, len(canvas) - 1), j.clip(0, canvas.shape[1] - 1)], GREY)
        total += pixels * ((1 - abs(y - i)) * (1 - abs(x - j)))[..., None]
    return total


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("hyp, furthest", [
    ({"scale": 0.5, "translate": 0.1}, 2.5),  # a resize, in OpenCV's fixed-point numbers
    ({"scale": 0.9, "degrees": 30, "shear": 10}, 12), ({"perspective": 0.001}, 12),  # positions rounded to 1/32 pixel
])  # fmt: skip
def test_a_mosaic_has_the_pixels_of_the_textbook_way(seed, hyp, furthest):
    rng = np.random.default_rng(seed)
    shapes = [(128, 96), (70, 128), (128, 128), (128, 33)]
    images = [cv2.GaussianBlur(rng.integers(0, 255, (*shape, 3), np.uint8), (9, 9), 0) for shape in shapes]
    tiles = tiles_of(images, [np.zeros((0, 5), np.float32)] * 4)
    settings = AugmentSettings(**hyp)
    ours, rows = mosaic_of(tiles, 128, settings=settings, rng=np.random.default_rng(seed))
    textbook = textbook_mosaic(tiles, 128, settings, np.random.default_rng(seed))
    assert ours.shape == (128, 128, 3) and rows.shape == (0, 5)
    # a resize repeats the edge where there is no pixel before
    difference = np.abs(ours.astype(float) - textbook)[1:, 1:]
    assert difference.mean() < 0.6 and difference.max() <= furthest


@pytest.mark.parametrize("seed", range(30))
def test_a_mosaic_keeps_boxes_on_their_objects(seed):
    """Each tile has one box in a colour channel of its own, the fourth has none."""
    images, boxes = [], []
    for k, (h, w) in enumerate([(160, 120), (88, 160), (160, 160), (100, 160)]):
        image = np.zeros((h, w, 3), np.uint8)
        if k < 3:
            image[h // 4 : h // 2, w // 4 : w // 2, k] = 255
        images.append(image)
        boxes.append(np.array([[k, 0.375, 0.375, 0.25, 0.25]], np.float32)[: k < 3])
    settings = AugmentSettings(scale=0.5, translate=0.1)
    image, rows = mosaic_of(tiles_of(images, boxes), 160, settings=settings, rng=np.random.default_rng(seed))
    for kind, *box in rows.tolist():
        own = image[..., int(kind)].astype(int) - np.delete(image, int(kind), 2).max(2)  # grey has none of it
        found = red_box(np.stack([np.zeros_like(own), np.zeros_like(own), own.clip(0)], 2))
        np.testing.assert_allclose(found, box, atol=0.6)


def test_tiles_that_cannot_be_seen_are_not_read_and_have_no_labels():
    read = []
    row = np.array([[0, 0.5, 0.5, 1, 1]], np.float32)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]  # none of which others can blend to
    pictures = [np.full((100, 100, 3), colour, np.uint8) for colour in colours]
    tiles = [Tile((100, 100), row, [NONE], lambda rows, k=k: read.append(k) or pictures[k][:rows]) for k in range(4)]
    seen = set()
    for seed in range(60):
        read.clear()
        image, rows = mosaic_of(tiles, 100, settings=AugmentSettings(scale=0.9), rng=np.random.default_rng(seed))
        visible = {k for k in range(4) if (image == colours[k]).all(2).any()}
        assert visible <= set(read) and len(rows) <= len(read)
        seen.add(len(read))
    assert min(seen) < 4 == max(seen)


def test_an_unreadable_tile_stays_grey_and_loses_its_labels():
    row = np.array([[0, 0.5, 0.5, 0.5, 0.5]], np.float32)
    tiles = [Tile((100, 100), row, [NONE], lambda rows: None)] * 4
    image, rows = mosaic_of(tiles, 100, settings=AugmentSettings(), rng=np.random.default_rng(0))
    assert (image == GREY).all() and len(rows) == 0


def test_a_label_that_sticks_out_of_its_tile_does_not_reach_into_the_next():
    wide = np.array([[1, 0.9, 0.5, 0.8, 0.5]], np.float32)
    images = [np.zeros((100, 100, 3), np.uint8)] * 4
    tiles = tiles_of(images, [wide] * 4)
    for seed in range(20):
        y, x = np.random.default_rng(seed).uniform(50, 150, 2).astype(int)
        _, rows = mosaic_of(tiles, 100, settings=AugmentSettings(), rng=np.random.default_rng(seed))
        left = rows[(rows[:, 1] < x - 50)]
        assert (left[:, 3] <= x - 50 + 1e-3).all()


def test_polygons_follow_their_own_label_in_a_mosaic():
    """Of two labels a tile only the second has an outline: a triangle, whose hull stays its box when upright."""
    rows = np.array([[0, 0.2, 0.2, 0.2, 0.2], [1, 0.7, 0.7, 0.4, 0.4]], np.float32)
    triangle = np.array([(0.5, 0.5), (0.9, 0.5), (0.5, 0.9)], np.float32)
    tiles = tiles_of([np.zeros((100, 100, 3), np.uint8)] * 4, [rows] * 4, [[NONE, triangle]] * 4)
    plain = tiles_of([np.zeros((100, 100, 3), np.uint8)] * 4, [rows] * 4)
    settings = AugmentSettings(scale=0.2)
    for seed in range(10):
        _, ours = mosaic_of(tiles, 100, settings=settings, rng=np.random.default_rng(seed))
        _, want = mosaic_of(plain, 100, settings=settings, rng=np.random.default_rng(seed))
        for kind, *box in want.tolist():  # a cut triangle may be smaller, or gone
            same = ours[ours[:, 0] == kind]
            assert kind == 1 or np.abs(same[:, 1:] - box).max(1).min() < 1e-3
        for kind, *box in ours.tolist():
            whole = want[want[:, 0] == kind][:, 1:]
            low_ok, high_ok = whole[:, :2] <= np.array(box[:2]) + 1e-3, whole[:, 2:] >= np.array(box[2:]) - 1e-3
            holds = np.concatenate([low_ok, high_ok], 1)
            assert holds.all(1).any()


# ---- copy-paste and mixup


def square(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float32)


def test_copy_paste_mirrors_object_label_and_outline():
    image = canvas(100, 100, (60, 60, 91, 91))
    boxes = np.array([[5, 60, 60, 90, 90]], np.float32)
    pasted, rows, outlines = copy_paste(
        image, boxes, polygons=[square(60, 60, 90, 90)], fraction=1.0, rng=np.random.default_rng(0)
    )
    assert rows.tolist() == [[5, 60, 60, 90, 90], [5, 10, 60, 40, 90]]
    assert (pasted != image).any(2).sum() == 961
    np.testing.assert_allclose(outlines[1][:, 0].min(), 10)
    assert (image == canvas(100, 100, (60, 60, 91, 91))).all()  # the given picture is left alone


def test_copies_that_would_cover_an_object_are_left_out():
    image = canvas(100, 100, (10, 10, 31, 31))
    boxes = np.array([[0, 10, 10, 30, 30], [1, 65, 5, 95, 35]], np.float32)  # the second is where a copy would go
    _, rows, _ = copy_paste(
        image, boxes, polygons=[square(10, 10, 30, 30), NONE], fraction=1.0, rng=np.random.default_rng(0)
    )
    assert len(rows) == 2


def test_copy_paste_takes_classes_from_the_outlined_labels():
    boxes = np.array([[0, 40, 40, 60, 60], [1, 1, 1, 8, 8], [2, 40, 1, 60, 8], [3, 1, 90, 8, 98]], np.float32)
    outlines = [NONE, square(1, 1, 8, 8), NONE, square(1, 90, 8, 98)]
    _, rows, polygons = copy_paste(
        np.zeros((100, 100, 3), np.uint8), boxes, polygons=outlines, fraction=1.0, rng=np.random.default_rng(3)
    )
    assert sorted(rows[4:].tolist()) == [[1, 92, 1, 99, 8], [3, 92, 90, 99, 98]] and len(polygons) == 6


@pytest.mark.parametrize("fraction, outlines, copies", [(0.0, 3, 0), (0.5, 4, 2), (1.0, 0, 0)])
def test_copy_paste_takes_a_share_of_the_outlines(fraction, outlines, copies):
    boxes = np.array([[k, 2, 10 * k, 8, 10 * k + 5] for k in range(outlines)], np.float32).reshape(-1, 5)
    polygons = [square(*row[1:]) for row in boxes]
    _, rows, _ = copy_paste(
        np.zeros((100, 100, 3), np.uint8), boxes, polygons=polygons, fraction=fraction, rng=np.random.default_rng(1)
    )
    assert len(rows) == outlines + copies


def test_copy_paste_inside_a_mosaic_keeps_boxes_on_their_objects():
    images = [canvas(160, 160, (20, 30, 60, 70))] + [np.zeros((160, 160, 3), np.uint8)] * 3
    boxes = [np.array([[0, 0.25, 0.3125, 0.25, 0.25]], np.float32)] + [np.zeros((0, 5), np.float32)] * 3
    outlines = [[square(20, 30, 60, 70) / 160], [], [], []]
    copies = 0
    for seed in range(20):
        image, rows = mosaic_of(
            tiles_of(images, boxes, outlines),
            160,
            rng=np.random.default_rng(seed),
            settings=AugmentSettings(scale=0.3, copy_paste=1.0),
        )
        for row in rows:
            x1, y1, x2, y2 = np.round(row[1:]).astype(int)
            inside = image[y1 + 2 : max(y2 - 2, y1 + 3), x1 + 2 : max(x2 - 2, x1 + 3)].reshape(-1, 3)
            assert (np.abs(inside.astype(int) - RED).max(1) < 5).mean() > 0.85
        copies += len(rows) == 2
    assert copies >= 3


def unwarped(image: np.ndarray, boxes: np.ndarray) -> Scene:
    sides = image.shape[:2]
    return Scene(image, (0, 0), (0, 0, *sides[::-1]), Warp(np.eye(3), 1.0, sides, sides), boxes)


def test_mixup_blends_evenly_and_keeps_both_labels():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        mixed = mixup(
            unwarped(np.full((2, 2, 3), 200, np.uint8), BOXES[:1]),
            unwarped(np.zeros((2, 2, 3), np.uint8), BOXES[1:3]),
            rng=rng,
        )
        shares.append(mixed.image()[0, 0, 0] / 200)
    assert mixed.boxes[:, 0].tolist() == [0, 1, 2]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert np.std(shares) == pytest.approx((1 / (4 * 65)) ** 0.5, abs=0.012)  # of Beta(32, 32)


def test_mixed_levels_are_cut_off_not_rounded():
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    mixed = mixup(unwarped(one, BOXES[:1]), unwarped(two, BOXES[:1]), rng=np.random.default_rng(1)).image()
    share = np.random.default_rng(1).beta(32.0, 32.0)
    exact = one * share + two * (1 - share)
    near = np.abs(exact - exact.round()) < 1e-3  # whole by a rounding of the sum
    assert (mixed == exact.astype(np.uint8))[~near].all() and near.mean() < 0.05


# ---- colour and flips


def test_hsv_with_gains_of_zero_changes_nothing():
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    color_flip = sample_color_flip(AugmentSettings(), rng=np.random.default_rng(0))
    assert color_flip == ColorFlip() and color_flip.factors is None and multiply_hsv(image, color_flip.factors) is image


def test_hsv_vector():
    draws = np.array([1.00146, 1.30127, 1.08221]) - 1
    pixels = np.array([[(10, 200, 30), (255, 0, 0), (128, 128, 128), (1, 2, 250)]], np.uint8)
    color_flip = sample_color_flip(AugmentSettings(hsv_h=1.0, hsv_s=1.0, hsv_v=1.0), rng=Fixed(draws))
    shifted = multiply_hsv(pixels, color_flip.factors)
    assert shifted.tolist() == [[[0, 216, 22], [255, 0, 0], [138, 138, 138], [0, 0, 255]]]


@pytest.mark.parametrize("width", [1, 7, 33, 64])
def test_hsv_is_what_tables_make_of_it(width):
    """Each level times its factor, cut off; the hue goes round, where OpenCV may round its colour otherwise."""
    rng = np.random.default_rng(width)
    for factors in (
        *rng.uniform((0.98, 0.1, 0.1), (1.02, 2, 2), (60, 3)),
        *rng.uniform(0, 2, (60, 3)),
        np.ones(3),
        np.array([1.0, 1.5, 0.75]),
    ):
        image = rng.integers(0, 256, (40, width, 3), dtype=np.uint8)
        levels = np.arange(256)[:, None] * factors % [180, 1e9, 1e9]
        tables = levels.clip(0, 255).astype(np.uint8)
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        want = cv2.cvtColor(np.stack([tables[:, c][hsv[..., c]] for c in range(3)], -1), cv2.COLOR_HSV2BGR)
        beyond = hsv[..., 0] * factors[0] >= 180
        got = multiply_hsv(image, factors)
        np.testing.assert_array_equal(got[~beyond], want[~beyond])
        np.testing.assert_allclose(got.astype(int), want, atol=1)


def test_hsv_stays_in_its_gains_and_leaves_the_given_picture_alone():
    image = np.full((4, 4, 3), 100, np.uint8)
    color_flips = [
        sample_color_flip(AugmentSettings(hsv_v=0.4), rng=np.random.default_rng(seed)) for seed in range(100)
    ]
    values = [int(multiply_hsv(image, color_flip.factors)[0, 0, 0]) for color_flip in color_flips]
    assert 59 <= min(values) < 70 and 130 < max(values) <= 140 and (image == 100).all()


SMALL = [(128, 96), (40, 128), (70, 60), (128, 33)]  # of tiles that leave much of a canvas of 256 grey


@pytest.mark.parametrize("hyp", [
    {"scale": 0.5, "translate": 0.1}, {"scale": 0.4, "degrees": 20}, {"perspective": 0.001}, {},
    {"scale": 0.9, "copy_paste": 1.0},
])  # fmt: skip
@pytest.mark.parametrize("seed", range(12))
def test_a_mosaic_is_coloured_as_its_output_would_be(seed, hyp):
    rng = np.random.default_rng(seed)
    images = [cv2.GaussianBlur(rng.integers(0, 255, (*shape, 3), np.uint8), (9, 9), 0) for shape in SMALL]
    outlines = [[square(0.2, 0.2, 0.6, 0.6)]] * 4
    tiles = tiles_of(images, [np.array([[0, 0.4, 0.4, 0.4, 0.4]], np.float32)] * 4, outlines)
    scene = mosaic(tiles, 128, settings=AugmentSettings(**hyp), rng=np.random.default_rng(seed))
    factors = sample_color_flip(AugmentSettings(hsv_h=0.015, hsv_s=0.7, hsv_v=0.4), rng=rng).factors
    plain, canvas = multiply_hsv(scene.image(), factors), multiply_hsv(scene.canvas, factors)
    image_with_hsv = scene.image_with_hsv(factors)
    if scene.warp.begin is None or len(scene.canvas) >= len(plain):
        np.testing.assert_array_equal(image_with_hsv, plain)
    else:  # where there are fewer pixels: before it is enlarged
        off = np.abs(image_with_hsv.astype(int) - scene.warp.image(canvas, scene.origin))
        assert (off > 1).mean() < 1e-3 and off.mean() < 0.05  # OpenCV rounds the ends of rows otherwise
        assert np.abs(image_with_hsv.astype(int) - plain).mean() < 1


def test_colours_of_a_mosaic_reach_all_of_its_grey():
    factors = np.array([1.0, 1.0, 0.5])
    unreadable = [Tile((100, 100), np.zeros((0, 5), np.float32), [], lambda rows: None)] * 4
    for seed in range(20):
        settings = AugmentSettings(scale=0.5, translate=0.4)
        scene = mosaic(unreadable, 96, settings=settings, rng=np.random.default_rng(seed))
        assert (scene.image_with_hsv(factors) == GREY // 2).all()
        small = tiles_of([np.full((20, 30, 3), 250, np.uint8)] * 4, [np.zeros((0, 5), np.float32)] * 4)
        scene = mosaic(small, 96, settings=settings, rng=np.random.default_rng(seed))
        want = multiply_hsv(scene.image(), factors).astype(int)
        np.testing.assert_allclose(scene.image_with_hsv(factors), want, atol=int(len(scene.canvas) < len(want)))


def test_without_factors_a_mosaic_keeps_its_colours():
    images = [np.random.default_rng(k).integers(0, 255, (64, 64, 3), np.uint8) for k in range(4)]
    scene = mosaic(
        tiles_of(images, [np.zeros((0, 5), np.float32)] * 4),
        64,
        settings=AugmentSettings(scale=0.5),
        rng=np.random.default_rng(0),
    )
    assert (scene.image_with_hsv(None) == scene.image()).all()


def test_colours_leave_the_picture_that_a_warp_shows_alone():
    """It may be one that is kept in memory."""
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    kept = image.copy()
    scene = unwarped(image, BOXES[:0])
    factors = np.array([1.0, 0.5, 0.5])
    np.testing.assert_array_equal(scene.image_with_hsv(factors), multiply_hsv(kept, factors))
    assert (image == kept).all()


@pytest.mark.parametrize(
    "color_flip", [ColorFlip(flipud=True), ColorFlip(fliplr=True), ColorFlip(flipud=True, fliplr=True)]
)
def test_flips(color_flip):
    image, boxes = canvas(50, 80, (10, 5, 30, 20)), np.array([[3, 10, 5, 30, 20]], np.float32)
    flipped, rows = color_flip.flip_image(image), color_flip.flip_boxes(boxes, (50, 80))
    x1, y1, x2, y2 = red_box(flipped)
    assert (y1 > 25) == color_flip.flipud and (x1 > 40) == color_flip.fliplr
    np.testing.assert_allclose((x1, y1, x2, y2), rows[0, 1:])
    again, same = color_flip.flip_image(flipped), color_flip.flip_boxes(rows, (50, 80))
    assert (again == image).all() and same.tolist() == boxes.tolist() == [[3, 10, 5, 30, 20]]
    assert color_flip.flip_boxes(boxes[:0], (50, 80)).shape == (0, 5)
    assert boxes.tolist() == [[3, 10, 5, 30, 20]]


@pytest.mark.parametrize("gains", [(0.1, 0.5, 0.4), (0.0, 0.0, 0.4), (0.0, 0.0, 0.0)])
def test_the_order_of_the_last_draws(gains):
    """Three numbers for the colours, unless they stay as they are; then upside down, then left to right."""
    for seed in range(20):
        settings = AugmentSettings(*gains, flipud=0.3, fliplr=0.6)
        rng = np.random.default_rng(seed)
        factors = 1 + rng.uniform(-1, 1, 3) * gains if any(gains) else np.ones(3)
        flipud, fliplr = rng.random() < 0.3, rng.random() < 0.6
        drawn = sample_color_flip(settings, rng=np.random.default_rng(seed))
        assert drawn == (*factors.tolist(), flipud, fliplr)


def test_flips_are_drawn_as_often_as_asked_for():
    settings = AugmentSettings(flipud=0.25, fliplr=0.75)
    drawn = [sample_color_flip(settings, rng=np.random.default_rng(seed)) for seed in range(400)]
    assert 0.18 < np.mean([color_flip.flipud for color_flip in drawn]) < 0.32
    assert 0.68 < np.mean([color_flip.fliplr for color_flip in drawn]) < 0.82


# ---- settings and labels


def test_settings_from_a_mapping_or_an_object():
    class Hyp:
        scale, fliplr, lr0 = 0.5, 0.25, 0.01

    assert AugmentSettings.from_hyp(Hyp()) == AugmentSettings(scale=0.5, fliplr=0.25)
    assert AugmentSettings.from_hyp({"hsv_s": 0.7, "lr0": 0.01}) == AugmentSettings(hsv_s=0.7)


def test_place_labels():
    rows, outlines = place_labels(
        np.array([[2, 0.5, 0.5, 0.2, 0.4]], np.float32), [np.array([[0.5, 1.0]]), NONE], gain=(100, 200), pad=(7, 3)
    )
    np.testing.assert_allclose(rows, [[2, 83, 37, 123, 77]])
    np.testing.assert_allclose(outlines[0], [[103, 107]])
    assert outlines[1].shape == (0, 2)


def test_the_same_generator_gives_the_same_sample():
    images = [np.random.default_rng(k).integers(0, 255, (64, 64, 3), np.uint8) for k in range(4)]
    tiles = tiles_of(images, [np.array([[0, 0.5, 0.5, 0.5, 0.5]], np.float32)] * 4)
    settings = AugmentSettings(scale=0.5, translate=0.1, degrees=5)
    (a, rows), (b, same), (c, _) = (
        mosaic_of(tiles, 64, settings=settings, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert (a == b).all() and rows.tolist() == same.tolist() and (a != c).any()
    assert augment.GREY == 114
