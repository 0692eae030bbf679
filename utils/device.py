"""Devices, mixed precision, seeds and the memory allocator."""

import ctypes
import random
import sys
from typing import Any

import numpy as np
import torch

from utils import console, machine
from utils.environment import processes_on_this_machine, set_default
from utils.errors import UserError

# glibc's mallopt: parameter -> value. No mmap for large blocks (M_MMAP_MAX), never trim the heap (M_TRIM_THRESHOLD),
# grow it by 64 MiB at a time (M_TOP_PAD).
MALLOC_SETTINGS = {-4: 0, -1: -1, -2: 2**26}


def select_device(text: str = "", batch_size: int | None = None) -> list[torch.device]:
    """Return the devices for the text of `--device`.

    text: "" is the first GPU or else the CPU; otherwise "cpu", "mps", "0", "cuda:0" or "0,1,2". Without a GPU, a list
    of several becomes the CPU with a warning, so that published commands run anywhere.
    batch_size: if given, it must be a multiple of the number of devices.
    """
    word = text.lower().replace("cuda:", "").replace("none", "").replace(" ", "").strip(",")
    if word == "cpu" or (not word and not torch.cuda.is_available()):
        return [torch.device("cpu")]
    if word == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--device mps: this machine has none; omit --device")
        return [torch.device("mps")]
    indices = word.split(",") if word else ["0"]
    if not all(index.isdigit() for index in indices):
        raise UserError(f"--device {text}: expected cpu, mps, or GPU numbers such as 0 or 0,1")
    present = torch.cuda.device_count()
    if len(indices) > 1 and not present:
        return [fall_back_to_cpu(text)]
    for index in indices:
        if int(index) >= present:
            raise UserError(f"--device {text}: this machine has {present} GPU(s); use --device cpu, or omit it")
    if batch_size is not None and batch_size > 0 and batch_size % len(indices):
        raise UserError(f"--batch-size {batch_size} must be a multiple of the {len(indices)} devices")
    return [torch.device("cuda", int(index)) for index in indices]


def fall_back_to_cpu(text: str) -> torch.device:
    """Return the CPU, and warn that `--device` text names GPUs that are absent."""
    console.warn(f"--device {text}: no GPU found, using the CPU. Type --device cpu to choose it.")
    return torch.device("cpu")


def set_current_device(device: torch.device) -> torch.device:
    """Make this the current CUDA device and return it. Otherwise some allocations would land on GPU 0."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def describe_device(device: torch.device) -> str:
    """Return the name of the device, with its memory or number of threads."""
    if device.type != "cuda":
        return f"{device.type.upper()} ({torch.get_num_threads()} threads)"
    properties = torch.cuda.get_device_properties(device)
    return f"CUDA:{device.index or 0} ({properties.name}, {properties.total_memory / 2**20:.0f} MiB)"


def amp_dtype(mode: str, device: torch.device, *, data_parallel: bool = False) -> torch.dtype | None:
    """Return the autocast type for `--amp` mode, None for off.

    `auto` is fp16 on CUDA, and bf16 on CPUs with instructions for it. data_parallel: one process has several GPUs.
    PyTorch's DataParallel does not pass the type on to their threads, which use fp16.
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
    """Return True if the CPU multiplies bf16 natively (AVX512-BF16 or AMX). Elsewhere it is emulated and slow.

    PyTorch has no public name for this. Where it lacks the private ones, the CPU counts as one without bf16.
    """
    checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(check() for check in checks if check is not None)


def tune_malloc() -> bool:
    """Let the C library keep freed large blocks for reuse. Return False where it cannot (glibc on Linux only).

    A training step on the CPU frees and allocates the same gigabytes. If the kernel gets them back in between, it fills
    every page with zeros again: a tenth to a quarter of the step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(parameter, value) for parameter, value in MALLOC_SETTINGS.items())


def return_freed_memory() -> None:
    """Return to the kernel what `tune_malloc` lets the C library keep, so that a measurement of memory counts it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def cores_for_loading(device: torch.device) -> int | None:
    """Return the number of cores for loading data between steps, None if the model leaves cores free for workers.

    It leaves none free if its threads, over all processes that torchrun or an evolution runs on this machine, are as
    many as the processors. Hyper-threads count as processors.
    """
    cores = machine.usable_cores()
    processes = processes_on_this_machine()
    if device.type != "cpu" or torch.get_num_threads() * processes < cores:
        return None
    return max(1, cores // processes)


def seed_everything(seed: int) -> None:
    """Seed the global generators, which our own code never draws from, and request deterministic kernels."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        set_default("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def get_rng_state() -> dict[str, Any]:
    """Return the states of torch's global generators as tensors: `cpu`, and a list `cuda` with one per GPU."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `get_rng_state` returned. Skip the GPUs' states if the number of GPUs has changed."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
