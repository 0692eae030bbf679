"""Decoding to 8 bits: depths of cameras, floats, gray images."""

import cv2
import numpy as np
import pytest

from utils.images.decode import decode_image
from utils.images.header import image_shape

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
