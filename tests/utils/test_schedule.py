"""Rates as tables: warm-up, published curves, and early stopping."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from utils import schedule
from utils.schedule import (
    EarlyStopping,
    Schedule,
    accumulation,
    lr_factor,
    mosaic_epochs,
    multi_scale_size,
    nominal_batch,
    progressive_size,
)

HYP = {
    "lr0": 0.01, "lrf": 0.01, "momentum": 0.937, "warmup_epochs": 3.0, "warmup_momentum": 0.8, "warmup_bias_lr": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("curve", ["linear", "cosine"])
def test_published_curves(golden_folder, curve):
    golden = np.load(golden_folder / "schedule.npz")
    plan = Schedule(HYP, 30, 40, 16, cosine=curve == "cosine")
    ours = np.array([plan.at(int(row[0])) for row in golden[curve]])
    assert list(golden["columns"][1:6]) == list(schedule.Rates._fields)
    np.testing.assert_allclose(ours, golden[curve][:, 1:6], rtol=0, atol=1e-9)


def test_optimizer_steps_follow_from_accumulation(golden_folder):
    golden = np.load(golden_folder / "schedule.npz")["linear"]
    plan, last, steps = Schedule(HYP, 30, 40, 16), -1, []
    for iteration in range(len(golden)):
        steps.append(iteration - last >= plan.at(iteration).accumulate)
        last = iteration if steps[-1] else last
    assert np.array_equal(steps, golden[:, 6].astype(bool))


@pytest.mark.parametrize(
    "warmup_epochs, epochs, steps, expected",
    [
        (0, 30, 40, 0),  # switched off
        (0.0, 1, 1, 0),
        (3.0, 30, 40, 120),
        (3.3835, 100, 40, 135),
        (1, 30, 40, 100),  # at least a hundred
        (0.01, 30, 40, 100),
        (3.0, 10, 12, 40),  # but no more than a third of all iterations
        (3.0, 4, 40, 53),
        (3.0, 1, 2, 0),  # a third of two iterations is none
    ],
)
def test_length_of_warmup(warmup_epochs, epochs, steps, expected):
    plan = Schedule({**HYP, "warmup_epochs": warmup_epochs}, epochs, steps, 16)
    assert plan.warmup_iterations == expected


@pytest.mark.parametrize(
    "iteration, accumulate, bias, weight, momentum",
    [
        (0, 1, 0.1, 0.0, 0.8),
        (1, 1, 0.09925, 0.01 / 120, 0.8 + 0.137 / 120),
        (20, 2, 0.085, 0.2 / 120, 0.8 + 0.137 / 6),  # 1.5 rounds half to even
        (60, 2, 0.054505, 0.004505, 0.8685),  # 2.5 too
        (100, 4, 0.0233500, 0.00668333, 0.8 + 0.137 * 5 / 6),  # 3.5 too
        (119, 4, 0.0087865, 0.00795317, 0.8 + 0.137 * 119 / 120),
        (120, 4, 0.00703, 0.00703, 0.937),  # the end is included
        (121, 4, 0.00703, 0.00703, 0.937),
        (399, 4, 0.00109, 0.00109, 0.937),
        (4000, 4, 0.0001, 0.0001, 0.937),  # past the end the rate stays at lr0 * lrf
    ],
)
def test_rows_of_a_warmup(iteration, accumulate, bias, weight, momentum):
    plan = Schedule(HYP, 10, 40, 16)
    rates = plan.at(iteration)
    assert rates.accumulate == accumulate
    assert rates == pytest.approx((bias, weight, weight, momentum, accumulate), abs=1e-8)


def test_no_warmup_starts_at_full_rate():
    assert Schedule({**HYP, "warmup_epochs": 0}, 30, 40, 16).at(0) == (0.01, 0.01, 0.01, 0.937, 4)


def test_mappings_and_objects_give_the_same_rates():
    assert Schedule(SimpleNamespace(**HYP), 30, 40, 16).at(57) == Schedule(HYP, 30, 40, 16).at(57)


def test_rates_are_plain_numbers():
    assert json.loads(json.dumps(Schedule(HYP, 30, 40, 16).at(57)))[4] == 2
    assert [type(value) for value in Schedule(HYP, 30, 40, 16).at(57)] == [float] * 4 + [int]


@pytest.mark.parametrize("batch, expected", [(1, 64), (16, 4), (24, 3), (40, 2), (64, 1), (128, 1), (500, 1)])
def test_accumulation_towards_the_nominal_batch(batch, expected):
    assert accumulation(batch) == expected
    assert Schedule(HYP, 30, 40, batch).at(1000).accumulate == expected


def test_another_nominal_batch():
    assert accumulation(16, 16) == 1 and accumulation(16, 128) == 8
    assert {Schedule(HYP, 30, 40, 16, nominal=16).at(iteration).accumulate for iteration in range(1200)} == {1}
    plain, other = Schedule(HYP, 30, 40, 16), Schedule(HYP, 30, 40, 16, nominal=32)
    assert other.at(1000).accumulate == 2 and other.at(57)[:4] == plain.at(57)[:4]  # rates do not follow


@pytest.mark.parametrize(
    "batch_size, iterations, expected",
    [(16, 400_000, 64), (16, 4000, 64),  # a thousand optimizer steps and more
     (16, 3999, 48), (16, 2000, 32), (16, 1999, 16),  # images per step that leave a thousand steps
     (16, 10, 16), (1, 10, 1),  # never less than a batch
     (64, 10, 64), (128, 10, 64)],  # each batch is a step anyway; the weight decay is given for 64
)  # fmt: skip
def test_short_runs_step_more_often(batch_size, iterations, expected):
    assert nominal_batch(batch_size, iterations) == expected


@pytest.mark.parametrize(
    "epoch, cosine, expected",
    [(0, False, 1.0), (5, False, 0.505), (10, False, 0.01), (0, True, 1.0), (5, True, 0.505), (10, True, 0.01),
     (1, False, 0.901), (1, True, 0.97577)],
)  # fmt: skip
def test_lr_factor(epoch, cosine, expected):
    assert lr_factor(epoch, 10, 0.01, cosine) == pytest.approx(expected, abs=1e-5)


def stops(patience, scores):
    stopper = EarlyStopping(patience)
    return [stopper.update(epoch, fitness) for epoch, fitness in enumerate(scores)], stopper


@pytest.mark.parametrize(
    "patience, scores, expected",
    [
        (3, [], []),
        (3, [0, 0, 0.1, 0.1, 0.05, 0.1, 0.2], [0, 0, 0, 0, 0, 1, 0]),  # a tie is no improvement
        (2, [0, 0, 0], [0, 0, 1]),  # nor is staying at nothing
        (0, [0.5, 0, 0, 0, 0], [0, 0, 0, 0, 0]),  # 0 is never
        (2, [0.5, float("nan"), float("nan")], [0, 0, 1]),
    ],
)
def test_early_stopping(patience, scores, expected):
    assert stops(patience, scores)[0] == [bool(e) for e in expected]


@pytest.mark.parametrize(
    "min_delta, scores, best_epoch",
    [
        (0.1, [0.1, 0.15, 0.19, 0.21], 3),  # over the last improvement, however small the steps
        (0.1, [0.1, 0.15, 0.19, 0.2], 0),
        (0.0, [0.1, 0.1, 0.1001], 2),
        (0.5, [0.0, 0.4], 0),  # the first value always is one
    ],
)
def test_small_gains_are_no_improvement(min_delta, scores, best_epoch):
    stopper = EarlyStopping(3, min_delta)
    stopped = [stopper.update(epoch, fitness) for epoch, fitness in enumerate(scores)]
    assert stopper.best_epoch == best_epoch and stopper.best_fitness == scores[best_epoch]
    assert any(stopped) == (len(scores) > 3 and best_epoch == 0)


def test_early_stopping_continues_after_resume():
    _, stopper = stops(3, [0.1, 0.3, 0.2])
    again = EarlyStopping(3)
    again.load_state_dict(json.loads(json.dumps(stopper.state_dict())))
    assert (again.best_fitness, again.best_epoch) == (0.3, 1)
    assert [again.update(3, 0.3), again.update(4, 0.3)] == [False, True]


@pytest.mark.parametrize(
    "close_mosaic, expected",
    [(0, 60), (0.1, 54), (0.999, 0), (1, 59), (10, 50), (10.4, 50), (100, 0)],  # below 1 a share, else a number
)
def test_the_last_epochs_have_no_mosaics(close_mosaic, expected):
    assert mosaic_epochs(60, close_mosaic) == expected


@pytest.mark.parametrize(
    "imgsz, start, share, expected",
    [
        (320, 1.0, 0.7, [320] * 10),  # off
        (320, 0.5, 0.0, [320] * 10),
        (320, 0.5, 0.7, [160, 160, 192, 224, 224, 256, 288, 320, 320, 320]),
        (320, 0.5, 1.0, [160, 160, 192, 192, 224, 224, 256, 256, 288, 288]),  # equal steps
        (320, 0.1, 0.3, [64, 128, 224, *[320] * 7]),  # at least two strides
        (64, 0.5, 0.7, [64] * 10),
    ],
)
def test_sizes_rise_by_strides(imgsz, start, share, expected):
    found = [progressive_size(epoch, 10, imgsz, stride=32, start=start, share=share) for epoch in range(10)]
    assert found == expected


def test_multi_scale_sizes():
    rng = np.random.default_rng(0)
    sizes = {multi_scale_size(rng, 640, 32) for _ in range(2000)}
    assert sizes == set(range(320, 961, 32))
    assert {multi_scale_size(rng, 64, 32) for _ in range(100)} == {64, 96}  # never one stride
    assert {multi_scale_size(rng, 32, 32) for _ in range(100)} == {64}
