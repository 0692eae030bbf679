"""torch.hub: loading by real `torch.hub.load` beside a caller's own packages, and the published numbers."""

import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.yolo import DetectionModel
from utils.checkpoint import describe_model, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SIZES = [
    "yolov5n",
    "yolov5s",
    "yolov5m",
    "yolov5l",
    "yolov5x",
    "yolov5n6",
    "yolov5s6",
    "yolov5m6",
    "yolov5l6",
    "yolov5x6",
]


def load(name, *args, **settings):
    return torch.hub.load(str(ROOT), name, *args, source="local", device="cpu", **settings)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tiny_cfg):
    """Write the weights of an untrained model of two classes that finds something everywhere, and an image."""
    torch.manual_seed(0)
    model = DetectionModel(tiny_cfg, num_classes=2)
    model.names = {0: "dark", 1: "bright"}
    with torch.no_grad():
        for convolution in model.head.m:
            convolution.bias.view(3, -1)[:, 4] += 6
    folder = tmp_path_factory.mktemp("hub")
    write_checkpoint(folder / "tiny.pt", {"model": describe_model(model)}, kind="weights")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return folder


@pytest.fixture
def caller(tmp_path, tiny):
    """Write a program's own packages of the names that are ours. Return a function that runs a script beside them."""
    for package in ("utils", "models", "data"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"OWN = {package!r}\n")
    (tmp_path / "utils" / "boxes.py").write_text("OWN = 'boxes'\n")  # as a module of ours is called
    (tmp_path / "train.py").write_text("OWN = 'train'\n")

    def run(script: str) -> str:
        (tmp_path / "program.py").write_text(PREAMBLE.format(root=str(ROOT), tiny=str(tiny)) + script)
        done = subprocess.run(
            [sys.executable, "-W", "error", "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


PREAMBLE = """
import os, pickle, subprocess, sys, threading
import torch, torchvision, cv2
ROOT, TINY = {root!r}, {tiny!r}
NAMES = ("utils", "models", "data", "train", "val", "detect", "export", "hubconf")

def load(device="cpu"):
    weights = TINY + "/tiny.pt"
    return torch.hub.load(ROOT, "custom", path=weights, source="local", device=device, _verbose=False)

def check_own():
    import utils, models, data, train, utils.boxes
    found = [module.OWN for module in (utils, models, data, train, utils.boxes)]
    assert found == ["utils", "models", "data", "train", "boxes"]
    here = os.getcwd()
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in NAMES:
            assert module.__file__.startswith(here), (name, module)

def ours():
    return [name for name in sys.modules if name.split(".")[0] in NAMES]

def use(model):
    results = model(TINY + "/image.png", size=64)
    assert len(results.xyxy[0]) > 0, results
    results.save(save_dir="saved"), results.crop(save_dir="saved"), results.render(), results.print(), results.pandas()
    results.detections[0].to_coco(), results.to_json(), results.tolist()
    return results
"""
OWN_FIRST = """
check_own()
path, own = list(sys.path), ours()
model = load()
assert sys.path == path and ours() == own
use(model)
check_own()
assert sys.path == path and ours() == own
print("fine")
"""
HUB_FIRST = """
path = list(sys.path)
model = load()
assert sys.path == path and not ours()
heavy = [name for name in ("matplotlib", "pandas", "pycocotools", "optuna", "scipy") if name in sys.modules]
assert not heavy, heavy
check_own()
use(model)  # what it imports late is still ours
check_own()
assert sys.path == path and not os.path.isdir("runs")
from utils import boxes
assert boxes.OWN == "boxes"
print("fine")
"""
THREADS = """
seen = []

class Device:
    "Let another thread import the caller's packages in the middle of a load, when torch.hub has changed sys.path."
    def __str__(self):
        assert ROOT in sys.path
        seen.append(True)
        thread = threading.Thread(target=check_own)
        thread.start()
        thread.join()
        return "cpu"

load(device=Device())
assert seen and ours() and ROOT not in sys.path
check_own()
errors, start = [], threading.Barrier(4)

def work(function):
    start.wait()
    try:
        for _ in range(3):
            function()
    except BaseException as error:
        errors.append(error)

threads = [threading.Thread(target=work, args=(f,)) for f in [load, lambda: use(load()), check_own]]
[thread.start() for thread in threads]
start.wait()
[thread.join() for thread in threads]
assert not errors, errors
check_own()
model = load()
first = use(model)
with open("model.pkl", "wb") as file:
    pickle.dump((model, first, first.detections[0]), file)
again, results, detections = pickle.loads(pickle.dumps((model, first, first.detections[0])))
assert type(again) is type(model) and torch.equal(use(again).xyxy[0], first.xyxy[0])
torch.save(model, "model.pt")
print("fine")
"""
# Without a line that guards the start: the child runs this file again.
UNPICKLING = """
import multiprocessing

def count(model, results):
    check_own()
    assert len(use(model).xyxy[0]) == len(results.xyxy[0])
    return results

if __name__ == "__main__":
    check_own()
    with open("model.pkl", "rb") as file:
        model, results, detections = pickle.load(file)
    assert len(use(model).xyxy[0]) == len(results.xyxy[0]) == len(detections) > 0
    check_own()
    loaded = torch.load("model.pt", weights_only=False)
    assert torch.equal(use(loaded).xyxy[0], results.xyxy[0])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        returned = pool.apply(count, (model, results))
    assert torch.equal(returned.xyxy[0], results.xyxy[0]) and type(returned) is type(results)
    print("fine")
"""


@pytest.mark.parametrize("script", [OWN_FIRST, HUB_FIRST], ids=["own first", "hub first"])
def test_packages_of_the_caller_stay_as_they_are(caller, script):
    assert caller(script).endswith("fine\n")


def test_threads_and_other_processes(caller):
    assert caller(THREADS).endswith("fine\n")
    assert caller(UNPICKLING).endswith("fine\n")


def test_every_published_size_is_built(monkeypatch):
    """Sizes, with the arguments and defaults of the interface."""
    import hubconf

    expected = "(pretrained=True, channels=3, classes=80, autoshape=True, _verbose=True, device=None)"
    for name in SIZES:
        assert str(inspect.signature(getattr(hubconf, name))) == expected
        assert name in getattr(hubconf, name).__doc__
    defaults = {name: entry.default for name, entry in inspect.signature(hubconf.custom).parameters.items()}
    assert defaults == {"path": "path/to/model.pt", "autoshape": True, "_verbose": True, "device": None}
    assert hubconf.dependencies == ["torch"]
    listed = [name for name in dir(hubconf) if callable(getattr(hubconf, name)) and name[0] != "_"]  # as torch.hub does
    assert sorted(listed) == sorted(["custom", *SIZES])


def test_a_model_without_weights(capsys):
    model = load("yolov5n6", pretrained=False, classes=7, _verbose=False)
    assert (model.model.num_classes, model.stride, model.yaml["nc"]) == (7, 64, 7) and capsys.readouterr().out == ""
    assert model(np.zeros((64, 64, 3), np.uint8), size=64).n == 1
    grey = load("yolov5n", pretrained=False, channels=1, classes=2, autoshape=False)
    assert grey(torch.zeros(1, 1, 64, 64))[0].shape == (1, 252, 7)
    assert capsys.readouterr().out.startswith("yolov5n of 2 classes on CPU")


def test_the_bare_network(tiny):
    network = load("custom", path=tiny / "tiny.pt", autoshape=False)
    assert type(network).__name__ == "DetectionModel" and any(".bn." in name for name in network.state_dict())
    wrapped = load("custom", tiny / "tiny.pt")
    assert not any(".bn." in name for name in wrapped.state_dict())


def test_an_ensemble(tiny):
    model = load("custom", path=[tiny / "tiny.pt", tiny / "tiny.pt"])
    one = load("custom", path=str(tiny / "tiny.pt"))
    both, single = model(tiny / "image.png", size=64), one(tiny / "image.png", size=64)
    assert both.names == {0: "dark", 1: "bright"}
    rows = [sorted(results.xyxy[0].round(decimals=3).tolist()) for results in (both, single)]  # some confidences tie
    assert rows[0] == rows[1] != []


@pytest.mark.parametrize("path, words", [
    ("missing.pt", "missing.pt: no such file"),
    ("path/to/model.pt", "no such file"),
    (__file__, "not a checkpoint"),
])  # fmt: skip
def test_wrong_weights_are_one_line(path, words):
    with pytest.raises(ValueError, match=words) as wrong:
        load("custom", path=path)
    assert "\n" not in str(wrong.value)


def test_published_weights_are_found_here(reference, tmp_path):
    """A new head for other classes, and the published one for 80."""
    weights = reference / "weights" / "yolov5n.pt"
    os.symlink(weights, tmp_path / "yolov5n.pt")
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        model, other = load("yolov5n"), load("yolov5n", classes=3, autoshape=False)
    finally:
        os.chdir(before)
    assert model.names[0] == "person" and other.num_classes == 3
    bare = load("custom", path=weights, autoshape=False).state_dict()
    same = [name for name, value in other.state_dict().items() if torch.equal(value, bare[name])]
    assert len(other.state_dict()) - len(same) == 6  # weights and biases of three levels


GOLDEN = {
    **{f"single640-{i}": (slice(i, i + 1), {}) for i in range(6)},
    "list640": (slice(0, 4), {}),
    "list320": (slice(4, 8), {"size": 320}),
    "augment": (slice(1, 2), {"augment": True}),
    "settings": (slice(8, 12), {}),
}
SETTINGS = {"conf": 0.1, "iou": 0.6, "classes": [0, 2, 56], "max_det": 20, "agnostic": True}


def test_the_published_numbers(reference):
    golden = np.load(reference / "golden" / "hub.npz")
    folder = reference / "datasets" / "coco128" / "images" / "train2017"
    files = [folder / name for name in golden["files"]]
    model = load("custom", path=reference / "weights" / "yolov5n.pt")
    for case, (chosen, settings) in GOLDEN.items():
        for name, value in SETTINGS.items() if case == "settings" else ():
            setattr(model, name, value)
        check_case(case, golden, model(files[chosen], **settings))
    model = load("custom", path=reference / "weights" / "yolov5n.pt")
    with Image.open(files[0]) as image:
        check_case("array", golden, model(np.asarray(image.convert("RGB"))))


def check_case(case, golden, results):
    assert results.s == tuple(golden[f"{case}/shape"]), case
    for i, (found, normalised, image) in enumerate(zip(results.xyxy, results.xywhn, results.ims, strict=True)):
        expected = golden[f"{case}/{i}/xyxy"]
        assert found[:, 5].tolist() == expected[:, 5].tolist(), (case, i)
        gain = min(results.s[2] / image.shape[0], results.s[3] / image.shape[1])
        # of the input, the reference shifts boxes by half a pixel where a margin is odd, and rounds the inner sides
        assert np.abs(found[:, :4].numpy() - expected[:, :4]).max(initial=0) < 0.02 + 0.9 / gain
        assert np.abs(found[:, 4].numpy() - expected[:, 4]).max(initial=0) < 2e-3
        assert np.abs(normalised.numpy() - golden[f"{case}/{i}/xywhn"]).max(initial=0) < 4e-3


def test_pickles_need_no_project(tiny):
    """The functions that a pickle names are those of PyTorch and Python."""
    model = load("custom", path=tiny / "tiny.pt")
    outer = pickle.dumps(model(tiny / "image.png", size=64))
    assert b"anchorage_" in outer  # within the data for `_rebuild` only
    assert outer.index(b"torch.hub") < outer.index(b"_rebuild") < outer.index(b"anchorage_")
