"""Weights files: ours, YOLOv5's, hostile and damaged ones."""

import copy
import hashlib
import io
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from test_models import TINY, image, tiny_model
from torch import nn

from models import loading
from models.loading import Ensemble, load_ensemble, load_model, read_weights, resolve_weights, transfer
from models.yolo import DetectionModel
from models.yolov5_pickle import PickledObject, YOLOv5File
from utils.checkpoint import describe_model, inference_checkpoint, read_checkpoint, write_checkpoint
from utils.errors import UserError

RELEASES = ["yolov5n.pt", "yolov5n_v6.0.pt"]


@pytest.fixture(scope="module")
def released(reference):
    """The small published weights of two generations."""
    for name in RELEASES:
        if not (reference / "weights" / name).is_file():
            pytest.skip(f"{name} is not in {reference / 'weights'}")
    return reference / "weights"


@pytest.fixture
def canary(tmp_path):
    """A file that appears when a pickle gets to run `touch`."""
    file = tmp_path / "canary"
    yield file
    assert not file.exists(), "code in a weights file was run"


def write_zip(path: Path, data: bytes, storages: dict[str, bytes] | None = None, **settings) -> Path:
    """An archive as torch writes them, with the pickle `data`."""
    with zipfile.ZipFile(path, "w", **settings) as archive:
        archive.writestr("archive/data.pkl", data)
        for key, block in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", block)
    return path


def call(module: str, name: str, argument: str) -> bytes:
    """A pickle (protocol 2) of {"model": module.name(argument)}."""
    text = argument.encode()
    function = f"c{module}\n{name}\n".encode()
    return b"\x80\x02}X\x05\x00\x00\x00model" + function + b"X" + struct.pack("<I", len(text)) + text + b"\x85Rs."


