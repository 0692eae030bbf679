"""Results come in order and errors are passed on, from threads and from processes."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import pytest

from utils import machine, timing
from utils import parallel_map as module
from utils.errors import UserError
from utils.parallel_map import MAX_WAITING, MAX_WORKERS, deferred_ctrl_c, parallel_map

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def four_processors(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(module, "MAX_WAITING", 4)  # on a busy machine a chunk may wait, too


@pytest.mark.parametrize("cpu_bound", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 50])
def test_results_are_in_the_order_of_the_chunks(cpu_bound, count):
    assert list(parallel_map(lambda k: k * k, range(count), cpu_bound=cpu_bound)) == [k * k for k in range(count)]


def test_cpu_bound_work_is_done_by_several_processes(monkeypatch):
    found = set(parallel_map(lambda _: os.getpid(), range(20), cpu_bound=True))
    assert len(found) == 4 and os.getpid() in found  # it would be idle otherwise
    assert set(parallel_map(lambda _: os.getpid(), range(20), cpu_bound=False)) == {os.getpid()}
    monkeypatch.setattr(machine, "usable_cores", lambda: 100), monkeypatch.setattr(module, "MAX_WAITING", MAX_WORKERS)
    assert len(set(parallel_map(lambda _: os.getpid(), range(50), cpu_bound=True))) == MAX_WORKERS


def test_work_that_waits_gets_more_workers_than_cores(tmp_path, monkeypatch):
    clocks = {"wall": 0.0, "cores": 0.0, "others": 0.0}

    def one(chunk: tuple[float, float, float]) -> int:
        waiting, busy, others = chunk
        clocks["wall"] += waiting + busy + others
        clocks["cores"] += busy
        clocks["others"] += others
        write_delay()
        return os.getpid()

    def write_delay() -> None:
        timing.SCHEDULER.write_text(f"17 {round(clocks['others'] * 1e9)} 3\n")

    def workers(waiting: float, busy: float, others: float = 0.0, more: int = 60) -> int:
        return len(set(parallel_map(one, [(waiting, busy, others)] + [(0.0, 0.0, 0.0)] * more, cpu_bound=True)))

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clocks["wall"]))
    monkeypatch.setattr(module, "time", SimpleNamespace(process_time=lambda: clocks["cores"]))
    monkeypatch.setattr(timing, "SCHEDULER", tmp_path / "schedstat")
    monkeypatch.setattr(machine, "usable_cores", lambda: 2), monkeypatch.setattr(module, "MAX_WAITING", MAX_WAITING)
    write_delay()
    assert workers(0, 0.02) == workers(0.004, 0.02) == 2
    assert workers(0.06, 0.02) == 8
    assert workers(0.1, 0) == workers(0.1, 0.0002) == MAX_WAITING
    assert workers(0.0005, 0.0001) == 2  # too brief to know
    assert workers(0.1, 0, more=3) == 3
    assert workers(0, 0.02, others=1) == 2 and workers(0.06, 0.02, others=1) == 8  # on a busy machine
    monkeypatch.setattr(timing, "SCHEDULER", Path("/dev/null"))  # the system does not report it
    assert workers(0, 0.02) == 2 and workers(0.06, 0.02) == 8


def fail_at_three(k: int) -> int:
    if k == 3:
        raise UserError("chunk 3 is bad")
    return k


@pytest.mark.parametrize("cpu_bound", [False, True])
def test_an_error_is_raised_where_its_result_would_come(cpu_bound):
    results = parallel_map(fail_at_three, range(20), cpu_bound=cpu_bound)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="chunk 3 is bad"):
        next(results)


def test_a_killed_process_is_an_error_and_no_endless_wait():
    with pytest.raises(UserError, match="one of 4 worker processes was killed, probably out of memory"):
        list(parallel_map(lambda k: os.kill(os.getpid(), signal.SIGKILL) if k == 6 else k, range(20), cpu_bound=True))


def test_a_process_that_cannot_be_started_is_named_and_ends_the_others(monkeypatch):
    begin, begun = multiprocessing.context.ForkProcess.start, []

    def start(process):
        if begun:
            raise BlockingIOError("no more processes")
        begin(process)
        begun.append(process)

    monkeypatch.setattr(multiprocessing.context.ForkProcess, "start", start)
    with pytest.raises(BlockingIOError, match="no more processes"):
        list(parallel_map(lambda k: k, range(20), cpu_bound=True))
    assert len(begun) == 1 and begun[0].exitcode is not None


def test_threads_need_no_shared_memory(monkeypatch):
    """Containers may have no /dev/shm, which the locks of multiprocessing need."""

    def fail(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", fail)
    assert list(parallel_map(lambda k: -k, range(9), cpu_bound=False)) == [-k for k in range(9)]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_processes_end_when_their_results_are_not_read():
    results = parallel_map(lambda k: (os.getpid(), bytes(1 << 20)), range(100), cpu_bound=True)
    processes = {next(results)[0] for _ in range(5)} - {os.getpid()}
    results.close()
    assert len(processes) == 3 and not any(map(is_alive, processes))


def fork_during_ctrl_c(done: list[str]) -> None:
    with deferred_ctrl_c():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        done.append("forked")


def test_ctrl_c_is_deferred_while_a_process_is_forked(monkeypatch):
    before, done = signal.signal(signal.SIGINT, signal.default_int_handler), []
    try:
        with pytest.raises(KeyboardInterrupt):
            fork_during_ctrl_c(done)
        with deferred_ctrl_c():
            pass
        with ThreadPool(1) as other:
            assert other.apply(lambda: list(parallel_map(abs, range(9), cpu_bound=True))) == list(range(9))
        assert done == ["forked"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, lambda *_: done.append("received"))  # another handler is kept
        with deferred_ctrl_c():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert done == ["forked", "received"]
    finally:
        signal.signal(signal.SIGINT, before)


KILLED = """
import os, signal, utils.parallel_map as module
module.machine.usable_cores, module.MAX_WAITING = lambda: 4, 4
results = module.parallel_map(lambda k: (os.getpid(), bytes(1 << 20)), range(1000), cpu_bound=True)
for number, (process, _) in enumerate(results):
    print(process, flush=True)
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_end_with_the_one_that_started_them():
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, capture_output=True, text=True, timeout=60)
    processes = set(map(int, done.stdout.split()))
    assert len(processes) == 4, done.stderr
    until = time.monotonic() + 20
    while any(map(is_alive, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_alive, processes))
