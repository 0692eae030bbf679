"""Augmentation: boxes stay on their objects, and pixels are those of the textbook method."""

import cv2
import numpy as np
import pytest
from red_rectangle import BOXES, NONE, RED, Fixed, canvas, red_box, square

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
    sample_color_flip,
    sample_warp,
)
from utils.images.warp import Warp
from utils.pixel_format import GREY

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


def textbook_mosaic(tiles: list[Tile], shape: tuple[int, int], settings: AugmentSettings, rng) -> np.ndarray:
    """Fill the whole canvas of twice the height and width tile by tile, then warp it, with the same random numbers."""
    height, width = shape
    y, x = int(rng.uniform(height / 2, 3 * height / 2)), int(rng.uniform(width / 2, 3 * width / 2))
    warp = sample_warp((2 * height, 2 * width), shape, settings=settings, rng=rng).on_whole_pixels()
    padded = np.full(
        (4 * height, 4 * width, 3), GREY, np.uint8
    )  # with a margin of one image on each side, cropped below
    for (row, column), tile in zip(((0, 0), (0, 1), (1, 0), (1, 1)), tiles):
        h, w = tile.shape
        top, left = height + y - h * (1 - row), width + x - w * (1 - column)
        padded[top : top + h, left : left + w] = tile.read(h)
    return interpolated(padded[height : 3 * height, width : 3 * width], warp)


def interpolated(canvas: np.ndarray, warp: Warp) -> np.ndarray:
    """Warp a canvas with bilinear interpolation in float64, without OpenCV."""
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
@pytest.mark.parametrize("shape, shapes", [
    ((128, 128), [(128, 96), (70, 128), (128, 128), (128, 33)]),
    ((96, 160), [(96, 128), (70, 160), (96, 160), (96, 33)]),
    ((160, 96), [(96, 96), (160, 70), (160, 96), (20, 96)]),
])  # fmt: skip
def test_mosaic_has_the_pixels_of_the_textbook_method(seed, hyp, furthest, shape, shapes):
    rng = np.random.default_rng(seed)
    images = [cv2.GaussianBlur(rng.integers(0, 255, (*shape, 3), np.uint8), (9, 9), 0) for shape in shapes]
    tiles = tiles_of(images, [np.zeros((0, 5), np.float32)] * 4)
    settings = AugmentSettings(**hyp)
    ours, rows = mosaic_of(tiles, shape, settings=settings, rng=np.random.default_rng(seed))
    textbook = textbook_mosaic(tiles, shape, settings, np.random.default_rng(seed))
    assert ours.shape == (*shape, 3) and rows.shape == (0, 5)
    # a resize repeats the edge where there is no pixel before
    difference = np.abs(ours.astype(float) - textbook)[1:, 1:]
    assert difference.mean() < 0.6 and difference.max() <= furthest


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("size, shapes", [
    (160, [(160, 120), (88, 160), (160, 160), (100, 160)]),
    ((128, 192), [(128, 120), (88, 192), (128, 192), (100, 192)]),
    ((192, 128), [(192, 120), (88, 128), (192, 128), (100, 128)]),
])  # fmt: skip
def test_mosaic_keeps_boxes_on_their_objects(seed, size, shapes):
    """Each tile has one box in a colour channel of its own, the fourth has none."""
    images, boxes = [], []
    for k, (h, w) in enumerate(shapes):
        image = np.zeros((h, w, 3), np.uint8)
        if k < 3:
            image[h // 4 : h // 2, w // 4 : w // 2, k] = 255
        images.append(image)
        boxes.append(np.array([[k, 0.375, 0.375, 0.25, 0.25]], np.float32)[: k < 3])
    settings = AugmentSettings(scale=0.5, translate=0.1)
    image, rows = mosaic_of(tiles_of(images, boxes), size, settings=settings, rng=np.random.default_rng(seed))
    for class_index, *box in rows.tolist():
        own = image[..., int(class_index)].astype(int) - np.delete(image, int(class_index), 2).max(
            2
        )  # grey has none of it
        found = red_box(np.stack([np.zeros_like(own), np.zeros_like(own), own.clip(0)], 2))
        np.testing.assert_allclose(found, box, atol=0.6)


def test_invisible_tiles_are_not_read_and_have_no_labels():
    read = []
    row = np.array([[0, 0.5, 0.5, 1, 1]], np.float32)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]  # none of which others can blend to
    images = [np.full((100, 100, 3), colour, np.uint8) for colour in colours]
    tiles = [Tile((100, 100), row, [NONE], lambda rows, k=k: read.append(k) or images[k][:rows]) for k in range(4)]
    seen = set()
    for seed in range(60):
        read.clear()
        image, rows = mosaic_of(tiles, 100, settings=AugmentSettings(scale=0.9), rng=np.random.default_rng(seed))
        visible = {k for k in range(4) if (image == colours[k]).all(2).any()}
        assert visible <= set(read) and len(rows) <= len(read)
        seen.add(len(read))
    assert min(seen) < 4 == max(seen)


