"""Helper processes that build part of each batch between training steps and sleep while the model runs.

They are forked where that is safe (Linux). Otherwise they are threads, which mostly serialise on the GIL when small
images come from RAM.

Letters: B images of a batch, H W rows and columns.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import numpy as np

from utils.errors import UserError
from utils.loading.image_cache import SharedBytes
from utils.loading.sampler import BatchKey
from utils.parallel_map import can_fork, deferred_ctrl_c, init_worker
from utils.pixel_format import RGB, PixelFormat

# (key, position in the batch, planes): fills planes (C, H, W) and returns the rest of the sample.
BuildSample = Callable[[BatchKey, int, np.ndarray], Any]
# Work that a helper does with the key of the next batch, in the background.
Prepare = Callable[[BatchKey], None]
# The main process handles these; a run may need its helpers for one more step.
IGNORED_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")


class HelperSettings(NamedTuple):
    """Work of the helpers, and the memory that it takes."""

    build_sample: BuildSample
    prepare: Prepare
    max_images: int  # of a batch
    slot_bytes: int  # that the images of a batch take at most
    pixels: PixelFormat = RGB


def start_helpers(count: int, settings: HelperSettings) -> "HelperProcesses | HelperThreads | None":
    """Start `count` helpers: processes if possible, else threads. Return None for 0."""
    if not count:
        return None
    if can_fork():
        with suppress(OSError):  # the machine has no more processes, or no memory for one
            return HelperProcesses(count, settings)
    return HelperThreads(count, settings.prepare)


class HelperThreads:
    """Threads that share the work on a batch with the calling thread."""

    kind = "threads"

    def __init__(self, count: int, prepare: Prepare) -> None:
        self.count, self.prepare = count, prepare
        self.pool = ThreadPoolExecutor(count, thread_name_prefix="helper")

    def build(self, build_sample: BuildSample, key: BatchKey, planes: np.ndarray) -> list[Any]:
        """Fill planes (B, C, H, W) and return the result of `build_sample` for each image.

        Each thread builds every n-th image. After an exception, which is raised here, no thread begins another image.
        """
        failed = []

        def build_share(share: range) -> list[Any]:
            try:
                return [build_sample(key, k, planes[k]) for k in share if not failed]
            except BaseException as error:
                failed.append(error)
                raise

        own, *others = (range(k, len(planes), self.count + 1) for k in range(self.count + 1))
        futures = [self.pool.submit(build_share, share) for share in others]
        parts = [build_share(own), *(future.result() for future in futures)]
        return [parts[k % len(parts)][k // len(parts)] for k in range(len(planes))]

    def prefetch(self, key: BatchKey) -> None:
        """Let a thread prepare the next batch, without waiting for it."""
        self.pool.submit(self.prepare, key)

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()


class Helper(NamedTuple):
    """One helper process, seen from the main process."""

    process: ForkProcess
    pipe: Connection
    slot: np.ndarray  # (slot_bytes,) uint8, shared memory that the helper writes its images to


class HelperProcesses:
    """Forked processes that share the work on a batch with the main process.

    Each helper has a slot of shared memory for its images. All processes see in `claimed`, shared memory too, which
    images of the batch are begun. The helpers end with this object, and with the main process.
    """

    kind = "processes"

    def __init__(self, count: int, settings: HelperSettings) -> None:
        context = multiprocessing.get_context("fork")
        self.count, self.batch_number, self.pixels = count, 0, settings.pixels
        self.helpers: list[Helper] = []
        self.claimed = SharedBytes(settings.max_images).array
        with deferred_ctrl_c():
            for k in range(count):
                own_end, helper_end = context.Pipe()
                slot = SharedBytes(settings.slot_bytes).array
                share = Share(first=k + 1, step=count + 1, claimed=self.claimed, slot=slot, pixels=self.pixels)
                arguments = settings.build_sample, settings.prepare, share, own_end, helper_end
                process = context.Process(target=_run_helper, args=arguments, daemon=True)
                process.start()
                helper_end.close()  # only the helper's copy stays open, so that its death shows as EOF here
                self.helpers.append(Helper(process, own_end, slot))
            # Higher than the priority of multiprocessing's own exit handler, which would wait for the helpers.
            self.close = Finalize(self, _end_helpers, (self.helpers,), exitpriority=10)

    def build(self, build_sample: BuildSample, key: BatchKey, planes: np.ndarray) -> list[Any]:
        """Fill planes (B, C, H, W) and return the result of `build_sample` for each image.

        An exception in a helper is raised here. A killed helper is a UserError.
        """
        self.batch_number += 1
        claimed, results = self.claimed[: len(planes)], {}
        claimed[:] = 0
        for helper in self.helpers:
            self._send(helper.pipe, (self.batch_number, key, len(planes)))
        for k in claim_items(claimed, 0, self.count + 1):
            results[k] = build_sample(key, k, planes[k])
        for helper in self.helpers:
            built, error = self._receive(helper.pipe)
            if error is not None:
                raise error
            images = view_images(helper.slot, len(built), planes.shape[2:], self.pixels)
            for (k, result), image in zip(built, images):
                planes[k], results[k] = image, result
        for k in set(range(len(planes))) - set(results):
            # A helper still busy with the previous batch claimed this item by mistake.
            results[k] = build_sample(key, k, planes[k])
        return [results[k] for k in range(len(planes))]

    def prefetch(self, key: BatchKey) -> None:
        """Let a helper prepare the next batch, without waiting for it."""
        self._send(self.helpers[0].pipe, (0, key, None))

    def _send(self, pipe: Connection, message: tuple[int, BatchKey, int | None]) -> None:
        try:
            pipe.send(message)
        except OSError:
            raise self._killed_error() from None

    def _receive(self, pipe: Connection) -> tuple[list[Any], Exception | None]:
        """Return what a helper built for the current batch, or its exception.

        Skip answers to earlier batches, which an exception or a signal left unread.
        """
        number, built, error = 0, [], None
        while number != self.batch_number:
            try:
                number, built, error = pipe.recv()
            except (EOFError, OSError):
                raise self._killed_error() from None
        return built, error

    def _killed_error(self) -> UserError:
        return UserError(
            f"one of {self.count + 1} processes that read images was killed, probably out of memory: use --workers 0, "
            "or train without --cache"
        )


class Share(NamedTuple):
    """A helper's part of each batch, and the shared memory that it works in."""

    first: int  # builds the images first, first + step, …, then those that other processes have left
    step: int
    claimed: np.ndarray  # (max_images,) uint8, 1 where a process has begun an image
    slot: np.ndarray  # (slot_bytes,) uint8
    pixels: PixelFormat


