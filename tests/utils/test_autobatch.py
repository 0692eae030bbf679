"""Batch size from measured memory."""

import pytest
import torch
from torch import nn

from utils import autobatch
from utils.autobatch import DEFAULT_BATCH, extrapolate, find_batch_size

GIB = 2.0**30


@pytest.mark.parametrize(
    "used, budget, expected",
    [
        ({}, GIB, DEFAULT_BATCH),  # not even one image fitted
        ({1: GIB}, 8 * GIB, 1),  # no line through one point
        ({1: 2 * GIB, 2: 3 * GIB, 4: 5 * GIB, 8: 9 * GIB, 16: 17 * GIB}, 33 * GIB, 32),
        ({1: 2 * GIB, 2: 3 * GIB, 4: 5 * GIB}, 33 * GIB, 4),  # 8 did not fit
        ({1: GIB, 2: GIB, 4: GIB, 8: GIB, 16: GIB}, 2 * GIB, DEFAULT_BATCH),  # no slope
        ({1: 2 * GIB, 2: 3 * GIB, 4: 5 * GIB, 8: 9 * GIB, 16: 17 * GIB}, GIB / 2, 1),  # at least one
        ({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0, 16: 16.0}, GIB, 1024),  # at most 1024
    ],
)
def test_extrapolation(used, budget, expected):
    assert extrapolate(used, budget) == expected


def test_a_cpu_is_not_measured(capsys):
    assert find_batch_size(nn.Conv2d(3, 8, 3), 640, None) == DEFAULT_BATCH
    assert f"using {DEFAULT_BATCH}" in capsys.readouterr().out


def test_sizes_are_measured_until_one_does_not_fit(monkeypatch, capsys):
    def peak_bytes(model, batch, imgsz, autocast):
        if batch > 4:
            raise torch.OutOfMemoryError
        return (1 + batch) * GIB

    monkeypatch.setattr(autobatch, "device_of", lambda model: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30 * GIB, 40 * GIB))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(autobatch, "_peak_bytes", peak_bytes)
    assert find_batch_size(nn.Conv2d(3, 8, 3), 640, None) == 4
    assert "30.0 of 40.0 GiB free, using 4" in capsys.readouterr().out
