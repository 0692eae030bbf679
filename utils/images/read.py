"""Reading pictures from their files: whole, or resized, and then their upper rows alone where no others are needed."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from utils.errors import UserError
from utils.files import read_regular
from utils.images.header import MAX_BYTES, UNREADABLE, find_jpeg_scan, header_shape

BELOW = 8  # rows more than needed: the lowest of a shortened JPEG borrow colour from below, and resizing mixes two
MAX_ROWS = 65_500  # of a JPEG that decoders accept: one with more must not be readable in part
WORTHWHILE = 0.85  # of the rows at most: else to shorten a file takes as long as it saves
MARKER = re.compile(rb"\xff[^\0]", re.DOTALL)  # in the scan of a JPEG, whose own 0xFF bytes are followed by 0


def read_image(path: str | Path) -> np.ndarray:
    """Decode a picture: BGR uint8 (H, W, 3), turned by its EXIF orientation. UserError if it cannot be read."""
    return _read(path, lambda data, shape: _decode(data))


def read_resized(path: str | Path, shape: tuple[int, int], *, smooth: bool, rows: int | None = None) -> np.ndarray:
    """A picture as read_image and resize_to give it; only the upper `rows` (1 or more) of it where that is faster.

    The rows of a JPEG are stored from top to bottom, so that what is left out below costs nothing.
    """

    def resized(data: bytes, original: tuple[int, int]) -> np.ndarray | None:
        upper = None if smooth or rows is None else _upper_rows(data, original, shape, rows)
        if upper is not None:
            return upper
        whole = _decode(data)
        return None if whole is None else resize_to(whole, shape, smooth=smooth)

    return _read(path, resized)


def _read(path: str | Path, decode: Callable[[bytes, tuple[int, int]], np.ndarray | None]) -> np.ndarray:
    """What `decode` makes of a file's bytes and of the height and width in its header; UserError for None."""
    try:
        data = read_regular(path, MAX_BYTES)
        image = decode(data, header_shape(io.BytesIO(data)))  # the shape before the decoder takes the memory for it
    except (OSError, cv2.error, MemoryError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if image is None:
        raise UserError(f"{path}: {UNREADABLE}")
    return image


def _decode(data: bytes | bytearray) -> np.ndarray | None:
    # Not cv2.imread, which fails on names that the system's code page lacks.
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def _upper_rows(data: bytes, original: tuple[int, int], shape: tuple[int, int], rows: int) -> np.ndarray | None:
    """The upper `rows` rows of what a JPEG becomes when it is resized from `original` to `shape` (height, width).

    None where the picture must be decoded whole, or nearly is.
    """
    height, width = original
    taken = -(-rows * height // shape[0]) + BELOW
    if taken > WORTHWHILE * height or height > MAX_ROWS:
        return None
    gain = {"fx": shape[1] / width, "fy": shape[0] / height}
    if original != shape and (taken, width) == (round(taken * gain["fy"]), shape[1]):
        return None  # OpenCV takes what would keep its size as it is
    shortened = truncate_jpeg(data, taken)
    image = None if shortened is None else _decode(shortened)
    if image is None or image.shape[:2] != (taken, width):
        return None
    return (image if original == shape else cv2.resize(image, None, **gain))[:rows]


def truncate_jpeg(data: bytes, rows: int) -> bytearray | None:
    """A JPEG file that says it has only so many rows, of which the last may be wrong; None where that does not work.

    Its end mark is taken away: a decoder would look for it, and complain of the rows that it finds on its way.
    """
    places = find_jpeg_scan(data)
    if places is None:
        return None
    height_at, scan = places
    end = MARKER.search(data, scan)
    if end is None or end[0] != b"\xff\xd9":  # several scans, or one cut into pieces
        return None
    shortened = bytearray(memoryview(data)[: end.start()])
    shortened[height_at : height_at + 2] = rows.to_bytes(2, "big")
    return shortened


def resized_shapes(shapes: np.ndarray, size: int) -> np.ndarray:
    """(N, 2) heights and widths once the long sides are `size`: the short ones rounded up, exactly (in integers)."""
    shapes = np.asarray(shapes, np.int64)
    return -(-shapes * size // shapes.max(1, keepdims=True))


def resize_to(image: np.ndarray, shape: tuple[int, int], *, smooth: bool) -> np.ndarray:
    """Resize to (height, width). `smooth` averages when the picture gets smaller: sharper to look at, and slower."""
    height, width = image.shape[:2]
    if (height, width) == tuple(shape):
        return image
    shrinks = max(shape) < max(height, width)
    return cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA if smooth and shrinks else cv2.INTER_LINEAR)
