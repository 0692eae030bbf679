"""Diagnosis of a validation: the cost of each kind of error, and AP by object size.

Letters in shapes: N detections of all images, M labels of all images, C classes, K some of them, L = 10 IoU levels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from utils.coco_eval import AREAS
from utils.diagnosis import KINDS, Diagnosis, ErrorResult, GroupResult, ImageResult
from utils.inference.evidence import CLASSIFICATION, MISSED, NO_ERROR, Evidence
from utils.metrics import Metrics, average_precision, precision_and_recall

SIZES = tuple(name for name in AREAS if name != "all")


class Outcome(NamedTuple):
    """Detections of all images with their correctness, as Metrics.from_statistics takes them."""

    tp: np.ndarray  # (N, L) bool
    ignored: np.ndarray  # (N, L) bool
    conf: np.ndarray  # (N,)
    pred_cls: np.ndarray  # (N,)
    target_cls: np.ndarray  # (M,)

    def take(self, rows: np.ndarray) -> "Outcome":
        """Return the outcome of some of the detections, indices or bool."""
        return Outcome(self.tp[rows], self.ignored[rows], self.conf[rows], self.pred_cls[rows], self.target_cls)

    def rank(self) -> np.ndarray:
        """Return the order of the detections by class, then by falling confidence, ties in their order."""
        return np.lexsort((-self.conf, self.pred_cls))


def diagnose(outcome: Outcome, evidence: Evidence, strides: Sequence[int], *, metrics: Metrics) -> Diagnosis:
    """Return the diagnosis of a validation. strides: of the head's levels, none if unknown. metrics: of `outcome`."""
    confidence, num_classes = metrics.best_confidence, len(metrics.maps)
    images = count_by_image(outcome, evidence, confidence)
    rows = outcome.rank()
    outcome, evidence = outcome.take(rows), evidence.take(rows)
    sizes = [(name, is_of_size(evidence.true_area, name), is_of_size(evidence.area, name)) for name in SIZES]
    levels = [(f"stride {stride}", evidence.true_level == k, evidence.level == k) for k, stride in enumerate(strides)]
    errors, positives, negatives = cost_of_errors(outcome, evidence, confidence)
    return Diagnosis(
        sizes=[group_ap(outcome, evidence.own_label, *group) for group in sizes],
        levels=[group_ap(outcome, evidence.own_label, *group) for group in levels],
        errors=errors,
        false_positives=positives,
        false_negatives=negatives,
        by_class=count_by_class(outcome, evidence, num_classes, confidence),
        images=images,
    )


def is_of_size(area: np.ndarray, name: str) -> np.ndarray:
    """Return bool (n,): areas in px² within a range of COCO, whose ends belong to both ranges."""
    low, high = AREAS[name]
    return (low <= area) & (area <= high)


def group_ap(
    outcome: Outcome, own_label: np.ndarray, name: str, labels_in: np.ndarray, detections_in: np.ndarray
) -> GroupResult:
    """Return the AP of the labels of a group. COCO's rule: other labels and what is found of them do not count.

    outcome: ranked. labels_in: (M,) bool. detections_in: (N,) bool, those that count as wrong if they are not
    correct.
    """
    known = np.append(labels_in, False)[own_label]  # (N,) the label is of the group; -1 is the entry appended
    tp = outcome.tp & known[:, None]
    counts = tp | ~outcome.tp & ~outcome.ignored & detections_in[:, None]
    rows = np.flatnonzero(counts.any(1))
    group = outcome._replace(tp=tp, ignored=~counts, target_cls=outcome.target_cls[labels_in]).take(rows)
    ap = class_aps(group, *np.unique(group.target_cls.astype(np.int64), return_counts=True))
    means = (float(ap[:, 0].mean()), float(ap.mean())) if len(ap) else (np.nan, np.nan)
    return GroupResult(name, int(labels_in.sum()), *means)


