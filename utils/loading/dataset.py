"""Data set of samples and batches. The content of a batch is a function of (seed, epoch, batch number) alone.

The sampler (utils.loading.sampler) hands this rank's slice of a global batch to the workers as a key. The random
numbers of a sample come from (seed, epoch, image, occurrence). So no pixel depends on the number of workers or ranks,
nor on what was loaded before. A run can resume in the middle of an epoch.

Letters: B images of a batch, T their labels, H W rows and columns, n labels of one image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from utils.boxes import xywh_to_xyxy
from utils.datasets.label_index import LabelIndex
from utils.errors import UserError
from utils.images.augment import (
    AugmentSettings,
    ColorFlip,
    Scene,
    Tile,
    blank_image,
    mixup,
    mosaic,
    place_labels,
    random_perspective,
    sample_color_flip,
)
from utils.images.letterbox import Letterbox, letterbox
from utils.kernels import free_shared_cache
from utils.loading.batch_helpers import BuildSample, HelperProcesses, HelperSettings, HelperThreads, start_helpers
from utils.loading.image_cache import ImageReader
from utils.loading.sampler import NUM_MOSAIC_INDICES, BatchKey, random_stream

EDGE = 1e-3  # pixels; boxes end this far before the right and bottom edges of the image
# Tiles of a quad in the order of its images: top left, bottom left, top right, bottom right; x, y in tiles.
QUAD_SHIFTS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))


class Batch(NamedTuple):
    """One rank's slice of a global batch."""

    images: torch.Tensor  # (B, C, H, W) uint8, or uint16 of more than 8 bits per channel; RGB with 3 channels
    targets: torch.Tensor  # (T, 6) float32 image in the batch, class, x, y, w, h: centre and size in 0…1
    paths: list[str]  # (B,) of a mosaic, the image that it was built for
    letterboxes: list[Letterbox | None]  # (B,) map boxes back to the original's pixels; None after augmentation
    is_padding: bool = False  # excluded from the loss; keeps DDP ranks in step
    color_flips: torch.Tensor | None = None  # (B, 5) float32, rows of ColorFlip that the GPU has still to apply
    # (R, 6) image in the batch, class, x1, y1, x2, y2 in pixels of the original: where detections do not count
    ignored: np.ndarray = np.zeros((0, 6), np.float32)


class Sample(NamedTuple):
    """One image with its labels, before it is placed in a batch."""

    image: np.ndarray  # (H, W, C), BGR with 3 channels
    boxes: np.ndarray  # (n, 5) class, x1, y1, x2, y2 in pixels
    letterbox: Letterbox | None
    color_flip: ColorFlip | None = None  # of augmentation: applied already, unless it is deferred to the GPU


class BuiltSample(NamedTuple):
    """The part of a sample that is not pixels."""

    targets: np.ndarray  # (n, 6) as in Batch
    letterbox: Letterbox | None
    color_flip: ColorFlip | None


