"""COCO's twelve figures of detected boxes (https://cocodataset.org/#detection-eval), equal to those of pycocotools.

Letters in shapes: N detections, M labels, P pairs of both, S detections that have a pair, K categories,
L = 10 IoU levels, A = 4 ranges of area. A group is what is matched by itself: a picture's boxes of one category.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import numpy as np

from utils.errors import UserError

LEVELS = np.linspace(0.5, 0.95, 10)  # these digits and no others: recalls and overlaps do fall on them
RECALLS = np.linspace(0, 1, 101)
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # px², ends included
MOST = (1, 10, 100)  # detections of a group that count
MISS, HIT, IGNORED = range(3)  # what a detection is at a level, in a range of area
BLOCK = 1 << 20  # pairs that are held in memory at a time


class CocoFigures(NamedTuple):
    """In COCO's order: precision and recall averaged over categories and, if no level is named, over the levels.

    0...1; -1 where no label counts, as for the sizes that no label has.
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
        """The table that pycocotools prints."""
        return [
            f" Average {part.kind:<9}  ({part.short}) @[ IoU={part.iou:<9} | area={part.area:>6} | "
            f"maxDets={part.most:>3} ] = {value:.3f}"
            for part, value in zip(PARTS, self, strict=True)
        ]


class Part(NamedTuple):
    """What a figure is the mean of."""

    kind: str
    level: int | None  # index into LEVELS; all
    area: str
    most: int

    @property
    def short(self) -> str:
        return "A" + self.kind[0]

    @property
    def iou(self) -> str:
        return "0.50:0.95" if self.level is None else f"{LEVELS[self.level]:.2f}"


PARTS = (
    *(Part("Precision", level, "all", MOST[-1]) for level in (None, 0, 5)),
    *(Part("Precision", None, area, MOST[-1]) for area in ("small", "medium", "large")),
    *(Part("Recall", None, "all", most) for most in MOST),
    *(Part("Recall", None, area, MOST[-1]) for area in ("small", "medium", "large")),
)


class Boxes(NamedTuple):
    """Labels or detections in the order of their file; n of them."""

    image: np.ndarray  # (n,) place among the picture ids; -1 for a picture that the truth does not list
    category: np.ndarray  # (n,) place among the category ids; -1 likewise
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

    images: dict[int | str, int]  # place of each picture id among all of them, sorted
    categories: dict[int | str, int]  # place of each category id
    labels: Boxes  # their area is the object's rather than the box's
    crowd: np.ndarray  # (M,) bool, many objects in one box: what lies in it is neither right nor wrong
    no_id: np.ndarray  # (M,) bool, the label's id is 0

    @classmethod
    def read(cls, content: Mapping, name: str = "the COCO annotations") -> "GroundTruth":
        """From the content of the file `name`; UserError where a part of it is missing or ill-typed.

        A label without `area` has that of its box, one without `iscrowd` is no crowd, one without `id` has not 0.
        """
        with _checked(name):
            labels = content.get("annotations") or ()
            images, categories = (_places(entry["id"] for entry in content[key]) for key in ("images", "categories"))
            boxes = _read_boxes(labels, images, categories)
            area = np.fromiter((label.get("area", np.nan) for label in labels), float, len(labels))
            return cls(
                images,
                categories,
                boxes._replace(area=np.where(np.isnan(area), boxes.area, area)),
                np.fromiter((label.get("iscrowd", 0) for label in labels), bool, len(labels)),
                np.fromiter((label.get("id") == 0 for label in labels), bool, len(labels)),
            )


