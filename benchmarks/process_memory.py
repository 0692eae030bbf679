"""What processes hold in memory, as Linux counts it."""

from pathlib import Path
from typing import NamedTuple

from utils.loading.dataset import Loader


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
    """Ids of the processes that read for a loader: its helpers, or its workers, which begin with the first epoch."""
    helpers = [process for process, *_ in getattr(loader.dataset.helpers, "crew", [])]
    workers = getattr(loader._loader._iterator, "_workers", [])
    return [process.pid for process in (*helpers, *workers) if process.is_alive()]


def forget_peak(process: int | str = "self") -> None:
    """Count the peak anew from here."""
    (Path("/proc") / str(process) / "clear_refs").write_text("5")
