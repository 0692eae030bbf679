"""Helpers build their share of a batch in its order, report errors, and end with their owner."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from test_parallel_map import is_alive

from utils.errors import UserError
from utils.loading.batch_helpers import HelperProcesses, HelperSettings, HelperThreads, start_helpers

ROOT = Path(__file__).resolve().parents[2]


class Key(NamedTuple):
    number: int
    shape: tuple[int, int]
    bad: int = -1  # the item that fails
    slow: float = 0.0  # seconds that an item takes


def make(key: Key, k: int, planes: np.ndarray) -> tuple[int, int]:
    if k == key.bad:
        raise UserError(f"item {k} is bad")
    time.sleep(key.slow)
    planes[:] = (10 * key.number + k) % 256
    return k, os.getpid()


def nothing(key: Key) -> None:
    pass


def eventually(condition) -> bool:
    until = time.monotonic() + 20
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


@pytest.fixture(params=["processes", "threads"])
def helpers_of(request):
    """Return a function that starts helpers, which end after the test."""
    made = []

    def build(count: int, prepare=nothing):
        forked = request.param == "processes"
        made.append(
            HelperProcesses(count, HelperSettings(make, prepare, max_images=20, slot_bytes=1 << 16))
            if forked
            else HelperThreads(count, prepare)
        )
        return made[-1]

    yield build
    for helpers in made:
        helpers.close()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("items", [0, 1, 2, 9])
def test_images_and_results_are_in_order(helpers_of, count, items):
    helpers = helpers_of(count)
    for number, shape in ((1, (4, 5)), (2, (6, 3))):
        planes = np.zeros((items, 3, *shape), np.uint8)
        made = helpers.build(make, Key(number, shape, slow=0.1), planes)
        assert [k for k, _ in made] == list(range(items))
        assert (planes == (10 * number + np.arange(items))[:, None, None, None]).all()
        if helpers.kind == "processes" and items > count and number == 2:  # at first they may take a while to start
            assert len({process for _, process in made}) == count + 1 and made[0][1] == os.getpid()


@pytest.mark.parametrize("bad", [0, 1])  # an item of the caller, and one of the helper
def test_helpers_continue_after_an_error(helpers_of, bad):
    helpers, planes = helpers_of(1), np.zeros((20, 3, 2, 2), np.uint8)
    with pytest.raises(UserError, match=f"item {bad} is bad"):
        helpers.build(make, Key(1, (2, 2), bad=bad, slow=0.002), planes)
    made = helpers.build(make, Key(2, (2, 2)), planes)
    assert [k for k, _ in made] == list(range(20)) and (planes[:, 0, 0, 0] == 20 + np.arange(20)).all()


def test_fast_process_takes_over_from_a_slow_one():
    helpers, planes = (
        HelperProcesses(1, HelperSettings(slow_elsewhere, nothing, max_images=20, slot_bytes=1 << 10)),
        np.zeros((9, 3, 2, 2), np.uint8),
    )
    try:
        helpers.build(slow_elsewhere, Key(0, (2, 2)), planes)
        made = helpers.build(slow_elsewhere, Key(1, (2, 2), slow=2.0), planes)
    finally:
        helpers.close()
    assert [process == os.getpid() for _, process in made].count(False) == 1
    assert (planes[:, 0, 0, 0] == 10 + np.arange(9)).all()


MAIN = os.getpid()


def slow_elsewhere(key: Key, k: int, planes: np.ndarray) -> tuple[int, int]:
    return make(key._replace(slow=0.05 if os.getpid() == MAIN else key.slow), k, planes)


def test_item_claimed_by_mistake_is_built_nevertheless():
    helpers, planes = (
        HelperProcesses(1, HelperSettings(make, nothing, max_images=20, slot_bytes=1 << 10)),
        np.zeros((9, 3, 2, 2), np.uint8),
    )

    def claim_too_many(key: Key, k: int, image: np.ndarray) -> tuple[int, int]:
        helpers.claimed[[7, 8]] = 1
        return make(key, k, image)

    try:
        made = helpers.build(claim_too_many, Key(1, (2, 2), slow=0.05), planes)
    finally:
        helpers.close()
    assert [k for k, _ in made] == list(range(9)) and (planes[:, 0, 0, 0] == 10 + np.arange(9)).all()
    assert made[7][1] == made[8][1] == os.getpid()


def test_after_an_error_no_thread_begins_another_item():
    begun, helpers = [], HelperThreads(1, nothing)

    def count(key: Key, k: int, planes: np.ndarray) -> None:
        begun.append(k)
        if k == key.bad:
            raise UserError("bad")
        time.sleep(0.01)

    with pytest.raises(UserError, match="bad"):
        helpers.build(count, Key(1, (2, 2), bad=0), np.zeros((200, 3, 2, 2), np.uint8))
    helpers.close()
    assert len(begun) < 20


def test_prepare_may_fail(helpers_of, tmp_path):
    def prepare(key: Key) -> None:
        (tmp_path / str(key.number)).write_text("")
        raise OSError("of a disk")

    helpers = helpers_of(2, prepare)
    for number in (5, 6):
        helpers.prefetch(Key(number, (2, 2)))
    assert eventually(lambda: (tmp_path / "5").exists() and (tmp_path / "6").exists())
    assert len(helpers.build(make, Key(1, (2, 2)), np.zeros((4, 3, 2, 2), np.uint8))) == 4


def test_killed_process_is_an_error_and_no_endless_wait():
    helpers = HelperProcesses(2, HelperSettings(make, nothing, max_images=20, slot_bytes=1 << 10))
    planes = np.zeros((9, 3, 2, 2), np.uint8)
    os.kill(helpers.helpers[1].process.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(UserError, match="one of 3 processes that read images was killed"):
            helpers.build(make, Key(1, (2, 2)), planes)
    helpers.close()


def test_processes_ignore_signals_and_end_when_closed():
    helpers = HelperProcesses(2, HelperSettings(make, nothing, max_images=20, slot_bytes=1 << 10))
    processes = [helper.process.pid for helper in helpers.helpers]
    helpers.build(make, Key(1, (2, 2)), np.zeros((6, 3, 2, 2), np.uint8))  # now they have started
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        for process in processes:
            os.kill(process, getattr(signal, name))
    assert len(helpers.build(make, Key(1, (2, 2)), np.zeros((6, 3, 2, 2), np.uint8))) == 6
    helpers.close()
    helpers.close()
    assert not any(map(is_alive, processes))


def test_processes_end_when_their_object_is_deleted():
    helpers = HelperProcesses(2, HelperSettings(make, nothing, max_images=20, slot_bytes=1 << 10))
    processes = [helper.process.pid for helper in helpers.helpers]
    del helpers
    gc.collect()
    assert eventually(lambda: not any(map(is_alive, processes)))


SCRIPT = """
import os, signal, sys
import numpy as np
from utils.loading.batch_helpers import HelperProcesses, HelperSettings
make = lambda key, k, planes: os.getpid()
key = type("Key", (), {})
kept = [HelperProcesses(2, HelperSettings(make, print, max_images=20, slot_bytes=1 << 10)) for _ in range(2)]
print(*[helper.process.pid for helpers in kept for helper in helpers.helpers], flush=True)
os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] == "killed" else sys.exit(3)
"""


@pytest.mark.parametrize("end", ["killed", "exits"])
def test_processes_end_with_the_one_that_started_them(end):
    done = subprocess.run([sys.executable, "-c", SCRIPT, end], cwd=ROOT, capture_output=True, text=True, timeout=60)
    processes = list(map(int, done.stdout.split()))
    assert len(processes) == 4 and done.returncode == (3 if end == "exits" else -signal.SIGKILL), done.stderr
    assert eventually(lambda: not any(map(is_alive, processes)))


def fail_to_fork() -> int:
    raise BlockingIOError("Resource temporarily unavailable")


def test_kind_of_helpers(monkeypatch):
    assert start_helpers(0, HelperSettings(make, nothing, max_images=10, slot_bytes=10)) is None
    helpers = start_helpers(1, HelperSettings(make, nothing, max_images=10, slot_bytes=10))
    assert helpers.kind == ("processes" if sys.platform == "linux" else "threads")
    helpers.close()
    monkeypatch.setattr(os, "fork", fail_to_fork)
    helpers = start_helpers(1, HelperSettings(make, nothing, max_images=10, slot_bytes=10))
    assert helpers.kind == "threads"
    helpers.close()
    monkeypatch.setattr(sys, "platform", "darwin")
    helpers = start_helpers(1, HelperSettings(make, nothing, max_images=10, slot_bytes=10))
    assert helpers.kind == "threads"
    helpers.close()
