"""Non-maximum suppression against published vectors and against a greedy reference in plain loops."""

import json

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.nms import MAX_CANDIDATES, _threshold_of_float32, non_max_suppression

FIVE = torch.tensor(  # x, y, w, h, objectness, two classes
    [
        [50, 50, 20, 20, 0.9, 0.8, 0.6],
        [51, 50, 20, 20, 0.8, 0.9, 0.1],
        [100, 100, 10, 10, 0.5, 0.1, 0.4],
        [200, 200, 30, 30, 0.24, 1, 1],
        [50, 50, 20, 20, 0.3, 0.05, 0.9],
    ]
)[None]


def reference_nms(prediction, conf, iou, *, classes=None, agnostic=False, multi_label=False, max_det=300):
    """Return rows (x1, y1, x2, y2, confidence, class) of one image by loops in float32, ties in their order."""
    candidates = []
    for x, y, w, h, obj, *scores in prediction.numpy().astype(np.float32):
        scores = [s * obj for s in scores]
        best = int(np.argmax(scores))
        for c, score in enumerate(scores):
            wanted = (classes is None or c in classes) and (c == best or (multi_label and len(scores) > 1))
            if obj > conf and score > conf and wanted:
                candidates.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2, score, np.float32(c)))
    candidates = sorted(candidates, key=lambda row: -row[4])[:MAX_CANDIDATES]
    kept = []
    for row in candidates:
        rivals = [k for k in kept if agnostic or k[5] == row[5]]
        if all(float(overlap(row, k)) <= iou for k in rivals):
            kept.append(row)
    return np.array(kept[:max_det], dtype=np.float32).reshape(-1, 6)


def overlap(a, b):
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(across, np.float32(0)) * max(down, np.float32(0))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def random_prediction(seed, n, num_classes, size=200.0):
    rng = torch.Generator().manual_seed(seed)
    centre = torch.rand(n, 2, generator=rng) * size
    wh = torch.rand(n, 2, generator=rng) * size / 4 + 5
    return torch.cat((centre, wh, torch.rand(n, 1 + num_classes, generator=rng)), 1)


def assert_same_rows(got, expected, tolerance):
    """Compare row by row. Only rows with exactly equal confidence may change places."""
    assert got.shape == expected.shape
    assert got[:, 4] == pytest.approx(expected[:, 4], abs=tolerance)
    order = [np.lexsort((*rows[:, :4].round(2).T, rows[:, 5], -rows[:, 4])) for rows in (got, expected)]
    assert got[order[0]] == pytest.approx(expected[order[1]], abs=tolerance)


@pytest.mark.parametrize(
    "kwargs, expected",
    [
        ({}, [(40, 40, 60, 60, 0.72, 0), (40, 40, 60, 60, 0.27, 1)]),  # the best class of each box
        ({"multi_label": True}, [(40, 40, 60, 60, 0.72, 0), (40, 40, 60, 60, 0.54, 1)]),
        ({"multi_label": True, "agnostic": True}, [(40, 40, 60, 60, 0.72, 0)]),
        ({"classes": [1]}, [(40, 40, 60, 60, 0.27, 1)]),
        ({"max_det": 1}, [(40, 40, 60, 60, 0.72, 0)]),
        ({"max_det": 0}, []),
        ({"conf_thres": 0.9}, []),  # objectness must exceed it, 0.9 does not
    ],
)
def test_published_rows(kwargs, expected):
    rows = non_max_suppression(FIVE, **kwargs)[0]
    assert rows.shape == (len(expected), 6)
    assert rows.numpy() == pytest.approx(np.array(expected).reshape(-1, 6), abs=1e-5)


def test_published_low_threshold():
    rows = non_max_suppression(FIVE, 0.001, 0.6, multi_label=True)[0]
    got = sorted((round(float(r[4]), 4), int(r[5])) for r in rows)
    assert got == [(0.05, 0), (0.2, 1), (0.24, 0), (0.24, 1), (0.54, 1), (0.72, 0)]


