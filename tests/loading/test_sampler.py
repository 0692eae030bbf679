"""Sampler: steps of an epoch, rect shapes, and image weights."""

from dataclasses import replace

import numpy as np
import pytest
from small_split import HYP, SHAPES, epoch_of, loader_of

from utils.datasets.label_index import LabelIndex
from utils.loading import image_cache
from utils.loading.sampler import (
    BatchSettings,
    GlobalBatchSampler,
    class_weights,
    draw_images,
    image_weights,
    occurrence_index,
    rect_shapes,
    steps_per_epoch,
)

WIDTHS_HEIGHTS = [(640, 480), (480, 640), (640, 427), (500, 375), (427, 640), (1920, 1080), (600, 600), (1080, 1920)]


@pytest.mark.parametrize("batch_size, pad, shapes", [
    (8, 0.0, [(640, 640)]),
    (8, 0.5, [(672, 672)]),
    (2, 0.0, [(448, 640), (480, 640), (640, 640), (640, 448)]),
    (2, 0.5, [(448, 672), (512, 672), (672, 672), (672, 448)]),
])  # fmt: skip
def test_rect_shapes(batch_size, pad, shapes):
    order, ours = rect_shapes(np.array(WIDTHS_HEIGHTS)[:, ::-1], batch_size, imgsz=640, stride=32, pad=pad)
    assert ours == shapes
    assert order.tolist() == [5, 2, 0, 3, 6, 1, 4, 7]  # 0 and 3 have equal aspect and keep their order


def test_rect_shape_holds_every_image_of_its_batch():
    rng = np.random.default_rng(0)
    shapes = rng.integers(10, 2000, (400, 2))
    order, sizes = rect_shapes(shapes, 3, imgsz=320, stride=32, pad=0.0)
    for number, size in enumerate(sizes):
        for i in order[3 * number : 3 * number + 3]:
            inner = image_cache.resized_shapes(shapes[i : i + 1], 320)[0]
            assert inner[0] <= size[0] and inner[1] <= size[1] and size[0] % 32 == size[1] % 32 == 0


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_whole_batches_are_dealt_in_turn(world_size):
    """9 images in batches of 2: 5 batches, of which some of 7 ranks get none."""

    def keys(rank: int, world_size: int, whole: bool) -> list:
        settings = BatchSettings(rect=True, pad=0.5, whole=whole)
        shapes = np.random.default_rng(0).integers(10, 99, (9, 2))
        options = {"batch_size": 2, "imgsz": 64, "stride": 32, "training": False, "seed": 0}
        sampler = GlobalBatchSampler(shapes, settings=settings, rank=rank, world_size=world_size, **options)
        assert len(sampler) == len(list(sampler))
        return list(sampler)

    one = keys(0, 1, whole=False)
    for rank in range(world_size):
        assert keys(rank, world_size, whole=True) == one[rank::world_size]


@pytest.mark.parametrize("imgsz", [(192, 320), (320, 192), (64, 640)])
def test_height_and_width_bound_a_rect_shape(imgsz):
    """A batch is the smallest in whole strides that holds its images, each as large as it fits into height x width."""
    shapes = np.random.default_rng(0).integers(10, 2000, (400, 2))
    order, sizes = rect_shapes(shapes, 3, imgsz=imgsz, stride=32, pad=0.0)
    for number, size in enumerate(sizes):
        members = shapes[order[3 * number : 3 * number + 3]]
        gains = np.minimum(imgsz[0] / members[:, 0], imgsz[1] / members[:, 1])
        largest = (members * gains[:, None]).max(0)
        assert size == tuple(np.ceil(largest / 32 - 1e-9) * 32)
        assert size[0] <= imgsz[0] and size[1] <= imgsz[1]
        resized = image_cache.resized_shapes(members, imgsz)
        assert (resized <= size).all() and (np.abs(resized - members * gains[:, None]) < 1).all()


def flat_index(classes: list[list[int]]) -> LabelIndex:
    labels = np.array(
        [[class_index, 0.5, 0.5, 0.1, 0.1] for row in classes for class_index in row], np.float32
    ).reshape(-1, 5)
    offsets = np.cumsum([0] + [len(row) for row in classes])
    paths = [f"{k}.png" for k in range(len(classes))]
    return LabelIndex(
        paths,
        np.full((len(classes), 2), 64, np.int32),
        labels,
        offsets,
        np.zeros((0, 2), np.float32),
        np.zeros(len(labels) + 1, np.int64),
        None,
        [],
    )


