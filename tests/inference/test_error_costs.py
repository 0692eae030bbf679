"""Kinds of errors, what each costs, and AP by size, compared with the published tools and with scenes by hand."""

from pathlib import Path

import numpy as np
import pytest

from utils.coco_eval import GroundTruth, evaluate_coco
from utils.diagnosis import KINDS
from utils.images.letterbox import Letterbox
from utils.inference import error_costs
from utils.inference.error_costs import (
    SIZES,
    Outcome,
    cost_of_errors,
    count_by_class,
    count_by_image,
    group_ap,
    is_of_size,
    map50,
    missed_labels,
)
from utils.inference.evidence import Evidence, HeadLevels, collect_evidence, relate
from utils.metrics import match_detections

STORED = Path(__file__).resolve().parents[1] / "golden" / "tide.npz"
# Of tidecv 1.0.1 (TIDE.BOX) for the stored set: errors, and the AP that each kind costs in percent.
PUBLISHED_AP = 16.008162626995507
PUBLISHED = {
    "classification": (37, 7.765260707360287),
    "localisation": (55, 17.169615570050045),
    "both": (21, 0.9954059270710651),
    "duplicate": (21, 0.6015625263743942),
    "background": (98, 2.04058427504901),
    "missed": (77, 13.45713855781035),
    "false positives": (232, 22.6056987591431),
    "false negatives": (116, 25.60122233120234),
}
NO_LEVELS = HeadLevels([], np.zeros((0, 0, 2)))
LABEL = (0, 0.0, 0, 100, 100)  # class, x1, y1, x2, y2


def stored_set() -> tuple[np.ndarray, np.ndarray]:
    """Return labels (image, class, x, y, w, h) and detections (likewise, confidence), no two of one confidence."""
    with np.load(STORED) as content:
        return content["labels"], content["detections"]


def gather(images: list[tuple[np.ndarray, np.ndarray]], levels: HeadLevels = NO_LEVELS) -> tuple[Outcome, Evidence]:
    """Return what a validation knows of the labels (class, xyxy) and detections (xyxy, confidence, class) of images."""
    correct, relations = [], []
    for known, found in images:
        correct.append(match_detections(found, known))
        relations.append(relate(found, known, correct[-1][:, 0], np.zeros(len(found), bool)))
    boxes = [Letterbox((640, 640), (1.0, 1.0), (0, 0))] * len(images)
    known, found = ([pair[k] for pair in images] for k in range(2))
    evidence = collect_evidence([f"{i}.jpg" for i in range(len(images))], boxes, found, known, relations, levels)
    rows, tp = np.concatenate(found), np.concatenate(correct)
    return Outcome(tp, np.zeros_like(tp), rows[:, 4], rows[:, 5], np.concatenate(known)[:, 0]), evidence


def gather_stored() -> tuple[Outcome, Evidence]:
    labels, detections = stored_set()
    images = []
    for image in range(int(max(labels[:, 0].max(), detections[:, 0].max())) + 1):
        known, found = (rows[rows[:, 0] == image, 1:] for rows in (labels, detections))
        found = found[np.argsort(-found[:, 5])]
        corners = (np.concatenate((rows[:, 1:3], rows[:, 1:3] + rows[:, 3:5]), 1) for rows in (known, found))
        boxes, found_boxes = corners
        images.append((np.c_[known[:, :1], boxes], np.c_[found_boxes, found[:, 5], found[:, 0]]))
    return ranked(*gather(images))


def ranked(outcome: Outcome, evidence: Evidence) -> tuple[Outcome, Evidence]:
    rows = outcome.rank()
    return outcome.take(rows), evidence.take(rows)


@pytest.fixture
def cocos_average(monkeypatch):
    """Let AP be COCO's mean of the best precision at 101 recalls. Ours falls to 0 at recall 1 in a line."""

    def average(recall: np.ndarray, precision: np.ndarray) -> float:
        best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
        return best[np.searchsorted(recall, np.linspace(0, 1, 101) - 1e-12)].mean()

    monkeypatch.setattr(error_costs, "average_precision", average)


def test_kinds_and_costs_are_those_of_the_published_tool(cocos_average):
    outcome, evidence = gather_stored()
    errors, positives, negatives = cost_of_errors(outcome, evidence, confidence=0.25)
    found = {error.kind: (error.count, 100 * error.cost) for error in (*errors, positives, negatives)}
    assert 100 * map50(outcome, np.arange(4)) == pytest.approx(PUBLISHED_AP, abs=1e-9)
    assert found.keys() == PUBLISHED.keys() and tuple(PUBLISHED)[:6] == KINDS
    for kind, (count, cost) in PUBLISHED.items():
        assert found[kind] == (count, pytest.approx(cost, abs=1e-9)), kind


