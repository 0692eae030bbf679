"""Transfer of batches to the GPU while it still computes on the previous one."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache

import torch

from utils.images.gpu_augment import apply_color_flips
from utils.loading.dataset import Batch


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches with their images on `device`, and with deferred colour shifts and flips applied there.

    On a GPU, a CUDA stream of its own copies and augments one batch ahead, from pinned memory and without a sync.
    Targets stay on the CPU, where the loss wants them.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = _side_stream(device)
    yield from one_ahead(batches, lambda batch: _send(batch, device, stream))


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of transfers, the same one in every epoch.

    PyTorch reuses memory that was freed on a stream for that stream alone.
    """
    return torch.cuda.Stream(device)


def one_ahead(batches: Iterable[Batch], send: Callable[[Batch], Callable[[], Batch]]) -> Iterator[Batch]:
    """Yield each batch only after the transfer of the next one has started.

    `send` starts a transfer and returns a function that returns the transferred batch.
    """
    receive = None
    for batch in batches:
        following = send(batch)
        if receive is not None:
            yield receive()
        receive = following
    if receive is not None:
        yield receive()


def _send(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> Callable[[], Batch]:
    """Start the transfer on `stream`, and return a function that makes the caller's stream wait for it."""
    with torch.cuda.stream(stream):
        images = batch.images.to(device, non_blocking=True)
        if batch.color_flips is not None:
            images = apply_color_flips(images, batch.color_flips)
        arrival = stream.record_event()

    def receive() -> Batch:
        current = torch.cuda.current_stream(device)
        current.wait_event(arrival)
        images.record_stream(current)  # else the next transfer could reuse the memory while it is still read
        return batch._replace(images=images, color_flips=None)

    return receive
