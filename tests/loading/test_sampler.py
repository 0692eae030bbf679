"""Sampler: steps of an epoch, rect shapes, and image weights."""

import numpy as np
import pytest
from small_split import SHAPES, epoch_of, loader_of

from utils.datasets.label_index import LabelIndex
from utils.loading import image_cache
from utils.loading.sampler import (
    BatchSettings,
    GlobalBatchSampler,
    class_weights,
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
