"""The processes of one training: torchrun's group, what rank 0 does for all, and all-reduce."""

import inspect
import os
import shlex
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from utils import console
from utils.device import fall_back_to_cpu, select_device, set_current_device
from utils.environment import variable
from utils.errors import UserError, explain

GROUP_TIMEOUT = timedelta(minutes=10)  # for processes side by side; one that dies is noticed at once, a machine is not


STORE_KEY = "anchorage/port"


SLOW_TIMEOUT = timedelta(days=7)  # while rank 0 downloads, scans labels, fits anchors or writes


def launch_token() -> str:
    """Names the launcher that started this process, the same through all restarts of its workers; '' without one.

    Host, process and starting time of torchrun's agent: a run id may be used again, and a process number too.
    """
    if variable("TORCHELASTIC_RUN_ID") is None:
        return ""
    agent = os.getppid()
    try:
        started = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = ""
    return f"{socket.gethostname()}:{agent}:{started}"


def rendezvous_store(rank: int) -> dist.Store:
    """The store through which the processes of a group find each other, new for each start of them.

    The one that torchrun's agent keeps outlives a restart (in PyTorch 2.15), and what the dead processes have left in
    it makes the new ones wait for them. So it only tells where the store of the present rank 0 is: an address left
    by an earlier rank 0 refuses connections.
    """
    host, port = variable("MASTER_ADDR"), int(variable("MASTER_PORT"))
    if variable("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return dist.TCPStore(host, port, is_master=rank == 0, wait_for_workers=False, timeout=GROUP_TIMEOUT)
    board = dist.TCPStore(host, port, is_master=False, timeout=GROUP_TIMEOUT)
    if rank == 0:
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=GROUP_TIMEOUT)
        board.set(STORE_KEY, str(store.port))
        return store
    deadline = time.monotonic() + GROUP_TIMEOUT.total_seconds()
    while time.monotonic() < deadline:
        port = int(board.get(STORE_KEY))
        try:
            socket.create_connection((host, port), 5).close()
            return dist.TCPStore(host, port, is_master=False, timeout=GROUP_TIMEOUT)
        except (OSError, dist.DistError):
            time.sleep(0.1)
    raise UserError(f"no process of rank 0 is found at {host} within {GROUP_TIMEOUT}")


