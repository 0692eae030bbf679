"""Letterbox: an image resized into a shape, padded to fill it, and the map between their coordinates."""

from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import torch

from utils.images.read import resize_to
from utils.images.warp import keep_channels
from utils.pixel_format import grey_of

Boxes = TypeVar("Boxes", np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class Letterbox:
    """Position of an original image in a network input: pixel_input = pixel_original * gain + pad, exactly."""

    shape: tuple[int, int]  # height, width of the original
    gain: tuple[float, float]  # along y, along x
    pad: tuple[int, int]  # top, left

    def apply(self, boxes: Boxes) -> Boxes:
        """Convert (…, 4) xyxy in the original's pixels to the input's pixels."""
        return boxes * _like(boxes, *self.gain[::-1] * 2) + _like(boxes, *self.pad[::-1] * 2)

    def undo(self, boxes: Boxes) -> Boxes:
        """Convert (…, 4) xyxy in the input's pixels to the original's, clipped to it."""
        moved = (boxes - _like(boxes, *self.pad[::-1] * 2)) / _like(boxes, *self.gain[::-1] * 2)
        # pyrefly: ignore[bad-return] (clip keeps the type)
        return moved.clip(_like(boxes, 0.0, 0.0, 0.0, 0.0), _like(boxes, *self.shape[::-1] * 2))


def _like(boxes: Boxes, *values: float) -> Boxes:
    """Return `values` (4,) in the library, type and device of `boxes`, or as float32 if those are integers."""
    if isinstance(boxes, np.ndarray):
        # pyrefly: ignore[bad-return] (Boxes is ndarray here)
        return np.asarray(values, boxes.dtype if boxes.dtype.kind == "f" else np.float32)
    return (boxes if boxes.is_floating_point() else boxes.float()).new_tensor(values)


def letterbox(
    image: np.ndarray,
    shape: int | tuple[int, int],
    auto: bool = True,
    scaleup: bool = True,
    stride: int = 32,
    *,
    smooth: bool = False,
) -> tuple[np.ndarray, Letterbox]:
    """Fit an image into `shape` (height, width) without changing its aspect, and pad both sides with grey.

    `auto` pads only to the next multiple of `stride`, not to the whole shape. Without `scaleup` images are never
    enlarged. If a padding is odd, the extra pixel is at the bottom or right. `smooth` averages pixels where it shrinks.
    """
    target = (shape, shape) if isinstance(shape, int) else (shape[0], shape[1])
    height, width = image.shape[:2]
    ratio = min(target[0] / height, target[1] / width)
    ratio = ratio if scaleup else min(ratio, 1.0)
    inner = max(1, round(height * ratio)), max(1, round(width * ratio))
    padding = [(outer - side) % stride if auto else outer - side for outer, side in zip(target, inner)]
    top, left = padding[0] // 2, padding[1] // 2
    box = Letterbox((height, width), (inner[0] / height, inner[1] / width), (top, left))
    image = resize_to(image, inner, smooth=smooth)
    if any(padding):
        sides, grey = (top, padding[0] - top, left, padding[1] - left), (grey_of(image.dtype),) * 4
        image = keep_channels(cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=grey))
    return image, box
