"""Table of a training on the console: one row per epoch, updated while it runs."""

from collections.abc import Sequence

import torch

HEADER = ("Epoch", "GPU_mem", "box_loss", "obj_loss", "cls_loss", "Instances", "Size")


def header() -> str:
    """Return the column titles, 11 characters each."""
    return "".join(f"{title:>11}" for title in HEADER)


def memory_used(device: torch.device) -> str:
    """Return the GPU memory that this process has reserved, in GB: `0G` on other devices."""
    return f"{torch.cuda.memory_reserved(device) / 1e9 if device.type == 'cuda' else 0:.3g}G"


def progress_line(epoch: int, epochs: int, memory: str, losses: Sequence[float], instances: int, size: int) -> str:
    """Return one row: `epoch/last epoch`, memory, three mean losses, targets and size of the batch."""
    numbers = "".join(f"{value:11.4g}" for value in (*losses, instances, size))
    return f"{f'{epoch}/{epochs - 1}':>11}{memory:>11}{numbers}"
