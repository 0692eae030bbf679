"""Decoding: depths of cameras, floats, gray images, alpha, more channels."""

import io
import sys
import zlib

import cv2
import numpy as np
import pytest

from utils.errors import UserError
from utils.images.decode import WrongPixels, decode_image
from utils.images.header import image_shape
from utils.images.read import read_image
from utils.images.tiff import Page, read_pages
from utils.pixel_format import PixelFormat

RAMP = np.linspace(0, 1, 20 * 30).reshape(20, 30)


def pfm(values, mark):
    return f"{mark}\n30 20\n-1.0\n".encode() + values[::-1].astype("<f4").tobytes()  # the bottom row first


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(
    "top, shift",
    [(65535, 8), (4096, 8), (4095, 4), (256, 4), (255, 0), (0, 0)],  # the greatest value, bits to drop
)
def test_values_of_12_bits_are_not_black(suffix, top, shift):
    values = (RAMP * top).round().astype(np.uint16)
    found = decode_image(cv2.imencode(suffix, values)[1].tobytes())
    assert found.shape == (20, 30, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - (values >> shift)[:, :, None]).max() <= 1


@pytest.mark.parametrize(
    "data",
    [
        pfm(RAMP, "Pf"),
        pfm(RAMP * 255, "Pf"),  # some write 0...255
        pfm(np.repeat(RAMP[:, :, None], 3, 2), "PF"),
        cv2.imencode(".tif", RAMP.astype(np.float32))[1].tobytes(),
    ],
)
def test_floats_and_gray_images_have_three_channels_of_8_bits(tmp_path, data):
    (tmp_path / "a.pfm").write_bytes(data)
    found = decode_image(data)
    assert image_shape(tmp_path / "a.pfm") == found.shape[:2] == (20, 30) and found.shape[2] == 3
    assert np.abs(found.astype(int) - (RAMP * 255)[:, :, None]).max() <= 1


# ---- other pixel formats

RNG = np.random.default_rng(0)


def levels(channels, top, kind):
    """Return an image (20, 30, channels) of random levels up to `top`, which occurs."""
    image = RNG.integers(0, top + 1, (20, 30, channels)).astype(kind)
    image[3, 4] = top
    return image


def encode(image, suffix=".png"):
    return cv2.imencode(suffix, image)[1].tobytes()


def pages_of(image):
    return cv2.imencodemulti(".tiff", [np.ascontiguousarray(plane) for plane in image.transpose(2, 0, 1)])[1].tobytes()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("bit_depth, kind", [(8, np.uint8), (16, np.uint16)])
def test_16_bits_keep_their_range(suffix, bit_depth, kind):
    for channels in (1, 3):
        stored = levels(channels, 2**bit_depth - 1, kind)
        found = decode_image(encode(stored, suffix), PixelFormat(channels, bit_depth))
        assert found.dtype == kind and np.array_equal(found, stored)


