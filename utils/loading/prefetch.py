"""Batches on their way to the device while it is still busy with the one before."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache

import torch

from utils.images.gpu_augment import apply_color_flips
from utils.loading.dataset import Batch


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches with their pictures on `device`, finished there if the workers left that to it.

    On a GPU a stream of its own copies and finishes one batch ahead, out of pinned memory without waiting. Targets stay
    where they are: the loss wants them on the CPU.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = _side_stream(device)
    yield from one_ahead(batches, lambda batch: _send(batch, device, stream))


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The same one in every epoch: memory that was freed on one stream is kept for that stream alone."""
    return torch.cuda.Stream(device)


def one_ahead(batches: Iterable[Batch], send: Callable[[Batch], Callable[[], Batch]]) -> Iterator[Batch]:
    """What each batch's `send` has promised, kept only after the next one is sent."""
    promised = None
    for batch in batches:
        following = send(batch)
        if promised is not None:
            yield promised()
        promised = following
    if promised is not None:
        yield promised()


def _send(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> Callable[[], Batch]:
    """Start the copy on `stream`; the answer gives the batch, which the caller's stream then waits for."""
    with torch.cuda.stream(stream):
        images = batch.images.to(device, non_blocking=True)
        if batch.color_flips is not None:
            images = apply_color_flips(images, batch.color_flips)
        arrival = stream.record_event()

    def take() -> Batch:
        user = torch.cuda.current_stream(device)
        user.wait_event(arrival)
        images.record_stream(user)  # else the memory could be another copy's while it is still read
        return batch._replace(images=images, color_flips=None)

    return take
