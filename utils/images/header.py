"""Size of an image, and a check that it is complete, from a few bytes of its file."""

import os
import re
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import cv2

from utils.errors import UserError
from utils.files import UnreadableFile, is_lasting, open_regular, retry_reading
from utils.images.decode import CONVERTED, WrongPixels, decode_image
from utils.images.tiff import MARKS, read_pages
from utils.pixel_format import RGB, PixelFormat

MIN_SIDE = 10  # pixels
MAX_PIXELS = 2**28  # of an image; decoded it takes 3 bytes per pixel, in every worker at once
MAX_BYTES = 1 << 30  # of an image file
MAX_PARTS = 10_000  # segments, chunks or stray bytes in a file; a file of nothing else would take minutes to walk
MAX_TABLES = 4096  # bytes between the frame header and the first scan of a usual JPEG
USUAL_SCANS, MAX_SCANNED_PIXELS = 20, 2**31  # of a progressive JPEG; beyond both a decoder works for seconds
UNREADABLE = "not an image that can be decoded"
ORIENTATION_TAG, ANY_ORIENTATION = 0x0112, frozenset(range(1, 9))  # of Exif


def image_shape(path: str | Path, pixels: PixelFormat = RGB) -> tuple[int, int]:
    """Return the height and width that an image decodes to, rotated by its EXIF orientation.

    Usual JPEG, PNG and WebP files are read by header and end mark alone. All others are decoded, and all files if their
    number of channels counts. ValueError says why an image is unusable. It is an UnreadableFile if the next try may
    succeed. UserError if the file does not have the channels of `pixels`.
    """
    try:
        height, width = retry_reading(partial(_file_shape, path, pixels))
    except OSError as error:
        kind = ValueError if is_lasting(error) else UnreadableFile
        raise kind(error.strerror or str(error)) from error
    except WrongPixels as error:
        raise UserError(f"{path}: {error}") from error
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"the image is {width}x{height} pixels, less than {MIN_SIDE}")
    return height, width


def _file_shape(path: str | Path, pixels: PixelFormat) -> tuple[int, int]:
    with open_regular(path, MAX_BYTES) as file:
        shape = header_shape(file)
        suffices = _header_suffices(file) and pixels.channels in CONVERTED
        return shape if suffices else _decoded_shape(file, pixels)


def header_shape(file: BinaryIO) -> tuple[int, int]:
    """Return the height and width in an image's header, before a decoder allocates memory for them.

    ValueError for more than MAX_PIXELS, and for formats whose size is unknown here. No decoder may see those, since a
    few bytes may encode more pixels than fit into memory.
    """
    file.seek(0)
    head = file.read(256)
    if not head:
        raise ValueError("the file is empty")
    if head.startswith(b"GIF8"):
        raise ValueError("GIF images are not supported: convert it to PNG or JPEG")
    read = next((read for mark, read in FORMATS.items() if head.startswith(mark)), None)
    if read is None:
        raise ValueError("not an image of a supported format (JPEG, PNG, WebP, BMP, TIFF, PFM)")
    height, width = read(file, head) or (0, 0)
    if height < 1 or width < 1:
        raise ValueError(UNREADABLE)
    if height * width > MAX_PIXELS:
        raise ValueError(f"the image is {width}x{height} pixels, more than {MAX_PIXELS}: cut it into tiles")
    return height, width


def _header_suffices(file: BinaryIO) -> bool:
    """Return True if the header just read is all that is needed. ValueError if the end of the file is missing."""
    position = file.tell()
    file.seek(0)
    head = file.read(16)
    if head.startswith(JPEG):
        file.seek(position)  # behind the frame header, since a preview before it has an end mark of its own
        _require_end(file, b"\xff\xd9", at_end=2)
        return True
    if head.startswith(PNG):
        return _png_header_suffices(file)
    return head.startswith(b"RIFF") and head[12:16] == b"VP8 "


def _decoded_shape(file: BinaryIO, pixels: PixelFormat = RGB) -> tuple[int, int]:
    """Decode the image and return its height and width."""
    file.seek(0)
    try:
        image = decode_image(file.read(), pixels)
    except MemoryError as error:
        raise UnreadableFile("cannot be decoded (out of memory)") from error
    except cv2.error as error:
        kind = UnreadableFile if getattr(error, "code", 0) == cv2.Error.StsNoMem else ValueError
        raise kind(f"cannot be decoded ({getattr(error, 'err', '') or 'out of memory'})") from error
    if image is None:
        raise ValueError(UNREADABLE)
    height, width = image.shape[:2]
    return height, width