@dataclass(frozen=True)
class Distributed:
    """The group of processes this one belongs to; one process is world_size 1, not a special path."""

    rank: int
    world_size: int
    device: torch.device
    devices: tuple[torch.device, ...] = ()  # more than one: a single process that spreads batches over them
    local_rank: int | None = None  # among the launcher's processes on this machine; None without a launcher
    slow_group: Any = None  # its members wait for as long as rank 0 has something to do alone

    @classmethod
    def join(cls) -> "Distributed":
        """Join the group that a launcher (torchrun) describes in the environment, or be a group of one.

        The device is the CPU until `use` chooses it: objects travel over gloo in any case, tensors of GPUs over NCCL.
        """
        cpu = torch.device("cpu")
        if variable("RANK") is None:
            return cls(0, 1, cpu, (cpu,))
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        rank, world_size, local_rank = (int(variable(name) or default) for name, default in zip(names, "010"))
        if world_size <= 1:
            return cls(0, 1, cpu, (cpu,), local_rank)
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if variable(name) is None:
                raise UserError(f"RANK is set but {name} is not: start with torchrun --nproc_per_node N train.py ...")
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=rendezvous_store(rank), rank=rank, world_size=world_size, timeout=GROUP_TIMEOUT
        )
        patient = dist.new_group(backend="gloo", timeout=SLOW_TIMEOUT)
        return cls(rank, world_size, cpu, (cpu,), local_rank, patient)

    def use(self, device: str = "", batch_size: int | None = None) -> "Distributed":
        """The same group on the devices that `--device` names: under a launcher each process has its own."""
        if self.local_rank is None:
            devices = tuple(select_device(device, batch_size))
        else:
            devices = (self._own_device(device),)
        if batch_size is not None and batch_size % self.world_size and batch_size > 0:
            raise UserError(
                f"--batch-size {batch_size} must be a multiple of the {self.world_size} processes: "
                f"{max(batch_size // self.world_size, 1) * self.world_size}, for instance"
            )
        return replace(self, device=set_current_device(devices[0]), devices=devices)

    def _own_device(self, text: str) -> torch.device:
        """This process's GPU: the one of its local rank, of those in `text` or of all; the CPU where there is none."""
        if not torch.cuda.is_available():
            return torch.device("cpu") if text.strip().lower() in ("", "cpu") else fall_back_to_cpu(text)
        devices = select_device(text or ",".join(map(str, range(torch.cuda.device_count()))))
        if devices[0].type != "cuda":
            return devices[0]
        if self.local_rank >= len(devices):
            named = f"--device {text} names" if text else "this machine has"
            raise UserError(
                f"{named} {len(devices)} GPU(s), too few for process {self.local_rank + 1} on it: start "
                "fewer (--nproc_per_node), or use --device cpu"
            )
        return devices[self.local_rank]

    @contextmanager
    def session(self) -> Iterator["Distributed"]:
        """Only rank 0 prints; errors of the other ranks are shown with their rank. The group is left at the end.

        In a group of several an error ends the process at once, with code 1, since a tidy end could wait for the
        others: so launcher and peers notice within seconds, and nobody waits for one who is gone.
        """
        if self.world_size == 1:
            yield self
            return
        with console.as_rank(self.rank):
            try:
                yield self
                self.wait_for_all()  # rank 0 keeps the store that all use
            except SystemExit:
                raise
            except BaseException as error:
                text, code = explain(error) or (_unexpected(error), 1)
                if not isinstance(error, Rank0Failed) or self.local_rank == 0:  # one line a machine is enough
                    console.error(text)
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
                os._exit(code)
            finally:
                if dist.is_initialized():
                    dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait_for_all(self) -> None:
        """Until every process is here, however long that takes."""
        if self.world_size > 1:
            dist.barrier(self.slow_group)

    def on_main(self, function: Callable[[], Any]) -> Any:
        """What `function` (called by rank 0 alone, for however long) returns, picklable, on every rank.

        What it raises there is raised everywhere, on the other ranks as a UserError that names rank 0.
        """
        if self.world_size == 1:
            return function()
        failure, box = None, [None, None]
        if self.is_main:
            try:
                box[0] = function()
            except Exception as error:
                failure, box[1] = error, f"{'' if isinstance(error, UserError) else type(error).__name__ + ': '}{error}"
        dist.broadcast_object_list(box, src=0, group=self.slow_group)
        if failure is not None:
            raise failure
        if box[1] is not None:
            raise Rank0Failed(f"rank 0 failed: {box[1]}")
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` summed over all processes."""
        if self.world_size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any process; the same answer on all of them."""
        if self.world_size == 1:
            return flag
        vote = torch.tensor([int(flag)])  # on the CPU: it must not wait for the GPU
        dist.all_reduce(vote, dist.ReduceOp.MAX)
        return bool(vote.item())

    def share_buffers(self, module: torch.nn.Module) -> None:
        """Give every process rank 0's buffers (batch statistics), in place."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def wrap(self, model: torch.nn.Module, *, static_graph: bool = False) -> torch.nn.Module:
        """`model` in DistributedDataParallel, in DataParallel for one process with several GPUs, or itself.

        Buffers stay each process's own (see share_buffers). static_graph: every parameter takes part in every step.
        """
        if self.world_size > 1:
            return self.wrap_ddp(model, static_graph=static_graph)
        if len(self.devices) > 1:
            indices = [device.index for device in self.devices]
            typed = Path(sys.argv[0]).name == "train.py"  # not where another program calls train.main
            words = shlex.join(sys.argv) if typed else f"train.py ... --device {','.join(map(str, indices))}"
            print(
                f"WARNING one process for {len(indices)} GPUs is slow; better: torchrun --nproc_per_node "
                f"{len(indices)} {words}"
            )
            return torch.nn.DataParallel(model, device_ids=indices)
        return model

    def wrap_ddp(self, model: torch.nn.Module, *, static_graph: bool) -> torch.nn.Module:
        """`model` in DistributedDataParallel, also in a group of one."""
        parallel = torch.nn.parallel.DistributedDataParallel
        known = inspect.signature(parallel).parameters  # PyTorch 2.15 renames the setting
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return parallel(
            model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            static_graph=static_graph,
            **{buffers: False},
        )

    @contextmanager
    def exchange_gradients(self, wrapped: torch.nn.Module, now: bool) -> Iterator[None]:
        """Forward and backward passes within leave gradients averaged over all processes, or local if not `now`."""
        if isinstance(wrapped, torch.nn.parallel.DistributedDataParallel) and not now:
            with wrapped.no_sync():
                yield
        else:
            yield


class Rank0Failed(UserError):
    """Rank 0 has failed, and shows its own message."""


LOST_CONTACT = ("Connection closed", "Connection reset", "Broken pipe", "gloo", "NCCL", "Socket")


def _unexpected(error: BaseException) -> str:
    """One line where a peer is gone, else the traceback."""
    if isinstance(error, RuntimeError) and any(word in str(error) for word in LOST_CONTACT):
        told = str(error) if "NCCL error in" in str(error) else str(error).splitlines()[0]  # NCCL's reason comes last
        return f"error: lost contact with another process, whose own message says why ({told})"
    return "".join(traceback.format_exception(error)).rstrip()
