"""Resources of the machine that this process may use: memory and processors, within the limits of its containers."""

import ctypes
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
UNKNOWN_MEMORY = 4 << 30  # bytes, where no system call reports it
# File names of a control group for memory: limit, bytes in use, and the entry of memory.stat for page cache that is
# freed on demand.
MEMORY_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def available_memory() -> int:
    """Return the number of bytes that can be allocated without swapping, in the machine and in its containers."""
    free = [_free_memory()]
    for version, folder in _control_groups("memory"):
        limit, used, cached = MEMORY_FILES[version]
        with suppress(OSError, KeyError, ValueError):  # a group without a limit ("max")
            reclaimable = int(_read_table(folder / "memory.stat")[cached])
            free.append(_read_number(folder / limit) - _read_number(folder / used) + reclaimable)
    with suppress(ImportError, OSError, ValueError, IndexError):
        import resource  # here, because only POSIX has it

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:  # ulimit -v
            free.append(limit - int((PROC / "self/statm").read_text().split()[0]) * resource.getpagesize())
    return max(0, min(free))


class ProcessMemory(NamedTuple):
    """Bytes of memory of this process, 0 where the system does not report them."""

    now: int
    peak: int  # since the process began


def process_memory() -> ProcessMemory:
    """Return the memory that this process has in RAM."""
    with suppress(OSError, KeyError, ValueError):
        status = _read_table(PROC / "self/status")
        return ProcessMemory(int(status["VmRSS:"]) * 1024, int(status["VmHWM:"]) * 1024)
    with suppress(ImportError):
        import resource  # here, because only POSIX has it

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return ProcessMemory(0, peak)
    return ProcessMemory(0, 0)


def _free_memory() -> int:
    """Return the number of bytes that can be allocated without swapping in the machine."""
    with suppress(OSError, KeyError, ValueError):
        return int(_read_table(PROC / "meminfo")["MemAvailable:"]) * 1024
    if sys.platform == "win32":
        status = (ctypes.c_uint64 * 8)(64)  # MEMORYSTATUSEX: its size and the load, then total, available, ...
        windll = ctypes.windll  # pyrefly: ignore[missing-attribute] (Windows only)
        return int(status[2]) if windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else UNKNOWN_MEMORY
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return UNKNOWN_MEMORY


def usable_cores() -> int:
    """Return the number of processors that this process may use: those of its affinity, within its containers' quota.

    Hyper-threads count as processors.
    """
    quotas = [_count_cores()]
    for version, folder in _control_groups("cpu"):
        with suppress(OSError, ValueError):
            if version == 1:
                quota, period = (_read_number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
            else:
                quota, period = map(int, (folder / "cpu.max").read_text().split())
            if quota > 0 and period > 0:
                quotas.append(math.ceil(quota / period))
    return min(quotas)


def measure_free_threads() -> int:
    """Return the number of threads for a model by what other processes leave free now."""
    return min(usable_cores(), free_threads(_count_cores(), busy_cores()))


def busy_cores(seconds: float = 0.2) -> float:
    """Return how many of this process's processors are busy with other processes, measured for `seconds`.

    0 where the system does not report it.
    """
    before, start, own = _busy_seconds(), time.perf_counter(), sum(os.times()[:4])
    if before is None:
        return 0.0
    time.sleep(seconds)
    after = _busy_seconds() or before
    own = sum(os.times()[:4]) - own
    return max(0.0, (after - before - own) / (time.perf_counter() - start))


def free_threads(cores: int, busy: float) -> int:
    """Return the number of threads for a model on `cores` processors of which others keep `busy` ones busy.

    The threads wait for each other, so one that shares its processor slows all. Others get half of the processors at
    most, since they get as large a share of each one anyway.
    """
    return max(cores - int(busy + 0.5), math.ceil(cores / 2))


def _busy_seconds() -> float | None:
    """Return the time that this process's processors have been busy, None where the system does not report it."""
    allowed = _affinity()
    try:
        rows = [line.split() for line in (PROC / "stat").read_text().splitlines() if line.startswith("cpu")]
        busy = {row[0]: sum(map(int, row[1:4])) + sum(map(int, row[6:9])) for row in rows}  # not idle, nor iowait
        names = {f"cpu{number}" for number in allowed} if allowed else {"cpu"}
        return sum(ticks for name, ticks in busy.items() if name in names) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None


def _count_cores() -> int:
    """Return the number of processors that this process may run on."""
    return len(_affinity()) or os.cpu_count() or 1


def _affinity() -> set[int]:
    """Return the numbers of the processors that this process may run on, none where the system does not report it."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _control_groups(controller: str) -> Iterator[tuple[int, Path]]:
    """Yield the version and folder of each control group that this process is in, itself and those above it.

    Each may limit the process: containers are nested, and Slurm makes groups for job, step and task. Version 1 has a
    tree for each controller, version 2 has one.
    """
    try:
        groups = [line.split(":", 2)[1:] for line in (PROC / "self/cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (PROC / "self/mountinfo").read_text().splitlines()]
    except (OSError, ValueError):
        return
    for fields in mounts:
        root, place, separator = fields[3], Path(fields[4].replace("\\040", " ")), fields.index("-")
        kind, options = fields[separator + 1], fields[-1].split(",")
        if kind == "cgroup2":
            version, wanted = 2, ""
        elif kind == "cgroup" and controller in options:
            version, wanted = 1, controller
        else:
            continue
        path = next((path for names, path in groups if wanted in names.split(",")), "/")
        inside = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path()
        folder = place / inside if ".." not in inside.parts else place
        yield from ((version, each) for each in (folder, *folder.parents) if each.is_relative_to(place))


def _read_number(path: Path) -> int:
    return int(path.read_text())


def _read_table(path: Path) -> dict[str, str]:
    """Return the first word of each line -> the second."""
    return {words[0]: words[1] for words in map(str.split, path.read_text().splitlines()) if len(words) > 1}


def is_running(process: int) -> bool:
    """Return False if no process of this machine has this number, True also where that cannot be known."""
    if sys.platform == "win32":  # the call below would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True
