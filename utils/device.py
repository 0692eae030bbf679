"""Devices, precision, seeds and the memory allocator."""

import ctypes
import os
import random
import sys
from typing import Any

import numpy as np
import torch

from utils.environment import processes_on_this_machine, set_default
from utils.errors import UserError


def select_device(text: str = "", batch_size: int | None = None) -> list[torch.device]:
    """Devices for `--device` text: '' the first GPU or else the CPU, 'cpu', 'mps', '0', 'cuda:0', '0,1,2'.

    A list of several is the CPU, with a warning, where there is no GPU: so the commands that people know run anywhere.
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
    if len(indices) > 1 and not present:
        return [fall_back_to_cpu(text)]
    for index in indices:
        if int(index) >= present:
            raise UserError(f"--device {text}: this machine has {present} GPU(s); use --device cpu, or leave it out")
    if batch_size is not None and batch_size > 0 and batch_size % len(indices):
        raise UserError(f"--batch-size {batch_size} must be a multiple of the {len(indices)} devices")
    return [torch.device("cuda", int(index)) for index in indices]


def fall_back_to_cpu(text: str) -> torch.device:
    print(f"WARNING --device {text}: no GPU is found here, using the CPU")
    return torch.device("cpu")


def set_current_device(device: torch.device) -> torch.device:
    """The device, from here on this process's own: what is not told otherwise would touch the first GPU, maybe full."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def describe_device(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{device.type.upper()} ({torch.get_num_threads()} threads)"
    properties = torch.cuda.get_device_properties(device)
    return f"CUDA:{device.index or 0} ({properties.name}, {properties.total_memory / 2**20:.0f} MiB)"


def amp_dtype(mode: str, device: torch.device, *, data_parallel: bool = False) -> torch.dtype | None:
    """Autocast type for `--amp`: None is off. `auto` takes fp16 on CUDA and bf16 on CPUs with instructions for it.

    data_parallel: one process has several GPUs, over which PyTorch's DataParallel does not hand the type on.
    """
    if data_parallel and mode == "bf16":
        raise UserError("--amp bf16 needs a process for each GPU: start with torchrun, or use --amp fp16")
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


def tune_malloc() -> bool:
    """Let the C library keep large blocks that are freed instead of giving each back to the system; whether it does.

    A training step on the CPU frees and takes the same gigabytes again, and the system fills every page of them with
    zeros: a tenth to a quarter of the step. Only glibc (Linux) is asked; elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    settings = {-4: 0, -1: -1, -2: 2**26}  # no mmap for large blocks; the heap is never trimmed, and grows by 64 MiB
    return mallopt is not None and all(mallopt(parameter, value) for parameter, value in settings.items())


def cores_for_loading(device: torch.device) -> int | None:
    """The cores that this process may read pictures with between its steps; None where the model leaves some free.

    It leaves none if there are as many threads as processors (hyper-threads count), over all the processes that a
    launcher or an evolution runs side by side here.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = processes_on_this_machine()
    if device.type != "cpu" or torch.get_num_threads() * processes < cores:
        return None
    return max(1, cores // processes)


def seed_everything(seed: int, deterministic: bool = True) -> None:
    """Seed the global generators (our own code draws from none of them) and ask for deterministic kernels."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic and torch.cuda.is_available():
        set_default("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def rng_state() -> dict[str, Any]:
    """State of torch's generators, as tensors."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
