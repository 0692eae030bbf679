"""Label errors: labels that disagree with what a model finds that has not seen them.

From ObjectLab (arXiv 2309.00832): overlooked, badly located and swapped boxes have a quality each, by what a model
finds there. The soft minimum pools those of a kind, and the geometric mean of the three is the quality of the image.

Ours are the qualities of the boxes and all constants but TEMPERATURE:
- A detection counts by its confidence. The paper's takes those above fixed limits only (0.5 for badly located boxes,
  0.95 for the others), which small models do not reach.
- A box that has moved is one whose IoU is low for its class, in spreads. The paper's quality is the similarity itself,
  0.9 of it IoU and 0.1 the distance of the two boxes.
- A class is wrong by the margin of its confidence to the next one. The paper's looks at the nearest box of another
  class.
- Each object is matched once, a label has one error at most, and a label where nothing is found may be spurious.

Legend: n labels and m detections of an image, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import nms

from utils.boxes import pairwise_iou, xywh_to_xyxy

MISSING, CLASS, SHIFTED, SPURIOUS = KINDS = ("missing", "class", "shifted", "spurious")

SAME_OBJECT = 0.5  # IoU from which a detection says something about the class of a label
TOUCHING = 0.1  # IoU from which a label may mean the same object as a detection
ONE_OBJECT = 0.6  # IoU above which detections are one object, whatever their class
TEMPERATURE = 0.1  # of the soft minimum
USUAL_CONFIDENCE = 0.25  # least confidence of the detections from which the usual overlap follows
FEW_LABELS = 20  # below it a class takes the figures of all classes
PRIOR = 0.02  # share of labels that are assumed to be spurious
SURPRISE = 4.0  # spreads below the usual overlap at which a label is as likely shifted as not
CONFIRMED = 0.6  # power of a confidence below 1 that a label confirms, since both say that something is there


class LabelError(NamedTuple):
    """A likely error in the labels of an image."""

    kind: str  # one of KINDS
    score: float  # 0…1, the higher the likelier
    image: int  # number of the image
    label: int | None  # row of the label, None for a missing one
    given_class: int | None  # of that label
    given_xyxy: tuple[float, float, float, float] | None  # of that label, in pixels
    found_class: int | None  # class that the model finds there, None if it finds nothing
    found_xyxy: tuple[float, float, float, float] | None  # box that it finds, in pixels
    confidence: float  # of what it finds


@dataclass(frozen=True)
class Evidence:
    """Labels and detections of an image, compared."""

    boxes: np.ndarray  # (n, 4) xyxy in pixels of the labels
    classes: np.ndarray  # (n,) int64 of the labels
    objects: np.ndarray  # (k, 6) detections, one for each object that was found
    overlap: np.ndarray  # (n, k) IoU of labels and objects
    class_confidence: np.ndarray  # (n, C) highest confidence of each class at each label
    object_of: dict[int, int]  # label -> the object that it means
    is_ignored: np.ndarray  # (k,) bool: objects in regions where nothing is labelled one by one


def compare(
    labels: np.ndarray, rows: np.ndarray, shape: tuple[int, int], *, num_classes: int, ignored: np.ndarray | None = None
) -> Evidence:
    """Return what the detections of an image say about its labels.

    labels: (n, 5) class, cx, cy, w, h in 0…1. rows: (m, 6) x1, y1, x2, y2 in pixels, confidence, class; a box may have
    a row for each of several classes. shape: height, width of the image. ignored: regions (r, 5) like labels.
    """
    boxes = _in_pixels(labels, shape)
    classes = labels[:, 0].astype(np.int64)
    objects = rows[_one_per_object(rows)]
    overlap = _iou(boxes, objects[:, :4])
    return Evidence(
        boxes=boxes,
        classes=classes,
        objects=objects,
        overlap=overlap,
        class_confidence=_class_confidence(classes, _iou(boxes, rows[:, :4]), rows, num_classes),
        object_of=_match(overlap, objects, classes),
        is_ignored=_lie_inside(objects, None if ignored is None else _in_pixels(ignored, shape)),
    )


def _in_pixels(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    height, width = shape
    return xywh_to_xyxy(labels[:, 1:].astype(np.float64) * [width, height, width, height])


def _lie_inside(objects: np.ndarray, regions_xyxy: np.ndarray | None) -> np.ndarray:
    """Return whether half or more of each object lies in one of the regions."""
    if regions_xyxy is None or not len(regions_xyxy):
        return np.zeros(len(objects), bool)
    a, b = objects[:, None, :4], regions_xyxy[None]
    shared = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(min=0).prod(-1)
    return (shared >= 0.5 * (a[..., 2:] - a[..., :2]).prod(-1)).any(1)


def _iou(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    return pairwise_iou(torch.from_numpy(np.ascontiguousarray(a_xyxy)), torch.from_numpy(b_xyxy.copy())).numpy()


def _one_per_object(rows: np.ndarray) -> np.ndarray:
    """Return the numbers of the rows with the highest confidence of each object."""
    tensor = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
    return nms(tensor[:, :4], tensor[:, 4], ONE_OBJECT).numpy()


def _class_confidence(classes: np.ndarray, overlap: np.ndarray, rows: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the highest confidence (n, C) of each class among the detections at each label.

    A detection says nothing about a label if another label of the detection's class fits it better.
    """
    result = np.zeros((len(classes), num_classes), np.float32)
    for k in np.unique(rows[:, 5]).astype(int).tolist():
        chosen = rows[:, 5] == k
        iou = overlap[:, chosen]
        best = np.where((classes == k)[:, None], iou, 0).max(0, initial=0)  # of the labels of this class
        counts = (iou >= SAME_OBJECT) & (iou >= best)
        result[:, k] = np.where(counts, rows[chosen, 4], 0).max(1, initial=0)
    return result


