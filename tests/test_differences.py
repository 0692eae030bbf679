"""Deliberate differences from YOLOv5 that no other test pins. README.md has the whole list."""

import ast
import os
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_training import train_flags

import train
from models import loading
from models.setup import resolve_initial_weights
from utils.autobatch import MEMORY_SHARE, TRIED, extrapolate
from utils.checkpoint import read_checkpoint
from utils.config import Hyperparameters, TrainOptions
from utils.datasets.locate import locate_dataset
from utils.datasets.spec import read_dataset_yaml
from utils.device import select_device
from utils.errors import UserError
from utils.nms import non_max_suppression
from utils.training import resume
from utils.training.run import Run

ROOT = Path(__file__).resolve().parents[1]
THIRD_PARTIES = {
    "PIL",
    "cv2",
    "fontTools",
    *("jinja2", "markupsafe"),
    "matplotlib",
    "mss",
    "numpy",
    "optuna",
    "sqlalchemy",  # comes with Optuna
    "pycocotools",
    "torch",
    "torchvision",
    "tqdm",
    "yaml",
    *("onnx", "openvino"),  # of --include alone
    *("tensorboard", "mlflow", "wandb", "clearml", "comet_ml", "trackio"),  # in the process of --log alone
}  # PIL and fontTools come with matplotlib


def run(data, cfg, folder, *extra, epochs):
    train.main(train_flags(data, cfg, folder, "--noplots", *extra, epochs=epochs))
    return Path(folder) / "run"


# ---- training


def test_gradients_left_at_an_epochs_end_are_applied(tiny_data, tiny_cfg, tmp_path):
    """Three batches per epoch and eight per step: YOLOv5 drops most of them."""
    hyp = tmp_path / "hyp.yaml"
    hyp.write_text("warmup_epochs: 0\n")
    folder = run(tiny_data, tiny_cfg, tmp_path, "--hyp", str(hyp), "--noval", "--nbs", "64", epochs=2)
    assert read_checkpoint(folder / "weights" / "last.pt")["ema"]["updates"] == 2


def test_without_validation_nothing_stops_early(tiny_data, tiny_cfg, tmp_path):
    folder = run(tiny_data, tiny_cfg, tmp_path, "--noval", "--patience", "1", epochs=4)
    assert read_checkpoint(folder / "weights" / "last.pt")["epoch"] == 4


def test_noautoanchor_keeps_the_models_own_anchors(tiny_cfg, capsys):
    """`anchors:` of a hyp file would leave placeholders, one of them of width 0."""
    anchors = train.anchors_to_fit(3.4, noautoanchor=True)
    model = train.build_model(weights=None, cfg=str(tiny_cfg), num_classes=1, anchors=anchors)
    assert (model.head.anchors > 0).all() and model.yaml["anchors"][0] == [10, 13, 16, 30, 33, 23]
    assert "WARNING: anchors: 3.4" in capsys.readouterr().err


def test_default_weights_are_used_only_if_present_and_without_a_cfg(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "ROOT", tmp_path)
    absent = resolve_initial_weights("yolov5s.pt", "", typed=False)
    assert absent == (None, "yolov5s.yaml") and "from scratch" in capsys.readouterr().out
    (tmp_path / "yolov5s.pt").touch()
    assert resolve_initial_weights("yolov5s.pt", "", typed=False) == (Path("yolov5s.pt"), "")
    assert resolve_initial_weights("yolov5s.pt", "yolov5n.yaml", typed=False) == (None, "yolov5n.yaml")
    assert resolve_initial_weights("yolov5s.pt", "yolov5n.yaml", typed=True) == (Path("yolov5s.pt"), "yolov5n.yaml")
    assert resolve_initial_weights("", "yolov5n.yaml", typed=True) == (None, "yolov5n.yaml")


def test_resume_looks_in_the_project_folder_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [Path(folder, "weights", "last.pt") for folder in ("runs/train/a", "runs/train/b", "runs/other/c")]
    for age, file in enumerate(files):
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (age, age))
    assert resume.find_checkpoint(True, "runs/train") == files[1]
    with pytest.raises(UserError, match="no run with a checkpoint below runs/absent"):
        resume.find_checkpoint(True, "runs/absent")