def _run_helper(
    build_sample: BuildSample, prepare: Prepare, share: Share, main_end: Connection, helper_end: Connection
) -> None:
    """Build images in a helper process until the main process closes its end of the pipe."""
    init_worker(*IGNORED_SIGNALS)
    main_end.close()
    while True:
        try:
            number, key, count = helper_end.recv()
        except (EOFError, OSError):
            return
        try:
            if count is None:
                prepare(key)
                continue
            items = claim_items(share.claimed[:count], share.first, share.step)
            images = view_images(share.slot, count, key.shape, share.pixels)
            answer = number, [(k, build_sample(key, k, image)) for k, image in zip(items, images)], None
        except Exception as error:
            answer = number, [], error
        try:
            helper_end.send(answer)
        except OSError:
            return


def _end_helpers(helpers: Sequence[Helper]) -> None:
    for helper in helpers:
        helper.pipe.close()
        helper.process.kill()  # it holds nothing that could be lost
        helper.process.join()


def claim_items(claimed: np.ndarray, first: int, step: int) -> Iterator[int]:
    """Yield the items that one of several processes is to build, and mark them in `claimed` (n,).

    These are every step-th item, then unclaimed items of others, from the end. If two processes claim the same item
    at once, both build the same result.
    """
    for k in chain(range(first, len(claimed), step), reversed(range(len(claimed)))):
        if not claimed[k]:
            claimed[k] = 1
            yield k


def view_images(slot: np.ndarray, count: int, shape: Sequence[int], pixels: PixelFormat = RGB) -> np.ndarray:
    """Return the beginning of a slot as images (count, C, H, W) of shape (H, W)."""
    height, width = shape
    used = slot[: count * pixels.bytes_per_pixel * height * width].view(pixels.dtype)
    return used.reshape(count, pixels.channels, height, width)
