"""COCO's twelve metrics of detected boxes (https://cocodataset.org/#detection-eval), equal to those of pycocotools.

Letters in shapes: N detections, M labels, P pairs of both, S detections with pairs, K categories, L IoU levels (10),
A ranges of area (4). A group is the unit of matching: the boxes of one category in one image.
"""

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from utils.errors import UserError

LEVELS = np.linspace(0.5, 0.95, 10)  # exactly these digits: some recalls and IoUs are equal to one of them
RECALLS = np.linspace(0, 1, 101)
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # px², ends included
MAX_DETECTIONS = (1, 10, 100)  # of a group, those with the highest scores
MISS, HIT, IGNORED = range(3)  # outcomes of a detection at a level, in a range of area
BLOCK = 1 << 20  # pairs in memory at a time


class CocoMetrics(NamedTuple):
    """Average precision and recall in COCO's order, means over categories and, unless one is named, over levels.

    Each is 0...1, or -1 if there is no label of that size.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float

    def lines(self) -> list[str]:
        """Return the lines of the table that pycocotools prints."""
        return [
            f" Average {part.kind:<9}  ({part.short}) @[ IoU={part.iou:<9} | area={part.area:>6} | "
            f"maxDets={part.max_detections:>3} ] = {value:.3f}"
            for part, value in zip(PARTS, self, strict=True)
        ]


class Part(NamedTuple):
    """The values that a metric is the mean of."""

    kind: str
    level: int | None  # index into LEVELS; None is all
    area: str
    max_detections: int

    @property
    def short(self) -> str:
        return "A" + self.kind[0]

    @property
    def iou(self) -> str:
        return "0.50:0.95" if self.level is None else f"{LEVELS[self.level]:.2f}"


PARTS = (
    *(Part("Precision", level, "all", MAX_DETECTIONS[-1]) for level in (None, 0, 5)),
    *(Part("Precision", None, area, MAX_DETECTIONS[-1]) for area in ("small", "medium", "large")),
    *(Part("Recall", None, "all", count) for count in MAX_DETECTIONS),
    *(Part("Recall", None, area, MAX_DETECTIONS[-1]) for area in ("small", "medium", "large")),
)


class Boxes(NamedTuple):
    """The n labels or detections of a file, in its order."""

    image: np.ndarray  # (n,) position among the image ids; -1 for an image that the annotations do not list
    category: np.ndarray  # (n,) position among the category ids; -1 likewise
    xywh: np.ndarray  # (4, n) left, top, width, height in pixels
    area: np.ndarray  # (n,) px²
    score: np.ndarray  # (n,) 0 for labels

    def take(self, rows: np.ndarray) -> "Boxes":
        return Boxes(*(column[..., rows] for column in self))


class _Pairs(NamedTuple):
    """Detections and labels of one group that overlap."""

    detection: np.ndarray  # (P,)
    label: np.ndarray  # (P,)
    iou: np.ndarray  # (P,)


class GroundTruth(NamedTuple):
    """A COCO annotations file."""

    images: dict[int | str, int]  # position of each image id among all of them, sorted
    categories: dict[int | str, int]  # position of each category id
    labels: Boxes  # with the area of the object, not of the box
    crowd: np.ndarray  # (M,) bool, many objects in one box: detections in it are neither correct nor wrong
    no_id: np.ndarray  # (M,) bool, the label's id is 0

    @classmethod
    def read(cls, content: Mapping, name: str = "the COCO annotations") -> "GroundTruth":
        """Parse the content of the file `name`. Raises UserError if a part of it is missing or has a wrong type.

        A label without `area` gets that of its box. One without `iscrowd` is no crowd. One without `id` counts as not
        0.
        """
        with _describe_errors(name):
            labels = content.get("annotations") or ()
            for label in labels:
                _check_label(label)
            images, categories = (_positions(entry["id"] for entry in content[key]) for key in ("images", "categories"))
            boxes = _read_boxes(labels, images, categories)
            area = np.fromiter((label.get("area", np.nan) for label in labels), float, len(labels))
            return cls(
                images,
                categories,
                boxes._replace(area=np.where(np.isnan(area), boxes.area, area)),
                np.fromiter((label.get("iscrowd", 0) for label in labels), bool, len(labels)),
                np.fromiter((label.get("id") == 0 for label in labels), bool, len(labels)),
            )


def evaluate_coco(
    truth: GroundTruth,
    detections: Sequence[Mapping],
    *,
    images: Iterable[int | str] | None = None,
    by_category: bool = True,
) -> CocoMetrics:
    """Return the metrics of `detections`, the rows of a COCO results file.

    detections: mappings with image_id, category_id, bbox x, y, w, h, score. images: ids of the images that count, all
    if None. by_category: match detections with labels of their category only, and average over categories.
    Detections of a category that `truth` lacks are ignored. Raises UserError for one of an unknown image.
    As in pycocotools, only `iscrowd` makes a label ignored. Equal scores rank by image id, then by row. Equal IoUs take
    the last label. A detection that takes a label with the id 0 is a miss.
    """
    wanted = np.zeros(len(truth.images) + 1, bool)  # the last entry is for position -1
    wanted[[truth.images[i] for i in (truth.images if images is None else images) if i in truth.images]] = True
    found = _read_detections(detections, truth)
    rows, groups = _group_boxes(found, wanted, len(truth.categories) if by_category else 0)
    found, rank = found.take(rows), np.arange(len(rows)) - np.searchsorted(groups, groups)
    counting = np.flatnonzero(rank < MAX_DETECTIONS[-1])
    found, groups, rank = found.take(counting), groups[counting], rank[counting]
    rows, label_groups = _group_boxes(truth.labels, wanted, len(truth.categories) if by_category else 0)
    labels, crowd, no_id = truth.labels.take(rows), truth.crowd[rows], truth.no_id[rows]
    if not by_category:
        found, labels = (boxes._replace(category=np.zeros_like(boxes.category)) for boxes in (found, labels))

    ignored = crowd[:, None] | ~_in_areas(labels)
    pairs = _find_pairs(found, groups, labels, label_groups, crowd)
    rows, outcome = _match(pairs, rank, ignored, crowd, no_id)
    ap, ar = _average_outcomes(found, rank, rows, outcome, labels.category, ignored)
    return _average_parts(ap, ar)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@contextmanager
def _describe_errors(what: str) -> Generator[None]:
    try:
        yield
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{what} cannot be scored: {type(error).__name__}: {error}") from error


def _check_label(label: Mapping) -> None:
    """Raise ValueError if a label's box, area or crowd mark is of a wrong type or not finite. KeyError without box."""
    bbox, name = label["bbox"], f"annotation {label.get('id')!r}"
    if not isinstance(bbox, Sequence) or isinstance(bbox, str) or len(bbox) != 4 or not all(map(_is_finite, bbox)):
        raise ValueError(f"{name}: bbox {bbox}: x, y, width, height")
    if not _is_finite(label.get("area", 0)):
        raise ValueError(f"{name}: area {label['area']!r} is not a finite number")
    if label.get("iscrowd") not in (0, 1, None):
        raise ValueError(f"{name}: iscrowd {label['iscrowd']!r} is not 0 or 1")


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and math.isfinite(value)


