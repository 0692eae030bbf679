"""The processes of a training or validation: torchrun's group, collective operations, work of rank 0 for all."""

import inspect
import os
import shlex
import socket
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from utils import console
from utils.device import fall_back_to_cpu, select_device, set_current_device
from utils.environment import variable
from utils.errors import UnreadableData, UserError, explain
from utils.rendezvous import JOIN_SECONDS, describe_start, open_store, require_alike, required_number

# For ranks that work side by side. A dead process is noticed at once, a dead machine only after this time.
GROUP_TIMEOUT = timedelta(minutes=10)
SLOW_TIMEOUT = timedelta(days=7)  # while rank 0 downloads, scans labels, fits anchors or writes
RUN_ID = "TORCHELASTIC_RUN_ID"  # environment variable of the workers, not of torchrun's agent
SIZES = (("WORLD_SIZE", 1), ("LOCAL_RANK", 0))  # environment variables and their values where they are not set
LOST_CONTACT = ("Connection closed", "Connection reset", "Broken pipe", "gloo", "NCCL", "Socket")  # in messages

T = TypeVar("T")


def launch_token() -> str:
    """Return a name for the launcher that started this process, "" without one. It survives restarts of workers.

    It is the folder, of a random name, in which torchrun's agent keeps what its workers report: run ids and process
    numbers are reused. Where the agent has no such folder, the name is made of its host, number and start time.
    """
    if variable(RUN_ID) is None:
        return ""
    report = Path(variable("TORCHELASTIC_ERROR_FILE") or "")  # FOLDER/attempt_0/0/error.json
    if len(report.parts) > 3 and report.parts[-3].startswith("attempt_"):
        return str(report.parents[2])
    agent = _find_agent()
    return f"{socket.gethostname()}:{agent}:{_read_status(agent).get('started', '')}"


def _find_agent() -> int:
    """Return the nearest ancestor that torchrun did not start. Between it and this process may be wrappers."""
    process = os.getppid()
    with suppress(OSError, KeyError):
        while f"{RUN_ID}=".encode() in Path(f"/proc/{process}/environ").read_bytes():
            process = int(_read_status(process)["parent"])
    return process


