"""Highest copy and multiplication rates of a device, and the bytes that its operations read and write."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DATA_SHEET = {"H100": (3.35e12, 989e12), "H200": (4.8e12, 989e12)}  # bytes, and dense fp16 operations, per second


def now(device: torch.device) -> float:
    """Synchronise the device and return the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Limits(NamedTuple):
    """Bytes and operations per second."""

    copy: float
    product: float


def measure_limits(device: torch.device) -> Limits:
    """Measure the bytes per second, read and written, of a large copy and the FLOP/s of a large matrix product."""
    on_gpu = device.type == "cuda"
    source = torch.empty(2**31 if on_gpu else 2**26, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    side = 8192 if on_gpu else 512
    matrix = torch.randn(side, side, device=device, dtype=torch.float16 if on_gpu else torch.float32)
    return Limits(
        2 * source.numel() / best_seconds(lambda: target.copy_(source), device),
        2 * side**3 / best_seconds(lambda: matrix @ matrix, device),
    )


def best_seconds(function: Callable[[], Any], device: torch.device, rounds: int = 5, times: int = 5) -> float:
    function()
    found = []
    for _ in range(rounds):
        start = now(device)
        for _ in range(times):
            function()
        found.append((now(device) - start) / times)
    return min(found)


class Traffic(TorchDispatchMode):
    """Counter of the bytes that each operation on `device` reads or writes. Views are free."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.bytes = device, 0

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        schema = function._schema
        view = any(value.alias_info is not None and not value.alias_info.is_write for value in schema.returns)
        if not view and "empty" not in schema.name:
            written = [
                value
                for value, argument in zip(args, schema.arguments)
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
            fresh = result if not written else None
            self.bytes += sum(map(self._size, tree_leaves((args, kwargs, written, fresh))))
        return result

    def _size(self, value: Any) -> int:
        here = isinstance(value, torch.Tensor) and value.device.type == self.device.type
        return value.numel() * value.element_size() if here else 0
