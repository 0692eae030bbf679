"""Images read from their files: whole, resized, and their upper rows alone."""

import errno
import os
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_header import exif, with_segment

from utils.errors import UserError
from utils.images import read
from utils.images.header import find_jpeg_scan
from utils.images.read import read_image, read_resized, resize_to, resized_shapes, truncate_jpeg


def test_only_regular_files_of_limited_size_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")  # it has no writer, so opening it would block
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "folder.jpg"):
        with pytest.raises(UserError, match=f"{name}: cannot be read: not a regular file"):
            read_image(tmp_path / name)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 20, 3), np.uint8))
    monkeypatch.setattr(read, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="a.png: cannot be read: more than 0 MiB"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("shape, resized", [
    ((333, 500), (427, 640)), ((500, 333), (640, 427)), ((1200, 1920), (400, 640)),
    ((350, 525), (427, 640)),  # floating point would give 641
    ((640, 640), (640, 640)), ((1, 5000), (1, 640)), ((480, 640), (480, 640)),
])  # fmt: skip
def test_resized_shapes(shape, resized):
    assert resized_shapes([shape], 640).tolist() == [list(resized)]


def test_long_side_is_exact():
    assert (resized_shapes([(7 + width % 5, width) for width in range(12, 3000)], 640).max(1) == 640).all()
    assert (resized_shapes([(height, 5000) for height in range(1, 200)], 64) >= 1).all()


def test_image_of_the_right_size_is_not_copied():
    image = np.zeros((30, 40, 3), np.uint8)
    assert resize_to(image, (30, 40), smooth=False) is image


def test_shrinking_averages_only_if_smooth():
    stripes = np.zeros((8, 80, 3), np.uint8)
    stripes[:, ::4] = 200
    assert np.ptp(resize_to(stripes, (2, 20), smooth=True)) == 0  # each pixel the mean of four
    assert resize_to(stripes, (2, 20), smooth=True)[0, 0, 0] == 50
    assert resize_to(stripes, (2, 20), smooth=False)[0, 0, 0] == 0  # between the second and the third
    enlarged = [resize_to(stripes, (16, 160), smooth=smooth) for smooth in (True, False)]
    np.testing.assert_array_equal(*enlarged)


def test_read_image_gives_three_channels_of_bytes(tmp_path):
    path = tmp_path / "bild ünïcode 图.png"
    path.write_bytes(cv2.imencode(".png", np.full((5, 7), 40000, np.uint16))[1].tobytes())  # 16 bits, grey
    image = read_image(path)
    assert image.shape == (5, 7, 3) and image.dtype == np.uint8 and (image == 40000 >> 8).all()


@pytest.mark.parametrize("data", [None, b"", b"text"])
def test_read_image_names_unreadable_files(tmp_path, data):
    path = tmp_path / "x.png"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match="x.png"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("rows", [None, 5])
def test_an_image_of_another_size_is_an_error_not_a_squeeze(tmp_path, suffix, rows):
    path = tmp_path / f"x{suffix}"
    cv2.imwrite(str(path), np.zeros((60, 40, 3), np.uint8))
    read = partial(read_resized, path, (30, 20), smooth=False, rows=rows)
    assert read(original=(60, 40)).shape[1:] == (20, 3)
    with pytest.raises(UserError, match=f"x{suffix}: has 40x60 pixels, not 60x40 as before"):
        read(original=(40, 60))


def test_a_read_error_that_passes_is_tried_again(tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((20, 30, 3), 7, np.uint8))
    errors, original = [OSError(errno.EIO, "Input/output error"), OSError(errno.EMFILE, "Too many open files")], os.open

    def open_or_fail(*args):
        if errors:
            raise errors.pop()
        return original(*args)

    monkeypatch.setattr("utils.files.os.open", open_or_fail)
    assert (read_image(tmp_path / "a.png") == 7).all() and not errors


# ---- the upper rows alone

HEIGHT, WIDTH = 150, 101
SAMPLINGS = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}


def encoded(suffix: str = ".jpg", *options: int, channels: int = 3) -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (15, 10, channels), np.uint8)
    image = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(suffix, image, options)[1].tobytes()


