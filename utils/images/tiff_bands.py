"""Bands of a TIFF that OpenCV cannot decode: more than 4 in one page, or gray ones, as GDAL writes them."""

import io
import math
import zlib
from collections.abc import Iterable

import numpy as np

from utils.errors import one_line
from utils.formats import import_extra

DEFLATE = (8, 32946)
COMPRESSIONS = (1, 5, 32773, *DEFLATE)  # none, LZW and PackBits; others may hide more than fits into memory
MAX_SEGMENT = 1 << 32  # bytes of a strip or tile


def read_bands(data: bytes) -> np.ndarray:
    """Return the bands (H, W, C) of the first page, in their order.

    UserError with what to install if the package tifffile is absent, ValueError if the page cannot be decoded.
    """
    tifffile = import_extra("tifffile", "tiff", "a TIFF with several bands in a page")
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0]
            places = zip(page.dataoffsets, page.databytecounts, strict=True)
            size = math.prod(page.chunks) * page.dtype.itemsize
            _check_segments(int(page.compression), size, (data[start : start + count] for start, count in places))
            image = page.asarray(maxworkers=1)
            axes = page.axes
    except MemoryError:
        raise
    except Exception as error:  # the library raises anything for a damaged file
        raise ValueError(f"its bands cannot be decoded ({one_line(str(error))})") from error
    if axes not in ("YXS", "SYX"):
        raise ValueError(f"its first page has the axes {axes}, expected rows, columns and bands")
    bands = image if axes == "YXS" else image.transpose(1, 2, 0)
    return np.ascontiguousarray(bands, np.float32 if bands.dtype.kind == "f" else None)


def _check_segments(compression: int, limit: int, segments: Iterable[bytes]) -> None:
    """Raise ValueError for a compression that is not read, and for strips or tiles of more than `limit` bytes."""
    if compression not in COMPRESSIONS:
        raise ValueError(f"compression {compression}: save it without, or with deflate")
    if limit > MAX_SEGMENT:
        raise ValueError(f"a strip or tile of {limit} bytes")
    for segment in segments if compression in DEFLATE else ():
        if len(zlib.decompressobj().decompress(segment, limit + 1)) > limit:
            raise ValueError("a strip or tile has more data than its size")
