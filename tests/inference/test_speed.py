"""Speed: means over images, and the line that the programs print."""

import numpy as np

from utils.detections import Detections
from utils.inference.speed import MeanSpeed, speed_per_image
from utils.metrics import Speed


def detections(input_shape, speed):
    return Detections(np.zeros((0, 6), np.float32), (48, 64), input_shape=input_shape, speed=speed)


def test_speed_is_a_mean_over_the_images():
    speed = MeanSpeed()
    assert "Speed: 0.0ms" in str(speed)  # stopped before the first image
    speed.add(detections((64, 64), Speed(1.0, 10.0, 0.0)))
    speed.add(detections((64, 128), Speed(3.0, 30.0, 1.0)))
    assert str(speed) == "Speed: 2.0ms pre-process, 20.0ms inference, 0.5ms NMS per image at shape (1, 3, 64, 128)"


def test_speed_per_image():
    seconds = {"preprocess": 0.5, "inference": 1.0, "nms": 0.25}
    assert speed_per_image(seconds, 0) == Speed(500, 1000, 250)
    assert speed_per_image(seconds, 10) == Speed(50, 100, 25)