def upper(path: Path, data: bytes, rows: int, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Return the array read for the upper rows, after comparing them with those of the whole image."""
    path.write_bytes(data)
    whole, part = (read_resized(path, shape, smooth=False, rows=number) for number in (None, rows))
    assert len(part) >= rows
    np.testing.assert_array_equal(part[:rows], whole[:rows])
    return part


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("shape", [(150, 101), (64, 43), (75, 51), (640, 431)])
def test_upper_rows_of_a_jpeg_equal_those_of_the_whole_image(tmp_path, capfd, sampling, shape):
    data = encoded(".jpg", cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling])
    for rows in range(1, shape[0] + 1, 5):
        part = upper(tmp_path / "x.jpg", data, rows, shape)
        assert len(part) == (rows if rows <= 0.75 * shape[0] else len(part))  # no further rows were decoded
    assert capfd.readouterr() == ("", "")  # the decoder reports nothing


def test_upper_rows_of_a_grey_jpeg(tmp_path):
    assert len(upper(tmp_path / "x.jpg", encoded(channels=1), 40)) == 40


@pytest.mark.parametrize("data", [
    encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1), encoded(".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    encoded(".png"), encoded(".bmp"), encoded(".webp"),
    with_segment(encoded(), 0xE1, exif(3, "little")),  # upside down: the first rows stored are the last ones shown
], ids=["progressive", "restart markers", "png", "bmp", "webp", "rotated"])  # fmt: skip
def test_other_files_are_decoded_whole(tmp_path, data):
    assert truncate_jpeg(data, 48) is None
    assert len(upper(tmp_path / "x.jpg", data, 40)) == HEIGHT


def test_jpeg_without_an_end_mark_is_not_truncated():
    assert truncate_jpeg(encoded(), 48) is not None and truncate_jpeg(encoded()[:-2], 48) is None


@pytest.mark.parametrize("data", [
    with_segment(encoded(), 0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0" + encoded()),  # a preview in the header
    encoded() + encoded(),  # a second image behind the first
    encoded() + b"added by some program",
    with_segment(encoded(), 0xE1, exif(1, "big")),
], ids=["preview", "two", "trailer", "upright"])  # fmt: skip
def test_upper_rows_are_those_of_the_image_itself(tmp_path, capfd, data):
    assert len(upper(tmp_path / "x.jpg", data, 40)) == 40
    assert capfd.readouterr() == ("", "")


def test_damage_shows_equally_in_the_upper_rows_and_in_the_whole_image(tmp_path):
    rng = np.random.default_rng(0)
    truncated = 0
    for _ in range(300):
        data = bytearray(encoded())
        data[rng.integers(len(data) // 2, len(data))] = rng.integers(256)
        truncated += len(upper(tmp_path / "x.jpg", bytes(data), 70)) == 70
    assert truncated > 200


def test_image_that_grew_after_the_scan_is_read_in_its_new_size(tmp_path):
    """The rows to read follow from the file's own header, not from the label index."""
    taller = np.random.default_rng(0).integers(0, 256, (2 * HEIGHT, WIDTH, 3), np.uint8)
    assert len(upper(tmp_path / "x.jpg", cv2.imencode(".jpg", taller)[1].tobytes(), 40)) == 40


@pytest.mark.parametrize("height, width", [(151, 101), (152, 60), (160, 100), (153, 7), (190, 33)])
def test_image_slightly_higher_than_its_target_size(tmp_path, height, width):
    """The short side is rounded up, so it may stay unchanged. A few rows may shrink to as many rows."""
    image = cv2.resize(np.random.default_rng(1).integers(0, 256, (19, 9, 3), np.uint8), (width, height))
    data = cv2.imencode(".jpg", image)[1].tobytes()
    for rows in range(1, 150):
        upper(tmp_path / "x.jpg", data, rows, tuple(resized_shapes([(height, width)], 150)[0].tolist()))


def test_image_is_decoded_whole_if_the_truncated_file_has_too_few_bytes(tmp_path):
    """The decoder reads a few bytes more than it needs. A flat image without its end mark does not have them."""
    flat = cv2.imencode(".jpg", np.full((40, 10), 120, np.uint8), [cv2.IMWRITE_JPEG_OPTIMIZE, 1])[1].tobytes()
    assert truncate_jpeg(flat, 25) is not None
    assert len(upper(tmp_path / "x.jpg", flat, 17, (40, 10))) == 40


def test_smooth_images_are_read_whole(tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded())
    averaged = read_resized(path, (75, 51), smooth=True)
    np.testing.assert_array_equal(read_resized(path, (75, 51), smooth=True, rows=20), averaged)
    assert (read_resized(path, (75, 51), smooth=False) != averaged).any()


def test_jpeg_with_more_rows_than_decoders_accept_is_not_read_in_part(tmp_path):
    data = bytearray(cv2.imencode(".jpg", np.zeros((3000, 8), np.uint8))[1].tobytes())
    height_at, _ = find_jpeg_scan(bytes(data))
    data[height_at : height_at + 2] = (65_501).to_bytes(2, "big")
    (tmp_path / "x.jpg").write_bytes(data)
    for rows in (None, 100):
        with pytest.raises(UserError, match="x.jpg"):
            read_resized(tmp_path / "x.jpg", (65_501, 8), smooth=False, rows=rows)


@pytest.mark.parametrize("between", [b"\xff", b"\0", b"\xff\xd0", b"\xff\x01", b"\xff\xfe\0\0", b"\xff\xfe\0\1"])
def test_file_with_unusual_bytes_before_the_scan_is_not_truncated(tmp_path, between):
    data = encoded()
    assert truncate_jpeg(data, 48) is not None
    for begin in (2, 20):  # before and behind the first segment
        assert truncate_jpeg(data[:begin] + between + data[begin:], 48) is None


@pytest.mark.parametrize("name", [b"Exif\0\xff", b"EXIF\0\0", b"XXXXXX"])
def test_orientation_under_another_name_counts(tmp_path, name):
    data = with_segment(encoded(), 0xE1, name + exif(3, "little")[6:])
    assert len(upper(tmp_path / "x.jpg", data, 40)) == HEIGHT


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("smooth", [False, True])
def test_each_channel_is_resized_as_an_image_of_its_own(channels, smooth):
    image = np.random.default_rng(0).integers(0, 65536, (40, 60, channels)).astype(np.uint16)
    found = resize_to(image, (17, 25), smooth=smooth)
    assert found.shape == (17, 25, channels)
    method = cv2.INTER_AREA if smooth else cv2.INTER_LINEAR
    for k in range(channels):
        assert (
            np.abs(found[:, :, k] - cv2.resize(image[:, :, k], (25, 17), interpolation=method).astype(int)).max() <= 1
        )
