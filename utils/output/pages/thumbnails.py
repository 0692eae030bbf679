"""Small copies of images inside a page, with boxes as vectors over them."""

import base64
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from utils.errors import UserError
from utils.images.read import read_image, resize_to
from utils.output.drawing import PALETTE, class_name, lightness

LONG_SIDE, QUALITY = 240, 70  # of a thumbnail: pixels, JPEG quality
SMALL_BOX = 1 / 5  # of the image's longer side; the image is cut around smaller boxes
MARGIN = 4  # times their longer side
DARK = 140  # lightness
MIN_CUT = 48  # pixels of the image
MAX_DESCRIBED = 6  # boxes that are named one by one
ROLES = {"label": "label", "other": "other label", "suggestion": "suggested box"}  # in words

Box = tuple[float, float, float, float, float]  # class, cx, cy, w, h in 0…1


class DrawnBox(NamedTuple):
    """A box over a thumbnail, in 0…1 of it."""

    left: float
    top: float
    width: float
    height: float
    name: str
    role: str  # "label" has a solid line; the style sheet has the others
    color: str  # CSS
    halo: str  # CSS, of the line around it: light if the color is dark


class Thumbnail(NamedTuple):
    """A small copy of an image, or of the part around a small box."""

    uri: str  # data:image/jpeg;base64,…
    width: int
    height: int
    boxes: list[DrawnBox]
    is_cut: bool

    @property
    def description(self) -> str:
        """The boxes in words, for screen readers: those of few, the number of many."""
        if len(self.boxes) > MAX_DESCRIBED:
            return f"{len(self.boxes)} boxes"
        return ", ".join(f"{ROLES[box.role]}: {box.name}" for box in self.boxes) or "no boxes"

    @property
    def size(self) -> int:
        """Bytes that it takes in a page, about."""
        return len(self.uri) + 300 * len(self.boxes)


def make_thumbnail(
    path: str, boxes: Sequence[Box], names: Mapping[int, str], *, roles: Sequence[str] = (), cut: bool = False
) -> Thumbnail | None:
    """Return a thumbnail of an image file, None if it cannot be read. `cut` shows the boxes from near if small.

    `roles` are those of the first boxes. The others are labels.
    """
    try:
        image = read_image(path)
    except UserError:
        return None
    height, width = image.shape[:2]
    left, top, right, bottom = _part_around(boxes, width, height) if cut and boxes else (0, 0, width, height)
    part = image[top:bottom, left:right]
    scale = LONG_SIDE / max(part.shape[:2])
    shape = max(1, round(part.shape[0] * scale)), max(1, round(part.shape[1] * scale))
    small = resize_to(part, shape, smooth=True)
    encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    all_roles = [*roles, *["label"] * (len(boxes) - len(roles))]
    drawn = [
        _draw(box, role, (left, top, right, bottom), (width, height), names)
        for box, role in zip(boxes, all_roles, strict=True)
    ]
    return Thumbnail(
        uri="data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode(),
        width=shape[1],
        height=shape[0],
        boxes=[box for box in drawn if box],
        is_cut=(right - left, bottom - top) != (width, height),
    )


def _part_around(boxes: Sequence[Box], width: int, height: int) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom in pixels of the part to show. It has the shape of the image."""
    centers, halves = np.array(boxes)[:, 1:3], np.array(boxes)[:, 3:] / 2
    low, high = (centers - halves).min(0), (centers + halves).max(0)
    (cx, cy), (w, h) = (low + high) / 2, high - low
    longer = max(w * width, h * height)
    if longer > SMALL_BOX * max(width, height):
        return 0, 0, width, height
    side = int(max(MARGIN * longer, MIN_CUT))
    scale = min(side / min(width, height), 1)
    cut_w, cut_h = round(width * scale), round(height * scale)
    left = int(np.clip(cx * width - cut_w / 2, 0, width - cut_w))
    top = int(np.clip(cy * height - cut_h / 2, 0, height - cut_h))
    return left, top, left + cut_w, top + cut_h


def _draw(
    box: Box, role: str, part: tuple[int, int, int, int], size: tuple[int, int], names: Mapping[int, str]
) -> DrawnBox | None:
    """Return a box in 0…1 of a part of the image (left, top, right, bottom in pixels), None if it lies outside."""
    class_id, cx, cy, w, h = box
    corners = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * (*size, *size)
    origin, extent = np.array(part[:2]), np.array(part[2:]) - part[:2]
    low, high = ((pair - origin) / extent for pair in (corners[:2], corners[2:]))
    if not np.isfinite([*low, *high]).all() or (high < 0).any() or (low > 1).any():
        return None
    low, high = low.clip(0, 1), high.clip(0, 1)
    red, green, blue = PALETTE[int(class_id) % len(PALETTE)]
    return DrawnBox(
        *(round(float(value), 4) for value in (*low, *(high - low))),
        name=class_name(names, int(class_id)),
        role=role,
        color=f"#{red:02x}{green:02x}{blue:02x}",
        halo="#fff" if lightness((blue, green, red)) < DARK else "#000",
    )
