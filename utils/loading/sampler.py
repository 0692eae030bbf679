"""Sampler: the images of each batch as a function of (seed, epoch), cut into one slice per process.

Letters: B images of a batch, N images of the split, C classes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from utils.datasets.label_index import LabelIndex
from utils.image_size import ImageSize, to_shape

NUM_MOSAIC_INDICES = 7  # images that a sample may need besides its own: 3 of its mosaic, 4 of the one to mix in
# Random streams besides those of the samples; the number keeps them apart.
PURPOSES = {"order": 1, "weights": 2, "mosaic": 3, "quad": 4, "draws": 5}


def random_stream(seed: int, epoch: int, *numbers: int, purpose: str | None = None) -> np.random.Generator:
    """Return the generator of one sample (numbers = image, occurrence), or of one `purpose` in one epoch."""
    spawn_key = (PURPOSES[purpose],) if purpose else ()
    return np.random.default_rng(np.random.SeedSequence([seed % 2**32, epoch, *numbers], spawn_key=spawn_key))


@dataclass(frozen=True)
class BatchSettings:
    """Rules for grouping images into batches."""

    rect: bool = False  # images of similar aspect share a batch, whose shape fits them; no mosaics
    pad: float = 0.0  # strides added to each side of a rect shape
    shuffle: bool = False
    image_weights: bool = False  # draw images by weight; overrides rect
    quad: bool = False  # merge each four images into one of twice the size
    whole: bool = False  # validation: deal whole batches to the ranks in turn, not a slice of each to every rank
    mosaic_epochs: float = math.inf  # number of first epochs with mosaics

    @property
    def has_rect_shapes(self) -> bool:
        """True if batches have shapes of their own."""
        return self.rect and not self.image_weights

    @property
    def has_mosaics_until(self) -> float:
        """First epoch without mosaics."""
        return 0 if self.has_rect_shapes else self.mosaic_epochs


IN_ORDER = BatchSettings()


class BatchKey(NamedTuple):
    """Everything that a process needs to build a batch."""

    epoch: int
    indices: list[int]  # (B,)
    occurrences: list[int]  # (B,) how often each index appeared earlier in this epoch
    shape: tuple[int, int]  # height, width
    mosaic_indices: list[list[int]] | None  # (B, 7) drawn with the epoch's images; None: each sample draws its own
    is_padding: bool = False

    def mosaic_indices_of(self, k: int) -> list[int] | None:
        """Return the mosaic indices of image k of the batch, if they were drawn with the epoch's images."""
        return None if self.mosaic_indices is None else self.mosaic_indices[k]