class DetectionDataset(Dataset[Batch | UserError]):
    """Map-style data set from BatchKey to Batch.

    augment: settings, or None to read for validation, without randomness. mosaic_epochs: first epoch without mosaics.
    quad: merge each four images. defer_color_flip: sample colour shifts and flips, but leave their pixels to the GPU.
    """

    def __init__(
        self,
        index: LabelIndex,
        images: ImageReader,
        *,
        augment: AugmentSettings | None,
        mosaic_epochs: float,
        seed: int,
        quad: bool = False,
        defer_color_flip: bool = False,
    ) -> None:
        self.index, self.images, self.augment = index, images, augment
        self.mosaic_epochs, self.seed, self.quad = mosaic_epochs, seed, quad
        self.defer_color_flip = defer_color_flip
        self.helpers: HelperProcesses | HelperThreads | None = None

    def start_helpers(self, count: int, *, max_images: int, max_shape: tuple[int, int]) -> None:
        """Let `count` helpers build batches together with the caller.

        A batch has at most `max_images` images of at most `max_shape` (H, W).
        """
        slot_bytes = self.index.pixels.bytes_per_pixel * max_images * max_shape[0] * max_shape[1]
        settings = HelperSettings(
            self._build_sample, self._prefetch_files, max_images, slot_bytes, pixels=self.index.pixels
        )
        self.helpers = start_helpers(count, settings)

    def __getitem__(self, index: BatchKey) -> Batch | UserError:
        """Return the batch of a key, or in a worker, the UserError that it ends in: PyTorch would add a traceback.

        A worker's batch is in shared memory already. If that is full, this raises here. PyTorch's feeder thread, which
        hands batches over, would swallow the error, and training would hang.
        """
        if get_worker_info() is None:
            return self._batch(index)
        try:
            batch = self._batch(index)
        except UserError as error:
            return error
        for part in (batch.images, batch.targets, batch.color_flips):
            if part is not None:
                part.share_memory_()
        free_shared_cache()
        return batch

    def _batch(self, key: BatchKey) -> Batch:
        pixels = self.index.pixels
        dtype = torch.uint8 if pixels.bit_depth == 8 else torch.uint16
        images = torch.empty((len(key.indices), pixels.channels, *key.shape), dtype=dtype)
        if get_worker_info() is not None and not self.quad:
            images.share_memory_()  # now, not when it is filled: this frees its place on the heap at once
        build = self.helpers.build if self.helpers else build_serially
        samples = build(self._build_sample, key, images.numpy())
        targets, letterboxes, color_flips = map(list, zip(*samples))
        batch = Batch(
            images,
            torch.from_numpy(np.concatenate(targets)),
            [self.index.paths[i] for i in key.indices],
            letterboxes,
            key.is_padding,
            torch.tensor(color_flips, dtype=torch.float32) if self.defer_color_flip else None,
            self._ignored_regions([] if self.augment or key.is_padding else key.indices),
        )
        return merge_in_fours(batch, self._quad_rngs(key)) if self.quad else batch

    def _ignored_regions(self, indices: Sequence[int]) -> np.ndarray:
        """Return the regions of images where detections do not count, as in Batch."""
        rows = [np.zeros((0, 6), np.float32)]
        for k, i in enumerate(indices if len(self.index.ignored) else []):
            regions, (height, width) = self.index.regions(i), self.index.shapes[i].tolist()
            corners = xywh_to_xyxy(regions[:, 1:]) * np.array([width, height, width, height], np.float32)
            rows.append(np.concatenate([np.full((len(regions), 1), k, np.float32), regions[:, :1], corners], 1))
        return np.concatenate(rows)

    def _build_sample(self, key: BatchKey, k: int, planes: np.ndarray) -> BuiltSample:
        """Write image k of a batch to planes (C, H, W), and return the rest of its sample."""
        i = key.indices[k]
        if self.augment is None:
            sample = self.load_letterboxed(i, key.shape)
        else:
            rng = random_stream(self.seed, key.epoch, i, key.occurrences[k])
            others = self._mosaic_indices(rng, key.epoch, key.mosaic_indices_of(k))
            sample = self.load_augmented(i, key.shape, rng=rng, others=others)
        if len(planes) == 3:
            cv2.split(sample.image, list(planes)[::-1])  # BGR rows of pixels -> R, G, B planes, in place
        else:
            planes[:] = sample.image.transpose(2, 0, 1)
        boxes = sample.boxes[:0] if key.is_padding else sample.boxes
        return BuiltSample(_targets(boxes, k, *key.shape), sample.letterbox, sample.color_flip)

    # ---- files of the next batch

    def prefetch(self, key: BatchKey) -> None:
        """Let a helper ask the OS for the files of a later batch, since a disk needs no core."""
        if self.helpers and self.images.reads_files:
            self.helpers.prefetch(key)

    def _prefetch_files(self, key: BatchKey) -> None:
        for i in self.source_indices(key):
            self.images.prefetch(i)

    def source_indices(self, key: BatchKey) -> list[int]:
        """Return the images that a batch's samples consist of, except those of mosaics to mix in."""
        if self.augment is None:
            return key.indices
        sources = []
        for k, (i, occurrence) in enumerate(zip(key.indices, key.occurrences)):
            rng = random_stream(self.seed, key.epoch, i, occurrence)
            others = self._mosaic_indices(rng, key.epoch, key.mosaic_indices_of(k))
            sources += [i, *(others or [])[:3]]
        return sources

    def _mosaic_indices(
        self, rng: np.random.Generator, epoch: int, given: Sequence[int] | None
    ) -> Sequence[int] | None:
        """Return the other images of a sample's mosaic and of one to mix in, or None if it is no mosaic.

        They are `given`, or else drawn.
        """
        if self.augment is None or epoch >= self.mosaic_epochs or rng.random() >= self.augment.mosaic:
            return None
        if given is not None:
            return given
        return [int(i) for i in rng.integers(len(self.index), size=NUM_MOSAIC_INDICES)]

    def _quad_rngs(self, key: BatchKey) -> list[np.random.Generator]:
        """Return a generator for each four images of a batch, seeded by the first of them."""
        return [
            random_stream(self.seed, key.epoch, key.indices[k], key.occurrences[k], purpose="quad")
            for k in range(0, len(key.indices), 4)
        ]

    # ---- samples

    def load_letterboxed(self, i: int, shape: tuple[int, int], *, scaleup: bool = False) -> Sample:
        """Return image i, letterboxed to `shape` (H, W)."""
        stored, inner = self.images.read(i), self.images.shape(i)
        image = blank_image(inner, self.index.pixels) if stored is None else stored
        image, box = letterbox(image, shape, auto=False, scaleup=scaleup)
        height, width = self.index.shapes[i].tolist()
        gain = (inner[0] * box.gain[0], inner[1] * box.gain[1])  # pixels of the image's whole height and width
        whole = Letterbox((height, width), (gain[0] / height, gain[1] / width), box.pad)
        labels = self.index.boxes(i)[: 0 if stored is None else None]
        return Sample(image, place_labels(labels, [], gain=gain, pad=box.pad)[0], whole)

    def load_augmented(
        self, i: int, shape: tuple[int, int], *, rng: np.random.Generator, others: Sequence[int] | None
    ) -> Sample:
        """Return image i in a mosaic with `others`, or alone, warped, with its colours shifted, flipped."""
        settings = self._augment_settings()
        if others is None:
            scene = self._warped(i, shape, rng)
        else:
            scene = self._mosaic([i, *others[:3]], shape, rng)
            if rng.random() < settings.mixup:
                scene = mixup(scene, self._mosaic(others[3:], shape, rng), rng=rng)
        color_flip = sample_color_flip(settings, rng=rng)
        boxes = color_flip.flip_boxes(scene.boxes, shape)
        if self.defer_color_flip:
            image = scene.image()
        else:
            image = color_flip.flip_image(scene.image_with_hsv(color_flip.factors))
        return Sample(image, boxes, None, color_flip)

    def _augment_settings(self) -> AugmentSettings:
        assert self.augment is not None, "a validation data set has no augmentation"
        return self.augment

    def _mosaic(self, indices: Sequence[int], shape: tuple[int, int], rng: np.random.Generator) -> Scene:
        tiles = [
            Tile(
                self.images.shape(i),
                self.index.boxes(i),
                self.index.polygons(i),
                lambda rows, i=i: self.images.read(i, rows),
            )
            for i in rng.permutation(indices).tolist()
        ]
        return mosaic(tiles, shape, settings=self._augment_settings(), rng=rng, pixels=self.index.pixels)

    def _warped(self, i: int, shape: tuple[int, int], rng: np.random.Generator) -> Scene:
        sample = self.load_letterboxed(i, shape, scaleup=True)
        box = sample.letterbox
        assert box is not None
        gain = box.gain[0] * box.shape[0], box.gain[1] * box.shape[1]
        outlines = self.index.polygons(i)[: len(sample.boxes)]
        _, polygons = place_labels(self.index.boxes(i), outlines, gain=gain, pad=box.pad)
        settings = self._augment_settings()
        return random_perspective(sample.image, sample.boxes, polygons=polygons, settings=settings, rng=rng)


