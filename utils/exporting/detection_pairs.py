"""Pairs of detections that two models find alike in one image.

Legend: n detections of the reference, m detections of the export.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from utils.boxes import pairwise_iou


@dataclass(frozen=True)
class PairRule:
    """Likeness that makes two detections of one class a pair."""

    iou: float = 0.99  # at least
    confidence: float = 0.01  # largest difference, and margin above the threshold in which a detection does not count


class Pairing(NamedTuple):
    """Counts of detections. Those within the margin of the threshold are in none of them."""

    reference: int = 0
    export: int = 0
    pairs: int = 0

    @property
    def share(self) -> float | None:
        """Share of all detections that have a partner, None without detections."""
        total = self.reference + self.export
        return 2 * self.pairs / total if total else None


class PairedImage(NamedTuple):
    """Detections of one image with their partners."""

    counts: Pairing
    lost: Tensor  # (k,) int64 rows of the reference that count and have no partner
    added: Tensor  # (k,) int64 rows of the export that count and have no partner


def pair_detections(reference: Tensor, export: Tensor, rule: PairRule, threshold: float) -> PairedImage:
    """Match detections one to one, as many as possible.

    reference, export: (n, 6) and (m, 6) x1, y1, x2, y2, confidence, class, of confidence above `threshold`. A pair, or
    a detection without partner, counts only if all its confidences exceed the threshold by `rule.confidence`.
    """
    partner = find_partners(likeness(reference, export, rule))  # (n,)
    paired = partner >= 0
    near_a, near_b = (rows[:, 4] < threshold + rule.confidence for rows in (reference, export))
    pair_is_near = near_a[paired] | near_b[partner[paired]]
    lost = (~paired & ~near_a).nonzero()[:, 0]
    alone = torch.ones(len(export), dtype=torch.bool)
    alone[partner[paired]] = False
    added = (alone & ~near_b).nonzero()[:, 0]
    pairs = int((~pair_is_near).sum())
    return PairedImage(Pairing(pairs + len(lost), pairs + len(added), pairs), lost, added)


def likeness(reference: Tensor, export: Tensor, rule: PairRule) -> Tensor:
    """Return the IoU (n, m) of the detections that may be a pair, -1 for all others."""
    iou = pairwise_iou(reference[:, :4], export[:, :4])
    same_class = reference[:, 5, None] == export[None, :, 5]
    close = (reference[:, 4, None] - export[None, :, 4]).abs() <= rule.confidence
    return torch.where(same_class & close & (iou >= rule.iou), iou, -1.0)


def find_partners(likeness: Tensor) -> Tensor:
    """Return the column of each row (n,) int64 in a largest one-to-one assignment, -1 for a row without one.

    likeness: (n, m), negative where a row and a column cannot be a pair. Rows prefer the columns that are most alike,
    but give way if that makes more pairs (augmenting paths, Kuhn 1955).
    """
    n, m = likeness.shape
    choices = [
        [column for column in row.argsort(descending=True, stable=True).tolist() if row[column] >= 0]
        for row in likeness
    ]
    owner = [-1] * m

    def place(row: int, visited: set[int]) -> bool:
        for column in choices[row]:
            if column not in visited:
                visited.add(column)
                if owner[column] < 0 or place(owner[column], visited):
                    owner[column] = row
                    return True
        return False

    for row in range(n):
        place(row, set())
    partner = torch.full((n,), -1)
    for column, row in enumerate(owner):
        if row >= 0:
            partner[row] = column
    return partner


def sum_pairings(parts: Iterable[Pairing]) -> Pairing:
    """Return the sums of the counts, zeros for no parts."""
    return Pairing(*(sum(column) for column in zip(*parts, strict=True)))
