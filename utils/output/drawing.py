"""Boxes and text drawn on images, grids of a batch, image files. Functions never change the caller's arrays.

Letters: B batch, H W rows and columns, T targets, N detections.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.boxes import xywh_to_xyxy
from utils.errors import UserError
from utils.files import atomic_write
from utils.images.conversion import displayable
from utils.output.fonts import choose_font

# Neighbouring classes differ in lightness as well as in hue, so that colour-blind people can distinguish them.
_HEX = (
    "042AFF 0BDBEB F3F3F3 00DFB7 111F68 FF6FDD FF444F "
    "CCED00 00F344 BD00FF 00B4FF DD00BA 00FFFF 26C000 "
    "01FFB3 7D24FF 7B0068 FF1B6C FC6D2F A2FF0B"
)
PALETTE = tuple(tuple(bytes.fromhex(code)) for code in _HEX.split())  # RGB

BGR = tuple[int, int, int]

NEARLY_WHITE = 220  # lightness above which lines need an outline to be visible on bright images
OUTLINE = (60, 60, 60)
DASH = 4  # length of a dash, by the width of the line

MAX_SIDE = 1920  # pixels of a grid of images
MIN_SIDE = 1000  # small images are enlarged towards it, up to fourfold


Names = Mapping[int, str] | Sequence[str]  # of classes, by class id


def color(index: float) -> BGR:
    """Return the BGR colour of a class, for drawing with OpenCV. The palette repeats after 20 classes."""
    red, green, blue = PALETTE[int(index) % len(PALETTE)]
    return blue, green, red


def draw_boxes(
    image: np.ndarray,
    boxes_xyxy: np.ndarray,
    labels: Sequence[str],
    classes: Sequence[int] | np.ndarray,
    *,
    line_width: int | None = None,
    font_size: int | None = None,
    dashed: Sequence[bool] = (),
) -> np.ndarray:
    """Return a copy of an image, as BGR uint8 (H, W, 3), with boxes (N, 4) in pixels and a label on each.

    "" draws no label. `dashed` says which of the first boxes have dashed lines.
    All boxes are drawn before all labels, later boxes on top: pass the lowest score first.
    """
    canvas = np.array(displayable(image), order="C")
    height, width = canvas.shape[:2]
    line_width = line_width or max(round((height + width) * 0.0015), 2)
    font_size = font_size or max(round(line_width * 6), 12)
    limit = np.array([width, height, width, height], dtype=np.float64)
    corners = np.clip(as_array(boxes_xyxy).reshape(-1, 4).astype(np.float64), 0, limit - 1).round().astype(int)
    all_dashed = [*dashed, *[False] * (len(corners) - len(dashed))]
    for (x1, y1, x2, y2), index, is_dashed in zip(corners.tolist(), classes, all_dashed, strict=True):
        draw = partial(_dashed_rectangle, dash=DASH * line_width) if is_dashed else cv2.rectangle
        if lightness(color(index)) > NEARLY_WHITE:
            draw(canvas, (x1, y1), (x2, y2), OUTLINE, line_width + 2)
        draw(canvas, (x1, y1), (x2, y2), color(index), line_width)
    for (x1, y1, _, _), label, index in zip(corners.tolist(), labels, classes, strict=True):
        if label:
            _draw_label(canvas, label, x1 - line_width // 2, y1, font_size, color(index))
    return canvas


def _dashed_rectangle(
    image: np.ndarray, low: tuple[int, int], high: tuple[int, int], ink: BGR, width: int, *, dash: int
) -> None:
    """Draw a dashed rectangle into `image` itself, with whole dashes at the corners."""
    (x1, y1), (x2, y2) = low, high
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    for start, end in zip(corners, corners[1:] + corners[:1]):
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        dashes = max(round((length / dash + 1) / 2), 2)  # and one gap less, all of equal length
        stops = np.linspace(start, end, 2 * dashes).round().astype(int).tolist()
        for first, last in zip(stops[::2], stops[1::2]):
            cv2.line(image, first, last, ink, width)


def crop_with_margin(image: np.ndarray, box_xyxy: Sequence[float]) -> np.ndarray:
    """Return an image's part in a box in pixels, with a margin of 1 % and 5 pixels on each side, as BGR uint8."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = map(float, box_xyxy)
    margin_x, margin_y = (x2 - x1) * 0.01 + 5, (y2 - y1) * 0.01 + 5
    left, top = max(int(x1 - margin_x), 0), max(int(y1 - margin_y), 0)
    right, bottom = min(int(x2 + margin_x), width), min(int(y2 + margin_y), height)
    return displayable(image)[top:bottom, left:right].copy()