def _match(overlap: np.ndarray, objects: np.ndarray, classes: np.ndarray) -> dict[int, int]:
    """Return the object of each label that has one: pairs by falling IoU x confidence, each label and object once.

    Below SAME_OBJECT only objects of the label's class count.
    """
    candidates = (overlap >= SAME_OBJECT) | ((classes[:, None] == objects[None, :, 5]) & (overlap >= TOUCHING))
    value = overlap * objects[None, :, 4]
    pairs = sorted(np.argwhere(candidates).tolist(), key=lambda pair: -value[pair[0], pair[1]])
    object_of: dict[int, int] = {}
    taken: set[int] = set()
    for label, found in pairs:
        if label not in object_of and found not in taken:
            object_of[label] = found
            taken.add(found)
    return object_of


@dataclass(frozen=True)
class Usual:
    """Usual figures of each class, from the labels whose class the model confirms. All arrays are (C,)."""

    overlap: np.ndarray  # median IoU of label and object
    spread: np.ndarray  # median distance from it
    found: np.ndarray  # share of the labels at which something is found


def usual_of(images: Sequence[Evidence], num_classes: int) -> Usual:
    """Return what is usual for each class. A class with few labels takes the figures of all."""
    overlaps: list[list[float]] = [[] for _ in range(num_classes)]
    found, total = np.zeros(num_classes), np.zeros(num_classes)
    for one in images:
        total += np.bincount(one.classes, minlength=num_classes)
        for label, number in one.object_of.items():
            cls = one.classes[label]
            found[cls] += 1
            if one.objects[number, 5] == cls and one.objects[number, 4] >= USUAL_CONFIDENCE:
                overlaps[cls].append(float(one.overlap[label, number]))
    everything = [value for values in overlaps for value in values]
    median, spread = np.zeros(num_classes), np.zeros(num_classes)
    for cls, values in enumerate(overlaps):
        chosen = np.array(values if len(values) >= FEW_LABELS else everything or [1.0])
        median[cls] = np.median(chosen)
        spread[cls] = max(np.median(np.abs(chosen - median[cls])), 0.01)
    share = (found + 1) / (total + 2)
    return Usual(median, spread, np.where(total >= FEW_LABELS, share, (found.sum() + 1) / (total.sum() + 2)))


def find_errors(evidence: Evidence, usual: Usual, image: int) -> list[LabelError]:
    """Return the likely errors of an image: at most one for each label, and the objects that have no label."""
    errors = [_judge_label(evidence, usual, image, label) for label in range(len(evidence.boxes))]
    taken = set(evidence.object_of.values())
    for k, row in enumerate(evidence.objects):
        if k not in taken and not evidence.is_ignored[k]:
            free = 1 - float(evidence.overlap[:, k].max(initial=0))
            found = _corners(row)
            score = float(row[4]) * free
            errors.append(LabelError(MISSING, score, image, None, None, None, int(row[5]), found, float(row[4])))
    return errors


def _judge_label(evidence: Evidence, usual: Usual, image: int, label: int) -> LabelError:
    """Return the likeliest error of a label, whatever its score."""
    given, box = int(evidence.classes[label]), _corners(evidence.boxes[label])
    confidence = evidence.class_confidence[label]
    others = confidence.copy()
    others[given] = -1
    other = int(others.argmax())
    margin = float(max(others[other], 0) - confidence[given])
    swapped = LabelError(
        CLASS, max(margin, 0.0) ** CONFIRMED, image, label, given, box, other, box, float(others[other])
    )
    number = evidence.object_of.get(label)
    if number is None:
        found = float(usual.found[given])
        score = PRIOR / (PRIOR + (1 - PRIOR) * (1 - found)) * (1 - float(confidence[given]))
        alternative = LabelError(SPURIOUS, score, image, label, given, box, None, None, 0.0)
    else:
        row = evidence.objects[number]
        surprise = (usual.overlap[given] - evidence.overlap[label, number]) / usual.spread[given]
        score = float(row[4]) ** CONFIRMED * _sigmoid(float(surprise) - SURPRISE)
        alternative = LabelError(SHIFTED, score, image, label, given, box, int(row[5]), _corners(row), float(row[4]))
    return max(swapped, alternative, key=lambda error: error.score)


def _corners(row: np.ndarray) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = row[:4].tolist()
    return x1, y1, x2, y2


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, value))))


def image_quality(errors: Sequence[LabelError]) -> float:
    """Return the quality 0…1 of an image's labels: the geometric mean of those of its overlooked, badly located and
    swapped boxes. Each is the soft minimum over the boxes.
    """
    groups = [(MISSING,), (SHIFTED, SPURIOUS), (CLASS,)]
    return math.prod(soft_minimum([1 - e.score for e in errors if e.kind in kinds]) for kinds in groups) ** (1 / 3)


def soft_minimum(qualities: Sequence[float]) -> float:
    """Return the mean of qualities in 0…1, weighted by a softmax that favours low ones. 1 for none."""
    if not qualities:
        return 1.0
    values = np.array(qualities, np.float64)
    weights = np.exp((1 - values) / TEMPERATURE - (1 - values).max() / TEMPERATURE)
    return float((values * weights).sum() / weights.sum())


def rank_errors(errors: Sequence[LabelError]) -> list[LabelError]:
    """Return the errors, the likeliest first."""
    return sorted(errors, key=lambda error: (-error.score, error.image))