def test_ap_by_size_is_that_of_coco(cocos_average):
    labels, detections = (rows.astype(float) for rows in stored_set())
    truth = {
        "images": [{"id": i} for i in range(60)],
        "categories": [{"id": i} for i in range(4)],
        "annotations": [
            {"id": k + 1, "image_id": int(image), "category_id": int(cls), "bbox": bbox}
            for k, (image, cls, *bbox) in enumerate(labels.tolist())
        ],
    }
    rows = [
        {"image_id": int(image), "category_id": int(cls), "bbox": bbox, "score": score}
        for image, cls, *bbox, score in detections.tolist()
    ]
    expected = evaluate_coco(GroundTruth.read(truth), rows)
    outcome, evidence = gather_stored()
    found = [
        group_ap(
            outcome, evidence.own_label, name, is_of_size(evidence.true_area, name), is_of_size(evidence.area, name)
        )
        for name in SIZES
    ]
    assert [group.labels for group in found] == [5, 144, 39]
    assert [group.map for group in found] == pytest.approx([expected.ap_small, expected.ap_medium, expected.ap_large])


@pytest.mark.parametrize(
    "detections, kinds",
    [
        ([], []),  # nothing found
        ([(0, 0, 100, 100, 0.9, 0)], [-1]),  # correct
        ([(0, 0, 100, 100, 0.9, 1)], [0]),  # the wrong class
        ([(0, 0, 100, 30, 0.9, 0)], [1]),  # IoU 0.3
        ([(0, 0, 100, 30, 0.9, 1)], [2]),  # IoU 0.3 and the wrong class
        ([(0, 0, 100, 100, 0.9, 0), (0, 0, 100, 90, 0.8, 0)], [-1, 3]),
        ([(0, 0, 100, 5, 0.9, 0)], [4]),  # IoU 0.05
        ([(200, 200, 300, 300, 0.9, 0)], [4]),
    ],
)
def test_each_kind_by_hand(detections, kinds):
    """A label is missed if neither a correct detection nor an error of class or place accounts for it."""
    outcome, evidence = gather([(np.array([LABEL]), np.array(detections, float).reshape(-1, 6))])
    assert evidence.kind.tolist() == kinds
    assert missed_labels(outcome, evidence, 0.0).tolist() == [not set(kinds) & {-1, 0, 1}]
    errors, positives, negatives = cost_of_errors(*ranked(outcome, evidence), 0.0)
    assert [error.count for error in errors[:5]] == [kinds.count(kind) for kind in range(5)]
    assert positives.count == sum(kind >= 0 for kind in kinds) and negatives.count == (-1 not in kinds)
    if set(kinds) & {0, 1}:
        assert sum(error.cost for error in errors) == pytest.approx(0.995)  # repaired, the label is found


def test_counts_are_taken_at_a_confidence():
    scene = np.array([LABEL]), np.array([(0, 0, 100, 100, 0.9, 0), (200, 0, 300, 99, 0.4, 1)], float)
    nothing = np.zeros((0, 5)), np.zeros((0, 6))
    outcome, evidence = gather([nothing, scene, scene])
    assert [tuple(image) for image in count_by_image(outcome, evidence, 0.5)] == [
        ("0.jpg", 0, 0, 0),
        ("1.jpg", 1, 0, 0),
        ("2.jpg", 1, 0, 0),
    ]
    assert [image.fp for image in count_by_image(outcome, evidence, 0.3)] == [0, 1, 1]
    assert [image.fn for image in count_by_image(outcome, evidence, 0.95)] == [0, 1, 1]
    assert count_by_class(outcome, evidence, 2, 0.3).tolist() == [[0] * 6, [0, 0, 0, 0, 2, 0]]
    assert count_by_class(outcome, evidence, 2, 0.95).tolist() == [[0, 0, 0, 0, 0, 2], [0] * 6]


def test_parts_join_as_if_they_were_one():
    labels, detections = (
        np.array([LABEL, (1, 0, 0, 50, 50)]),
        np.array([(0, 0, 100, 30, 0.9, 0), (0, 0, 50, 50, 0.8, 0)]),
    )
    whole = gather([(labels, detections)] * 3)[1]
    joined = Evidence.join([gather([(labels, detections)] * count)[1] for count in (2, 1)])
    for name in ("num_labels", "own_label", "kind", "target", "area", "level", "true_area", "true_level"):
        assert getattr(joined, name).tolist() == getattr(whole, name).tolist(), name


def test_the_level_has_the_anchor_that_fits_best():
    anchors = np.array([[[10, 13], [16, 30]], [[30, 61], [62, 45]], [[116, 90], [373, 326]]], np.float32)
    sizes = np.random.default_rng(0).uniform(2, 600, (200, 2))
    expected = [
        min(range(3), key=lambda k: min(max(w / a, a / w, h / b, b / h) for a, b in anchors[k].tolist()))
        for w, h in sizes.tolist()
    ]
    assert HeadLevels([8, 16, 32], anchors).fit(sizes).tolist() == expected and len(set(expected)) == 3
    assert HeadLevels([8, 16, 32], anchors).fit(np.zeros((1, 2))).tolist() == [0]
    assert NO_LEVELS.fit(sizes).tolist() == [0] * 200 and NO_LEVELS.fit(sizes[:0]).shape == (0,)
