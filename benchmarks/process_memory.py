"""What processes hold in memory, as Linux counts it."""

from pathlib import Path
from typing import NamedTuple

from utils.dataset import Loader


class Held(NamedTuple):
    """MiB of one process. own: pages that no other process has; share: own and its part of the shared ones; peak: the
    most that was ever resident, shared ones counted whole."""

    own: float
    share: float
    peak: float


def held(process: int | str = "self") -> Held:
    folder = Path("/proc") / str(process)
    lines = (folder / "smaps_rollup").read_text().splitlines()[1:] + (folder / "status").read_text().splitlines()
    kib = {line.split(":")[0]: float(line.split()[1]) for line in lines if line.endswith(" kB")}
    return Held(*(value / 1024 for value in (kib["Private_Clean"] + kib["Private_Dirty"], kib["Pss"], kib["VmHWM"])))


def workers_of(loader: Loader) -> list[int]:
    """Process ids of a loader's workers that live; none before its first epoch."""
    iterator = loader._loader._iterator
    return [worker.pid for worker in getattr(iterator, "_workers", []) if worker.is_alive()]


def forget_peak(process: int | str = "self") -> None:
    """Count the peak anew from here."""
    (Path("/proc") / str(process) / "clear_refs").write_text("5")
