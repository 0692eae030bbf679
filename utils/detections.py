"""Detections of one image: the result of every program and format that finds objects."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from utils.metrics import Speed


@dataclass(frozen=True)
class Detections:
    """Objects found in one image, highest confidence first. An image without objects has no rows."""

    rows: np.ndarray  # (n, 6) float32: x1, y1, x2, y2 in pixels of the image, confidence, class
    shape: tuple[int, int]  # height, width of the image
    path: str = ""
    names: Mapping[int, str] = field(default_factory=dict)  # class names
    input_shape: tuple[int, int] = (0, 0)  # height, width of the network's input
    speed: Speed = field(default_factory=Speed)  # an equal share of its batch's times

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def boxes_xyxy(self) -> np.ndarray:
        """Left, top, right and bottom (n, 4) in pixels of the image."""
        return self.rows[:, :4]

    @property
    def confidence(self) -> np.ndarray:
        """Confidences (n,) in 0…1."""
        return self.rows[:, 4]

    @property
    def classes(self) -> np.ndarray:
        """Class numbers (n,) int64."""
        return self.rows[:, 5].astype(np.int64)

    def rounded(self) -> "Detections":
        """Return the same detections with boxes in whole pixels."""
        return replace(self, rows=np.concatenate((self.rows[:, :4].round(), self.rows[:, 4:]), axis=1))
