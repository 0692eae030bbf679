"""Checks of boxes that nearly equal another box of their image.

Legend: M labels of a split, P pairs.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from utils.checking.findings import Finding, first_examples
from utils.checking.scan import ScannedData, ScannedSplit
from utils.datasets.label_index import LabelIndex

NEARLY_EQUAL = 0.9  # IoU


class BoxPairs(NamedTuple):
    """Pairs of labels of one image that overlap much."""

    first: np.ndarray  # (P,) label
    second: np.ndarray  # (P,) label after it
    iou: np.ndarray  # (P,)


def check_box_pairs(data: ScannedData) -> Iterator[Finding]:
    """Yield the findings on boxes given twice, and on nearly equal boxes of two classes."""
    for split in data.splits.values():
        pairs = find_pairs(split.index)
        classes = split.index.labels[:, 0]
        same = classes[pairs.first] == classes[pairs.second]
        yield from _finding(
            split,
            pairs,
            same,
            "near-duplicate",
            "boxes nearly equal another one of their class",
            "Remove one of each: the object is labelled twice, and counts twice in validation.",
        )
        yield from _finding(
            split,
            pairs,
            ~same,
            "two-classes",
            "boxes nearly equal one of another class",
            "Remove the wrong one, unless objects have several classes in this data set.",
        )


def _finding(
    split: ScannedSplit, pairs: BoxPairs, chosen: np.ndarray, check: str, text: str, advice: str
) -> Iterator[Finding]:
    found = np.flatnonzero(chosen)
    ranked = found[np.argsort(-pairs.iou[found], kind="stable")]
    if len(ranked):
        names, classes = split.names, split.index.labels[:, 0].astype(int)

        def detail(pair: int) -> str:
            one, other = (names.get(int(classes[side[pair]]), "?") for side in (pairs.second, pairs.first))
            return f"{one} and {other}, IoU {pairs.iou[pair]:.2f}"

        examples = first_examples(
            split.label_example(int(pairs.second[pair]), detail(pair), others=[int(pairs.first[pair])])
            for pair in ranked
        )
        count = len(np.unique(pairs.second[found]))
        yield Finding("warning", "labels", check, count, text, advice, split.name, examples)


def find_pairs(index: LabelIndex, threshold: float = NEARLY_EQUAL) -> BoxPairs:
    """Return the pairs of labels of one image with an IoU of `threshold` (above 0) or more.

    With that IoU, widths differ by a factor of `threshold` at most, and centres by a share of `1 - threshold` of the
    wider one. So each label is compared with the following ones in the order of the centres, as far as that allows.
    """
    images = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    boxes = index.labels[:, 1:].astype(np.float64)
    order = np.lexsort([boxes[:, 0], images])
    images, boxes = images[order], boxes[order]
    reach = boxes[:, 2] * (1 - threshold) / threshold + 1e-9
    found, alive, distance = [], np.arange(len(order)), 1
    while len(alive):
        alive = alive[alive + distance < len(order)]
        other = alive + distance
        near = (images[alive] == images[other]) & (boxes[other, 0] - boxes[alive, 0] <= reach[alive])
        alive, other = alive[near], other[near]
        iou = iou_of_rows(boxes[alive], boxes[other])
        hit = iou >= threshold
        found.append((order[alive[hit]], order[other[hit]], iou[hit]))
        distance += 1
    one, two, ious = (np.concatenate(column) for column in zip(*found)) if found else (np.empty(0, int),) * 3
    return BoxPairs(np.minimum(one, two), np.maximum(one, two), ious)


def iou_of_rows(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the IoU (P,) of each pair of boxes (P, 4) cx, cy, w, h."""
    low = np.maximum(one[:, :2] - one[:, 2:] / 2, other[:, :2] - other[:, 2:] / 2)
    high = np.minimum(one[:, :2] + one[:, 2:] / 2, other[:, :2] + other[:, 2:] / 2)
    inside = (high - low).clip(0).prod(1)
    return inside / (one[:, 2:].prod(1) + other[:, 2:].prod(1) - inside)
