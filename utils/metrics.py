"""Metrics of detections: matching to labels, average precision, curves over confidence, confusion matrix.

Letters in shapes: n detections of an image, m labels of it, N detections of all images, M labels of all images,
C classes, K classes with labels, L = 10 IoU levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from utils.boxes import pairwise_iou
from utils.diagnosis import Diagnosis
from utils.errors import UserError

IOU_LEVELS = np.linspace(0.5, 0.95, 10, dtype=np.float32)
GRID = np.linspace(0, 1, 1000)  # confidences, or recalls, at which curves are drawn
RECALL_POINTS = np.linspace(0, 1, 101)  # at which precision is averaged
SMOOTHING = 101  # grid points of the moving average over the F1 curve, whose maximum is the best confidence
LEAST_CONFIDENCE = 0.001  # of a proposed threshold: validation measures nothing below
TINY = 1e-16


class ClassMetrics(NamedTuple):
    """One entry per class that has labels, in ascending order. Counts and rates are at the best confidence, IoU 0.5."""

    tp: np.ndarray  # (K,) whole numbers
    fp: np.ndarray  # (K,) whole numbers
    p: np.ndarray  # (K,)
    r: np.ndarray  # (K,)
    f1: np.ndarray  # (K,)
    ap: np.ndarray  # (K, L)
    classes: np.ndarray  # (K,) int64


class Curves(NamedTuple):
    """Rates at IoU 0.5 over the confidence and over the recall, one row per class that has labels."""

    confidence: np.ndarray  # (1000,)
    precision: np.ndarray  # (K, 1000)
    recall: np.ndarray  # (K, 1000)
    f1: np.ndarray  # (K, 1000)
    recall_grid: np.ndarray  # (1000,)
    precision_at_recall: np.ndarray  # (K, 1000)
    classes: np.ndarray  # (K,) int64
    best_confidence: float  # where the smoothed mean F1 is highest


class BestF1(NamedTuple):
    """Point of each class's smoothed F1 curve where it is highest, at IoU 0.5. Classes never found are not in it."""

    classes: np.ndarray  # (k,) int64, k <= K
    confidence: np.ndarray  # (k,)
    precision: np.ndarray  # (k,)
    recall: np.ndarray  # (k,)
    f1: np.ndarray  # (k,) not smoothed


@dataclass(frozen=True)
class Fitness:
    """Weighted sum of metrics that decides which model is better."""

    map50: float = 0.1
    map: float = 0.9
    f1: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Fitness":
        """Return the fitness that `--fitness` names: map, map50, f1, or weights of mAP50 and mAP50-95 such as 0.1,0.9.

        Raises UserError for anything else.
        """
        if text in ("map50", "map", "f1"):
            return cls(**{"map50": 0.0, "map": 0.0, text: 1.0})
        try:
            weights = [float(word) for word in text.split(",")]
        except ValueError:
            weights = []
        if len(weights) != 2 or not all(0 <= weight < np.inf for weight in weights) or not any(weights):
            raise UserError(
                f"--fitness {text}: expected map, map50, f1, or weights of mAP50 and mAP50-95 such as {DEFAULT_FITNESS}"
            )
        return cls(*weights)

    def __call__(self, p: float, r: float, map50: float, map: float) -> float:
        """Return the fitness of mean precision and recall and both mAPs. F1 is that of the two means."""
        value = self.map50 * map50 + self.map * map
        return value + self.f1 * 2 * p * r / max(p + r, TINY) if self.f1 else value

    def __str__(self) -> str:
        """Return the formula, for charts."""
        parts = {"mAP@0.5": self.map50, "mAP@0.5:0.95": self.map, "F1": self.f1}
        return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in parts.items() if weight)


DEFAULT_FITNESS = "0.1,0.9"


fitness = Fitness()  # the default; precision and recall have no weight in it


def match_detections(detections: ArrayLike, labels: ArrayLike, levels: ArrayLike = IOU_LEVELS) -> np.ndarray:
    """Return whether each detection is correct at each IoU level: bool (n, len(levels)), in NumPy.

    detections: (n, 6) x1, y1, x2, y2, confidence, class, highest confidence first. labels: (m, 5) class, x1, y1, x2,
    y2. A detection is matched to the label of its class that it overlaps most. It is correct at a level if that IoU
    reaches the level and no detection of higher confidence took the label. No detections give (0, L), no labels all
    False.
    """
    detections, labels = torch.as_tensor(detections).cpu().float(), torch.as_tensor(labels).cpu().float()
    levels = np.asarray(levels, dtype=np.float32)
    correct = np.zeros((len(detections), len(levels)), dtype=bool)
    if len(detections) == 0 or len(labels) == 0:
        return correct
    iou = pairwise_iou(detections[:, :4], labels[:, 1:]) * (detections[:, 5:6] == labels[None, :, 0])  # (n, m)
    overlap, label = (found.numpy() for found in iou.max(1))
    level, detection = np.nonzero((overlap >= levels[:, None]) & (overlap > 0))
    owner = np.full((len(levels), len(labels)), -1)
    owner[level[::-1], label[detection[::-1]]] = detection[::-1]  # the last write wins: highest confidence
    level, taken = np.nonzero(owner >= 0)
    correct[owner[level, taken], level] = True
    return correct