def test_class_and_image_weights():
    index = flat_index([[0, 1], [0]])
    weights = class_weights(index, 3)
    np.testing.assert_allclose(weights, [0.2, 0.4, 0.4])
    np.testing.assert_allclose(image_weights(index, weights), [0.6, 0.2])
    assert image_weights(flat_index([[], [1], []]), weights).tolist() == [0, 0.4, 0]


@pytest.mark.parametrize("weights", [None, np.zeros(len(SHAPES)), np.ones(len(SHAPES))])
def test_equal_weights_or_none_draw_uniformly(index, weights):
    batches = epoch_of(loader_of(index, image_weights=True), 1, 0, weights)
    assert len({path for batch in batches for path in batch.paths}) > 3


def test_images_are_drawn_in_proportion_to_their_weights():
    index = flat_index([[0]] * 4000)
    loader = loader_of(index, image_weights=True, batch_size=100)
    weights = np.r_[np.full(2000, 3.0), np.full(2000, 1.0)]
    loader.set_epoch(0, weights=weights)
    drawn = np.array([i for key in loader.sampler for i in key.indices])
    assert (drawn < 2000).mean() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("values, earlier", [([], []), ([4], [0]), ([2, 2, 1, 2, 1], [0, 1, 0, 2, 1])])
def test_occurrence_index(values, earlier):
    assert occurrence_index(np.array(values, np.int64)).tolist() == earlier


@pytest.mark.parametrize(
    "images, batch, quad, world_size, steps",
    [
        (24, 8, False, 1, 3),
        (25, 8, False, 1, 4),  # the last batch has one image
        (25, 8, False, 4, 4),  # which the other processes pad
        (5, 8, False, 1, 1),  # fewer images than a batch
        (27, 8, True, 1, 3),  # quad drops a rest of three
        (28, 8, True, 1, 4),
        (28, 8, True, 2, 3),  # too few for two processes
    ],
)
def test_steps_per_epoch_are_those_of_the_loader(images, batch, quad, world_size, steps):
    sampler = GlobalBatchSampler(
        np.full((images, 2), 64),
        batch_size=min(batch, images),
        imgsz=64,
        stride=32,
        settings=BatchSettings(quad=quad),
        training=True,
        seed=0,
        rank=0,
        world_size=world_size,
    )
    assert steps_per_epoch(images, batch, quad=quad, world_size=world_size) == len(sampler) == steps


@pytest.mark.parametrize(
    "draws, size",
    [
        ([1.0, 1.0, 1.0], 3),
        ([1.0, 0.0, 0.5, 0.5], 2),  # one of the last two
        ([2.25, 0.75, 1.5, 1.5], 6),
        ([0.3, 0.3, 0.3], 1),  # 0.9, rounded
        ([0.1, 0.1], 0),
    ],
)
def test_epoch_draws_each_image_as_often_as_its_mean(draws, size):
    mean, draws = np.zeros(len(draws)), np.array(draws)
    for seed in range(2000):
        images = draw_images(draws, np.random.default_rng(seed))
        counts = np.bincount(images, minlength=len(draws))
        assert len(images) == size and (np.diff(images) >= 0).all()
        assert (counts >= np.floor(draws)).all() and (counts <= np.ceil(draws)).all()
        mean += counts / 2000
    np.testing.assert_allclose(mean, np.floor(draws) + draws % 1 * (size - np.floor(draws).sum()) / max(
        (draws % 1).sum(), 1e-9), atol=0.05)  # fmt: skip


def test_epoch_of_drawn_images_is_cut_into_the_same_batches_by_any_number_of_ranks(index):
    drawn = replace(index, draws=np.array([1.0] * 5 + [0.5] * 6))
    keys = [list(loader_of(drawn, batch_size=4, rank=rank, world_size=2, hyp=HYP).sampler) for rank in (0, 1)]
    whole = list(loader_of(drawn, batch_size=4, hyp=HYP).sampler)
    assert [a.indices + b.indices for a, b in zip(*keys)] == [key.indices for key in whole]
    seen = [i for key in whole for i in key.indices]
    assert len(whole) == len(loader_of(drawn, hyp=HYP)) == 2 and len(seen) == 8 == drawn.epoch_size
    assert set(range(5)) < set(seen)
    partners = {i for key in whole for row in key.mosaic_indices for i in row}
    assert partners <= set(seen)  # mosaics are of the images that the epoch draws
