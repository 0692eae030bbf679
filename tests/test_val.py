"""evaluate() on models whose answers are known, and the command line from flags to files."""

import json

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import val
from models.yolo import DetectionModel
from utils.boxes import xyxy_to_xywh
from utils.checkpoint import describe_model, write_checkpoint
from utils.errors import UserError
from utils.images.letterbox import Letterbox
from utils.loading.dataset import Batch
from utils.loss import DetectionLoss

NAMES = {0: "dark", 1: "bright"}
BOX = Letterbox((100, 200), (0.25, 0.25), (3, 0))  # a picture of 200 x 100 pixels in a batch of 50 x 31


class Answers(nn.Module):
    """A model that gives prepared rows (n, 6) x1, y1, x2, y2, confidence, class for each picture, told by its value."""

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
    """Pictures of the given values, with labels {number: rows (m, 5) class, x1, y1, x2, y2 in pixels of the batch}."""
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


def evaluate(rows, loader=None, **kwargs):
    return val.evaluate(Answers(rows), batches() if loader is None else loader, progress=False, **kwargs)


def test_everything_found():
    metrics = evaluate(FOUND)
    assert (metrics.map50, metrics.map) == pytest.approx((0.995, 0.995))
    assert (metrics.precision, metrics.recall) == (1, 1)
    assert (metrics.images, metrics.instances) == (3, 3)
    assert metrics.confusion.matrix.tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert metrics.label_counts.tolist() == [2, 1] and metrics.losses == (0, 0, 0)


def test_nothing_found():
    metrics = evaluate({0: [], 1: [], 2: []})
    assert (metrics.map, metrics.precision, metrics.recall, metrics.best_confidence) == (0, 0, 0, 0)
    assert metrics.instances == 3 and metrics.confusion.matrix[2].tolist() == [2, 1, 0]


@pytest.mark.parametrize("loader", [[], [make_batch([0, 2], {})]], ids=["no pictures", "no labels"])
def test_nothing_to_find(loader, capsys):
    metrics = val.evaluate(Answers(FOUND), loader)
    assert (metrics.map, metrics.instances, metrics.images) == (0, 0, sum(len(batch.images) for batch in loader))
    assert "no labels" in capsys.readouterr().out


def test_false_positive_on_a_background_counts():
    metrics = evaluate({**FOUND, 2: [(1.0, 1, 9, 9, 0.95, 0)]})
    assert metrics.confusion.matrix[0, 2] == 1 and metrics.map50 < 0.9


def test_single_class():
    """A detection of the other class is right when classes do not count; labels are all 0 then."""
    wrong = {0: [(5.0, 5, 20, 20, 0.9, 1)], 1: [], 2: []}
    batch = make_batch([0], LABELS)
    assert evaluate(wrong, [batch]).map == 0
    metrics = evaluate(wrong, [batch], single_cls=True, names={0: "item"})
    assert metrics.map == pytest.approx(0.995) and metrics.confusion.matrix.shape == (2, 2)


def test_labels_join_the_detections():
    assert evaluate({0: [], 1: [], 2: []}, hybrid=True).map == pytest.approx(0.995)


def test_class_beyond_the_names():
    with pytest.raises(UserError, match=r"detection class 1 is outside 0\.\.\.0"):
        evaluate(FOUND, names={0: "dark"})
    with pytest.raises(UserError, match=r"label class 1 is outside 0\.\.\.0"):
        evaluate({**FOUND, 1: []}, names={0: "dark"})


def test_model_keeps_its_modes():
    model = Answers(FOUND)
    model.train()
    model.part.eval()  # such as a frozen layer
    val.evaluate(model, batches(), progress=False)
    assert model.training and not model.part.training and model.weight.grad is None


def test_model_keeps_its_modes_after_an_error():
    model = Answers({}).train()
    with pytest.raises(KeyError):
        val.evaluate(model, batches(), progress=False)
    assert model.training and model.part.training


def test_writers_get_pixels_of_the_original():
    got = []
    evaluate({0: [(5.0, 5, 20, 20, 0.9, 0)]}, [make_batch([0], LABELS)], writers=[lambda *args: got.append(args)])
    path, rows, shape = got[0]
    assert (path, shape) == ("/data/0.jpg", (100, 200))
    assert rows.tolist() == [pytest.approx((20, 8, 80, 68, 0.9, 0))]


def make_loss():
    hyp = dict(box=0.05, obj=1.0, cls=0.5, cls_pw=1.0, obj_pw=1.0, anchor_t=4.0, fl_gamma=0.0, label_smoothing=0.0)
    return DetectionLoss(torch.ones(1, 3, 2) * torch.tensor([1.0, 2, 3])[:, None], torch.tensor([8.0]), 2, hyp)


def test_losses_are_means_over_the_batches():
    loss, expected = make_loss(), []
    for batch in batches():
        _, raw = Answers(FOUND).eval()(batch.images.float() / 255)
        expected.append([part.item() for part in loss(raw, batch.targets)[1]])
    assert evaluate(FOUND, loss=loss).losses == pytest.approx(np.mean(expected, 0))


