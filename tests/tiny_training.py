"""Flags of small trainings on the CPU."""

from pathlib import Path

FIXED = "--imgsz 64 --batch-size 8 --workers 0 --device cpu --amp off --name run".split()


def train_flags(data: Path, cfg: Path | str, project: Path, *extra: str, epochs: int = 2) -> list[str]:
    """Return the flags of a training in the run folder `project`/run. Flags in `extra` win over the others."""
    return ["--data", str(data), "--cfg", str(cfg), "--project", str(project), "--epochs", str(epochs), *FIXED, *extra]
