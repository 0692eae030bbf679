"""Decoding of image files in memory to the pixel format of a network, whatever depth they are stored in."""

import io

import cv2
import numpy as np

from utils.errors import UserError
from utils.images.tiff import MARKS, read_pages
from utils.images.tiff_bands import read_bands
from utils.images.warp import keep_channels
from utils.pixel_format import RGB, PixelFormat, white_of

DEEP = (*MARKS, b"PF\n", b"Pf\n")  # TIFF and PFM, which may have more than 8 bits
PNG = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH = 24  # position of the bits per channel
MAX_12_BITS, MAX_8_BITS = 4095, 255
STORED = (np.uint8, np.uint16, np.float32)
CONVERTED = (1, 3)  # numbers of channels that any image is converted to
MAX_NUMBERS = 1 << 30  # in an image of other numbers of channels
MAX_BANDS = 4  # in a page that OpenCV decodes


class WrongPixels(ValueError):
    """An image that does not have the channels or the range that were requested."""


def decode_image(data: bytes | bytearray, pixels: PixelFormat = RGB) -> np.ndarray | None:
    """Return an image (H, W, C) of a pixel format, by default BGR uint8, or None if OpenCV cannot decode it.

    One channel is the luma of an image, three are its colours without alpha, and the EXIF orientation is applied. Any
    other number must be in the file, which WrongPixels says: the bands of its image, or pages of one channel each.
    With `bit_depth` 8, 16 bits keep their upper 8. If no value of an image needs more than 12 or 8 bits, these are the
    range, since cameras store them so. Its upper 8 bits alone would be black. Floats are 0…1, or 0…255 if one is above
    1. With more bits, the range is that of `bit_depth` for all images.
    """
    # Not cv2.imread: on Windows it fails on names outside the code page.
    buffer = np.frombuffer(data, np.uint8)
    if pixels.channels not in CONVERTED:
        stored = _decode_bands(buffer, pixels.channels)
        return None if stored is None else _to_depth(stored, pixels.bit_depth)
    is_deep = data.startswith(DEEP) or (data.startswith(PNG) and data[PNG_DEPTH] == 16)
    color = cv2.IMREAD_COLOR if pixels.channels == 3 else cv2.IMREAD_ANYCOLOR  # the latter leaves gray images as such
    image = cv2.imdecode(buffer, color | cv2.IMREAD_ANYDEPTH) if is_deep else None
    if image is None and is_deep:
        image = cv2.imdecode(buffer, cv2.IMREAD_ANYDEPTH)  # gray floats in a TIFF
    if image is None or image.dtype == np.uint8:
        image = cv2.imdecode(buffer, color)
    elif image.dtype == np.uint16 and pixels.bit_depth == 8 and image.max() > MAX_12_BITS:
        image = cv2.imdecode(buffer, color)  # as all programs see it
    return None if image is None else _with_channels(_to_depth(image, pixels.bit_depth), pixels.channels)


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Return a gray or BGR image (H, W) or (H, W, 3) with 1 or 3 channels."""
    has = image.shape[2] if image.ndim == 3 else 1
    if has == channels:
        return keep_channels(image)
    return keep_channels(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if channels == 3 else cv2.COLOR_BGR2GRAY))


def _decode_bands(buffer: np.ndarray, channels: int) -> np.ndarray | None:
    """Return the bands of an image, or of its pages, in their order (H, W, channels). WrongPixels for other numbers."""
    pages = _decode_pages(buffer, channels)
    if not pages:
        return None
    if len({page.shape for page in pages}) > 1 or len({page.dtype for page in pages}) > 1:
        raise WrongPixels(f"has pages of different sizes or types, expected one image of {PixelFormat(channels)}")
    image = keep_channels(pages[0]) if len(pages) == 1 else np.dstack(pages)
    if image.shape[2] != channels:
        more = " or more" if len(pages) > channels else ""
        raise WrongPixels(f"has {PixelFormat(image.shape[2])}{more}, {_expected(channels)}")
    return image


def _expected(channels: int) -> str:
    return f"expected {channels} (channels: {channels})"


def _decode_pages(buffer: np.ndarray, channels: int) -> list[np.ndarray]:
    """Return the pages of a file as they are stored, at most one more than `channels`. Return none if it is no image.

    If the first page has several bands, as many as `channels`, it is the only one: GDAL's others are smaller copies.
    """
    is_tiff = buffer[:4].tobytes() in MARKS
    listed = read_pages(io.BytesIO(buffer.tobytes()), channels + 1) if is_tiff else []
    if sum(page.height * page.width * max(page.samples, 1) for page in listed) > MAX_NUMBERS:
        raise ValueError(f"the image has more than {MAX_NUMBERS} values: cut it into tiles")
    samples = listed[0].samples if listed else 0
    if len(listed) > 1 and samples != channels:
        return list(cv2.imdecodemulti(buffer, cv2.IMREAD_UNCHANGED, range=(0, len(listed)))[1])
    image = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED) if samples <= MAX_BANDS else None
    if samples > 1 and (image is None or keep_channels(image).shape[2] != samples):
        return [_decode_stored(buffer, samples, channels)]
    if image is None:
        return []
    return [cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA) if keep_channels(image).shape[2] == 4 else image]


def _decode_stored(buffer: np.ndarray, samples: int, channels: int) -> np.ndarray:
    """Return the bands of a page that OpenCV cannot decode. WrongPixels if they are not `channels`."""
    if samples != channels:
        raise WrongPixels(f"has {PixelFormat(samples)}, {_expected(channels)}")
    try:
        return read_bands(buffer.tobytes())
    except UserError as error:  # a package is absent
        raise WrongPixels(str(error)) from error


def _to_depth(image: np.ndarray, bit_depth: int) -> np.ndarray:
    """Return stored levels as uint8 for 8 bits, or else as uint16 in 0…65535.

    They are uint8, uint16, float32, or int16 without negative ones. ValueError for others.
    """
    if image.dtype == np.int16 and image.min() >= 0:
        image = image.view(np.uint16)
    if image.dtype not in STORED:
        raise ValueError(f"has negative values, or of type {image.dtype}: save it as uint8, uint16 or float32")
    if bit_depth > 8:
        return to_uint16(image, bit_depth)
    if image.dtype == np.uint16:
        top = int(image.max())
        shift = 8 if top > MAX_12_BITS else 4 if top > MAX_8_BITS else 0
        return np.right_shift(image, shift).astype(np.uint8)
    if image.dtype == np.float32:
        image = np.nan_to_num(image)
        return (image * (255 if image.max() <= 1 else 1)).round().clip(0, 255).astype(np.uint8)
    return image


def to_uint16(image: np.ndarray, bit_depth: int) -> np.ndarray:
    """Return levels in 0…65535: uint8 scaled from 255, uint16 from the highest level of `bit_depth`, floats from 1.

    WrongPixels for values beyond.
    """
    top = {"u1": 255, "u2": 2**bit_depth - 1, "f4": 1}.get(image.dtype.str[1:])
    if top is None:
        raise WrongPixels(f"has values of type {image.dtype}, expected uint8, uint16 or float32")
    lowest, highest = image.min(), image.max()
    if not (lowest >= 0 and highest <= top):
        raise WrongPixels(f"has values from {lowest:g} to {highest:g}, expected 0 to {top} (bit_depth: {bit_depth})")
    white = white_of(np.uint16)
    if top == white:
        return image
    return (image * np.float32(white / top)).round().astype(np.uint16)
