"""Images as programs pass them: paths, addresses, PIL images, arrays and tensors, all as RGB arrays."""

import tempfile
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from utils.download import fetch
from utils.errors import UserError
from utils.images.header import MAX_BYTES
from utils.images.read import read_image

CHANNELS = (1, 3, 4)
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")  # of PIL, 8 bits per channel


class InputImage(NamedTuple):
    """Image that a program passed."""

    image: np.ndarray  # (H, W, 3) RGB uint8
    path: str  # file or address, "" if there is none


def read_input(source: object) -> InputImage:
    """Return an image given as a path, an http(s) address, a PIL image, an array or a tensor.

    Arrays are (H, W, 3) RGB, (H, W) grey or (3, H, W). Alpha is dropped, and the EXIF orientation of files and PIL
    images is applied. Raises UserError for anything else and for files that cannot be read.
    """
    if isinstance(source, (str, Path)):
        return InputImage(np.ascontiguousarray(_read_bgr(str(source))[:, :, ::-1]), str(source))
    if isinstance(source, Image.Image):
        upright = ImageOps.exif_transpose(source)
        array = np.asarray(upright.convert("RGB") if upright.mode in MODES else upright)
        return InputImage(to_rgb(array), str(getattr(source, "filename", "") or ""))
    if isinstance(source, Tensor):
        source = source.detach().cpu().float().numpy() if source.is_floating_point() else source.detach().cpu().numpy()
    if isinstance(source, np.ndarray):
        return InputImage(to_rgb(source), "")
    raise UserError(
        f"an image is given as a {type(source).__name__}: pass a path, an address, a PIL image, a tensor, or a NumPy "
        "array (H, W, 3) in RGB"
    )


def _read_bgr(text: str) -> np.ndarray:
    if not text.startswith(("http://", "https://")):
        return read_image(text)
    with tempfile.TemporaryDirectory() as folder:
        name = Path(unquote(urlsplit(text).path)).name[-100:] or "image"
        return read_image(fetch(text, Path(folder, name), keep=False, progress=False, max_bytes=MAX_BYTES))


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
