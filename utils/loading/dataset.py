"""Samples, batches and loaders: what a batch holds is a function of (seed, epoch, batch number) alone.

The sampler (utils.loading.sampler) hands each process's slice of a global batch to the workers as a key; a sample's random
numbers come from (seed, epoch, picture, repeat). So neither the number of workers, nor the number of processes, nor
what was loaded before changes a pixel, and a run can be taken up in the middle of an epoch.

Legend: B pictures of a batch, T their labels.
"""

import atexit
import os
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from utils.datasets.label_index import LabelIndex
from utils.environment import processes_on_this_machine
from utils.errors import UserError
from utils.images.augment import (
    AugmentSettings,
    ColorFlip,
    Scene,
    Tile,
    mixup,
    mosaic,
    place_labels,
    random_perspective,
    sample_color_flip,
)
from utils.images.letterbox import Letterbox, letterbox
from utils.images.warp import GREY
from utils.kernels import free_shared_cache
from utils.loading.batch_helpers import STOPPING, BuildSample, start_helpers
from utils.loading.image_cache import ImageReader, open_images
from utils.loading.sampler import NUM_MOSAIC_INDICES, BatchKey, GlobalBatchSampler, random_stream
from utils.parallel_map import deferred_ctrl_c, init_worker

EDGE = 1e-3  # pixels; boxes end this far before the right and bottom edges of the picture


class Batch(NamedTuple):
    """One process's slice of a global batch."""

    images: torch.Tensor  # (B, 3, H, W) uint8 RGB
    targets: torch.Tensor  # (T, 6) float32 picture in the batch, class, x, y, w, h: centre and size in 0…1
    paths: list[str]  # of the pictures; of a mosaic, the picture it was made for
    letterboxes: list[Letterbox | None]  # how to get back to the original's pixels; None after augmentation
    is_padding: bool = False  # counts for nothing: another process has its picture, this one only keeps step
    color_flips: torch.Tensor | None = None  # (B, 5) float32, a ColorFlip a row: what the device has still to do


# ---- samples ---------------------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    image: np.ndarray  # BGR (H, W, 3)
    boxes: np.ndarray  # (n, 5) class, x1, y1, x2, y2 in pixels
    letterbox: Letterbox | None
    finish: ColorFlip | None = None  # of an augmented one: done already, unless it is left to the device


