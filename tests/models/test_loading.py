"""Weights files read into networks: published, our own, of other versions, several as one."""

import copy
import hashlib
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import RELEASES, TINY, image, published_weights, require_one_line, save_pickled, tiny_model
from torch import nn

from models import loading
from models.loading import Ensemble, load_ensemble, load_model, read_weights, resolve_weights, transfer
from models.yolo import DetectionModel
from models.yolov5_pickle import YOLOv5File
from utils import checkpoint
from utils.checkpoint import describe_model, inference_checkpoint, read_checkpoint, write_checkpoint
from utils.errors import UserError


@pytest.fixture(scope="module")
def released(reference):
    return published_weights(reference)


@pytest.mark.parametrize("name", RELEASES)
def test_published_weights_load(name, released):
    weights = read_weights(released / name)
    assert weights.origin == "yolov5" and len(weights.names) == 80
    assert weights.names[0] == "person" and weights.names[79] == "toothbrush"
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights.state_dict.values())
    model = load_model(released / name, fuse=False)
    assert not model.training and model.names == weights.names and model.num_classes == 80
    assert len(model.state_dict()) == 349
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights.state_dict[key]), key
    pixels = model.head.anchors * model.stride.reshape(-1, 1, 1)
    assert pixels[0].tolist() == [[10, 13], [16, 30], [33, 23]]


def test_generations_agree_on_what_transfers(released):
    model = DetectionModel("yolov5n")
    new, old = (read_weights(released / name) for name in RELEASES)
    assert transfer(model, new.state_dict) == (349, 349)
    assert transfer(model, old.state_dict) == (349, 349)
    assert transfer(model, new.state_dict, exclude=["anchors"]) == (348, 349)
    fewer = DetectionModel("yolov5n", num_classes=2)
    before = fewer.head.m[0].weight.clone()
    assert transfer(fewer, new.state_dict) == (343, 349), "the three output convolutions have other shapes"
    assert torch.equal(fewer.head.m[0].weight, before)
    assert transfer(DetectionModel("yolov5s"), new.state_dict).matched < 100
    assert transfer(model, {}) == (0, 349)


