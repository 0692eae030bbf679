"""Record of which run torchrun started, so that restarted processes resume it."""

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from utils.files import atomic_write

RECORD = "launch.json"  # in the run folder
THIS_PROCESS = secrets.token_hex(8)  # process numbers are reused, in each container from 1 on


def write_launch_record(folder: Path, launchers: Sequence[str]) -> None:
    """Record in the run folder which launchers started it: the launch_token of every process. Without any, do nothing.

    A launcher is an agent of torchrun; there is one per machine.
    """
    names = sorted(set(filter(None, launchers)))
    if names:
        with atomic_write(folder / RECORD) as file:
            file.write(json.dumps({"launchers": names, "process": os.getpid(), "id": THIS_PROCESS}).encode())


def find_restarted_run(project: str | Path, launchers: Sequence[str]) -> Path | None:
    """Return the run folder below `project` that one of these launchers started in an earlier process, or None.

    One known launcher is enough: some of several machines may have been replaced.
    """
    names = set(filter(None, launchers))
    records = Path(project).rglob(RECORD) if names else ()
    ours = [record for record in records if _is_of(record, names)]
    return max(ours, key=lambda record: record.stat().st_mtime).parent if ours else None


def _is_of(record: Path, launchers: set[str]) -> bool:
    """Return True if one of `launchers` started the run in an earlier process, False also for a damaged record."""
    try:
        content = json.loads(record.read_text())
        return bool(launchers & set(content["launchers"])) and content["id"] != THIS_PROCESS
    except (OSError, ValueError, KeyError, TypeError):
        return False
