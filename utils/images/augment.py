"""Augmentation of images together with their boxes: mosaic, warp, copy-paste, mixup, colour shift and flip.

Images are (H, W, C) uint8 or uint16, BGR with 3 channels. `boxes` are (n, 5) float32 class, x1, y1, x2, y2 in pixels.
`polygons` holds for each box its outline (k, 2) in pixels, or (0, 2) if only the box is known. Coordinates are
continuous: pixel i spans i…i + 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import cv2
import numpy as np

from utils.config import Hyperparameters
from utils.image_size import ImageSize, to_shape
from utils.images.warp import Box, Polygons, Warp, keep_channels, shift_matrix
from utils.pixel_format import RGB, PixelFormat, grey_of, white_of

MAX_COVERED = 0.30  # share of any other box that a pasted copy may cover
HUES = 180  # steps of OpenCV's 8-bit hue
LEVELS = np.minimum(np.arange(256)[:, None, None], [HUES - 1, 255, 255]).astype(np.uint8)  # (256, 1, 3)


@dataclass(frozen=True)
class AugmentSettings:
    """Hyperparameters of augmentation, under their names in a hyp YAML. With the defaults images stay unchanged."""

    hsv_h: float = 0.0  # hue, saturation and value are multiplied by 1 ± these gains
    hsv_s: float = 0.0
    hsv_v: float = 0.0
    degrees: float = 0.0  # ± rotation
    translate: float = 0.0  # ± fraction of the size
    scale: float = 0.0  # 1 ± gain
    shear: float = 0.0  # ± degrees
    perspective: float = 0.0  # ± fraction per pixel, 0…0.001
    flipud: float = 0.0  # probability, as the next three
    fliplr: float = 0.0
    mosaic: float = 0.0
    mixup: float = 0.0  # given a mosaic
    copy_paste: float = 0.0  # fraction of the outlined objects in a mosaic that are copied

    @classmethod
    def from_hyp(cls, hyp: Hyperparameters | Mapping[str, float]) -> "AugmentSettings":
        """Build settings from a mapping or an object with these names. Missing ones are 0."""
        if isinstance(hyp, Mapping):
            return cls(**{field.name: float(hyp.get(field.name, 0.0)) for field in fields(cls)})
        return cls(**{field.name: float(getattr(hyp, field.name, 0.0)) for field in fields(cls)})

    @property
    def hsv(self) -> tuple[float, float, float]:
        return self.hsv_h, self.hsv_s, self.hsv_v


# ---- labels ----------------------------------------------------------------------------------------------------------


def place_labels(
    boxes: np.ndarray, polygons: Polygons, *, gain: tuple[float, float], pad: tuple[float, float]
) -> tuple[np.ndarray, Polygons]:
    """Convert labels from fractions (class, x, y, w, h) to pixels: fraction * gain + pad, both along y, x."""
    scale, shift = np.array(gain[::-1], np.float32), np.array(pad[::-1], np.float32)
    placed = np.concatenate([boxes[:, :1], _corners(boxes, scale, shift)], 1).astype(np.float32)
    return placed, [polygon * scale + shift if len(polygon) else polygon for polygon in polygons]


def _corners(boxes: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return (n, 4) xyxy of boxes (n, 5) class, x, y, w, h: fraction * scale + shift, (2,) or (n, 2) along x, y."""
    centre, half = boxes[:, 1:3], boxes[:, 3:5] / 2
    return np.concatenate([(centre - half) * scale + shift, (centre + half) * scale + shift], 1)


# ---- random perspective ----------------------------------------------------------------------------------------------


def sample_warp(
    canvas: tuple[int, int], output: tuple[int, int], *, settings: AugmentSettings, rng: np.random.Generator
) -> Warp:
    """Sample a warp from a canvas to an output, both (H, W).

    It centres the canvas, applies perspective, rotation with scaling and shear, and shifts the result to near the
    output's centre.
    """
    s = settings
    limits = s.perspective, s.perspective, s.degrees, s.scale, s.shear, s.shear, s.translate, s.translate
    px, py, degrees, gain, shear_x, shear_y, tx, ty = rng.uniform(-1.0, 1.0, 8) * limits
    scale = max(1.0 + gain, 0.01)
    cos, sin = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    perspective = np.array([[1, 0, 0], [0, 1, 0], [px, py, 1]])
    rotation = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    shear = np.array([[1, np.tan(np.radians(shear_x)), 0], [np.tan(np.radians(shear_y)), 1, 0], [0, 0, 1]])
    to_centre = shift_matrix(-canvas[1] / 2, -canvas[0] / 2)
    to_output = shift_matrix((0.5 + tx) * output[1], (0.5 + ty) * output[0])
    return Warp(to_output @ shear @ rotation @ perspective @ to_centre, scale, tuple(canvas), tuple(output))


