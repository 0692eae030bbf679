"""val.py: the command line from flags to files."""

import errno
import json
import os
import shutil

import cv2
import numpy as np
import pytest
import torch

import val
from models.yolo import DetectionModel
from utils.checkpoint import describe_model, write_checkpoint
from utils.errors import UnreadableData, UserError

NAMES = {0: "dark", 1: "bright"}


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory, tiny_cfg):
    """Return the file of an untrained model of two classes that finds something everywhere."""
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
    out = capsys.readouterr().out
    assert metrics.images == 8 and metrics.instances > 0
    assert "mAP50-95" in out and out.splitlines()[-2] == f"Results saved to {tmp_path / 'runs' / 'exp'}"
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


def test_half_on_the_cpu_runs_in_float32(val_args, capsys):
    assert val.main([*val_args, "--half"]).images == 8
    assert "--half needs a GPU" in capsys.readouterr().err


def test_augment_and_ensemble(val_args, tiny_weights, capsys):
    args = [*val_args, "--augment"]
    args.insert(2, str(tiny_weights))
    assert val.main(args).images == 8


def test_size_is_rounded_up(val_args, capsys):
    val.main([*val_args, "--imgsz", "50"])
    out, warned = capsys.readouterr()
    assert "--imgsz 50 is not a multiple of the model's stride 32; using 64" in warned and "(4, 3, 64, 64)" in out


def test_speed(val_args, tmp_path, capsys):
    found = val.main([*val_args, "--task", "speed"])
    assert len(found) == 1 and found[0].speed.inference > 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("batch, advice", [(8, "--batch-size 4$"), (1, "--imgsz 32, or --half$")])
def test_too_little_gpu_memory_is_one_line(val_args, monkeypatch, batch, advice):
    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("utils.inference.nms_settings.non_max_suppression", out_of_memory)
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
    """Not for others whose list of images has the name of COCO's."""
    monkeypatch.setattr("utils.datasets.spec.DatasetSpec.is_coco", True)
    monkeypatch.setattr("utils.output.prediction_files.COCO_IDS", ids)
    monkeypatch.setattr(val, "COCO_IDS", ids)
    val.main([*val_args, "--save-json"])
    rows = json.loads(next((tmp_path / "runs" / "exp").glob("*_predictions.json")).read_text())
    assert {row["category_id"] for row in rows} == expected


def test_speed_shows_classes_and_says_what_it_ignores(val_args, capsys):
    val.main([*val_args, "--task", "speed", "--save-txt", "--save-conf"])
    printed, warned = capsys.readouterr()
    assert [line.split()[0] for line in printed.splitlines() if line.startswith("  ")][-2:] == ["dark", "bright"]
    for name in ("--save-txt", "--save-conf"):
        assert f"WARNING: {name} is ignored: --task speed writes no detections" in warned
    val.main([*val_args, "--task", "speed"])
    assert "is ignored" not in capsys.readouterr().err
    val.main([*val_args, "--task", "speed", "--save-hybrid", "--conf-thres", "0.5"])
    warned = capsys.readouterr().err
    assert "--save-hybrid is ignored" in warned and "meaningless" not in warned
    assert "WARNING: --conf-thres is ignored: --task speed has its own conf_thres" in warned


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--dnn"], "--dnn reads ONNX files, and .*tiny.pt is none"),
        (["--conf-thres", "2"], "--conf-thres 2.0: 0 to 1"),
        (["--batch-size", "0"], "--batch-size 0: at least 1"),
        (["--workers", "-3"], "--workers -3: 0 or more"),
        (["--task", "test"], "`test:` is missing: add it with the images to test on, or choose another --task"),
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


def test_names_that_differ_are_said(val_args, tiny_data, tmp_path, capsys):
    swapped = tiny_data.with_name("swapped.yaml")
    swapped.write_text(tiny_data.read_text().replace("[dark, bright]", "[bright, dark]"))
    val.main([*val_args, "--data", str(swapped)])
    assert "name their classes differently: class 0 is 'dark' and 'bright'" in capsys.readouterr().err


def test_a_chart_that_cannot_be_written_is_an_error(val_args, monkeypatch, capsys):
    original = os.replace

    def replace(source, target):
        if str(target).endswith("confusion_matrix.png"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(UserError, match="confusion_matrix.png could not be written, also at the end: No space left"):
        val.main(val_args)
    out = capsys.readouterr().out
    assert "mAP50-95" in out and "Results saved" not in out


def test_an_image_that_goes_away_is_an_error(val_args, tiny_data, tmp_path, monkeypatch):
    shutil.copytree(tiny_data.parent, tmp_path / "data")
    original = val.load_split

    def load_split(*args, **named):
        index = original(*args, **named)
        os.remove(index.paths[0])
        return index

    monkeypatch.setattr(val, "load_split", load_split)
    monkeypatch.setattr("utils.loading.image_cache.RETRY_SECONDS", 0)
    with pytest.raises(UnreadableData, match=r"images/val/0.png: cannot be read: No such file or directory$"):
        val.main([*val_args, "--data", str(tmp_path / "data" / tiny_data.name)])


def test_a_killed_data_worker_is_one_line(val_args, monkeypatch):
    def evaluate(*_, **__):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    monkeypatch.setattr(val, "evaluate", evaluate)
    with pytest.raises(UserError, match="one of . data workers was killed.*--workers"):
        val.main(val_args)