def _bmp_shape(file: BinaryIO, head: bytes) -> tuple[int, int]:
    length = 2 if head[14:18] == b"\x0c\0\0\0" else 4  # bytes of a number: 2 in the oldest header, 4 in all others
    width, height = (int.from_bytes(head[k : k + length], "little", signed=length == 4) for k in (18, 18 + length))
    return abs(height), abs(width)  # a negative height means that the top row is first


def _pfm_shape(file: BinaryIO, head: bytes) -> tuple[int, int] | None:
    sizes = re.match(rb"P[Ff]\n(\d{1,9})\s(\d{1,9})\s", head)
    return (int(sizes[2]), int(sizes[1])) if sizes else None


def _tiff_shape(file: BinaryIO, head: bytes) -> tuple[int, int] | None:
    pages = read_pages(file, most=1)
    return pages[0][:2] if pages else None


def _jpeg_shape(file: BinaryIO, head: bytes) -> tuple[int, int] | None:
    """Walk the segments up to the frame header. Return None if they do not follow each other as they should.

    Decode the image if its segments leave open whether it is rotated: which of them counts is the decoder's rule.
    """
    orientations: set[int] = set()
    file.seek(2)
    for _ in range(MAX_PARTS):
        code = _next_marker(file)
        if code == 0x01 or 0xD0 <= code <= 0xD7:  # markers without a segment
            continue
        body = int.from_bytes(file.read(2), "big") - 2
        if code in (0x00, 0xD8, 0xD9, 0xDA) or body < 0:
            return None
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):  # frame header: precision, height, width
            frame = file.read(body)
            height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
            if code in (0xC2, 0xC6, 0xCA, 0xCE):
                _check_progressive_work(file, height * width)
            rotated = {orientation >= 5 for orientation in orientations}
            if 0 < height * width <= MAX_PIXELS and (len(rotated) > 1 or not _tables_follow(file)):
                position = file.tell()
                height, width = _decoded_shape(file)
                file.seek(position)
                return height, width
            return (width, height) if True in rotated else (height, width)
        if code == 0xE1:
            orientations |= exif_orientations(file.read(body))
        else:
            file.seek(body, os.SEEK_CUR)
    return None


def _tables_follow(file: BinaryIO) -> bool:
    """Return whether the first scan is near and no Exif precedes it. The reading position stays."""
    position = file.tell()
    tables, scan, _ = file.read(MAX_TABLES).partition(b"\xff\xda")
    file.seek(position)
    return bool(scan) and b"\xff\xe1" not in tables


def _check_progressive_work(file: BinaryIO, pixels: int) -> None:
    """Raise ValueError if the scans of a progressive JPEG would take minutes to decode.

    Each scan passes over all pixels, in a call that no signal ends. The reading position stays.
    """
    position, scans, last = file.tell(), 0, b""
    while block := file.read(1 << 20):
        scans += (last + block).count(b"\xff\xda")
        last = block[-1:]
    file.seek(position)
    if scans > USUAL_SCANS and scans * pixels > MAX_SCANNED_PIXELS:
        raise ValueError(f"a progressive JPEG with {scans} scans, which takes too long to decode: save it again")


def find_jpeg_scan(data: bytes) -> tuple[int, int] | None:
    """Return the position of a JPEG's height, and that of its first scan.

    Return None unless it is baseline or sequential with Huffman coding, not rotated, and only segments precede the
    scan.
    """
    position, height_at = 2, None
    for _ in range(MAX_PARTS):
        mark, code = data[position : position + 1], data[position + 1 : position + 2]
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if mark != b"\xff" or not b"\xc0" <= code <= b"\xfe" or b"\xd0" <= code <= b"\xd9" or length < 2:
            return None
        if code in (b"\xc0", b"\xc1"):
            height_at = position + 5  # behind the precision
        elif code == b"\xe1" and exif_orientations(data[position + 4 : position + 2 + length]) - {1}:
            return None
        position += 2 + length
        if code == b"\xda":
            return None if height_at is None else (height_at, position)
    return None


