"""Conversion of images between pixel formats: for networks, for people's eyes, and for files."""

import cv2
import numpy as np

from utils.errors import UserError
from utils.images.decode import to_uint16
from utils.images.warp import keep_channels
from utils.pixel_format import RGB, PixelFormat, white_of


def convert_pixels(image: np.ndarray, pixels: PixelFormat) -> np.ndarray:
    """Return an image (H, W, C) in the pixel format of a network: a video frame has BGR whatever that takes.

    8 bits become 16, colours become gray or gray colours. Raises UserError if the image lacks the channels.
    """
    if pixels == RGB and image.dtype == np.uint8 and image.shape[2:] == (3,):
        return image
    image = keep_channels(image)
    has = image.shape[2]
    if has != pixels.channels:
        code = {(3, 1): cv2.COLOR_BGR2GRAY, (1, 3): cv2.COLOR_GRAY2BGR}.get((has, pixels.channels))
        if code is None:
            raise UserError(f"an image of {PixelFormat(has)}, but the model takes images of {pixels}")
        image = keep_channels(cv2.cvtColor(image, code))
    if image.dtype == np.uint8 and pixels.bit_depth > 8:
        return to_uint16(image, pixels.bit_depth)
    if image.dtype != pixels.dtype:
        raise UserError(f"an image of type {image.dtype}, but the model takes images of {pixels}")
    return image


def displayable(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, C) as BGR uint8, the image itself if it is. Of other channels the first three are shown.

    Fewer than three show the first, as gray. Levels of 16 bits are stretched to the range of the image.
    """
    if image.dtype == np.uint8 and image.shape[2:] == (3,):
        return image
    image = keep_channels(image)
    if image.shape[2] != 3:
        shown = (2, 1, 0) if image.shape[2] > 3 else (0, 0, 0)
        image = image[:, :, shown]
    if image.dtype == np.uint8:
        return image
    lowest, highest = float(image.min()), float(image.max())
    levels = (image - np.float32(lowest)) * np.float32(255 / max(highest - lowest, 1))
    return levels.round().astype(np.uint8)


def displayable_rgb(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, C) in the order of a network as RGB uint8, itself if it is. See `displayable`."""
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return image
    return cv2.cvtColor(displayable(to_network_order(image)), cv2.COLOR_BGR2RGB)


def to_network_order(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, C) with its channels in the order of a network: RGB of BGR, all others as they are."""
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.shape[2] == 3 else image


def to_unit_range(image: np.ndarray) -> np.ndarray:
    """Return the levels of an image as float32 in 0…1."""
    return image.astype(np.float32) / np.float32(white_of(image.dtype))
