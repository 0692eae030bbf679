"""Pixel format of a network's input: the number of channels, and the bits per channel that images keep."""

from typing import Any, NamedTuple

import numpy as np

from utils.errors import UserError

MAX_CHANNELS = 128  # OpenCV's arrays have no more
MIN_BITS, MAX_BITS = 8, 16
GREY = 114  # of 255: value of every pixel that no image covers


class PixelFormat(NamedTuple):
    """Channels and bits per channel. Arrays are (H, W, C): BGR with 3 channels, otherwise in the order of the file."""

    channels: int = 3
    bit_depth: int = 8  # bits of each channel that files use; above 8, arrays are uint16 and 65535 is the highest level

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Type of arrays."""
        return np.uint8 if self.bit_depth == 8 else np.uint16

    @property
    def bytes_per_pixel(self) -> int:
        return self.channels * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        channels = f"{self.channels} channel{'s' if self.channels > 1 else ''}"
        return channels if self.bit_depth == 8 else f"{channels} of {self.bit_depth} bits"


RGB = PixelFormat()


def white_of(dtype: Any) -> int:
    """Return the highest level of arrays of this type: 65535 for uint16, otherwise 255."""
    return 65535 if dtype == np.uint16 else 255


def grey_of(dtype: Any) -> int:
    """Return the level of pixels that no image covers, for arrays of this type."""
    return GREY * white_of(dtype) // 255


class StatedPixels(NamedTuple):
    """Keys of a YAML about the pixels of images. None where it has no such key."""

    channels: int | None = None
    bit_depth: int | None = None
    source: str = ""  # file, for messages

    def fill(self, other: PixelFormat) -> PixelFormat:
        """Return the format with what is not stated taken from `other`."""
        return PixelFormat(self.channels or other.channels, self.bit_depth or other.bit_depth)

    def require(self, pixels: PixelFormat, *, of: object) -> PixelFormat:
        """Return `pixels` of the model `of`. Raises UserError if the YAML says otherwise."""
        if self.fill(pixels) != pixels:
            stated = {"channels": self.channels, "bit_depth": self.bit_depth}
            says = ", ".join(f"{key}: {value}" for key, value in stated.items() if value)
            raise UserError(f"{self.source}: {says}, but {of} takes images of {pixels}: correct one of them")
        return pixels

    def settle(self, pixels: PixelFormat, *, of: object) -> "StatedPixels":
        """Return `pixels` as if the YAML had stated them. Raises UserError if it says otherwise."""
        return StatedPixels(*self.require(pixels, of=of), self.source)


UNSTATED = StatedPixels()


def read_stated_pixels(content: dict[str, Any], source: object) -> StatedPixels:
    """Return the keys `channels` (or `ch`) and `bit_depth` of a YAML. Raises UserError naming source and key."""
    limits = {"channels": (1, MAX_CHANNELS), "ch": (1, MAX_CHANNELS), "bit_depth": (MIN_BITS, MAX_BITS)}
    for key, (lowest, highest) in limits.items():
        value = content.get(key)
        if value is not None and not (type(value) is int and lowest <= value <= highest):
            raise UserError(f"{source}: {key}: {value!r} is not a whole number from {lowest} to {highest}")
    if None not in (content.get("channels"), content.get("ch")) and content["channels"] != content["ch"]:
        raise UserError(f"{source}: channels: {content['channels']} and ch: {content['ch']} differ: omit one")
    return StatedPixels(content.get("channels") or content.get("ch"), content.get("bit_depth"), str(source))
