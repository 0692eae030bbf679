"""Statistics of batches, and the metrics of all batches of all processes.

Legend: L levels of the head, n detections and m labels of a batch, 10 IoU levels.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.boxes import xywh_to_xyxy
from utils.distributed import Distributed
from utils.images.letterbox import Letterbox
from utils.inference.error_costs import Outcome, diagnose
from utils.inference.evidence import Evidence, HeadLevels, collect_evidence, relate
from utils.loading.dataset import Batch
from utils.loss import DetectionLoss, LossSums
from utils.metrics import IOU_LEVELS, ConfusionMatrix, Metrics, Speed, match_detections, match_regions


class BatchStatistics(NamedTuple):
    """Contribution of a batch to the metrics, in plain arrays that processes can exchange."""

    num_images: int
    is_correct: np.ndarray  # (n, 10) bool, by IoU level
    is_ignored: np.ndarray  # (n, 10) bool: neither correct nor wrong
    confidence: np.ndarray  # (n,)
    predicted: np.ndarray  # (n,) class
    true: np.ndarray  # (m,) class
    losses: np.ndarray | None  # (5, L), the fields of LossSums
    evidence: Evidence | None = None  # for a diagnosis


# Without any batch the metrics are those of no images.
NO_IMAGES = BatchStatistics(
    0,
    *(np.zeros((0, len(IOU_LEVELS)), bool) for _ in range(2)),
    *(np.zeros(0, np.float32) for _ in range(3)),
    losses=None,
)


def letterboxes_of(batch: Batch) -> list[Letterbox]:
    """Return the letterbox of each image. A loader that reads for validation gives one to every image."""
    boxes = [box for box in batch.letterboxes if box is not None]
    assert len(boxes) == len(batch.letterboxes), "an augmented image has no letterbox"
    return boxes


def labels_by_image(batch: Batch) -> list[Tensor]:
    """Return the targets of each image as (m, 5) class, x, y, w, h in pixels of the batch."""
    height, width = batch.images.shape[2:]
    rows = batch.targets[:, 1:] * batch.targets.new_tensor([1, width, height, width, height])
    return [rows[batch.targets[:, 0] == i] for i in range(len(batch.images))]


def to_original_pixels(batch: Batch, rows: Sequence[Tensor]) -> list[Tensor]:
    """Return detections (n, 6), whose boxes are in pixels of the batch, in pixels of the original images."""
    boxed = zip(rows, letterboxes_of(batch), strict=True)
    return [torch.cat((box.undo(found[:, :4]), found[:, 4:]), 1) for found, box in boxed]


def match_batch(
    batch: Batch,
    labels: Sequence[Tensor],
    detections: Sequence[Tensor],
    confusion: ConfusionMatrix,
    losses: np.ndarray | None,
    levels: HeadLevels | None = None,
) -> BatchStatistics:
    """Match detections with labels in the pixels of the original images, and add them to the confusion matrix.

    labels: as of `labels_by_image`. detections: as of `to_original_pixels`. levels: collect evidence for a diagnosis.
    """
    is_correct, is_ignored, relations = [NO_IMAGES.is_correct], [NO_IMAGES.is_ignored], []
    boxes = letterboxes_of(batch)
    original = [
        torch.cat((rows[:, :1], box.undo(xywh_to_xyxy(rows[:, 1:]))), 1)
        for rows, box in zip(labels, boxes, strict=True)
    ]
    for i, (found, known) in enumerate(zip(detections, original, strict=True)):
        is_correct.append(match_detections(found, known))
        regions = batch.ignored[batch.ignored[:, 0] == i, 1:]
        is_ignored.append(match_regions(found, regions) & ~is_correct[-1])
        confusion.update(found, known, regions)
        if levels:
            relations.append(relate(found, known, is_correct[-1][:, 0], is_ignored[-1][:, 0]))
    rows = torch.cat((torch.zeros(0, 6), *detections)).numpy()
    true = batch.targets[:, 1].numpy()
    matched = np.concatenate(is_correct), np.concatenate(is_ignored)
    evidence = collect_evidence(batch.paths, boxes, detections, original, relations, levels) if levels else None
    return BatchStatistics(len(batch.images), *matched, rows[:, 4], rows[:, 5], true, losses, evidence)


def compute_metrics(
    group: Distributed,
    statistics: list[BatchStatistics],
    confusion: ConfusionMatrix,
    loss: DetectionLoss | None,
    speed: Speed,
    levels: HeadLevels | None = None,
) -> Metrics:
    """Return the metrics of the statistics of all processes. Each process gets the same.

    Detections are in the order of one process: batch k of all processes, then batch k + 1. levels: those of the
    evidence, for a diagnosis.
    """
    by_batch = itertools.zip_longest(*group.gather(statistics))
    batches = [[part for part in parts if part is not None] for parts in by_batch]
    num_images, *arrays, _, evidence = zip(NO_IMAGES, *itertools.chain.from_iterable(batches), strict=True)
    confusion.matrix = np.sum(group.gather(confusion.matrix), axis=0)
    is_correct, is_ignored, confidence, predicted, true = (np.concatenate(parts) for parts in arrays)
    metrics = Metrics.from_statistics(
        is_correct,
        confidence,
        predicted,
        true,
        num_classes=confusion.num_classes,
        ignored=is_ignored,
        images=sum(num_images),
        confusion=confusion,
        losses=mean_losses(loss, batches),
        speed=speed,
    )
    parts = [part for part in evidence if part is not None]
    if levels is None or not parts:
        return metrics
    outcome = Outcome(is_correct, is_ignored, confidence, predicted, true)
    return replace(metrics, diagnosis=diagnose(outcome, Evidence.join(parts), levels.strides, metrics=metrics))


def mean_losses(loss: DetectionLoss | None, batches: Sequence[Sequence[BatchStatistics]]) -> tuple[float, float, float]:
    """Return box, objectness and class loss, each a mean over the batches.

    batches: for each batch the statistics of the processes that had a part of it.
    """
    if loss is None or not batches:
        return 0.0, 0.0, 0.0
    sums = [np.stack([part.losses for part in parts if part.losses is not None]).sum(0) for parts in batches]
    means = [torch.stack(loss.mean(LossSums(*torch.from_numpy(rows)))) for rows in sums]  # rows (5, L)
    box, objectness, classification = torch.stack(means).mean(0).tolist()
    return box, objectness, classification
