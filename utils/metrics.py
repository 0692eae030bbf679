"""How good detections are: matching to labels, average precision, curves over confidence, confusion matrix.

Letters in shapes: n detections, m labels, N detections of the whole data set, M its labels, C classes,
K classes that have labels, L = 10 IoU levels.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from utils.boxes import pairwise_iou
from utils.errors import UserError

IOU_LEVELS = np.linspace(0.5, 0.95, 10, dtype=np.float32)
GRID = np.linspace(0, 1, 1000)  # confidences, or recalls, at which curves are drawn
RECALL_POINTS = np.linspace(0, 1, 101)  # at which precision is averaged
SMOOTHING = 101  # points of the grid that the F1 curve is averaged over before its best point is chosen
TINY = 1e-16


class ClassMetrics(NamedTuple):
    """One entry per class that has labels, in ascending order; counts and rates at the best confidence, IoU 0.5."""

    tp: np.ndarray  # (K,) whole numbers
    fp: np.ndarray  # (K,) whole numbers
    p: np.ndarray  # (K,)
    r: np.ndarray  # (K,)
    f1: np.ndarray  # (K,)
    ap: np.ndarray  # (K, L)
    classes: np.ndarray  # (K,) int64


class Curves(NamedTuple):
    """Rates at IoU 0.5 over the confidence and over the recall; one row per class that has labels."""

    confidence: np.ndarray  # (1000,)
    precision: np.ndarray  # (K, 1000)
    recall: np.ndarray  # (K, 1000)
    f1: np.ndarray  # (K, 1000)
    recall_grid: np.ndarray  # (1000,)
    precision_at_recall: np.ndarray  # (K, 1000)
    classes: np.ndarray  # (K,) int64
    best_confidence: float  # where the smoothed mean F1 is highest


def fitness(p: float, r: float, map50: float, map: float) -> float:
    """The one number that decides which model is better; precision and recall have no weight in it."""
    return 0.1 * map50 + 0.9 * map


def match_detections(detections, labels, levels=IOU_LEVELS) -> np.ndarray:
    """Which detections are right: bool (n, len(levels)), in NumPy.

    detections: (n, 6) x1, y1, x2, y2, confidence, class, the surest first. labels: (m, 5) class, x1, y1, x2, y2.
    A detection stands for the one label of its class that it overlaps most; it is right at a level if that IoU
    reaches the level and no surer detection took the label. No detections give (0, L), no labels all False.
    """
    detections, labels = torch.as_tensor(detections).cpu().float(), torch.as_tensor(labels).cpu().float()
    levels = np.asarray(levels, dtype=np.float32)
    right = np.zeros((len(detections), len(levels)), dtype=bool)
    if len(detections) == 0 or len(labels) == 0:
        return right
    iou = pairwise_iou(detections[:, :4], labels[:, 1:]) * (detections[:, 5:6] == labels[None, :, 0])  # (n, m)
    overlap, label = (found.numpy() for found in iou.max(1))
    level, detection = np.nonzero((overlap >= levels[:, None]) & (overlap > 0))
    owner = np.full((len(levels), len(labels)), -1)
    owner[level[::-1], label[detection[::-1]]] = detection[::-1]  # the last write stays: the surest detection
    level, taken = np.nonzero(owner >= 0)
    right[owner[level, taken], level] = True
    return right


def ap_per_class(tp, conf, pred_cls, target_cls) -> ClassMetrics:
    """Average precision per class and level; counts, precision, recall and F1 at the best confidence.

    tp: (N, L) bool, right at each IoU level. conf, pred_cls: (N,). target_cls: (M,) class of every label. N and M may
    be 0. Detections of a class without labels are left out. AP is the area under the envelope of precision over
    recall, taken at 101 recalls, with precision falling to 0 at recall 1: a flawless class has 0.995.
    """
    return summarise(tp, conf, pred_cls, target_cls)[0]


def metric_curves(tp, conf, pred_cls, target_cls) -> Curves:
    """Precision, recall and F1 over the confidence, and precision over recall, all at IoU 0.5; see ap_per_class."""
    return summarise(tp, conf, pred_cls, target_cls)[1]


def summarise(tp, conf, pred_cls, target_cls) -> tuple[ClassMetrics, Curves]:
    """What ap_per_class and metric_curves give, in one pass."""
    tp, conf = np.asarray(tp, dtype=bool), np.asarray(conf)
    tp = tp.reshape(len(conf), -1 if tp.size else len(IOU_LEVELS))
    classes, labels = np.unique(np.asarray(target_cls).astype(np.int64), return_counts=True)
    ap = np.zeros((len(classes), tp.shape[1]))
    precision, recall, precision_at_recall = (np.zeros((len(classes), len(GRID))) for _ in range(3))
    for k, ranked in enumerate(_ranked_by_class(conf, pred_cls, classes)):
        if len(ranked) == 0:
            continue  # nothing found of this class: its rows stay 0 and count in the means
        hits = tp[ranked].cumsum(0)  # (n, L)
        ranks = np.arange(1, len(ranked) + 1)[:, None]
        found, right = hits / (labels[k] + TINY), hits / ranks
        recall[k] = _at_confidences(conf[ranked], found[:, 0], above=0.0)
        precision[k] = _at_confidences(conf[ranked], right[:, 0], above=1.0)
        precision_at_recall[k] = _envelope_at(GRID, found[:, 0], right[:, 0])
        ap[k] = [average_precision(found[:, level], right[:, level]) for level in range(tp.shape[1])]
    f1 = 2 * precision * recall / (precision + recall + TINY)
    best = int(smooth(f1.mean(0)).argmax()) if len(classes) else 0
    p, r = precision[:, best], recall[:, best]
    true = (r * labels).round()
    false = (true / (p + TINY) - true).round()
    curves = Curves(GRID, precision, recall, f1, GRID, precision_at_recall, classes, float(GRID[best]))
    return ClassMetrics(true, false, p, r, f1[:, best], ap, classes), curves


def average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the envelope of precision over recall, both (n,) along falling confidence; 101-point trapezoids."""
    height = _envelope_at(RECALL_POINTS, recall, precision)
    return float((height.sum() - (height[0] + height[-1]) / 2) / (len(RECALL_POINTS) - 1))


