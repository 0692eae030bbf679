"""Result of a diagnosis: the kinds of a detector's errors and what each costs, and its AP by object size."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Of TIDE (arXiv 2008.08115, section 2.1), at IoU 0.5 for an object and 0.1 for the background.
KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")


class GroupResult(NamedTuple):
    """AP of the objects of a group, means over the classes that have some. NaN without objects."""

    name: str
    labels: int
    map50: float
    map: float


class ErrorResult(NamedTuple):
    """Errors of a kind."""

    kind: str
    count: int  # of any confidence
    confident: int  # with at least the best confidence
    cost: float  # mAP50 that a detector without these errors would have in addition


class ImageResult(NamedTuple):
    """Counts of an image at the best confidence."""

    path: str
    tp: int
    fp: int
    fn: int


@dataclass(frozen=True)
class Diagnosis:
    """Reasons why a validation's mAP is not higher."""

    sizes: list[GroupResult]  # COCO's small, medium and large objects
    levels: list[GroupResult]  # objects by level of the head, finest first; empty for exported files
    errors: list[ErrorResult]  # of each of KINDS
    false_positives: ErrorResult  # all kinds but the missed labels
    false_negatives: ErrorResult  # all labels that no detection is correct for
    by_class: np.ndarray  # (C, 6) confident errors of the class of the detection, or of the missed label
    images: list[ImageResult]

    def worst_images(self, count: int) -> list[ImageResult]:
        """Return the images with most false positives and false negatives, the worst first."""
        return sorted(self.images, key=lambda image: -(image.fp + image.fn))[:count]
