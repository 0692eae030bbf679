"""Class balance: repeat factors by hand, the draws of an epoch, weights in the loss, and flags that are refused."""

from dataclasses import replace

import numpy as np
import pytest

from utils.config import MEDIAN_CLASS, TrainOptions
from utils.datasets.class_balance import (
    MAX_AUTO_WEIGHT,
    automatic_weights,
    balance_classes,
    image_shares,
    loss_weights,
    repeat_factors,
)
from utils.datasets.label_index import Counts, LabelIndex
from utils.errors import UserError
from utils.loading.sampler import BatchSettings, GlobalBatchSampler

NAMES = {0: "car", 1: "bus", 2: "tram", 3: "kite"}
# Class 0 in 8 of 10 images, class 1 in 4, class 2 in one, class 3 in none. The last image is a background.
CLASSES = [[0], [0, 0, 0], [0, 1], [0, 1], [0, 1], [0, 1, 1], [0], [0, 2], [], []]


def index_of(classes: list[list[int]]) -> LabelIndex:
    """Make an index of images with labels of these classes."""
    labels = [[cls, 0.5, 0.5, 0.1, 0.1] for row in classes for cls in row]
    return LabelIndex(
        paths=[f"{number}.png" for number in range(len(classes))],
        shapes=np.full((len(classes), 2), 64, np.int32),
        labels=np.array(labels, np.float32).reshape(-1, 5),
        offsets=np.cumsum([0, *map(len, classes)]),
        points=np.zeros((0, 2), np.float32),
        segment_offsets=np.zeros(len(labels) + 1, np.int64),
        counts=Counts(),
        messages=[],
    )


INDEX = index_of(CLASSES)


def test_factors_of_classes_and_images():
    shares = image_shares(INDEX, 4)
    assert shares.tolist() == [0.8, 0.4, 0.1, 0]
    assert repeat_factors(INDEX, shares, 0.4).tolist() == [1, 1, 1, 1, 1, 1, 1, 2, 1, 1]  # sqrt(0.4 / 0.1)
    of_bus = np.sqrt(2)
    expected = [1, 1, of_bus, of_bus, of_bus, of_bus, 1, np.sqrt(8), 1, 1]
    np.testing.assert_allclose(repeat_factors(INDEX, shares, 0.8), expected)
    assert repeat_factors(index_of([[], []]), np.zeros(4), 0.5).tolist() == [1, 1]


@pytest.mark.parametrize(
    "threshold, size, text",
    [
        (MEDIAN_CLASS, 11, "draws 11 times from 10 images. Repeated are those of classes in less than 0.4 of them: "
            "tram x 2\n"),
        (0.8, 13, "classes in less than 0.8 of them: tram x 2.8, bus x 1.4\n"),
        (0.05, 10, "draws 10 times from 10 images. Repeated are those of classes in less than 0.05 of them, but there "
            "is none\n"),
    ],
)  # fmt: skip
def test_length_of_an_epoch_is_said(threshold, size, text, capsys):
    balanced = balance_classes(INDEX, threshold, NAMES)
    assert balanced.epoch_size == size and text in capsys.readouterr().out


def test_without_balance_nothing_changes(capsys):
    assert balance_classes(INDEX, 0.0, NAMES) is INDEX and capsys.readouterr().out == ""
    tiles = replace(INDEX, draws=np.full(10, 0.5))  # draws of another reason are multiplied
    assert balance_classes(tiles, 0.4, NAMES).draws.tolist() == [0.5] * 7 + [1.0] + [0.5] * 2