@dataclass(frozen=True)
class Scene:
    """Canvas of images that is still to be warped, and the labels after the warp."""

    canvas: np.ndarray  # the whole canvas, or at least the part that the warp shows
    origin: tuple[int, int]  # x, y in the whole canvas of the first pixel of this part
    covered: Box  # part of the whole canvas that has images; the rest is grey
    warp: Warp
    boxes: np.ndarray  # (n, 5) class, x1, y1, x2, y2 in pixels of the output

    def image(self) -> np.ndarray:
        """Return the output image, which may be the canvas itself."""
        return self.warp.image(self.canvas, self.origin)

    def image_with_hsv(self, factors: np.ndarray | None) -> np.ndarray:
        """Return the output image after multiply_hsv.

        If the warp is only a resize, this skips grey areas and pixels that enlarging creates. Call it at most once
        then: it may change the canvas.
        """
        if factors is None or self.warp.begin is None:
            return multiply_hsv(self.image(), factors)
        if self.canvas.shape[0] < self.warp.output[0]:
            x, y = self.origin
            x1, y1, x2, y2 = self.covered
            _multiply_hsv_within(self.canvas, (x1 - x, y1 - y, x2 - x, y2 - y), factors)
            return self.image()
        image = self.image()
        _multiply_hsv_within(image, self.warp.output_region(self.covered), factors)
        return image


def _multiply_hsv_within(image: np.ndarray, region: Box, factors: np.ndarray) -> None:
    """Apply multiply_hsv in place to an image that is grey outside `region`."""
    x1, y1, x2, y2 = region
    inner = image[y1:y2, x1:x2]
    if inner.size:
        multiply_hsv(inner, factors, out=inner)
    for margin in (image[:y1], image[y2:], image[y1:y2, :x1], image[y1:y2, x2:]):
        # Grey has neither hue nor saturation.
        margin[:] = min(int(grey_of(image.dtype) * factors[2]), white_of(image.dtype))


def random_perspective(
    image: np.ndarray, boxes: np.ndarray, *, polygons: Polygons, settings: AugmentSettings, rng: np.random.Generator
) -> Scene:
    """Warp an image and its labels within the image's size. Drop labels that are hardly visible after it."""
    warp = sample_warp(image.shape[:2], image.shape[:2], settings=settings, rng=rng)
    return _whole(image, warp, warp.labels(boxes, polygons))


def _whole(image: np.ndarray, warp: Warp, boxes: np.ndarray) -> Scene:
    return Scene(image, (0, 0), (0, 0, image.shape[1], image.shape[0]), warp, boxes)


# ---- mosaic, copy-paste, mixup ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """Image of a mosaic, decoded only if the warp shows it."""

    shape: tuple[int, int]  # height, width of the whole image
    boxes: np.ndarray  # (n, 5) class, x, y, w, h as fractions
    polygons: Polygons  # as fractions
    # Returns at least the given number of upper rows. None: unreadable; the tile stays grey and its labels are dropped.
    read: Callable[[int], np.ndarray | None]


def mosaic(
    tiles: Sequence[Tile],
    size: ImageSize,
    *,
    settings: AugmentSettings,
    rng: np.random.Generator,
    pixels: PixelFormat = RGB,
) -> Scene:
    """Return four images around a random centre of a canvas of twice the height and width of `size`, with a warp to it.

    The canvas has only the part that the warp shows, and only the tiles in that part are read.
    """
    output = to_shape(size)
    canvas = height, width = 2 * output[0], 2 * output[1]
    centre_y, centre_x = rng.uniform((height / 4, width / 4), (3 * height / 4, 3 * width / 4)).astype(int).tolist()
    warp = sample_warp(canvas, output, settings=settings, rng=rng).on_whole_pixels()
    pastes = settings.copy_paste > 0 and any(len(polygon) for tile in tiles for polygon in tile.polygons)
    region = (0, 0, *canvas) if pastes else warp.visible_region()
    image = blank_image((region[3] - region[1], region[2] - region[0]), pixels)
    inside = image[max(-region[1], 0) : max(height - region[1], 0), max(-region[0], 0) : max(width - region[0], 0)]
    shift = max(region[0], 0), max(region[1], 0)  # x, y of the first pixel of `inside` in the canvas
    shown, corners = [], []
    for k, tile in enumerate(tiles):  # top left, top right, bottom left, bottom right: each touches the centre
        left = centre_x if k % 2 else centre_x - tile.shape[1]
        top = centre_y if k >= 2 else centre_y - tile.shape[0]
        if _paste(inside, tile, left - shift[0], top - shift[1]):
            shown.append(tile)
            corners.append((left, top))
    boxes, polygons = _place_tile_labels(shown, corners, canvas)
    if pastes:
        image, boxes, polygons = copy_paste(image, boxes, polygons=polygons, fraction=settings.copy_paste, rng=rng)
    covered = region if pastes else _covered_part(region, shown, corners)  # copies may be anywhere
    return Scene(image, region[:2], covered, warp, warp.labels(boxes, polygons))


