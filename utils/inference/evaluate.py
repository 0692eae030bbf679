"""Evaluation: the metrics of a network on the images of a loader.

Legend: B images of a batch, N predictions, C classes, n detections of an image.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.detections import Detections
from utils.detector import InferenceModel
from utils.distributed import Distributed
from utils.images.conversion import to_network_order
from utils.inference.batch_exchange import BatchExchange
from utils.inference.batch_statistics import (
    BatchStatistics,
    compute_metrics,
    labels_by_image,
    letterboxes_of,
    match_batch,
    to_original_pixels,
)
from utils.inference.evidence import HeadLevels
from utils.inference.nms_settings import VAL_NMS, NmsSettings
from utils.inference.observer import EvaluatedBatch, EvaluationObserver, EvaluationObservers
from utils.inference.preprocess import to_network_input
from utils.inference.speed import speed_per_image
from utils.inference.tile_pass import WHOLE, Views
from utils.loading.dataset import Batch
from utils.loading.prefetch import prefetch
from utils.loss import DetectionLoss
from utils.metrics import ConfusionMatrix, Metrics
from utils.timing import Stopwatch


@torch.no_grad()
def evaluate(
    model: InferenceModel,
    loader: Iterable[Batch],
    *,
    nms: NmsSettings = VAL_NMS,
    names: Mapping[int, str] | None = None,
    single_cls: bool = False,
    views: Views = WHOLE,
    autocast: torch.dtype | None = None,
    loss: DetectionLoss | None = None,
    distributed: Distributed | None = None,
    observers: Sequence[EvaluationObserver] = (),
) -> Metrics:
    """Return the metrics of a model on the images of a loader that reads for validation.

    The model is left as it was. Without images or labels the metrics are zeros. A class number outside the names
    raises UserError.

    names: class names; the model's if None. single_cls: ignore classes. views: how images are seen. autocast: type to
    run the model in, None for float32. loss: adds the validation losses, means over the batches. distributed: the
    processes that share the images; each of them gets the metrics of all images. observers: watch on rank 0.
    UnreadableData of one process is raised on all.
    """
    device = model.device
    group = distributed or Distributed(0, 1, device)
    names = names or model.names
    nms = replace(nms.fit(model), agnostic=nms.agnostic or single_cls)
    evaluation = _Evaluation(
        model, device, nms, names, single_cls=single_cls, views=views, autocast=autocast, loss=loss
    )
    with evaluation_mode(model), EvaluationObservers(observers if group.is_main else ()) as watching:
        exchange = BatchExchange(group, loader, watching)
        evaluation.levels = HeadLevels.of(model) if group.any(watching.reads_diagnosis) else None
        watching.on_start(exchange.num_batches)
        for number, batch in exchange.steps(prefetch(loader, device)):
            watching.before_batch()
            evaluated = None if batch is None else evaluation.add(number, batch)
            for each in exchange.collect(evaluated):
                watching.on_batch(each)
        speed = speed_per_image(evaluation.watch.seconds, evaluation.num_images)
        metrics = compute_metrics(
            group, evaluation.statistics, evaluation.confusion, loss, speed, levels=evaluation.levels
        )
        metrics = replace(metrics, names=names)
        watching.on_end(metrics)
    return metrics


@contextmanager
def evaluation_mode(model: InferenceModel) -> Generator[None]:
    """Put the model into evaluation mode, and afterwards every module of it into the mode it had.

    An exported file has no modes.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass
class _Evaluation:
    """Settings of an evaluation, and what its batches have added so far."""

    model: InferenceModel
    device: torch.device
    nms: NmsSettings
    names: Mapping[int, str]
    single_cls: bool
    views: Views
    autocast: torch.dtype | None
    loss: DetectionLoss | None
    levels: HeadLevels | None = None  # of the model, for a diagnosis
    statistics: list[BatchStatistics] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.confusion = ConfusionMatrix(1 if self.single_cls else len(self.names))
        self.watch = Stopwatch(self.device)

    @property
    def num_images(self) -> int:
        return sum(part.num_images for part in self.statistics)

    def add(self, number: int, batch: Batch) -> EvaluatedBatch:
        """Run the model on a batch and count its detections."""
        labels = labels_by_image(batch)
        rows, losses = self._detect(batch, labels)
        in_original = to_original_pixels(batch, rows)
        if self.views.tiles:
            self._add_tiles(batch, in_original, rows)
        self.statistics.append(match_batch(batch, labels, in_original, self.confusion, losses, self.levels))
        height, width = batch.images.shape[2:]
        found = [
            Detections(one.numpy(), box.shape, path, self.names, (height, width))
            for one, box, path in zip(in_original, letterboxes_of(batch), batch.paths, strict=True)
        ]
        return EvaluatedBatch(number, batch, found, rows)

    def _detect(self, batch: Batch, labels: Sequence[Tensor]) -> tuple[list[Tensor], np.ndarray | None]:
        """Return the detections of each image (n, 6) in pixels of the batch, on the CPU, and the loss sums (5, L)."""
        decoded, raw = self._run(batch.images)
        losses = None if self.loss is None else torch.stack(self.loss.sums(raw, batch.targets)).cpu().numpy()
        return self._suppress(decoded, labels), losses

    def _run(self, images: Tensor) -> tuple[Tensor, Any]:
        """Return what the model returns for images (B, C, H, W) of whole levels: decoded (B, N, 5+C), levels."""
        with self.watch("preprocess"):
            images = to_network_input(images, self.device)
        with (
            self.watch("inference"),
            torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None),
        ):
            decoded, raw = self.model(images, augment=self.views.augment)
        return decoded, raw

    def _suppress(self, decoded: Tensor, labels: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the boxes of each image that remain (n, 6), on the CPU."""
        with self.watch("nms"):
            rows = self.nms.apply(decoded, labels)
        rows = [found.cpu() for found in rows]
        if self.single_cls:
            for found in rows:
                found[:, 5] = 0
        return rows

    def _add_tiles(self, batch: Batch, in_original: list[Tensor], rows: list[Tensor]) -> None:
        """Add what the tiles show to the detections of the images, in both kinds of pixels."""
        tiles, full_images, boxes = self.views.tiles, self.views.full_images, letterboxes_of(batch)
        assert tiles is not None and full_images is not None, "tiles are cut from images in their own size"
        cut = [path if tiles.cuts(box.shape) else None for path, box in zip(batch.paths, boxes, strict=True)]
        for k, (image, box) in enumerate(zip(full_images.read_ahead(cut), boxes, strict=True)):
            whole = in_original[k].numpy()
            found = tiles.add(image, whole, self._find_in_tiles, self.watch)
            if found is not whole:
                in_original[k] = torch.from_numpy(found)
                rows[k] = torch.cat((box.apply(in_original[k][:, :4]), in_original[k][:, 4:]), 1)

    def _find_in_tiles(self, tiles: np.ndarray) -> list[np.ndarray]:
        """Return the detections (n, 6) of letterboxed tiles (B, H, W, C)."""
        images = torch.from_numpy(np.stack([to_network_order(tile) for tile in tiles])).permute(0, 3, 1, 2)
        return [found.numpy() for found in self._suppress(self._run(images)[0])]
