"""Predictor: a network together with everything that turns images into detections.

Legend: B images of a batch, H W rows and columns, N predictions, C classes, n detections.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from utils.detections import Detections
from utils.detector import InferenceModel
from utils.images.conversion import convert_pixels, to_network_order
from utils.images.letterbox import Letterbox, letterbox
from utils.inference.nms_settings import NmsSettings
from utils.inference.preprocess import to_network_input
from utils.inference.speed import speed_per_image
from utils.timing import Stopwatch


class LetterboxedImage(NamedTuple):
    """An image in the shape of the network's input."""

    image: np.ndarray  # (H, W, C) in the pixel format of the network, RGB with 3 channels
    letterbox: Letterbox
    path: str


@dataclass
class Predictor:
    """Function from images to their Detections."""

    model: InferenceModel
    imgsz: tuple[int, int]  # height, width that images are fitted into; a model of fixed shape overrides it
    nms: NmsSettings = field(default_factory=NmsSettings)
    augment: bool = False  # three passes per image, at several scales
    half: bool = False  # run the network in float16
    names: Mapping[int, str] = field(default_factory=dict)  # class names; the model's if empty

    def __post_init__(self) -> None:
        self.names = self.names or self.model.names
        self.nms = self.nms.fit(self.model, self.names)
        self.imgsz = self.model.fixed_shape or self.imgsz

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], paths: Sequence[str] | None = None) -> list[Detections]:
        """Return the detections of each image, BGR uint8 (H, W, 3) or in the pixel format of the model, in its pixels.

        Images that get the same input shape run as one batch. Otherwise they run one after the other.
        """
        watch = Stopwatch(self.model.device)
        with watch("preprocess"):
            boxed = [self._letterbox(image, path) for image, path in zip(images, paths or [""] * len(images))]
        seconds = watch.seconds["preprocess"] / max(len(images), 1)
        batches = [boxed] if len({one.image.shape for one in boxed}) == 1 else [[one] for one in boxed]
        return [found for batch in batches for found in self.predict_batch(batch, seconds)]

    def _letterbox(self, image: np.ndarray, path: str) -> LetterboxedImage:
        auto = self.model.fixed_shape is None
        image = convert_pixels(image, self.model.pixels)
        boxed, box = letterbox(image, self.imgsz, auto=auto, stride=self.model.size_multiple)
        return LetterboxedImage(to_network_order(boxed), box, path)

    @torch.inference_mode()
    def predict_batch(self, boxed: Sequence[LetterboxedImage], seconds: float) -> list[Detections]:
        """Return the detections of images of one shape (1 or more). `seconds`: time that each has taken so far."""
        device = self.model.device
        watch = Stopwatch(device)
        watch.seconds["preprocess"] = seconds * len(boxed)
        with watch("preprocess"):
            stacked = torch.from_numpy(np.stack([one.image for one in boxed]))  # (B, H, W, C)
            batch = to_network_input(stacked.permute(0, 3, 1, 2), device)  # (B, C, H, W)
        with watch("inference"), torch.autocast(device.type, torch.float16, enabled=self.half):
            decoded = self.model(batch, augment=self.augment)[0]  # (B, N, 5+C)
        with watch("nms"):
            rows = [one.cpu().numpy() for one in self.nms.apply(decoded)]  # (n, 6) each
            for found, one in zip(rows, boxed, strict=True):
                found[:, :4] = one.letterbox.undo(found[:, :4])
        speed, (height, width) = speed_per_image(watch.seconds, len(boxed)), batch.shape[2:]
        return [
            Detections(found, one.letterbox.shape, one.path, self.names, (height, width), speed)
            for found, one in zip(rows, boxed, strict=True)
        ]