def test_unreadable_tile_stays_grey_and_loses_its_labels():
    row = np.array([[0, 0.5, 0.5, 0.5, 0.5]], np.float32)
    tiles = [Tile((100, 100), row, [NONE], lambda rows: None)] * 4
    image, rows = mosaic_of(tiles, 100, settings=AugmentSettings(), rng=np.random.default_rng(0))
    assert (image == GREY).all() and len(rows) == 0


def test_label_beyond_its_tile_is_clipped_to_it():
    wide = np.array([[1, 0.9, 0.5, 0.8, 0.5]], np.float32)
    images = [np.zeros((100, 100, 3), np.uint8)] * 4
    tiles = tiles_of(images, [wide] * 4)
    for seed in range(20):
        _, x = np.random.default_rng(seed).uniform(50, 150, 2).astype(int)
        _, rows = mosaic_of(tiles, 100, settings=AugmentSettings(), rng=np.random.default_rng(seed))
        left = rows[(rows[:, 1] < x - 50)]
        assert (left[:, 3] <= x - 50 + 1e-3).all()


def test_polygons_follow_their_own_label_in_a_mosaic():
    """Each tile has two labels. Only the second has an outline: a triangle, whose hull equals its box when upright."""
    rows = np.array([[0, 0.2, 0.2, 0.2, 0.2], [1, 0.7, 0.7, 0.4, 0.4]], np.float32)
    triangle = np.array([(0.5, 0.5), (0.9, 0.5), (0.5, 0.9)], np.float32)
    tiles = tiles_of([np.zeros((100, 100, 3), np.uint8)] * 4, [rows] * 4, [[NONE, triangle]] * 4)
    plain = tiles_of([np.zeros((100, 100, 3), np.uint8)] * 4, [rows] * 4)
    settings = AugmentSettings(scale=0.2)
    for seed in range(10):
        _, ours = mosaic_of(tiles, 100, settings=settings, rng=np.random.default_rng(seed))
        _, want = mosaic_of(plain, 100, settings=settings, rng=np.random.default_rng(seed))
        for class_index, *box in want.tolist():  # a cut triangle may be smaller, or gone
            same = ours[ours[:, 0] == class_index]
            assert class_index == 1 or np.abs(same[:, 1:] - box).max(1).min() < 1e-3
        for class_index, *box in ours.tolist():
            whole = want[want[:, 0] == class_index][:, 1:]
            low_ok, high_ok = whole[:, :2] <= np.array(box[:2]) + 1e-3, whole[:, 2:] >= np.array(box[2:]) - 1e-3
            holds = np.concatenate([low_ok, high_ok], 1)
            assert holds.all(1).any()


# ---- copy-paste and mixup


def test_copy_paste_mirrors_object_label_and_outline():
    image = canvas(100, 100, (60, 60, 91, 91))
    boxes = np.array([[5, 60, 60, 90, 90]], np.float32)
    pasted, rows, outlines = copy_paste(
        image, boxes, polygons=[square(60, 60, 90, 90)], fraction=1.0, rng=np.random.default_rng(0)
    )
    assert rows.tolist() == [[5, 60, 60, 90, 90], [5, 10, 60, 40, 90]]
    assert (pasted != image).any(2).sum() == 961
    np.testing.assert_allclose(outlines[1][:, 0].min(), 10)
    assert (image == canvas(100, 100, (60, 60, 91, 91))).all()  # the input stays unchanged


def test_copies_that_would_cover_an_object_are_skipped():
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


def test_mixed_levels_are_rounded_down():
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    mixed = mixup(unwarped(one, BOXES[:1]), unwarped(two, BOXES[:1]), rng=np.random.default_rng(1)).image()
    share = np.random.default_rng(1).beta(32.0, 32.0)
    exact = one * share + two * (1 - share)
    near = np.abs(exact - exact.round()) < 1e-3  # whole by a rounding of the sum
    assert (mixed == exact.astype(np.uint8))[~near].all() and near.mean() < 0.05


