"""Letterbox: resize an image into a shape, pad the rest, and map boxes back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from utils.images.read import resize_to
from utils.images.warp import GREY


@dataclass(frozen=True)
class Letterbox:
    """Where an original picture lies in a network input: pixel_input = pixel_original * gain + pad, exactly."""

    shape: tuple[int, int]  # height, width of the original
    gain: tuple[float, float]  # along y, along x
    pad: tuple[int, int]  # top, left

    def apply(self, boxes: Any) -> Any:
        """(…, 4) xyxy in the original's pixels -> in the input's pixels. NumPy array or torch tensor."""
        return boxes * _like(boxes, self.gain[::-1] * 2) + _like(boxes, self.pad[::-1] * 2)

    def undo(self, boxes: Any) -> Any:
        """(…, 4) xyxy in the input's pixels -> in the original's, clipped to it. NumPy array or torch tensor."""
        boxes = (boxes - _like(boxes, self.pad[::-1] * 2)) / _like(boxes, self.gain[::-1] * 2)
        return boxes.clip(_like(boxes, (0.0,) * 4), _like(boxes, self.shape[::-1] * 2))


def _like(boxes: Any, values: Sequence[float]) -> Any:
    """`values` in the library, type and device of `boxes`; float32 where those are whole numbers."""
    if isinstance(boxes, np.ndarray):
        return np.asarray(values, boxes.dtype if boxes.dtype.kind == "f" else np.float32)
    return (boxes if boxes.is_floating_point() else boxes.float()).new_tensor(values)


def letterbox(
    image: np.ndarray, shape: int | tuple[int, int], auto: bool = True, scaleup: bool = True, stride: int = 32
) -> tuple[np.ndarray, Letterbox]:
    """Fit a picture into `shape` (height, width) with its aspect kept, and fill up with grey on both sides.

    `auto` fills up to the next multiple of `stride` only, instead of the whole shape; without `scaleup` pictures are
    only ever made smaller. An odd margin has its extra pixel at the bottom or right.
    """
    target = (shape, shape) if isinstance(shape, int) else tuple(shape)
    height, width = image.shape[:2]
    ratio = min(target[0] / height, target[1] / width)
    ratio = ratio if scaleup else min(ratio, 1.0)
    inner = max(1, round(height * ratio)), max(1, round(width * ratio))
    margin = [(outer - side) % stride if auto else outer - side for outer, side in zip(target, inner)]
    top, left = margin[0] // 2, margin[1] // 2
    box = Letterbox((height, width), (inner[0] / height, inner[1] / width), (top, left))
    image = resize_to(image, inner, smooth=False)
    if any(margin):
        image = cv2.copyMakeBorder(
            image, top, margin[0] - top, left, margin[1] - left, cv2.BORDER_CONSTANT, value=(GREY,) * 3
        )
    return image, box