def test_varying_sizes_are_the_same_on_every_process():
    def sizes(generator_seed):
        torch.manual_seed(generator_seed)
        np.random.seed(generator_seed)
        run = SimpleNamespace(
            options=TrainOptions(multi_scale=True, imgsz=128),
            model=SimpleNamespace(size_multiple=32),
            distributed=SimpleNamespace(device=torch.device("cpu")),
            progress=SimpleNamespace(iteration=0, epoch=0),
            hyp=Hyperparameters(),
            autocast=None,
        )
        run.resize_factor = partial(Run.resize_factor, run)
        found = []
        for run.progress.iteration in range(12):
            found.append(train.prepare_images(run, torch.zeros(1, 3, 128, 128, dtype=torch.uint8)).shape[-1])
        return found

    assert sizes(0) == sizes(1) and len(set(sizes(0))) > 2


def test_one_gpu_unless_a_list_is_given(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert select_device("") == [torch.device("cuda", 0)]
    assert select_device("1,3") == [torch.device("cuda", 1), torch.device("cuda", 3)]


@pytest.mark.parametrize("text", ["0,1", "0, 1,2,3"])
def test_several_gpus_where_there_is_none_are_the_processor(monkeypatch, capsys, text):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert select_device(text, 7) == [torch.device("cpu")]
    warning = f"WARNING: --device {text}: no GPU found, using the CPU. Type --device cpu to choose it.\n"
    assert capsys.readouterr().err == warning
    for wrong in ("0", "0,x", "0,,1"):  # mistakes, unlike a list of several GPUs
        with pytest.raises(UserError, match=f"--device {wrong}: "):
            select_device(wrong)


def test_automatic_batch_fills_a_share_of_the_free_memory():
    used = {batch: 1e9 + batch * 1e8 for batch in TRIED}
    assert extrapolate(used, MEMORY_SHARE * 20e9) == int((MEMORY_SHARE * 20e9 - 1e9) / 1e8)
    assert extrapolate({1: 1e9, 2: 2e9, 4: 4e9}, 1e12) == 4  # batch size 8 failed


# ---- validation and data


def test_a_slow_clock_drops_no_detections(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    prediction = torch.rand(4, 200, 8, generator=rng) * torch.tensor([600, 600, 50, 50, 1, 1, 1, 1])
    before = non_max_suppression(prediction, 0.1, 0.5)
    clock = iter(range(10**6))
    for name in ("time", "perf_counter", "monotonic"):
        monkeypatch.setattr(time, name, lambda: 1000.0 * next(clock))
    after = non_max_suppression(prediction, 0.1, 0.5)
    assert all(len(rows) and torch.equal(rows, other) for rows, other in zip(before, after, strict=True))


@pytest.mark.parametrize("code", ["bash get.sh", "import os; os.system('touch owned')", "ftp://example.org/set.zip"])
def test_code_in_a_data_file_is_refused(tmp_path, code):
    file = tmp_path / "set.yaml"
    file.write_text(f'path: absent\ntrain: images\nval: images\nnames: [a]\ndownload: "{code}"\n')
    with pytest.raises(UserError, match="code is never run"):
        locate_dataset(str(file))
    assert list(tmp_path.iterdir()) == [file]


def test_a_wrong_nc_is_warned_of(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    file = tmp_path / "set.yaml"
    file.write_text("train: images\nval: images\nnames: [a, b]\nnc: 3\n")
    assert read_dataset_yaml(file).resolve([]).num_classes == 2
    assert "nc: 3 but 2 names" in capsys.readouterr().err


# ---- programs


def test_nothing_but_the_requirements_is_imported():
    """No service needs an account, and no package changes a training merely by being installed."""
    found = set()
    folders = [ROOT / name for name in ("models", "utils", "data/scripts")]
    for file in [*ROOT.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    own = {"models", "utils", "data", *(file.stem for file in ROOT.glob("*.py"))}
    assert found - own - set(sys.stdlib_module_names) <= THIRD_PARTIES