def test_labels_join_with_confidence_one():
    labels = [torch.tensor([[1.0, 50, 50, 20, 20]])]
    rows = non_max_suppression(FIVE, labels=labels)[0]
    assert rows.tolist() == [pytest.approx((40, 40, 60, 60, 1, 1)), pytest.approx((40, 40, 60, 60, 0.72, 0))]
    empty = non_max_suppression(FIVE[:, :0], labels=labels)[0]  # labels alone
    assert empty.tolist() == [[40, 40, 60, 60, 1, 1]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"multi_label": True, "max_det": 20},
        {"agnostic": True},
        {"classes": [0, 3]},
        {"multi_label": True, "classes": [2], "agnostic": True},
    ],
    ids=str,
)
def test_agrees_with_the_reference(seed, kwargs):
    prediction = random_prediction(seed, 150, 4)
    for conf, iou in ((0.001, 0.6), (0.25, 0.45), (0.5, 0.0), (0.1, 1.0)):
        rows = non_max_suppression(prediction[None], conf, iou, **kwargs)[0].numpy()
        assert_same_rows(rows, reference_nms(prediction, conf, iou, **kwargs), 1e-4)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_growing_blocks_change_nothing(num_classes):
    """Few of many candidates are kept in the first block, so the rest is processed too."""
    prediction = random_prediction(7, 2500, num_classes, size=60.0)
    rows = non_max_suppression(prediction[None], 0.01, 0.3, multi_label=True, max_det=50)[0].numpy()
    expected = reference_nms(prediction, 0.01, 0.3, multi_label=True, max_det=50)
    assert_same_rows(rows, expected, 1e-4)
    everything = non_max_suppression(prediction[None], 0.01, 0.3, multi_label=True, max_det=100_000)[0].numpy()
    assert np.array_equal(everything[:50], rows)


def test_images_do_not_affect_each_other():
    images = torch.stack([random_prediction(seed, 60, 3) for seed in range(3)])
    images[1, :, 4] = 0  # no objects in this one
    together = non_max_suppression(images)
    assert [len(rows) for rows in together][1] == 0
    for rows, image in zip(together, images):
        assert torch.equal(rows, non_max_suppression(image[None])[0])


@pytest.mark.parametrize("far", [0.0, 7680.0, 100_000.0])
def test_images_of_any_size(far):
    """Two boxes of different classes stay at any distance. Two of the same class do not."""
    boxes = torch.tensor([[50 + far, 50, 20, 20, 0.9, 1, 0], [50, 50, 20, 20, 0.8, 0, 1], [50, 50, 20, 22, 0.7, 0, 1]])
    rows = non_max_suppression(boxes[None])[0]
    assert rows[:, 4].tolist() == pytest.approx([0.9, 0.8])


def test_many_classes_lose_no_precision():
    """IoU 0.4501 is above 0.45 for class 4999 as for class 0, although its boxes are shifted far away."""
    shift = 100 * (1 - 0.4501) / (1 + 0.4501)
    for cls in (0, 4999):
        prediction = torch.zeros(1, 2, 5 + 5000)
        prediction[0, :, :5] = torch.tensor([[300.0, 50, 100, 100, 0.9], [300 + shift, 50, 100, 100, 0.8]])
        prediction[0, :, 5 + cls] = 1
        assert len(non_max_suppression(prediction, 0.25, 0.45)[0]) == 1
        assert len(non_max_suppression(prediction, 0.25, 0.4502)[0]) == 2


@pytest.mark.parametrize("iou, kept", [(0.5, 2), (0.6, 1)], ids=["1/2 is not above 0.5", "float32(3/5) is above 0.6"])
def test_overlaps_equal_to_the_threshold_follow_float32(iou, kept):
    width = {0.5: (1.0, 2.0), 0.6: (3.0, 5.0)}[iou]
    boxes = torch.tensor([[w / 2, 5, w, 10, score, 1] for w, score in zip(width, (0.9, 0.8))])
    assert len(non_max_suppression(boxes[None], 0.25, iou)[0]) == kept
    assert len(reference_nms(boxes, 0.25, iou)) == kept


