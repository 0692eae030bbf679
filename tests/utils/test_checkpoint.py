"""A checkpoint is plain data, written whole, read without executing anything."""

import pickle
import zipfile

import pytest
import torch

from models.loading import load_model
from utils.checkpoint import read_checkpoint, snapshot, write_checkpoint
from utils.errors import UserError
from utils.training.checkpoints import CheckpointWriter
from utils.training.run import Run


@pytest.fixture
def state(make_run, tiny_cfg) -> Run:
    """Return a run after one optimizer step."""
    run = make_run(tiny_cfg)
    run.model.train()(torch.rand(2, 3, 64, 64))[0].mean().backward()
    run.optimizer.step()
    run.ema.update(run.model)
    return run


def test_state_comes_back_to_the_bit(state, make_run, tiny_cfg, tmp_path):
    progress = state.progress
    progress.epoch, progress.iteration, progress.best_fitness, progress.class_maps = 3, 77, 0.25, [0.5, 0.125]
    state.early_stop.update(2, 0.25)
    write_checkpoint(tmp_path / "last.pt", state.state_dict())
    fresh = make_run(tiny_cfg)
    fresh.load_state_dict(read_checkpoint(tmp_path / "last.pt"))
    write_checkpoint(tmp_path / "again.pt", fresh.state_dict())
    first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("last.pt", "again.pt"))
    assert flatten(first) == flatten(second)
    assert (fresh.progress.epoch, fresh.progress.iteration, fresh.ema.updates) == (3, 77, 1)


def flatten(value, prefix=""):
    """Return every leaf by its path, tensors as their bytes."""
    if isinstance(value, dict):
        return {path: leaf for key, entry in value.items() for path, leaf in flatten(entry, f"{prefix}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return flatten(dict(enumerate(value)), prefix)
    return {prefix: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value}


def test_a_state_of_another_model_is_refused(state, make_run):
    with pytest.raises(UserError, match="does not fit"):
        make_run("yolov5n.yaml", num_classes=3).load_state_dict(state.state_dict())


def test_the_stripped_file_has_the_ema_in_half_precision(state, tmp_path):
    writer = CheckpointWriter()
    writer.submit(snapshot({**state.state_dict(), "hyp": {"lr0": 0.01}}), full=[], stripped=[tmp_path / "use.pt"])
    writer.close()
    content = read_checkpoint(tmp_path / "use.pt")
    ema = state.ema.ema.state_dict()
    assert content["kind"] == "weights" and "optimizer" not in content and content["hyp"] == {"lr0": 0.01}
    for name, value in content["model"]["state_dict"].items():
        expected = ema[name].half() if ema[name].is_floating_point() else ema[name]
        assert torch.equal(value, expected), name


def test_a_snapshot_does_not_follow_training(state, tmp_path):
    content = snapshot(state.state_dict())
    before = flatten(content)
    with torch.no_grad():
        [parameter.add_(1) for parameter in state.model.parameters()]
    assert flatten(content) == before != flatten(state.state_dict())


@pytest.mark.parametrize("part", ["model", "ema"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_weights_are_never_written(state, tmp_path, capsys, part, bad):
    write_checkpoint(tmp_path / "last.pt", state.state_dict())
    good = (tmp_path / "last.pt").read_bytes()
    content = snapshot(state.state_dict())
    content[part]["state_dict"]["model.0.conv.weight"].view(-1)[3] = bad
    writer = CheckpointWriter()
    writer.submit(content, full=[tmp_path / "last.pt"], stripped=[tmp_path / "best.pt"])
    writer.close()
    assert (tmp_path / "last.pt").read_bytes() == good and not (tmp_path / "best.pt").exists()
    assert "NaN or infinity" in capsys.readouterr().err


def test_held_weights_are_written_by_the_next_submission_or_at_the_end(state, tmp_path):
    one, two, bad = (snapshot(state.state_dict()) for _ in range(3))
    one["epoch"], two["epoch"] = 1, 2
    bad["ema"]["state_dict"]["model.0.conv.weight"].view(-1)[3] = float("nan")
    best, last = tmp_path / "best.pt", tmp_path / "last.pt"
    writer = CheckpointWriter()
    writer.hold(one, [best])
    assert not list(tmp_path.iterdir())
    writer.hold(bad, [best])  # never instead of good ones
    writer.submit(two, full=[last], stripped=[])
    writer.wait()
    assert (read_checkpoint(best)["epoch"], read_checkpoint(last)["epoch"]) == (1, 2)
    writer.hold(one, [best])
    writer.submit(two, full=[], stripped=[best])
    writer.wait()
    assert read_checkpoint(best)["epoch"] == 2
    writer.hold(one, [best])
    writer.close()
    assert read_checkpoint(best)["epoch"] == 1


def test_a_full_disk_costs_one_warning_and_keeps_the_file_before(state, tmp_path, capsys, monkeypatch):
    write_checkpoint(tmp_path / "last.pt", state.state_dict())
    good = (tmp_path / "last.pt").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.files.os.fsync", full)
    writer = CheckpointWriter()
    writer.submit(snapshot(state.state_dict()), full=[tmp_path / "last.pt"], stripped=[])
    writer.close()
    message = capsys.readouterr().err
    assert "last.pt could not be written: No space left" in message and len(message.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"] and (tmp_path / "last.pt").read_bytes() == good


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
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match="x.pt: not a"):
        read_checkpoint(tmp_path / "x.pt")


def test_a_single_wrong_byte_is_seen(state, tmp_path):
    """Refuse it, because training would continue from garbage. In the middle of a tensor only the checksum shows it."""
    write_checkpoint(tmp_path / "last.pt", state.state_dict())
    content = bytearray((tmp_path / "last.pt").read_bytes())
    with zipfile.ZipFile(tmp_path / "last.pt") as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
        place = content.find(archive.read(largest))
    assert place > 0 and largest.file_size > 1000
    content[place + largest.file_size // 2] ^= 1
    (tmp_path / "bad.pt").write_bytes(content)
    for read in (read_checkpoint, load_model):
        with pytest.raises(UserError, match=f"bad.pt: not a whole checkpoint .*{largest.filename} is damaged"):
            read(tmp_path / "bad.pt")


def test_a_checkpoint_without_checksums_is_read(state, tmp_path):
    """Accept files that torch wrote without checksums, which is a setting of the process."""
    torch.serialization.set_crc32_options(False)
    try:
        write_checkpoint(tmp_path / "last.pt", state.state_dict())
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / "last.pt")["anchorage"]


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


@pytest.mark.parametrize(
    "part, value",
    [
        ("momentum_buffer", torch.zeros(3)),
        ("momentum_buffer", torch.zeros(1)),
        ("momentum_buffer", "zeros"),
        ("momentum_buffer", None),
        ("lr", "0.1"),
        ("params", [0]),
        ("name", "kernel"),
    ],
)
def test_an_optimizer_state_of_another_shape_is_refused(state, make_run, tiny_cfg, part, value):
    """The fused step would read and write past its end."""
    content = snapshot(state.state_dict())
    if part == "momentum_buffer":
        largest = max(content["optimizer"]["state"].values(), key=lambda entry: entry[part].numel())
        largest.update({part: value} if value is not None else {"more": largest.pop(part)})
    else:
        content["optimizer"]["param_groups"][1][part] = value
    fresh = make_run(tiny_cfg)
    with pytest.raises(UserError, match="does not fit this run: the optimizer's"):
        fresh.load_state_dict(content)
