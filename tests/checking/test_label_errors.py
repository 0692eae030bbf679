"""Scores of label errors: tables of small cases, and plain loops as a reference."""

import math

import numpy as np
import pytest

from utils.checking.label_errors import (
    CLASS,
    MISSING,
    SAME_OBJECT,
    SHIFTED,
    SPURIOUS,
    TOUCHING,
    LabelError,
    compare,
    find_errors,
    image_quality,
    rank_errors,
    soft_minimum,
    usual_of,
)

SHAPE = (100, 200)
BOX = (20.0, 20.0, 60.0, 60.0)
FAR = (140.0, 20.0, 180.0, 60.0)


def label(cls: int, box=BOX) -> list[float]:
    x1, y1, x2, y2 = box
    return [cls, (x1 + x2) / 400, (y1 + y2) / 200, (x2 - x1) / 200, (y2 - y1) / 100]


def found(cls: int, confidence: float, box=BOX) -> list[float]:
    return [*box, confidence, cls]


def evidence(labels, rows, ignored=()):
    labels, ignored = (np.array(part, np.float32).reshape(-1, 5) for part in (labels, ignored))
    return compare(labels, np.array(rows, np.float32).reshape(-1, 6), SHAPE, num_classes=3, ignored=ignored)


def errors_of(labels, rows) -> list[LabelError]:
    """Return the errors of an image in a set whose other labels are right: their overlap is 0.8, all are found."""
    usual = usual_of([evidence([label(k)], [found(k, 0.9, (20, 20, 60, 52))]) for k in (0, 1, 2)] * 100, 3)
    return rank_errors(find_errors(evidence(labels, rows), usual, 7))


@pytest.mark.parametrize(
    "labels, rows, kind",
    [
        ([], [], None),  # an empty image
        ([label(0)], [found(0, 0.9)], None),  # all is well
        ([label(0)], [found(0, 0.9, (22, 20, 62, 60))], None),  # a little beside
        ([label(0)], [found(0, 0.9), found(0, 0.02, FAR)], None),  # the model doubts that something is there
        ([], [found(0, 0.9)], MISSING),
        ([label(0)], [found(0, 0.9), found(1, 0.8, FAR)], MISSING),
        ([label(0)], [found(1, 0.9)], CLASS),
        ([label(0)], [found(0, 0.1), found(1, 0.8)], CLASS),  # both classes at one box
        ([label(0), label(1)], [found(0, 0.9), found(1, 0.8)], None),  # two objects in one place
        ([label(0)], [found(0, 0.9, (40, 20, 80, 60))], SHIFTED),  # half a side
        ([label(0)], [found(0, 0.9, (40, 20, 80, 60)), found(0, 0.03, (24, 20, 64, 60))], SHIFTED),  # and a doubt
        ([label(0), label(1, FAR)], [found(1, 0.9, FAR)], SPURIOUS),
    ],
)
def test_the_likeliest_error(labels, rows, kind):
    likely = [error for error in errors_of(labels, rows) if error.score > 0.5]
    assert [error.kind for error in likely] == ([] if kind is None else [kind])
    assert all(0 <= error.score <= 1 and error.image == 7 for error in errors_of(labels, rows))


def test_an_error_names_what_is_given_and_what_is_found():
    (error,) = errors_of([label(0)], [found(1, 0.75)])
    assert (error.label, error.given_class, error.found_class) == (0, 0, 1)
    assert error.given_xyxy == pytest.approx(BOX, abs=1e-3)
    assert error.confidence == pytest.approx(0.75)
    (error,) = errors_of([], [found(2, 0.75, FAR)])
    assert (error.label, error.given_class, error.given_xyxy, error.found_class) == (None, None, None, 2)
    assert error.found_xyxy == FAR and error.score == pytest.approx(0.75)


def test_a_neighbour_of_another_class_says_nothing():
    """Two objects overlap by more than half. Each is labelled and found, so none has the wrong class."""
    beside = (32.0, 20.0, 72.0, 60.0)
    rows = [found(0, 0.6), found(1, 0.9, beside)]
    assert not [one for one in errors_of([label(0), label(1, beside)], rows) if one.score > 0.1]


def test_a_second_box_of_a_labelled_object_is_hardly_missing():
    doubled = errors_of([label(0)], [found(0, 0.9), found(0, 0.8, (20, 20, 60, 42))])
    alone = errors_of([label(0)], [found(0, 0.9), found(0, 0.8, FAR)])
    assert doubled[0].score < 0.4 < 0.7 < alone[0].score


