"""Time budget: which number of epochs fits, and that the run is the one of that number."""

import re

import numpy as np
import pytest
import yaml
from kill_and_resume import find_differences
from tiny_training import train_flags

import train
from utils.config import Hyperparameters, TrainOptions
from utils.errors import UserError
from utils.images.tiles import Tiling
from utils.training import time_budget
from utils.training.startup import reject_conflicts
from utils.training.time_budget import Speed, fit_epochs, run_seconds, tiles_per_image

SPEED = Speed(load=0.1, step=0.5, validation=4.0, steps=10)  # 6 s an epoch, and 4 to validate


@pytest.mark.parametrize(
    "hours, changes, hyp, expected",
    [
        (104 / 3600, {}, {}, 10),  # ten epochs with validation, and the last validation of the best
        (103.9 / 3600, {}, {}, 9),
        (1e-9, {}, {}, 1),  # at least one
        (68 / 3600, {"noval": True}, {}, 10),  # two validations
        (20.0, {}, {}, 7199),
        (1e9, {"noval": True}, {}, 9999),  # the most
        (104 / 3600, {}, {"size_start": 0.5, "size_epochs": 1.0}, 13),  # small images take less
    ],
)
def test_the_epochs_that_fit(hours, changes, hyp, expected):
    options, hyp = TrainOptions(time=hours, imgsz=320, **changes), Hyperparameters(**hyp)
    epochs = fit_epochs(options, hyp, SPEED, stride=32)
    assert epochs == expected
    if 1 < epochs < 9999:
        seconds = [run_seconds(options, hyp, SPEED, count, stride=32) for count in (epochs, epochs + 1)]
        assert seconds[0] <= 3600 * hours < seconds[1]


def test_seconds_of_growing_images():
    hyp = Hyperparameters(size_start=0.5, size_epochs=1.0)
    areas = sum((side / 320) ** 2 for side in (160, 160, 192, 192, 224, 224, 256, 256, 288, 288))
    found = run_seconds(TrainOptions(imgsz=320), hyp, SPEED, 10, stride=32)
    assert found == pytest.approx(10 * (10 * 0.1 + areas * 0.5) + 44)


def test_tiles_that_validation_looks_at():
    shapes = np.array([[100, 180], [100, 180], [60, 100], [300, 100]])  # 2, 2, none and 4 tiles
    assert tiles_per_image(Tiling(100), shapes) == 2.0
    assert tiles_per_image(None, shapes) == tiles_per_image(Tiling(100), shapes[:0]) == 0


@pytest.mark.parametrize(
    "typed, message",
    [
        ({"time": 0.5, "epochs": 3}, "--time 0.5 settles the number of epochs: omit it, or --epochs 3"),
        ({"time": 0.5, "evolve": 3}, "--time with --evolve: trainings of different lengths"),
        ({"time": -1.0}, "--time -1.0: 0 .off. or more hours"),
        ({"tile": 20}, "--tile 20: expected the side of a tile in pixels, 32 or more"),
        ({"tile": -640}, "--tile -640: expected the side of a tile"),
        ({"tile_overlap": 0.5}, "--tile-overlap 0.5 needs --tile"),
        ({"tile": 640, "tile_overlap": 1.5}, "--tile-overlap 1.5 is outside"),
        ({"tile": 640, "rect": True}, "--rect with --tile: tiles are square"),
    ],
)
def test_conflicts_are_named(typed, message):
    with pytest.raises(UserError, match=message):
        reject_conflicts(TrainOptions.from_typed(typed))


def test_a_timed_run_is_that_of_the_settled_epochs(tiny_data, tiny_cfg, tmp_path, monkeypatch, capsys):
    words = train_flags(tiny_data, tiny_cfg, tmp_path / "timed", "--noplots", "--nbs", "8")
    at = words.index("--epochs")
    del words[at : at + 2]
    measured = []
    measure = time_budget.measure_speed

    def record(*arguments, **settings):
        measured.append(measure(*arguments, **settings))
        return Speed(load=0.0, step=1.0, validation=0.5, steps=measured[-1].steps)

    monkeypatch.setattr(time_budget, "measure_speed", record)
    train.main([*words, "--time", str(8 / 3600)])  # 3.5 s an epoch and 0.5 for the last validation
    speed = measured[0]
    assert speed.steps == 3 and speed.load >= 0 and speed.step > 0 and speed.validation > 0
    assert re.search("--time 0.0022+: 2 epochs of 3 batches will take about 0.00208 h", capsys.readouterr().out)
    train.main(train_flags(tiny_data, tiny_cfg, tmp_path / "plain", "--noplots", "--nbs", "8", epochs=2))
    timed = tmp_path / "timed" / "run"
    different = find_differences(tmp_path / "plain" / "run", timed)
    assert different and all(line.endswith("/options/time") for line in different)
    assert yaml.safe_load((timed / "opt.yaml").read_text())["epochs"] == 2
    with pytest.raises(UserError, match="--resume keeps the 2 epochs that .* was settled to: omit --time"):
        train.main(["--resume", str(timed), "--time", "1"])
    train.main(["--resume", str(timed), "--epochs", "3"])
    assert len(measured) == 1
