"""Loader: iterates over the batches of one epoch after another, in data workers, with helpers, or alone."""

import atexit
import errno
import math
import multiprocessing
import os
import re
import sys
import tempfile
import traceback
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.queues import Queue
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from utils import console, machine
from utils.config import Hyperparameters
from utils.datasets.label_index import LabelIndex
from utils.environment import processes_on_this_machine
from utils.errors import SHORTAGES, UserError
from utils.image_size import ImageSize
from utils.images.augment import AugmentSettings
from utils.loading.batch_helpers import IGNORED_SIGNALS
from utils.loading.dataset import Batch, DetectionDataset
from utils.loading.image_cache import open_images
from utils.loading.reading_plan import plan_reading
from utils.loading.sampler import IN_ORDER, BatchSettings, GlobalBatchSampler
from utils.parallel_map import deferred_ctrl_c, hidden_main_module, init_worker
from utils.pixel_format import RGB

# Parts of PyTorch's messages when /dev/shm is full: a worker was killed, or cannot create its file there.
FULL_SHARED_MEMORY = ("Bus error", "shared memory", "No space left on device")
WORKER_BYTES = 256 << 20  # of memory that a data worker or helper may take
MAX_SOCKET_FOLDER = 60  # letters; names of sockets are files in the temporary folder, and have at most 107
LONG_SOCKET_NAME = "AF_UNIX path too long"


@dataclass(frozen=True)
class LoadSettings:
    """Settings of how batches are loaded. None of them changes a pixel, except `defer_color_flip`."""

    cache: str | None = None  # None, "ram", "disk" or "auto" (see utils.loading.image_cache.open_images)
    workers: int = 8  # at most, data workers or helpers
    # Number of cores for loading between steps: helpers build each batch together with the main process when it is
    # requested. None: data workers read ahead. Helpers are faster if the model computes on all cores, because its
    # threads would wait for the one whose core a data worker takes.
    cores: int | None = None
    start_method: str | None = None  # of data workers: fork, spawn or forkserver; None is Python's default
    pin_memory: bool = False
    # Leave the pixels of colour shifts and flips to the GPU (utils.loading.prefetch). It has no effect without
    # augmentation, nor with quad, which resizes after them, nor for other pixels than 8-bit RGB.
    defer_color_flip: bool = False


DEFAULT_LOADING = LoadSettings()