def test_candidates_beyond_the_limit_are_the_least_sure():
    n = MAX_CANDIDATES + 2000
    prediction = torch.zeros(n, 6)
    prediction[:, 0], prediction[:, 1] = torch.arange(n) % 200 * 10.0, torch.arange(n) // 200 * 10.0
    prediction[:, 2:4], prediction[:, 5] = 5.0, 1.0  # none touches another
    prediction[:, 4] = torch.linspace(0.3, 0.9, n)[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    rows = non_max_suppression(prediction[None], max_det=n)[0]
    expected = prediction[:, 4].sort(descending=True).values[:MAX_CANDIDATES]
    assert torch.equal(rows[:, 4], expected)


def test_empty_inputs_and_outputs():
    assert [tuple(rows.shape) for rows in non_max_suppression(torch.zeros(2, 0, 8))] == [(0, 6), (0, 6)]
    rows = non_max_suppression((torch.zeros(1, 10, 8), ["raw"]))  # a model's output as it is
    assert [tuple(r.shape) for r in rows] == [(0, 6)] and rows[0].dtype == torch.float32


def test_boxes_that_are_not_finite_never_come_back():
    bad = torch.tensor([[float("nan"), 5, 5, 5, 1, 1], [5, 5, float("inf"), 5, 1, 1], [50, 50, 9, 9, float("nan"), 1]])
    good = torch.tensor([[60.0, 60, 9, 9, 0.9, 1]])
    assert len(non_max_suppression(torch.cat((bad, good))[None])[0]) == 1


def test_half_precision_input():
    half = random_prediction(3, 200, 5)[None].half()
    assert torch.equal(non_max_suppression(half)[0], non_max_suppression(half.float())[0])


@pytest.mark.parametrize("kwargs, flag", [({"conf_thres": 1.5}, "--conf-thres"), ({"iou_thres": -0.1}, "--iou-thres")])
def test_thresholds_outside_their_range(kwargs, flag):
    with pytest.raises(UserError, match=f"{flag} .* outside 0...1"):
        non_max_suppression(FIVE, **kwargs)


CASES = ["plain", "single_label", "multi_label", "agnostic", "classes", "one_class", "nothing"]


@pytest.mark.parametrize("case", CASES)
def test_golden(reference, case):
    golden = np.load(reference / "golden" / "nms.npz")
    kwargs = json.loads(str(golden[f"{case}.kw"]))
    results = non_max_suppression(torch.tensor(golden[f"{case}.in"]).float(), **kwargs)
    for i, rows in enumerate(results):
        assert_same_rows(rows.numpy(), golden[f"{case}.out{i}"], 1e-4)


def test_a_limit_that_is_rounded_to_float32_parts_ties_alike():
    """torchvision's kernel for GPUs compares an IoU in float64 with the limit in float32."""
    for part in range(1, 20):
        for whole in range(part + 1, 41):
            limit = part / whole
            iou = np.float64(part) / whole  # exactly at the limit
            wanted = bool(float(np.float32(iou)) > limit)
            assert (iou > float(np.float32(_threshold_of_float32(limit, on_gpu=True)))) == wanted, (part, whole)
            assert (iou > _threshold_of_float32(limit)) == wanted, (part, whole)


# ---- thresholds by class


def test_each_class_has_its_threshold_before_the_suppression():
    """A box below the threshold of its class neither remains nor suppresses, also across classes."""
    rows = torch.tensor(
        [
            [50, 50, 20, 20, 1.0, 0.5, 0.0],  # below that of class 0
            [51, 50, 20, 20, 1.0, 0.0, 0.4],  # above that of class 1, and overlaps the first
            [90, 90, 10, 10, 1.0, 0.6, 0.1],
            [20, 20, 10, 10, 1.0, 0.3, 0.29],  # its best class is below, its other one above
        ]
    )

    def found(**settings):
        rows_found = non_max_suppression(rows[None], (0.55, 0.25), 0.45, **settings)[0]
        return [(round(float(row[4]), 3), int(row[5])) for row in rows_found]

    assert found() == found(agnostic=True) == [(0.6, 0), (0.4, 1)]
    assert found(multi_label=True) == [(0.6, 0), (0.4, 1), (0.29, 1)]
    assert found(classes=[1]) == [(0.4, 1)] and found(classes=[0]) == [(0.6, 0)]
    assert found(max_det=1) == [(0.6, 0)]


@pytest.mark.parametrize("settings", [{}, {"multi_label": True}, {"agnostic": True}, {"classes": [0, 3]}])
def test_equal_thresholds_of_all_classes_are_one_number(settings):
    prediction = torch.rand(2, 400, 5 + 4, generator=torch.Generator().manual_seed(3))
    prediction[..., :4] *= 100
    for one, other in zip(
        non_max_suppression(prediction, 0.3, 0.5, **settings),
        non_max_suppression(prediction, [0.3] * 4, 0.5, **settings),
        strict=True,
    ):
        assert len(one) > 3 and torch.equal(one, other)


def test_thresholds_are_those_of_a_filter_afterwards():
    """A box below its threshold suppresses only boxes of its class that are below it too."""
    prediction = torch.rand(1, 600, 5 + 3, generator=torch.Generator().manual_seed(5))
    prediction[..., :4] *= 60
    limits = torch.tensor([0.2, 0.5, 0.35])
    every = non_max_suppression(prediction, 0.0, 0.5, multi_label=True, max_det=10_000)[0]
    kept = every[every[:, 4] > limits[every[:, 5].long()]]
    found = non_max_suppression(prediction, limits.tolist(), 0.5, multi_label=True, max_det=10_000)[0]
    assert 10 < len(found) < len(every) and torch.equal(found, kept)


def test_a_threshold_of_a_class_outside_its_range_is_an_error():
    with pytest.raises(UserError, match="--conf-thres 1.5 is outside 0...1"):
        non_max_suppression(torch.zeros(1, 1, 7), [0.1, 1.5])