class Share:
    """Stands for a group of two: the first pass notes what each process hands in, the second gives both."""

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
    whole = evaluate(rows, loss=make_loss())
    shards = [[make_batch([0], LABELS), make_batch([2], LABELS)], [make_batch([1], LABELS)]]
    notes, found = {}, []
    for complete in (False, True):
        for rank, shard in enumerate(shards):
            found.append(evaluate(rows, shard, loss=make_loss(), distributed=Share(rank, notes, complete)))
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
        shares.append(val.Statistics(1, *[np.zeros(0)] * 4, sums))
    assert val.mean_losses(loss, [shares]) == pytest.approx([part.item() for part in expected])


# ---- command line


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory, tiny_cfg):
    """An untrained model of two classes that is sure enough of something everywhere."""
    torch.manual_seed(0)
    model = DetectionModel(tiny_cfg, num_classes=2)
    model.names = NAMES
    with torch.no_grad():
        for convolution in model.head.m:
            convolution.bias.view(3, -1)[:, 4] += 6
    file = tmp_path_factory.mktemp("weights") / "tiny.pt"
    write_checkpoint(file, {"model": describe_model(model)}, kind="weights")
    return file


@pytest.fixture
def val_args(tiny_weights, tiny_data, tmp_path):
    return [
        "--weights",
        str(tiny_weights),
        "--data",
        str(tiny_data),
        "--imgsz",
        "64",
        "--batch-size",
        "4",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--project",
        str(tmp_path / "runs"),
    ]


def test_main_measures_draws_and_says_what_next(val_args, tmp_path, capsys):
    metrics = val.main(val_args)
    out, bar = capsys.readouterr()
    assert metrics.images == 8 and metrics.instances > 0
    assert "mAP50-95" in bar and out.splitlines()[-2] == f"Results saved to {tmp_path / 'runs' / 'exp'}"
    assert out.splitlines()[-1].startswith("Next: python detect.py --weights")
    assert "Speed: " in out and "per image at shape (4, 3, 64, 64)" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith("   ")}
    assert rows["all"][1:3] == ["8", str(metrics.instances)] and {"dark", "bright"} <= rows.keys()
    assert "at confidence" in out
    files = {file.name for file in (tmp_path / "runs" / "exp").iterdir()}
    assert {"confusion_matrix.png", "val_batch0_labels.jpg", "val_batch0_pred.jpg", "val_batch1_pred.jpg"} <= files
    val.main(val_args)
    assert (tmp_path / "runs" / "exp2").is_dir()


def test_main_writes_text_and_json(val_args, tmp_path):
    val.main([*val_args, "--save-txt", "--save-conf", "--save-json", "--max-det", "5", "--exist-ok"])
    folder = tmp_path / "runs" / "exp"
    rows = json.loads((folder / "tiny_predictions.json").read_text())
    lines = [line for file in (folder / "labels").glob("*.txt") for line in file.read_text().splitlines()]
    assert len(rows) == len(lines) == 8 * 5
    assert all(len(line.split()) == 6 for line in lines)
    val.main([*val_args, "--save-txt", "--max-det", "2", "--exist-ok"])  # again, into the same folder
    lines = [line for file in (folder / "labels").glob("*.txt") for line in file.read_text().splitlines()]
    assert len(lines) == 8 * 2 and all(len(line.split()) == 5 for line in lines)


def test_main_hybrid(val_args, tmp_path):
    assert val.main([*val_args, "--save-hybrid"]).recall > 0.9
    assert list((tmp_path / "runs" / "exp" / "labels").glob("*.txt"))


def test_main_finds_annotations_beside_the_data(val_args, tiny_data, capsys):
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(8)]
    categories = [{"id": 1, "name": "dark"}, {"id": 2, "name": "bright"}]
    label = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}
    content = {"images": images, "categories": categories, "annotations": [label]}
    file = tiny_data.parent / "instances_val.json"
    file.write_text(json.dumps(content))
    try:
        val.main([*val_args, "--save-json"])
    finally:
        file.unlink()
    assert "by COCO's" in capsys.readouterr().out


def test_main_on_another_split_and_single_class(val_args):
    metrics = val.main([*val_args, "--task", "train", "--single-cls"])
    assert metrics.images == 24 and metrics.confusion.num_classes == 1


def test_half_on_the_cpu_goes_on_in_float32(val_args, capsys):
    assert val.main([*val_args, "--half"]).images == 8
    assert "--half needs a GPU" in capsys.readouterr().out


def test_augment_and_ensemble(val_args, tiny_weights, capsys):
    args = [*val_args, "--augment"]
    args.insert(2, str(tiny_weights))
    assert val.main(args).images == 8


def test_size_is_rounded_up(val_args, capsys):
    val.main([*val_args, "--imgsz", "50"])
    out = capsys.readouterr().out
    assert "--imgsz 50 is not a multiple of the model's stride 32; using 64" in out and "(4, 3, 64, 64)" in out


def test_speed(val_args, tmp_path, capsys):
    found = val.main([*val_args, "--task", "speed"])
    assert len(found) == 1 and found[0].speed.inference > 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("batch, advice", [(8, "--batch-size 4$"), (1, "--imgsz 32, or --half$")])
