"""Conversions between pixel formats: video frames for any network, and anything for people's eyes."""

import cv2
import numpy as np
import pytest

from utils.errors import UserError
from utils.images.conversion import convert_pixels, displayable, displayable_rgb, to_network_order, to_unit_range
from utils.pixel_format import RGB, PixelFormat

FRAME = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)  # BGR


def test_a_frame_stays_itself_for_rgb():
    assert convert_pixels(FRAME, RGB) is FRAME and displayable(FRAME) is FRAME
    assert displayable_rgb(FRAME) is FRAME


@pytest.mark.parametrize(
    "pixels, expected",
    [
        (PixelFormat(1), cv2.cvtColor(FRAME, cv2.COLOR_BGR2GRAY)[:, :, None]),
        (PixelFormat(3, 16), FRAME * np.uint16(257)),
        (PixelFormat(1, 12), cv2.cvtColor(FRAME, cv2.COLOR_BGR2GRAY)[:, :, None] * np.uint16(257)),
    ],
)
def test_a_frame_of_a_video_fits_a_model_of_gray_or_deep_images(pixels, expected):
    found = convert_pixels(FRAME, pixels)
    assert found.dtype == expected.dtype and np.array_equal(found, expected)


def test_gray_images_fit_a_model_of_colours():
    assert np.array_equal(convert_pixels(FRAME[:, :, 0], RGB), np.repeat(FRAME[:, :, :1], 3, axis=2))


@pytest.mark.parametrize(
    "image, pixels, reason",
    [
        (FRAME, PixelFormat(5), "an image of 3 channels, but the model takes images of 5 channels"),
        (FRAME.astype(np.uint16), RGB, "an image of type uint16, but the model takes images of 3 channels"),
    ],
)
def test_what_a_frame_lacks_is_one_line(image, pixels, reason):
    with pytest.raises(UserError, match=reason):
        convert_pixels(image, pixels)


def test_people_see_the_first_three_channels_or_gray():
    five = np.dstack([FRAME, FRAME[:, :, :2]])
    assert np.array_equal(displayable(five), FRAME[:, :, ::-1])  # the first is red
    assert np.array_equal(displayable_rgb(five), FRAME)
    assert np.array_equal(displayable(FRAME[:, :, :2]), np.repeat(FRAME[:, :, :1], 3, axis=2))


def test_people_see_deep_images_in_their_own_range():
    warm = np.linspace(30_000, 30_100, 48).reshape(6, 8, 1).round().astype(np.uint16)
    found = displayable(warm)
    assert (found.shape, found.dtype, found.min(), found.max()) == ((6, 8, 3), np.uint8, 0, 255)
    assert displayable(np.full((4, 4, 1), 500, np.uint16)).max() == 0  # no range at all


def test_networks_get_red_first_and_all_else_in_the_order_of_the_file():
    assert np.array_equal(to_network_order(FRAME), FRAME[:, :, ::-1])
    assert to_network_order(FRAME[:, :, :2]).tolist() == FRAME[:, :, :2].tolist()
    assert to_unit_range(np.array([0, 65535], np.uint16)).tolist() == [0, 1]
    assert to_unit_range(np.array([0, 255], np.uint8)).tolist() == [0, 1]
