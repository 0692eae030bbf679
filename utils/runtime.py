"""The machine: devices, precision, seeds, processes. The only reader of environment variables."""

import os
import random
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]  # the project folder
GROUP_TIMEOUT = timedelta(minutes=30)


def datasets_folders() -> list[Path]:
    """Folders in which a data set is looked for, first the ones the user named."""
    named = [os.environ.get(key) for key in ("ANCHORAGE_DATASETS", "YOLOv5_DATASETS_DIR")]
    return [*(Path(folder) for folder in named if folder), Path.cwd(), Path.cwd() / "datasets", ROOT,
            ROOT / "datasets", ROOT.parent / "datasets"]


def select_device(text: str = "", batch_size: int | None = None) -> list[torch.device]:
    """Devices for `--device` text: '' the first GPU or else the CPU, 'cpu', 'mps', '0', 'cuda:0', '0,1,2'.

    `batch_size`, if given, must divide evenly over several devices.
    """
    word = text.lower().replace("cuda:", "").replace("none", "").replace(" ", "").strip(",")
    if word == "cpu" or (not word and not torch.cuda.is_available()):
        return [torch.device("cpu")]
    if word == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--device mps: this machine has none; leave --device out")
        return [torch.device("mps")]
    indices = word.split(",") if word else ["0"]
    if not all(index.isdigit() for index in indices):
        raise UserError(f"--device {text}: expected cpu, mps, or GPU numbers such as 0 or 0,1")
    present = torch.cuda.device_count()
    for index in indices:
        if int(index) >= present:
            raise UserError(f"--device {text}: this machine has {present} GPU(s); use --device cpu, or leave it out")
    if batch_size is not None and batch_size > 0 and batch_size % len(indices):
        raise UserError(f"--batch-size {batch_size} must be a multiple of the {len(indices)} devices")
    return [torch.device("cuda", int(index)) for index in indices]


def describe_device(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{device.type.upper()} ({torch.get_num_threads()} threads)"
    properties = torch.cuda.get_device_properties(device)
    return f"CUDA:{device.index or 0} ({properties.name}, {properties.total_memory / 2**20:.0f} MiB)"


def amp_dtype(mode: str, device: torch.device) -> torch.dtype | None:
    """Autocast type for `--amp`: None is off. `auto` takes fp16 on CUDA and bf16 on CPUs with instructions for it."""
    if mode == "off" or device.type == "mps":
        return None
    if device.type == "cpu":
        if mode == "fp16":
            raise UserError("--amp fp16 needs a GPU; use --amp bf16 or --amp off on a CPU")
        return torch.bfloat16 if mode == "bf16" or _cpu_has_bf16() else None
    if mode == "bf16" and not torch.cuda.is_bf16_supported():
        raise UserError("--amp bf16: this GPU has no bf16; use --amp fp16")
    return torch.bfloat16 if mode == "bf16" else torch.float16


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 natively (AVX512-BF16 or AMX): elsewhere it is emulated and slow."""
    checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(check() for check in checks if check is not None)


def seed_everything(seed: int, deterministic: bool = True) -> None:
    """Seed the global generators (our own code draws from none of them) and ask for deterministic kernels."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def rng_state() -> dict[str, Any]:
    """State of torch's generators, as tensors."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


@dataclass(frozen=True)
class Distributed:
    """The group of processes this one belongs to; one process is world_size 1, not a special path."""

    rank: int
    world_size: int
    device: torch.device
    devices: tuple[torch.device, ...] = ()  # more than one: a single process that spreads batches over them
    cpu_group: Any = None  # for objects and flags, which must not wait for the GPU

    @classmethod
    def start(cls, device: str = "", batch_size: int | None = None) -> "Distributed":
        """Join the group that a launcher (torchrun) describes in the environment, or be a group of one."""
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        if "RANK" not in os.environ or world_size == 1:
            devices = select_device(device, batch_size)
            return cls(0, 1, devices[0], tuple(devices))
        rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", 0))
        if batch_size is not None and batch_size % world_size:
            raise UserError(f"--batch-size {batch_size} must be a multiple of the {world_size} processes")
        on_gpu = device.lower() != "cpu" and torch.cuda.is_available()
        if on_gpu and local_rank >= torch.cuda.device_count():
            raise UserError(f"process {rank} finds {torch.cuda.device_count()} GPU(s): start fewer processes "
                            "(--nproc_per_node), or use --device cpu")
        own = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
        if on_gpu:
            torch.cuda.set_device(own)
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=GROUP_TIMEOUT)
        cpu_group = dist.new_group(backend="gloo", timeout=GROUP_TIMEOUT) if on_gpu else None
        return cls(rank, world_size, own, (own,), cpu_group)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value` (anything picklable) on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.cpu_group)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.cpu_group)
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
        vote = torch.tensor([int(flag)])
        dist.all_reduce(vote, dist.ReduceOp.MAX, group=self.cpu_group)
        return bool(vote.item())

    def share_buffers(self, module: torch.nn.Module) -> None:
        """Give every process rank 0's buffers (batch statistics), in place."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def wrap(self, model: torch.nn.Module, **settings: Any) -> torch.nn.Module:
        """`model` in DistributedDataParallel, in DataParallel for one process with several GPUs, or itself."""
        if self.world_size > 1:
            device_ids = [self.device.index] if self.device.type == "cuda" else None
            return torch.nn.parallel.DistributedDataParallel(model, device_ids=device_ids, **settings)
        if len(self.devices) > 1:
            indices = [device.index for device in self.devices]
            print(f"WARNING one process for {len(indices)} GPUs is slow; better: torchrun --nproc_per_node "
                  f"{len(indices)} train.py ... --device {','.join(map(str, indices))}")
            return torch.nn.DataParallel(model, device_ids=indices)
        return model

    def close(self) -> None:
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()
