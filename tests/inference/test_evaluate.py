"""evaluate() on models whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from known_model import FOUND, LABELS, NAMES, Answers, Share, batches, make_batch, make_loss

from utils import console
from utils.errors import UserError
from utils.inference.evaluate import evaluate
from utils.inference.nms_settings import VAL_NMS
from utils.inference.reporting import ConsoleTable, DiagnosisTable


def evaluate_rows(rows, loader=None, **settings):
    return evaluate(Answers(rows), batches() if loader is None else loader, **settings)


def test_everything_found():
    metrics = evaluate_rows(FOUND)
    assert (metrics.map50, metrics.map) == pytest.approx((0.995, 0.995))
    assert (metrics.precision, metrics.recall) == (1, 1)
    assert (metrics.images, metrics.instances) == (3, 3)
    assert metrics.confusion.matrix.tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert metrics.label_counts.tolist() == [2, 1] and metrics.losses == (0, 0, 0)


def test_nothing_found():
    metrics = evaluate_rows({0: [], 1: [], 2: []})
    assert (metrics.map, metrics.precision, metrics.recall, metrics.best_confidence) == (0, 0, 0, 0)
    assert metrics.instances == 3 and metrics.confusion.matrix[2].tolist() == [2, 1, 0]


@pytest.mark.parametrize("loader", [[], [make_batch([0, 2], {})]], ids=["no images", "no labels"])
def test_nothing_to_find(loader, capsys):
    console.begin_program()
    metrics = evaluate(Answers(FOUND), loader, observers=[ConsoleTable(NAMES)])
    assert (metrics.map, metrics.instances, metrics.images) == (0, 0, sum(len(batch.images) for batch in loader))
    assert "no labels" in capsys.readouterr().err


def test_a_diagnosis_is_made_for_who_reads_it(capsys):
    console.begin_program()
    rows = {**FOUND, 1: [(10.0, 8, 40, 25, 0.8, 0), (2.0, 4, 9, 12, 0.7, 0)]}  # one of the wrong class
    metrics = evaluate_rows(rows, observers=[DiagnosisTable()])
    found = metrics.diagnosis
    assert [error.count for error in found.errors] == [1, 0, 0, 0, 0, 0] and found.errors[0].cost > 0.4
    assert [group.labels for group in found.sizes] == [1, 2, 0] and found.levels == []
    assert found.worst_images(1) == [("/data/1.jpg", 1, 1, 1)]
    printed = capsys.readouterr().out
    assert "mAP50 lost" in printed and "-          -" in printed  # no object is large
    assert evaluate_rows(rows).diagnosis is None
    assert evaluate_rows(FOUND, [], observers=[DiagnosisTable()]).diagnosis is None  # no images


def test_false_positive_on_a_background_counts():
    metrics = evaluate_rows({**FOUND, 2: [(1.0, 1, 9, 9, 0.95, 0)]})
    assert metrics.confusion.matrix[0, 2] == 1 and metrics.map50 < 0.9


@pytest.mark.parametrize(
    "region, perfect",
    [
        ([0, 0, 100, 0, 200, 100], True),
        ([0, 1, 100, 0, 200, 100], False),  # of another class
        ([1, 0, 100, 0, 200, 100], False),  # of another image
        ([0, 0, 100, 0, 145, 100], False),  # holds 25 of its 40 columns: ignored up to IoU 0.6
    ],
)
def test_a_detection_in_an_ignored_region_does_not_count(region, perfect):
    rows = {**FOUND, 0: [*FOUND[0], (30.0, 5, 40, 15, 0.95, 0)]}  # 120, 8, 160, 48 in the original
    batch = make_batch([0, 1], LABELS)._replace(ignored=np.array([region], np.float32))
    metrics = evaluate_rows(rows, [batch])
    assert (metrics.map == pytest.approx(0.995)) is perfect
    assert (metrics.map50 == pytest.approx(0.995)) is (perfect or region[4] == 145)
    assert metrics.confusion.matrix[0].tolist() == [2, 0, 0 if perfect or region[4] == 145 else 1]


def test_single_class():
    """A detection of the other class is right when classes do not count. Labels are all 0 then."""
    wrong = {0: [(5.0, 5, 20, 20, 0.9, 1)], 1: [], 2: []}
    batch = make_batch([0], LABELS)
    assert evaluate_rows(wrong, [batch]).map == 0
    metrics = evaluate_rows(wrong, [batch], single_cls=True, names={0: "item"})
    assert metrics.map == pytest.approx(0.995) and metrics.confusion.matrix.shape == (2, 2)


def test_labels_join_the_detections():
    assert evaluate_rows({0: [], 1: [], 2: []}, nms=replace(VAL_NMS, hybrid=True)).map == pytest.approx(0.995)


def test_class_beyond_the_names():
    with pytest.raises(UserError, match=r"detection class 1 is outside 0\.\.\.0"):
        evaluate_rows(FOUND, names={0: "dark"})
    with pytest.raises(UserError, match=r"label class 1 is outside 0\.\.\.0"):
        evaluate_rows({**FOUND, 1: []}, names={0: "dark"})


def test_model_keeps_its_modes():
    model = Answers(FOUND)
    model.train()
    model.part.eval()  # such as a frozen layer
    evaluate(model, batches())
    assert model.training and not model.part.training and model.weight.grad is None


def test_model_keeps_its_modes_after_an_error():
    model = Answers({}).train()
    with pytest.raises(KeyError):
        evaluate(model, batches())
    assert model.training and model.part.training


def test_autocast_is_for_the_network():
    seen = []

    class Model(Answers):
        def forward(self, images, augment=False):
            seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
            return super().forward(images, augment)

    for dtype in (None, torch.bfloat16):
        evaluate(Model(FOUND), batches(), autocast=dtype)
    assert seen == [False, False, torch.bfloat16, torch.bfloat16]


def test_losses_are_means_over_the_batches():
    loss, expected = make_loss(), []
    for batch in batches():
        _, raw = Answers(FOUND).eval()(batch.images.float() / 255)
        expected.append([part.item() for part in loss(raw, batch.targets)[1]])
    assert evaluate_rows(FOUND, loss=loss).losses == pytest.approx(np.mean(expected, 0))


def test_processes_agree_with_one():
    """Two processes with a share of each batch, one of them without any of the last, give what one process gives."""
    rows = {0: FOUND[0], 1: [(10.0, 8, 38, 25, 0.9, 1), (3.0, 4, 9, 12, 0.9, 0)], 2: [(1.0, 1, 9, 9, 0.9, 0)]}
    whole = evaluate_rows(rows, loss=make_loss())
    shards = [[make_batch([0], LABELS), make_batch([2], LABELS)], [make_batch([1], LABELS)]]
    notes, found = {}, []
    for complete in (False, True):
        for rank, shard in enumerate(shards):
            found.append(evaluate_rows(rows, shard, loss=make_loss(), distributed=Share(rank, notes, complete)))
    for metrics in found[2:]:
        assert (metrics.images, metrics.instances) == (3, 3)
        assert (metrics.map, metrics.precision) == (whole.map, whole.precision)
        assert np.array_equal(metrics.confusion.matrix, whole.confusion.matrix)
        assert metrics.losses[1] > 0
    assert found[2].losses == found[3].losses
