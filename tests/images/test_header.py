"""Sizes in headers equal those of the decoded images, and errors name the damage."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.errors import UserError
from utils.images.header import MAX_PIXELS, image_shape
from utils.images.read import read_image


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def write_image(path: Path, height: int = 24, width: int = 32, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 255, (height, width, 3), np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, noise)[1].tobytes())
    return path


def with_segment(jpeg: bytes, code: int, payload: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, code, len(payload) + 2) + payload + jpeg[2:]


def exif(orientation: int, order: str) -> bytes:
    sign, name = ("<", b"II") if order == "little" else (">", b"MM")
    return (
        b"Exif\0\0"
        + name
        + struct.pack(f"{sign}HI", 42, 8)
        + struct.pack(f"{sign}H", 1)
        + struct.pack(f"{sign}HHIHHI", 0x0112, 3, 1, orientation, 0, 0)
    )


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("orientation", range(0, 10))
def test_size_is_that_of_the_rotated_image(tmp_path, orientation, order):
    path = write_image(tmp_path / "x.jpg", 20, 30)
    path.write_bytes(with_segment(path.read_bytes(), 0xE1, exif(orientation, order)))
    rotated = 5 <= orientation <= 8
    assert image_shape(path) == ((30, 20) if rotated else (20, 30))
    assert cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).shape[:2] == image_shape(path)


XMP = b"http://ns.adobe.com/xap/1.0/\0<x/>"
SIX = exif(6, "little")
SEGMENTS = {
    "upright, then rotated": [exif(1, "little"), SIX],
    "rotated, then upright": [SIX, exif(1, "big")],
    "upside down, then rotated": [exif(3, "big"), SIX],
    "no such orientation, then rotated": [exif(9, "big"), SIX],
    "XMP, then rotated": [XMP, SIX],
    "truncated, then rotated": [SIX[:-9], SIX],
    "without the tag, then rotated": [b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0", SIX],
    "another name": [b"Nope\0\0" + SIX[6:]],
    "another magic number": [SIX.replace(b"II*", b"II+")],
    "another byte order": [exif(6, "big").replace(b"MM", b"MX")],
    "a long number": [SIX.replace(b"\x12\x01\3\0", b"\x12\x01\4\0")],
}


@pytest.mark.parametrize("behind", [False, True], ids=["before the frame header", "behind it"])
@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
def test_segments_that_disagree_have_the_size_that_they_decode_to(tmp_path, segments, behind):
    data = write_image(tmp_path / "x.jpg", 20, 30).read_bytes()
    position = data.index(b"\xff\xc4" if behind else b"\xff\xdb")  # the tables of codes, or of quantization
    added = b"".join(struct.pack(">BBH", 0xFF, 0xE1, len(payload) + 2) + payload for payload in segments)
    path = write(tmp_path / "x.jpg", data[:position] + added + data[position:])
    decoded = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).shape[:2]
    assert image_shape(path) == decoded == read_image(path).shape[:2]


def test_usual_jpegs_are_not_decoded(tmp_path, monkeypatch):
    data = write_image(tmp_path / "x.jpg", 20, 30).read_bytes()
    path = write(tmp_path / "x.jpg", with_segment(with_segment(data, 0xE1, XMP), 0xE1, SIX))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    assert image_shape(path) == (30, 20)


def test_rotated_png_has_the_size_that_it_decodes_to(tmp_path):
    path = write_image(tmp_path / "x.png", 20, 30)
    chunk = b"eXIf" + exif(6, "big")[6:]
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(path.read_bytes()[:33] + chunk + path.read_bytes()[33:])
    assert image_shape(path) == cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).shape[:2]


@pytest.mark.parametrize("suffix", [".bmp", ".jpg", ".pfm", ".png", ".tiff", ".webp"])
def test_every_format_reports_the_decoded_size(tmp_path, suffix):
    path = write_image(tmp_path / f"x{suffix}", 21, 34)
    assert image_shape(path) == (21, 34) == read_image(path).shape[:2]


@pytest.mark.parametrize("stray", [b"stray \xff\0 bytes\xff\xff", b"a", b"\xff", b"\xff\0", b"\xff\xff", b"\0"])
@pytest.mark.parametrize("before", [b"\xff\xdb", b"\xff\xc0"], ids=["tables", "frame header"])
def test_stray_bytes_between_the_segments_of_a_jpeg_are_skipped(tmp_path, stray, before):
    path = write_image(tmp_path / "x.jpg", 21, 34)
    whole = path.read_bytes()
    position = whole.index(before)
    write(path, whole[:position] + stray + whole[position:])
    assert image_shape(path) == (21, 34) == read_image(path).shape[:2]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff_of(side: int, order: str, big: bool) -> bytes:
    """Build a TIFF whose first page states a width and height of 1, then of `side` pixels."""
    head = struct.pack(f"{order}HHHQQ", 43, 8, 0, 16, 4) if big else struct.pack(f"{order}HIH", 42, 8, 4)
    tags = ((256, 1), (257, 1), (256, side), (257, side))
    rows = [struct.pack(order + ("HHQI4x" if big else "HHII"), tag, 4, 1, value) for tag, value in tags]
    return {"<": b"II", ">": b"MM"}[order] + head + b"".join(rows) + bytes(100)


SIDE = 20_000
BOMBS = {
    "PNG": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 1, 0, 0, 0, 0))
    + chunk(b"eXIf", b"II*\0\x08" + bytes(9))
    + chunk(b"IDAT", zlib.compress(bytes(9)))
    + chunk(b"IEND", b""),
    "BMP": b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, SIDE, -SIDE, 1, 8, 1, 2, 0, 0, 256, 0) + bytes(1026),
    "old BMP": b"BM" + bytes(12) + struct.pack("<IHHHH", 12, SIDE, SIDE, 1, 8) + bytes(1026),
    "JPEG": b"\xff\xd8\xff\xfe\0\2stray\xff\xc0\0\x11\x08" + struct.pack(">HH", SIDE, SIDE) + bytes(12) + b"\xff\xd9",
    "WebP": b"RIFF\x1a\0\0\0WEBPVP8X" + struct.pack("<II", 10, 2) + (SIDE.to_bytes(3, "little")) * 2 + bytes(4),
    "PFM": b"PF\n%d %d\n-1.0\n" % (SIDE, SIDE) + bytes(9),
    **{f"TIFF {order}{big}": tiff_of(SIDE, order, big) for order in "<>" for big in (False, True)},
}
UNKNOWN = {
    "HDR": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 20000 +X 20000\n",
    "Sun": b"\x59\xa6\x6a\x95" + bytes(40),
    "JP2": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
    "AVIF": b"\0\0\0\x1cftypavif" + bytes(40),
    "PNM": b"P6\n9 9\n255\n",
}
REFUSED = {
    **{name: (data, f"pixels, more than {MAX_PIXELS}") for name, data in BOMBS.items()},
    **{name: (data, "not an image of a supported format") for name, data in UNKNOWN.items()},
}


@pytest.mark.parametrize("data, reason", REFUSED.values(), ids=REFUSED)
def test_images_too_large_or_of_unknown_size_are_never_decoded(tmp_path, monkeypatch, data, reason):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    path = write(tmp_path / "x.png", data)
    with pytest.raises(ValueError, match=reason):
        image_shape(path)
    with pytest.raises(UserError, match=reason):
        read_image(path)


def test_lossy_webp_is_read_by_its_header(tmp_path):
    data = cv2.imencode(".webp", np.zeros((21, 34, 3), np.uint8), [cv2.IMWRITE_WEBP_QUALITY, 80])[1].tobytes()
    path = write(tmp_path / "x.webp", data)
    assert image_shape(path) == (21, 34)
    write(path, data[:-4])
    with pytest.raises(ValueError, match="truncated"):
        image_shape(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.999])
def test_truncated_image_is_found(tmp_path, suffix, keep):
    path = write_image(tmp_path / f"x{suffix}", 64, 64)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ValueError, match="truncated|decoded"):
        image_shape(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_junk_behind_the_end_mark_is_accepted(tmp_path, suffix):
    path = write_image(tmp_path / f"x{suffix}", 20, 30)
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    assert image_shape(path) == (20, 30)


def test_end_mark_of_an_embedded_preview_does_not_hide_a_truncation(tmp_path):
    path = write_image(tmp_path / "x.jpg", 64, 64)
    data = with_segment(path.read_bytes(), 0xE1, b"Exif\0\0 preview \xff\xd9")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="truncated"):
        image_shape(path)


@pytest.mark.parametrize("data, reason", [
    (b"", "empty"),  # an empty file
    (b"hello, this is text", "not an image"),
    (b"\xff\xd8\xff", "not an image"),  # a JPEG that ends with its first marker
    (b"\xff\xd8\xff\xe0\x00\x00", "not an image"),  # a segment shorter than its own length field
    (b"\x89PNG\r\n\x1a\n", "not an image"),
    (b"GIF89a" + bytes(40), "GIF"),
    (b"RIFF\xff\xff\xff\x00WEBPVP8 " + bytes(20), "truncated"),
])  # fmt: skip
def test_unusable_file_is_named_with_the_reason(tmp_path, data, reason):
    with pytest.raises(ValueError, match=reason):
        image_shape(write(tmp_path / "x.jpg", data))


@pytest.mark.parametrize("height, width, usable", [(9, 100, False), (100, 9, False), (10, 10, True)])
def test_images_have_at_least_ten_pixels_a_side(tmp_path, height, width, usable):
    path = write_image(tmp_path / "x.png", height, width)
    if usable:
        assert image_shape(path) == (height, width)
    else:
        with pytest.raises(ValueError, match=f"{width}x{height} pixels"):
            image_shape(path)


@pytest.mark.parametrize("scans, fits", [(19, True), (3000, False)])
def test_a_jpeg_of_thousands_of_scans_is_refused(tmp_path, scans, fits):
    """Refuse what a decoder would work on for minutes, in a call that no signal ends."""
    image = np.zeros((2000, 2000, 3), np.uint8)
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    last = data[data.rindex(b"\xff\xda") : -2]
    (tmp_path / "x.jpg").write_bytes(data[:-2] + last * (scans - data.count(b"\xff\xda")) + b"\xff\xd9")
    if fits:
        assert image_shape(tmp_path / "x.jpg") == read_image(tmp_path / "x.jpg").shape[:2] == (2000, 2000)
        return
    for read, error in ((image_shape, ValueError), (read_image, UserError)):
        with pytest.raises(error, match="a progressive JPEG with 3000 scans"):
            read(tmp_path / "x.jpg")