class Loader:
    """Iterable over the batches of the epoch that `set_epoch` chose, at first epoch 0.

    Data workers live on from epoch to epoch. Without them, each batch is built when it is requested.
    `workers` is the number of data workers.
    """

    def __init__(self, dataset: DetectionDataset, sampler: GlobalBatchSampler, *, settings: LoadSettings) -> None:
        self.dataset, self.sampler = dataset, sampler
        self.index, self.batch_size = dataset.index, sampler.batch_size
        self._closes_at_exit = False
        plan = plan_reading(
            batch_size=sampler.batch_size,
            world_size=1 if sampler.settings.whole else sampler.world_size,
            workers=settings.workers,
            cpus=min(machine.usable_cores(), machine.available_memory() // WORKER_BYTES) // processes_on_this_machine(),
            cores=settings.cores,
        )
        self.workers = plan.workers
        if plan.helpers:
            cv2.setNumThreads(0)  # the helpers have the other cores
            max_shape = max(sampler.shapes, key=math.prod)
            dataset.start_helpers(plan.helpers, max_images=plan.images_per_rank, max_shape=max_shape)
        self._loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=plan.workers,
            collate_fn=_keep_batch,  # pyrefly: ignore[bad-argument-type] (it gets one batch, not a list of samples)
            pin_memory=settings.pin_memory and torch.cuda.is_available(),
            persistent_workers=plan.workers > 0,
            worker_init_fn=_init_data_worker,
            multiprocessing_context=settings.start_method if plan.workers else None,
            generator=torch.Generator().manual_seed(0),  # of its own, so that torch's global one does not advance
        )

    @property
    def readers(self) -> str:
        """Description of the processes that read images, for messages."""
        if self.workers:
            return f"{self.workers} data workers"
        helpers = self.dataset.helpers
        if helpers:
            return f"images read between the steps by {helpers.count + 1} {helpers.kind}"
        return "images read by the main process"

    @property
    def deals_batches(self) -> bool:
        """True if each of several ranks has whole batches of its own (BatchSettings.whole)."""
        return self.sampler.settings.whole and self.sampler.world_size > 1

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int, start_batch: int = 0, weights: np.ndarray | None = None) -> None:
        """Choose what the next iteration yields: `epoch` from `start_batch` on.

        `weights` (N,) are the image weights to draw by, if the loader does.
        """
        self.sampler.epoch, self.sampler.start_batch, self.sampler.weights = epoch, start_batch, weights

    def __iter__(self) -> Iterator[Batch]:
        if self.workers and not self._closes_at_exit:
            # Registered after multiprocessing's own exit handler, so that it runs before.
            atexit.register(_close, weakref.ref(self))
            self._closes_at_exit = True
        try:
            for batch in self._batches():
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except (RuntimeError, OSError, EOFError) as error:
            explain_worker_error(error, self.workers)
            raise

    def _batches(self) -> Iterable[Batch | UserError]:
        if self.workers and self._loader._iterator is None:
            return self._start_workers()
        return self._build_on_request() if self.dataset.helpers else self._loader

    def _start_workers(self) -> Iterator[Batch | UserError]:
        """Start all data workers, or none. They ignore the signal by which Python would end them at its own end."""
        others = multiprocessing.active_children()
        try:
            with deferred_ctrl_c(), hidden_main_module():
                return iter(self._loader)
        except BaseException as error:
            for process in set(multiprocessing.active_children()).difference(others):
                process.kill()
                process.join()
            for frame, _ in traceback.walk_tb(error.__traceback__):
                if isinstance(half_made := frame.f_locals.get("self"), _MultiProcessingDataLoaderIter):
                    half_made._shutdown = True  # its end would fail in the parts that it lacks
            if isinstance(error, OSError) and error.errno not in SHORTAGES:
                raise UserError(
                    f"cannot start {self.workers} data workers ({error}): use --workers 0, or "
                    "give the container /dev/shm"
                ) from error
            raise

    def _build_on_request(self) -> Iterator[Batch | UserError]:
        """Yield each batch when it is requested, and let the OS read the files of the next one ahead."""
        keys = iter(self.sampler)
        key = next(keys, None)
        while key is not None:
            batch, key = self.dataset[key], next(keys, None)
            if key is not None:
                self.dataset.prefetch(key)
            yield batch

    def close(self) -> None:
        """End workers and helpers, which ignore signals so that a run can finish its step."""
        if self.dataset.helpers:
            self.dataset.helpers.close()
        iterator: Any = self._loader._iterator  # of a private class
        if iterator is None or not self.workers:
            return
        try:
            # During interpreter shutdown this raises RuntimeError: it may not start the thread that ends pinning.
            with suppress(RuntimeError):
                iterator._shutdown_workers()
        finally:
            for worker in iterator._workers:
                if worker.is_alive():
                    worker.kill()
            self._loader._iterator = None


def _close(reference: "weakref.ref[Loader]") -> None:
    """Close a loader at the program's end if it still exists."""
    loader = reference()
    if loader is not None:
        loader.close()


def explain_worker_error(error: Exception, workers: int) -> None:
    """Raise a UserError if `error` means that a data worker ended, or lacks something. Return for other errors.

    A worker's death raises anywhere in the main process, not only where it reads batches.
    """
    fewer = f"use --workers {workers // 2}"
    texts = f"{error} {error.__cause__ or ''}"
    code = re.search(r"exit code (\d+)", texts)
    number = int(code[1]) if code else error.errno if isinstance(error, OSError) else None
    shortage = SHORTAGES.get(errno.EMFILE if "Too many open files" in texts else number or 0)
    if workers and shortage:
        raise UserError(f"{workers} data workers: {shortage}") from error
    if workers and LONG_SOCKET_NAME in texts:
        raise UserError(
            "the folder of temporary files is too long for sockets; shorten TMPDIR, or use --workers 0"
        ) from error
    if workers and any(words in str(error) for words in FULL_SHARED_MEMORY):
        raise UserError(
            f"too little shared memory for {workers} data workers: {fewer}, or give the container more of "
            "it (docker run --shm-size 8g, or --ipc host)"
        ) from error
    if code or (workers and isinstance(error, (ConnectionError, EOFError))):  # it ended while it handed a batch over
        raise UserError(f"one of {workers} data workers failed, its own message says why: try --workers 0") from error
    if "DataLoader worker" in str(error):
        raise UserError(
            f"one of {workers} data workers was killed, probably out of memory: {fewer}, or train without --cache"
        ) from error