@pytest.mark.parametrize(
    "region, count",
    [
        ((15, 15, 100, 65), 0),  # a crowd around it
        ((38, 0, 200, 100), 0),  # half of it
        ((45, 0, 200, 100), 1),  # less than half
    ],
)
def test_nothing_is_missing_in_a_crowd(region, count):
    one = evidence([], [found(0, 0.9)], [label(0, region)])
    assert len(find_errors(one, usual_of([one], 3), 0)) == count


def random_case(rng: np.random.Generator):
    def boxes(count):
        low = rng.uniform(0, 60, (count, 2))
        return np.concatenate((low, low + rng.uniform(10, 60, (count, 2))), 1)

    labels = [label(int(rng.integers(3)), box) for box in boxes(int(rng.integers(0, 9)))]
    rows = [found(int(rng.integers(3)), float(rng.uniform(0.01, 1)), box) for box in boxes(int(rng.integers(0, 12)))]
    rows += [[*row[:4], float(rng.uniform(0.01, 1)), (row[5] + 1) % 3] for row in rows if rng.random() < 0.3]
    return labels, rows


def iou(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("seed", range(20))
def test_the_evidence_is_that_of_plain_loops(seed):
    labels, rows = random_case(np.random.default_rng(seed))
    one = evidence(labels, rows)
    rows = np.array(rows, np.float32).reshape(-1, 6)
    objects = []  # highest confidence first, none that covers another
    for row in sorted(rows.tolist(), key=lambda row: -row[4]):
        if all(iou(row, other) <= 0.6 for other in objects):
            objects.append(row)
    np.testing.assert_allclose(one.objects, np.array(objects).reshape(-1, 6), atol=1e-6)
    for i, own in enumerate(one.boxes):
        for k in range(3):
            confidences = [
                row[4]
                for row in rows
                if row[5] == k
                and iou(own, row) >= SAME_OBJECT
                and not any(
                    iou(other, row) > iou(own, row) + 1e-6
                    for j, other in enumerate(one.boxes)
                    if one.classes[j] == k and j != i
                )
            ]
            assert one.class_confidence[i, k] == pytest.approx(max(confidences, default=0))
    pairs = sorted(
        (-iou(own, row) * row[4], i, j)
        for i, own in enumerate(one.boxes)
        for j, row in enumerate(objects)
        if iou(own, row) >= (TOUCHING if row[5] == one.classes[i] else SAME_OBJECT)
    )
    expected: dict[int, int] = {}
    for _, i, j in pairs:
        if i not in expected and j not in expected.values():
            expected[i] = j
    assert one.object_of == expected


def test_what_is_usual_follows_the_labels_of_each_class():
    images = [evidence([label(0)], [found(0, 0.9, (20, 20, 60, 20 + height))]) for height in (30, 32, 34)] * 10
    images += [evidence([label(1)], []) for _ in range(30)]
    usual = usual_of(images, 3)
    assert usual.overlap[0] == pytest.approx(0.8, abs=1e-3)
    assert usual.spread[0] == pytest.approx(0.05, abs=1e-3)
    assert usual.found[0] == pytest.approx(31 / 32)
    assert usual.found[1] == pytest.approx(1 / 32)
    assert usual.overlap[2] == pytest.approx(0.8, abs=1e-3)  # a class without labels: that of all


def test_no_label_at_all():
    usual = usual_of([], 2)
    assert np.isfinite([usual.overlap, usual.spread, usual.found]).all()


@pytest.mark.parametrize(
    "values, expected",
    [
        ([], 1),
        ([0.3], 0.3),
        ([0.2, 0.2], 0.2),
        ([0.0, 1.0], math.exp(0) / (math.exp(0) + math.exp(10))),  # temperature 0.1
    ],
)
def test_soft_minimum(values, expected):
    assert soft_minimum(values) == pytest.approx(expected, rel=1e-6)


def test_the_quality_of_an_image_is_that_of_its_worst_boxes():
    def error(kind: str, score: float) -> LabelError:
        return LabelError(kind, score, 0, 0, 0, BOX, 1, BOX, 0.9)

    assert image_quality([]) == 1
    assert image_quality([error(CLASS, 0.875)]) == pytest.approx(0.5)  # the cube root: the other two are flawless
    few, many = [error(MISSING, 0.9)], [error(MISSING, 0.9)] + [error(MISSING, 0.01)] * 20
    assert image_quality(many) < 0.7  # right boxes do not hide a wrong one
    assert image_quality(few) < image_quality([error(MISSING, 0.5)])


def test_errors_are_ranked_by_score():
    errors = errors_of([label(0)], [found(1, 0.6), found(2, 0.9, FAR)])
    assert [error.kind for error in errors] == [MISSING, CLASS]
