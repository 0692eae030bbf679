"""Evidence of a diagnosis: how detections relate to labels, and the size of each.

Letters in shapes: n detections of an image, m labels of it, N detections and M labels of several images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from utils.boxes import EPS, pairwise_iou
from utils.images.letterbox import Letterbox

OBJECT_IOU, BACKGROUND_IOU = 0.5, 0.1
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)  # as KINDS of utils.diagnosis
NO_ERROR = -1


class ImageEvidence(NamedTuple):
    """Relations between the detections and the labels of an image."""

    own_label: np.ndarray  # (n,) int32 label of the detection's class that it overlaps most, -1 for none
    kind: np.ndarray  # (n,) int8 index into KINDS, NO_ERROR for correct and ignored detections
    target: np.ndarray  # (n,) int32 label that a classification or localisation error is about, otherwise -1


class Evidence(NamedTuple):
    """Evidence of several images in arrays that processes can exchange. Labels are numbered from 0 over all images."""

    paths: list[str]  # of the I images
    num_detections: np.ndarray  # (I,)
    num_labels: np.ndarray  # (I,)
    own_label: np.ndarray  # (N,) int32, as in ImageEvidence
    kind: np.ndarray  # (N,) int8
    target: np.ndarray  # (N,) int32
    area: np.ndarray  # (N,) px² of the original image
    level: np.ndarray  # (N,) int8 level of the head, see `HeadLevels.fit`
    true_area: np.ndarray  # (M,)
    true_level: np.ndarray  # (M,) int8

    def take(self, rows: np.ndarray) -> "Evidence":
        """Return the evidence with its detections in another order. It no longer knows the image of each."""
        own_label, kind, target, area, level = (column[rows] for column in self[3:8])
        return self._replace(own_label=own_label, kind=kind, target=target, area=area, level=level)

    @classmethod
    def join(cls, parts: Sequence["Evidence"]) -> "Evidence":
        """Return the evidence of all parts, at least one, in their order."""
        starts = np.cumsum([0, *(len(part.true_area) for part in parts)])
        shifted = [
            part._replace(
                own_label=np.where(part.own_label < 0, -1, part.own_label + start),
                target=np.where(part.target < 0, -1, part.target + start),
            )
            for part, start in zip(parts, starts[:-1], strict=True)
        ]
        paths = [path for part in parts for path in part.paths]
        return cls(paths, *(np.concatenate(columns) for columns in zip(*(part[1:] for part in shifted), strict=True)))


def relate(detections: ArrayLike, labels: ArrayLike, correct: np.ndarray, ignored: np.ndarray) -> ImageEvidence:
    """Return how the detections of an image relate to its labels.

    detections: (n, 6) x1, y1, x2, y2, confidence, class. labels: (m, 5) class, x1, y1, x2, y2. correct, ignored: (n,)
    bool at IoU 0.5. Of several kinds that fit, localisation comes first, then classification, then duplicate.
    """
    detections, labels = torch.as_tensor(detections).cpu().float(), torch.as_tensor(labels).cpu().float()
    count = len(detections)
    if count == 0 or len(labels) == 0:
        none = np.full(count, -1, np.int32)
        return ImageEvidence(none, np.where(correct | ignored, NO_ERROR, BACKGROUND).astype(np.int8), none)
    iou = pairwise_iou(detections[:, :4], labels[:, 1:])  # (n, m)
    same = detections[:, 5:6] == labels[None, :, 0]
    own, own_label = (found.numpy() for found in (iou * same).max(1))
    other, other_label = (found.numpy() for found in (iou * ~same).max(1))
    kind = np.full(count, BOTH, np.int8)  # a later line overrides those before
    kind[np.maximum(own, other) < BACKGROUND_IOU] = BACKGROUND
    kind[own >= OBJECT_IOU] = DUPLICATE
    kind[other >= OBJECT_IOU] = CLASSIFICATION
    kind[(own >= BACKGROUND_IOU) & (own < OBJECT_IOU)] = LOCALISATION
    kind[correct | ignored] = NO_ERROR
    target = np.where(kind == LOCALISATION, own_label, np.where(kind == CLASSIFICATION, other_label, -1))
    own_label = np.where(own > 0, own_label, -1)
    return ImageEvidence(own_label.astype(np.int32), kind, target.astype(np.int32))


@dataclass(frozen=True)
class HeadLevels:
    """Levels of a head, the finest first. An exported file or an ensemble has none."""

    strides: list[int]
    anchors: np.ndarray  # (levels, A, 2) widths and heights in pixels of the network's input

    @classmethod
    def of(cls, model: object) -> "HeadLevels":
        """Return the levels of a network, none for a model without a head."""
        head, stride = getattr(model, "head", None), getattr(model, "stride", None)
        if head is None or stride is None:
            return cls([], np.zeros((0, 0, 2), np.float32))
        strides = stride.cpu().numpy()
        return cls([int(side) for side in strides], head.anchors.cpu().float().numpy() * strides[:, None, None])

    def fit(self, sizes: np.ndarray) -> np.ndarray:
        """Return the level (n,) with the anchor that fits each width and height (n, 2) in pixels best, int8.

        The fit is the training's: the largest ratio between a side and the anchor's. Without levels all are 0.
        """
        if not self.strides:
            return np.zeros(len(sizes), np.int8)
        sides, anchors = np.log(np.maximum(sizes, EPS)).T, np.log(self.anchors)  # (2, n), (levels, A, 2)
        across, down = (np.abs(sides[k] - anchors[..., k, None]) for k in range(2))  # (levels, A, n)
        return np.maximum(across, down).min(1).argmin(0).astype(np.int8)


def collect_evidence(
    paths: Sequence[str],
    letterboxes: Sequence[Letterbox],
    detections: Sequence[ArrayLike],
    labels: Sequence[ArrayLike],
    relations: Sequence[ImageEvidence],
    levels: HeadLevels,
) -> Evidence:
    """Return the evidence of a batch. detections, labels: of each image in its pixels, as of `relate`."""
    gains = np.array([box.gain[::-1] for box in letterboxes], np.float32)  # (B, 2) along x, along y
    found, known = ([np.asarray(rows, np.float32) for rows in images] for images in (detections, labels))
    num_found, num_known = (np.array([len(rows) for rows in images], np.int64) for images in (found, known))
    starts = np.repeat(np.cumsum(num_known) - num_known, num_found)  # of each detection's image among the labels
    own_label, kind, target = map(np.concatenate, zip(*relations, strict=True))
    sides = np.concatenate([rows[:, 2:4] - rows[:, :2] for rows in found])  # (N, 2)
    true_sides = np.concatenate([rows[:, 3:] - rows[:, 1:3] for rows in known])  # (M, 2)
    return Evidence(
        list(paths),
        num_found,
        num_known,
        np.where(own_label < 0, -1, own_label + starts).astype(np.int32),
        kind,
        np.where(target < 0, -1, target + starts).astype(np.int32),
        sides.prod(1),
        levels.fit(sides * np.repeat(gains, num_found, axis=0)),
        true_sides.prod(1),
        levels.fit(true_sides * np.repeat(gains, num_known, axis=0)),
    )