def match_regions(detections: ArrayLike, regions: ArrayLike, levels: ArrayLike = IOU_LEVELS) -> np.ndarray:
    """Return whether each detection lies in an ignored region at each IoU level: bool (n, len(levels)), in NumPy.

    detections: (n, 6) x1, y1, x2, y2, confidence, class. regions: (k, 5) class, x1, y1, x2, y2. As in COCO's rule for
    crowds, the share of the detection inside a region of its class has to reach the level. Regions are never used up.
    """
    detections, regions = torch.as_tensor(detections).cpu().float(), torch.as_tensor(regions).cpu().float()
    levels = np.asarray(levels, dtype=np.float32)
    if len(detections) == 0 or len(regions) == 0:
        return np.zeros((len(detections), len(levels)), dtype=bool)
    boxes = detections[:, None, :4]  # (n, 1, 4)
    sides = torch.minimum(boxes[..., 2:], regions[None, :, 3:]) - torch.maximum(boxes[..., :2], regions[None, :, 1:3])
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1).clamp(min=TINY)  # (n, 1)
    share = sides.clamp(min=0).prod(-1) / area * (detections[:, 5:6] == regions[None, :, 0])  # (n, k)
    return share.amax(1).numpy()[:, None] >= levels


def ap_per_class(tp: ArrayLike, conf: ArrayLike, pred_cls: ArrayLike, target_cls: ArrayLike) -> ClassMetrics:
    """Return average precision per class and level, and counts, precision, recall and F1 at the best confidence.

    tp: (N, L) bool, correct at each IoU level. conf, pred_cls: (N,). target_cls: (M,) class of every label. N and M
    may be 0. Detections of a class without labels are ignored. AP is the area under the envelope of precision over
    recall, sampled at 101 recalls. The envelope falls to 0 at recall 1, so a perfect class has 0.995.

    Detections by falling confidence keep their order. Others are sorted as in YOLOv5, by NumPy's default sort, whose
    order of ties depends on the CPU. Validation never depends on it: `Metrics.from_statistics` sorts stably.
    """
    tp, conf, pred_cls = np.asarray(tp), np.asarray(conf), np.asarray(pred_cls)
    if (np.diff(conf) > 0).any():
        order = np.argsort(-conf)
        tp, conf, pred_cls = tp[order], conf[order], pred_cls[order]
    return metrics_and_curves(tp, conf, pred_cls, target_cls)[0]


def metrics_and_curves(
    tp: ArrayLike, conf: ArrayLike, pred_cls: ArrayLike, target_cls: ArrayLike, ignored: ArrayLike | None = None
) -> tuple[ClassMetrics, Curves]:
    """Return the values of `ap_per_class`, ties in the given order, and the curves at IoU 0.5 they are read from.

    ignored: (N, L) bool, detections that are neither correct nor wrong at a level.
    """
    tp, conf = np.asarray(tp, dtype=bool), np.asarray(conf)
    tp = tp.reshape(len(conf), -1 if tp.size else len(IOU_LEVELS))
    ignored = np.zeros_like(tp) if ignored is None else np.asarray(ignored, dtype=bool).reshape(tp.shape)
    classes, labels = np.unique(np.asarray(target_cls).astype(np.int64), return_counts=True)
    ap = np.zeros((len(classes), tp.shape[1]))
    precision, recall, precision_at_recall = (np.zeros((len(classes), len(GRID))) for _ in range(3))
    for k, ranked in enumerate(_ranked_by_class(conf, pred_cls, classes)):
        if len(ranked) == 0:
            continue  # no detections of this class: its rows stay 0 and count in the means
        p, r = precision_and_recall(tp[ranked], ignored[ranked], labels[k])
        recall[k] = _at_confidences(conf[ranked], r[:, 0], above=0.0)
        precision[k] = _at_confidences(conf[ranked], p[:, 0], above=1.0)
        precision_at_recall[k] = _envelope_at(GRID, r[:, 0], p[:, 0])
        ap[k] = [average_precision(r[:, level], p[:, level]) for level in range(tp.shape[1])]
    f1 = 2 * precision * recall / (precision + recall + TINY)
    best = int(smooth(f1.mean(0)).argmax()) if len(classes) else 0
    p, r = precision[:, best], recall[:, best]
    true = (r * labels).round()
    false = (true / (p + TINY) - true).round()
    curves = Curves(GRID, precision, recall, f1, GRID, precision_at_recall, classes, float(GRID[best]))
    return ClassMetrics(true, false, p, r, f1[:, best], ap, classes), curves


