"""Images decoded from their files: whole, or resized, and then only their upper rows if no others are needed."""

import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from utils.errors import UserError
from utils.files import UnreadableFile, read_regular, retry_reading
from utils.image_size import ImageSize, to_shape
from utils.images.decode import WrongPixels, decode_image
from utils.images.header import MAX_BYTES, UNREADABLE, find_jpeg_scan, header_shape
from utils.images.warp import keep_channels
from utils.pixel_format import RGB, PixelFormat

EXTRA_ROWS = 8  # the lowest rows of a truncated JPEG take colour from below, and resizing mixes two rows
MAX_ROWS = 65_500  # of a JPEG that decoders accept; a higher one must not be readable in part
MAX_SHARE = 0.85  # of the rows: beyond it, truncating a file takes as long as it saves
MARKER = re.compile(rb"\xff[^\0]", re.DOTALL)  # in the scan of a JPEG, whose own 0xFF bytes are followed by 0


class DamagedImage(UserError):
    """A file that was read, but is no image that can be used."""


def read_image(path: str | Path, pixels: PixelFormat = RGB) -> np.ndarray:
    """Decode an image (H, W, C), by default BGR uint8, rotated by its EXIF orientation.

    UserError if it cannot be read, or does not have the channels.
    """
    return _read(path, lambda data, shape: decode_image(data, pixels))


def read_resized(
    path: str | Path,
    shape: tuple[int, int],
    *,
    smooth: bool,
    rows: int | None = None,
    original: tuple[int, int] | None = None,
    pixels: PixelFormat = RGB,
) -> np.ndarray:
    """Read an image and resize it to `shape` (H, W), or only its upper `rows` (1 or more) if that is faster.

    The result equals that of read_image and resize_to. A JPEG stores its rows from top to bottom, so that rows below
    those needed cost nothing. UserError if the image does not have the height and width `original`, where given.
    """

    def resized(data: bytes, stored: tuple[int, int]) -> np.ndarray | None:
        fits = original is None or stored == original
        upper = _upper_rows(data, stored, shape, rows, pixels) if fits and rows is not None and not smooth else None
        if upper is not None:
            return upper
        whole = decode_image(data, pixels)
        if whole is None:
            return None
        height, width = whole.shape[:2]
        if original is not None and original != (height, width):
            raise UserError(f"{path}: has {width}x{height} pixels, not {original[1]}x{original[0]} as before")
        return resize_to(whole, shape, smooth=smooth)

    return _read(path, resized)


def _read(path: str | Path, decode: Callable[[bytes, tuple[int, int]], np.ndarray | None]) -> np.ndarray:
    """Return the result of `decode` for a file's bytes and the (height, width) in its header.

    DamagedImage for None and for a header that is refused, UserError if the file cannot be read.
    """
    try:
        data = retry_reading(partial(read_regular, path, MAX_BYTES))
        image = decode(data, header_shape(io.BytesIO(data)))  # checks the size before the decoder allocates it
    except (OSError, cv2.error, MemoryError, UnreadableFile) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except UserError:
        raise
    except WrongPixels as error:
        raise UserError(f"{path}: {error}") from error
    except ValueError as error:
        raise DamagedImage(f"{path}: {error}") from error
    if image is None:
        raise DamagedImage(f"{path}: {UNREADABLE}")
    return image


def _upper_rows(
    data: bytes, original: tuple[int, int], shape: tuple[int, int], rows: int, pixels: PixelFormat
) -> np.ndarray | None:
    """Return the upper `rows` rows of a JPEG that is resized from `original` to `shape` (height, width).

    Return None if the image must be decoded whole or nearly whole.
    """
    height, width = original
    taken = -(-rows * height // shape[0]) + EXTRA_ROWS
    if taken > MAX_SHARE * height or height > MAX_ROWS:
        return None
    gain = {"fx": shape[1] / width, "fy": shape[0] / height}
    if original != shape and (taken, width) == (round(taken * gain["fy"]), shape[1]):
        return None  # OpenCV would not resize at all, because the size would stay the same
    shortened = truncate_jpeg(data, taken)
    image = None if shortened is None else decode_image(shortened, pixels)
    if image is None or image.shape[:2] != (taken, width):
        return None
    return (image if original == shape else keep_channels(cv2.resize(image, None, **gain)))[:rows]


def truncate_jpeg(data: bytes, rows: int) -> bytearray | None:
    """Return a JPEG file whose header says that it has only `rows` rows, or None if that is not possible.

    Its last rows may decode wrongly. The end mark is removed: on the way to it, a decoder would report excess data.
    """
    positions = find_jpeg_scan(data)
    if positions is None:
        return None
    height_at, scan = positions
    end = MARKER.search(data, scan)
    if end is None or end[0] != b"\xff\xd9":  # several scans, or restart markers
        return None
    shortened = bytearray(memoryview(data)[: end.start()])
    shortened[height_at : height_at + 2] = rows.to_bytes(2, "big")
    return shortened


def resized_shapes(shapes: np.ndarray, size: ImageSize) -> np.ndarray:
    """Return heights and widths (N, 2) of images fitted into `size`: one of the sides becomes that of `size`.

    The other side is rounded up exactly, in integers.
    """
    shapes, (height, width) = np.asarray(shapes, np.int64), to_shape(size)
    fills_height = shapes[:, :1] * width >= shapes[:, 1:] * height  # (N, 1)
    return -(-shapes * np.where(fills_height, height, width) // np.where(fills_height, shapes[:, :1], shapes[:, 1:]))


def resize_to(image: np.ndarray, shape: tuple[int, int], *, smooth: bool) -> np.ndarray:
    """Resize an image (H, W, C) to (height, width). `smooth` averages where it shrinks, which is sharper and slower."""
    height, width = image.shape[:2]
    if (height, width) == tuple(shape):
        return image
    shrinks = max(shape) < max(height, width)
    method = cv2.INTER_AREA if smooth and shrinks else cv2.INTER_LINEAR
    if method == cv2.INTER_AREA and image.shape[2] > 4:  # more than OpenCV averages
        parts = [image[..., k : k + 4] for k in range(0, image.shape[2], 4)]
        return np.concatenate([resize_to(part, shape, smooth=True) for part in parts], axis=2)
    return keep_channels(cv2.resize(image, shape[::-1], interpolation=method))
