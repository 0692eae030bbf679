"""Images as programs pass them: paths, addresses, PIL images, arrays and tensors, all as arrays of a network."""

import tempfile
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from utils.download import fetch
from utils.errors import UserError
from utils.images.conversion import to_network_order
from utils.images.decode import CONVERTED, WrongPixels, to_uint16
from utils.images.header import MAX_BYTES
from utils.images.read import read_image
from utils.images.warp import keep_channels
from utils.pixel_format import RGB, PixelFormat

CHANNELS = (1, 3, 4)
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")  # of PIL, 8 bits per channel


class InputImage(NamedTuple):
    """Image that a program passed."""

    image: np.ndarray  # (H, W, C) in the pixel format of a network, RGB with 3 channels
    path: str  # file or address, "" if there is none


def read_input(source: object, pixels: PixelFormat = RGB) -> InputImage:
    """Return an image given as a path, an http(s) address, a PIL image, an array or a tensor.

    Arrays are (H, W, 3) RGB, (H, W) grey or (3, H, W). Alpha is dropped, and the EXIF orientation of files and PIL
    images is applied. For other `pixels` see `to_pixels`. Raises UserError for anything else and for files that cannot
    be read.
    """
    if isinstance(source, (str, Path)):
        return InputImage(to_network_order(_read_file(str(source), pixels)), str(source))
    if isinstance(source, Image.Image):
        upright = ImageOps.exif_transpose(source)
        mode = {1: "L", 4: "RGBA"}.get(pixels.channels, "RGB")
        array = np.asarray(upright.convert(mode) if upright.mode in MODES else upright)
        return InputImage(to_pixels(array, pixels), str(getattr(source, "filename", "") or ""))
    if isinstance(source, Tensor):
        source = source.detach().cpu().float().numpy() if source.is_floating_point() else source.detach().cpu().numpy()
    if isinstance(source, np.ndarray):
        return InputImage(to_pixels(source, pixels), "")
    raise UserError(
        f"an image is given as a {type(source).__name__}: pass a path, an address, a PIL image, a tensor, or a NumPy "
        "array (H, W, 3) in RGB"
    )


def _read_file(text: str, pixels: PixelFormat) -> np.ndarray:
    if not text.startswith(("http://", "https://")):
        return read_image(text, pixels)
    with tempfile.TemporaryDirectory() as folder:
        name = Path(unquote(urlsplit(text).path)).name[-100:] or "image"
        return read_image(fetch(text, Path(folder, name), keep=False, progress=False, max_bytes=MAX_BYTES), pixels)


def to_pixels(array: np.ndarray, pixels: PixelFormat) -> np.ndarray:
    """Return an image (H, W, C) in the pixel format of a network, as `to_rgb` for 8-bit RGB.

    It may be (H, W), or have its channels in the first or last dimension. One channel is also made of RGB. Levels of
    more than 8 bits are made of uint8, of uint16 in the range of `bit_depth`, and of floats in 0…1.
    """
    if pixels == RGB:
        return to_rgb(array)
    wanted = {pixels.channels, 3} if pixels.channels in CONVERTED else {pixels.channels}
    if array.ndim == 2:
        array = array[:, :, None]
        wanted |= {1} if pixels.channels == 3 else set()
    if array.ndim == 3 and array.shape[2] not in wanted and array.shape[0] in wanted:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in wanted or not array.size:
        raise UserError(f"an array of shape {array.shape} is no image of {pixels}: pass (H, W, {pixels.channels})")
    if pixels.bit_depth > 8:
        try:
            array = to_uint16(array.astype(np.float32) if array.dtype.kind == "f" else array, pixels.bit_depth)
        except WrongPixels as error:
            raise UserError(f"an array {error}") from error
    else:
        array = to_bytes(array)
    array = np.ascontiguousarray(array)
    if array.shape[2] == pixels.channels:
        return array
    if pixels.channels == 3:
        return np.repeat(array, 3, axis=2)
    return keep_channels(cv2.cvtColor(array, cv2.COLOR_RGB2GRAY))


def to_rgb(array: np.ndarray) -> np.ndarray:
    """Return an image as (H, W, 3) RGB uint8.

    It may be (H, W), or have 1, 3 or 4 channels in its first or last dimension, of which the fourth is dropped.
    Floats are 0…1, or 0…255 if one is above 1. The array itself is returned if it has the right form already.
    """
    if array.ndim == 3 and array.shape[2] not in CHANNELS and array.shape[0] in CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in CHANNELS or not array.size:
        raise UserError(f"an array of shape {array.shape} is no image: pass (H, W, 3) in RGB, (H, W) or (3, H, W)")
    array = to_bytes(array[:, :, :3])
    return np.ascontiguousarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array)


def to_bytes(array: np.ndarray) -> np.ndarray:
    """Return an array as uint8. Raises UserError for numbers outside 0…255."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all() or array.min() < 0 or array.max() > 255:
        raise UserError(f"an array of {array.dtype} is no image: pass uint8, or numbers in 0…255 or 0…1")
    if array.dtype.kind == "f" and array.max() <= 1:
        array = array * 255
    return array.round().astype(np.uint8)
