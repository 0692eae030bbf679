"""A checkpoint is plain data, written whole, read without executing anything."""

import pickle

import pytest
import torch

from models.yolo import DetectionModel
from utils.checkpoint import TrainState, read_checkpoint, strip_checkpoint, write_checkpoint
from utils.ema import ModelEMA
from utils.errors import UserError
from utils.optim import build_optimizer
from utils.schedule import EarlyStopping


@pytest.fixture
def state(tiny_cfg) -> TrainState:
    model = DetectionModel(tiny_cfg)
    optimizer = build_optimizer(model)
    ema = ModelEMA(model)
    model.train()(torch.rand(2, 3, 64, 64))[0].mean().backward()
    optimizer.step()
    ema.update(model)
    return TrainState(model, ema, optimizer, torch.amp.GradScaler("cpu", enabled=False), EarlyStopping(5))


def test_state_comes_back_to_the_bit(state, tiny_cfg, tmp_path):
    state.epoch, state.iteration, state.best_fitness, state.class_maps = 3, 77, 0.25, [0.5, 0.125]
    state.members["stopper"].update(2, 0.25)
    write_checkpoint(tmp_path / "last.pt", state.state_dict())
    other = DetectionModel(tiny_cfg)
    fresh = TrainState(other, ModelEMA(other), build_optimizer(other), torch.amp.GradScaler("cpu", enabled=False),
                       EarlyStopping(5))
    fresh.load_state_dict(read_checkpoint(tmp_path / "last.pt"))
    write_checkpoint(tmp_path / "again.pt", fresh.state_dict())
    first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("last.pt", "again.pt"))
    assert flatten(first) == flatten(second)
    assert (fresh.epoch, fresh.iteration, fresh.members["ema"].updates) == (3, 77, 1)


def flatten(value, prefix=""):
    """Every leaf by its path, tensors as their bytes."""
    if isinstance(value, dict):
        return {path: leaf for key, entry in value.items() for path, leaf in flatten(entry, f"{prefix}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return flatten(dict(enumerate(value)), prefix)
    return {prefix: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value}


def test_a_state_of_another_model_is_refused(state, tmp_path):
    other = DetectionModel("yolov5n.yaml", num_classes=3)
    fresh = TrainState(other, ModelEMA(other), build_optimizer(other), torch.amp.GradScaler("cpu", enabled=False),
                       EarlyStopping(5))
    with pytest.raises(UserError, match="does not fit"):
        fresh.load_state_dict(state.state_dict())


def test_stripping_keeps_the_ema_in_half_precision(state, tmp_path):
    write_checkpoint(tmp_path / "last.pt", {**state.state_dict(), "hyp": {"lr0": 0.01}})
    strip_checkpoint(tmp_path / "last.pt", tmp_path / "use.pt")
    content = read_checkpoint(tmp_path / "use.pt")
    ema = state.members["ema"].ema.state_dict()
    assert content["kind"] == "weights" and "optimizer" not in content and content["hyp"] == {"lr0": 0.01}
    for name, value in content["model"]["state_dict"].items():
        expected = ema[name].half() if ema[name].is_floating_point() else ema[name]
        assert torch.equal(value, expected), name


class Attack:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        import os

        return os.system, (f"touch '{self.canary}'",)


def test_nothing_in_a_file_is_executed(tmp_path):
    canary = tmp_path / "hacked"
    torch.save({"anchorage": 1, "x": Attack(canary)}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"anchorage": 1, "x": Attack(canary)}))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(UserError, match=name):
            read_checkpoint(tmp_path / name)
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half an archive"])
def test_what_is_no_checkpoint_is_named(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match="x.pt: not a"):
        read_checkpoint(tmp_path / "x.pt")


def test_a_truncated_checkpoint_is_named(state, tmp_path):
    write_checkpoint(tmp_path / "last.pt", state.state_dict())
    whole = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UserError, match="cut.pt: not a whole checkpoint"):
        read_checkpoint(tmp_path / "cut.pt")


def test_a_file_of_a_newer_version_says_so(tmp_path):
    write_checkpoint(tmp_path / "x.pt", {})
    torch.save({"anchorage": 99}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="newer version"):
        read_checkpoint(tmp_path / "x.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="absent.pt: no such file"):
        read_checkpoint(tmp_path / "absent.pt")