def test_loading_leaves_the_random_generator_alone(released):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_model(released / RELEASES[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_fusing_keeps_the_output(released):
    plain, fused = (load_model(released / RELEASES[0], fuse=fuse) for fuse in (False, True))
    with torch.inference_mode():
        a, b = plain(image(1, 128))[0], fused(image(1, 128))[0]
    assert len(fused.state_dict()) == 121 and (a - b).abs().max() < 1e-3 * a.abs().max()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_whole_pickled_models_load(tmp_path, zipped):
    model = tiny_model()
    model.names = ["a", "b", "c"]
    options = {"save_dir": Path("runs/exp"), "evolve_population": Path("data")}
    file = save_pickled(model.half(), tmp_path / "m.pt", zipped=zipped, opt=options, date=None, best_fitness=0.5)
    weights = read_weights(file)
    assert weights.names == {0: "a", 1: "b", 2: "c"} and weights.yaml["backbone"] == TINY["backbone"]
    for key, value in model.state_dict().items():
        assert torch.equal(weights.state_dict[key], value.float() if value.is_floating_point() else value), key
    assert "model.7.stride" not in weights.state_dict, "non-persistent buffers are not in it"
    with YOLOv5File(file) as read:
        assert read.content["opt"]["save_dir"] == "runs/exp", "paths are read as text"


def test_ema_is_preferred(tmp_path):
    model, average = tiny_model(), tiny_model()
    with torch.no_grad():
        average.model[0].conv.weight.fill_(0.25)
    for ema in (average, (average, 17)):  # the tuple: before v6
        file = save_pickled(model, tmp_path / "m.pt", ema=ema)
        assert (read_weights(file).state_dict["model.0.conv.weight"] == 0.25).all()


def test_model_in_a_wrapper(tmp_path):
    file = save_pickled(nn.DataParallel(tiny_model()), tmp_path / "m.pt")
    assert "model.0.conv.weight" in read_weights(file).state_dict


def test_a_numpy_fitness_is_ignored(tmp_path):
    for fitness in (np.array([0.5]), np.float64(0.5)):
        assert read_weights(save_pickled(tiny_model(), tmp_path / "m.pt", best_fitness=fitness)).origin == "yolov5"


def test_old_activation_is_found(tmp_path):
    model = tiny_model(activation="nn.Hardswish()")
    del model.yaml["activation"]
    loaded = load_model(save_pickled(model, tmp_path / "m.pt"))
    assert isinstance(loaded.model[0].act, nn.Hardswish)
    with torch.inference_mode():
        assert torch.allclose(loaded(image(1, 64))[0], model(image(1, 64))[0], rtol=1e-3, atol=1e-2)


def test_model_saved_after_fusing(tmp_path):
    model = tiny_model().fuse().to(memory_format=torch.channels_last)  # as models are loaded
    loaded = load_model(save_pickled(model, tmp_path / "m.pt"))
    with torch.inference_mode():
        assert torch.equal(loaded(image(1, 64))[0], model(image(1, 64))[0])


def test_names_that_do_not_fit_are_filled_up(tmp_path):
    model = tiny_model()
    model.names = {0: "a", 7: "x", 2: 5}
    assert read_weights(save_pickled(model, tmp_path / "m.pt")).names == {0: "a", 1: "1", 2: "2"}


def test_the_outline_of_an_own_checkpoint_is_read_once(tmp_path, monkeypatch):
    model, calls = tiny_model(), []
    write_checkpoint(tmp_path / "last.pt", {"model": describe_model(model)})
    read_outline = checkpoint.read_outline
    monkeypatch.setattr(checkpoint, "read_outline", lambda path: calls.append(path) or read_outline(path))
    assert read_weights(tmp_path / "last.pt").names == model.names and len(calls) == 1


def test_own_checkpoints(tmp_path):
    model, average = tiny_model(), tiny_model()
    with torch.no_grad():
        average.model[0].conv.weight.fill_(1 / 3)
    model.names = {0: "a", 1: "b", 2: "c"}
    file, stripped = tmp_path / "last.pt", tmp_path / "best.pt"
    write_checkpoint(file, {"model": describe_model(model), "ema": {"state_dict": average.state_dict(), "updates": 5}})
    write_checkpoint(stripped, inference_checkpoint(read_checkpoint(file)), kind="weights")
    for path in (file, stripped):
        weights = read_weights(path)
        assert weights.origin == "anchorage" and weights.names == model.names and weights.yaml == model.yaml
        value = weights.state_dict["model.0.conv.weight"]
        assert value.dtype == torch.float32 and torch.allclose(value, torch.tensor(1 / 3), atol=1e-3)
        assert load_model(path).names == model.names
    write_checkpoint(file, {"model": describe_model(model)}, kind="weights")
    assert torch.equal(read_weights(file).state_dict["model.0.conv.weight"], model.model[0].conv.weight)


def test_own_checkpoint_that_lacks_parts(tmp_path):
    file = tmp_path / "last.pt"
    whole = describe_model(tiny_model())
    for part, message in (("yaml", "lacks a part of its model.*yaml"), ("state_dict", "lacks a part.*state_dict")):
        write_checkpoint(file, {"model": {key: value for key, value in whole.items() if key != part}})
        with pytest.raises(UserError, match=message):
            read_weights(file)
    write_checkpoint(file, {"model": whole | {"state_dict": {}}})
    with pytest.raises(UserError, match="no tensors"):
        read_weights(file)
    write_checkpoint(file, {"model": whole | {"yaml": whole["yaml"] | {"nc": 10**12}}})
    with pytest.raises(UserError, match="number of classes"):
        read_weights(file)
    torch.save({"anchorage": 99}, file)
    with pytest.raises(UserError, match="newer version"):
        read_weights(file)


def test_weights_that_do_not_fit_their_description(tmp_path):
    file = tmp_path / "w.pt"
    whole = describe_model(tiny_model())
    short = {key: value for key, value in whole["state_dict"].items() if key != "model.2.cv1.conv.weight"}
    write_checkpoint(file, {"model": whole | {"state_dict": short}}, kind="weights")
    with pytest.raises(UserError, match="w.pt: does not fit its own description: model.2.cv1.conv.weight is missing"):
        load_model(file)
    write_checkpoint(file, {"model": whole | {"yaml": whole["yaml"] | {"nc": 4}}}, kind="weights")
    with pytest.raises(UserError, match="model.7.m.0.weight has shape"):
        load_model(file)
    write_checkpoint(file, {"model": whole | {"yaml": whole["yaml"] | {"head": []}}}, kind="weights")
    with pytest.raises(UserError, match="w.pt: .*Detect"):
        load_model(file)


def test_description_must_be_plain(tmp_path):
    model = tiny_model()
    model.yaml["activation"] = nn.ReLU()
    with pytest.raises(UserError, match="description"):
        read_weights(save_pickled(model, tmp_path / "m.pt"))
    model.yaml = copy.deepcopy(TINY) | {"activation": "__import__('os').system('true')"}
    with pytest.raises(UserError, match="activation"):
        load_model(save_pickled(model, tmp_path / "m.pt"))


def test_files_that_are_no_checkpoints(tmp_path):
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html>Not found</html>")
    (tmp_path / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 14808437\n")
    (tmp_path / "v8.pt").write_bytes(b"\x80\x02cultralytics.nn.tasks\nDetectionModel\n.")
    (tmp_path / "fork.pt").write_bytes(b"\x80\x02ctimm.layers\nAttention\n.")
    (tmp_path / "number.pt").write_bytes(pickle.dumps(5))
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "state.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"model": nn.Conv2d(3, 3, 1)}, tmp_path / "other.pt")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps(1, 2))
        archive.writestr("m/constants.pkl", pickle.dumps(1, 2))
    for name, message in (
        ("page", "not a checkpoint, but a web page"),
        ("lfs", "not a checkpoint, but a pointer of Git LFS"),
        ("v8", "a model of YOLOv8 or later .*not a YOLOv5 model"),
        ("fork", "not a YOLOv5 model: it needs timm.layers.Attention, of a fork"),
        ("number", "not a checkpoint"),
        ("zip", "not a checkpoint"),
        ("state", "no YOLOv5 model \\(only the keys weight\\)"),
        ("list", "no YOLOv5 model \\(only a list"),
        ("other", "no description"),
        ("script", "TorchScript"),
        ("absent", "no such file"),
    ):
        with pytest.raises(UserError, match=f"{name}.pt: .*{message}") as error:
            read_weights(tmp_path / f"{name}.pt")
        require_one_line(error)


def test_ensemble(tmp_path):
    files = [save_pickled(tiny_model(), tmp_path / f"{number}.pt") for number in (1, 2)]
    second = tiny_model()
    with torch.no_grad():
        second.head.m[0].bias.add_(1)
    save_pickled(second, files[1])
    both = load_ensemble(files)
    assert isinstance(both, Ensemble) and both.stride.tolist() == [8, 16] and both.num_classes == 3
    with torch.inference_mode():
        rows, other = both(image(1, 64))
        parts = [load_model(file)(image(1, 64))[0] for file in files]
        assert torch.equal(rows, torch.cat(parts, 1)) and other is None
        assert both(image(1, 64), augment=True)[0].shape[1] == 2 * (128 + 160 + 18)
    assert isinstance(load_ensemble(files[:1]), DetectionModel)
    save_pickled(tiny_model(nc=4), files[1])
    with pytest.raises(UserError, match="2.pt: 4 classes, but .*1.pt has 3"):
        load_ensemble(files)
    with pytest.raises(UserError, match="--weights"):
        load_ensemble([])


def test_an_ensemble_of_other_names_is_an_error(tmp_path):
    files = []
    for number, names in enumerate((["0", "1", "2"], ["a", "b", "c"], ["a", "c", "b"])):
        model = tiny_model()
        model.names = dict(enumerate(names))
        files.append(save_pickled(model, tmp_path / f"{number}.pt"))
    assert load_ensemble(files[:2]).names == {0: "a", 1: "b", 2: "c"}  # numbers are no names
    with pytest.raises(UserError, match="1.pt and .*2.pt: class 1 is 'b' and 'c'"):
        load_ensemble(files[1:])


def test_weights_with_nan_are_an_error(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.head.m[0].bias[0] = float("nan")
    with pytest.raises(UserError, match="x.pt: model.*bias has NaN or infinite values"):
        load_model(save_pickled(model, tmp_path / "x.pt"))


def test_resolve_weights(tmp_path, monkeypatch):
    project, here = tmp_path / "project", tmp_path / "here"
    for folder in (project / "weights", here / "exp" / "weights"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr(loading, "ROOT", project)
    (project / "weights" / "yolov5s.pt").touch()
    assert resolve_weights("yolov5s.pt", allow_download=False) == project / "weights" / "yolov5s.pt"
    assert resolve_weights("yolov5s", allow_download=False) == project / "weights" / "yolov5s.pt"
    (project / "yolov5s.pt").touch()
    assert resolve_weights("yolov5s.pt", allow_download=False) == project / "yolov5s.pt"
    (here / "yolov5s.pt").touch()
    assert resolve_weights("yolov5s.pt", allow_download=False).resolve() == here / "yolov5s.pt"
    for name, message in (
        ("mine.pt", "mine.pt: no such file, here or in"),
        ("exp", "a folder: give the .pt file in it"),
        ("exp/weights", "such as exp/weights/best.pt"),
        ("yolov5n.yaml", "a model YAML has no weights: give a .pt file"),
        ("m.onnx", "ONNX holds no weights that can be trained or exported: give the .pt file"),
        ("m.torchscript", "TorchScript holds no weights"),
        ("m.engine", "TensorRT holds no weights"),
        ("yolov5n.pt", f"put the file at {project / 'weights' / 'yolov5n.pt'}"),
    ):
        with pytest.raises(UserError, match=message):
            resolve_weights(name, allow_download=False)


def test_published_weights_are_fetched(tmp_path, monkeypatch, capsys):
    import utils.download

    fetched = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "ROOT", tmp_path)
    monkeypatch.setattr(utils.download, "fetch", lambda url, target, **checks: fetched.append((url, checks)) or target)
    for name in ("yolov5n.pt", "yolov5x6.pt"):
        assert resolve_weights(name, allow_download=True) == tmp_path / "weights" / name
        assert "AGPL-3.0" in capsys.readouterr().out
    assert [url.rpartition("/")[0] for url, _ in fetched] == [
        "https://github.com/ultralytics/yolov5/releases/download/v7.0"
    ] * 2
    assert fetched[0][1]["sha256"].startswith("4f180cf2") and fetched[1][1]["sha256"] is None
    with pytest.raises(UserError, match="no such file"):
        resolve_weights("yolov9.pt", allow_download=True)


def test_published_checksum(released):
    assert hashlib.sha256((released / "yolov5n.pt").read_bytes()).hexdigest() == loading.SHA256["yolov5n.pt"]
