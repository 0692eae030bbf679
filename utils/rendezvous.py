"""Rendezvous of a group's processes: their store, and the check that all were started alike.

A mistake ends all of them within a minute. In a collective operation they would wait for each other for days.
"""

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from utils import console
from utils.addresses import remove_credentials
from utils.environment import variable
from utils.errors import UserError
from utils.files import ROOT

JOIN_SECONDS = 40.0  # a rank that has not come by then ends the others
READ_SECONDS = 5.0  # for the other ranks to read why rank 0 ends
FLAGS_OF_ONE_RANK = frozenset(("device", "local_rank"))
PORT_KEY = "anchorage/port"  # entry of torchrun's store; the others are of the group's own
ARRIVALS, VERDICT, READERS = "anchorage/arrivals", "anchorage/verdict", "anchorage/readers"


def required_number(name: str) -> int:
    """Return the number in the environment variable `name`, which launchers set. Raises UserError without it."""
    value = required(name)
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{name}={value} in the environment is not a number: start with torchrun") from None


def required(name: str) -> str:
    """Return the environment variable `name`, which launchers set together with RANK. Raises UserError without it."""
    value = variable(name)
    if value is None:
        raise UserError(f"RANK is set but {name} is not: start with torchrun --nproc_per_node N PROGRAM ...")
    return value


# ---- store


def open_store(rank: int, deadline: float) -> dist.Store:
    """Return a new store through which the processes of a group find each other. `deadline` is in monotonic seconds.

    The store of torchrun's agent outlives a restart of the workers (in PyTorch 2.15). Entries of the dead processes
    would block the new ones. So that store only holds the port of a store that rank 0 opens. The port of an earlier
    rank 0 refuses connections.
    """
    host, port = required("MASTER_ADDR"), required_number("MASTER_PORT")
    if variable("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return _serve(port) if rank == 0 else _connect(host, lambda: port, deadline)
    agent_store = _connect(host, lambda: port, deadline)
    if rank == 0:
        store = _serve(0)
        agent_store.set(PORT_KEY, str(store.port))
        return store
    return _connect(host, lambda: int(agent_store.get(PORT_KEY)), deadline)


def _serve(port: int) -> dist.TCPStore:
    """Open a store on all addresses of this machine. Port 0 is any free one."""
    try:
        return dist.TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    except dist.DistNetworkError as error:
        reason = "is in use" if "EADDRINUSE" in str(error) else f"cannot be opened ({str(error).splitlines()[0]})"
        raise UserError(
            f"port {port} (MASTER_PORT) {reason} on this machine: end the program that has it, another rank 0 maybe, "
            "or give another --master_port to all processes"
        ) from error


def _connect(host: str, find_port: Callable[[], int], deadline: float) -> dist.TCPStore:
    """Return a client of the store at `host`, as soon as there is one. Raises UserError after `deadline`."""
    place, reason = host, "no answer"
    while time.monotonic() < deadline:
        try:
            place = f"{host}:{(port := find_port())}"
            socket.create_connection((host, port), 5).close()
            if store := _make_client(host, port, deadline):
                return store
            reason = "what answers there is not a rank 0"
        except (OSError, OverflowError, dist.DistError) as error:
            reason = str(error).splitlines()[0]
        time.sleep(0.1)
    raise UserError(
        f"no process of rank 0 at {place} within {JOIN_SECONDS:.0f} seconds ({reason}): see what that process "
        "printed, and start all processes again, with the same MASTER_ADDR and MASTER_PORT"
    )


def _make_client(host: str, port: int, deadline: float) -> dist.TCPStore | None:
    """Return a client, or None after `deadline`. In a thread: a port that never answers would block it for ever."""
    made: list[dist.TCPStore] = []
    limit = max(deadline - time.monotonic(), 1.0)

    def make() -> None:
        with suppress(dist.DistError):
            made.append(dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=limit)))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    thread.join(limit)
    return made[0] if made else None


# ---- comparison


def describe_start(flags: Mapping[str, Any]) -> dict[str, str]:
    """Return what must be the same for all processes: flags as typed, the versions of PyTorch and of this project."""
    shared = {f"--{key.replace('_', '-')}": flags[key] for key in sorted(flags) if key not in FLAGS_OF_ONE_RANK}
    packages = [*(ROOT / "models").glob("*.py"), *(ROOT / "utils").rglob("*.py")]
    files = [ROOT / "train.py", ROOT / "val.py", *sorted(packages)]
    digest = hashlib.sha256("\0".join(file.read_text(encoding="utf-8") for file in files).encode())
    return {
        **{key: remove_credentials(str(value)) for key, value in shared.items()},
        "torch": torch.__version__.partition("+")[0],
        "files of this project with the digest": digest.hexdigest()[:8],
    }


