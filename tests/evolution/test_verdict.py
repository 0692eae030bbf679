"""Verdict on a search: which generations are repeated, and whether the gain is more than luck."""

import pytest

from utils.config import Hyperparameters
from utils.evolution.verdict import candidates, judge
from utils.evolve import Generation

START = {**Hyperparameters().to_dict(), "anchors": 0.0}


def record(number, fitness, status="done", origin="child", **rest):
    hyp = dict(START, lr0=0.01 + number / 1000)
    return Generation(number, hyp, number, origin, status=status, fitness=fitness, **rest)


def test_the_best_three_and_the_start_are_repeated():
    records = [record(0, 0.1, origin="start"), record(1, 0.5), record(2, 0.4), record(3, 0.45), record(4, 0.2)]
    twin = Generation(5, dict(records[1].hyp), 5, "child", status="done", fitness=0.49)  # nothing new to learn from it
    assert list(candidates([*records, twin])) == [1, 3, 2, 0]
    assert list(candidates(records[:2])) == [1, 0]


def repeats(*pairs):
    return [record(number, fitness, origin="repeat", repeat=k) for k, (number, fitness) in enumerate(pairs, 1)]


def test_the_winner_has_the_best_mean_not_the_luckiest_run():
    records = [record(0, 0.30, origin="start"), record(1, 0.50), record(2, 0.45), record(3, 0.44)]
    again = repeats((0, 0.31), (0, 0.30), (1, 0.35), (1, 0.36), (2, 0.45), (2, 0.46), (3, 0.43), (3, 0.44))
    verdict = judge(records, again)
    assert verdict.winner.number == 2 and verdict.fitness == pytest.approx(1.36 / 3)
    assert verdict.start == pytest.approx(0.91 / 3) and verdict.gain == pytest.approx(0.455 - 0.91 / 3)
    assert verdict.significant


def test_a_gain_inside_the_noise_is_not_significant():
    records = [record(0, 0.30, origin="start"), record(1, 0.35)]
    verdict = judge(records, repeats((0, 0.34), (0, 0.26), (1, 0.30), (1, 0.32)))
    assert verdict.winner.number == 1 and verdict.gain > 0 and not verdict.significant and 0.02 < verdict.noise < 0.05


def test_no_claim_without_repeats_or_without_a_start():
    alone = judge([record(0, 0.3, origin="start"), record(1, 0.4)], [])
    assert (alone.noise, alone.significant) == (None, None) and alone.gain == pytest.approx(0.1)
    orphan = judge([record(1, 0.4)], repeats((1, 0.39)))
    assert (orphan.start, orphan.gain, orphan.significant) == (None, None, None)


def test_the_start_may_win():
    verdict = judge([record(0, 0.4, origin="start"), record(1, 0.3)], repeats((0, 0.41), (1, 0.2)))
    assert verdict.winner.origin == "start" and verdict.gain == 0 and not verdict.significant