def blank_image(shape: tuple[int, int], pixels: PixelFormat) -> np.ndarray:
    """Return a grey image (H, W, C) of a pixel format."""
    return np.full((*shape, pixels.channels), grey_of(pixels.dtype), pixels.dtype)


def _covered_part(region: Box, tiles: Sequence[Tile], corners: Sequence[tuple[int, int]]) -> Box:
    """Return the part of a region of the canvas that tiles at these corners (left, top) cover together."""
    x1, y1, x2, y2 = region
    if not tiles:
        return x1, y1, x1, y1
    left, top = map(min, zip(*corners))
    right, bottom = (max(corner[k] + tile.shape[1 - k] for tile, corner in zip(tiles, corners)) for k in (0, 1))
    return max(left, x1), max(top, y1), min(right, x2), min(bottom, y2)


def _place_tile_labels(
    tiles: Sequence[Tile], corners: Sequence[tuple[int, int]], canvas: tuple[int, int]
) -> tuple[np.ndarray, Polygons]:
    """Return the labels of all tiles in pixels of a canvas (H, W), clipped to their tile and to the canvas.

    `corners` holds left, top of each tile. Clipping matters because a label may extend beyond its image.
    """
    if not tiles:
        return np.zeros((0, 5), np.float32), []
    frames = np.array([(*tile.shape[::-1], *corner) for tile, corner in zip(tiles, corners)], np.float32)
    low, high = frames[:, 2:].clip(0), (frames[:, 2:] + frames[:, :2]).clip(None, canvas[::-1])  # (tiles, 2) x, y
    outlines = [(k, polygon) for k, tile in enumerate(tiles) for polygon in tile.polygons]
    polygons = [
        (polygon * frames[k, :2] + frames[k, 2:]).clip(low[k], high[k]) if len(polygon) else polygon
        for k, polygon in outlines
    ]
    of_tile = np.repeat(np.arange(len(tiles)), [len(tile.boxes) for tile in tiles])
    rows = np.concatenate([tile.boxes for tile in tiles])
    placed = _corners(rows, frames[of_tile, :2], frames[of_tile, 2:])
    placed = placed.clip(*(bound[of_tile][:, [0, 1, 0, 1]] for bound in (low, high)))
    return np.concatenate([rows[:, :1], placed], 1, dtype=np.float32), polygons


def _paste(image: np.ndarray, tile: Tile, left: int, top: int) -> bool:
    """Copy the part of a tile that is inside `image`. Return False if there is none, or the tile is unreadable."""
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + tile.shape[1], image.shape[1]), min(top + tile.shape[0], image.shape[0])
    source = tile.read(y2 - top) if x1 < x2 and y1 < y2 else None
    if source is None:
        return False
    image[y1:y2, x1:x2] = source[y1 - top : y2 - top, x1 - left : x2 - left]
    return True


def copy_paste(
    image: np.ndarray, boxes: np.ndarray, *, polygons: Polygons, fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, Polygons]:
    """Paste mirrored copies of a random `fraction` of the outlined objects at their mirrored positions.

    Skip a copy that would cover 30 % or more of any box, earlier copies included (Ghiasi et al., 2021).
    """
    outlined = [j for j, polygon in enumerate(polygons) if len(polygon)]
    chosen = rng.permutation(outlined)[: round(fraction * len(outlined))].tolist()
    if not chosen:
        return image, boxes, polygons
    source, image, width = image, image.copy(), image.shape[1]
    for j in chosen:
        class_index, x1, y1, x2, y2 = boxes[j]
        mirrored = np.array([class_index, width - x2, y1, width - x1, y2], np.float32)
        if (_covered(boxes[:, 1:], mirrored[1:]) < MAX_COVERED).all():
            _paste_mirrored(image, source, polygons[j])
            boxes = np.concatenate([boxes, mirrored[None]])
            polygons = [*polygons, np.stack([width - polygons[j][:, 0], polygons[j][:, 1]], 1)]
    return image, boxes, polygons