def _next_marker(file: BinaryIO) -> int:
    """Return the code of the next marker, or 0 if none is near. Skip stray bytes before it, as decoders do."""
    pair = file.read(2)
    if pair[:1] == b"\xff" and b"\0" < pair[1:] < b"\xff":
        return pair[1]  # the usual case
    file.seek(-len(pair), os.SEEK_CUR)
    before = 0
    for _ in range(MAX_PARTS):
        byte = file.read(1)
        if not byte:
            break
        if before == 0xFF and byte[0] not in (0x00, 0xFF):
            return byte[0]
        before = byte[0]
    return 0


def exif_orientations(segment: bytes) -> set[int]:
    """Return the orientations 1…8 that decoders may find in a segment of a JPEG.

    There is none without the tag, one in a usual segment, and all in an unusual one.
    """
    tiff, is_exif = segment[6:], segment.startswith(b"Exif\0\0")
    if tiff[:2] not in (b"II", b"MM"):  # some decoders read the numbers all the same
        return set(ANY_ORIENTATION) if is_exif and tiff[2:4] in (b"*\0", b"\0*") else set()
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"
    one_short = (3).to_bytes(2, order) + (1).to_bytes(4, order)  # type and count
    usual = is_exif and int.from_bytes(tiff[2:4], order) == 42
    table, found = int.from_bytes(tiff[4:8], order), set()
    for k in range(int.from_bytes(tiff[table : table + 2], order)):
        entry = tiff[table + 2 + 12 * k : table + 14 + 12 * k]
        if len(entry) < 12:
            return set(ANY_ORIENTATION)
        if int.from_bytes(entry[:2], order) == ORIENTATION_TAG:
            value = int.from_bytes(entry[8:10], order)
            found.add(value if value in ANY_ORIENTATION else 1)
            usual = usual and entry[2:8] == one_short
    return found if usual or not found else set(ANY_ORIENTATION)


def _png_shape(file: BinaryIO, head: bytes) -> tuple[int, int] | None:
    if head[12:16] != b"IHDR":
        return None
    return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")


def _png_header_suffices(file: BinaryIO) -> bool:
    """Return False if the image must be decoded, since it may have an orientation (eXIf)."""
    file.seek(8)
    for _ in range(MAX_PARTS):
        chunk = file.read(8)
        if len(chunk) < 8 or chunk[4:] == b"eXIf":
            return False
        if chunk[4:] == b"IDAT":
            _require_end(file, b"IEND\xaeB`\x82", at_end=8)
            return True
        file.seek(int.from_bytes(chunk[:4], "big") + 4, os.SEEK_CUR)
    return False


def _webp_shape(file: BinaryIO, head: bytes) -> tuple[int, int] | None:
    if head[8:12] != b"WEBP":
        return None
    if file.seek(0, os.SEEK_END) < int.from_bytes(head[4:8], "little") + 8:
        raise ValueError("the image is truncated: it is shorter than its header says")
    if head[12:16] == b"VP8X":  # the canvas of all frames; the file stores each side minus 1
        return 1 + int.from_bytes(head[27:30], "little"), 1 + int.from_bytes(head[24:27], "little")
    if head[12:16] == b"VP8L":
        sides = int.from_bytes(head[21:25], "little")
        return 1 + (sides >> 14 & 0x3FFF), 1 + (sides & 0x3FFF)
    if head[12:16] == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
        return height & 0x3FFF, width & 0x3FFF  # the upper two bits request a scaling, which decoders ignore
    return None


def _require_end(file: BinaryIO, mark: bytes, *, at_end: int) -> None:
    """Raise ValueError unless `mark` ends the file or occurs behind the reading position (junk may follow it)."""
    position = file.tell()
    file.seek(-at_end, os.SEEK_END)
    if file.read() == mark:
        return
    file.seek(position)
    tail = b""
    while block := file.read(1 << 20):
        if mark in tail + block:
            return
        tail = block[-len(mark) :]
    raise ValueError("the image is truncated: its end mark is missing")


JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
FORMATS = {
    JPEG: _jpeg_shape,
    PNG: _png_shape,
    b"RIFF": _webp_shape,
    b"BM": _bmp_shape,
    b"PF\n": _pfm_shape,
    b"Pf\n": _pfm_shape,
    **dict.fromkeys(MARKS, _tiff_shape),
}
