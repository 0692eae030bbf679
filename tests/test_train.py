"""The training program end to end, through its command line, with a tiny model and small images."""

import csv
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from tiny_training import train_flags

import detect
import export
import train
from models.loading import load_model
from models.yolo import DetectionModel
from utils.checkpoint import read_checkpoint, write_checkpoint
from utils.config import TrainOptions
from utils.detector import DetectionAdvice
from utils.device import cores_for_loading
from utils.errors import UserError
from utils.inference.tile_pass import WHOLE
from utils.training.checkpoints import Checkpoints
from utils.training.resume import find_checkpoint
from utils.training.run import Run

ROOT = Path(__file__).resolve().parents[1]


def run(data, cfg, folder, *extra, epochs=2):
    """Train and return the run's folder."""
    train.main(train_flags(data, cfg, folder, "--exist-ok", *extra, epochs=epochs))
    return Path(folder) / "run"


def results(folder):
    with open(folder / "results.csv", newline="") as file:
        return [{key.strip(): value.strip() for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def finished(tiny_data, tiny_cfg, tmp_path_factory):
    """Train for 6 epochs with validation, plots and checkpoints."""
    return run(tiny_data, tiny_cfg, tmp_path_factory.mktemp("runs"), "--cos-lr", epochs=6)


def test_a_run_writes_every_file_that_users_expect(finished):
    expected = """opt.yaml hyp.yaml results.csv results.png labels.jpg labels_correlogram.jpg train_batch0.jpg
        train_batch1.jpg train_batch2.jpg val_batch0_labels.jpg val_batch0_pred.jpg confusion_matrix.png P_curve.png
        R_curve.png F1_curve.png PR_curve.png weights/best.pt weights/last.pt""".split()
    missing = [name for name in expected if not (finished / name).is_file() or not (finished / name).stat().st_size]
    assert not missing
    assert [row["epoch"] for row in results(finished)] == [str(epoch) for epoch in range(6)]


def test_training_reduces_the_validation_losses(finished):
    rows = results(finished)
    for part in ("val/box_loss", "val/cls_loss"):
        assert float(rows[-1][part]) < float(rows[0][part]), part


def test_options_and_hyperparameters_are_written(finished):
    options = yaml.safe_load((finished / "opt.yaml").read_text())
    assert options["imgsz"] == 64 and options["cos_lr"] is True and options["batch_size"] == 8
    assert yaml.safe_load((finished / "hyp.yaml").read_text())["lr0"] == 0.01 == options["hyp"]["lr0"]


def test_best_is_for_inference_and_last_is_the_full_state(finished):
    model = load_model(finished / "weights" / "best.pt")
    assert model.names == {0: "dark", 1: "bright"} and model(torch.zeros(1, 3, 64, 64))[0].shape[-1] == 7
    last = read_checkpoint(finished / "weights" / "last.pt")
    assert (last["kind"], last["epoch"], last["iteration"]) == ("train", 6, 18)
    assert (finished / "weights" / "best.pt").stat().st_size < (finished / "weights" / "last.pt").stat().st_size / 3


def test_the_end_of_a_training_keeps_thresholds_for_detection(finished, tiny_data, tmp_path, capsys):
    """The last validation proposes them. Exports and stripped files keep them, `--conf-thres auto` reads them."""
    best = tmp_path / "best.pt"
    content = read_checkpoint(finished / "weights" / "best.pt")
    most = max(len(file.read_text().splitlines()) for file in (Path(tiny_data).parent / "labels" / "val").glob("*.txt"))
    assert content["advice"]["most_labels"] == most > 0
    write_checkpoint(best, content, kind="weights")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.keep_advice(DetectionAdvice({0: 0.3, 1: 0.45}, 1200))
    checkpoints.close()
    detect.strip(best)
    model = load_model(best)
    assert model.advice == DetectionAdvice({0: 0.3, 1: 0.45}, 1200)
    (exported,) = export.run(weights=str(best), imgsz=[64], no_verify=True)
    for file in (best, exported):
        options, typed = detect.parse_args(["--conf-thres", "auto", "--imgsz", "64", "--device", "cpu"])
        nms = detect.build_predictor(options, [file], typed).nms
        assert (nms.conf_thres, nms.max_det) == ((0.3, 0.45), 1200)
    assert "was validated on an image with 1200 labels: up to 1200 detections are kept" in capsys.readouterr().out


def test_learning_rates_follow_the_schedule(finished):
    from utils.config import Hyperparameters
    from utils.schedule import Schedule

    schedule = Schedule(Hyperparameters().to_dict(), 6, 3, 8, cosine=True)
    for row in results(finished):
        rates = schedule.at(int(row["epoch"]) * 3 + 2)
        assert float(row["x/lr0"]) == pytest.approx(rates.lr_bias, rel=1e-4)
        assert float(row["x/lr1"]) == pytest.approx(rates.lr_weight, rel=1e-4)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tiny_data, tiny_cfg, tmp_path):
    a, b, c = (
        run(tiny_data, tiny_cfg, tmp_path / name, "--noplots", "--seed", seed)
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert (a / "results.csv").read_bytes() == (b / "results.csv").read_bytes() != (c / "results.csv").read_bytes()


def test_resume_at_an_epochs_end_changes_nothing(tiny_data, tiny_cfg, tmp_path):
    whole = run(tiny_data, tiny_cfg, tmp_path / "whole", "--noplots", "--save-period", "1", epochs=4)
    folder = tmp_path / "part" / "run"
    (folder / "weights").mkdir(parents=True)
    (whole / "weights" / "epoch1.pt").rename(folder / "weights" / "last.pt")
    train.main(["--resume", str(folder), "--save-period", "-1"])
    one, other = (read_checkpoint(run_folder / "weights" / "last.pt") for run_folder in (whole, folder))
    for part in ("model", "ema"):
        for name, value in one[part]["state_dict"].items():
            assert torch.equal(value, other[part]["state_dict"][name]), name
    assert results(folder) == results(whole)[2:]


def test_a_finished_run_is_extended_by_more_epochs(finished, capsys):
    with pytest.raises(UserError, match="all 6 epochs are done; add --epochs"):
        train.main(["--resume", str(finished)])


def test_transfer_reports_the_number_of_tensors(finished, tiny_data, tiny_cfg, tmp_path, capsys):
    best = finished / "weights" / "best.pt"
    run(tiny_data, tiny_cfg, tmp_path, "--weights", str(best), "--noplots", epochs=1)
    model = load_model(best, fuse=False)
    count, size = len(model.state_dict()), sum(parameter.numel() for parameter in model.parameters())
    # all but the anchors, which are those of --cfg
    line = f"Transferred {count - 1}/{count} tensors from {best}, {size:,} parameters"
    assert line in capsys.readouterr().out


def test_replaced_anchors_of_weights_are_reported(finished, tiny_data, tiny_cfg, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "fit_anchors", lambda *_: True)
    best = str(finished / "weights" / "best.pt")
    for words, expected in (["--weights", best], True), ([], False):
        run(tiny_data, tiny_cfg, tmp_path, *words, "--noplots", "--noval", epochs=1)
        assert ("try --noautoanchor" in capsys.readouterr().out) == expected


def test_frozen_layers_keep_weights_and_batch_statistics(finished, tiny_data, tiny_cfg, tmp_path):
    best = finished / "weights" / "best.pt"
    folder = run(tiny_data, tiny_cfg, tmp_path, "--weights", str(best), "--freeze", "10", "--noplots", epochs=1)
    before = read_checkpoint(best)["model"]["state_dict"]
    after = read_checkpoint(folder / "weights" / "last.pt")["model"]["state_dict"]
    frozen = [name for name in before if int(name.split(".")[1]) < 10 and "num_batches" not in name]
    assert all(torch.equal(before[name].float(), after[name]) for name in frozen)
    assert not torch.equal(before["model.24.m.0.weight"].float(), after["model.24.m.0.weight"])


@pytest.mark.parametrize(
    "extra",
    [
        ["--rect"],
        ["--multi-scale"],
        ["--quad"],
        ["--single-cls"],
        ["--image-weights"],
        ["--class-balance", "0.9", "--class-weights", "auto", "bright=2"],
        ["--cache"],
        ["--cache", "disk"],
        ["--optimizer", "AdamW"],
        ["--label-smoothing", "0.1"],
        ["--amp", "bf16"],
        ["--noval"],
        ["--nosave"],
        ["--workers", "2"],
        ["--noautoanchor"],
        ["--hyp", "hyp.scratch-high.yaml"],
        ["--freeze", "0", "3"],
    ],
    ids=" ".join,
)
def test_every_option_trains(tiny_data, tiny_cfg, tmp_path, extra):
    folder = run(tiny_data, tiny_cfg, tmp_path, "--noplots", *extra, epochs=1)
    row = results(folder)[0]
    assert all(float(value) == float(value) for value in row.values())  # no NaN
    assert (folder / "weights" / "best.pt").is_file()


@pytest.mark.parametrize("cores, readers", [(4, "1 data workers"), (3, "images read between the steps by 2 processes")])
def test_which_process_loads_the_images(tiny_data, tiny_cfg, tmp_path, monkeypatch, capsys, cores, readers):
    """Workers load ahead if the model leaves cores free. The weights are the same either way."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    folder = run(tiny_data, tiny_cfg, tmp_path, "--noplots", "--workers", "1", epochs=1)
    assert readers in capsys.readouterr().out
    alone = run(tiny_data, tiny_cfg, tmp_path / "alone", "--noplots", epochs=1)
    assert "images read by the main process" in capsys.readouterr().out
    one, other = (read_checkpoint(path / "weights" / "last.pt")["model"]["state_dict"] for path in (folder, alone))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "threads, launched, evolving, cores",
    [
        (8, 1, 1, 8),
        (9, 1, 1, 8),
        (7, 1, 1, None),
        (2, 4, 1, 2),
        (2, 3, 1, None),
        (2, 1, 4, 2),
        (1, 2, 4, 1),
        (1, 16, 1, 1),
    ],
)
def test_which_cores_load_between_the_steps(monkeypatch, threads, launched, evolving, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(launched))
    monkeypatch.setenv("ANCHORAGE_SIDE_BY_SIDE", str(evolving))
    assert cores_for_loading(torch.device("cpu")) == cores
    assert cores_for_loading(torch.device("cuda")) is None


def test_early_stopping_ends_the_run(tiny_data, tiny_cfg, tmp_path, capsys):
    folder = run(
        tiny_data, tiny_cfg, tmp_path, "--noplots", "--patience", "1", "--hyp", "hyp.no-augmentation.yaml", epochs=30
    )
    assert len(results(folder)) < 30 and "Stopped" in capsys.readouterr().out


def test_image_size_is_rounded_and_reported(tiny_data, tiny_cfg, tmp_path, capsys):
    folder = run(tiny_data, tiny_cfg, tmp_path, "--noplots", "--imgsz", "70", epochs=1)
    assert "WARNING: --imgsz 70" in capsys.readouterr().err
    assert read_checkpoint(folder / "weights" / "last.pt")["options"]["imgsz"] == 96


def test_a_new_run_in_an_old_folder_removes_the_old_checkpoints(tiny_data, tiny_cfg, tmp_path):
    """Files of the earlier run must not look like those of this one, which keeps its last epoch only."""
    weights = run(tiny_data, tiny_cfg, tmp_path, "--noplots", "--save-period", "1") / "weights"
    (weights / "epoch-of-mine.pt").touch()
    old = {file.name: file.read_bytes() for file in weights.iterdir()}
    assert {"best.pt", "last.pt", "last-half.pt", "epoch0.pt", "epoch1.pt"} < set(old)
    with pytest.raises(UserError, match="--freeze 25"):
        run(tiny_data, tiny_cfg, tmp_path, "--freeze", "25")
    assert {file.name: file.read_bytes() for file in weights.iterdir()} == old  # a mistake changes nothing
    run(tiny_data, tiny_cfg, tmp_path, "--noplots", "--seed", "1", "--nosave", "--noval")
    assert {file.name for file in weights.iterdir()} == {"best.pt", "last.pt", "last-half.pt", "epoch-of-mine.pt"}
    assert read_checkpoint(weights / "best.pt")["options"]["seed"] == 1


@pytest.mark.parametrize("coco, iou", [(False, 0.6), (True, 0.65)])
def test_the_last_validation_on_coco_uses_the_published_iou(monkeypatch, coco, iou):
    used, kept = [], []

    def evaluate(*_, nms, **__):
        used.append(nms.iou_thres)
        return SimpleNamespace(thresholds=(0.3,))

    monkeypatch.setattr(train, "evaluate", evaluate)
    monkeypatch.setattr(train, "load_model", lambda _: torch.nn.Identity())
    group = SimpleNamespace(world_size=1, is_main=True, device="cpu", on_main=lambda work: work())
    data = SimpleNamespace(names={}, spec=SimpleNamespace(is_coco=coco), val=SimpleNamespace(most_labels=7))
    options = SimpleNamespace(single_cls=False, tile=0)
    run = SimpleNamespace(distributed=group, options=options, val_loader=None, data=data)
    run.validation_nms, run.validation_views = partial(Run.validation_nms, run), lambda **_: WHOLE
    checkpoints = SimpleNamespace(written_best=str, keep_advice=kept.append)
    train.finish(run, checkpoints, SimpleNamespace(raise_if_signalled=None), None)
    assert used == [iou] and kept == [DetectionAdvice((0.3,), 7)]


@pytest.mark.parametrize("interrupted", [False, True])
def test_best_is_the_best_epoch_even_with_nosave(tiny_data, tiny_cfg, tmp_path, monkeypatch, interrupted):
    """Also if the state is saved within a later epoch."""
    scores, measure = [0.1, 0.4, 0.3, 0.2], train.validate
    monkeypatch.setattr(
        train,
        "validate",
        lambda run, *rest: SimpleNamespace(
            **vars(measure(run, *rest))
            | {"map50": scores[run.progress.epoch], "maps": np.zeros(2), "fitness": scores[run.progress.epoch]}
        ),
    )
    keep = train.Checkpoints.keep_best_in_memory

    def keep_then_signal(checkpoints, run, metrics):
        keep(checkpoints, run, metrics)
        if interrupted and run.progress.epoch == 2:  # the best: the signal is handled within the next epoch
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train.Checkpoints, "keep_best_in_memory", keep_then_signal)
    with pytest.raises(SystemExit) if interrupted else nullcontext():
        run(tiny_data, tiny_cfg, tmp_path, "--noplots", "--nosave", epochs=4)
    weights = tmp_path / "run" / "weights"
    if interrupted:
        train.main(["--resume", str(weights)])
    best, last = (read_checkpoint(weights / name) for name in ("best.pt", "last.pt"))
    assert (best["epoch"], best["metrics"]["map50"], best["kind"], last["epoch"]) == (2, 0.4, "weights", 4)


@pytest.mark.parametrize("fitness, best", [("0.1,0.9", 2), ("map50", 1), ("f1", 0)])
def test_fitness_chooses_the_best_epoch_and_another_one_begins_again(
    tiny_data, tiny_cfg, tmp_path, monkeypatch, fitness, best
):
    """The best by F1 is epoch 0, by mAP50 epoch 1, by both mAPs epoch 2. Epoch 3 is the worst by all."""
    names = ("precision", "recall", "map50", "map")
    rows = [(0.9, 0.8, 0.1, 0.1), (0.1, 0.1, 0.8, 0.2), (0.2, 0.2, 0.5, 0.4), (0.0, 0.0, 0.01, 0.01)]
    measure, epoch = train.evaluate, 0

    def evaluate(*args, **settings):
        return replace(measure(*args, **settings), **dict(zip(names, rows[min(epoch, 3)], strict=True)))

    def validate(run, *rest):
        nonlocal epoch
        epoch = run.progress.epoch
        return plain(run, *rest)

    plain = train.validate
    monkeypatch.setattr(train, "evaluate", evaluate)
    monkeypatch.setattr(train, "validate", validate)
    folder = run(tiny_data, tiny_cfg, tmp_path, "--noplots", "--fitness", fitness, epochs=3)
    weights = folder / "weights"
    best_file, last = read_checkpoint(weights / "best.pt"), read_checkpoint(weights / "last.pt")
    score = {"0.1,0.9": 0.41, "map50": 0.8, "f1": 2 * 0.9 * 0.8 / 1.7}[fitness]
    assert last["stopper"] == pytest.approx({"best_epoch": best, "best_fitness": score})
    assert best_file["epoch"] == best + 1 and last["best_fitness"] == pytest.approx(score)
    train.main(["--resume", str(folder), "--epochs", "4"])
    assert read_checkpoint(weights / "last.pt")["best_fitness"] == last["best_fitness"]
    other = "map" if fitness != "map" else "f1"
    train.main(["--resume", str(folder), "--epochs", "5", "--fitness", other])
    changed = read_checkpoint(weights / "last.pt")
    assert changed["best_fitness"] == 0.01 and changed["stopper"] == {"best_epoch": 4, "best_fitness": 0.01}


@pytest.mark.parametrize(
    "extra, message",
    [(["--freeze", "99"], "--freeze 99: the model has layers 0 to 24"), (["--amp", "fp16"], "--amp fp16 needs a GPU")],
)
def test_mistakes_end_an_evolution_before_it_starts(tiny_data, tiny_cfg, tmp_path, capsys, extra, message):
    with pytest.raises(UserError, match=message):
        run(tiny_data, tiny_cfg, tmp_path, "--evolve", "2", *extra)
    assert "Scanning" not in "".join(capsys.readouterr()) and not list(tmp_path.iterdir())


def test_best_is_written_if_a_run_ends_with_an_error(tiny_data, tiny_cfg, tmp_path, monkeypatch):
    measure = train.train_one_epoch

    def fail_in_the_third(run, *rest):
        if run.progress.epoch == 2:
            raise LookupError
        return measure(run, *rest)

    monkeypatch.setattr(train, "train_one_epoch", fail_in_the_third)
    with pytest.raises(LookupError):
        run(tiny_data, tiny_cfg, tmp_path, "--noplots", "--nosave", epochs=4)
    assert read_checkpoint(tmp_path / "run" / "weights" / "best.pt")["epoch"] in (1, 2)


def test_a_run_from_scratch_records_no_weights(finished, tiny_data, tiny_cfg, tmp_path):
    for folder, weights in (
        (finished, ""),
        (
            run(
                tiny_data, tiny_cfg, tmp_path, "--noplots", "--weights", str(finished / "weights" / "best.pt"), epochs=1
            ),
            str(finished / "weights" / "best.pt"),
        ),
    ):
        kept = yaml.safe_load((folder / "opt.yaml").read_text())
        assert (kept["weights"], kept["cfg"]) == (weights, str(tiny_cfg))
        assert read_checkpoint(folder / "weights" / "last.pt")["options"]["weights"] == weights


def test_initial_weights_of_a_run_without_weights(tiny_data, tiny_cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("models.loading.ROOT", tmp_path)
    monkeypatch.setattr(train, "build_model", lambda *_, **__: DetectionModel(tiny_cfg))
    launch = train.Launch(TrainOptions(data=str(tiny_data)))
    network = train.build_network(launch)
    assert (network.weights, network.cfg) == ("", "yolov5s.yaml")
    (tmp_path / "yolov5s.pt").touch()
    network = train.build_network(launch)
    assert (network.weights, network.cfg) == ("yolov5s.pt", "")


def test_rect_with_image_weights_is_reported_as_useless(tiny_data, tiny_cfg, tmp_path, capsys):
    run(tiny_data, tiny_cfg, tmp_path, "--noplots", "--rect", "--image-weights", epochs=1)
    assert "WARNING: --rect has no effect with --image-weights" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_checkpoints(tiny_data, tiny_cfg, tmp_path, capsys):
    weights = run(tiny_data, tiny_cfg, tmp_path, "--noplots", "--save-period", "1") / "weights"
    before = {file.name for file in weights.iterdir()}
    capsys.readouterr()
    train.main(["--resume", str(weights), "--epochs", "3", "--name", "other"])
    assert f"resume: --name other ignored: the run continues in {weights.parent}\n" in capsys.readouterr().out
    (weights / "weights").mkdir()
    (weights / "weights" / "last.pt").write_bytes(b"not this one")
    assert find_checkpoint(str(weights.parent), "") == weights / "last.pt"
    (weights / "weights" / "last.pt").unlink(), (weights / "weights").rmdir()
    assert {file.name for file in weights.iterdir()} == before | {"epoch2.pt"}
    train.main(["--resume", str(weights), "--epochs", "4", "--name", "run", "--project", str(weights.parents[1])])
    assert "ignored" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--data", "absent.yaml"], "--data absent.yaml: no such data set YAML"),
        (["--hyp", "absent.yaml"], "--hyp absent.yaml: no such file"),
        (["--hyp", "hyp.scratch-lo.yaml"], "no such file, here or in .*; did you mean hyp.scratch-low.yaml?"),
        (["--weights", "yolov5n.yaml"], "yolov5n.yaml: a model YAML has no weights: give it as --cfg yolov5n.yaml"),
        (["--cfg", "absent.yaml"], "absent.yaml: no such model file"),
        (["--weights", "absent.pt"], "absent.pt"),
        (["--device", "7"], "--device 7: this machine has"),
        (["--amp", "fp16"], "--amp fp16 needs a GPU"),
        (["--freeze", "99"], "--freeze 99: the model has layers 0 to 24"),
        (["--freeze", "25"], "--freeze 25: no layer is left to train"),
        (["--seed", "-1"], "--seed -1: 0 or more"),
        (["--resume", "absent"], "--resume absent: no checkpoint"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(tiny_data, tiny_cfg, tmp_path, capsys, extra, message):
    with pytest.raises(UserError, match=message) as wrong:
        run(tiny_data, tiny_cfg, tmp_path, *extra)
    assert "\n" not in str(wrong.value) and not list(tmp_path.iterdir())
    assert "Scanning" not in "".join(capsys.readouterr())  # no slow work was started


@pytest.mark.slow
def test_a_mistake_ends_the_program_with_one_line_and_code_1():
    done = subprocess.run(
        [sys.executable, "train.py", "--data", "absent.yaml"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith("error: --data absent.yaml") and len(done.stderr.strip().splitlines()) == 1