def smooth(curve: np.ndarray, width: int = SMOOTHING) -> np.ndarray:
    """Mean over `width` neighbours (odd), the ends continued by their own values; same length."""
    half = width // 2
    continued = np.pad(curve, half, mode="edge")
    return np.convolve(continued, np.full(width, 1 / width), mode="valid")


def _ranked_by_class(conf: np.ndarray, pred_cls, classes: np.ndarray) -> list[np.ndarray]:
    """Indices of each class's detections, the surest first; ties as NumPy's default sort leaves them."""
    order = np.argsort(-conf)
    ranked_cls = np.asarray(pred_cls).astype(np.int64)[order]
    by_class = np.argsort(ranked_cls, kind="stable")
    starts, ends = (np.searchsorted(ranked_cls[by_class], classes, side=side) for side in ("left", "right"))
    return [order[by_class[start:end]] for start, end in zip(starts, ends, strict=True)]


def _at_confidences(conf: np.ndarray, values: np.ndarray, *, above: float) -> np.ndarray:
    """(n,) values along falling confidence, read at each point of GRID; `above` the highest confidence as given."""
    return np.interp(-GRID, -conf, values, left=above)


def _envelope_at(points: np.ndarray, recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """The highest precision at each recall or beyond, linear between the measured ones, 0 at recall 1."""
    x = np.concatenate(([0.0], recall, [1.0]))
    y = np.concatenate(([1.0], precision, [0.0]))
    return np.interp(points, x, np.maximum.accumulate(y[::-1])[::-1])


class ConfusionMatrix:
    """Counts of predicted class (rows) against true class (columns); the last index stands for background.

    Only detections surer than `conf` count, and only overlaps above `iou`, of whatever class.
    """

    def __init__(self, num_classes: int, conf: float = 0.25, iou: float = 0.45):
        self.num_classes, self.conf, self.iou = num_classes, conf, iou
        self.matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)

    def update(self, detections, labels) -> None:
        """Count a picture. detections: (n, 6) x1, y1, x2, y2, confidence, class. labels: (m, 5) class, x1, y1, x2, y2.

        Each detection that is paired with no label is a false positive, each label without one a miss; both may be
        empty. A class id outside 0...C-1 is a UserError.
        """
        detections, labels = torch.as_tensor(detections).cpu().float(), torch.as_tensor(labels).cpu().float()
        detections = detections[detections[:, 4] > self.conf]
        predicted = _class_ids(detections[:, 5], self.num_classes, "detection")
        true = _class_ids(labels[:, 0], self.num_classes, "label")
        detection, label = self._pairs(detections[:, :4], labels[:, 1:])
        background = self.num_classes
        np.add.at(self.matrix, (predicted[detection], true[label]), 1)
        np.add.at(self.matrix, (np.delete(predicted, detection), background), 1)
        np.add.at(self.matrix, (background, np.delete(true, label)), 1)

    def _pairs(self, detected: torch.Tensor, labelled: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Indices of detections and labels that belong together: each detection's best label, each label's best one."""
        if len(detected) == 0 or len(labelled) == 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        overlap, label = (found.numpy() for found in pairwise_iou(detected, labelled).max(1))
        order = np.argsort(-overlap, kind="stable")
        order = order[overlap[order] > self.iou]
        labels, first = np.unique(label[order], return_index=True)
        return order[first], labels


def _class_ids(ids, num_classes: int, kind: str) -> np.ndarray:
    """The ids as integers; one outside 0...num_classes - 1 is a UserError."""
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
    """Milliseconds per picture."""

    preprocess: float = 0.0
    inference: float = 0.0
    nms: float = 0.0


@dataclass(frozen=True)
class Metrics:
    """What a validation found. Means run over the classes that have labels; all zero where nothing was right."""

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

    @property
    def fitness(self) -> float:
        return fitness(self.precision, self.recall, self.map50, self.map)

    @classmethod
    def from_statistics(cls, tp, conf, pred_cls, target_cls, *, num_classes: int, **rest) -> "Metrics":
        """From the arrays of ap_per_class; `rest` are the fields that are not computed from them."""
        per_class, curves = summarise(tp, conf, pred_cls, target_cls)
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
            instances=len(target_cls),
            label_counts=np.unique(np.asarray(target_cls), return_counts=True)[1],
            best_confidence=curves.best_confidence,
            **rest,
        )
