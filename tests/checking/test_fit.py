"""Checks of fit and balance: figures that can be worked out by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from utils.checking.findings import Finding
from utils.checking.fit import PlannedAnchors, check_fit
from utils.checking.scan import ScannedData, ScannedSplit
from utils.checking.split_balance import check_balance
from utils.datasets.label_index import Counts, LabelIndex, offsets_of
from utils.datasets.spec import DatasetSpec
from utils.image_size import ImageSize

ANCHORS = PlannedAnchors(
    np.array([[(10, 13), (16, 30), (33, 23)], [(30, 61), (62, 45), (59, 119)], [(116, 90), (156, 198), (373, 326)]]),
    np.array([8, 16, 32]),
    "mine.pt",
)
NAMES = {0: "a", 1: "b"}


def split(name: str, images: list[list[tuple[int, float, float]]], shape: tuple[int, int] = (640, 640)) -> ScannedSplit:
    """Return a split whose images have labels (class, width, height in pixels of the image) at their centres."""
    rows = [(k, 0.5, 0.5, w / shape[1], h / shape[0]) for labels in images for k, w, h in labels]
    paths = [f"/{name}/{k}.jpg" for k in range(len(images))]
    index = LabelIndex(
        paths, np.tile(np.int32(shape), (len(images), 1)), np.array(rows, np.float32).reshape(-1, 5),
        offsets_of([len(labels) for labels in images]), np.zeros((0, 2), np.float32),
        offsets_of([0] * len(rows)), Counts(), [],
    )  # fmt: skip
    return ScannedSplit(name, [Path(f"/{name}")], paths, index, NAMES)


def data(*splits: ScannedSplit, imgsz: ImageSize = 640) -> ScannedData:
    spec = DatasetSpec(Path("/data.yaml"), Path("/"), {}, NAMES)
    return ScannedData(spec, {one.name: one for one in splits}, imgsz)


def fit(one: ScannedSplit, imgsz: ImageSize = 640) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_fit(data(one, imgsz=imgsz), ANCHORS)}


def balance(*splits: ScannedSplit) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_balance(data(*splits))}


def test_data_without_images_to_validate_on():
    found = balance(split("train", [[]]))["no-validation-images"]
    assert found.level == "warning" and found.split == "val" and "--split 0.8" in found.advice
    assert "no-validation-images" not in balance(split("train", [[]]), split("val", [[]]))
    shared = replace(data(split("train", [[]])), same={"val": "train"})
    assert "no-validation-images" not in {finding.check for finding in check_balance(shared)}


def test_nothing_to_say_about_no_labels_and_about_usual_ones():
    assert fit(split("train", [[], []])) == {}
    assert fit(split("train", [[(0, 60, 50), (1, 30, 40), (0, 20, 25)]] * 30)) == {}


@pytest.mark.parametrize(
    "labels, shape, level, advice",
    [
        ([(0, 60, 60)] * 199 + [(0, 2, 2)], (640, 640), "note", "slips of the mouse"),
        ([(0, 60, 60)] * 9 + [(0, 5, 5)], (1280, 1280), "warning", "--imgsz 768,"),  # 5 px * 768 / 1280 are 3
        ([(0, 60, 60)] * 9 + [(0, 2, 2)], (640, 640), "warning", "Remove these boxes"),
        ([(0, 60, 60)] * 9 + [(0, 7, 7)], (4000, 4000), "warning", "--tile 640,"),  # 2.7 at 1536
    ],
)
def test_boxes_below_3_px(labels, shape, level, advice):
    found = fit(split("train", [labels], shape))["under-3-px"]
    assert (found.count, found.level) == (1, level) and advice in found.advice


def test_small_objects_in_large_images():
    found = fit(split("train", [[(0, 14, 14)] * 3 + [(0, 200, 200)]], (1280, 1280)))["small-objects"]
    assert found.count == 3 and found.figures["share"] == 0.75
    for words in ("--imgsz 1280, at which 0%", "yolov5-p2.yaml", "--tile 640"):
        assert words in found.advice


def test_large_objects_need_no_large_images():
    found = fit(split("train", [[(0, 100, 100)]] * 60))["large-objects"]
    assert found.advice.startswith("Try --imgsz 320: 50 px are left")


def test_a_class_out_of_reach_of_the_anchors_is_named():
    long_ones = [(1, 600, 4)] * 12
    found = fit(split("train", [[(0, 60, 60)] * 2000 + long_ones]))["anchors"]
    assert "reached by the anchors of mine.pt: " in found.text and found.figures["anchors"] == "mine.pt"
    assert found.level == "note" and found.text.endswith("0% of b, 0% of boxes of width / height 4 and more")
    assert found.figures["recall of a"] == 1 and found.examples[0].detail == "600 x 4 px"


def test_new_anchors_are_judged_where_training_would_fit_some():
    found = fit(split("train", [[(0, 600, 20)] * 40 + [(1, 20, 600)] * 40]))
    assert "anchors" not in found


def test_padding_and_rare_classes():
    found = fit(split("train", [[(0, 60, 60)] * 50 + [(1, 60, 60)] * 5], (360, 640)))
    assert found["padding"].figures["padding"] == pytest.approx(1 - 360 / 640)
    assert found["padding"].advice.startswith("--imgsz 384 640 has less padding")
    assert found["unequal-classes"].figures == {"b": 5}
    assert "unequal-classes" not in fit(split("train", [[(0, 60, 60)] * 50 + [(1, 60, 60)] * 6]))


@pytest.mark.parametrize("turn", [1, -1])
def test_height_and_width_of_the_planned_training(turn):
    """Images of 720 x 1280 at 384 x 640 are halved, and so are their boxes. Upright ones fill 34 % of it."""
    boxes = [[(0, 120, 100)] * 6 + [(0, 10, 10)] * 3 + [(0, 5, 5)]] * 10
    one, imgsz = (
        split("train", [[row[:1] + row[1:][::turn] for row in boxes[0]]] * 10, (720, 1280)[::turn]),
        (384, 640)[::turn],
    )
    found = fit(one, imgsz)
    words = " ".join(map(str, imgsz))
    assert "padding" not in found and found["under-3-px"].text.endswith(f"wide or high at --imgsz {words}")
    assert f"Train with --imgsz {'480 768' if turn > 0 else '768 480'}, at" in found["under-3-px"].advice  # 5 * 0.6 = 3
    assert "--tile 384 for train.py" in found["small-objects"].advice
    other = fit(one, imgsz[::-1])["padding"]
    assert other.figures["padding"] == pytest.approx(1 - (384 * 384 * 720 / 1280) / (384 * 640), abs=1e-6)
    assert other.text.endswith(f"of {imgsz[1]} x {imgsz[0]} px") and other.advice.startswith(
        f"--imgsz {words} has less"
    )


def test_classes_that_a_split_lacks():
    both, first = [[(0, 60, 60), (1, 60, 60)]], [[(0, 60, 60)]]
    assert balance(split("train", both), split("val", both)) == {}
    assert balance(split("train", both), split("val", first))["class-not-measured"].text.endswith("in val: b")
    found = balance(split("train", first), split("val", both))["class-not-trained"]
    assert (found.level, found.count) == ("warning", 1)


def test_splits_of_other_sizes_and_shares():
    usual = split("train", [[(0, 60, 60)]] * 30)
    assert set(balance(usual, split("val", [[(0, 60, 60)]] * 20 + [[]] * 10))) == {"empty-share-differs"}
    assert set(balance(usual, split("val", [[(0, 25, 25)]] * 30))) == {"box-sizes-differ"}
    assert set(balance(usual, split("val", [[(0, 180, 180)]] * 30, (1920, 1920)))) == {"image-sizes-differ"}
    assert "many-empty-images" in balance(split("train", [[(0, 60, 60)]] * 2 + [[]] * 3))
