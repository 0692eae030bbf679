"""Largest training batch that fits in the memory of a GPU (`--batch-size -1`)."""

import copy
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch

from utils import console
from utils.detector import Detector, device_of
from utils.errors import UserError
from utils.image_size import ImageSize, describe_size, to_shape

DEFAULT_BATCH = 16  # on a CPU, and if measuring fails
MEMORY_SHARE = 0.8  # of the free memory; the rest is for other programs and for batches with more targets
MAX_BATCH = 1024
TRIED = (1, 2, 4, 8, 16)


def find_batch_size(model: Detector, imgsz: ImageSize, autocast: torch.dtype | None) -> int:
    """Return the batch size for images of `imgsz` pixels, 16 on a CPU.

    Memory is measured for small batches. A line through the measurements is extended to 80 % of the free memory.
    """
    device = device_of(model)
    if device.type != "cuda":
        console.info(f"--batch-size -1 measures GPU memory; there is none here, using {DEFAULT_BATCH}")
        return DEFAULT_BATCH
    free, total = torch.cuda.mem_get_info(device)
    batch = largest_batch(model, imgsz, autocast)
    console.info(f"--batch-size -1: {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, using {batch}")
    return batch


def largest_batch(model: Detector, imgsz: ImageSize, autocast: torch.dtype | None) -> int:
    """Return the batch size for images of `imgsz` pixels that fills the free memory of the model's GPU."""
    free = torch.cuda.mem_get_info(device_of(model))[0]
    used: dict[int, float] = {}
    for batch in TRIED:
        try:
            used[batch] = _peak_bytes(model, batch, imgsz, autocast)
        except torch.cuda.OutOfMemoryError:
            break
    torch.cuda.empty_cache()
    return extrapolate(used, MEMORY_SHARE * free)


def extrapolate(used: dict[int, float], budget: float) -> int:
    """Return the largest batch whose bytes fit in `budget`, 1 to MAX_BATCH, by a line through `used` {batch: bytes}.

    If a size in TRIED did not fit, the result is at most the largest that did.
    """
    if len(used) < 2:
        return max(used, default=DEFAULT_BATCH)
    slope, offset = np.polyfit(list(used), list(used.values()), 1)
    # The fit rounds differently on other processors: a batch that fits exactly must not fall just below its number.
    fitting = int((budget - offset) / slope + 1e-6) if slope > 0 else DEFAULT_BATCH
    if len(used) < len(TRIED):
        fitting = min(fitting, max(used))
    return min(max(fitting, 1), MAX_BATCH)


@contextmanager
def advice_on_memory(batch: int, imgsz: ImageSize, shares: int = 1, *, training: bool = True) -> Generator[None]:
    """Turn an out-of-memory error of a GPU into a UserError with advice.

    shares: number of processes or GPUs that share one batch.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if batch > shares:
            fewer = max(batch // 2 // shares, 1) * shares
            advice = f"--batch-size {fewer}" + ", or --batch-size -1, which finds the largest that fits" * training
        else:
            other = "a smaller model (--cfg yolov5n.yaml)" if training else "--half"
            smaller = [max(side // 64, 1) * 32 for side in to_shape(imgsz)]
            advice = f"--imgsz {describe_size(smaller)}, or {other}"
        size = describe_size(imgsz)
        raise UserError(f"out of GPU memory at --batch-size {batch}, --imgsz {size}: try {advice}") from error


def _peak_bytes(model: Detector, batch: int, imgsz: ImageSize, autocast: torch.dtype | None) -> int:
    """Return the peak memory of a forward and backward pass through a copy of the model in training mode."""
    device = device_of(model)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    probe = copy.deepcopy(model).train()
    images = torch.zeros(batch, model.pixels.channels, *to_shape(imgsz), device=device)
    for _ in range(2):
        with torch.autocast("cuda", autocast, enabled=autocast is not None):
            means = [level.float().mean() for level in probe(images)]
        torch.stack(means).sum().backward()
    return torch.cuda.max_memory_reserved(device)