def _positions(ids: Iterable[Any]) -> dict[int | str, int]:
    unique = set(ids)
    wrong = next((i for i in unique if not isinstance(i, str) and not _is_finite(i)), None)
    if wrong is not None or None in unique:
        raise ValueError(f"id {wrong!r} is no number or text")
    return {i: position for position, i in enumerate(sorted(unique))}


def _read_boxes(entries: Sequence[Mapping], images: Mapping, categories: Mapping) -> Boxes:
    """Return the boxes with a score of 0 and the area of the box."""
    count, bboxes = len(entries), [entry["bbox"] for entry in entries]
    wrong = next((box for box in bboxes if len(box) != 4), None)
    if wrong is not None:
        raise ValueError(f"bbox {wrong}: x, y, width, height")
    xywh = np.fromiter(chain.from_iterable(bboxes), float, 4 * count).reshape(-1, 4).T.copy()
    return Boxes(
        np.fromiter((images.get(entry["image_id"], -1) for entry in entries), np.int64, count),
        np.fromiter((categories.get(entry["category_id"], -1) for entry in entries), np.int64, count),
        xywh,
        xywh[2] * xywh[3],
        np.zeros(count),
    )


def _read_detections(entries: Sequence[Mapping], truth: GroundTruth) -> Boxes:
    with _describe_errors("the detections"):
        boxes = _read_boxes(entries, truth.images, truth.categories)
        score = np.fromiter((entry["score"] for entry in entries), float, len(entries))
    stray = np.flatnonzero(boxes.image < 0)
    if len(stray):
        raise UserError(
            f"image_id {entries[stray[0]]['image_id']!r} of a detection is not in the COCO annotations: "
            "give those of the same images (--annotations)"
        )
    return boxes._replace(score=score)