def rect_shapes(
    shapes: np.ndarray, batch_size: int, *, imgsz: ImageSize, stride: int, pad: float
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return the order of the images by aspect (N,), and the height and width of each batch in that order.

    The shape of a batch is the smallest that holds its images, each fitted into `imgsz`, plus `pad` strides, in whole
    strides. Images of equal aspect stay in the order of `shapes` (N, 2), so that every machine builds the same batches.
    """
    height, width = to_shape(imgsz)
    aspect = shapes[:, 0] / shapes[:, 1]
    order = np.argsort(aspect, kind="stable")
    sizes: list[tuple[int, int]] = []
    for start in range(0, len(order), batch_size):
        members = aspect[order[start : start + batch_size]]
        flattest, tallest = float(members[0]), float(members[-1])
        high = tallest * width if tallest < height / width else height
        wide = 1 / flattest * height if flattest > height / width else width
        sizes.append((math.ceil(high / stride + pad) * stride, math.ceil(wide / stride + pad) * stride))
    return order, sizes


def steps_per_epoch(num_images: int, batch_size: int, *, quad: bool, world_size: int) -> int:
    """Return the number of training batches in an epoch, as `len` of the loader will give it."""
    batch_size = min(batch_size, num_images)
    steps = math.ceil(num_images / batch_size)
    last = num_images - (steps - 1) * batch_size
    return steps - (quad and last < 4 * world_size)  # quad drops what does not fill all processes


class GlobalBatchSampler(Sampler[BatchKey]):
    """Sampler over the batches of an epoch. It yields this rank's slice of each as a BatchKey.

    `epoch`, `start_batch` and `weights` (N,) choose what the next iteration yields. `draws` (N,) is that of LabelIndex.
    """

    def __init__(
        self,
        shapes: np.ndarray,
        *,
        batch_size: int,
        imgsz: ImageSize,
        stride: int,
        settings: BatchSettings,
        training: bool,
        seed: int,
        rank: int,
        world_size: int,
        draws: np.ndarray | None = None,
    ) -> None:
        self.draws = np.ones(len(shapes)) if draws is None else draws
        self.draws_all = draws is None  # every image once
        self.num_images, self.batch_size, self.seed = round(float(self.draws.sum())), batch_size, seed
        self.settings, self.training = settings, training
        assert self.draws_all or not settings.has_rect_shapes, "rect batches hold every image once"
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start_batch = 0, 0
        self.weights: np.ndarray | None = None
        self.rect_order, self.shapes = (
            rect_shapes(shapes, batch_size, imgsz=imgsz, stride=stride, pad=settings.pad)
            if settings.has_rect_shapes
            else (None, [to_shape(imgsz)] * math.ceil(self.num_images / batch_size))
        )

    def __len__(self) -> int:
        if self.settings.whole:
            return len(range(self.rank, len(self.shapes), self.world_size))
        last = self.num_images - (len(self.shapes) - 1) * self.batch_size
        return len(self.shapes) - (not self._slice(np.arange(last), len(self.shapes) - 1).size)

    def _slice(self, batch: np.ndarray, number: int) -> np.ndarray:
        """Return this rank's part of the batch of a number, counted from 0.

        In training it is never empty, since all ranks step together: see BatchKey.is_padding.
        """
        if self.settings.whole:
            return batch if number % self.world_size == self.rank else batch[:0]
        quad = self.settings.quad
        if quad:
            batch = batch[: len(batch) // (4 * self.world_size) * 4 * self.world_size]
        if self.training and not quad and len(batch) < self.world_size:
            batch = np.resize(batch, self.world_size)
        return np.array_split(batch, self.world_size)[self.rank]

    def _epoch_order(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the images in the order of the epoch (N,), and the order of the batches.

        The members of rect batches are fixed; only the order of the batches changes.
        """
        weighted, shuffle = self.settings.image_weights, self.settings.shuffle
        batches = np.arange(len(self.shapes))
        rng = random_stream(self.seed, self.epoch, purpose="weights" if weighted else "order")
        if weighted:
            return rng.choice(len(self.draws), self.num_images, p=_probabilities(self.weights)), batches
        if self.rect_order is not None:
            return self.rect_order, rng.permutation(batches) if shuffle else batches
        images = draw_images(self.draws, random_stream(self.seed, self.epoch, purpose="draws"))
        return images[rng.permutation(self.num_images)] if shuffle else images, batches

    def __iter__(self) -> Iterator[BatchKey]:
        order, batches = self._epoch_order()
        occurrences = occurrence_index(order)
        mosaic_indices = None
        if self.settings.image_weights or not self.draws_all:
            rng = random_stream(self.seed, self.epoch, purpose="mosaic")
            mosaic_indices = order[rng.integers(self.num_images, size=(self.num_images, NUM_MOSAIC_INDICES))]
        for number in batches[self.start_batch :].tolist():
            start = number * self.batch_size
            batch = np.arange(start, min(start + self.batch_size, self.num_images))
            rows = self._slice(batch, number)
            if rows.size:
                yield BatchKey(
                    self.epoch,
                    order[rows].tolist(),
                    occurrences[rows].tolist(),
                    self.shapes[number],
                    None if mosaic_indices is None else mosaic_indices[rows].tolist(),
                    is_padding=self.training and self.rank >= len(batch),
                )


def draw_images(draws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the images of an epoch in ascending order, with image i draws[i] times on average.

    Each epoch has round(sum of `draws`) images. Image i is among them draws[i] times, rounded down or up. This is
    systematic sampling: the fractions are laid end to end in random order, and every whole number hits one of them.
    """
    counts = np.floor(draws).astype(np.int64)
    fractions = draws - counts
    total = round(float(draws.sum())) - int(counts.sum())
    order = rng.permutation(np.flatnonzero(fractions))
    if total:
        ends = np.cumsum(fractions[order])
        hit = np.searchsorted(ends, (rng.random() + np.arange(total)) * (ends[-1] / total), side="right")
        counts[order] += np.bincount(hit.clip(max=len(order) - 1), minlength=len(order))
    return np.repeat(np.arange(len(draws)), counts)


def occurrence_index(values: np.ndarray) -> np.ndarray:
    """Return for each value (n,) the number of equal values before it."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    first = np.searchsorted(ranked, ranked, side="left")
    occurrences = np.empty(len(values), np.int64)
    occurrences[order] = np.arange(len(values)) - first
    return occurrences


def _probabilities(weights: np.ndarray | None) -> np.ndarray | None:
    """Return the weights scaled to sum 1, or None (all equal) without weights or if all are 0."""
    if weights is None:
        return None
    total = float(np.sum(weights, dtype=np.float64))
    return np.asarray(weights, np.float64) / total if total > 0 else None


def class_weights(index: LabelIndex, num_classes: int) -> np.ndarray:
    """Return (C,) the inverse of each class's number of labels (0 counts as 1), scaled to sum 1."""
    counts = np.bincount(index.labels[:, 0].astype(np.int64), minlength=num_classes)
    inverse = 1.0 / np.maximum(counts, 1)
    return inverse / inverse.sum()


def image_weights(index: LabelIndex, class_weights: np.ndarray) -> np.ndarray:
    """Return (N,) the sum of the class weights of each image's labels, 0 for an image without labels."""
    image = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    return np.bincount(image, class_weights[index.labels[:, 0].astype(np.int64)], minlength=len(index))