@contextmanager
def explained_worker_errors(workers: int) -> Generator[None]:
    """Let `explain_worker_error` see the errors of a block, in which a worker's death may raise anywhere."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        explain_worker_error(error, workers)
        raise


def _keep_batch(batch: Batch | UserError) -> Batch | UserError:
    """Return the batch as it is: collate function for data sets that return whole batches."""
    return batch


def _init_data_worker(worker: int) -> None:
    init_worker(*IGNORED_SIGNALS)
    if len(tempfile.gettempdir()) > MAX_SOCKET_FOLDER and os.path.isdir("/tmp"):
        tempfile.tempdir = "/tmp"
    # Both are called by threads that hand batches over.
    sys.excepthook = lambda kind, error, trace: _end_worker(error)
    feeding: Any = Queue
    feeding._on_queue_feeder_error = staticmethod(lambda error, batch: _end_worker(error))


def _end_worker(error: BaseException) -> None:
    """End a data worker that cannot hand a batch over, for which the main process would wait forever.

    The exit code is the number of the error. If the error means that the main process was killed, do nothing: the
    worker ends by itself.
    """
    if isinstance(error, (ConnectionError, EOFError)):
        return
    number = error.errno if isinstance(error, OSError) else None
    if number in SHORTAGES:
        console.error(f"data worker: {error}")
    else:
        sys.__excepthook__(type(error), error, error.__traceback__)
    os._exit(number or 1)


def make_loader(
    index: LabelIndex,
    *,
    imgsz: ImageSize,
    batch_size: int,
    stride: int = 32,
    hyp: Hyperparameters | Mapping[str, float] | None = None,
    batches: BatchSettings = IN_ORDER,
    loading: LoadSettings = DEFAULT_LOADING,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Return the loader of a split for this rank.

    Images are fitted into `imgsz`, and batches have that shape unless they are rectangular. `batch_size` counts the
    images of all ranks together. `hyp` switches augmentation on; None reads for validation.
    Without `hyp` every image is read exactly once over all ranks.
    """
    if batches.quad:
        _check_quad(batch_size, index.epoch_size, world_size)
    training = hyp is not None
    sampler = GlobalBatchSampler(
        index.shapes,
        batch_size=min(batch_size, index.epoch_size),
        imgsz=imgsz,
        stride=stride,
        settings=batches,
        training=training,
        seed=seed,
        rank=rank,
        world_size=world_size,
        draws=index.draws if training else None,
    )
    dataset = DetectionDataset(
        index,
        open_images(index, imgsz, smooth=not training, cache=loading.cache, copies=world_size),
        augment=None if hyp is None else AugmentSettings.from_hyp(hyp),
        mosaic_epochs=batches.has_mosaics_until,
        seed=seed,
        quad=batches.quad,
        defer_color_flip=loading.defer_color_flip and training and not batches.quad and index.pixels == RGB,
    )
    return Loader(dataset, sampler, settings=loading)


def _check_quad(batch_size: int, num_images: int, world_size: int) -> None:
    """Raise UserError if a rank's slice of a batch cannot be merged in fours."""
    multiple = 4 * world_size
    if world_size > 1 and batch_size % multiple:  # each rank would drop up to three images
        raise UserError(
            f"--quad merges images in fours on each of {world_size} processes: --batch-size {batch_size} "
            f"must be a multiple of {multiple}, for instance {max(batch_size // multiple, 1) * multiple}"
        )
    if min(batch_size, num_images) < multiple:
        raise UserError(
            f"--quad needs a batch of at least {multiple} images, not {min(batch_size, num_images)}: "
            "raise --batch-size (or train without --quad)"
        )