class DetectionDataset(Dataset):
    """Maps a BatchKey to a Batch. `settings` None reads for validation, without any randomness. unfinished: colours and
    flips are drawn, and left to the device. helpers: so many make a batch's samples together with the caller, of
    batches of at most `items` pictures of `room` bytes."""

    def __init__(
        self,
        index: LabelIndex,
        pictures: ImageReader,
        *,
        settings: AugmentSettings | None,
        mosaics: bool,
        seed: int,
        quad: bool,
        unfinished: bool = False,
        helpers: int = 0,
        items: int = 0,
        room: int = 0,
    ) -> None:
        self.index, self.images, self.settings = index, pictures, settings
        self.mosaics, self.seed, self.quad, self.unfinished = mosaics, seed, quad, unfinished
        self.helpers = start_helpers(helpers, self._make, self._ask_for_files, items, room)

    def __getitem__(self, key: BatchKey) -> Batch:
        """The batch; a worker's is in shared memory already. Where that lacks room, this raises: the thread that hands
        batches over would swallow the error, and training would wait for ever."""
        batch = self._batch(key)
        if get_worker_info() is not None:
            for part in (batch.images, batch.targets, batch.color_flips):
                part is None or part.share_memory_()
            free_shared_cache()
        return batch

    def _batch(self, key: BatchKey) -> Batch:
        images = torch.empty((len(key.indices), 3, *key.shape), dtype=torch.uint8)
        if get_worker_info() is not None and not self.quad:
            images.share_memory_()  # now and not when it is filled: its place on the heap is free again at once
        made = (self.helpers or build_serially)(self._make, key, images.numpy())
        targets, letterboxes, color_flips = map(list, zip(*made))
        batch = Batch(
            images,
            torch.from_numpy(np.concatenate(targets)),
            [self.index.paths[i] for i in key.indices],
            letterboxes,
            key.is_padding,
            torch.tensor(color_flips, dtype=torch.float32) if self.unfinished else None,
        )
        return merge_in_fours(batch, self._quad_rng(key)) if self.quad else batch

    def _make(self, key: BatchKey, k: int, planes: np.ndarray) -> tuple[np.ndarray, Letterbox | None, ColorFlip | None]:
        """Picture k of a batch, written to planes (3, H, W), and its targets."""
        i = key.indices[k]
        if self.settings is None:
            sample = self.plain(i, key.shape)
        else:
            rng = random_stream(self.seed, key.epoch, i, key.repeats[k])
            sample = self.augmented(i, key.shape, rng=rng, mosaic_indices=key.mosaic_indices and key.mosaic_indices[k])
        cv2.split(sample.image, list(planes)[::-1])  # BGR rows of pixels -> R, G, B planes, in place
        return _targets(sample.boxes[: 0 if key.is_padding else None], k, *key.shape), sample.letterbox, sample.finish

    def expect(self, key: BatchKey) -> None:
        """Let a helper ask the system for the files of a batch that is made later, since a disk needs no core."""
        if self.helpers and self.images.in_files:
            self.helpers.expect(key)

    def _ask_for_files(self, key: BatchKey) -> None:
        """Only the mosaics that are mixed in are left out."""
        for i in self.read_for(key):
            self.images.expect(i)

    def read_for(self, key: BatchKey) -> list[int]:
        """The pictures that the batch's samples and their mosaics consist of."""
        if self.settings is None:
            return key.indices
        numbers = []
        for k, (i, repeat) in enumerate(zip(key.indices, key.repeats)):
            mosaic_indices = self._partners(
                random_stream(self.seed, key.epoch, i, repeat), key.mosaic_indices and key.mosaic_indices[k]
            )
            numbers += [i, *(mosaic_indices or [])[:3]]
        return numbers

    def _partners(self, rng: np.random.Generator, mosaic_indices: Sequence[int] | None) -> Sequence[int] | None:
        """The other pictures of a sample's mosaic and of one to mix in, drawn unless given; None: it is no mosaic."""
        if not self.mosaics or rng.random() >= self.settings.mosaic:
            return None
        return (
            rng.integers(len(self.index), size=NUM_MOSAIC_INDICES).tolist()
            if mosaic_indices is None
            else mosaic_indices
        )

    def _quad_rng(self, key: BatchKey) -> list[np.random.Generator]:
        """A generator for each four of a batch, from the first of them."""
        return [
            random_stream(self.seed, key.epoch, key.indices[k], key.repeats[k], purpose="quad")
            for k in range(0, len(key.indices), 4)
        ]

    def plain(self, i: int, shape: tuple[int, int], scaleup: bool = False) -> Sample:
        """Picture i, letterboxed."""
        picture = self.images.read(i)
        inner = self.images.shape(i)
        image = np.full((*inner, 3), GREY, np.uint8) if picture is None else picture
        image, box = letterbox(image, shape, auto=False, scaleup=scaleup)
        height, width = self.index.shapes[i].tolist()
        gain = (inner[0] * box.gain[0], inner[1] * box.gain[1])  # pixels of the picture's whole height and width
        whole = Letterbox((height, width), (gain[0] / height, gain[1] / width), box.pad)
        labels = self.index.boxes(i)[: 0 if picture is None else None]
        return Sample(image, place_labels(labels, [], gain=gain, pad=box.pad)[0], whole)

    def augmented(
        self, i: int, shape: tuple[int, int], *, rng: np.random.Generator, mosaic_indices: Sequence[int] | None = None
    ) -> Sample:
        """Picture i in a mosaic or alone, warped, with its colours shifted, flipped."""
        others = self._partners(rng, mosaic_indices)
        if others is None:
            scene = self._warped(i, shape, rng)
        else:
            scene = self._mosaic([i, *others[:3]], shape[0], rng)
            if rng.random() < self.settings.mixup:
                scene = mixup(scene, self._mosaic(others[3:], shape[0], rng), rng=rng)
        finish = sample_color_flip(self.settings, rng=rng)
        image = scene.image() if self.unfinished else finish.flip(scene.image_with_hsv(finish.factors))
        return Sample(image, finish.flip_boxes(scene.boxes, shape), None, finish)

    def _mosaic(self, four: list[int], size: int, rng: np.random.Generator) -> Scene:
        tiles = [
            Tile(
                self.images.shape(i),
                self.index.boxes(i),
                self.index.polygons(i),
                lambda rows, i=i: self.images.read(i, rows),
            )
            for i in rng.permutation(four).tolist()
        ]
        return mosaic(tiles, size, settings=self.settings, rng=rng)

    def _warped(self, i: int, shape: tuple[int, int], rng: np.random.Generator) -> Scene:
        sample = self.plain(i, shape, scaleup=True)
        box = sample.letterbox
        gain = box.gain[0] * box.shape[0], box.gain[1] * box.shape[1]
        outlines = self.index.polygons(i)[: len(sample.boxes)]
        _, polygons = place_labels(self.index.boxes(i), outlines, gain=gain, pad=box.pad)
        return random_perspective(sample.image, sample.boxes, polygons=polygons, settings=self.settings, rng=rng)


def build_serially(make: BuildSample, key: BatchKey, planes: np.ndarray) -> list[tuple]:
    """As helpers do it, without any."""
    return [make(key, k, picture) for k, picture in enumerate(planes)]