def precision_and_recall(tp: np.ndarray, ignored: np.ndarray, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall (n, L) of a class down to each of its detections, ranked by falling confidence.

    tp, ignored: (n, L) bool. labels: the number of the class's labels.
    """
    hits = tp.cumsum(0)  # (n, L)
    ranks = (~ignored).cumsum(0)
    precision = np.where(ranks > 0, hits / np.maximum(ranks, 1), 1.0)  # 1 above the first that counts
    return precision, hits / (labels + TINY)


def average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Return the area under the envelope of precision over recall, by trapezoids over 101 recalls.

    recall, precision: (n,) by falling confidence.
    """
    height = _envelope_at(RECALL_POINTS, recall, precision)
    return float((height.sum() - (height[0] + height[-1]) / 2) / (len(RECALL_POINTS) - 1))


def smooth(curve: np.ndarray, width: int = SMOOTHING) -> np.ndarray:
    """Return the moving average over `width` points (odd), with the end values repeated beyond the ends."""
    half = width // 2
    padded = np.pad(curve, half, mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), mode="valid")


def best_f1_by_class(curves: Curves) -> BestF1:
    """Return where the F1 of each class is highest. The curves are smoothed as the mean F1 is for all classes.

    Of several points that are as high, the middle one is taken. The lowest would be 0 where a class has no detections
    below.
    """
    found = np.flatnonzero(curves.f1.any(1))
    highest = [np.flatnonzero(curve >= curve.max() - 1e-9) for curve in map(smooth, curves.f1[found])]
    best = np.array([points[len(points) // 2] for points in highest], np.int64)
    values = (curve[found, best] for curve in (curves.precision, curves.recall, curves.f1))
    return BestF1(curves.classes[found], np.maximum(curves.confidence[best], LEAST_CONFIDENCE), *values)


def _ranked_by_class(conf: np.ndarray, pred_cls: ArrayLike, classes: np.ndarray) -> list[np.ndarray]:
    """Return the indices of each class's detections, highest confidence first, ties in their order."""
    order = np.argsort(-conf, kind="stable")
    ranked_cls = np.asarray(pred_cls).astype(np.int64)[order]
    by_class = np.argsort(ranked_cls, kind="stable")
    starts, ends = (np.searchsorted(ranked_cls[by_class], classes, side=side) for side in ("left", "right"))
    return [order[by_class[start:end]] for start, end in zip(starts, ends, strict=True)]


def _at_confidences(conf: np.ndarray, values: np.ndarray, *, above: float) -> np.ndarray:
    """Interpolate values (n,) by falling confidence at each point of GRID. Beyond the highest, return `above`."""
    return np.interp(-GRID, -conf, values, left=above)


def _envelope_at(points: np.ndarray, recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Return the highest precision at each recall or beyond, linear between the measured ones, 0 at recall 1."""
    x = np.concatenate(([0.0], recall, [1.0]))
    y = np.concatenate(([1.0], precision, [0.0]))
    return np.interp(points, x, np.maximum.accumulate(y[::-1])[::-1])


class ConfusionMatrix:
    """Counts of predicted class (rows) against true class (columns). The last index is the background.

    Only detections with a confidence above `conf` count, and only IoUs above `iou`, of any two classes.
    """

    def __init__(self, num_classes: int, conf: float = 0.25, iou: float = 0.45):
        self.num_classes, self.conf, self.iou = num_classes, conf, iou
        self.matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)

    def update(self, detections: ArrayLike, labels: ArrayLike, regions: ArrayLike = ()) -> None:
        """Count an image. detections: (n, 6) x1, y1, x2, y2, confidence, class. labels: (m, 5) class, x1, y1, x2, y2.

        A detection without a label is a false positive, unless it lies in one of `regions` (as of `match_regions`). A
        label without a detection is a miss. All inputs may be empty. Raises UserError for a class id outside 0...C-1.
        """
        detections, labels = torch.as_tensor(detections).cpu().float(), torch.as_tensor(labels).cpu().float()
        detections = detections[detections[:, 4] > self.conf]
        predicted = _class_ids(detections[:, 5], self.num_classes, "detection")
        true = _class_ids(labels[:, 0], self.num_classes, "label")
        detection, label = self._pairs(detections[:, :4], labels[:, 1:])
        background = self.num_classes
        np.add.at(self.matrix, (predicted[detection], true[label]), 1)
        wrong = ~match_regions(detections, regions, [self.iou])[:, 0]
        wrong[detection] = False
        unmatched, missed = predicted[wrong], np.delete(true, label)
        np.add.at(self.matrix, (unmatched, np.full_like(unmatched, background)), 1)
        np.add.at(self.matrix, (np.full_like(missed, background), missed), 1)

    def _pairs(self, detected: torch.Tensor, labelled: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of matched detections and labels: each detection's best label, each label's best one."""
        if len(detected) == 0 or len(labelled) == 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        overlap, label = (found.numpy() for found in pairwise_iou(detected, labelled).max(1))
        order = np.argsort(-overlap, kind="stable")
        order = order[overlap[order] > self.iou]
        labels, first = np.unique(label[order], return_index=True)
        return order[first], labels


def _class_ids(ids: ArrayLike, num_classes: int, kind: str) -> np.ndarray:
    """Return the ids as integers. Raises UserError for one outside 0...num_classes - 1."""
    ids = np.asarray(ids).astype(np.int64)
    wrong = ids[(ids < 0) | (ids >= num_classes)]
    if len(wrong):
        raise UserError(
            f"{kind} class {wrong[0]} is outside 0...{num_classes - 1}: "
            "give the data set whose names the model was trained with (--data)"
        )
    return ids


@dataclass(frozen=True)
class Speed:
    """Milliseconds per image."""

    preprocess: float = 0.0
    inference: float = 0.0
    nms: float = 0.0


@dataclass(frozen=True)
class Metrics:
    """Results of a validation. Means run over the classes that have labels, and are 0 without a correct detection."""

    precision: float  # at the best confidence
    recall: float  # at the best confidence
    map50: float
    map: float  # mean over IoU 0.5...0.95
    per_class: ClassMetrics
    maps: np.ndarray  # (C,) AP per class id, the mean where a class has no labels
    curves: Curves
    confusion: ConfusionMatrix
    images: int
    instances: int
    label_counts: np.ndarray  # (K,) labels of each class in per_class
    best_confidence: float
    losses: tuple[float, float, float] = (0.0, 0.0, 0.0)  # box, objectness, class
    speed: Speed = field(default_factory=Speed)
    measure: Fitness = fitness  # by `--fitness`
    names: Mapping[int, str] = field(default_factory=dict)  # of the classes
    diagnosis: Diagnosis | None = None  # if an observer reads it

    @property
    def thresholds(self) -> dict[int, float]:
        """Confidence of each class's best F1, by class number: a proposal for detection."""
        best = best_f1_by_class(self.curves)
        return {int(cls): round(float(conf), 3) for cls, conf in zip(best.classes, best.confidence, strict=True)}

    @property
    def fitness(self) -> float:
        return self.measure(self.precision, self.recall, self.map50, self.map)

    @classmethod
    def from_statistics(
        cls,
        tp: ArrayLike,
        conf: ArrayLike,
        pred_cls: ArrayLike,
        target_cls: ArrayLike,
        *,
        num_classes: int,
        ignored: ArrayLike | None = None,
        **rest: Any,
    ) -> "Metrics":
        """Compute the metrics from the arrays of `metrics_and_curves`. `rest`: the fields not following from them."""
        per_class, curves = metrics_and_curves(tp, conf, pred_cls, target_cls, ignored)
        for kind, ids in (("label", per_class.classes), ("detection", pred_cls)):
            _class_ids(ids, num_classes, kind)
        any_class = len(per_class.classes) > 0
        overall = float(per_class.ap.mean()) if any_class else 0.0
        maps = np.full(num_classes, overall)
        maps[per_class.classes] = per_class.ap.mean(1)
        return cls(
            precision=float(per_class.p.mean()) if any_class else 0.0,
            recall=float(per_class.r.mean()) if any_class else 0.0,
            map50=float(per_class.ap[:, 0].mean()) if any_class else 0.0,
            map=overall,
            per_class=per_class,
            maps=maps,
            curves=curves,
            instances=len(np.asarray(target_cls)),
            label_counts=np.unique(np.asarray(target_cls), return_counts=True)[1],
            best_confidence=curves.best_confidence,
            **rest,
        )
