"""Matching, average precision, curves and confusion matrix against published vectors and plain loops."""

import json

import numpy as np
import pytest
import torch

from utils.config import TrainOptions
from utils.errors import UserError
from utils.metrics import (
    GRID,
    IOU_LEVELS,
    ConfusionMatrix,
    Fitness,
    Metrics,
    ap_per_class,
    average_precision,
    best_f1_by_class,
    fitness,
    match_detections,
    match_regions,
    metrics_and_curves,
    smooth,
)

LABELS = torch.tensor([[0, 0, 0, 100, 100], [0, 50, 50, 150, 150], [1, 200, 200, 260, 260]])
DETECTIONS = torch.tensor(
    [
        [10, 10, 110, 110, 0.95, 0],
        [0, 0, 100, 100, 0.9, 0],
        [5, 5, 100, 100, 0.8, 0],
        [48, 52, 150, 150, 0.7, 0],
        [200, 200, 262, 262, 0.6, 1],
        [200, 200, 261, 261, 0.5, 0],
    ]
)
RANKING = dict(  # six detections and five labels of two classes
    tp=np.array([[1] * 10, [1] * 8 + [0] * 2, [0] * 10, [1] * 5 + [0] * 5, [0] * 10, [1] * 10], dtype=bool),
    conf=np.array([0.95, 0.9, 0.8, 0.7, 0.4, 0.3]),
    pred_cls=np.array([0, 1, 0, 0, 1, 1]),
    target_cls=np.array([0, 0, 0, 1, 1]),
)
NOTHING = dict(tp=np.zeros((0, 10), bool), conf=np.zeros(0), pred_cls=np.zeros(0))


def reference_matches(detections, labels, level):
    """Match each detection to its best label of its class, each label to its highest confidence, by loops."""
    taken, correct = set(), []
    for *box, _, cls in detections.tolist():
        overlaps = [box_iou(box, other) if c == cls else 0.0 for c, *other in labels.tolist()]
        best = int(np.argmax(overlaps)) if overlaps else -1
        hit = bool(overlaps) and overlaps[best] >= level and best not in taken
        taken |= {best} if hit else set()
        correct.append(hit)
    return np.array(correct, dtype=bool)


def box_iou(a, b):
    across, down = max(0, min(a[2], b[2]) - max(a[0], b[0])), max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return across * down / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - across * down)


def reference_ap(recall, precision):
    """Sum the highest precision at each recall or beyond, on straight lines that end in (1, 0)."""
    x, y = [0.0, *recall, 1.0], [1.0, *precision, 0.0]
    y = [max(y[i:]) for i in range(len(y))]

    def height(r):
        for i in reversed(range(len(x))):
            if x[i] <= r:
                return y[i] if i == len(x) - 1 else y[i] + (y[i + 1] - y[i]) * (r - x[i]) / (x[i + 1] - x[i])

    return sum((height(i / 100) + height((i + 1) / 100)) / 200 for i in range(100))


def random_image(rng, n, m):
    def boxes(k):
        corner = rng.uniform(0, 60, (k, 2))
        return np.concatenate((corner, corner + rng.uniform(20, 40, (k, 2))), 1)

    labels = np.concatenate((rng.integers(0, 2, (m, 1)), boxes(m)), 1)
    conf = np.sort(rng.uniform(0, 1, n))[::-1, None]
    return np.concatenate((boxes(n), conf, rng.integers(0, 2, (n, 1))), 1), labels


def test_fitness():
    assert fitness(0.7, 0.6, 0.5, 0.3) == pytest.approx(0.32)
    assert fitness(0.5, 0.6, 0.7, 0.4) == pytest.approx(0.43)


def test_matching_of_published_boxes():
    correct = match_detections(DETECTIONS, LABELS)
    expected = np.zeros((6, 10), bool)
    expected[0, :4] = True  # that of highest confidence takes the label up to IoU 0.65
    expected[1, 4:] = True  # beyond, the next one
    expected[3] = True
    expected[4, :9] = True
    assert np.array_equal(correct, expected)