def plot_batch(
    images: np.ndarray,
    boxes: np.ndarray | Sequence[np.ndarray],
    paths: Sequence[str],
    file: str | Path,
    *,
    names: Names | None = None,
    max_images: int = 16,
    min_confidence: float = 0.25,
) -> None:
    """Write a grid of the first images of a batch with their boxes and file names.

    images: (B, C, H, W), RGB with 3 channels, levels or floats in 0...1. See `displayable` for others.
    boxes: targets (T, 6) = image, class, x, y, w, h in 0...1, or a list of detections (N, 6).
    Columns of detections: x1, y1, x2, y2 in pixels of `images`, confidence, class. They are drawn if their confidence
    is above `min_confidence`.
    """
    images = as_array(images[:max_images])
    count, _, height, width = images.shape
    side = math.ceil(math.sqrt(count))
    whole = side * max(height, width)
    scale = min(max(1.0, min(4.0, MIN_SIDE / whole)), MAX_SIDE / whole)
    cell_h, cell_w = round(height * scale), round(width * scale)
    font_size = max(11, round(min(cell_h, cell_w) / 30))
    grid = np.full((side * cell_h, side * cell_w, 3), 255, dtype=np.uint8)
    per_image = _boxes_per_image(boxes, count, width, height, min_confidence)
    for i, found in enumerate(per_image):
        cell = cv2.resize(_bgr(images[i]), (cell_w, cell_h), interpolation=cv2.INTER_AREA)
        texts = [_class_text(row[4], row[5], names) for row in found]
        cell = draw_boxes(cell, found[:, :4] * scale, texts, found[:, 4], line_width=2, font_size=font_size)
        if i < len(paths):
            _draw_label(cell, Path(paths[i]).name[:40], 2, cell_h, font_size, (60, 60, 60))
        cv2.rectangle(cell, (0, 0), (cell_w - 1, cell_h - 1), (255, 255, 255), 2)
        left, top = (i // side) * cell_w, (i % side) * cell_h
        grid[top : top + cell_h, left : left + cell_w] = cell
    save_image(file, grid)


def save_image(file: str | Path, image: np.ndarray, *, quality: int = 95) -> None:
    """Write a BGR uint8 image in the format of the file's suffix, atomically.

    JPEG keeps the colour of every pixel (4:4:4), because subsampling would smear coloured lines and text.
    Raise UserError for a format that OpenCV cannot write.
    """
    options = []
    if Path(file).suffix.lower() in {".jpg", ".jpeg"}:
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    try:
        written, encoded = cv2.imencode(Path(file).suffix, image, options)
    except cv2.error:
        written, encoded = False, np.empty(0)
    if not written:
        raise UserError(f"{file}: OpenCV cannot write images of this kind; use .jpg or .png")
    with atomic_write(file) as stream:
        stream.write(encoded.tobytes())


def as_array(values: object) -> np.ndarray:
    """Return a NumPy view of an array, or of a tensor on any device. Drawing then needs no torch."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def class_name(names: Names, index: int) -> str:
    """Return the name of a class, or its number if it has no name."""
    if isinstance(names, Mapping):
        return str(names.get(index, index))
    return str(names[index] if 0 <= index < len(names) else index)


# ---- text


@lru_cache(maxsize=32)
def _font(size: int, file: Path | None) -> ImageFont.FreeTypeFont:
    font = ImageFont.truetype(str(file), size) if file else ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # always if a size is given
    return font


def _text_mask(text: str, size: int) -> np.ndarray:
    """Return the coverage (h, w, 1) in 0...1 of a line of text with a margin around it."""
    text, file = choose_font(text)
    font = _font(size, file)
    ascent, descent = font.getmetrics()
    margin = max(2, size // 6)
    canvas = Image.new("L", (math.ceil(font.getlength(text)) + 2 * margin, ascent + descent + 1))
    ImageDraw.Draw(canvas).text((margin, 0), text, fill=255, font=font)
    return np.asarray(canvas, dtype=np.float32)[:, :, None] / 255


def _draw_label(image: np.ndarray, text: str, left: int, bottom: int, size: int, background: BGR) -> None:
    """Draw text in a filled box into `image` itself: above `bottom` if there is room, else below it."""
    mask = _text_mask(text.replace("\n", " "), size)
    height, width = mask.shape[:2]
    top = bottom - height if bottom >= height else bottom
    left, top = max(0, min(left, image.shape[1] - width)), max(0, min(top, image.shape[0] - height))
    region = image[top : top + height, left : left + width]
    mask = mask[: region.shape[0], : region.shape[1]]
    ink = np.array(_ink(background), dtype=np.float32)
    region[:] = (np.array(background, dtype=np.float32) * (1 - mask) + ink * mask).round().astype(np.uint8)


def _ink(background_bgr: BGR) -> BGR:
    """Return black or white, the one with more contrast to a BGR background."""
    return (255, 255, 255) if lightness(background_bgr) < 140 else (0, 0, 0)


def lightness(colour: BGR) -> float:
    """Return the luma (Rec. 601) of a BGR colour, 0 to 255."""
    blue, green, red = colour
    return 0.114 * blue + 0.587 * green + 0.299 * red


# ---- grids


def _bgr(image: np.ndarray) -> np.ndarray:
    """Convert (C, H, W), levels or floats in 0...1, to a new (H, W, 3) BGR uint8 array."""
    if image.dtype.kind == "f":
        image = (np.clip(image.astype(np.float32), 0, 1) * 255).round().astype(np.uint8)
    pixels = image.transpose(1, 2, 0)
    return np.array(displayable(pixels[:, :, ::-1] if len(image) == 3 else pixels), order="C")


def _boxes_per_image(
    boxes: np.ndarray | Sequence[np.ndarray], count: int, width: int, height: int, min_confidence: float
) -> list[np.ndarray]:
    """Convert targets or detections (see plot_batch) to rows (n, 6) per image: xyxy in pixels, class, confidence.

    The confidence of targets is nan.
    """
    if isinstance(boxes, (list, tuple)):
        found = []
        for rows in boxes[:count]:
            rows = as_array(rows).reshape(-1, 6).astype(np.float32)
            rows = rows[rows[:, 4] > min_confidence][:300][::-1]  # lowest score first: the best are drawn on top
            found.append(rows[:, [0, 1, 2, 3, 5, 4]])
        return found + [np.zeros((0, 6), np.float32)] * (count - len(found))
    targets = as_array(boxes).reshape(-1, 6).astype(np.float32)
    corners = xywh_to_xyxy(targets[:, 2:6]) * np.array([width, height, width, height], dtype=np.float32)
    rows = np.concatenate([corners, targets[:, 1:2], np.full((len(targets), 1), np.nan, np.float32)], axis=1)
    return [rows[targets[:, 0] == i] for i in range(count)]


def _class_text(index: float, confidence: float, names: Names | None) -> str:
    name = str(int(index)) if names is None else class_name(names, int(index))
    return name if math.isnan(confidence) else f"{name} {confidence:.1f}"