def coco_figures(
    truth: GroundTruth,
    detections: Sequence[Mapping],
    *,
    images: Iterable[int | str] | None = None,
    by_category: bool = True,
) -> CocoFigures:
    """The figures of `detections`, the rows of a COCO results file: image_id, category_id, bbox x, y, w, h, score.

    images: ids of the pictures that count, all if None. by_category: a detection finds labels of its category only,
    and figures are means over the categories. Detections of a category that the truth lacks are left out; one of a
    picture that it lacks is a UserError.
    As in pycocotools, `iscrowd` alone makes a label ignored; of equal scores the earlier ranks first, by picture id,
    then by row; of equal overlaps the last label is taken; whoever takes a label with the id 0 has found nothing.
    """
    wanted = np.zeros(len(truth.images) + 1, bool)  # the last is that of place -1
    wanted[[truth.images[i] for i in (truth.images if images is None else images) if i in truth.images]] = True
    found = _read_detections(detections, truth)
    rows, groups = _grouped(found, wanted, len(truth.categories) if by_category else 0)
    found, rank = found.take(rows), np.arange(len(rows)) - np.searchsorted(groups, groups)
    counting = np.flatnonzero(rank < MOST[-1])
    found, groups, rank = found.take(counting), groups[counting], rank[counting]
    rows, label_groups = _grouped(truth.labels, wanted, len(truth.categories) if by_category else 0)
    labels, crowd, no_id = truth.labels.take(rows), truth.crowd[rows], truth.no_id[rows]
    if not by_category:
        found, labels = (boxes._replace(category=np.zeros_like(boxes.category)) for boxes in (found, labels))

    ignored = crowd[:, None] | ~_in_areas(labels)
    pairs = _overlapping(found, groups, labels, label_groups, crowd)
    rows, outcome = _match(pairs, rank, ignored, crowd, no_id)
    ap, ar = _average(found, rank, rows, outcome, labels.category, ignored)
    return _summarise(ap, ar)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@contextmanager
