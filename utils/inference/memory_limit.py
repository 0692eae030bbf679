"""Limit of memory around code that trusts a file: allocations beyond it fail, and the process lives."""

import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.machine import available_memory

STATUS = Path("/proc/self/statm")
DATA_COLUMN = 5  # pages of data and stacks


@contextmanager
def limited_memory() -> Generator[None]:
    """Let allocations fail once the memory that is available now is used up, on Linux. Elsewhere nothing changes.

    Without it the kernel's OOM killer ends the process, or another one.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(OSError, ValueError):
        used = int(STATUS.read_text().split()[DATA_COLUMN]) * resource.getpagesize()
        limits = [used + available_memory(), *(limit for limit in before if limit != resource.RLIM_INFINITY)]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
