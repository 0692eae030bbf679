"""Colours and flips on the device: the same random numbers and boxes, and pixels equal up to rounding."""

import pytest
import torch

from utils.datasets.labels import load_index
from utils.images.augment import ColorFlip
from utils.images.gpu_augment import apply_color_flips
from utils.loading.loader import LoadSettings, make_loader
from utils.loading.sampler import BatchSettings

FLIPPING = {"flipud": 0.5, "fliplr": 0.5, "mosaic": 0.5, "mixup": 0.5, "translate": 0.1, "scale": 0.5}
GAINS = {"hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4}


def test_every_image_has_its_own_flips():
    images = torch.randint(0, 256, (4, 3, 5, 7), dtype=torch.uint8)
    rows = [ColorFlip(), ColorFlip(flipud=True), ColorFlip(fliplr=True), ColorFlip(flipud=True, fliplr=True)]
    done = apply_color_flips(images, torch.tensor(rows, dtype=torch.float32))
    expected = [images[0], images[1].flip(1), images[2].flip(2), images[3].flip(1).flip(2)]
    assert torch.equal(done, torch.stack(expected))


def test_more_images_than_fit_in_one_part():
    images = torch.randint(0, 256, (35, 3, 8, 8), dtype=torch.uint8)
    rows = torch.tensor([ColorFlip(1 + k / 100, 0.9, 0.5 + k / 100) for k in range(35)], dtype=torch.float32)
    alone = [apply_color_flips(images[k : k + 1], rows[k : k + 1]) for k in range(35)]
    assert torch.equal(apply_color_flips(images, rows), torch.cat(alone))


def loaded(data, *, hyp=None, rect=False, quad=False, defer=False, workers=0):
    index = load_index(data.parent / "images" / "train", 2, progress=False)
    batches = BatchSettings(rect=rect, quad=quad, shuffle=True)
    loading = LoadSettings(workers=workers, defer_color_flip=defer)
    return list(make_loader(index, imgsz=64, batch_size=8, hyp=hyp, batches=batches, loading=loading))


@pytest.mark.parametrize("gains", [{}, GAINS], ids=["flips alone", "colours too"])
@pytest.mark.parametrize("rect", [False, True])
@pytest.mark.parametrize("degrees, scale", [(0.0, 0.0), (0.0, 0.5), (5.0, 0.5)])
def test_a_sample_is_the_same_on_every_device(tiny_data, gains, rect, degrees, scale):
    hyp = {**FLIPPING, **gains, "degrees": degrees, "scale": scale}
    whole, parts = (loaded(tiny_data, hyp=hyp, rect=rect, defer=later) for later in (False, True))
    flipped = 0
    for batch, other in zip(whole, parts, strict=True):
        assert batch.color_flips is None and torch.equal(batch.targets, other.targets) and batch.paths == other.paths
        done = apply_color_flips(other.images, other.color_flips)
        off = (done.int() - batch.images.int()).abs()
        if not gains:
            assert torch.equal(done, batch.images)
        elif rect or degrees or not scale:
            assert (off > 2).float().mean() < 0.01
        else:  # some are enlarged mosaics: colours change before enlarging on the CPU, and after it on the device
            shares = (off > 2).flatten(1).float().mean(1)
            assert (shares < 0.01).sum() >= len(shares) / 4 and off.float().mean() < 0.5
        flipped += int(other.color_flips[:, 3:].sum())
    assert flipped


def test_no_step_is_deferred_without_augmentation_or_with_quad(tiny_data):
    hyp = {**GAINS, **FLIPPING}
    for flags in ({}, {"hyp": hyp, "quad": True}):
        assert all(batch.color_flips is None for batch in loaded(tiny_data, defer=True, **flags))


def test_workers_pass_deferred_steps_on(tiny_data):
    hyp = {**GAINS, **FLIPPING}
    here, there = (loaded(tiny_data, hyp=hyp, defer=True, workers=workers) for workers in (0, 1))
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.color_flips, other.color_flips)