@pytest.mark.parametrize("n, m", [(0, 0), (0, 3), (4, 0)])
def test_matching_of_nothing(n, m):
    correct = match_detections(DETECTIONS[:n], LABELS[:m])
    assert correct.shape == (n, 10) and not correct.any()


@pytest.mark.parametrize("seed", range(10))
def test_matching_agrees_with_the_reference(seed):
    detections, labels = random_image(np.random.default_rng(seed), 40, 12)
    correct = match_detections(detections, labels)
    for i, level in enumerate(IOU_LEVELS):
        assert np.array_equal(correct[:, i], reference_matches(detections, labels, level))
    assert correct.any()


@pytest.mark.parametrize(
    "recall, precision, expected",
    [
        ([], [], 0.5),  # the straight line from (0, 1) to (1, 0); callers return 0 instead
        ([0.5], [1], 0.75),
        ([1], [1], 0.995),  # perfect, less the drop at recall 1
        ([0.25, 0.25, 0.5, 0.75], [1, 0.5, 2 / 3, 0.75], 0.7175),
        ([0.5, 0.5, 1], [1, 0.5, 2 / 3], 0.828333),
        ([0, 0], [0, 0], 0.0),
    ],
)
def test_average_precision(recall, precision, expected):
    assert average_precision(np.array(recall), np.array(precision)) == pytest.approx(expected, abs=1e-6)
    assert reference_ap(recall, precision) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_agrees_with_the_reference(seed):
    hits = np.random.default_rng(seed).random(30) < 0.6
    recall, precision = hits.cumsum() / 25, hits.cumsum() / np.arange(1, 31)
    assert average_precision(recall, precision) == pytest.approx(reference_ap(recall, precision), abs=1e-9)


def test_published_classes():
    got = ap_per_class(**RANKING)
    assert got.classes.tolist() == [0, 1]
    assert got.p == pytest.approx([2 / 3, 2 / 3], abs=1e-4) and got.r == pytest.approx([2 / 3, 1], abs=1e-4)
    assert got.f1 == pytest.approx([2 / 3, 0.8], abs=1e-4)
    assert got.tp.tolist() == [2, 2] and got.fp.tolist() == [1, 1]
    assert got.ap[0] == pytest.approx([0.6672] * 5 + [0.44555] * 5, abs=1e-4)
    assert got.ap[1] == pytest.approx([0.828333] * 8 + [0.25] * 2, abs=1e-4)


@pytest.mark.parametrize("target_cls", [[], [0, 0, 3]], ids=["no labels", "labels"])
def test_nothing_found(target_cls):
    classes = sorted(set(target_cls))
    got = ap_per_class(**NOTHING, target_cls=target_cls)
    assert got.classes.tolist() == classes and got.ap.shape == (len(classes), 10)
    assert all(not part.any() and part.shape == (len(classes),) for part in got[:5]) and not got.ap.any()
    _, curves = metrics_and_curves(**NOTHING, target_cls=target_cls)
    assert curves.f1.shape == curves.precision_at_recall.shape == (len(classes), 1000) and not curves.f1.any()


def test_detections_of_a_class_without_labels_are_ignored():
    more = {**RANKING, "tp": np.vstack((RANKING["tp"], np.zeros((5, 10), bool)))}
    more["conf"] = np.append(RANKING["conf"], np.full(5, 0.99))
    more["pred_cls"] = np.append(RANKING["pred_cls"], np.full(5, 7))
    for a, b in zip(ap_per_class(**more), ap_per_class(**RANKING)):
        assert np.array_equal(a, b)


def test_order_of_the_detections_does_not_matter():
    order = np.random.default_rng(0).permutation(6)
    shuffled = {k: v[order] if k != "target_cls" else v for k, v in RANKING.items()}
    assert ap_per_class(**shuffled).ap == pytest.approx(ap_per_class(**RANKING).ap)


