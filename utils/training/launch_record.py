"""Which run a launcher (torchrun) began: so that, when it restarts its processes, they go on with that run."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from utils.files import atomic_write

RECORD = "launch.json"  # in the run folder


def remember_launch(folder: Path, launchers: Sequence[str]) -> None:
    """Note in the run folder which `launchers` (runtime.launch_token of every process) it belongs to; none: no note."""
    names = sorted(set(filter(None, launchers)))
    if names:
        with atomic_write(folder / RECORD) as file:
            file.write(json.dumps({"launchers": names, "process": os.getpid()}).encode())


def find_launch(project: str | Path, launchers: Sequence[str]) -> Path | None:
    """The run folder below `project` that one of these launchers began in an earlier process; None if there is none.

    One launcher that is left is enough: of several machines some may have been replaced.
    """
    names = set(filter(None, launchers))
    records = Path(project).rglob(RECORD) if names else ()
    ours = [record for record in records if _is_of(record, names)]
    return max(ours, key=lambda record: record.stat().st_mtime).parent if ours else None


def _is_of(record: Path, launchers: set[str]) -> bool:
    """Whether one of `launchers` began the run, in another process than this; a damaged record is nobody's."""
    try:
        content = json.loads(record.read_text())
        return bool(launchers & set(content["launchers"])) and content["process"] != os.getpid()
    except (OSError, ValueError, KeyError, TypeError):
        return False
