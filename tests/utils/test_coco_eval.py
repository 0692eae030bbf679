"""COCO's twelve metrics by hand, and against pycocotools on a thousand small random data sets."""

import contextlib
import copy
import io
import math

import numpy as np
import pytest

from utils import coco_eval
from utils.coco_eval import CocoMetrics, GroundTruth, evaluate_coco
from utils.errors import UserError

BOX = [10, 10, 20, 20]  # 400 px²: small


def content(labels, images=(1, 2), categories=(1, 2)):
    """Return COCO annotations of labels (image, category, bbox) or (..., further fields)."""
    rows = []
    for number, (image, category, bbox, *more) in enumerate(labels, 1):
        row = {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": bbox,
            "area": bbox[2] * bbox[3],
            "iscrowd": 0,
        }
        rows.append(row | (more[0] if more else {}))
    return {"images": [{"id": i} for i in images], "categories": [{"id": i} for i in categories], "annotations": rows}


def results(rows):
    names = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(names, row)) for row in rows]


def metrics(labels, detections, **settings):
    return evaluate_coco(GroundTruth.read(content(labels)), results(detections), **settings)


def reference(truth, detections, images=None, by_category=True):
    """Return the metrics of pycocotools, and the table that it prints."""
    coco, scoring = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    known, printed = coco.COCO(), io.StringIO()
    known.dataset = {"info": {}, **copy.deepcopy(truth)}
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        found = scoring.COCOeval(known, known.loadRes(copy.deepcopy(detections)), "bbox")
        if images is not None:
            found.params.imgIds = list(images)
        found.params.useCats = int(by_category)
        found.evaluate()
        found.accumulate()
        with contextlib.redirect_stdout(printed):
            found.summarize()
    return found.stats, printed.getvalue()


# ---- by hand


LARGER = dict.fromkeys(("ap_medium", "ap_large", "ar_medium", "ar_large"), -1)  # all boxes by hand are small


def metric_table(ap, **others):
    """Return the twelve metrics: `ap` unless named."""
    return pytest.approx([{**LARGER, **others}.get(name, ap) for name in CocoMetrics._fields], abs=1e-9)


@pytest.mark.parametrize(
    "labels, detections, expected",
    [
        ([], [], dict(ap=-1)),
        ([], [(1, 1, BOX, 0.9)], dict(ap=-1)),  # no labels: no metric
        ([(1, 1, BOX)], [], dict(ap=0)),
        ([(1, 1, BOX)], [(1, 1, BOX, 0.9)], dict(ap=1)),
        # the other category is labelled and not found: half of everything
        ([(1, 1, BOX), (2, 2, BOX)], [(1, 1, BOX, 0.9)], dict(ap=0.5)),
        # IoU 0.75 is six of ten levels
        ([(1, 1, BOX)], [(1, 1, [10, 10, 20, 15], 0.9)], dict(ap=0.6, ap50=1, ap75=1)),
        # two labels, the detection of highest confidence is wrong: precision 1/2, 2/3 at recalls to 1/2, to 1
        ([(1, 1, BOX), (2, 1, BOX)], [(1, 1, [90, 90, 20, 20], 0.9), (1, 1, BOX, 0.8), (2, 1, BOX, 0.7)],
         dict(ap=2 / 3, ar1=0.5, ar10=1, ar100=1, ar_small=1)),
        # correct to recall 1/2, which 51 of 101 points reach
        ([(1, 1, BOX), (2, 1, BOX)], [(1, 1, BOX, 0.9)],
         dict(ap=51 / 101, ar1=0.5, ar10=0.5, ar100=0.5, ar_small=0.5)),
        # two detections in a crowd are neither correct nor wrong
        ([(1, 1, BOX), (1, 1, [100, 100, 200, 200], {"iscrowd": 1})],
         [(1, 1, [120, 120, 9, 9], 0.99), (1, 1, [130, 130, 9, 9], 0.98), (1, 1, BOX, 0.5)],
         dict(ap=1, ar1=0)),
        # `ignore` has no effect
        ([(1, 1, BOX, {"ignore": 1})], [], dict(ap=0)),
        # a detection that takes a label with the id 0 is a miss
        ([(1, 1, BOX, {"id": 0})], [(1, 1, BOX, 0.9)], dict(ap=0)),
        # a category that the file does not name
        ([(1, 1, BOX)], [(1, 9, [90, 90, 20, 20], 0.99), (1, 1, BOX, 0.9)], dict(ap=1)),
    ],
)  # fmt: skip
def test_by_hand(labels, detections, expected):
    assert list(metrics(labels, detections)) == metric_table(**expected)
    if detections:  # pycocotools reads no empty results
        assert reference(content(labels), results(detections))[0] == metric_table(**expected)


def test_the_border_of_two_sizes_belongs_to_both():
    got = metrics([(1, 1, [0, 0, 32, 32])], [(1, 1, [0, 0, 32, 32], 0.9)])
    assert (got.ap_small, got.ap_medium, got.ap_large) == pytest.approx((1, 1, -1))


def test_the_size_of_a_label_is_its_area_not_its_box():
    got = metrics([(1, 1, [0, 0, 50, 50], {"area": 900})], [(1, 1, [0, 0, 50, 50], 0.9)])
    assert (got.ap_small, got.ap_medium) == pytest.approx((1, -1))


def test_a_subset_of_the_images():
    labels, found = [(1, 1, BOX), (2, 1, BOX)], [(1, 1, BOX, 0.9), (2, 1, [90, 90, 9, 9], 0.95)]
    assert metrics(labels, found, images=[1, 1, 77]).ap == pytest.approx(1)
    assert metrics(labels, found, images=[]).ap == -1


