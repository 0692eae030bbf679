"""Traits of an image file, from its header alone: format, depth, alpha, frames, orientation."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from utils.files import open_regular, retry_reading
from utils.images.header import JPEG, MAX_BYTES, MAX_PARTS, PNG, exif_orientations

HEAD_BYTES = 1 << 14  # that hold the header of nearly all files
MORE_BYTES = 1 << 21  # of a file whose header is longer: colour profiles, previews
KINDS = {
    JPEG: "JPEG",
    PNG: "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"PF\n": "PFM",
    b"Pf\n": "PFM",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "PFM": (".pfm",),
    "TIFF": (".tif", ".tiff", ".dng"),
    "WebP": (".webp",),
}
TIFF_BITS, TIFF_COLORS, TIFF_ORIENTATION, TIFF_CHANNELS, TIFF_EXTRA = 258, 262, 274, 277, 338


class Traits(NamedTuple):
    """Properties of an image file. The defaults are those of a usual one, and of one that cannot be read."""

    kind: str = ""  # key of SUFFIXES, "" if the content is of no known format
    channels: int = 3
    bits: int = 8  # per channel
    alpha: bool = False
    cmyk: bool = False
    frames: int = 1  # of an animation, or pages
    turned: bool = False  # by its Exif orientation, or mirrored


def read_traits(path: str | Path) -> Traits:
    """Return the traits of an image file, those of a usual file if it cannot be read."""
    try:
        return retry_reading(partial(_read, path))
    except OSError:
        return Traits()


def _read(path: str | Path) -> Traits:
    with open_regular(path, MAX_BYTES) as file:
        data = file.read(HEAD_BYTES)
        traits = _traits_of(data)
        if traits is None and len(data) == HEAD_BYTES:
            file.seek(0)
            traits = _traits_of(file.read(MORE_BYTES))
    return traits or Traits(_kind_of(data))


def _kind_of(data: bytes) -> str:
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    return next((kind for mark, kind in KINDS.items() if data.startswith(mark)), "")


def _traits_of(data: bytes) -> Traits | None:
    """Return the traits in the first bytes of a file, None if they end too early."""
    kind = _kind_of(data)
    read = {"JPEG": _jpeg_traits, "PNG": _png_traits, "WebP": _webp_traits, "TIFF": _tiff_traits}.get(kind)
    return read(data) if read else Traits(kind, channels=1 if data.startswith(b"Pf") else 3)


def _jpeg_traits(data: bytes) -> Traits | None:
    """Walk the segments up to the frame header: precision, height, width, number of components."""
    turned, position = False, 2
    for _ in range(MAX_PARTS):
        code, length = data[position + 1 : position + 2], int.from_bytes(data[position + 2 : position + 4], "big")
        if position + 2 + length > len(data) or data[position] != 0xFF:
            return None
        if code == b"\xff":  # padding
            position += 1
            continue
        if code == b"\xe1":
            turned = turned or exif_orientations(data[position + 4 : position + 2 + length]) - {1} != set()
        elif b"\xc0" <= code <= b"\xcf" and code not in b"\xc4\xc8\xcc" and length >= 8:
            bits, channels = data[position + 4], data[position + 9]
            return Traits("JPEG", channels, bits, cmyk=channels == 4, turned=turned)
        position += 2 + length
    return None


def _png_traits(data: bytes) -> Traits | None:
    """Walk the chunks up to the first image data."""
    if len(data) < 33:
        return None
    bits, color = data[24], data[25]
    alpha, frames, turned, position = color in (4, 6), 1, False, 8
    for _ in range(MAX_PARTS):
        length, name = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        body = data[position + 8 : position + 8 + length]
        if name == b"IDAT":
            channels = {0: 1, 4: 2, 6: 4}.get(color, 3)
            return Traits("PNG", channels, max(bits, 8), alpha, frames=frames, turned=turned)
        if len(body) < length or not name:
            return None
        if name == b"tRNS":
            alpha = True
        elif name == b"acTL":
            frames = int.from_bytes(body[:4], "big")
        elif name == b"eXIf":
            turned = exif_orientations(b"Exif\0\0" + body) - {1} != set()
        position += 12 + length
    return None


def _webp_traits(data: bytes) -> Traits | None:
    if data[12:16] == b"VP8X" and len(data) > 20:
        flags = data[20]
        return Traits("WebP", 4 if flags & 0x10 else 3, alpha=bool(flags & 0x10), frames=2 if flags & 0x02 else 1)
    alpha = data[12:16] == b"VP8L" and len(data) > 24 and bool(data[24] & 0x10)
    return Traits("WebP", 4 if alpha else 3, alpha=alpha)


def _tiff_traits(data: bytes) -> Traits | None:
    """Read the tags of the first page. BigTIFF is not read; OpenCV decodes it all the same."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    start = int.from_bytes(data[4:8], order)
    count = int.from_bytes(data[start : start + 2], order)
    end = start + 2 + 12 * count
    if 0x2B in data[2:4] or len(data) < end + 4:
        return None
    tags = dict(_tiff_tags(data[start + 2 : end], data, order))
    channels, extra = tags.get(TIFF_CHANNELS, 1), TIFF_EXTRA in tags
    colors = {2: 3, 5: 4, 6: 3}.get(tags.get(TIFF_COLORS, 2), 1)
    return Traits(
        "TIFF",
        channels,
        tags.get(TIFF_BITS, 8),
        alpha=extra and channels == colors + 1,
        cmyk=tags.get(TIFF_COLORS) == 5,
        frames=2 if any(data[end : end + 4]) else 1,
        turned=tags.get(TIFF_ORIENTATION, 1) > 1,
    )


def _tiff_tags(table: bytes, data: bytes, order: Literal["little", "big"]) -> Iterator[tuple[int, int]]:
    """Yield the tags whose values are whole numbers of 16 bits, each with its first value."""
    for k in range(0, len(table), 12):
        tag, kind, count = (int.from_bytes(table[k + a : k + b], order) for a, b in ((0, 2), (2, 4), (4, 8)))
        if kind == 3:
            place = int.from_bytes(table[k + 8 : k + 12], order)
            value = table[k + 8 : k + 10] if count <= 2 else data[place : place + 2]
            yield tag, int.from_bytes(value, order)