def tensor_pickle(numel: int, offset: int, shape: tuple, strides: tuple) -> bytes:
    """A pickle of one float tensor over storage "0"."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, entry):
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if entry is Token else None

    class Token:
        pass

    class View:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Token, offset, shape, strides, False, OrderedDict())

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(View())
    return file.getvalue()


def save_whole(model: nn.Module, path: Path, *, zipped: bool = True, **content) -> Path:
    """As YOLOv5 does: the module itself, pickled."""
    torch.save({"epoch": -1, "ema": None, "model": model, **content}, path, _use_new_zipfile_serialization=zipped)
    return path


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- published weights


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


@pytest.mark.parametrize("name", RELEASES)
def test_published_tensors_are_as_torch_reads_them(name, released):
    """Against torch's own reader of raw storages: every tensor's values are found in the archive where it says."""
    with zipfile.ZipFile(released / name) as archive, YOLOv5File(released / name) as file:
        folder = archive.namelist()[0].split("/")[0]
        state = file.state_dict(file.content["model"])
        weight = state["model.0.conv.weight"]
        assert weight.dtype == torch.float16
        blocks = [archive.read(entry) for entry in archive.namelist() if entry.startswith(f"{folder}/data/")]
        assert weight.numpy().tobytes() in blocks


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


# ---- other files of YOLOv5


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_whole_pickled_models_load(tmp_path, zipped):
    model = tiny_model()
    model.names = ["a", "b", "c"]
    options = {"save_dir": Path("runs/exp"), "evolve_population": Path("data")}
    file = save_whole(model.half(), tmp_path / "m.pt", zipped=zipped, opt=options, date=None, best_fitness=0.5)
    weights = read_weights(file)
    assert weights.names == {0: "a", 1: "b", 2: "c"} and weights.yaml["backbone"] == TINY["backbone"]
    for key, value in model.state_dict().items():
        assert torch.equal(weights.state_dict[key], value.float() if value.is_floating_point() else value), key
    assert "model.7.stride" not in weights.state_dict, "buffers that are not saved stay out"
    with YOLOv5File(file) as read:
        assert read.content["opt"]["save_dir"] == "runs/exp", "paths come as text"


def test_ema_is_preferred(tmp_path):
    model, average = tiny_model(), tiny_model()
    with torch.no_grad():
        average.model[0].conv.weight.fill_(0.25)
    for ema in (average, (average, 17)):  # the tuple: before v6
        file = save_whole(model, tmp_path / "m.pt", ema=ema)
        assert (read_weights(file).state_dict["model.0.conv.weight"] == 0.25).all()


def test_model_in_a_wrapper(tmp_path):
    file = save_whole(nn.DataParallel(tiny_model()), tmp_path / "m.pt")
    assert "model.0.conv.weight" in read_weights(file).state_dict


def test_numpy_fitness_is_read_past(tmp_path):
    import numpy as np

    for fitness in (np.array([0.5]), np.float64(0.5)):
        assert read_weights(save_whole(tiny_model(), tmp_path / "m.pt", best_fitness=fitness)).origin == "yolov5"


def test_old_activation_is_found(tmp_path):
    model = tiny_model(activation="nn.Hardswish()")
    del model.yaml["activation"]
    loaded = load_model(save_whole(model, tmp_path / "m.pt"))
    assert isinstance(loaded.model[0].act, nn.Hardswish)
    with torch.inference_mode():
        assert torch.allclose(loaded(image(1, 64))[0], model(image(1, 64))[0], rtol=1e-3, atol=1e-2)


def test_model_saved_after_fusing(tmp_path):
    model = tiny_model().fuse().to(memory_format=torch.channels_last)  # as they are loaded
    loaded = load_model(save_whole(model, tmp_path / "m.pt"))
    with torch.inference_mode():
        assert torch.equal(loaded(image(1, 64))[0], model(image(1, 64))[0])


def test_names_that_do_not_fit_are_filled_up(tmp_path):
    model = tiny_model()
    model.names = {0: "a", 7: "x", 2: 5}
    assert read_weights(save_whole(model, tmp_path / "m.pt")).names == {0: "a", 1: "1", 2: "2"}


# ---- our own


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


# ---- hostile files


# the callable, and what it would be given
@pytest.mark.parametrize(
    "module, name",
    [
        ("posix", "system"),
        ("os", "system"),
        ("builtins", "eval"),
        ("subprocess", "getoutput"),
        ("builtins", "__import__"),
        ("torch.storage", "_load_from_bytes"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("numpy", "load"),
        ("runpy", "run_path"),
        ("utils.files", "read_yaml"),
        ("operator", "methodcaller"),
    ],
)
def test_foreign_callables_are_refused(module, name, tmp_path, canary):
    data = call(module, name, f"touch {canary}")
    stream = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    (tmp_path / "old.pt").write_bytes(stream + data)
    for file in (write_zip(tmp_path / "new.pt", data), tmp_path / "old.pt"):
        with pytest.raises(UserError, match=f"{file.name}: refused: the file calls {module}.{name}") as error:
            read_weights(file)
        one_line(error)


def test_a_pickled_command_is_refused(tmp_path, canary):
    """As an attacker would write it: an object that reduces to os.system, inside an otherwise good file."""

    class Command:
        def __reduce__(self):
            import os

            return os.system, (f"touch {canary}",)

    for zipped in (True, False):
        with pytest.raises(UserError, match="refused: the file calls (posix|nt).system"):
            read_weights(save_whole(tiny_model(), tmp_path / "m.pt", zipped=zipped, extra=Command()))
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Command()))
    with pytest.raises(UserError, match="refused"):
        read_weights(tmp_path / "bare.pt")


def test_stand_ins_run_nothing(tmp_path, canary):
    """Names in the model packages become bags, whatever they are called."""
    for module, name in (("models.common", "os.system"), ("models.os", "system"), ("torch.nn.modules.module", "eval")):
        file = write_zip(tmp_path / "m.pt", call(module, name, f"touch {canary}"))
        with YOLOv5File(file) as read:
            assert isinstance(read.content["model"], PickledObject)


def test_a_file_cannot_change_what_later_files_meet(tmp_path):
    """Attributes set on stand-ins, functions or shared classes fail, or die with the reading."""
    before = dict(vars(PickledObject))
    for module, name in (
        ("models.common", "Conv"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("collections", "OrderedDict"),
        ("torch", "Size"),
        ("builtins", "set"),
        ("torch", "FloatStorage"),
    ):
        # BUILD with (None, {"evil": 1}) sets attributes on the object itself.
        data = b"\x80\x02" + f"c{module}\n{name}\n".encode() + b"N}X\x04\x00\x00\x00evilK\x01s\x86b."
        try:
            with YOLOv5File(write_zip(tmp_path / "m.pt", data)):
                pass
        except UserError:
            pass
    assert dict(vars(PickledObject)) == before and not hasattr(OrderedDict, "evil") and not hasattr(torch.Size, "evil")
    assert not hasattr(loading.read_yolov5, "evil")


def test_tensors_must_fit_their_storage(tmp_path):
    # storage values, offset, shape, strides
    for layout in (
        (4, 0, (5,), (1,)),
        (4, 1, (4,), (1,)),
        (4, 0, (2, 2), (4, 1)),
        (4, -1, (2,), (1,)),
        (4, 0, (2,), (-1,)),
        (4, 0, (1 << 40,), (0,)),
        (4, 0, (2, 2), (1,)),
        (4, 0, (-2,), (1,)),
        (4, 0, (2.0,), (1,)),
    ):
        file = write_zip(tmp_path / "m.pt", tensor_pickle(*layout), {"0": bytes(16)})
        with pytest.raises(UserError, match="m.pt: damaged, cut off or no YOLOv5 checkpoint .*tensor") as error:
            with YOLOv5File(file):
                pass
        one_line(error)


def test_tensors_are_rebuilt_from_views(tmp_path):
    values = torch.arange(6.0)
    # offset, shape, strides, values
    for offset, shape, strides, want in (
        (0, (2, 3), (3, 1), [[0, 1, 2], [3, 4, 5]]),
        (1, (2, 2), (1, 2), [[1, 3], [2, 4]]),
        (5, (), (), 5.0),
        (0, (0, 3), (3, 1), []),
    ):
        file = write_zip(tmp_path / "m.pt", tensor_pickle(6, offset, shape, strides), {"0": values.numpy().tobytes()})
        with YOLOv5File(file) as read:
            assert read.tensor(read.content).tolist() == want
    file = write_zip(tmp_path / "m.pt", tensor_pickle(0, 0, (0,), (1,)), {"0": b""})
    with YOLOv5File(file) as read:
        assert read.tensor(read.content).shape == (0,)


def test_storages_must_have_their_size(tmp_path):
    for storages in ({"0": bytes(15)}, {"0": bytes(400)}, {}):
        with YOLOv5File(write_zip(tmp_path / "m.pt", tensor_pickle(4, 0, (4,), (1,)), storages)) as read:
            with pytest.raises(UserError, match="m.pt: damaged or cut off: storage 0"):
                read.tensor(read.content)


def test_bombs_are_refused(tmp_path):
    packed = write_zip(tmp_path / "m.pt", bytes(1 << 20), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="data.pkl is compressed"):
        read_weights(packed)
    # A memo index of 2 billion, and an opcode that reserves 1 TiB, before anything else happens.
    for data in (b"\x80\x02Nr\xff\xff\xff\x7f.", b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"."):
        with pytest.raises(UserError):
            read_weights(write_zip(tmp_path / "m.pt", data))
    nested = []
    for _ in range(60):
        nested = [nested, nested]
    model = tiny_model()
    model.yaml["more"] = nested
    with pytest.raises(UserError, match="too large"):
        read_weights(save_whole(model, tmp_path / "m.pt"))
    branch = nn.Sequential()
    for _ in range(40):
        branch = nn.Sequential(branch, branch)
    model = tiny_model()
    model.extra = branch
    with pytest.raises(UserError, match="unfolds"):
        read_weights(save_whole(model, tmp_path / "m.pt"))


def test_description_must_be_plain(tmp_path):
    model = tiny_model()
    model.yaml["activation"] = nn.ReLU()
    with pytest.raises(UserError, match="description"):
        read_weights(save_whole(model, tmp_path / "m.pt"))
    model.yaml = copy.deepcopy(TINY) | {"activation": "__import__('os').system('true')"}
    with pytest.raises(UserError, match="activation"):
        load_model(save_whole(model, tmp_path / "m.pt"))


# ---- damaged files and things that are no checkpoints


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_cut_files(tmp_path, zipped):
    whole = save_whole(tiny_model(), tmp_path / "whole.pt", zipped=zipped).read_bytes()
    file = tmp_path / "cut.pt"
    for share in (0, 1, 3, 10, 100, len(whole) // 4, len(whole) // 2, len(whole) - 1000, len(whole) - 1):
        file.write_bytes(whole[:share])
        with pytest.raises(UserError, match="cut.pt: ") as error:
            read_weights(file)
        one_line(error)


def test_flipped_bytes_never_escape(tmp_path):
    """Whatever bytes a pickle holds, the answer is a model or one line."""
    with zipfile.ZipFile(save_whole(tiny_model(), tmp_path / "whole.pt")) as archive:
        names = archive.namelist()
        data = archive.read(next(name for name in names if name.endswith("data.pkl")))
    places = torch.randint(len(data), (60,), generator=torch.Generator().manual_seed(0)).tolist()
    for place in places:
        broken = data[:place] + bytes([data[place] ^ 0x15]) + data[place + 1 :]
        with pytest.raises(UserError) as error:  # without storages it cannot be whole
            read_weights(write_zip(tmp_path / "m.pt", broken))
        one_line(error)


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html>Not found</html>")
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
        ("page", "not a checkpoint"),
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
        one_line(error)


def test_opcodes_cover_what_torch_writes(tmp_path):
    """No opcode of a real file is missing from the short list."""
    from models.yolov5_pickle import OPCODES

    with zipfile.ZipFile(save_whole(tiny_model(), tmp_path / "m.pt")) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert {op.name for op, _, _ in pickletools.genops(data)} <= set(OPCODES)


# ---- ensembles


def test_ensemble(tmp_path):
    files = [save_whole(tiny_model(), tmp_path / f"{number}.pt") for number in (1, 2)]
    second = tiny_model()
    with torch.no_grad():
        second.head.m[0].bias.add_(1)
    save_whole(second, files[1])
    both = load_ensemble(files)
    assert isinstance(both, Ensemble) and both.stride.tolist() == [8, 16] and both.num_classes == 3
    with torch.inference_mode():
        rows, other = both(image(1, 64))
        parts = [load_model(file)(image(1, 64))[0] for file in files]
        assert torch.equal(rows, torch.cat(parts, 1)) and other is None
        assert both(image(1, 64), augment=True)[0].shape[1] == 2 * (128 + 160 + 18)
    assert isinstance(load_ensemble(files[:1]), DetectionModel)
    save_whole(tiny_model(nc=4), files[1])
    with pytest.raises(UserError, match="2.pt: 4 classes, but .*1.pt has 3"):
        load_ensemble(files)
    with pytest.raises(UserError, match="--weights"):
        load_ensemble([])


# ---- names


def test_resolve_weights(tmp_path, monkeypatch):
    project, here = tmp_path / "project", tmp_path / "here"
    for folder in (project / "weights", here / "exp"):
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
        ("m.onnx", ".onnx files are not supported yet: give a .pt file"),
        ("m.torchscript", "not supported yet"),
        ("m.engine", "not supported yet"),
        ("yolov5n.pt", f"put the file at {project / 'weights' / 'yolov5n.pt'}"),
    ):
        with pytest.raises(UserError, match=message):
            resolve_weights(name, allow_download=False)


def test_published_weights_are_fetched(tmp_path, monkeypatch, capsys):
    import utils.download

    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "ROOT", tmp_path)
    monkeypatch.setattr(utils.download, "fetch", lambda url, target, **checks: asked.append((url, checks)) or target)
    for name in ("yolov5n.pt", "yolov5x6.pt"):
        assert resolve_weights(name, allow_download=True) == tmp_path / "weights" / name
        assert "AGPL-3.0" in capsys.readouterr().out
    assert [url.rpartition("/")[0] for url, _ in asked] == [
        "https://github.com/ultralytics/yolov5/releases/download/v7.0"
    ] * 2
    assert asked[0][1]["sha256"].startswith("4f180cf2") and asked[1][1]["sha256"] is None
    with pytest.raises(UserError, match="no such file"):
        resolve_weights("yolov9.pt", allow_download=True)


def test_published_checksum(released):
    assert hashlib.sha256((released / "yolov5n.pt").read_bytes()).hexdigest() == loading.SHA256["yolov5n.pt"]
