"""Rendezvous: processes that were not started alike end within a minute, with a line that says what differs."""

import socket
import threading
import time

import pytest
import torch
import torch.distributed as dist

from utils import rendezvous
from utils.distributed import Distributed
from utils.errors import UserError
from utils.rendezvous import describe_start, find_difference, open_store, require_alike

ALIKE = {"--epochs": "3", "torch": "2.8"}


def arrive(rank, world_size=2, **changes):
    start = {key: value for key, value in {**ALIKE, **changes}.items() if value is not None}
    return {"rank": rank, "world_size": world_size, "start": start}


@pytest.mark.parametrize(
    "arrivals, expected",
    [
        ([arrive(0), arrive(1)], ""),
        ([arrive(1), arrive(0)], ""),
        ([arrive(0), arrive(1, **{"--epochs": "4"})], "rank 1 has --epochs 4, rank 0 has --epochs 3: start all"),
        ([arrive(0), arrive(1, **{"--evolve": "2"})], "rank 1 has --evolve 2, rank 0 has no --evolve: start all"),
        ([arrive(0), arrive(1, **{"--epochs": None})], "rank 1 has no --epochs, rank 0 has --epochs 3: start all"),
        ([arrive(0), arrive(1, torch="2.9")], "rank 1 has torch 2.9, rank 0 has torch 2.8: start all"),
        ([arrive(0), arrive(1, world_size=3)], "rank 1 has WORLD_SIZE 3, rank 0 has 2: "),
        ([arrive(0), arrive(2)], "RANK 2 is beyond WORLD_SIZE 2: ranks count from 0 to 1"),
        ([arrive(1), arrive(1)], "two processes have RANK 1: "),
        ([arrive(0)], "no process of rank 1 has come within 40 seconds: "),
    ],
    ids="alike order value more fewer version size beyond twice missing".split(),
)
def test_how_processes_differ(arrivals, expected):
    found = find_difference(arrivals, 2, ALIKE)
    assert found.startswith(expected) and bool(found) == bool(expected)


def test_what_must_be_the_same_for_all():
    """The device may differ by machine. A password never travels, and is never shown."""
    start = describe_start({"device": "1", "data": "https://me:secret@host/a.yaml", "batch_size": 8})
    assert list(start)[:3] == ["--batch-size", "--data", "torch"] and start["--data"] == "https://host/a.yaml"
    assert start == describe_start({"device": "0", "data": "https://me:other@host/a.yaml", "batch_size": 8})


def meet(monkeypatch, starts: dict[int, dict[str, str]], world_size: int) -> dict[int, str]:
    """Join a group from threads in place of processes. Return what ended each of them."""
    monkeypatch.setattr("utils.rendezvous.READ_SECONDS", 1.0)
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    ends = {}

    def join(rank):
        store = server if rank == 0 else dist.TCPStore("localhost", server.port, is_master=False)
        try:
            require_alike(store, rank, world_size, starts[rank], time.monotonic() + 2)
            ends[rank] = "together"
        except (SystemExit, UserError) as error:
            ends[rank] = str(error)

    threads = [threading.Thread(target=join, args=[rank]) for rank in starts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


@pytest.mark.parametrize(
    "starts, world_size, expected",
    [
        ({0: ALIKE, 1: ALIKE, 2: ALIKE}, 3, {0: "together", 1: "together", 2: "together"}),
        ({0: ALIKE, 1: {**ALIKE, "--epochs": "4"}, 2: ALIKE}, 3, {0: "1", 1: "1", 2: "1"}),
        ({0: ALIKE, 1: ALIKE}, 3, {0: "1", 1: "1"}),
    ],
    ids=["alike", "other flags", "missing"],
)
def test_all_processes_of_a_group_end_together(monkeypatch, capsys, starts, world_size, expected):
    assert meet(monkeypatch, starts, world_size) == expected
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (0 if "together" in expected.values() else len(expected))  # without a launcher each prints
    assert len(set(lines)) <= 1


def test_a_port_in_use_is_one_line(monkeypatch):
    with socket.create_server(("", 0)) as other:
        for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": str(other.getsockname()[1])}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        with pytest.raises(UserError, match=r"port \d+ \(MASTER_PORT\) is in use on this machine"):
            open_store(0, time.monotonic() + 1)


@pytest.mark.parametrize("kind", ["closed", "silent", "bad host"])
def test_a_rank_0_that_never_answers_is_one_line(monkeypatch, kind):
    with socket.create_server(("", 0)) as silent, socket.create_server(("", 0)) as closed:
        port = (silent if kind == "silent" else closed).getsockname()[1]
        closed.close()
        monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid" if kind == "bad host" else "localhost")
        monkeypatch.setenv("MASTER_PORT", str(port))
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        with pytest.raises(UserError, match=f"no process of rank 0 at .*:{port} within 40 seconds .*: see what"):
            open_store(1, time.monotonic() + 1)


@pytest.mark.parametrize(
    "rank, world_size, expected",
    [
        ("3", "", "RANK 3 is beyond WORLD_SIZE 1"),
        ("-1", "2", "RANK -1 is beyond WORLD_SIZE 2"),
        ("x", "2", "RANK=x in the environment is not a number"),
    ],
)
def test_numbers_of_ranks_that_cannot_be(monkeypatch, rank, world_size, expected):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(UserError, match=expected):
        Distributed.join()


def test_a_minute_is_enough():
    assert rendezvous.JOIN_SECONDS + rendezvous.READ_SECONDS < 50  # the imports take the rest


def test_a_gpu_and_a_cpu_in_one_group_are_one_line(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(Distributed, "gather", lambda _, kind: ["cuda", kind])
    with pytest.raises(UserError, match="rank 1 computes on cpu, rank 0 on cuda: give --device cpu to all, or GPUs"):
        Distributed(1, 2, torch.device("cpu"), local_rank=0).use("cpu", 4)
    monkeypatch.setattr(Distributed, "gather", lambda _, kind: [kind, kind])
    assert Distributed(1, 2, torch.device("cpu"), local_rank=0).use("cpu", 4).device.type == "cpu"
