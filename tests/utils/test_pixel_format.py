"""Pixel formats: what YAMLs may say, and what comes of a YAML and a model together."""

import numpy as np
import pytest

from utils.errors import UserError
from utils.pixel_format import GREY, RGB, UNSTATED, PixelFormat, StatedPixels, grey_of, read_stated_pixels


@pytest.mark.parametrize(
    "content, expected",
    [
        ({}, UNSTATED[:2]),
        ({"channels": 1}, (1, None)),
        ({"ch": 4}, (4, None)),  # the key of YOLOv5's model YAMLs
        ({"ch": 5, "channels": 5, "bit_depth": 16}, (5, 16)),
    ],
)
def test_keys_of_a_yaml(content, expected):
    found = read_stated_pixels(content, "a.yaml")
    assert found[:2] == expected and found.source == "a.yaml"


@pytest.mark.parametrize(
    "content, reason",
    [
        ({"channels": 0}, "a.yaml: channels: 0 is not a whole number from 1 to 128"),
        ({"channels": 129}, "from 1 to 128"),
        ({"channels": True}, "channels: True is not"),
        ({"channels": "3"}, "channels: '3' is not"),
        ({"ch": 2.0}, "ch: 2.0 is not"),
        ({"bit_depth": 7}, "bit_depth: 7 is not a whole number from 8 to 16"),
        ({"ch": 1, "channels": 3}, "a.yaml: channels: 3 and ch: 1 differ"),
    ],
)
def test_a_wrong_key_is_one_line(content, reason):
    with pytest.raises(UserError, match=reason):
        read_stated_pixels(content, "a.yaml")


def test_a_model_settles_what_a_yaml_leaves_open_and_nothing_else():
    thermal = PixelFormat(1, 14)
    assert UNSTATED.settle(thermal, of="best.pt")[:2] == thermal
    assert StatedPixels(1, None, "a.yaml").settle(thermal, of="best.pt") == StatedPixels(1, 14, "a.yaml")
    with pytest.raises(UserError, match=r"a.yaml: channels: 3, but best.pt takes images of 1 channel of 14 bits"):
        StatedPixels(3, None, "a.yaml").settle(thermal, of="best.pt")


def test_levels_of_both_types():
    assert (RGB.dtype, RGB.bytes_per_pixel, str(RGB)) == (np.uint8, 3, "3 channels")
    assert (PixelFormat(5, 12).dtype, PixelFormat(5, 12).bytes_per_pixel) == (np.uint16, 10)
    assert grey_of(np.uint8) == GREY and grey_of(np.uint16) / 65535 == GREY / 255  # the same for a network