def require_alike(store: dist.Store, rank: int, world_size: int, start: Mapping[str, str], deadline: float) -> None:
    """Compare all processes, on rank 0. If they differ, print how, one line a machine, and raise SystemExit."""
    number = store.add(ARRIVALS, 1)
    store.set(f"{ARRIVALS}/{number}", json.dumps({"rank": rank, "world_size": world_size, "start": dict(start)}))
    if rank == 0:
        arrivals = _collect_arrivals(store, world_size, deadline)
        verdict = find_difference(arrivals, world_size, start)
        if verdict:
            console.error(f"error: {verdict}")  # first: a launcher ends this process as soon as another has ended
        store.set(VERDICT, verdict)
        if verdict:
            _wait_for_readers(store, sum(arrival["rank"] != 0 for arrival in arrivals))
            raise SystemExit(1)
        return
    if number > world_size:
        raise UserError(
            f"rank {rank}: all {world_size} processes of WORLD_SIZE have come already. Start each rank once, or give "
            "another --master_port if another training uses it"
        )
    verdict = _read_verdict(store)
    if verdict:
        if variable("LOCAL_RANK") in (None, "0"):
            console.error(f"error: {verdict}")
        raise SystemExit(1)


def _collect_arrivals(store: dist.Store, world_size: int, deadline: float) -> list[dict[str, Any]]:
    """Return the descriptions of the processes that come before `deadline`, at most `world_size`."""
    arrivals = []
    with suppress(dist.DistError):  # a timeout
        for number in range(1, world_size + 1):
            key = f"{ARRIVALS}/{number}"
            store.wait([key], timedelta(seconds=max(deadline - time.monotonic(), 0.1)))
            arrivals.append(json.loads(store.get(key)))
    return arrivals


def _read_verdict(store: dist.Store) -> str:
    try:
        store.wait([VERDICT], timedelta(seconds=JOIN_SECONDS + READ_SECONDS))
        verdict = store.get(VERDICT).decode()
        store.add(READERS, 1)
        return verdict
    except dist.DistError as error:
        raise UserError("rank 0 has ended, or does not answer: see what it printed, start all again") from error


def _wait_for_readers(store: dist.Store, count: int) -> None:
    """Wait until the other ranks have read the verdict: the store ends with this process."""
    end = time.monotonic() + READ_SECONDS
    while store.add(READERS, 0) < count and time.monotonic() < end:
        time.sleep(0.05)


def find_difference(arrivals: Sequence[Mapping[str, Any]], world_size: int, ours: Mapping[str, str]) -> str:
    """Return a line that says how processes differ from rank 0, which has `ours`. "" if all have come and are alike."""
    seen: set[int] = set()
    for arrival in arrivals:
        rank, theirs = arrival["rank"], arrival["start"]
        if arrival["world_size"] != world_size:
            return (
                f"rank {rank} has WORLD_SIZE {arrival['world_size']}, rank 0 has {world_size}: start all processes "
                "with the same number"
            )
        if rank >= world_size:
            return f"RANK {rank} is beyond WORLD_SIZE {world_size}: ranks count from 0 to {world_size - 1}"
        if rank in seen:
            return f"two processes have RANK {rank}: start each rank once"
        seen.add(rank)
        differences = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        if differences:
            more = f" and {len(differences) - 3} more differences" if len(differences) > 3 else ""
            pairs = [f"{_show(key, theirs)}, rank 0 has {_show(key, ours)}" for key in differences[:3]]
            return f"rank {rank} has {'; '.join(pairs)}{more}: start all processes with the same command and version"
    missing = ", ".join(str(rank) for rank in range(world_size) if rank not in seen)
    return (
        f"no process of rank {missing} has come within {JOIN_SECONDS:.0f} seconds: see what it printed, and start all "
        "processes again"
        if missing
        else ""
    )


def _show(key: str, start: Mapping[str, str]) -> str:
    return f"{key} {start[key]}" if key in start else f"no {key}"
