"""Warps: boxes and outlines stay on their objects."""

import cv2
import numpy as np
import pytest
from red_rectangle import BOXES, NONE, Fixed, canvas, red_box, square

from utils.images.augment import AugmentSettings, random_perspective, sample_warp
from utils.images.warp import Warp, is_visible, visible_hulls

# Random numbers in -1...1 for the vectors below: px, py, angle, gain, two shears, two shifts.
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


def test_warp_that_only_scales_begins_with_a_whole_pixel():
    warp = fixed_warp()
    assert warp.begin is None
    moved = warp.on_whole_pixels()
    assert moved.begin is not None and moved.begin == moved.visible_region()[:2]
    np.testing.assert_allclose(moved.points(np.array([moved.begin], float)), [[0, 0]], atol=1e-9)
    assert np.abs(moved.matrix - warp.matrix).max() <= warp.scale / 2 and moved.scale == warp.scale
    turned = fixed_warp(degrees=10)
    assert turned.on_whole_pixels() is turned


def test_warp_without_labels_or_points():
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
def test_visible_boxes(before, after, area, keep):
    old, new = np.array([[0, 0, before, before]], float), np.array([[0, 0, *after]], float)
    assert is_visible(old, new, area).tolist() == [keep]


def test_visible_boxes_of_none():
    assert is_visible(np.zeros((0, 4)), np.zeros((0, 4)), 0.1).shape == (0,)


def perspective_of(image, boxes, polygons, settings, seed=0):
    """Return the output image and the boxes of a random perspective."""
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


def test_default_settings_return_the_image_itself():
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
    """Return the hull of 20 000 points per edge inside the window, and of the window's corners inside the polygon."""
    t = np.linspace(0, 1, 20_000)[:, None]
    points = [a + t * (b - a) for a, b in zip(polygon, np.roll(polygon, -1, 0))]
    corners = [(0, 0), (width, 0), (width, height), (0, height)]
    outline = polygon.astype(np.float32)[:, None]
    points.append(np.array([c for c in corners if cv2.pointPolygonTest(outline, c, False) > 0], float).reshape(-1, 2))
    points = np.concatenate(points)
    points = points[((points >= 0) & (points <= (width, height))).all(1)]
    return np.concatenate([points.min(0), points.max(0)]) if len(points) else np.zeros(4)


def test_visible_hulls_equal_those_of_densely_sampled_polygons():
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