def test_without_categories():
    labels, found = [(1, 1, BOX), (1, 2, [50, 50, 20, 20])], [(1, 2, BOX, 0.9), (1, 1, [50, 50, 20, 20], 0.8)]
    assert metrics(labels, found).ap == 0 and metrics(labels, found, by_category=False).ap == pytest.approx(1)


def test_what_cannot_be_scored():
    truth = content([(1, 1, BOX)])
    with pytest.raises(UserError, match="image_id 9 of a detection is not in the COCO annotations"):
        evaluate_coco(GroundTruth.read(truth), results([(9, 1, BOX, 0.9)]))
    for wrong in (
        *(
            {"bbox": box}
            for box in ([1, 2, 3], None, "1234", {}, [1, 2, math.nan, 4], [1, 2, math.inf, 4], [1, 2, "3", 4])
        ),
        *({"area": area} for area in ("big", math.nan, math.inf, [])),
        *({"iscrowd": crowd} for crowd in ("0", 2, [])),
        {"image_id": [1]},
        {"category_id": {}},
    ):
        with pytest.raises(UserError, match="the COCO annotations cannot be scored"):
            GroundTruth.read(content([(1, 1, BOX, wrong)]))
    for key in ("images", "categories"):
        for wrong in (math.nan, None, [1]):
            with pytest.raises(UserError, match="the COCO annotations cannot be scored"):
                GroundTruth.read(truth | {key: [{"id": wrong}]})
    with pytest.raises(UserError, match="the detections cannot be scored: KeyError: 'score'"):
        evaluate_coco(GroundTruth.read(truth), [{"image_id": 1, "category_id": 1, "bbox": BOX}])


def test_a_label_needs_only_its_box_and_the_ids_of_image_and_category():
    truth = content([])
    truth["annotations"] = [{"image_id": 1, "category_id": 1, "bbox": BOX}]
    assert evaluate_coco(GroundTruth.read(truth), results([(1, 1, BOX, 0.9)])).ap_small == pytest.approx(1)


# ---- against pycocotools


def random_boxes(rng, count):
    """Return boxes of whole numbers, so that areas and IoUs hit borders and levels. A few have no width."""
    size = rng.choice([0, 4, 8, 16, 31, 32, 33, 64, 96, 100], (count, 2), p=[0.02, *[0.98 / 9] * 9])
    return np.concatenate((rng.integers(0, 40, (count, 2)), size), 1)


def random_data(seed):
    """Return labels and results of a few images: crowds, ties of scores and IoUs, unknown categories, nothing."""
    rng = np.random.default_rng(seed)
    images = [int(i) for i in rng.permutation(50)[: rng.integers(1, 7)]]
    categories = [int(i) for i in rng.permutation(20)[: rng.integers(1, 5)]]
    labels, detections = [], []
    for bbox in random_boxes(rng, rng.integers(0, 30)).tolist():
        more = {"iscrowd": int(rng.random() < 0.15), "ignore": int(rng.random() < 0.1)}
        if rng.random() < 0.2:
            more["area"] = float(rng.choice([0, 1024, 5000, 9216, 1e10, 2e10]))
        labels.append((int(rng.choice(images)), int(rng.choice([*categories, 99])), bbox, more))
    truth = content(labels, images, categories)
    for row in truth["annotations"]:
        row["id"] -= int(seed % 5 == 0)
    for image, category, bbox, _ in labels:
        for _ in range(rng.poisson(2)):
            near = np.maximum(np.array(bbox) + rng.integers(-3, 4, 4) * rng.integers(0, 3), 0).tolist()
            detections.append((image, category, near, None))
    for bbox in random_boxes(rng, rng.integers(0, 20)).tolist():
        detections.append((int(rng.choice(images)), int(rng.choice([*categories, 98])), bbox, None))
    crowded = rng.integers(0, 160) if seed % 10 == 0 else 0  # more than count in an image
    detections += [(images[0], categories[0], bbox, None) for bbox in random_boxes(rng, crowded).tolist()]
    digits = int(rng.integers(1, 4))  # few digits, many ties
    rows = [(*detections[i][:3], round(float(rng.random()), digits)) for i in rng.permutation(len(detections))]
    return truth, results(rows), images


@pytest.mark.parametrize("chunk", range(10))
def test_the_metrics_are_those_of_pycocotools(chunk):
    for seed in range(100 * chunk, 100 * (chunk + 1)):
        truth, detections, images = random_data(seed)
        if not detections:
            continue
        some = images[::2] if seed % 3 == 0 else None
        settings = dict(images=some, by_category=seed % 4 > 0)
        expected, printed = reference(truth, detections, **settings)
        got = evaluate_coco(GroundTruth.read(truth), detections, **settings)
        assert list(got) == pytest.approx(list(expected), abs=1e-9), seed
        assert "\n".join(CocoMetrics(*expected).lines()) + "\n" == printed, seed


def test_random_data_is_not_trivial():
    every = np.array([evaluate_coco(GroundTruth.read(truth), found) for truth, found, _ in map(random_data, range(50))])
    assert ((every > 0.01) & (every < 0.99)).sum(0).min() > 5


def test_blocks_change_nothing(monkeypatch):
    sets = [random_data(seed) for seed in range(20)]
    before = [evaluate_coco(GroundTruth.read(truth), found) for truth, found, _ in sets]
    monkeypatch.setattr(coco_eval, "BLOCK", 7)
    assert [evaluate_coco(GroundTruth.read(truth), found) for truth, found, _ in sets] == before