def test_too_little_gpu_memory_is_one_line(val_args, monkeypatch, batch, advice):
    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(val, "non_max_suppression", out_of_memory)
    with pytest.raises(UserError, match=f"out of GPU memory at --batch-size {batch}, --imgsz 64: try {advice}"):
        val.main([*val_args, "--batch-size", str(batch)])


def test_study(val_args, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(val, "STUDY_SIZES", (32, 64))
    other = tmp_path / "other" / tiny_weights.name  # of the same name: both have a table of their own
    other.parent.mkdir()
    other.write_bytes(tiny_weights.read_bytes())
    args = [*val_args, "--task", "study"]
    args.insert(2, str(other))
    assert len(val.main(args)) == 4
    folder = tmp_path / "runs" / "exp"
    tables = sorted(folder.glob("study_tiny_*.txt"))
    assert len(tables) == 2
    for table in tables:
        rows = np.loadtxt(table)
        assert rows.shape == (2, 10) and (rows[:, 4:7] == 0).all() and (rows[:, 7:] > 0).all()
        assert all(len(line) == 100 for line in table.read_text().splitlines())
    assert cv2.imread(str(folder / "study.png")).shape[2] == 3


@pytest.mark.parametrize("ids, expected", [([5, 7], {5, 7}), ([5, 7, 9], {0, 1})])
def test_cocos_ids_are_for_cocos_classes(val_args, tmp_path, monkeypatch, ids, expected):
    """Not for others whose list of pictures has the name of COCO's."""
    monkeypatch.setattr("utils.datasets.spec.DatasetSpec.is_coco", True)
    monkeypatch.setattr("utils.output.prediction_files.COCO_IDS", ids)
    monkeypatch.setattr(val, "COCO_IDS", ids)
    val.main([*val_args, "--save-json"])
    rows = json.loads(next((tmp_path / "runs" / "exp").glob("*_predictions.json")).read_text())
    assert {row["category_id"] for row in rows} == expected


def test_speed_shows_classes_and_says_what_it_leaves_aside(val_args, capsys):
    val.main([*val_args, "--task", "speed", "--save-txt", "--save-conf"])
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if line.startswith("  ")][-2:] == ["dark", "bright"]
    for name in ("--save-txt", "--save-conf"):
        assert f"WARNING {name} left aside: --task speed writes no detections" in printed
    val.main([*val_args, "--task", "speed"])
    assert "left aside" not in capsys.readouterr().out
    val.main([*val_args, "--task", "speed", "--save-hybrid", "--conf-thres", "0.5"])
    printed = capsys.readouterr().out
    assert "--save-hybrid left aside" in printed and "say nothing" not in printed
    assert "WARNING --conf-thres left aside: --task speed has its own conf_thres" in printed


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--dnn"], "--dnn needs an ONNX model"),
        (["--conf-thres", "2"], "--conf-thres 2.0: 0 to 1"),
        (["--batch-size", "0"], "--batch-size 0: at least 1"),
        (["--task", "test"], "no `test:` images"),
        (["--annotations", "nowhere.json"], "--annotations nowhere.json: no such file"),
        (["--weights", "nowhere.pt"], "nowhere.pt: no such file"),
        (["--data", "nowhere.yaml"], "--data nowhere.yaml"),
    ],
)
def test_mistakes_get_one_line(val_args, tmp_path, extra, message):
    with pytest.raises(UserError, match=message):
        val.main([*val_args, *extra])
    assert not (tmp_path / "runs").exists()


def test_model_and_data_of_unlike_classes(val_args, tiny_data, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(tiny_data.read_text().replace("[dark, bright]", "[a, b, c]") + f"path: {tiny_data.parent}\n")
    with pytest.raises(UserError, match="has 2 classes, .*other.yaml names 3"):
        val.main([*val_args, "--data", str(other)])


def test_unknown_flag(val_args, capsys):
    with pytest.raises(SystemExit) as stop:
        val.main([*val_args, "--save-text"])
    assert stop.value.code == 2 and "did you mean --save-txt?" in capsys.readouterr().err


@pytest.mark.slow
def test_published_weights_on_coco128(reference, monkeypatch, tmp_path):
    """P 0.586, R 0.508, mAP50 0.568, mAP50-95 0.365 of the released weights."""
    weights, data = reference / "weights" / "yolov5n.pt", reference / "datasets"
    if not (weights.is_file() and (data / "coco128").is_dir()):
        pytest.skip("weights or coco128 are absent")
    monkeypatch.setenv("ANCHORAGE_DATASETS", str(data))
    metrics = val.main(
        [
            "--weights",
            str(weights),
            "--data",
            "coco128.yaml",
            "--batch-size",
            "16",
            "--workers",
            "2",
            "--device",
            "cpu",
            "--project",
            str(tmp_path),
        ]
    )
    got = (metrics.precision, metrics.recall, metrics.map50, metrics.map)
    assert got == pytest.approx((0.586, 0.508, 0.568, 0.365), abs=0.002)
