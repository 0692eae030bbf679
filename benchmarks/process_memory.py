"""Memory of processes, as Linux counts it."""

from pathlib import Path
from typing import NamedTuple

from utils.loading.loader import Loader


class ProcessMemory(NamedTuple):
    """Memory of one process in MiB."""

    own: float  # pages that no other process maps
    share: float  # own pages and its part of the shared ones (PSS)
    peak: float  # largest resident size; shared pages count in full


def memory_of(process: int | str = "self") -> ProcessMemory:
    folder = Path("/proc") / str(process)
    lines = (folder / "smaps_rollup").read_text().splitlines()[1:] + (folder / "status").read_text().splitlines()
    kib = {line.split(":")[0]: float(line.split()[1]) for line in lines if line.endswith(" kB")}
    return ProcessMemory(
        *(value / 1024 for value in (kib["Private_Clean"] + kib["Private_Dirty"], kib["Pss"], kib["VmHWM"]))
    )


def workers_of(loader: Loader) -> list[int]:
    """Return the ids of a loader's processes: its helpers, or its workers, which start with the first epoch."""
    helpers = [helper.process for helper in getattr(loader.dataset.helpers, "helpers", [])]
    workers = getattr(loader._loader._iterator, "_workers", [])
    return [process.pid for process in (*helpers, *workers) if process.is_alive()]


def reset_peak(process: int | str = "self") -> None:
    """Reset the peak to the present size."""
    (Path("/proc") / str(process) / "clear_refs").write_text("5")
