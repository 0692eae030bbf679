"""Speed of inference: milliseconds per image in each of its three parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from utils.detections import Detections
from utils.metrics import Speed

PARTS = ("preprocess", "inference", "nms")


def speed_per_image(seconds: Mapping[str, float], num_images: int) -> Speed:
    """Return the milliseconds per image from the seconds of all images in each of the PARTS."""
    return Speed(*(1000 * seconds[part] / max(num_images, 1) for part in PARTS))


def add_speeds(one: Speed, other: Speed) -> Speed:
    """Return the sum of two speeds of one image, part by part."""
    return Speed(*(getattr(one, part) + getattr(other, part) for part in PARTS))


def describe_speed(speed: Speed, input_shape: tuple[int, int, int, int]) -> str:
    """Return the line that val.py and detect.py print.

    input_shape: that of a batch (B, C, H, W).
    """
    return (
        f"Speed: {speed.preprocess:.1f}ms pre-process, {speed.inference:.1f}ms inference, {speed.nms:.1f}ms NMS "
        f"per image at shape {input_shape}"
    )


@dataclass
class MeanSpeed:
    """Mean speed over the images so far. It keeps no image, because streams have no end."""

    num_images: int = 0
    total: Speed = field(default_factory=Speed)
    input_shape: tuple[int, int] = (0, 0)  # height, width of the latest input
    channels: int = 3

    def add(self, found: Detections) -> None:
        """Count the time of one image."""
        self.num_images += 1
        self.total = add_speeds(self.total, found.speed)
        self.input_shape = found.input_shape

    def __str__(self) -> str:
        mean = Speed(*(getattr(self.total, part) / max(self.num_images, 1) for part in PARTS))
        return describe_speed(mean, (1, self.channels, *self.input_shape))
