"""Predictor: a network together with everything that turns images into detections.

Legend: B images of a batch, H W rows and columns, N predictions, C classes, n detections.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from utils.detections import Detections
from utils.detector import InferenceModel
from utils.images.conversion import convert_pixels, to_network_order
from utils.images.letterbox import Letterbox, letterbox
from utils.images.tiles import Tiling
from utils.inference.nms_settings import NmsSettings
from utils.inference.preprocess import to_network_input
from utils.inference.speed import add_speeds, speed_per_image
from utils.inference.tile_pass import TilePass
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
    tiling: Tiling | None = None  # look at the tiles of each image too

    def __post_init__(self) -> None:
        self.names = self.names or self.model.names
        self.imgsz = self.model.fixed_shape or self.imgsz
        self.tiles: TilePass | None = None
        if self.tiling:
            auto, stride = self.model.fixed_shape is None, self.model.size_multiple
            self.tiles = TilePass(self.tiling, self.imgsz, self.nms, auto=auto, stride=stride)
        self.nms = self.nms.fit(self.model, self.names)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], paths: Sequence[str] | None = None) -> list[Detections]:
        """Return the detections of each image, BGR uint8 (H, W, 3) or in the pixel format of the model, in its pixels.

        Images that get the same input shape run as one batch. Otherwise they run one after the other.
        """
        watch = Stopwatch(self.model.device)
        with watch("preprocess"):
            images = [convert_pixels(image, self.model.pixels) for image in images]
            boxed = [self._letterbox(image, path) for image, path in zip(images, paths or [""] * len(images))]
        seconds = watch.seconds["preprocess"] / max(len(images), 1)
        batches = [boxed] if len({one.image.shape for one in boxed}) == 1 else [[one] for one in boxed]
        found = [one for batch in batches for one in self.predict_batch(batch, seconds)]
        return [self.add_tiles(image, one) for image, one in zip(images, found, strict=True)]

    @torch.inference_mode()
    def add_tiles(self, image: np.ndarray, found: Detections, *, in_network_order: bool = False) -> Detections:
        """Return the detections of an image (H, W, C) together with those of its tiles, if there is a tiling.

        image: in the pixel format of the model, BGR with 3 channels or in the order that the network takes.
        """
        if self.tiles is None:
            return found
        watch = Stopwatch(self.model.device)

        def find(stacked: np.ndarray) -> list[np.ndarray]:
            ordered = stacked if in_network_order else [to_network_order(one) for one in stacked]
            return self._find(ordered, watch)

        rows = self.tiles.add(image, found.rows, find, watch)
        return replace(found, rows=rows, speed=add_speeds(found.speed, speed_per_image(watch.seconds, 1)))

    def _letterbox(self, image: np.ndarray, path: str) -> LetterboxedImage:
        auto = self.model.fixed_shape is None
        boxed, box = letterbox(image, self.imgsz, auto=auto, stride=self.model.size_multiple)
        return LetterboxedImage(to_network_order(boxed), box, path)

    @torch.inference_mode()
    def predict_batch(self, boxed: Sequence[LetterboxedImage], seconds: float) -> list[Detections]:
        """Return the detections of images of one shape (1 or more). `seconds`: time that each has taken so far."""
        watch = Stopwatch(self.model.device)
        watch.seconds["preprocess"] = seconds * len(boxed)
        rows = self._find([one.image for one in boxed], watch)
        with watch("nms"):
            for found, one in zip(rows, boxed, strict=True):
                found[:, :4] = one.letterbox.undo(found[:, :4])
        speed, (height, width) = speed_per_image(watch.seconds, len(boxed)), boxed[0].image.shape[:2]
        return [
            Detections(found, one.letterbox.shape, one.path, self.names, (height, width), speed)
            for found, one in zip(rows, boxed, strict=True)
        ]

    def _find(self, images: Iterable[np.ndarray], watch: Stopwatch) -> list[np.ndarray]:
        """Return the detections (n, 6) of each image (H, W, C) of one shape, in pixels of the input."""
        device = self.model.device
        with watch("preprocess"):
            stacked = torch.from_numpy(np.stack(list(images)))  # (B, H, W, C)
            batch = to_network_input(stacked.permute(0, 3, 1, 2), device)  # (B, C, H, W)
        with watch("inference"), torch.autocast(device.type, torch.float16, enabled=self.half):
            decoded = self.model(batch, augment=self.augment)[0]  # (B, N, 5+C)
        with watch("nms"):
            return [one.cpu().numpy() for one in self.nms.apply(decoded)]  # (n, 6) each