def test_curves_over_the_confidence():
    _, curves = metrics_and_curves(**RANKING)
    one = np.searchsorted(curves.confidence, 0.97)  # above any confidence
    assert curves.recall[:, one].tolist() == [0, 0] and curves.precision[:, one].tolist() == [1, 1]
    assert curves.recall[:, 0] == pytest.approx([2 / 3, 1]) and curves.precision[:, 0] == pytest.approx([2 / 3, 2 / 3])
    best = np.searchsorted(curves.confidence, curves.best_confidence)
    assert ap_per_class(**RANKING).p == pytest.approx(curves.precision[:, best])
    assert curves.precision_at_recall[:, 0] == pytest.approx([1, 1]) and curves.precision_at_recall[0, -1] == 0


def test_curves_have_a_row_for_every_class_with_labels():
    """A class without detections keeps its row, so that names stay with their curves."""
    _, curves = metrics_and_curves(**{**RANKING, "target_cls": np.array([0, 0, 0, 1, 1, 2, 0])})
    assert curves.classes.tolist() == [0, 1, 2] and curves.precision_at_recall[1].any()
    assert not curves.precision_at_recall[2].any() and not curves.f1[2].any()


def test_thresholds_are_where_the_f1_of_each_class_is_highest():
    """Class 0 is found at 0.7 and above, and wrong below. Class 1 is found at 0.5 and 0.4. Class 2 is never found."""
    conf = np.array([0.95, 0.94, 0.93, 0.9, 0.8, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1])
    pred_cls = np.array([1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0])
    correct = np.isin(conf, (0.9, 0.8, 0.7, 0.5, 0.4))
    metrics = Metrics.from_statistics(
        np.repeat(correct[:, None], 10, 1), conf, pred_cls, [0, 0, 0, 1, 1, 2], num_classes=3,
        confusion=ConfusionMatrix(3), images=1,
    )  # fmt: skip
    best = best_f1_by_class(metrics.curves)
    assert best.classes.tolist() == [0, 1] == [*metrics.thresholds]
    assert 0.3 < best.confidence[0] < 0.7 and 0.1 < best.confidence[1] < 0.4
    for k, smoothed in enumerate(map(smooth, metrics.curves.f1[:2])):
        assert smoothed[np.searchsorted(GRID, best.confidence[k])] == pytest.approx(smoothed.max())
    assert metrics.thresholds == {k: round(float(best.confidence[k]), 3) for k in (0, 1)}
    assert (best.precision[0], best.recall[0]) == pytest.approx((1, 1), abs=0.2)
    lowest = Metrics.from_statistics(
        np.ones((1, 10), bool), [0.001], [0], [0], num_classes=1, confusion=ConfusionMatrix(1), images=1
    )
    assert lowest.thresholds == {0: 0.001}  # never 0, which all boxes of all images exceed


def test_smoothing():
    step = smooth((np.arange(1000) >= 400).astype(float))
    assert step[[349, 350, 399, 400]] == pytest.approx([0, 1 / 101, 0.49505, 0.50495], abs=1e-5)
    assert len(step) == 1000 and smooth(np.ones(1000)) == pytest.approx(np.ones(1000))


