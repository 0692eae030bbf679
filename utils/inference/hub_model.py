"""Model that `torch.hub.load` returns: a function from images, in any form that programs have them, to Results.

Legend: B images of a call, H W rows and columns.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.class_values import Threshold, as_threshold
from utils.detector import InferenceModel
from utils.errors import UserError
from utils.images.conversion import displayable_rgb
from utils.images.inputs import read_input
from utils.images.letterbox import letterbox
from utils.images.read import resized_shapes
from utils.images.tiles import DEFAULT_OVERLAP, Tiling
from utils.inference.evaluate import evaluation_mode
from utils.inference.exported_model import ExportedModel
from utils.inference.nms_settings import NmsSettings
from utils.inference.predictor import LetterboxedImage, Predictor
from utils.inference.results import Results
from utils.timing import Stopwatch
from utils.tracking.tracker import Tracker, TrackSettings


class HubModel(nn.Module):
    """Network with preprocessing and non-maximum suppression.

    Attributes to set: conf and iou (thresholds), agnostic, multi_label, classes (ids to keep), max_det, amp (float16 on
    GPUs). tile: side of tiles in pixels of the image, None for whole images only. tile_overlap: least share of a tile
    that the next one sees too. To read: names, stride (pixels that sides are multiples of), yaml (the model's
    description).

    `conf` may also be {"person": 0.4}, by name or number of classes, or "auto" for the thresholds in the file.
    """

    def __init__(self, model: InferenceModel):
        super().__init__()
        self.model = model
        self.conf: Threshold | Mapping[str | int, float] | str = 0.25
        self.iou, self.max_det = 0.45, 1000
        self.agnostic = self.multi_label = self.amp = False
        self.classes: Iterable[int] | int | None = None
        self.tile: int | None = None
        self.tile_overlap = DEFAULT_OVERLAP
        self.names, self.stride, self.yaml = dict(model.names), model.size_multiple, getattr(model, "yaml", None)

    def forward(
        self, ims: object, size: int | Sequence[int] = 640, augment: bool = False, profile: bool = False
    ) -> Results | Any:
        """Return the Results of one image or of a list. A tensor (B, C, H, W) gives the network's own output.

        ims: what `read_input` accepts, or that tensor in 0…1. size: side, or height and width, that images are fitted
        into. augment: three passes per image, at several scales. profile: accepted, as times are always measured.
        """
        if augment and isinstance(self.model, ExportedModel):
            self.model.check_choices(augment=True)
        with evaluation_mode(self.model):
            if isinstance(ims, Tensor) and ims.ndim == 4:
                return self._run_network(ims, augment)
            watch = Stopwatch(self.model.device)
            with watch("preprocess"):
                pixels = self.model.pixels
                read = [read_input(one, pixels) for one in (ims if isinstance(ims, (list, tuple)) else [ims])]
                if not read:
                    return Results([], [], (0, pixels.channels, 0, 0))
                shape = self._input_shape([one.image for one in read], size)
                boxed = [
                    LetterboxedImage(*letterbox(one.image, shape, auto=False), one.path or f"image{number}")
                    for number, one in enumerate(read)
                ]
            found = self._predictor(shape, augment).predict_batch(boxed, watch.seconds["preprocess"] / len(read))
            if tiling := self._tiling():
                square = self._input_shape([np.empty((1, 1))], size)
                tiles = self._predictor(square, augment, tiling)
                found = [tiles.add_tiles(one.image, own, in_network_order=True) for one, own in zip(read, found)]
            shown = [displayable_rgb(one.image) for one in read]
            return Results(shown, found, (len(read), pixels.channels, *shape))

    def tracker(self, high: float = 0.25, buffer: int = 30) -> Tracker:
        """Return a new tracker for the frames of one video: `tracker.follow(results.detections[0])`.

        high: confidence above which a detection may begin a track. It uses those down to 0.1 too: set `conf` to 0.1.
        buffer: frames that an object may be hidden and keep its id.
        """
        return Tracker(TrackSettings(high, buffer, bool(self.agnostic)))

    @torch.no_grad()
    def _run_network(self, images: Tensor, augment: bool) -> Any:
        """Return the network's own output for images (B, C, H, W) in 0…1."""
        first = next(self.parameters(), images)
        images = images.to(first.device, first.dtype)
        with torch.autocast(first.device.type, torch.float16) if self._runs_in_half() else nullcontext():
            return self.model(images, augment=augment)

    def _runs_in_half(self) -> bool:
        first = next(self.parameters(), None)
        return first is not None and (first.dtype == torch.float16 or (self.amp and first.is_cuda))

    def _input_shape(self, images: Sequence[np.ndarray], size: int | Sequence[int]) -> tuple[int, int]:
        """Return the height and width that hold every image, fitted into `size`, rounded up to whole strides."""
        sides = list(size) if isinstance(size, Sequence) else [size]
        if not 1 <= len(sides) <= 2 or not all(isinstance(side, Integral) and side > 0 for side in sides):
            raise UserError(f"size={size}: expected pixels, such as 640, or a height and a width")
        if self.model.fixed_shape:
            return self.model.fixed_shape
        largest = resized_shapes(np.array([image.shape[:2] for image in images]), sides).max(0)
        height, width = (-(-largest // self.stride) * self.stride).tolist()
        return height, width

    def _tiling(self) -> Tiling | None:
        tile = None if self.tile is None else int(self._setting("tile", operator.index, math.inf))
        return Tiling.from_flags(
            tile, self._setting("tile_overlap", float, 1), ("model.tile =", "model.tile_overlap =")
        )

    def _predictor(self, shape: tuple[int, int], augment: bool, tiling: Tiling | None = None) -> Predictor:
        conf, iou = as_threshold(self.conf, "model.conf"), self._setting("iou", float, 1)
        max_det = int(self._setting("max_det", operator.index, math.inf))
        nms = NmsSettings(conf, iou, max_det, self._class_ids(), bool(self.agnostic), bool(self.multi_label))
        names = dict(enumerate(self.names)) if isinstance(self.names, (list, tuple)) else self.names
        half = self._runs_in_half()
        return Predictor(self.model, shape, nms, augment=augment, half=half, names=names, tiling=tiling)

    def _setting(self, name: str, convert: Callable[[Any], float], highest: float) -> float:
        """Return the number that an attribute holds. Raises UserError if it is none, or not in 0…highest."""
        value = getattr(self, name)
        try:
            number = convert(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= highest:
            kind = "a number in 0…1, such as 0.25" if highest == 1 else "a whole number, such as 1000"
            raise UserError(f"model.{name} = {value!r}: expected {kind}")
        return number

    def _class_ids(self) -> list[int] | None:
        """Return the numbers of the classes to keep, None for all."""
        if self.classes is None:
            return None
        given: Any = [self.classes] if isinstance(self.classes, Integral) else self.classes
        try:
            listed = list(given)
            ids = [int(one) for one in listed]
        except (TypeError, ValueError):
            listed, ids = None, []
        if ids != listed:
            raise UserError(f"model.classes = {self.classes!r}: expected class numbers, such as [0, 2], or None")
        return ids