def _targets(boxes: np.ndarray, k: int, height: int, width: int) -> np.ndarray:
    """(n, 5) class and xyxy in pixels -> (n, 6) k, class, x, y, w, h as fractions, clipped to the picture."""
    low = boxes[:, 1:3].clip(0, (width - EDGE, height - EDGE))
    high = boxes[:, 3:5].clip(0, (width - EDGE, height - EDGE))
    size = np.array([width, height], np.float32)
    columns = np.full((len(boxes), 1), k), boxes[:, :1], (low + high) / 2 / size, (high - low) / size
    return np.concatenate(columns, 1).astype(np.float32)


def merge_in_fours(batch: Batch, rngs: Sequence[np.random.Generator]) -> Batch:
    """Each four pictures become one of twice the size: the first alone, enlarged, or all four as tiles (even odds).

    Tiles go top left, bottom left, top right, bottom right. Paths are those of each four's first picture. A rest of
    fewer than four is left out.
    """
    images, targets, paths = [], [], []
    for k in range(len(batch.images) // 4):
        four = batch.images[4 * k : 4 * k + 4]
        rows = [batch.targets[batch.targets[:, 0] == 4 * k + j].clone() for j in range(4)]
        if rngs[k].random() < 0.5:
            height, width = four.shape[2:]
            planes = [cv2.resize(plane.numpy(), (2 * width, 2 * height)) for plane in four[0]]
            images.append(torch.from_numpy(np.stack(planes)))
            rows = rows[:1]
        else:
            images.append(torch.cat([torch.cat([four[0], four[1]], 1), torch.cat([four[2], four[3]], 1)], 2))
            for tile, shift in zip(rows, torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])):
                tile[:, 2:4] = (tile[:, 2:4] + shift) / 2
                tile[:, 4:6] /= 2
        rows = torch.cat(rows)
        rows[:, 0] = k
        targets.append(rows)
        paths.append(batch.paths[4 * k])
    return Batch(torch.stack(images), torch.cat(targets), paths, [None] * len(paths))


# ---- loaders ---------------------------------------------------------------------------------------------------------


class Loader:
    """Iterates over the batches of the epoch that `set_epoch` chose, at first epoch 0; workers live on over epochs.

    workers: processes that read ahead. With 0 each batch is made when it is asked for, by the dataset's helpers too if
    it has any.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        batches: GlobalBatchSampler,
        *,
        workers: int,
        pin_memory: bool,
        start_method: str | None,
    ) -> None:
        self.index, self.batch_size, self.workers = dataset.index, batches.batch_size, workers
        self.dataset, self.batches, self._closes_at_exit = dataset, batches, False
        self._loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=batches,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory and torch.cuda.is_available(),
            persistent_workers=workers > 0,
            worker_init_fn=_set_up_worker,
            multiprocessing_context=start_method if workers else None,
            generator=torch.Generator().manual_seed(0),
        )  # its own: torch's global one stays where it is

    @property
    def readers(self) -> str:
        """Who reads the pictures, for people."""
        if self.workers:
            return f"{self.workers} data workers"
        if self.dataset.helpers:
            return f"pictures read between the steps by {self.dataset.helpers.count + 1} {self.dataset.helpers.kind}"
        return "pictures read by the main process"

    def __len__(self) -> int:
        """Batches of a whole epoch in this process."""
        return len(self.batches)

    def set_epoch(self, epoch: int, start_batch: int = 0, weights: np.ndarray | None = None) -> None:
        """Choose what the next iteration yields: `epoch` from `start_batch` on; `weights` (N,) with image weights."""
        self.batches.epoch, self.batches.start_batch, self.batches.weights = epoch, start_batch, weights

    def __iter__(self) -> Iterator[Batch]:
        if self.workers and not self._closes_at_exit:  # later than multiprocessing's own hook: so it runs before
            atexit.register(_close, weakref.ref(self))
            self._closes_at_exit = True
        starting = self.workers and self._loader._iterator is None
        try:
            with deferred_ctrl_c() if starting else nullcontext():
                batches = iter(self._loader) if self.workers or not self.dataset.helpers else self._made_here()
            yield from batches
        except (RuntimeError, OSError) as error:
            explain_worker_error(error, self.workers)
            raise

    def _made_here(self) -> Iterator[Batch]:
        """Each batch when it is asked for; the files of the next one are on their way then."""
        keys = iter(self.batches)
        key = next(keys, None)
        while key is not None:
            batch, key = self.dataset[key], next(keys, None)
            if key is not None:
                self.dataset.expect(key)
            yield batch

    def close(self) -> None:
        """End workers and helpers. They ignore signals, so that a run can finish its step: nobody else ends them."""
        if self.dataset.helpers:
            self.dataset.helpers.close()
        iterator = self._loader._iterator
        if iterator is None or not self.workers:
            return
        try:
            iterator._shutdown_workers()
        except RuntimeError:  # at the program's end it may start no thread any more, which it does to end the pinning
            pass
        finally:
            for worker in iterator._workers:
                if worker.is_alive():
                    worker.kill()
            self._loader._iterator = None


# What torch says when /dev/shm is full: the worker is killed, or cannot make its file there.
SHORT_OF_SHARED = ("Bus error", "shared memory", "No space left on device")


def _close(reference: "weakref.ref[Loader]") -> None:
    """Close a loader at the program's end, if it still lives."""
    loader = reference()
    if loader is not None:
        loader.close()


