"""The largest training batch that a GPU's memory holds (`--batch-size -1`)."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from utils.errors import UserError

DEFAULT_BATCH = 16  # on a CPU, and wherever measuring gives nothing usable
MEMORY_SHARE = 0.8  # of the free memory: the rest is for other programs and for uneven batches
TRIED = (1, 2, 4, 8, 16)


def find_batch_size(model: nn.Module, imgsz: int, autocast: torch.dtype | None) -> int:
    """Batch size for images of `imgsz` pixels: memory is measured at small sizes, a line fitted through it and
    extended to 80 % of what is free. 16 on a CPU."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        print(f"--batch-size -1 measures GPU memory; there is none here, using {DEFAULT_BATCH}")
        return DEFAULT_BATCH
    free, total = torch.cuda.mem_get_info(device)
    used = {}
    for batch in TRIED:
        try:
            used[batch] = _peak_bytes(model, batch, imgsz, autocast)
        except torch.cuda.OutOfMemoryError:
            break
    torch.cuda.empty_cache()
    batch = extrapolate(used, MEMORY_SHARE * free)
    print(f"--batch-size -1: {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, using {batch}")
    return batch


def extrapolate(used: dict[int, float], budget: float) -> int:
    """Largest batch whose bytes, on the line through the measured {batch: bytes}, fit `budget`; from 1 to 1024.

    A size that failed while measuring is never exceeded.
    """
    if len(used) < 2:
        return max(used, default=DEFAULT_BATCH)
    slope, offset = np.polyfit(list(used), list(used.values()), 1)
    # The fit rounds differently on other processors: a batch that fits exactly must not fall just below its number.
    fitting = int((budget - offset) / slope + 1e-6) if slope > 0 else DEFAULT_BATCH
    if len(used) < len(TRIED):
        fitting = min(fitting, max(used))
    return min(max(fitting, 1), 1024)


@contextmanager
def advice_on_memory(batch: int, imgsz: int, shares: int = 1, *, training: bool = True) -> Iterator[None]:
    """Turn want of GPU memory into a UserError that says what to try. shares: parts that a batch is divided into."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        if batch > shares:
            fewer = max(batch // 2 // shares, 1) * shares
            advice = f"--batch-size {fewer}" + ", or --batch-size -1, which finds the largest that fits" * training
        else:
            other = "a smaller model (--cfg yolov5n.yaml)" if training else "--half"
            advice = f"--imgsz {max(imgsz // 64, 1) * 32}, or {other}"
        raise UserError(f"out of GPU memory at --batch-size {batch}, --imgsz {imgsz}: try {advice}") from error


def _peak_bytes(model: nn.Module, batch: int, imgsz: int, autocast: torch.dtype | None) -> int:
    """Peak memory of a forward and backward pass of a copy of the model in training."""
    device = next(model.parameters()).device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    probe = copy.deepcopy(model).train()
    images = torch.zeros(batch, 3, imgsz, imgsz, device=device)
    for _ in range(2):
        with torch.autocast("cuda", autocast, enabled=autocast is not None):
            loss = sum(level.float().mean() for level in probe(images))
        loss.backward()
    return torch.cuda.max_memory_reserved(device)
