"""train.run, val.run, detect.run and main(opt), called as notebooks and programs call them."""

import argparse
import copy
import inspect
import json
import locale
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import detect
import export
import train
import val
from utils.cli import SuggestingParser, add_flags
from utils.config import TrainOptions
from utils.errors import Stopped, UserError
from utils.metrics import Metrics
from utils.training.signals import SIGNALS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def trained(tiny_data, tiny_cfg, tmp_path_factory):
    """Return the settings of a short training, and its result."""
    settings = dict(
        data=tiny_data, cfg=tiny_cfg, imgsz=64, batch_size=8, workers=0, epochs=1, device="cpu", amp="off", noplots=True
    )
    return settings, train.run(**settings, project=tmp_path_factory.mktemp("runs"), name="first")


def process_state():
    """Return what a run must leave as it was."""
    return {
        "signals": [signal.getsignal(number) for number in SIGNALS],
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "cv2 threads": cv2.getNumThreads(),
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        "warnings": list(warnings.filters),
        "locale": locale.setlocale(locale.LC_ALL),
        "folder": os.getcwd(),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "path": list(sys.path),
        "backend": (matplotlib_backend(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "printing": (str(np.get_printoptions()), torch.get_default_dtype()),
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
    }


def matplotlib_backend():
    return sys.modules["matplotlib"].rcParams._get_backend_or_none() if "matplotlib" in sys.modules else None


def test_a_training_returns_its_metrics_folder_and_weights(trained):
    _, result = trained
    assert isinstance(result.metrics, Metrics) and result.metrics.images == 8
    assert result.best == result.save_dir / "weights" / "best.pt" and result.last.name == "last.pt"
    assert result.options.epochs == 1 and result.options.imgsz == 64 and result.options.workers == 0


def test_a_run_leaves_the_process_as_it_was(trained, tmp_path):
    """Also the second one of a process, with charts, helpers and a validation, and one that fails."""
    settings, result = trained
    random.seed(3)
    cv2.setNumThreads(2)
    multiprocessing.set_start_method(None, force=True)  # not chosen yet, as in a new program
    before = process_state()
    train.run(**{**settings, "noplots": False, "workers": 2}, project=tmp_path, name="second")
    val.run(settings["data"], result.best, imgsz=64, device="cpu", workers=0, project=tmp_path)
    detect.run(result.best, images_of(settings), imgsz=64, device="cpu", project=tmp_path)
    with pytest.raises(UserError):
        train.run(**{**settings, "cfg": "missing.yaml"})
    after = process_state()
    for key in before:
        assert before[key] == after[key], key
    assert (tmp_path / "second" / "results.png").is_file()


def images_of(settings):
    return settings["data"].parent / "images" / "val"


def test_a_validation_unpacks_as_programs_expect(trained, tmp_path):
    settings, result = trained
    found = val.run(data=settings["data"], weights=result.best, imgsz=64, device="cpu", workers=0, project=tmp_path)
    (p, r, map50, map_, *losses), maps, times = found
    assert (p, r, map50, map_) == (
        found.metrics.precision, found.metrics.recall, found.metrics.map50, found.metrics.map
    )  # fmt: skip
    assert len(losses) == 3 and maps.shape == (2,) and len(times) == 3 and min(times) > 0
    assert found[0][2] == map50 and found[1] is maps and found.save_dir == tmp_path / "exp"


def test_a_detection_returns_its_folder(trained, tmp_path):
    settings, result = trained
    folder = detect.run(
        weights=str(result.best), source=images_of(settings), imgsz=(64, 96), conf_thres=0.001, max_det=2,
        classes=[0, 1], save_txt=True, nosave=True, exist_ok=True, device=torch.device("cpu"), project=str(tmp_path),
        name="found",
    )  # fmt: skip
    assert folder == tmp_path / "found" and not list(folder.glob("*.png"))
    assert len(list((folder / "labels").glob("*.txt"))) == 8


def test_an_export_returns_its_files(trained, tmp_path, monkeypatch):
    settings, result = trained
    monkeypatch.chdir(tmp_path)
    weights = shutil.copy(result.best, tmp_path / "tiny.pt")
    paths = export.run(weights=weights, imgsz=(64, 64), include=["torchscript"], data=settings["data"])
    assert paths == [tmp_path / "tiny.torchscript"] and paths[0].is_file()
    model = torch.hub.load(str(ROOT), "custom", path=paths[0], source="local", device="cpu")
    reference = torch.hub.load(str(ROOT), "custom", path=weights, source="local", device="cpu")
    model.conf = reference.conf = 1e-5
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found, expected = model(image).xyxy[0], reference(image, size=64).xyxy[0]
    assert len(found) == len(expected) > 0 and torch.allclose(found[:, 4], expected[:, 4], atol=1e-4)
    assert model.names == {0: "dark", 1: "bright"} and export.parse_opt.__module__ == "export"


@pytest.mark.parametrize("run, keywords, message", [
    (train.run, {"epoch": 3}, "unknown keyword epoch; did you mean epochs?"),
    (train.run, {"batchsize": 3}, "did you mean batch_size?"),
    (train.run, {"epochs": "three"}, "argument --epochs: invalid int value: 'three'"),
    (train.run, {"epochs": True}, "epochs=True: expected a value"),
    (train.run, {"optimizer": "Lion"}, "argument --optimizer: invalid choice"),
    (train.run, {"exist_ok": "yes"}, "exist_ok='yes': expected True or False"),
    (train.run, {"entity": "team"}, "--entity of YOLOv5 is not offered"),
    (train.run, {"epochs": 0}, "--epochs 0: at least 1"),
    (train.run, {"data": "missing.yaml", "cfg": "yolov5n.yaml"}, "missing.yaml"),
    (val.run, {"conf": 0.1}, "unknown keyword conf"),
    (val.run, {"weights": "missing.pt"}, "missing.pt: no such file"),
    (export.run, {"includes": ["onnx"]}, "unknown keyword includes; did you mean include?"),
    (detect.run, {"imgsz": (1, 2, 3)}, "--imgsz 1 2 3: expected one side or height and width"),
    (detect.run, {"source": "missing.jpg", "weights": "missing.pt"}, "missing"),
])  # fmt: skip
def test_mistakes_are_errors_and_never_end_the_interpreter(run, keywords, message):
    with pytest.raises(UserError) as wrong:
        run(**keywords)
    assert message in str(wrong.value) and "\n" not in str(wrong.value)


@pytest.mark.parametrize("keywords, words", [
    ({}, []),
    ({"epochs": 3, "data": Path("a b.yaml")}, ["--epochs=3", "--data=a b.yaml"]),
    ({"exist_ok": True, "nosave": False, "cos_lr": None}, ["--exist_ok"]),
    ({"freeze": [0, 1], "img_size": 64}, ["--freeze", "0", "1", "--img_size=64"]),
    ({"resume": True, "cache": "disk", "evolve": False}, ["--resume", "--cache=disk"]),
    ({"name": "--odd", "device": 0, "lr": None}, ["--name=--odd", "--device=0"]),
    ({"entity": None, "quiet": True}, ["--quiet"]),
])  # fmt: skip
def test_keywords_become_words(keywords, words):
    parser = add_flags(SuggestingParser(), TrainOptions)
    parser.add_argument("-q", "--quiet", action="store_true")
    assert parser.words_of(keywords) == words


def test_main_takes_the_namespace_of_parse_opt(trained, tmp_path, monkeypatch):
    settings, _ = trained
    monkeypatch.setattr(sys, "argv", ["train.py", "--weights", "yolov5s.pt", "-f", "kernel.json"])
    opt = train.parse_opt(known=True)
    assert (opt.epochs, opt.batch_size, opt.weights, opt.cos_lr) == (100, 16, "yolov5s.pt", False)
    assert opt.typed == {"weights"} and "typed" not in vars(opt) and copy.deepcopy(opt).typed == opt.typed
    with pytest.raises(SystemExit):
        train.parse_opt()
    monkeypatch.setattr(sys, "argv", ["x.py", "--imgsz", "64"])
    opt = train.parse_opt()
    for name, value in {**settings, "data": str(settings["data"]), "project": str(tmp_path)}.items():
        setattr(opt, name, value)
    assert train.main(opt).images == 8 and (tmp_path / "exp" / "weights" / "best.pt").is_file()
    plain = argparse.Namespace(weights=[tmp_path / "exp" / "weights" / "best.pt"], data=str(settings["data"]), imgsz=64)
    plain.project, plain.device, plain.workers = tmp_path / "val", "cpu", 0
    assert val.main(plain).images == 8
    assert detect.parse_opt().imgsz == [64] and val.parse_opt().conf_thres == 0.001
    plain.batch = 3
    with pytest.raises(UserError, match="unknown keyword batch; did you mean batch_size?"):
        val.main(plain)


def test_a_training_in_a_thread(trained, tmp_path):
    """Signals are handled in the main thread only."""
    settings, _ = trained
    found = []
    thread = threading.Thread(target=lambda: found.append(train.run(**settings, project=tmp_path)))
    thread.start()
    thread.join()
    assert len(found) == 1 and found[0].metrics.images == 8 and found[0].best.is_file()


def test_a_signal_stops_a_run_with_an_error_that_says_how_to_resume(trained, tmp_path):
    settings, _ = trained

    class Sender:
        def on_batch(self, run, report):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match=r"exit code 75.*resume"):
        train.run(**settings, project=tmp_path, name="run", observers=[Sender()])
    assert train.run(resume=tmp_path / "run", noplots=True).metrics.images == 8


# No `if __name__` guards the call, and both start methods import the program again if it is not hidden.
PROGRAM = """
import json, multiprocessing, sys
print("begin", flush=True)
sys.path.insert(0, {root!r})
method, settings = sys.argv[1], json.loads(sys.argv[2])
multiprocessing.set_start_method(method)
import val
from utils.loading import loader
metrics = val.run(**settings).metrics
assert metrics.images == 8, metrics
print("end", sys.modules["__main__"].__file__, flush=True)
"""


def test_spawned_workers_do_not_run_the_program_again(trained, tmp_path):
    settings, result = trained
    (tmp_path / "program.py").write_text(PROGRAM.format(root=str(ROOT)))
    keywords = {"data": str(settings["data"]), "weights": str(result.best), "imgsz": 64, "workers": 2, "device": "cpu"}
    keywords |= {"project": str(tmp_path), "batch_size": 2}
    done = subprocess.run(
        [sys.executable, "-W", "error", "program.py", "spawn", json.dumps(keywords)],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("begin") == 1 and "end program.py" in done.stdout.replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("run, first", [
    (val.run, ["data", "weights"]),
    (detect.run, ["weights", "source"]),
    (train.run, ["observers"]),
])  # fmt: skip
def test_positional_arguments(run, first):
    assert list(inspect.signature(run).parameters)[: len(first)] == first
