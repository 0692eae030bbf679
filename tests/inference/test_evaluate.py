"""evaluate() on models whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from utils import console
from utils.boxes import xyxy_to_xywh
from utils.errors import UserError
from utils.images.letterbox import Letterbox
from utils.inference.batch_statistics import BatchStatistics, mean_losses
from utils.inference.evaluate import evaluate
from utils.inference.nms_settings import VAL_NMS
from utils.inference.observer import EvaluationObserver
from utils.inference.reporting import ConsoleTable, DetectionFiles
from utils.loading.dataset import Batch
from utils.loss import DetectionLoss

NAMES = {0: "dark", 1: "bright"}
BOX = Letterbox((100, 200), (0.25, 0.25), (3, 0))  # an image of 200 x 100 pixels in a batch of 50 x 31


class Answers(nn.Module):
    """A model that gives prepared rows (n, 6) x1, y1, x2, y2, confidence, class for each image.

    The value of an image's pixels is its number.
    """

    names, num_classes = NAMES, 2

    def __init__(self, rows):
        super().__init__()
        self.rows, self.weight, self.part = rows, nn.Parameter(torch.zeros(1)), nn.Dropout()

    def forward(self, images, augment=False):
        assert not self.training and not self.part.training
        numbers = (images[:, 0, 0, 0] * 255).round().long().tolist()
        width = max([len(self.rows[number]) for number in numbers], default=0)
        decoded = torch.zeros(len(images), width, 7)
        for k, number in enumerate(numbers):
            for j, row in enumerate(torch.tensor(self.rows[number]).reshape(-1, 6)):
                decoded[k, j, :4], decoded[k, j, 4] = xyxy_to_xywh(row[:4]), 1
                decoded[k, j, 5 + int(row[5])] = row[4]
        return decoded, [torch.full((len(images), 3, 4, 6, 7), float(sum(numbers) % 3) - 1)]


def make_batch(numbers, labels):
    """Make images of the given values, with labels {number: (m, 5) class, x1, y1, x2, y2 in pixels of the batch}."""
    images = torch.stack([torch.full((3, 31, 50), number, dtype=torch.uint8) for number in numbers])
    rows = [torch.zeros(0, 6)]
    for k, number in enumerate(numbers):
        for cls, *corners in labels.get(number, []):
            xywh = xyxy_to_xywh(torch.tensor(corners)) / torch.tensor([50, 31, 50, 31])
            rows.append(torch.tensor([[k, cls, *xywh]]))
    return Batch(images, torch.cat(rows), [f"/data/{number}.jpg" for number in numbers], [BOX] * len(numbers))


LABELS = {0: [(0, 5.0, 5, 20, 20)], 1: [(1, 10.0, 8, 40, 25), (0, 2.0, 4, 9, 12)], 2: []}
FOUND = {0: [(5.0, 5, 20, 20, 0.9, 0)], 1: [(10.0, 8, 40, 25, 0.8, 1), (2.0, 4, 9, 12, 0.7, 0)], 2: []}


def batches():
    return [make_batch([0, 1], LABELS), make_batch([2], LABELS)]


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


def test_false_positive_on_a_background_counts():
    metrics = evaluate_rows({**FOUND, 2: [(1.0, 1, 9, 9, 0.95, 0)]})
    assert metrics.confusion.matrix[0, 2] == 1 and metrics.map50 < 0.9


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


def test_writers_get_pixels_of_the_original():
    class Writer:
        def __init__(self):
            self.found = []

        def write(self, detections):
            self.found.append(detections)

    writers = [Writer(), Writer()]
    rows = {0: [(5.0, 5, 20, 20, 0.9, 0)]}
    evaluate_rows(rows, [make_batch([0], LABELS)], observers=[DetectionFiles(writers)])
    for writer in writers:
        (found,) = writer.found
        assert (found.path, found.shape, found.input_shape) == ("/data/0.jpg", (100, 200), (31, 50))
        assert found.names == NAMES and len(found) == 1
        assert found.rows.tolist() == [pytest.approx((20, 8, 80, 68, 0.9, 0))]


class Recorder(EvaluationObserver):
    """EvaluationObserver that notes its calls."""

    def __init__(self, calls, failing=""):
        self.calls, self.failing = calls, failing

    def note(self, *call):
        self.calls.append(call)
        if call[0] == self.failing:
            raise ValueError(call[0])

    def __enter__(self):
        self.note("enter")
        return self

    def __exit__(self, kind, error, trace):
        self.note("exit", kind)

    def on_start(self, num_batches):
        self.note("start", num_batches)

    def before_batch(self):
        self.note("before")

    def on_batch(self, evaluated):
        self.note("batch", evaluated.number, [one.path for one in evaluated.detections], len(evaluated.rows))

    def on_end(self, metrics):
        self.note("end", metrics.images)


def test_observers_are_called_in_order():
    calls = []
    evaluate_rows(FOUND, observers=[Recorder(calls), EvaluationObserver()])
    first, second = ["/data/0.jpg", "/data/1.jpg"], ["/data/2.jpg"]
    assert calls == [
        *[("enter",), ("start", 2), ("before",), ("batch", 0, first, 2), ("before",), ("batch", 1, second, 1)],
        *[("end", 3), ("exit", None)],
    ]


@pytest.mark.parametrize("failing", ["start", "before", "batch", "end"])
def test_an_error_in_an_observer_closes_all_of_them(failing):
    calls = []
    with pytest.raises(ValueError, match=failing):
        evaluate_rows(FOUND, observers=[Recorder(calls), Recorder(calls, failing)])
    assert calls[-2:] == [("exit", ValueError)] * 2


def test_observers_watch_rank_0_only():
    calls = []
    evaluate_rows(FOUND, observers=[Recorder(calls)], distributed=Share(1, {}, complete=False))
    assert calls == []


def test_the_network_gives_the_numbers_of_its_type():
    """autocast: the dtype in which the network runs."""
    seen = []

    class Model(Answers):
        def forward(self, images, augment=False):
            seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
            return super().forward(images, augment)

    for dtype in (None, torch.bfloat16):
        evaluate(Model(FOUND), batches(), autocast=dtype)
    assert seen == [False, False, torch.bfloat16, torch.bfloat16]


def make_loss():
    hyp = dict(box=0.05, obj=1.0, cls=0.5, cls_pw=1.0, obj_pw=1.0, anchor_t=4.0, fl_gamma=0.0, label_smoothing=0.0)
    return DetectionLoss(torch.ones(1, 3, 2) * torch.tensor([1.0, 2, 3])[:, None], torch.tensor([8.0]), 2, hyp)


def test_losses_are_means_over_the_batches():
    loss, expected = make_loss(), []
    for batch in batches():
        _, raw = Answers(FOUND).eval()(batch.images.float() / 255)
        expected.append([part.item() for part in loss(raw, batch.targets)[1]])
    assert evaluate_rows(FOUND, loss=loss).losses == pytest.approx(np.mean(expected, 0))


class Share:
    """Stand-in for a group of two: the first pass notes what each process hands in, the second gives both."""

    world_size = 2

    def __init__(self, rank, notes, complete):
        self.rank, self.notes, self.complete, self.calls, self.is_main = rank, notes, complete, 0, rank == 0

    def gather(self, value):
        self.calls += 1
        if self.complete:
            return self.notes[self.calls]
        self.notes.setdefault(self.calls, [value, value])[self.rank] = value.copy()
        return [value]


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


def test_losses_of_processes_add_up():
    """Both shares of a batch give the loss of the batch, for means that are over all of its rows and cells."""
    raw = [torch.randn(2, 3, 4, 6, 7, generator=torch.Generator().manual_seed(0))]
    batch, loss = make_batch([0, 1], LABELS), make_loss()
    expected = loss(raw, batch.targets)[1]
    shares = []
    for k in range(2):
        targets = batch.targets[batch.targets[:, 0] == k].clone()
        targets[:, 0] = 0
        sums = torch.stack(loss.sums([raw[0][k : k + 1]], targets)).numpy()
        shares.append(BatchStatistics(1, *[np.zeros(0)] * 4, sums))
    assert mean_losses(loss, [shares]) == pytest.approx([part.item() for part in expected])
