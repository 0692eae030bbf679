"""Clocks: wall time that includes pending GPU work, and wall time without waiting for a CPU."""

import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

SCHEDULER = Path("/proc/thread-self/schedstat")  # ns on a CPU, ns of waiting for one, number of time slices


def now(device: torch.device | None = None) -> float:
    """Return wall clock seconds, read when `device` (if it is a GPU) has finished the work queued so far."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def now_without_cpu_wait() -> float:
    """Return wall clock seconds minus the time that this thread waited for a CPU (known on Linux only).

    On a busy machine, a difference of two such times shows waiting for the disk, but not for other programs.
    """
    try:
        delay = int(SCHEDULER.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        delay = 0.0
    return now() - delay


class Stopwatch:
    """Sum of seconds per named part: `with watch("nms"):` adds to `watch.seconds["nms"]`, GPU work included."""

    def __init__(self, device: torch.device | None = None):
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Generator[None]:
        """Add the time inside the block to `part`. A block left by an exception is not counted."""
        start = now(self.device)
        yield
        self.seconds[part] += now(self.device) - start