def test_confusion_of_published_boxes():
    confusion = ConfusionMatrix(2)
    confusion.update(DETECTIONS, LABELS)
    assert confusion.matrix.tolist() == [[2, 1, 2], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    "detections, labels, expected",
    [
        ([], [], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ([], LABELS, [[0, 0, 0], [0, 0, 0], [2, 1, 0]]),  # all missed
        ([[300, 300, 400, 400, 0.9, 0]], LABELS, [[0, 0, 1], [0, 0, 0], [2, 1, 0]]),  # nothing matched, still counted
        (
            [[0, 0, 9, 9, 0.9, 1], [0, 0, 9, 9, 0.2, 1]],
            [],
            [[0, 0, 0], [0, 0, 1], [0, 0, 0]],
        ),  # background; confidence too low
    ],
)
def test_every_false_positive_counts(detections, labels, expected):
    confusion = ConfusionMatrix(2)
    confusion.update(torch.as_tensor(detections).reshape(-1, 6), torch.as_tensor(labels).reshape(-1, 5))
    assert confusion.matrix.tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_confusion_counts_every_box_once(seed):
    detections, labels = random_image(np.random.default_rng(seed), 30, 10)
    confusion = ConfusionMatrix(2)
    confusion.update(detections, labels)
    assert confusion.matrix[:, :2].sum() == 10  # each label in the column of its class
    assert confusion.matrix[:2].sum() == (detections[:, 4] > 0.25).sum()
    assert confusion.matrix[2, 2] == 0


@pytest.mark.parametrize(
    "detections, labels, kind",
    [
        ([[0, 0, 9, 9, 0.9, 2]], [], "detection class 2"),
        ([], [[2, 0, 0, 9, 9]], "label class 2"),
        ([], [[-1, 0, 0, 9, 9]], "label class -1"),
    ],
)
def test_class_ids_out_of_range(detections, labels, kind):
    with pytest.raises(UserError, match=rf"{kind} is outside 0\.\.\.1"):
        ConfusionMatrix(2).update(torch.as_tensor(detections).reshape(-1, 6), torch.as_tensor(labels).reshape(-1, 5))


def test_metrics():
    metrics = Metrics.from_statistics(**RANKING, num_classes=4, images=3, confusion=ConfusionMatrix(4))
    map0, map1 = (0.6672 + 0.44555) / 2, 0.8 * 0.828333 + 0.2 * 0.25
    assert metrics.map50 == pytest.approx((0.6672 + 0.828333) / 2, abs=1e-4)
    assert metrics.map == pytest.approx((map0 + map1) / 2, abs=1e-4)
    assert metrics.maps == pytest.approx([map0, map1, metrics.map, metrics.map], abs=1e-4)
    assert metrics.fitness == fitness(metrics.precision, metrics.recall, metrics.map50, metrics.map)
    assert metrics.instances == 5 and metrics.best_confidence in GRID and metrics.losses == (0, 0, 0)


@pytest.mark.parametrize(
    "text, expected, formula",
    [
        ("0.1,0.9", 0.1 * 0.4 + 0.9 * 0.3, "0.1 mAP@0.5 + 0.9 mAP@0.5:0.95"),  # the default
        ("map", 0.3, "mAP@0.5:0.95"),
        ("map50", 0.4, "mAP@0.5"),
        ("f1", 2 * 0.8 * 0.2 / (0.8 + 0.2), "F1"),
        ("1, 0.5", 0.55, "mAP@0.5 + 0.5 mAP@0.5:0.95"),
    ],
)
def test_fitness_is_what_its_text_says(text, expected, formula):
    measure = Fitness.parse(text)
    assert measure(0.8, 0.2, 0.4, 0.3) == pytest.approx(expected) and str(measure) == formula
    assert measure(0, 0, 0, 0) == 0


@pytest.mark.parametrize("text", ["", "mAP", "0.5", "0.1,0.2,0.7", "0,0", "-1,2", "nan,1", "inf,1", "f1,map"])
def test_a_fitness_that_is_none_is_one_line(text):
    with pytest.raises(UserError, match=r"--fitness .*expected map, map50, f1, or weights .* such as 0.1,0.9$"):
        Fitness.parse(text)
    with pytest.raises(UserError, match="--fitness"):
        TrainOptions(fitness=text)


def test_metrics_of_nothing():
    metrics = Metrics.from_statistics(**NOTHING, target_cls=[], num_classes=2, images=0, confusion=ConfusionMatrix(2))
    assert (metrics.precision, metrics.recall, metrics.map50, metrics.map, metrics.fitness) == (0,) * 5
    assert metrics.maps.tolist() == [0, 0]


@pytest.mark.parametrize("wrong", [{"target_cls": [0, 9]}, {"pred_cls": np.full(6, 9)}])
def test_metrics_of_unknown_classes(wrong):
    with pytest.raises(UserError, match=r"class 9 is outside 0\.\.\.3"):
        Metrics.from_statistics(**{**RANKING, **wrong}, num_classes=4, images=1, confusion=ConfusionMatrix(4))


@pytest.fixture(scope="module")
def golden(golden_folder):
    with np.load(golden_folder / "ap.npz") as file:
        return dict(file)


def golden_classes(golden, rank):
    """Return our AP for detections in the order of `rank` (N,), with confidences without ties."""
    order = np.lexsort((rank, -golden["conf"]))
    distinct = np.linspace(1, 0.5, len(order))
    return ap_per_class(golden["tp"][order], distinct, golden["pred_cls"][order], golden["target_cls"])


def test_golden_rates_and_ap(golden, golden_folder):
    """The confidences have ties. The reference's own order of them, kept here, gives its numbers on every CPU."""
    order = np.array(json.loads((golden_folder / "ap_order.json").read_text()))
    assert (np.diff(golden["conf"][order]) <= 0).all() and sorted(order) == list(range(len(order)))
    detections = {name: golden[name][order] for name in ("tp", "conf", "pred_cls")}
    got = ap_per_class(**detections, target_cls=golden["target_cls"])
    for name, part in zip(("out_tp", "out_fp", "p", "r", "f1", "ap", "classes"), got, strict=True):
        assert part == pytest.approx(golden[name], abs=1e-6), name
    assert fitness(0.5, 0.6, 0.7, 0.4) == pytest.approx(golden["fitness"].item(), abs=1e-9)


def test_unsorted_detections_are_ranked_by_numpys_default_sort(golden):
    order = np.argsort(-golden["conf"])
    unsorted, ranked = (
        ap_per_class(
            **{name: golden[name][rows] for name in ("tp", "conf", "pred_cls")}, target_cls=golden["target_cls"]
        )
        for rows in (slice(None), order)
    )
    assert all(np.array_equal(*pair) for pair in zip(unsorted, ranked, strict=True))


def test_golden_ap_up_to_the_order_of_ties(golden):
    """The confidences have ties. The AP is between those with the correct ones first and last among equals."""
    hits = golden["tp"].sum(1)
    best, worst = golden_classes(golden, -hits).ap, golden_classes(golden, hits).ap
    assert (golden["ap"] <= best + 1e-6).all() and (golden["ap"] >= worst - 1e-6).all()
    assert np.abs(best - worst).max() < 0.1


def test_validation_ranks_ties_in_the_given_order_on_every_cpu(golden):
    """NumPy's default sort, which YOLOv5 uses, orders ties by what instructions the CPU has."""
    content = {name: golden[name] for name in ("tp", "conf", "pred_cls", "target_cls")}
    found = Metrics.from_statistics(**content, num_classes=80, images=1, confusion=ConfusionMatrix(80))
    wanted = golden_classes(golden, np.arange(len(golden["conf"]))).ap
    assert np.array_equal(found.per_class.ap, wanted)
    assert not np.allclose(wanted, golden["ap"], rtol=0, atol=1e-4), "the order of ties decides"
    order = np.argsort(-golden["conf"], kind="stable")
    sorted_before = {name: golden[name][order] for name in ("tp", "conf", "pred_cls")}
    assert np.array_equal(ap_per_class(**sorted_before, target_cls=golden["target_cls"]).ap, wanted)


# ---- ignored regions


@pytest.mark.parametrize(
    "detection, region, share",
    [
        ((0, 0, 10, 10, 0.9, 0), (0, 0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10, 0.9, 0), (0, 0, 0, 100, 100), 1.0),  # of the detection's area, not of the union
        ((0, 0, 10, 10, 0.9, 0), (0, 4, 0, 100, 100), 0.6),
        ((0, 0, 10, 10, 0.9, 0), (1, 0, 0, 100, 100), 0.0),  # of another class
        ((0, 0, 10, 10, 0.9, 0), (0, 10, 10, 20, 20), 0.0),
        ((5, 5, 5, 5, 0.9, 0), (0, 0, 0, 10, 10), 0.0),  # without area
    ],
)
def test_share_of_a_detection_in_a_region(detection, region, share):
    found = match_regions([detection], [region])
    assert found.tolist() == [[bool(level <= share) for level in IOU_LEVELS]]


def test_no_regions():
    assert not match_regions(DETECTIONS, []).any() and match_regions([], [(0, 0, 0, 1, 1)]).shape == (0, 10)


def test_ignored_detections_change_no_metric():
    """Detections that are ignored at all levels leave every AP as it was without them."""
    rng = np.random.default_rng(0)
    tp, conf = rng.random((50, 10)) < 0.6, np.sort(rng.random(50))[::-1]
    pred_cls, target_cls = rng.integers(0, 3, 50), rng.integers(0, 3, 40)
    without = metrics_and_curves(tp, conf, pred_cls, target_cls)[0]
    where = np.sort(rng.integers(1, 50, 30))
    ignored = np.insert(np.zeros((50, 10), bool), where, True, 0)
    arrays = [np.insert(tp, where, False, 0), np.insert(conf, where, conf[where], 0), np.insert(pred_cls, where, 1)]
    found, _ = metrics_and_curves(*arrays, target_cls, ignored)
    assert np.allclose(found.ap, without.ap, rtol=0, atol=1e-12)
    none, _ = metrics_and_curves(*arrays, target_cls)
    assert (none.ap <= without.ap + 1e-12).all() and (none.ap[1] < without.ap[1]).any()


@pytest.mark.long
def test_crowds_are_ignored_as_in_pycocotools():
    """pycocotools ignores the same detections at each level, on random images whose boxes do not compete for labels."""
    coco, scoring = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    for seed in range(100):
        rng = np.random.default_rng(seed)
        cells = [(x, y) for x in (0, 100, 200) for y in (0, 100)]
        labels = [[0, x + 20, y + 20, x + 60, y + 60] for x, y in cells[:3]]
        crowds = [[int(rng.integers(2)), x, y, x + 80, y + 80] for x, y in cells[3:]]
        boxes = [[x + 20, y + 20, x + 60, y + 60] for x, y in cells for _ in range(1 + ((x, y) in cells[3:]))]
        shifts = rng.integers(-40, 40, (len(boxes), 1)) * np.array([[1, 0, 1, 0]])
        found = np.column_stack([boxes + shifts, rng.permutation(len(boxes)) / 100, rng.integers(0, 2, len(boxes))])
        found = found[np.argsort(-found[:, 4])].astype(float)
        entries = [
            {"id": k + 1, "image_id": 1, "category_id": c, "iscrowd": int(k >= 3), "area": (x2 - x1) * (y2 - y1)}
            | {"bbox": [x1, y1, x2 - x1, y2 - y1]}
            for k, (c, x1, y1, x2, y2) in enumerate([*labels, *crowds])
        ]
        truth = coco.COCO()
        truth.dataset = {"images": [{"id": 1}], "annotations": entries, "categories": [{"id": 0}, {"id": 1}]}
        truth.createIndex()
        rows = [
            {"image_id": 1, "category_id": int(c), "score": s, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for x1, y1, x2, y2, s, c in found.tolist()
        ]
        scorer = scoring.COCOeval(truth, truth.loadRes(rows), "bbox")
        scorer.evaluate()
        correct = match_detections(found, labels)
        ignored = match_regions(found, crowds) & ~correct
        for category in (0, 1):
            theirs = scorer.evaluateImg(1, category, scorer.params.areaRng[0], 100)
            mine = found[:, 5] == category
            if theirs is None:
                assert not mine.any()
                continue
            assert np.array_equal(theirs["dtIgnore"].astype(bool), ignored[mine].T), seed
            assert np.array_equal((theirs["dtMatches"] > 0) & ~theirs["dtIgnore"].astype(bool), correct[mine].T)