def _covered(boxes: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Return (n,) the share of each box (n, 4) that the box `cover` (4,) hides."""
    sides = np.minimum(boxes[:, 2:], cover[2:]) - np.maximum(boxes[:, :2], cover[:2])
    return sides.clip(0).prod(1) / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + 1e-7)


def _paste_mirrored(image: np.ndarray, source: np.ndarray, polygon: np.ndarray) -> None:
    """Copy the pixels inside `polygon` from `source` to the mirrored position in `image`."""
    height, width = image.shape[:2]
    points = polygon.astype(np.int32)
    x1, y1 = points.min(0).clip(0).tolist()
    x2, y2 = (points.max(0) + 1).clip(0, (width, height)).tolist()
    mask = np.zeros((max(y2 - y1, 0), max(x2 - x1, 0)), np.uint8)
    if mask.size:
        cv2.fillPoly(mask, [points - np.array([x1, y1], np.int32)], 1)
        mirror = mask[:, ::-1].astype(bool)
        image[y1:y2, width - x2 : width - x1][mirror] = source[y1:y2, x1:x2][:, ::-1][mirror]


def mixup(scene: Scene, other: Scene, *, rng: np.random.Generator) -> Scene:
    """Blend two images of one size and keep the labels of both (Zhang et al., 2018).

    The weight is from Beta(32, 32).
    """
    weight = float(rng.beta(32.0, 32.0))
    image = keep_channels(cv2.addWeighted(scene.image(), weight, other.image(), 1.0 - weight, -0.4999))  # rounds down
    identity = Warp(np.eye(3), 1.0, image.shape[:2], image.shape[:2])
    return _whole(image, identity, np.concatenate([scene.boxes, other.boxes]))


# ---- colour shift and flips ------------------------------------------------------------------------------------------


class ColorFlip(NamedTuple):
    """Colour shift and flips, the last step of augmentation, applied in the data worker or on the GPU."""

    hue: float = 1.0  # factor, as the next two
    saturation: float = 1.0
    value: float = 1.0
    flipud: bool = False
    fliplr: bool = False

    @property
    def factors(self) -> np.ndarray | None:
        """Factors (3,) for multiply_hsv, or None if the colours stay unchanged."""
        return None if self[:3] == (1.0, 1.0, 1.0) else np.array(self[:3])

    def flip_image(self, image: np.ndarray) -> np.ndarray:
        """Return the flipped image, or the image itself without a flip."""
        axis = {(True, False): 0, (False, True): 1, (True, True): -1}.get((self.flipud, self.fliplr))
        return image if axis is None else keep_channels(cv2.flip(image, axis))

    def flip_boxes(self, boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Return the boxes (n, 5) of the flipped image of shape (H, W)."""
        boxes = boxes.copy()
        for flipped, columns, side in ((self.flipud, [2, 4], shape[0]), (self.fliplr, [1, 3], shape[1])):
            if flipped:
                boxes[:, columns] = side - boxes[:, columns[::-1]]
        return boxes


def sample_color_flip(settings: AugmentSettings, *, rng: np.random.Generator) -> ColorFlip:
    """Sample factors of 1 ± the gains for hue, saturation and value, and whether to flip."""
    hue, saturation, value = 1.0 + rng.uniform(-1.0, 1.0, 3) * settings.hsv if any(settings.hsv) else (1.0, 1.0, 1.0)
    factors = float(hue), float(saturation), float(value)
    return ColorFlip(*factors, bool(rng.random() < settings.flipud), bool(rng.random() < settings.fliplr))


def multiply_hsv(image: np.ndarray, factors: np.ndarray | None, *, out: np.ndarray | None = None) -> np.ndarray:
    """Multiply hue, saturation and value by `factors` (3,) and round down. None returns the image itself.

    Without 3 channels, all of them are multiplied by the factor of the value. The result is written to `out` if given.
    """
    if factors is None:
        return image
    if image.dtype != np.uint8 or image.shape[2] != 3:
        shifted = _multiply_hsv_deep(image, factors) if image.shape[2] == 3 else image * np.float32(factors[2])
        shifted = shifted.clip(0, white_of(image.dtype))
        if out is None:
            return shifted.astype(image.dtype)
        out[:] = shifted
        return out
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    tables = LEVELS * factors
    tables[..., 0] %= HUES
    tables = tables.clip(0, 255).astype(np.uint8)
    matrix = np.column_stack([np.diag(factors), [-0.4999] * 3])  # rounds down: transform rounds to the nearest
    levels = cv2.transform(LEVELS, matrix)
    levels[..., 0] %= HUES  # hues above 8 bits are wrapped by OpenCV itself
    same = np.array_equal(levels, tables)  # nearly always; a look-up per value takes seven times as long
    shifted = cv2.transform(hsv, matrix) if same else cv2.LUT(hsv, tables)
    return cv2.cvtColor(shifted, cv2.COLOR_HSV2BGR, dst=out)


def _multiply_hsv_deep(image: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return the float32 levels of a uint16 BGR image whose hue, saturation and value are multiplied."""
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_BGR2HSV) * factors.astype(np.float32)
    hsv[..., 0] %= 360
    np.minimum(hsv[..., 1:], (1, white_of(image.dtype)), out=hsv[..., 1:])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
