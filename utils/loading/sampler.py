"""Which pictures make which batch: a function of (seed, epoch) alone, cut into a slice a process.

Legend: B pictures of a batch, N pictures of the split, C classes.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from utils.datasets.label_index import LabelIndex

NUM_MOSAIC_INDICES = (
    7  # pictures that a sample may need besides its own: three of its mosaic, four of another one to mix in
)
PURPOSES = {
    "order": 1,
    "weights": 2,
    "mosaic_indices": 3,
    "quad": 4,
}  # streams of random numbers besides the samples' own


def random_stream(seed: int, epoch: int, *numbers: int, purpose: str | None = None) -> np.random.Generator:
    """The generator of one sample (numbers = picture, repeat), or of one `purpose` in one epoch."""
    spawn_key = (PURPOSES[purpose],) if purpose else ()
    return np.random.default_rng(np.random.SeedSequence([seed % 2**32, epoch, *numbers], spawn_key=spawn_key))


class BatchKey(NamedTuple):
    """All that a worker needs to know to make a batch."""

    epoch: int
    indices: list[int]
    repeats: list[int]  # how often each of them came up earlier in this epoch
    shape: tuple[int, int]  # height, width
    mosaic_indices: list[list[int]] | None  # with image weights: (B, 7) weighted draws; else the sample draws its own
    is_padding: bool = False


def rect_shapes(
    shapes: np.ndarray, batch_size: int, *, imgsz: int, stride: int, pad: float
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Order of the pictures by aspect, (N,), and for each batch in that order the height and width that holds them.

    Pictures of equal aspect stay in their order, so that every machine puts the same ones into a batch.
    """
    aspect = shapes[:, 0] / shapes[:, 1]
    order = np.argsort(aspect, kind="stable")
    sizes = []
    for start in range(0, len(order), batch_size):
        flattest, tallest = aspect[order[start : start + batch_size]][[0, -1]].tolist()
        ratio = (tallest, 1.0) if tallest < 1 else (1.0, 1 / flattest) if flattest > 1 else (1.0, 1.0)
        sizes.append(tuple(math.ceil(side * imgsz / stride + pad) * stride for side in ratio))
    return order, sizes


def steps_per_epoch(num_images: int, batch_size: int, *, quad: bool, world_size: int) -> int:
    """Return the number of training batches in an epoch, as `len` of the loader will give it."""
    batch_size = min(batch_size, num_images)
    steps = math.ceil(num_images / batch_size)
    last = num_images - (steps - 1) * batch_size
    return steps - (quad and last < 4 * world_size)  # quad drops what does not fill all processes


class GlobalBatchSampler(Sampler[BatchKey]):
    """The batches of an epoch, cut into one slice a process; each as the key that its worker needs."""

    def __init__(
        self,
        shapes: np.ndarray,
        *,
        batch_size: int,
        imgsz: int,
        stride: int,
        pad: float,
        rect: bool,
        shuffle: bool,
        weighted: bool,
        quad: bool,
        training: bool,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.count, self.batch_size, self.seed = len(shapes), batch_size, seed
        self.shuffle, self.weighted, self.quad, self.training = shuffle, weighted, quad, training
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start_batch, self.weights = 0, 0, None
        self.rect_order, self.shapes = (
            rect_shapes(shapes, batch_size, imgsz=imgsz, stride=stride, pad=pad)
            if rect
            else (None, [(imgsz, imgsz)] * math.ceil(self.count / batch_size))
        )

    def __len__(self) -> int:
        last = self.count - (len(self.shapes) - 1) * self.batch_size
        return len(self.shapes) - (not self._slice(np.arange(last)).size)

    def _slice(self, batch: np.ndarray) -> np.ndarray:
        """This process's part of a batch; in training never nothing, since processes step together (see is_padding)."""
        if self.quad:
            batch = batch[: len(batch) // (4 * self.world_size) * 4 * self.world_size]
        if self.training and not self.quad and len(batch) < self.world_size:
            batch = np.resize(batch, self.world_size)
        return np.array_split(batch, self.world_size)[self.rank]

    def _epoch_order(self) -> tuple[np.ndarray, np.ndarray]:
        """Images in the order of the epoch, (N,), and the numbers of its batches, of which rect fixes the members."""
        numbers = np.arange(len(self.shapes))
        rng = random_stream(self.seed, self.epoch, purpose="weights" if self.weighted else "order")
        if self.weighted:
            return rng.choice(self.count, self.count, p=_probabilities(self.weights)), numbers
        if self.rect_order is not None:
            return self.rect_order, rng.permutation(numbers) if self.shuffle else numbers
        return rng.permutation(self.count) if self.shuffle else np.arange(self.count), numbers

    def __iter__(self) -> Iterator[BatchKey]:
        order, numbers = self._epoch_order()
        repeats = occurrence_index(order)
        mosaic_indices = None
        if self.weighted:
            rng = random_stream(self.seed, self.epoch, purpose="mosaic_indices")
            mosaic_indices = order[rng.integers(self.count, size=(self.count, NUM_MOSAIC_INDICES))]
        for number in numbers[self.start_batch :].tolist():
            start = number * self.batch_size
            batch = np.arange(start, min(start + self.batch_size, self.count))
            rows = self._slice(batch)
            if rows.size:
                yield BatchKey(
                    self.epoch,
                    order[rows].tolist(),
                    repeats[rows].tolist(),
                    self.shapes[number],
                    None if mosaic_indices is None else mosaic_indices[rows].tolist(),
                    is_padding=self.rank >= len(batch),
                )


def occurrence_index(values: np.ndarray) -> np.ndarray:
    """For each value how many equal ones stand before it."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    first = np.searchsorted(ranked, ranked, side="left")
    earlier = np.empty(len(values), np.int64)
    earlier[order] = np.arange(len(values)) - first
    return earlier


def _probabilities(weights: np.ndarray | None) -> np.ndarray | None:
    """Weights scaled to sum 1; None (all alike) where there are none, or nothing but zeros."""
    total = 0.0 if weights is None else float(np.sum(weights, dtype=np.float64))
    return np.asarray(weights, np.float64) / total if total > 0 else None


def class_weights(index: LabelIndex, num_classes: int) -> np.ndarray:
    """(C,) inverse of each class's number of labels (0 counts as 1), scaled to sum 1."""
    counts = np.bincount(index.labels[:, 0].astype(np.int64), minlength=num_classes)
    inverse = 1.0 / np.maximum(counts, 1)
    return inverse / inverse.sum()


def image_weights(index: LabelIndex, class_weights: np.ndarray) -> np.ndarray:
    """(N,) sum of the weights of each picture's labels; 0 for a background."""
    picture = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    return np.bincount(picture, class_weights[index.labels[:, 0].astype(np.int64)], minlength=len(index))