def test_every_epoch_draws_rare_classes_more_often():
    """All epochs have one length and every image, and rounding averages out."""
    balanced = balance_classes(INDEX, 0.8, NAMES)
    settings = BatchSettings(shuffle=True)
    whole, *halves = (
        GlobalBatchSampler(
            balanced.shapes, batch_size=4, imgsz=64, stride=32, settings=settings, training=True, seed=1, rank=rank,
            world_size=world_size, draws=balanced.draws,
        )
        for rank, world_size in ((0, 1), (0, 2), (1, 2))
    )  # fmt: skip
    counts = np.zeros(10)
    for epoch in range(300):
        whole.epoch = epoch
        drawn = [image for key in whole for image in key.indices]
        assert len(drawn) == 13 and set(drawn) == set(range(10)) and len(whole) == 4
        counts += np.bincount(drawn, minlength=10) / 300
    np.testing.assert_allclose(counts, balanced.draws * 13 / balanced.draws.sum(), atol=0.15)
    whole.epoch = halves[0].epoch = halves[1].epoch = 7
    ranks = [a.indices + b.indices * (not b.is_padding) for a, b in zip(*halves, strict=True)]
    batches = [key.indices for key in whole]
    assert ranks == batches
    whole.start_batch = 2  # as a resumed run
    assert [key.indices for key in whole] == batches[2:]


def test_automatic_weights_by_hand():
    """16 labels: 10 of class 0, 5 of class 1, 1 of class 2."""
    weights = automatic_weights(INDEX, 4)
    inverse = np.array([1 / np.sqrt(10), 1 / np.sqrt(5), 1])
    np.testing.assert_allclose(weights[:3], inverse * 16 / (np.array([10, 5, 1]) * inverse).sum())
    assert weights[3] == 1 and weights[0] < 1 < weights[2]
    assert (np.array([10, 5, 1]) * weights[:3]).sum() == pytest.approx(16)
    assert automatic_weights(index_of([[0] * 100_000, [1]]), 2)[1] == MAX_AUTO_WEIGHT
    drawn = replace(INDEX, draws=np.where(np.arange(10) == 7, 5.0, 1.0))  # the image of class 2, five times
    assert automatic_weights(drawn, 4)[2] == pytest.approx(automatic_weights(drawn, 4)[1])


def test_weights_of_classes_by_words(capsys):
    assert loss_weights([], NAMES, INDEX) is None
    assert loss_weights(["bus=2", "3=0"], NAMES, INDEX).tolist() == [1, 2, 1, 0]
    assert "Class weights: car 1, bus 2, tram 1, kite 0" in capsys.readouterr().out
    np.testing.assert_array_equal(loss_weights(["auto"], NAMES, INDEX), automatic_weights(INDEX, 4))
    assert loss_weights(["auto", "tram=1.5"], NAMES, INDEX)[2] == 1.5
    with pytest.raises(UserError, match="^--class-weights: there is no class 'trem'; did you mean tram?"):
        loss_weights(["trem=2"], NAMES)
    with pytest.raises(UserError, match="^--class-weights: there is one class only"):
        loss_weights(["auto"], {0: "item"})


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"class_balance": 0.1, "image_weights": True}, "--class-balance and --image-weights both decide how often"),
        ({"class_balance": MEDIAN_CLASS, "rect": True}, "--class-balance repeats images, --rect draws each of them"),
        ({"class_balance": 1.5}, "--class-balance 1.5: above 0, at most 1, or no number"),
        ({"class_balance": float("nan")}, "--class-balance nan: above 0"),
        ({"class_weights": ["high"]}, "--class-weights high: expected auto or CLASS=NUMBER"),
        ({"class_weights": ["car=-1"]}, "--class-weights car=-1: expected auto or CLASS=NUMBER with numbers from 0"),
        ({"class_weights": ["car=x"]}, "--class-weights car=x: 'car=x' does not end with a number"),
        ({"class_weights": ["car=1", "car=2"]}, "--class-weights car=1 car=2: car is given twice"),
    ],
)
def test_flags_of_class_balance_that_exclude_each_other(flags, message):
    with pytest.raises(UserError) as caught:
        TrainOptions(**flags)
    assert str(caught.value).startswith(message)
