"""Loaders of a small split, and comparisons of their batches: shared by the tests of loading."""

from dataclasses import fields

import numpy as np
import torch

from utils.datasets.label_index import LabelIndex
from utils.loading import image_cache
from utils.loading.dataset import Batch
from utils.loading.loader import LoadSettings, make_loader
from utils.loading.sampler import BatchSettings

HYP = {
    "hsv_h": 0.015,
    "hsv_s": 0.7,
    "hsv_v": 0.4,
    "degrees": 5.0,
    "translate": 0.1,
    "scale": 0.5,
    "fliplr": 0.5,
    "flipud": 0.2,
    "mosaic": 0.8,
    "mixup": 0.3,
    "copy_paste": 0.5,
}


SHAPES = [(48, 64), (64, 48), (43, 64), (37, 50), (64, 43), (54, 96), (60, 60), (96, 54), (40, 64), (64, 64), (32, 90)]


def loader_of(index: LabelIndex, **settings):
    """Return a loader. `settings` are parameters of make_loader and fields of its two settings objects."""
    settings = {"imgsz": 64, "batch_size": 4, "workers": 0, "seed": 7} | settings
    batches, loading = (
        kind(**{field.name: settings.pop(field.name) for field in fields(kind) if field.name in settings})
        for kind in (BatchSettings, LoadSettings)
    )
    return make_loader(index, batches=batches, loading=loading, **settings)


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a.paths == b.paths and a.letterboxes == b.letterboxes
        assert torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)


def epoch_of(loader, epoch: int, start_batch: int = 0, weights=None) -> list[Batch]:
    loader.set_epoch(epoch, start_batch, weights)
    return list(loader)


def reads(monkeypatch) -> list[str]:
    """Return a list that will hold the files read in this process from here on."""
    read: list[str] = []
    original = image_cache.read_resized

    def record(path: str, *shape: object, **settings: object) -> np.ndarray:
        read.append(path)
        return original(path, *shape, **settings)

    monkeypatch.setattr(image_cache, "read_resized", record)
    return read


def joined(slices: list[list[Batch]]) -> list[Batch]:
    """Join the slices of all ranks, batch by batch."""
    batches = []
    for parts in zip(*slices):
        shifts = np.cumsum([0] + [len(part.images) for part in parts])
        targets = [part.targets + torch.tensor([shift, 0, 0, 0, 0, 0]) for part, shift in zip(parts, shifts)]
        batches.append(
            Batch(
                torch.cat([part.images for part in parts]),
                torch.cat(targets),
                [path for part in parts for path in part.paths],
                [box for part in parts for box in part.letterboxes],
            )
        )
    return batches
