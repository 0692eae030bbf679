"""Resume: a run that was killed and resumed ends with the bytes of an uninterrupted one.

tests/kill_and_resume.py is the longer version, for any number of kills.
"""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from kill_and_resume import find_differences, flatten
from tiny_training import train_flags

import train
from utils.checkpoint import read_checkpoint, write_checkpoint
from utils.config import Hyperparameters
from utils.datasets.labels import load_index
from utils.errors import UserError
from utils.training.reproducibility import dataset_fingerprints
from utils.training.resume import rescale_step

ROOT = Path(__file__).resolve().parents[1]


# ---- kills


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        # images of several sizes, drawn by weight; a random number of workers in each attempt
        ["--kills", "6", "--epochs", "5", "--batch-size", "16", "--workers", "any", "--multi-scale", "--image-weights"],
        # gradients accumulated over several batches; states saved within epochs, by time and by signals
        ["--kills", "5", "--epochs", "3", "--batch-size", "16", "--images", "96", "--signals", "KILL,TERM,USR1,INT"],
    ],
    ids=["everything at random", "accumulation"],
)
def test_killed_runs_lose_nothing(flags):
    done = subprocess.run(
        [sys.executable, "tests/kill_and_resume.py", "--fork", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and f"{flags[1]} kills, 0 differences" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_two_killed_processes_lose_nothing():
    flags = ["--processes", "2", "--kills", "2", "--epochs", "6", "--images", "32", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "tests/kill_and_resume.py", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and "2 kills, 0 differences" in done.stdout, done.stdout + done.stderr


# ---- in one process: interrupted by a signal at a chosen iteration


def arguments(data, cfg, folder, *extra, epochs=2):
    return train_flags(data, cfg, folder, "--noplots", "--nbs", "64", *extra, epochs=epochs)


def state_of(run: Path) -> dict:
    return read_checkpoint(run / "weights" / "last.pt")


def stop_at(monkeypatch, iteration: int, argv: list[str]) -> None:
    """Train until a signal in `iteration`, counted from 0, stops the run."""
    original = train.prepare_images

    def prepare(run, images):
        if run.progress.iteration == iteration:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(run, images)

    with monkeypatch.context() as patch:
        patch.setattr(train, "prepare_images", prepare)
        with pytest.raises(SystemExit) as end:
            train.main(argv)
    assert end.value.code == 75


@pytest.fixture(scope="module")
def finished(tiny_data, tiny_cfg, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train.main(arguments(tiny_data, tiny_cfg, folder))
    return folder / "run"


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """Copy a finished run of two epochs, for tests that change it."""
    return Path(shutil.copytree(finished, tmp_path / "elsewhere" / "run"))


@pytest.mark.parametrize(
    "extra",
    [
        ["--optimizer", "AdamW", "--cache"],
        ["--rect", "--cos-lr", "--freeze", "3"],
        ["--optimizer", "Muon", "--freeze", "2"],
        ["--quad"],
        ["--tile", "48", "--batch-size", "64", "--workers", "1"],
        ["--amp", "bf16", "--patience", "1"],
        ["--noval", "--nosave"],
    ],
    ids=" ".join,
)
def test_interrupted_within_an_epoch(tiny_data, tiny_cfg, tmp_path, monkeypatch, extra):
    extra = ["--nbs", "8", *extra]  # one optimizer step per batch
    train.main(arguments(tiny_data, tiny_cfg, tmp_path / "whole", *extra))
    stop_at(monkeypatch, 4, arguments(tiny_data, tiny_cfg, tmp_path / "part", *extra))
    saved = state_of(tmp_path / "part" / "run")
    assert (saved["epoch"], saved["step"], saved["iteration"]) == (1, 2, 5)
    train.main(["--resume", str(tmp_path / "part" / "run"), "--project", str(tmp_path / "whole")])
    assert find_differences(tmp_path / "whole" / "run", tmp_path / "part" / "run") == []


@pytest.fixture
def levers(tmp_path) -> Path:
    """Write a hyperparameter file with all schedules of image sizes, mosaics and averages."""
    file = tmp_path / "levers.yaml"
    values = {"size_start": 0.5, "size_epochs": 0.5, "close_mosaic": 2, "ema_decay": 0.9, "ema_tau": 10, "mixup": 0.5}
    values["cls_rise"] = 5
    file.write_text(yaml.safe_dump({**Hyperparameters().to_dict(), **values}))
    return file


@pytest.mark.parametrize("iteration", [4, 8, 10])  # before, in and after the epoch in which sizes and mosaics change
def test_interrupted_with_sizes_and_mosaics_by_epoch(tiny_data, tiny_cfg, tmp_path, monkeypatch, levers, iteration):
    words = ["--nbs", "8", "--imgsz", "128", "--hyp", str(levers)]
    train.main(arguments(tiny_data, tiny_cfg, tmp_path / "whole", *words, epochs=4))
    stop_at(monkeypatch, iteration, arguments(tiny_data, tiny_cfg, tmp_path / "part", *words, epochs=4))
    train.main(["--resume", str(tmp_path / "part" / "run")])
    assert find_differences(tmp_path / "whole" / "run", tmp_path / "part" / "run") == []
    assert state_of(tmp_path / "part" / "run")["hyp"]["close_mosaic"] == 2


def test_interrupted_with_a_slower_body(finished, tiny_data, tiny_cfg, tmp_path, monkeypatch):
    (tmp_path / "body.yaml").write_text(yaml.safe_dump({**Hyperparameters().to_dict(), "lr_body": 0.1}))
    words = ["--weights", str(finished / "weights" / "best.pt"), "--optimizer", "Muon", "--nbs", "8"]
    words += ["--hyp", str(tmp_path / "body.yaml")]
    train.main(arguments(tiny_data, tiny_cfg, tmp_path / "whole", *words))
    stop_at(monkeypatch, 4, arguments(tiny_data, tiny_cfg, tmp_path / "part", *words))
    part = tmp_path / "part" / "run"
    with pytest.raises(UserError, match="lr_body cannot change from or to 1"):
        train.main(["--resume", str(part), "--hyp", "hyp.scratch-low.yaml"])
    train.main(["--resume", str(part)])
    assert find_differences(tmp_path / "whole" / "run", part) == []
    factors = {(group["name"], group["lr_factor"]) for group in state_of(part)["optimizer"]["param_groups"]}
    assert factors >= {("bias", 1.0), ("bias", 0.1), ("weight", 1.0), ("norm", 0.1), ("kernel", 0.1)}


def test_interrupted_in_the_validation(tiny_data, tiny_cfg, tmp_path, monkeypatch):
    train.main(arguments(tiny_data, tiny_cfg, tmp_path / "whole"))
    original = train.evaluate

    def evaluate(*args, **named):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", evaluate)
        with pytest.raises(SystemExit) as end:
            train.main(arguments(tiny_data, tiny_cfg, tmp_path / "part"))
    assert end.value.code == 75 and state_of(tmp_path / "part" / "run")["step"] == 3
    train.main(["--resume", str(tmp_path / "part" / "run"), "--project", str(tmp_path / "whole")])
    assert find_differences(tmp_path / "whole" / "run", tmp_path / "part" / "run") == []


# ---- the data goes away during a run


def stop_without_images(monkeypatch, data: Path, split: str, argv: list[str], *, after: str, iteration: int) -> str:
    """Train until the images of a split go away as train.`after` is called in an iteration. Return what it printed.

    Then they are there again.
    """
    original, folder, elsewhere = getattr(train, after), data.parent / "images" / split, data.parent / "elsewhere"
    printed: list[str] = []

    def take_away(run_or_model, *args, **named):
        run = args[0] if after == "evaluate" else run_or_model
        if after == "evaluate" or run.progress.iteration == iteration:
            folder.rename(elsewhere)
        return original(run_or_model, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(train, after, take_away)
        patch.setattr("utils.loading.image_cache.RETRY_SECONDS", 0.01)
        patch.setattr("utils.training.log.console.error", printed.append)
        with pytest.raises(SystemExit) as end:
            train.main(argv)
    elsewhere.rename(folder)
    assert end.value.code == 75 and len(printed) == 1
    return printed[0]


@pytest.fixture
def own_data(tiny_data, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_data.parent, tmp_path / "data")) / tiny_data.name


@pytest.mark.parametrize("nbs, position", [(8, (1, 1, 4)), (64, (1, 0, 3))], ids=["each batch a step", "accumulation"])
def test_a_run_whose_images_go_away_is_saved_at_its_last_step(own_data, tiny_cfg, tmp_path, monkeypatch, nbs, position):
    """No batch of grey images is trained. The statistics of batches that wait for a step are not saved either."""
    flags = ["--nbs", str(nbs), "--cache", "off"]
    train.main(arguments(own_data, tiny_cfg, tmp_path / "whole", *flags))
    words = arguments(own_data, tiny_cfg, tmp_path / "part", *flags)
    line = stop_without_images(monkeypatch, own_data, "train", words, after="prepare_images", iteration=3)
    assert line.startswith(f"error: {own_data.parent}/images/train/") and "23 of 23 other images cannot be" in line
    assert line.endswith(f"the state is saved. Resume with: python train.py --resume {tmp_path}/part/run")
    saved = state_of(tmp_path / "part" / "run")
    assert (saved["epoch"], saved["step"], saved["iteration"]) == position
    train.main(["--resume", str(tmp_path / "part" / "run"), "--project", str(tmp_path / "whole")])
    assert find_differences(tmp_path / "whole" / "run", tmp_path / "part" / "run") == []


def test_a_validation_whose_images_go_away_is_repeated(own_data, tiny_cfg, tmp_path, monkeypatch):
    train.main(arguments(own_data, tiny_cfg, tmp_path / "whole", "--cache", "off"))
    words = arguments(own_data, tiny_cfg, tmp_path / "part", "--cache", "off")
    line = stop_without_images(monkeypatch, own_data, "val", words, after="evaluate", iteration=2)
    assert line.startswith(f"error: {own_data.parent}/images/val/") and "the state is saved" in line
    assert state_of(tmp_path / "part" / "run")["step"] == 3 and not (tmp_path / "part/run/results.csv").exists()
    train.main(["--resume", str(tmp_path / "part" / "run"), "--project", str(tmp_path / "whole")])
    assert find_differences(tmp_path / "whole" / "run", tmp_path / "part" / "run") == []


def test_interrupted_after_the_last_epoch_only_the_final_steps_are_repeated(copy, capsys):
    (copy / "weights" / "last-half.pt").unlink()
    before = state_of(copy)
    train.main(["--resume", str(copy)])
    assert flatten(state_of(copy)) == flatten(before) and (copy / "weights" / "last-half.pt").is_file()
    assert "Validating" in capsys.readouterr().out


def test_a_run_is_extended_exactly(copy, tmp_path, monkeypatch, capsys):
    other = Path(shutil.copytree(copy, tmp_path / "other" / "run"))
    train.main(["--resume", str(copy), "--epochs", "4", "--nbs", "8"])
    assert "resume: --epochs 2 -> 4" in capsys.readouterr().out
    stop_at(monkeypatch, 9, ["--resume", str(other), "--epochs", "4", "--nbs", "8"])
    train.main(["--resume", str(other)])
    assert find_differences(copy, other) == [] and state_of(copy)["epoch"] == 4
    with open(copy / "results.csv", newline="") as file:
        assert [row[0].strip() for row in csv.reader(file)] == ["epoch", "0", "1", "2", "3"]


def test_an_interrupted_run_can_be_resumed_after_another_used_its_folder(
    tiny_data, tiny_cfg, tmp_path, monkeypatch, capsys
):
    words = ["--nbs", "8", "--exist-ok", "--save-period", "1"]
    train.main(arguments(tiny_data, tiny_cfg, tmp_path / "whole", *words))
    words = arguments(tiny_data, tiny_cfg, tmp_path / "part", *words)
    run, kept = tmp_path / "part" / "run", tmp_path / "part" / "run" / "interrupted"
    stop_at(monkeypatch, 4, words)
    capsys.readouterr()
    train.main([*words, "--seed", "1", "--epochs", "1"])
    printed = capsys.readouterr().out
    assert (
        f"{run} holds a run that was interrupted after 1 epochs: it is kept" in printed
        and f"--resume {kept}\n" in printed
    )
    assert state_of(run)["options"]["seed"] == 1 and len((run / "results.csv").read_text().splitlines()) == 2
    train.main([*words, "--seed", "2", "--epochs", "1"])  # a finished run is replaced
    assert "holds a run" not in capsys.readouterr().out
    train.main(["--resume", str(kept), "--project", str(tmp_path / "whole")])
    assert find_differences(tmp_path / "whole" / "run", kept) == [] and state_of(run)["options"]["seed"] == 2


def test_fewer_epochs_than_are_done_are_refused(tiny_data, tiny_cfg, tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, 7, arguments(tiny_data, tiny_cfg, tmp_path, "--nbs", "8", epochs=5))
    run, last = tmp_path / "run", tmp_path / "run" / "weights" / "last.pt"
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    capsys.readouterr()
    with pytest.raises(UserError, match="--epochs 1: 2 epochs are done already, .* first: --epochs 3, for instance"):
        train.main(["--resume", str(run), "--epochs", "1"])
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    state = read_checkpoint(last)
    write_checkpoint(last, {**state, "step": 0, "iteration": 6})  # as if at the end of its second epoch
    train.main(["--resume", str(run), "--epochs", "2"])  # ending here is allowed
    assert state_of(run)["epoch"] == 2 and "epochs completed" in capsys.readouterr().out


def test_a_finished_run_is_refused_before_slow_work(copy, capsys):
    with pytest.raises(UserError, match="all 2 epochs are done; add --epochs 4"):
        train.main(["--resume", str(copy)])
    assert "Scanning" not in "".join(capsys.readouterr())


def test_a_run_ended_by_early_stopping_is_not_resumed(tiny_data, tiny_cfg, tmp_path, capsys):
    flat = ["--patience", "2", "--hyp", "hyp.no-augmentation.yaml"]
    train.main(arguments(tiny_data, tiny_cfg, tmp_path, *flat, epochs=30))
    run, epoch = tmp_path / "run", state_of(tmp_path / "run")["epoch"]
    assert epoch < 30
    with pytest.raises(UserError, match=f"stopped early after {epoch} epochs; add --patience to continue"):
        train.main(["--resume", str(run)])
    (run / "weights" / "last-half.pt").unlink()  # as if killed right after the last save
    train.main(["--resume", str(run)])
    assert state_of(run)["epoch"] == epoch


def test_the_full_state_and_inference_weights_remain_after_the_end(finished):
    last, half = (read_checkpoint(finished / "weights" / name) for name in ("last.pt", "last-half.pt"))
    assert (last["kind"], half["kind"]) == ("train", "weights") and "optimizer" in last and "optimizer" not in half
    for name, value in last["ema"]["state_dict"].items():
        expected = value.half() if value.is_floating_point() else value
        assert torch.equal(half["model"]["state_dict"][name], expected), name
    assert not list(finished.rglob("*.tmp")) and not (finished / "weights" / "epoch-start.pt").exists()


# ---- which run is resumed, and with which changes


def test_the_latest_run_below_the_project_is_found(copy, tmp_path, capsys):
    older = Path(shutil.copytree(copy, tmp_path / "elsewhere" / "deep" / "older"))
    os.utime(older / "weights" / "last.pt", (1, 1))
    train.main(["--resume", "--project", str(tmp_path / "elsewhere"), "--epochs", "3"])
    assert state_of(copy)["epoch"] == 3 and state_of(older)["epoch"] == 2
    with pytest.raises(UserError, match="no run with a checkpoint below"):
        train.main(["--resume", "--project", str(tmp_path / "nothing")])


def test_a_checkpoint_outside_a_run_starts_a_new_folder(copy, tmp_path):
    shutil.copy(copy / "weights" / "last.pt", tmp_path / "kept.pt")
    train.main(["--resume", str(tmp_path / "kept.pt"), "--epochs", "3", "--project", str(tmp_path / "new")])
    assert state_of(tmp_path / "new" / "exp")["epoch"] == 3 and state_of(copy)["epoch"] == 2


def test_a_run_is_resumed_exactly_with_a_moved_data_set(copy, tiny_data, tmp_path, capsys):
    other = Path(shutil.copytree(copy, tmp_path / "other" / "run"))
    moved = shutil.copytree(tiny_data.parent, tmp_path / "moved data")
    train.main(["--resume", str(copy), "--epochs", "3"])
    train.main(["--resume", str(other), "--epochs", "3", "--data", str(moved / "tiny.yaml")])
    assert "no longer exact" not in capsys.readouterr().out
    found = find_differences(copy, other)
    assert found and all(line.endswith("/options/data") for line in found)


def test_a_hyp_file_typed_now_changes_the_settings_of_muon(tiny_data, tiny_cfg, tmp_path):
    train.main(arguments(tiny_data, tiny_cfg, tmp_path, "--optimizer", "Muon", "--nbs", "8", "--noplots"))
    before = state_of(tmp_path / "run")["optimizer"]["param_groups"][-1]
    assert (before["lr_ratio"], before["momentum_shift"], before["weight_decay"]) == pytest.approx((2, 0, 5e-4))
    hyp = Hyperparameters(muon_lr=0.04, muon_momentum=0.9, muon_decay=0.01)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(hyp.to_dict()))
    train.main(["--resume", str(tmp_path / "run"), "--epochs", "3", "--hyp", str(tmp_path / "other.yaml")])
    after = state_of(tmp_path / "run")["optimizer"]["param_groups"][-1]
    assert (after["lr_ratio"], after["momentum_shift"], after["weight_decay"]) == pytest.approx((4, -0.037, 0.01))


def test_changes_are_listed_and_those_that_make_the_run_inexact(copy, capsys):
    train.main(
        [
            "--resume",
            str(copy),
            "--epochs",
            "3",
            "--batch-size",
            "4",
            "--imgsz",
            "96",
            "--workers",
            "1",
            "--optimizer",
            "Adam",
        ]
    )
    printed = capsys.readouterr().out
    for line in (
        "--epochs 2 -> 3",
        "--batch-size 8 -> 4",
        "--imgsz 64 -> 96",
        "--workers 0 -> 1",
        "--optimizer SGD -> Adam",
        "from here on the run differs from one that never stopped (batch_size, epochs, imgsz, optimizer)",
    ):
        assert f"resume: {line}" in printed
    state = state_of(copy)
    assert (state["epoch"], state["iteration"]) == (3, 18)  # three epochs of six steps of four images


def test_changes_of_the_environment_are_named(copy, capsys):
    content = state_of(copy)
    changed = {
        "processes": 2,
        "device": "NVIDIA X",
        "threads": 99,
        "torch": "1.0",
        "data": "another",
        "polygons": "p",
        "validation": "v",
        "precision": "float16",
        "cpu": "Z80",
        "opencv": "3.0",
        "numpy": "1.0",
    }
    content["surroundings"] |= changed
    write_checkpoint(copy / "weights" / "last.pt", {key: value for key, value in content.items() if key != "anchorage"})
    train.main(["--resume", str(copy), "--epochs", "3"])
    printed = capsys.readouterr().out
    for key, value in changed.items():
        assert re.search(rf"resume: {key} {value} -> .*no longer exact to the bit", printed), key


def test_environment_fields_missing_in_an_old_checkpoint_are_no_change(copy, capsys):
    content = state_of(copy)
    for key in ("polygons", "validation", "precision", "cpu", "opencv", "numpy"):
        del content["surroundings"][key]
    write_checkpoint(copy / "weights" / "last.pt", {key: value for key, value in content.items() if key != "anchorage"})
    train.main(["--resume", str(copy), "--epochs", "3"])
    assert "no longer exact" not in capsys.readouterr().out


def test_changes_of_validation_data_or_polygons_are_noticed(tiny_data, tmp_path):
    data = Path(shutil.copytree(tiny_data.parent, tmp_path / "data"))

    def names():
        return dataset_fingerprints(
            *(load_index(data / "images" / split, 2, progress=False) for split in ("train", "val"))
        )

    before = names()
    (data / "labels" / "val" / "0.txt").write_text("0 .5 .5 .1 .1\n")
    other = names()
    assert {key for key in before if before[key] != other[key]} == {"validation"}
    polygons = "0 .25 .25 .75 .25 .75 .75\n", "0 .25 .25 .75 .75 .25 .75\n"  # they have the same bounding box
    seen = []
    for row in polygons:
        (data / "labels" / "train" / "0.txt").write_text(row)
        seen.append(names())
    assert {key for key in before if seen[0][key] != seen[1][key]} == {"polygons"}


def test_a_resumed_run_keeps_its_folder_with_any_name(copy, capsys):
    train.main(["--resume", str(copy), "--epochs", "3", "--name", "other", "--project", "elsewhere"])
    printed = capsys.readouterr().out
    assert f"resume: --name other and --project elsewhere ignored: the run continues in {copy}\n" in printed
    assert f"Logging to {copy}\n" in printed and "differs from one that never stopped (epochs)\n" in printed
    assert state_of(copy)["epoch"] == 3 and not Path("elsewhere").exists()


def test_a_missing_device_is_reported_with_the_flag_to_add(copy):
    content = state_of(copy)
    content["options"]["device"] = "99"
    write_checkpoint(copy / "weights" / "last.pt", {key: value for key, value in content.items() if key != "anchorage"})
    with pytest.raises(UserError, match="started with --device 99, which is not here: add --device cpu, or a GPU"):
        train.main(["--resume", str(copy), "--epochs", "3"])
    train.main(["--resume", str(copy), "--epochs", "3", "--device", "cpu"])
    assert state_of(copy)["epoch"] == 3


def test_a_state_with_a_gradient_scaler_is_resumed_without_one(copy):
    content = state_of(copy)
    content["scaler"] = {
        "scale": 65536.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 3,
    }
    write_checkpoint(copy / "weights" / "last.pt", content)
    train.main(["--resume", str(copy), "--epochs", "3"])
    assert state_of(copy)["scaler"] == {}


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--cfg", "yolov5s.yaml"], "omit --cfg"),
        (["--weights", "other.pt"], "omit --weights"),
        (["--single-cls"], "a model of 2 classes, but .* names 1"),
    ],
)
def test_changes_that_are_impossible_are_refused(copy, extra, message):
    with pytest.raises(UserError, match=message) as wrong:
        train.main(["--resume", str(copy), "--epochs", "3", *extra])
    assert "\n" not in str(wrong.value)


def test_a_yolov5_run_cannot_be_resumed(reference):
    with pytest.raises(UserError, match="yolov5n.pt: not a whole .*; a run of YOLOv5 can start a new one: --w"):
        train.main(["--resume", str(reference / "weights" / "yolov5n.pt")])


def test_inference_weights_cannot_be_resumed(copy):
    with pytest.raises(UserError, match="best.pt: holds weights only; resume from last.pt"):
        train.main(["--resume", str(copy / "weights" / "best.pt")])


@pytest.mark.parametrize(
    "step, epoch, before, now, expected",
    [
        (0, 0, None, 10, (0, 0)),  # no earlier number of steps
        (4, 2, 10, 10, (4, 24)),  # the same number of steps
        (4, 2, 10, 5, (2, 12)),  # batches of twice the size
        (10, 2, 10, 3, (3, 9)),  # all batches done, validation not yet
        (1, 0, 3, 100, (33, 33)),
    ],
)
def test_the_position_within_an_epoch_is_kept(step, epoch, before, now, expected):
    assert rescale_step(step, epoch, before, now) == expected


# ---- the comparison itself


def test_a_single_changed_number_is_found(copy, tmp_path):
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    assert find_differences(copy, other) == []
    content = state_of(other)
    key = next(iter(content["optimizer"]["state"]))
    content["optimizer"]["state"][key]["momentum_buffer"].reshape(-1)[0] += 1e-7
    content["stopper"]["best_epoch"] += 1
    write_checkpoint(other / "weights" / "last.pt", content)
    with open(other / "results.csv", "a") as file:
        file.write(" ")
    assert find_differences(copy, other) == [
        f"weights/last.pt: /optimizer/state/{key}/momentum_buffer",
        "weights/last.pt: /stopper/best_epoch",
        "results.csv",
    ]