def _checked(what: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{what} cannot be scored: {type(error).__name__}: {error}") from error


def _places(ids: Iterable[int | str]) -> dict[int | str, int]:
    return {i: place for place, i in enumerate(sorted(set(ids)))}


def _read_boxes(entries: Sequence[Mapping], images: Mapping, categories: Mapping) -> Boxes:
    """Boxes with a score of 0 and the area of the box."""
    count, corners = len(entries), [entry["bbox"] for entry in entries]
    wrong = next((box for box in corners if len(box) != 4), None)
    if wrong is not None:
        raise ValueError(f"bbox {wrong}: x, y, width, height")
    xywh = np.fromiter(chain.from_iterable(corners), float, 4 * count).reshape(-1, 4).T.copy()
    return Boxes(
        np.fromiter((images.get(entry["image_id"], -1) for entry in entries), np.int64, count),
        np.fromiter((categories.get(entry["category_id"], -1) for entry in entries), np.int64, count),
        xywh,
        xywh[2] * xywh[3],
        np.zeros(count),
    )


def _read_detections(entries: Sequence[Mapping], truth: GroundTruth) -> Boxes:
    with _checked("the detections"):
        boxes = _read_boxes(entries, truth.images, truth.categories)
        score = np.fromiter((entry["score"] for entry in entries), float, len(entries))
    stray = np.flatnonzero(boxes.image < 0)
    if len(stray):
        raise UserError(
            f"image_id {entries[stray[0]]['image_id']!r} of a detection is not in the COCO annotations: "
            "give those of the same pictures (--annotations)"
        )
    return boxes._replace(score=score)


# ---------------------------------------------------------------------------------------------------------------------
# Matching


def _grouped(boxes: Boxes, wanted: np.ndarray, num_categories: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the boxes that count, by group, then falling score, category and row, and the group of each.

    wanted: (pictures + 1,) bool, the last False. num_categories: 0 makes a picture one group. Groups follow the
    pictures, then the categories.
    """
    rows = np.flatnonzero(wanted[boxes.image] & (boxes.category >= 0))
    image, category = boxes.image[rows], boxes.category[rows]
    groups = image * num_categories + category if num_categories else image
    order = np.lexsort((category, -boxes.score[rows], groups))
    return rows[order], groups[order]


def _in_areas(boxes: Boxes) -> np.ndarray:
    """Bool (n, A): which ranges of area the boxes belong to; a border belongs to both."""
    low, high = np.array(list(AREAS.values())).T
    return (boxes.area[:, None] >= low) & (boxes.area[:, None] <= high)


def _overlapping(
    found: Boxes, groups: np.ndarray, labels: Boxes, label_groups: np.ndarray, crowd: np.ndarray
) -> _Pairs:
    """All pairs whose IoU reaches the lowest level, by detection, in blocks of detections to spare memory."""
    first = np.searchsorted(label_groups, groups)
    count = np.searchsorted(label_groups, groups, side="right") - first  # (N,) labels in each detection's group
    some = np.flatnonzero(count)
    total = np.cumsum(count[some])
    parts = [_Pairs(*(np.zeros(0, dtype) for dtype in (np.int64, np.int64, float)))]
    for rows in np.split(some, np.searchsorted(total, np.arange(BLOCK, total[-1] if len(total) else 0, BLOCK))):
        start = np.cumsum(count[rows]) - count[rows]
        detection = np.repeat(rows, count[rows])
        label = np.arange(len(detection)) + np.repeat(first[rows] - start, count[rows])
        iou = _iou(found.xywh[:, detection], labels.xywh[:, label], crowd[label])
        near = iou >= LEVELS[0]
        parts.append(_Pairs(detection[near], label[near], iou[near]))
    return _Pairs(*map(np.concatenate, zip(*parts)))


def _iou(detected: np.ndarray, labelled: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(P,) overlaps of xywh (4, P) with xywh (4, P); with a crowd, the share of the detection that lies in it."""
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
    """Let detections choose in the order of their rank: those with a pair (S,), and what they are (S, L, A).

    A detection takes the free label that it overlaps most, an ignored one only if no other is left; crowds stay free.
    The detections of one rank are of different groups, so that they choose at the same time.
    """
    order = np.lexsort((pairs.label, pairs.iou, pairs.detection, rank[pairs.detection]))
    detection, label, iou = (column[order] for column in pairs)
    P, M, L, A = len(order), len(ignored), len(LEVELS), len(AREAS)
    first = np.flatnonzero(np.diff(detection, prepend=-1))  # (S,) pair of each detection: the last are its best
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


def _average(
    found: Boxes,
    rank: np.ndarray,
    rows: np.ndarray,
    outcome: np.ndarray,
    label_category: np.ndarray,
    ignored: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """AP (K', L, A) and, for each of MOST, AR (K', 3, L, A) of the categories with a box; NaN where no label counts.

    found, rank: of the N detections. rows, outcome: of those with a pair, see _match.
    """
    inside = _in_areas(found)
    place = np.full(len(inside), -1)
    place[rows] = np.arange(len(rows))
    by_score = np.lexsort((-found.score, found.category))
    categories = np.unique(label_category)
    starts, ends = (np.searchsorted(found.category[by_score], categories, side=side) for side in ("left", "right"))
    ap = np.full((len(categories), len(LEVELS), len(AREAS)), np.nan)
    ar = np.full((len(categories), len(MOST), len(LEVELS), len(AREAS)), np.nan)
    for k, (category, start, end) in enumerate(zip(categories, starts, ends)):
        labels = (~ignored[label_category == category]).sum(0)  # (A,)
        ranked = by_score[start:end]
        paired = np.flatnonzero(place[ranked] >= 0)
        what, ranks = outcome[place[ranked[paired]]], rank[ranked[paired]]
        hit = what == HIT
        with np.errstate(invalid="ignore"):  # no labels: 0 / 0
            ar[k] = np.stack([hit[ranks < most].sum(0) for most in MOST]) / labels
        ap[k] = _precision(what, paired, inside[ranked], labels)
    return ap, ar


def _precision(what: np.ndarray, paired: np.ndarray, inside: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AP (L, A) of one category, NaN where `labels` (A,) is 0: the mean of the best precision at each of RECALLS or
    beyond, 0 beyond the last recall.

    what: (s, L, A) of the detections `paired` (s,) among all of the category, of which `inside` (n, A) says the areas;
    the others find nothing, which counts in their own ranges of area. Precision peaks at hits, so only they are kept.
    """
    own = inside[paired][:, None]  # (s, 1, A)
    counts = (what == HIT) | (what == MISS) & own
    counted = inside.cumsum(0)[paired][:, None] + (counts.astype(int) - own).cumsum(0)  # (s, L, A)
    hits = (what == HIT).cumsum(0)
    precision = np.where(what == HIT, hits / np.maximum(counted, 1), 0)
    best = np.zeros((len(what) + 1, *what.shape[1:]))
    best[:-1] = np.maximum.accumulate(precision[::-1])[::-1]
    ap = np.full(what.shape[1:], np.nan)
    for level, area in np.ndindex(ap.shape):
        if labels[area]:
            recall = hits[:, level, area] / labels[area]
            ap[level, area] = best[np.searchsorted(recall, RECALLS), level, area].mean()
    return ap


def _summarise(ap: np.ndarray, ar: np.ndarray) -> CocoFigures:
    """From (K, L, A) and (K, 3, L, A)."""
    figures = []
    for part in PARTS:
        values = ap if part.kind == "Precision" else ar[:, MOST.index(part.most)]
        values = values[:, slice(None) if part.level is None else part.level, ..., list(AREAS).index(part.area)]
        values = values[~np.isnan(values)]
        figures.append(float(values.mean()) if len(values) else -1.0)
    return CocoFigures(*figures)