def class_aps(outcome: Outcome, classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the AP (K, L) of each of the classes (K,) of a ranked outcome, 0 for one without labels (K,)."""
    first, end = (np.searchsorted(outcome.pred_cls, classes, side=side) for side in ("left", "right"))
    ap = np.zeros((len(classes), outcome.tp.shape[1]))
    for k, ranked in enumerate(map(slice, first, end)):
        if first[k] < end[k] and labels[k]:
            precision, recall = precision_and_recall(outcome.tp[ranked], outcome.ignored[ranked], labels[k])
            ap[k] = [average_precision(recall[:, level], precision[:, level]) for level in range(ap.shape[1])]
    return ap


# ---------------------------------------------------------------------------------------------------------------------
# Errors


def unfound_labels(outcome: Outcome, evidence: Evidence, confidence: float) -> np.ndarray:
    """Return (M,) bool: the labels that no detection of at least this confidence is correct for."""
    unfound = np.ones(len(outcome.target_cls), bool)
    unfound[evidence.own_label[outcome.tp[:, 0] & (outcome.conf >= confidence)]] = False
    return unfound


def missed_labels(outcome: Outcome, evidence: Evidence, confidence: float) -> np.ndarray:
    """Return (M,) bool: the labels without a correct detection that no error of class or place accounts for."""
    missed = unfound_labels(outcome, evidence, confidence)
    missed[evidence.target[(evidence.target >= 0) & (outcome.conf >= confidence)]] = False
    return missed


def repair(outcome: Outcome, evidence: Evidence, kind: int) -> Outcome:
    """Return the ranked outcome at IoU 0.5 of a detector that makes no errors of a kind (section 2.2 of the paper).

    An error of class or place becomes correct if no detection has found its label. Of several errors of the two kinds
    there, that of the highest confidence does, as in the published tool. All others of the kind are removed, and so are
    missed labels.
    """
    outcome = outcome._replace(tp=outcome.tp[:, :1], ignored=outcome.ignored[:, :1])
    if kind == MISSED:
        return outcome._replace(target_cls=outcome.target_cls[~missed_labels(outcome, evidence, 0.0)])
    wrong = evidence.kind == kind
    tp, pred_cls = outcome.tp.copy(), outcome.pred_cls.copy()
    free = unfound_labels(outcome, evidence, 0.0)
    candidates = np.flatnonzero(np.append(free, False)[evidence.target])
    candidates = candidates[np.argsort(-outcome.conf[candidates], kind="stable")]
    first = candidates[np.unique(evidence.target[candidates], return_index=True)[1]]
    repaired = first[wrong[first]]
    tp[repaired], pred_cls[repaired] = True, outcome.target_cls[evidence.target[repaired]]
    keep = ~wrong
    keep[repaired] = True
    repaired_outcome = outcome._replace(tp=tp, pred_cls=pred_cls).take(keep)
    return repaired_outcome.take(repaired_outcome.rank()) if kind == CLASSIFICATION else repaired_outcome


def map50(outcome: Outcome, classes: np.ndarray) -> float:
    """Return the mean AP at IoU 0.5 of a ranked outcome over classes with labels or detections, 0 without any."""
    labels = np.bincount(outcome.target_cls.astype(np.int64), minlength=int(classes.max(initial=-1)) + 1)[classes]
    any_left = (labels > 0) | np.isin(classes, np.unique(outcome.pred_cls))
    at_half = outcome._replace(tp=outcome.tp[:, :1], ignored=outcome.ignored[:, :1])
    ap = class_aps(at_half, classes[any_left], labels[any_left])
    return float(ap.mean()) if len(ap) else 0.0


def cost_of_errors(
    outcome: Outcome, evidence: Evidence, confidence: float
) -> tuple[list[ErrorResult], ErrorResult, ErrorResult]:
    """Return the errors of each of KINDS, all false positives, and all false negatives. outcome: ranked."""
    classes = np.unique(outcome.target_cls.astype(np.int64))
    base = map50(outcome, classes)

    def result(name: str, rows: np.ndarray, repaired: Outcome) -> ErrorResult:
        confident = int((rows & (outcome.conf >= confidence)).sum())
        return ErrorResult(name, int(rows.sum()), confident, map50(repaired, classes) - base)

    def result_of_labels(
        name: str, find: Callable[[Outcome, Evidence, float], np.ndarray], repaired: Outcome
    ) -> ErrorResult:
        count, confident = (int(find(outcome, evidence, least).sum()) for least in (0.0, confidence))
        return ErrorResult(name, count, confident, map50(repaired, classes) - base)

    wrong, lost = evidence.kind != NO_ERROR, unfound_labels(outcome, evidence, 0.0)
    errors = [result(name, evidence.kind == k, repair(outcome, evidence, k)) for k, name in enumerate(KINDS[:MISSED])]
    errors.append(result_of_labels(KINDS[MISSED], missed_labels, repair(outcome, evidence, MISSED)))
    all_found = outcome._replace(target_cls=outcome.target_cls[~lost])
    return (
        errors,
        result("false positives", wrong, outcome.take(~wrong)),
        result_of_labels("false negatives", unfound_labels, all_found),
    )


def count_by_class(outcome: Outcome, evidence: Evidence, num_classes: int, confidence: float) -> np.ndarray:
    """Return the errors (C, 6) of each class and kind with at least this confidence."""
    counts = np.zeros((num_classes, len(KINDS)), np.int64)
    rows = (evidence.kind != NO_ERROR) & (outcome.conf >= confidence)
    np.add.at(counts, (outcome.pred_cls[rows].astype(np.int64), evidence.kind[rows]), 1)
    missed = outcome.target_cls[missed_labels(outcome, evidence, confidence)].astype(np.int64)
    np.add.at(counts, (missed, np.full_like(missed, MISSED)), 1)
    return counts


def count_by_image(outcome: Outcome, evidence: Evidence, confidence: float) -> list[ImageResult]:
    """Return the counts of each image at a confidence."""
    sure = outcome.conf >= confidence
    correct = outcome.tp[:, 0] & sure
    wrong = (evidence.kind != NO_ERROR) & sure
    images = np.repeat(np.arange(len(evidence.paths)), evidence.num_detections)
    count = len(evidence.paths)
    tp, fp = (np.bincount(images[rows], minlength=count) for rows in (correct, wrong))
    return [
        ImageResult(path, *map(int, counts))
        for path, *counts in zip(evidence.paths, tp, fp, evidence.num_labels - tp, strict=True)
    ]
