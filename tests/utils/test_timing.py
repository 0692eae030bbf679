"""Clocks of utils/timing.py."""

from types import SimpleNamespace

import pytest
import torch

from utils import timing
from utils.timing import Stopwatch, now, now_without_cpu_wait

GPU = torch.device("cuda", 0)


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose first entry is the time in seconds. Waiting for a GPU takes 2 s."""
    time = [100.0]

    def synchronize(device: torch.device) -> None:
        assert device == GPU
        time[0] += 2

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: time[0]))
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    return time


@pytest.mark.parametrize("device, seconds", [(None, 100), (torch.device("cpu"), 100), (GPU, 102)])
def test_now_includes_pending_gpu_work(clock, device, seconds):
    assert now(device) == seconds


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("5 1500000000 3\n", 98.5),  # 1.5 s of waiting for a CPU
        ("5 0 3\n", 100),
        ("", 100),  # a kernel that does not count
        ("5 many 3\n", 100),
    ],
)
def test_waiting_for_a_cpu_is_subtracted(clock, tmp_path, monkeypatch, text, seconds):
    monkeypatch.setattr(timing, "SCHEDULER", tmp_path / "schedstat")
    assert now_without_cpu_wait() == 100  # no such file: not Linux
    (tmp_path / "schedstat").write_text(text)
    assert now_without_cpu_wait() == seconds


def test_stopwatch_adds_up_by_part(clock):
    watch = Stopwatch()
    assert watch.seconds["nms"] == 0
    for seconds in (3, 4):
        with watch("nms"):
            clock[0] += seconds
    with watch("inference"):
        clock[0] += 1
    assert watch.seconds == {"nms": 7, "inference": 1}


def test_stopwatch_waits_for_the_gpu_at_both_ends(clock):
    watch = Stopwatch(GPU)
    with watch("inference"):
        clock[0] += 1
    assert watch.seconds == {
        "inference": 3
    }  # 1 s on the host, 2 s until the GPU is done; work queued before is not counted


def test_a_failed_block_is_not_counted(clock):
    watch = Stopwatch()
    with pytest.raises(ValueError, match="bad"), watch("nms"):
        raise ValueError("bad")
    assert not watch.seconds