def _read_status(process: int) -> dict[str, str]:
    """Return the parent and the start time of a process, {} where the system does not show them."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return {"parent": fields[1], "started": fields[19]}
    except (OSError, IndexError):
        return {}


@dataclass(frozen=True)
class Distributed:
    """The group of processes to which this one belongs. One process is world_size 1, not a special path."""

    rank: int
    world_size: int
    device: torch.device
    devices: tuple[torch.device, ...] = ()  # several: one process that splits each batch over them
    local_rank: int | None = None  # rank among the launcher's processes on this machine, None without a launcher
    slow_group: dist.ProcessGroup | None = None  # group with SLOW_TIMEOUT

    @classmethod
    def alone(cls) -> "Distributed":
        """Return a group of one on the CPU, whatever launcher started this process."""
        cpu = torch.device("cpu")
        return cls(0, 1, cpu, (cpu,))

    @classmethod
    def join(cls, flags: Mapping[str, Any] | None = None) -> "Distributed":
        """Join the group that a launcher (torchrun) describes in the environment, or be a group of one.

        Processes that differ in the typed `flags` end with a line that says how. The device is the CPU until `use`
        chooses it. Objects travel over gloo in any case, GPU tensors over NCCL.
        """
        cpu = torch.device("cpu")
        if variable("RANK") is None:
            return cls.alone()
        rank = required_number("RANK")
        world_size, local_rank = (required_number(name) if variable(name) else default for name, default in SIZES)
        if rank < 0 or (rank > 0 and world_size <= 1):
            raise UserError(f"RANK {rank} is beyond WORLD_SIZE {world_size}: ranks count from 0; start with torchrun")
        if world_size <= 1:
            return cls(0, 1, cpu, (cpu,), local_rank)
        deadline = time.monotonic() + JOIN_SECONDS
        store = open_store(rank, deadline)
        require_alike(store, rank, world_size, describe_start(flags or {}), deadline)
        store.set_timeout(GROUP_TIMEOUT)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=GROUP_TIMEOUT)
        slow_group = dist.new_group(backend="gloo", timeout=SLOW_TIMEOUT)
        assert isinstance(slow_group, dist.ProcessGroup)  # every rank is a member
        return cls(rank, world_size, cpu, (cpu,), local_rank, slow_group)

    def use(self, device: str = "", batch_size: int | None = None) -> "Distributed":
        """Return the same group on the devices of the text of `--device`. Under a launcher each process has its own."""
        if self.local_rank is None:
            devices = tuple(select_device(device, batch_size))
        else:
            devices = (self._select_own_device(device, self.local_rank),)
        if dist.is_initialized():
            self._require_one_kind(devices[0].type)
        if batch_size is not None and batch_size % self.world_size and batch_size > 0:
            raise UserError(
                f"--batch-size {batch_size} must be a multiple of the {self.world_size} processes: "
                f"{max(batch_size // self.world_size, 1) * self.world_size}, for instance"
            )
        return replace(self, device=set_current_device(devices[0]), devices=devices)

    def _require_one_kind(self, kind: str) -> None:
        """Raise UserError unless all ranks have a device of this kind: a GPU and a CPU have no operation in common."""
        kinds = self.gather(kind)
        if len(set(kinds)) > 1:
            odd = next(rank for rank, other in enumerate(kinds) if other != kinds[0])
            raise UserError(
                f"rank {odd} computes on {kinds[odd]}, rank 0 on {kinds[0]}: give --device cpu to all, or GPUs"
            )

    @staticmethod
    def _select_own_device(text: str, local_rank: int) -> torch.device:
        """Return the GPU at index `local_rank` of those in `text`, or of all. Return the CPU if there is no GPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu") if text.strip().lower() in ("", "cpu") else fall_back_to_cpu(text)
        devices = select_device(text or ",".join(map(str, range(torch.cuda.device_count()))))
        if devices[0].type != "cuda":
            return devices[0]
        if local_rank >= len(devices):
            named = f"--device {text} names" if text else "this machine has"
            raise UserError(
                f"{named} {len(devices)} GPU(s), too few for process {local_rank + 1} on it: start "
                "fewer (--nproc_per_node), or use --device cpu"
            )
        return devices[local_rank]

    @contextmanager
    def session(self) -> Generator["Distributed"]:
        """Let only rank 0 print, show errors of other ranks with their rank, and leave the group at the end.

        In a group of several, an error ends the process at once, with code 1: an orderly end could wait for the others.
        So the launcher and the other ranks notice within seconds.
        """
        if self.world_size == 1:
            yield self
            return
        with console.as_rank(self.rank):
            try:
                yield self
                self.wait_for_all()  # rank 0 holds the store, which all use
            except SystemExit:
                raise
            except BaseException as error:
                self._exit_at_once(error)
            finally:
                if dist.is_initialized():
                    dist.destroy_process_group()

    def _exit_at_once(self, error: BaseException) -> None:
        """Print the error and end the process without cleaning up."""
        text, code = explain(error) or (explain_unexpected(error), 1)
        on_all_ranks = isinstance(error, (Rank0Failed, UnreadableData))  # see `on_main` and `in_step`
        if not on_all_ranks or self.local_rank == 0:  # one line per machine is enough
            console.error(*text.splitlines())
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)

    @property
    def is_main(self) -> bool:
        """True on rank 0."""
        return self.rank == 0

    def wait_for_all(self) -> None:
        """Wait until every process is here, however long that takes."""
        if self.world_size > 1:
            dist.barrier(self.slow_group)

    def on_main(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0, for however long, and return its (picklable) result on every rank.

        An exception there is raised everywhere: on the other ranks as a UserError that names rank 0.
        """
        if self.world_size == 1:
            return function()
        failure: Exception | None = None
        result_and_error: list[Any] = [None, None]
        if self.is_main:
            try:
                result_and_error[0] = function()
            except Exception as error:
                failure = error
                prefix = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                result_and_error[1] = f"{prefix}{error}"
        dist.broadcast_object_list(result_and_error, src=0, group=self.slow_group)
        if failure is not None:
            raise failure
        result, message = result_and_error
        if message is not None:
            raise Rank0Failed(f"rank 0 failed: {message}")
        return result

    def main_only(self, function: Callable[[], T]) -> T | None:
        """Call `function` on rank 0, and return its result there and None elsewhere. An error is that of `on_main`."""
        results: list[T] = []
        self.on_main(lambda: results.append(function()))
        return results[0] if results else None

    def main_first(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0, and then on the others, and return its own result on each rank.

        So what it downloads or caches is there for the others, and an error on rank 0 is that of `on_main`.
        """
        result = self.main_only(function)
        return function() if result is None else result

    def gather_on_main(self, value: T) -> list[T]:
        """Return every rank's `value` in the order of ranks on rank 0, [] elsewhere."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, values)
        return values or []

    def gather(self, value: T) -> list[T]:
        """Return every rank's `value` in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor` summed over all processes."""
        if self.world_size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return True on all processes if `flag` is true on any of them."""
        return bool(self._max(int(flag)))

    def _max(self, value: int) -> int:
        """Return the largest `value` of all processes."""
        if self.world_size == 1:
            return value
        vote = torch.tensor([value])  # on the CPU: a GPU tensor would force a sync
        dist.all_reduce(vote, dist.ReduceOp.MAX)
        return int(vote.item())

    def in_step(self, entries: Iterable[T]) -> Iterator[T]:
        """Yield this rank's entries. If one is UnreadableData on any rank, raise that on every rank, at the same entry.

        Ranks may have different numbers of entries. Those that have fewer wait for the others.
        """
        yield from (entry for entry in self.in_step_padded(entries) if entry is not None)

    def in_step_padded(self, entries: Iterable[T]) -> Iterator[T | None]:
        """Yield as `in_step` does, and None where this rank has no entry while others have one."""
        if self.world_size == 1:
            yield from entries
            return
        ended, ready, failed = range(3)
        iterator = iter(entries)
        while True:
            entry, message = None, ""
            try:
                entry = next(iterator, None)
            except UnreadableData as error:
                message = str(error)
            state = self._max(failed if message else ended if entry is None else ready)
            if state == failed:
                raise UnreadableData(next(filter(None, self.gather(message))))
            if state == ended:
                return
            yield entry

    def share_buffers(self, module: torch.nn.Module) -> None:
        """Copy rank 0's buffers (batch statistics) to every process, in place."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def wrap(self, model: torch.nn.Module, *, static_graph: bool = False) -> torch.nn.Module:
        """Return `model` in its parallel wrapper.

        This is DistributedDataParallel for several processes, DataParallel for one process with several GPUs, and
        `model` itself otherwise.
        Each process keeps its own buffers (see share_buffers). static_graph: every parameter is used in every step.
        """
        if self.world_size > 1:
            return self.wrap_ddp(model, static_graph=static_graph)
        if len(self.devices) > 1:
            indices = [device.index for device in self.devices]
            is_train = Path(sys.argv[0]).name == "train.py"  # not if another program calls train.main
            words = shlex.join(sys.argv) if is_train else f"train.py ... --device {','.join(map(str, indices))}"
            console.warn(
                f"one process for {len(indices)} GPUs is slow. Type torchrun --nproc_per_node {len(indices)} {words}"
            )
            return torch.nn.DataParallel(model, device_ids=indices)
        return model

    def wrap_ddp(self, model: torch.nn.Module, *, static_graph: bool) -> torch.nn.Module:
        """Return `model` in DistributedDataParallel, also in a group of one."""
        ddp = torch.nn.parallel.DistributedDataParallel
        settings = inspect.signature(ddp).parameters  # PyTorch 2.15 renames one
        name = "forward_sync_buffers" if "forward_sync_buffers" in settings else "broadcast_buffers"
        own_buffers: dict[str, Any] = {name: False}
        return ddp(
            model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            static_graph=static_graph,
            **own_buffers,
        )

    @contextmanager
    def exchange_gradients(self, wrapped: torch.nn.Module, now: bool) -> Generator[None]:
        """Average the gradients of the passes inside over all processes, or keep them local if not `now`."""
        if isinstance(wrapped, torch.nn.parallel.DistributedDataParallel) and not now:
            with wrapped.no_sync():
                yield
        else:
            yield


class Rank0Failed(UserError):
    """Failure of rank 0, which prints its own message."""


def explain_unexpected(error: BaseException) -> str:
    """Return one line if another process is gone, else the traceback."""
    if isinstance(error, RuntimeError) and any(word in str(error) for word in LOST_CONTACT):
        # NCCL gives the reason in its last line.
        reason = str(error) if "NCCL error in" in str(error) else str(error).splitlines()[0]
        return f"error: lost contact with another process, whose own message says why ({reason})"
    return "".join(traceback.format_exception(error)).rstrip()