@pytest.mark.parametrize("bit_depth", [10, 12, 14])
def test_all_images_of_a_camera_have_one_range(bit_depth):
    stored = levels(1, 2**bit_depth - 1, np.uint16)
    for image in (stored, stored // 8):  # a dark image stays dark
        found = decode_image(encode(image), PixelFormat(1, bit_depth))
        assert np.abs(found / 65535 - image / (2**bit_depth - 1)).max() < 1e-5


def test_8_bits_and_floats_fill_the_range_of_16():
    gray = levels(1, 255, np.uint8)
    assert np.array_equal(decode_image(encode(gray), PixelFormat(1, 16)), gray * np.uint16(257))
    found = decode_image(cv2.imencode(".tif", RAMP.astype(np.float32))[1].tobytes(), PixelFormat(1, 16))
    assert np.abs(found[:, :, 0] / 65535 - RAMP).max() < 1e-5


def test_one_channel_is_the_luma_and_of_a_gray_file_the_file():
    colours, gray = levels(3, 255, np.uint8), levels(1, 255, np.uint8)
    luma = colours @ np.array([0.114, 0.587, 0.299])  # of blue, green, red (Rec. 601)
    assert np.abs(decode_image(encode(colours), PixelFormat(1))[:, :, 0] - luma).max() <= 1
    assert np.array_equal(decode_image(encode(gray), PixelFormat(1)), gray)


def test_alpha_is_dropped_or_the_fourth_channel():
    stored = levels(4, 255, np.uint8)  # BGRA
    for suffix in (".png", ".tiff"):
        assert np.array_equal(decode_image(encode(stored, suffix)), stored[:, :, :3])
        assert np.array_equal(decode_image(encode(stored, suffix), PixelFormat(4)), stored[:, :, [2, 1, 0, 3]])


@pytest.mark.parametrize("bit_depth, kind", [(8, np.uint8), (16, np.uint16)])
def test_pages_are_channels_in_their_order(bit_depth, kind):
    for channels in (2, 5, 9):
        stored = levels(channels, 2**bit_depth - 1, kind)
        assert np.array_equal(decode_image(pages_of(stored), PixelFormat(channels, bit_depth)), stored)


@pytest.mark.parametrize(
    "data, pixels, reason",
    [
        (encode(levels(3, 255, np.uint8)), PixelFormat(4), "has 3 channels, expected 4 "),
        (encode(levels(1, 255, np.uint8)), PixelFormat(2), "has 1 channel, expected 2 "),
        (pages_of(levels(5, 255, np.uint8)), PixelFormat(6), "has 5 channels, expected 6 "),
        (pages_of(levels(9, 255, np.uint8)), PixelFormat(4), "has 5 channels or more, expected 4 "),
        (encode(levels(1, 5000, np.uint16)), PixelFormat(1, 12), r"to 5000, expected 0 to 4095 \(bit_depth: 12\)"),
        (
            cv2.imencode(".tif", np.full((20, 30), 7, np.float32))[1].tobytes(),
            PixelFormat(1, 16),
            "from 7 to 7, expected 0 to 1 ",
        ),
    ],
)
def test_what_is_not_in_the_file_is_one_line(tmp_path, data, pixels, reason):
    file = tmp_path / "a.tiff"
    file.write_bytes(data)
    with pytest.raises(WrongPixels, match=reason):
        decode_image(data, pixels)
    with pytest.raises(UserError, match=f"a.tiff: .*{reason}"):
        read_image(file, pixels)
    if pixels.bit_depth == 8:
        with pytest.raises(UserError, match=f"a.tiff: {reason}"):
            image_shape(file, pixels)


def bands_of(image, **settings):
    """Encode bands in one page, as GDAL does."""
    file = io.BytesIO()
    settings = {"photometric": "minisblack", "planarconfig": "contig", **settings}
    stored = image.transpose(2, 0, 1) if settings["planarconfig"] == "separate" else image
    pytest.importorskip("tifffile").imwrite(file, stored, **settings)
    return file.getvalue()


@pytest.mark.parametrize("settings", [{}, {"planarconfig": "separate"}, {"compression": "zlib"}, {"tile": (16, 16)}])
@pytest.mark.parametrize("channels", [2, 4, 5, 9])
def test_bands_of_one_page_are_channels_in_their_order(channels, settings):
    for bit_depth, kind in ((8, np.uint8), (16, np.uint16)):
        stored = levels(channels, 2**bit_depth - 1, kind)
        assert np.array_equal(decode_image(bands_of(stored, **settings), PixelFormat(channels, bit_depth)), stored)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_bands_of_floats_are_0_to_1(kind):
    stored = RNG.random((20, 30, 6)).astype(kind)
    for bit_depth, step in ((8, 255), (16, 65535)):
        found = decode_image(bands_of(stored), PixelFormat(6, bit_depth))
        assert np.abs(found / step - stored).max() <= 0.51 / step


def test_smaller_copies_behind_the_bands_are_ignored():
    tifffile = pytest.importorskip("tifffile")
    stored, file = levels(5, 255, np.uint8), io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(stored, photometric="minisblack", planarconfig="contig")
        writer.write(stored[::2, ::2], photometric="minisblack", planarconfig="contig", subfiletype=1)
    assert np.array_equal(decode_image(file.getvalue(), PixelFormat(5)), stored)


def test_bands_of_another_number_or_a_damaged_page_are_one_line(tmp_path, monkeypatch):
    data = bands_of(levels(5, 255, np.uint8), compression="zlib")
    with pytest.raises(WrongPixels, match="has 5 channels, expected 6 "):
        decode_image(data, PixelFormat(6))
    with pytest.raises(ValueError, match="bands cannot be decoded"):
        decode_image(data[:-200], PixelFormat(5))
    (tmp_path / "a.tif").write_bytes(data)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match=r'a\.tif: .* needs the package tifffile: pip install "\.\[tiff\]"'):
        read_image(tmp_path / "a.tif", PixelFormat(5))


