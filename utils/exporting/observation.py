"""Observation of a model on images: its raw outputs, detections and metrics, for comparison with those of another.

Legend: B images of a batch, N predictions, C classes, n detections of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from utils.detector import InferenceModel
from utils.distributed import Distributed
from utils.exporting.proof_images import ProofImages
from utils.inference.batch_statistics import (
    BatchStatistics,
    compute_metrics,
    labels_by_image,
    match_batch,
    to_original_pixels,
)
from utils.inference.evaluate import evaluation_mode
from utils.inference.nms_settings import VAL_NMS, NmsSettings
from utils.inference.preprocess import to_network_input
from utils.metrics import ConfusionMatrix, Metrics, Speed

RAW_BATCHES = 2  # batches whose raw outputs are kept: each takes megabytes
DETECT_NMS = NmsSettings()


class Suppression(NamedTuple):
    """Settings of the two suppressions by which two models are compared."""

    detect: NmsSettings = DETECT_NMS  # gives the detections that are paired
    val: NmsSettings = VAL_NMS  # gives those that the metrics count
    per_class: int = 0  # most detections of a class in an image, 0 for any number

    @property
    def settings(self) -> tuple[NmsSettings, NmsSettings]:
        return self.detect, self.val

    def apply(self, settings: NmsSettings, decoded: Tensor) -> list[Tensor]:
        """Return the detections of each image (n, 6) of one of the two settings, on the CPU."""
        return [_limit_classes(rows.cpu(), self.per_class) for rows in settings.apply(decoded)]


def _limit_classes(rows: Tensor, per_class: int) -> Tensor:
    """Return the first `per_class` rows (n, 6) of each class, all of them if it is 0."""
    if not per_class:
        return rows
    same = rows[:, 5, None] == rows[None, :, 5]
    return rows[same.tril(-1).sum(1) < per_class]


PLAIN = Suppression()


@dataclass
class Observation:
    """Results of a model on the images, by one suppression."""

    outputs: list[Tensor]  # (B, N, 5+C) decoded, float32, of the first batches
    rows: list[Tensor] = field(default_factory=list)  # per image (n, 6) in pixels of the input
    metrics: Metrics | None = None  # None where no labels are


class _Measurement:
    """Detections and statistics of one suppression so far."""

    def __init__(self, suppression: Suppression, num_classes: int):
        self.suppression = suppression
        self.rows: list[Tensor] = []
        self.statistics: list[BatchStatistics] = []
        self.confusion = ConfusionMatrix(num_classes)

    def metrics(self) -> Metrics:
        group = Distributed(0, 1, torch.device("cpu"))
        return compute_metrics(group, self.statistics, self.confusion, None, Speed())


@torch.inference_mode()
def observe(
    model: InferenceModel, images: ProofImages, suppressions: Sequence[Suppression] = (PLAIN,), *, progress: str = ""
) -> dict[Suppression, Observation]:
    """Run a model once over the images. Return an observation for each suppression.

    The model is left as it was. The metrics are those of `evaluate()` on these images. progress: text of a bar.
    """
    measured = [_Measurement(one, model.num_classes) for one in suppressions]
    outputs: list[Tensor] = []
    with evaluation_mode(model):
        for batch in images.batches(progress=progress):
            decoded = model(to_network_input(batch.images, model.device))[0]  # (B, N, 5+C)
            if len(outputs) < RAW_BATCHES:
                outputs.append(decoded.float().cpu())
            labels = labels_by_image(batch)
            for one in measured:
                detect, val = (settings.fit(model) for settings in one.suppression.settings)
                one.rows += one.suppression.apply(detect, decoded)
                if images.has_labels:
                    found = to_original_pixels(batch, one.suppression.apply(val, decoded))
                    one.statistics.append(match_batch(batch, labels, found, one.confusion, None))
    return {
        one.suppression: Observation(outputs, one.rows, one.metrics() if images.has_labels else None)
        for one in measured
    }


class RawDifference(NamedTuple):
    """Largest differences of two raw outputs. NaN where one is not finite."""

    box: float  # pixels, of centre, width and height
    score: float  # of objectness times class probability


def raw_difference(reference: Sequence[Tensor], export: Sequence[Tensor], *, best_class: bool) -> RawDifference | None:
    """Return the largest differences of decoded outputs (B, N, 5+C), None if their shapes differ.

    best_class: the export holds only the best class of each prediction, so only the scores of that are compared.
    """
    differences = []
    for one, other in zip(reference, export, strict=True):
        if one.shape != other.shape:
            return None
        scores = [part[..., 5:] * part[..., 4:5] for part in (one, other)]  # (B, N, C)
        if best_class:
            scores = [part.amax(-1) for part in scores]
        box = (one[..., :4] - other[..., :4]).abs().max()
        differences.append((box.item(), (scores[0] - scores[1]).abs().max().item()))
    boxes, scores = torch.tensor(differences).amax(0).tolist()
    return RawDifference(boxes, scores)