# ---------------------------------------------------------------------------------------------------------------------
# Matching


def _group_boxes(boxes: Boxes, wanted: np.ndarray, num_categories: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the boxes that count, and the group of each.

    They are sorted by group, then by falling score, category and row. Groups are numbered by image, then by category.
    wanted: (images + 1,) bool, the last is False. num_categories: 0 makes each image one group.
    """
    rows = np.flatnonzero(wanted[boxes.image] & (boxes.category >= 0))
    image, category = boxes.image[rows], boxes.category[rows]
    groups = image * num_categories + category if num_categories else image
    order = np.lexsort((category, -boxes.score[rows], groups))
    return rows[order], groups[order]


def _in_areas(boxes: Boxes) -> np.ndarray:
    """Return bool (n, A): the ranges of area that the boxes belong to. A border belongs to both ranges."""
    low, high = np.array(list(AREAS.values())).T
    return (boxes.area[:, None] >= low) & (boxes.area[:, None] <= high)


def _find_pairs(found: Boxes, groups: np.ndarray, labels: Boxes, label_groups: np.ndarray, crowd: np.ndarray) -> _Pairs:
    """Return all pairs whose IoU reaches the lowest level, by detection. Blocks of detections save memory."""
    first = np.searchsorted(label_groups, groups)
    count = np.searchsorted(label_groups, groups, side="right") - first  # (N,) labels in each detection's group
    with_labels = np.flatnonzero(count)
    total = np.cumsum(count[with_labels])
    parts = [_Pairs(*(np.zeros(0, dtype) for dtype in (np.int64, np.int64, float)))]
    for rows in np.split(with_labels, np.searchsorted(total, np.arange(BLOCK, total[-1] if len(total) else 0, BLOCK))):
        start = np.cumsum(count[rows]) - count[rows]
        detection = np.repeat(rows, count[rows])
        label = np.arange(len(detection)) + np.repeat(first[rows] - start, count[rows])
        iou = _iou(found.xywh[:, detection], labels.xywh[:, label], crowd[label])
        near = iou >= LEVELS[0]
        parts.append(_Pairs(detection[near], label[near], iou[near]))
    return _Pairs(*map(np.concatenate, zip(*parts)))


def _iou(detected: np.ndarray, labelled: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Return the IoUs (P,) of xywh (4, P) and xywh (4, P). For a crowd it is the share of the detection inside."""
    x, y, w, h = detected
    left, top, width, height = labelled
    across = np.minimum(x + w, left + width) - np.maximum(x, left)
    down = np.minimum(y + h, top + height) - np.maximum(y, top)
    shared, area = across * down, w * h
    whole = np.where(crowd, area, area + width * height - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=(across > 0) & (down > 0))


def _match(
    pairs: _Pairs, rank: np.ndarray, ignored: np.ndarray, crowd: np.ndarray, no_id: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Match detections by rank. Return those with a pair (S,), and their outcomes (S, L, A).

    A detection takes the free label with the highest IoU, an ignored one only if no other is free. Crowds stay free.
    The detections of one rank belong to different groups, so all of them choose at the same time.
    """
    order = np.lexsort((pairs.label, pairs.iou, pairs.detection, rank[pairs.detection]))
    detection, label, iou = (column[order] for column in pairs)
    P, M, L, A = len(order), len(ignored), len(LEVELS), len(AREAS)
    first = np.flatnonzero(np.diff(detection, prepend=-1))  # (S,) first pair of each detection; its last is the best
    S, rows = len(first), detection[first]
    bounds = np.append(first, P)
    reached = iou[:, None] >= LEVELS  # (P, L)
    taken, outcome = np.zeros((M, L, A), bool), np.zeros((S, L, A), np.int8)
    steps = np.flatnonzero(np.diff(rank[rows], prepend=-1))
    for begin, end in zip(steps, np.append(steps[1:], S)):
        pair = np.arange(bounds[begin], bounds[end])
        suits = reached[pair, :, None] & (crowd[label[pair], None, None] | ~taken[label[pair]])  # (p, L, A)
        preferred = P * ~ignored[label[pair], None]  # (p, 1, A)
        worth = np.where(suits, preferred + pair[:, None, None], -1)
        best = np.maximum.reduceat(worth, first[begin:end] - first[begin])  # (s, L, A)
        s, level, area = np.nonzero(best >= 0)
        chosen = label[best[s, level, area] % P]
        taken[chosen, level, area] = True
        outcome[begin + s, level, area] = np.where(ignored[chosen, area], IGNORED, np.where(no_id[chosen], MISS, HIT))
    return rows, outcome


# ---------------------------------------------------------------------------------------------------------------------
# Averaging


def _average_outcomes(
    found: Boxes,
    rank: np.ndarray,
    rows: np.ndarray,
    outcome: np.ndarray,
    label_category: np.ndarray,
    ignored: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return AP (K, L, A) and AR (K, 3, L, A), one for each of MAX_DETECTIONS, NaN if there is no label.

    K counts the categories with labels. found, rank: the N detections. rows, outcome: those with a pair, see `_match`.
    """
    inside = _in_areas(found)
    position = np.full(len(inside), -1)
    position[rows] = np.arange(len(rows))
    by_score = np.lexsort((-found.score, found.category))
    categories = np.unique(label_category)
    starts, ends = (np.searchsorted(found.category[by_score], categories, side=side) for side in ("left", "right"))
    ap = np.full((len(categories), len(LEVELS), len(AREAS)), np.nan)
    ar = np.full((len(categories), len(MAX_DETECTIONS), len(LEVELS), len(AREAS)), np.nan)
    for k, (category, start, end) in enumerate(zip(categories, starts, ends)):
        labels = (~ignored[label_category == category]).sum(0)  # (A,)
        ranked = by_score[start:end]
        paired = np.flatnonzero(position[ranked] >= 0)
        own_outcome, ranks = outcome[position[ranked[paired]]], rank[ranked[paired]]
        hit = own_outcome == HIT
        with np.errstate(invalid="ignore"):  # no labels: 0 / 0
            ar[k] = np.stack([hit[ranks < count].sum(0) for count in MAX_DETECTIONS]) / labels
        ap[k] = _precision(own_outcome, paired, inside[ranked], labels)
    return ap, ar


def _precision(outcome: np.ndarray, paired: np.ndarray, inside: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return AP (L, A) of one category, NaN where `labels` (A,) is 0.

    AP is the mean over RECALLS of the best precision at that recall or beyond, 0 beyond the last recall.
    outcome: (s, L, A) of the detections `paired` (s,) among all n of the category. inside: (n, A) their ranges of area.
    Detections without a pair are misses in their own ranges. Precision peaks at hits, so only hits are compared.
    """
    own = inside[paired][:, None]  # (s, 1, A)
    counts = (outcome == HIT) | (outcome == MISS) & own
    counted = inside.cumsum(0)[paired][:, None] + (counts.astype(int) - own).cumsum(0)  # (s, L, A)
    hits = (outcome == HIT).cumsum(0)
    precision = np.where(outcome == HIT, hits / np.maximum(counted, 1), 0)
    best = np.zeros((len(outcome) + 1, *outcome.shape[1:]))
    best[:-1] = np.maximum.accumulate(precision[::-1])[::-1]
    ap = np.full(outcome.shape[1:], np.nan)
    for level, area in np.ndindex(ap.shape):
        if labels[area]:
            recall = hits[:, level, area] / labels[area]
            ap[level, area] = best[np.searchsorted(recall, RECALLS), level, area].mean()
    return ap


def _average_parts(ap: np.ndarray, ar: np.ndarray) -> CocoMetrics:
    """Return the metrics for AP (K, L, A) and AR (K, 3, L, A)."""
    metrics = []
    for part in PARTS:
        values = ap if part.kind == "Precision" else ar[:, MAX_DETECTIONS.index(part.max_detections)]
        values = values[:, slice(None) if part.level is None else part.level, ..., list(AREAS).index(part.area)]
        values = values[~np.isnan(values)]
        metrics.append(float(values.mean()) if len(values) else -1.0)
    return CocoMetrics(*metrics)