def test_bands_that_unpack_to_more_than_they_state_are_not_unpacked():
    tifffile = pytest.importorskip("tifffile")
    bomb = zlib.compress(bytes(1 << 20))
    file = io.BytesIO()
    tifffile.imwrite(
        file, iter([bomb]), shape=(20, 30, 5), dtype=np.uint8, photometric="minisblack", planarconfig="contig",
        compression="zlib", rowsperstrip=20,
    )  # fmt: skip
    with pytest.raises(ValueError, match="more data than its size"):
        decode_image(file.getvalue(), PixelFormat(5))


def test_pages_of_two_sizes_are_no_image():
    data = cv2.imencodemulti(".tiff", [np.zeros((20, 30), np.uint8), np.zeros((21, 30), np.uint8)])[1].tobytes()
    with pytest.raises(WrongPixels, match="pages of different sizes"):
        decode_image(data, PixelFormat(2))


def test_pages_that_would_fill_the_memory_are_not_decoded():
    data = bytearray(cv2.imencodemulti(".tiff", [np.zeros((20, 30), np.uint8)] * 3)[1].tobytes())
    sizes = [Page(20, 30, 1)] * 3
    assert read_pages(io.BytesIO(data), 9) == sizes and read_pages(io.BytesIO(data), 2) == sizes[:2]
    for tag in (256, 257):  # each page says that it is 60 000 pixels wide and high
        field = tag.to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
        other = tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little")
        for mark in (field, other):
            start = data.find(mark)
            while start >= 0:
                data[start + 8 : start + 10] = (60_000).to_bytes(2, "little")
                start = data.find(mark, start + 1)
    with pytest.raises(ValueError, match="more than 1073741824 values: cut it into tiles"):
        decode_image(bytes(data), PixelFormat(4))


@pytest.mark.parametrize("pixels", [PixelFormat(1), PixelFormat(3), PixelFormat(5), PixelFormat(1, 16)], ids=str)
def test_signed_values_are_levels_only_if_none_is_negative(pixels, tmp_path):
    values = (RAMP * 32767).astype(np.int16)
    pages = [values] * (pixels.channels if pixels.channels == 5 else 1)
    for name, lowest in (("levels", 0), ("heights", 100)):
        cv2.imwritemulti(str(tmp_path / f"{name}.tif"), [page - np.int16(lowest) for page in pages])
    found = read_image(tmp_path / "levels.tif", pixels)
    assert found.dtype == pixels.dtype and found.shape == (20, 30, pixels.channels)
    expected = values if pixels.bit_depth == 16 else values >> 8
    assert np.abs(found[..., 0].astype(int) - expected).max() <= 1
    with pytest.raises(ValueError, match="has negative values, or of type int16"):
        image_shape(tmp_path / "heights.tif", pixels)  # not the wrapped bytes that OpenCV gives


def test_pages_of_other_types_are_no_image(tmp_path):
    cv2.imwritemulti(str(tmp_path / "a.tif"), [RAMP, RAMP])  # float64
    with pytest.raises(ValueError, match="of type float64"):
        read_image(tmp_path / "a.tif", PixelFormat(2))