def explain_worker_error(error: Exception, workers: int) -> None:
    """Raise a UserError for what data workers suffer when memory is short; nothing for other errors.

    That a worker was killed shows anywhere in the main process, not only where it reads batches.
    """
    fewer = f"use --workers {workers // 2}"
    if workers and any(word in str(error) for word in SHORT_OF_SHARED):
        raise UserError(
            f"too little shared memory for {workers} data workers: {fewer}, or give the container more of "
            "it (docker run --shm-size 8g, or --ipc host)"
        ) from error
    if "DataLoader worker" in str(error):
        raise UserError(
            f"one of {workers} data workers was killed, most often for want of memory: {fewer}, or leave --cache out"
        ) from error


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _set_up_worker(worker: int) -> None:
    init_worker(*STOPPING)
    sys.excepthook = _complain


def _complain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error of the thread that hands batches over, but not that the main process was killed amid it."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def make_loader(
    index: LabelIndex,
    *,
    imgsz: int,
    batch_size: int,
    stride: int = 32,
    hyp: Any = None,
    rect: bool = False,
    pad: float = 0.0,
    shuffle: bool = False,
    cache: str | None = None,
    workers: int = 8,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    image_weights: bool = False,
    quad: bool = False,
    pin_memory: bool = False,
    progress: bool = True,
    finish_on_device: bool = False,
    cores: int | None = None,
    start_method: str | None = None,
) -> Loader:
    """Loader of a split. `hyp` (a mapping or Hyperparameters) switches augmentation on; None reads for validation.

    `batch_size` counts the pictures of all processes together. `rect` groups pictures of like aspect into batches of
    their own shape (with `pad` strides around) and rules mosaics out; `image_weights` rules `rect` out. `quad` turns
    each four pictures into one of twice the size. `finish_on_device` leaves colours and flips to whoever has the batch
    on a GPU (see utils.loading.prefetch), if there is any augmentation and no `quad`, whose resizing comes after it. Without
    `hyp` every picture is read exactly once over all processes.

    Up to `workers` processes read ahead. With `cores` none does: up to `workers` helpers, for which there are so many
    cores, make each batch together with this process when it is asked for. That is faster where the model computes with
    all of them: its threads would wait for the one whose core a process takes.
    """
    if quad and world_size > 1 and batch_size % (4 * world_size):  # else each process would leave up to three out
        raise UserError(
            f"--quad merges pictures in fours on each of {world_size} processes: --batch-size {batch_size} "
            f"must be a multiple of {4 * world_size}, for instance "
            f"{max(batch_size // (4 * world_size), 1) * 4 * world_size}"
        )
    batch_size = min(batch_size, len(index))
    if quad and batch_size < 4 * world_size:
        raise UserError(
            f"--quad needs a batch of at least {4 * world_size} pictures, not {batch_size}: "
            "raise --batch-size (or leave --quad out)"
        )
    rect = rect and not image_weights
    settings = None if hyp is None else AugmentSettings.from_hyp(hyp)
    pictures = open_images(index, imgsz, smooth=hyp is None, cache=cache, copies=world_size, progress=progress)
    workers = min(
        max(1, (os.cpu_count() or 1) // processes_on_this_machine()), batch_size if batch_size > 1 else 0, workers
    )
    helpers = 0 if cores is None else max(0, min(workers, cores - 1, -(-batch_size // world_size) - 1))
    if helpers:
        cv2.setNumThreads(0)  # the helpers have the other cores
    batches = GlobalBatchSampler(
        index.shapes,
        batch_size=batch_size,
        imgsz=imgsz,
        stride=stride,
        pad=pad,
        rect=rect,
        shuffle=shuffle,
        weighted=image_weights,
        quad=quad,
        training=hyp is not None,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
    items = -(-batch_size // world_size)
    dataset = DetectionDataset(
        index,
        pictures,
        settings=settings,
        mosaics=not rect,
        seed=seed,
        quad=quad,
        unfinished=finish_on_device and settings is not None and not quad,
        helpers=helpers,
        items=items,
        room=3 * items * max(height * width for height, width in batches.shapes),
    )
    workers = workers if cores is None else 0
    return Loader(dataset, batches, workers=workers, pin_memory=pin_memory, start_method=start_method)
