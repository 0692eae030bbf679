"""The size of a picture, and whether it is whole, from a few bytes of its file."""

import os
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

MIN_SIDE = 10  # pixels
MAX_PIXELS = 2**28  # of a picture; decoded it takes three bytes for each, in every worker at once


def picture_shape(path: str | Path) -> tuple[int, int]:
    """Height and width that a picture decodes to (turned as its EXIF says); ValueError says why it is unusable.

    JPEG, PNG and WebP are read by their headers and end marks alone; whatever else, or is unusual, is decoded.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(32)
            if not head:
                raise ValueError("the file is empty")
            height, width = _header_shape(file, head) or _decoded_shape(file)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"the picture is {width}x{height} pixels, less than {MIN_SIDE}")
    if height * width > MAX_PIXELS:
        raise ValueError(f"the picture is {width}x{height} pixels, more than {MAX_PIXELS}: cut it into tiles")
    return height, width


def _header_shape(file: BinaryIO, head: bytes) -> tuple[int, int] | None:
    if head.startswith(b"\xff\xd8\xff"):
        return _jpeg_shape(file)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_shape(file, head)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _webp_shape(file, head)
    if head.startswith(b"GIF8"):
        raise ValueError("GIF pictures are not read: convert it to PNG or JPEG")
    return None


def _decoded_shape(file: BinaryIO) -> tuple[int, int]:
    height, width = _tiff_shape(file) or (1, 1)
    if height * width > MAX_PIXELS:  # of the formats that come here, TIFF alone can hide many pixels in few bytes
        return height, width
    file.seek(0)
    try:
        image = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ValueError(f"cannot be decoded ({str(error.err)})") from error
    if image is None:
        raise ValueError("not a picture that can be decoded")
    return image.shape[:2]


def _tiff_shape(file: BinaryIO) -> tuple[int, int] | None:
    """What a TIFF says of its first page, before anything of it is decoded; None for whatever is no TIFF."""
    file.seek(0)
    head = file.read(8)
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(head[:4])
    if order is None:
        return None
    file.seek(int.from_bytes(head[4:8], order))
    sizes = {}
    for _ in range(int.from_bytes(file.read(2), order)):
        entry = file.read(12)
        tag, kind = int.from_bytes(entry[:2], order), int.from_bytes(entry[2:4], order)
        sizes[tag] = int.from_bytes(entry[8:10] if kind == 3 else entry[8:12], order)  # 3: of 16 bits
    return (sizes[257], sizes[256]) if 256 in sizes and 257 in sizes else None


def _jpeg_shape(file: BinaryIO) -> tuple[int, int] | None:
    """Walk the segments up to the frame header; None where they do not follow each other as they should."""
    turned = False
    file.seek(2)
    while True:
        start, code = file.read(2).ljust(2, b"\0")
        while code == 0xFF:  # any number of fill bytes may stand before a marker's code
            code = (file.read(1) or b"\0")[0]
        body = int.from_bytes(file.read(2), "big") - 2
        if start != 0xFF or code in (0x00, 0x01, 0xD9, 0xDA) or 0xD0 <= code <= 0xD8 or body < 0:
            return None
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):  # frame header: precision, height, width
            frame = file.read(body)
            height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
            _expect_end(file, b"\xff\xd9", at_end=2)
            return ((width, height) if turned else (height, width)) if height and width else None
        if code == 0xE1:
            turned = turned or _exif_orientation(file.read(body)) >= 5
        else:
            file.seek(body, os.SEEK_CUR)


def _exif_orientation(segment: bytes) -> int:
    """Orientation 1…8 in a JPEG's Exif segment, 1 where it has none."""
    tiff = segment[6:] if segment.startswith(b"Exif\0\0") else b""
    order = {b"II": "little", b"MM": "big"}.get(tiff[:2])
    if order is None:
        return 1
    table = int.from_bytes(tiff[4:8], order)
    for k in range(int.from_bytes(tiff[table:table + 2], order)):
        entry = tiff[table + 2 + 12 * k:table + 14 + 12 * k]
        if int.from_bytes(entry[:2], order) == 0x0112:
            value = int.from_bytes(entry[8:10], order)
            return value if 1 <= value <= 8 else 1
        if len(entry) < 12:
            break
    return 1


def _png_shape(file: BinaryIO, head: bytes) -> tuple[int, int] | None:
    file.seek(8)
    while (chunk := file.read(8))[4:] != b"IDAT":
        if len(chunk) < 8 or chunk[4:] == b"eXIf":  # an orientation may be in it: let the decoder turn it
            return None
        file.seek(int.from_bytes(chunk[:4], "big") + 4, os.SEEK_CUR)
    _expect_end(file, b"IEND\xaeB`\x82", at_end=8)
    return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")


def _webp_shape(file: BinaryIO, head: bytes) -> tuple[int, int] | None:
    if file.seek(0, os.SEEK_END) < int.from_bytes(head[4:8], "little") + 8:
        raise ValueError("the picture is truncated: it is shorter than its header says")
    if head[12:16] == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
        return height & 0x3FFF, width & 0x3FFF  # the upper two bits ask for a scaling that decoders leave alone
    return None


def _expect_end(file: BinaryIO, mark: bytes, *, at_end: int) -> None:
    """ValueError unless `mark` ends the file, or stands somewhere behind the reading position (junk may follow it)."""
    position = file.tell()
    file.seek(-at_end, os.SEEK_END)
    if file.read() != mark:
        file.seek(position)
        if mark not in file.read():
            raise ValueError("the picture is truncated: its end mark is missing")