def build_serially(build_sample: BuildSample, key: BatchKey, planes: np.ndarray) -> list[BuiltSample]:
    """Build the samples of a batch as helpers do, but in this process alone."""
    return [build_sample(key, k, image) for k, image in enumerate(planes)]


def _targets(boxes: np.ndarray, k: int, height: int, width: int) -> np.ndarray:
    """Convert (n, 5) class, xyxy in pixels to (n, 6) k, class, x, y, w, h as fractions, clipped to the image."""
    low = boxes[:, 1:3].clip(0, (width - EDGE, height - EDGE))
    high = boxes[:, 3:5].clip(0, (width - EDGE, height - EDGE))
    size = np.array([width, height], np.float32)
    columns = np.full((len(boxes), 1), k), boxes[:, :1], (low + high) / 2 / size, (high - low) / size
    return np.concatenate(columns, 1).astype(np.float32)


def merge_in_fours(batch: Batch, rngs: Sequence[np.random.Generator]) -> Batch:
    """Merge each four images into one of twice the size, and drop a remainder of fewer than four.

    With even odds it is the first image, enlarged, or all four as tiles (see QUAD_SHIFTS). The path is that of the
    first image. `rngs` holds a generator for each four.
    """
    images, targets, paths = [], [], []
    for k in range(len(batch.images) // 4):
        four = batch.images[4 * k : 4 * k + 4]  # (4, C, H, W)
        rows = [batch.targets[batch.targets[:, 0] == 4 * k + j].clone() for j in range(4)]
        if rngs[k].random() < 0.5:
            height, width = four.shape[2:]
            planes = [cv2.resize(plane.numpy(), (2 * width, 2 * height)) for plane in four[0]]
            images.append(torch.from_numpy(np.stack(planes)))
            rows = rows[:1]
        else:
            images.append(torch.cat([torch.cat([four[0], four[1]], 1), torch.cat([four[2], four[3]], 1)], 2))
            for tile, shift in zip(rows, torch.tensor(QUAD_SHIFTS)):
                tile[:, 2:4] = (tile[:, 2:4] + shift) / 2
                tile[:, 4:6] /= 2
        merged = torch.cat(rows)
        merged[:, 0] = k
        targets.append(merged)
        paths.append(batch.paths[4 * k])
    return Batch(torch.stack(images), torch.cat(targets), paths, [None] * len(paths))