# ---- colour shift and flips


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
def test_hsv_equals_a_table_lookup(width):
    """Each level is multiplied and rounded down. Hues wrap around, and OpenCV may round those colours differently."""
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


def test_hsv_stays_within_its_gains_and_keeps_the_input():
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
def test_mosaic_gets_the_colours_of_its_output(seed, hyp):
    rng = np.random.default_rng(seed)
    images = [cv2.GaussianBlur(rng.integers(0, 255, (*shape, 3), np.uint8), (9, 9), 0) for shape in SMALL]
    outlines = [[square(0.2, 0.2, 0.6, 0.6)]] * 4
    tiles = tiles_of(images, [np.array([[0, 0.4, 0.4, 0.4, 0.4]], np.float32)] * 4, outlines)
    scene = mosaic(tiles, 128, settings=AugmentSettings(**hyp), rng=np.random.default_rng(seed))
    factors = sample_color_flip(AugmentSettings(hsv_h=0.015, hsv_s=0.7, hsv_v=0.4), rng=rng).factors
    plain, canvas = multiply_hsv(scene.image(), factors), multiply_hsv(scene.canvas, factors)
    shifted = scene.image_with_hsv(factors)
    if scene.warp.begin is None or len(scene.canvas) >= len(plain):
        np.testing.assert_array_equal(shifted, plain)
    else:  # where there are fewer pixels: before it is enlarged
        off = np.abs(shifted.astype(int) - scene.warp.image(canvas, scene.origin))
        assert (off > 1).mean() < 1e-3 and off.mean() < 0.05  # OpenCV rounds the ends of rows otherwise
        assert np.abs(shifted.astype(int) - plain).mean() < 1


def test_colour_shift_of_a_mosaic_covers_all_grey():
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


def test_colour_shift_keeps_the_canvas_of_an_identity_warp():
    """The canvas may be an image of the RAM cache."""
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
def test_order_of_the_random_numbers(gains):
    """Three numbers for the colours, if any gain is set. Then one for flipud and one for fliplr."""
    for seed in range(20):
        settings = AugmentSettings(*gains, flipud=0.3, fliplr=0.6)
        rng = np.random.default_rng(seed)
        factors = 1 + rng.uniform(-1, 1, 3) * gains if any(gains) else np.ones(3)
        flipud, fliplr = rng.random() < 0.3, rng.random() < 0.6
        drawn = sample_color_flip(settings, rng=np.random.default_rng(seed))
        assert drawn == (*factors.tolist(), flipud, fliplr)


def test_flips_occur_with_their_probability():
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


def test_same_generator_gives_the_same_sample():
    images = [np.random.default_rng(k).integers(0, 255, (64, 64, 3), np.uint8) for k in range(4)]
    tiles = tiles_of(images, [np.array([[0, 0.5, 0.5, 0.5, 0.5]], np.float32)] * 4)
    settings = AugmentSettings(scale=0.5, translate=0.1, degrees=5)
    (a, rows), (b, same), (c, _) = (
        mosaic_of(tiles, 64, settings=settings, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert (a == b).all() and rows.tolist() == same.tolist() and (a != c).any()
    assert GREY == 114


# ---- other pixel formats


def test_colours_of_16_bits_are_shifted_as_those_of_8():
    shallow = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    for factors in ((1, 1, 1.3), (1, 0.5, 1), (0.98, 1.2, 0.8)):
        found = multiply_hsv(shallow * np.uint16(257), np.array(factors))
        expected = multiply_hsv(shallow, np.array(factors))
        assert found.dtype == np.uint16
        difference = np.abs(found / 257 - expected)
        assert difference.mean() < 2 and np.quantile(difference, 0.99) < 8  # 8 bits know 180 hues


@pytest.mark.parametrize("channels, kind, white", [(1, np.uint8, 255), (5, np.uint8, 255), (2, np.uint16, 65535)])
def test_without_colours_only_the_value_counts(channels, kind, white):
    image = np.random.default_rng(0).integers(0, white + 1, (10, 12, channels)).astype(kind)
    found = multiply_hsv(image, np.array((1.5, 0.2, 1.25)))
    assert found.dtype == kind and np.abs(found - np.minimum(image * 1.25, white)).max() <= 1
    assert multiply_hsv(image, None) is image
    assert multiply_hsv(image, np.array((1, 1, 0.5)), out=image) is image
