"""Calibration images: chosen by a seed from the training split, letterboxed as in inference."""

import dataclasses

import cv2
import numpy as np
import pytest

from utils.errors import UserError
from utils.exporting.calibration import choose_images
from utils.exporting.request import ExportRequest
from utils.images.letterbox import letterbox


def request(data, **properties):
    return dataclasses.replace(ExportRequest((64, 96), data=str(data), calibration_images=5), **properties)


def test_images_are_of_the_training_split_and_the_same_each_time(tiny_data):
    first, second = (choose_images(request(tiny_data), "--int8") for _ in range(2))
    assert first.paths == second.paths and len(first) == len(set(first.paths)) == 5
    assert all("images/train" in path.replace("\\", "/") for path in first.paths)
    assert len(choose_images(request(tiny_data, calibration_images=300), "--int8").paths) == 24


def test_inputs_are_those_of_inference(tiny_data):
    images = choose_images(request(tiny_data), "--int8")
    boxed, _ = letterbox(cv2.imread(images.paths[0]), (64, 96), auto=False)
    found = next(iter(images))
    assert found.dtype == np.float32 and found.shape == (1, 3, 64, 96)
    assert np.allclose(found[0], boxed[..., ::-1].transpose(2, 0, 1) / 255)


def test_a_fixed_batch_is_filled_up_and_damaged_images_are_skipped(tiny_data):
    images = choose_images(request(tiny_data, batch=4), "--int8")
    batches = list(images)
    assert len(images) == len(batches) == 2 and batches[1].shape == (4, 3, 64, 96)
    assert batches[1][0].any() and not batches[1][1:].any()


def test_no_image_that_can_be_read(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"no image")
    file = tmp_path / "d.yaml"
    file.write_text("train: images\nval: images\nnames: [a]\n")
    with pytest.raises(UserError, match="neither this nor another image of the training split can be read"):
        list(choose_images(request(file), "--int8"))


def test_absent_images_are_never_fetched(tmp_path):
    file = tmp_path / "d.yaml"
    file.write_text("train: a\nval: b\nnames: [a]\ndownload: https://example.com/a.zip\n")
    with pytest.raises(UserError, match=r"--int8 calibrates on training images, and those of --data .* are not here"):
        choose_images(request(file), "--int8")
