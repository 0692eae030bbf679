"""The console table of a training."""

import torch

HEADER = ("Epoch", "GPU_mem", "box_loss", "obj_loss", "cls_loss", "Instances", "Size")


def header() -> str:
    """Column titles of the training table, 11 characters each."""
    return "".join(f"{title:>11}" for title in HEADER)


def memory_used(device: torch.device) -> str:
    """GPU memory reserved by this process in GB, `0G` elsewhere."""
    return f"{torch.cuda.memory_reserved(device) / 1e9 if device.type == 'cuda' else 0:.3g}G"


def progress_line(epoch: int, epochs: int, memory: str, losses: list[float], instances: int, size: int) -> str:
    """One row of the training table: `epoch/last epoch`, memory, three mean losses, targets and size of the batch."""
    numbers = "".join(f"{value:11.4g}" for value in (*losses, instances, size))
    return f"{f'{epoch}/{epochs - 1}':>11}{memory:>11}{numbers}"
