"""Ranking of unlabelled images by uncertainty and by what differs."""

import numpy as np
import pytest
import torch

from models.yolo import DetectionModel
from utils.checking.image_ranking import MAX_GREEDY, MOST_UNCERTAIN, rank_images, recorded_features, uncertainty

NONE = np.zeros((0, 3))


@pytest.mark.parametrize(
    "confidence, expected",
    [
        ([], 0),  # nothing found
        ([1.0, 0.0], 0),  # all certain
        ([0.5], 1 / MOST_UNCERTAIN),  # one object, a coin toss
        ([0.5] * 30, 1),  # many of them
        ([0.11], 0.5 / MOST_UNCERTAIN),  # half a bit
    ],
)
def test_uncertainty_is_the_entropy_of_the_most_doubtful_detections(confidence, expected):
    assert uncertainty(np.array(confidence, np.float32)) == pytest.approx(expected, abs=1e-3)


def test_a_certain_detection_changes_nothing():
    assert uncertainty(np.array([0.5, 0.5, 1.0])) == pytest.approx(uncertainty(np.array([0.5, 0.5])), abs=1e-6)


def test_no_image_gives_no_ranking():
    assert rank_images(np.zeros(0), NONE, NONE) == []


def test_every_image_is_ranked_once():
    rng = np.random.default_rng(0)
    ranked = rank_images(rng.random(50), rng.random((50, 3)), rng.random((5, 3)))
    assert sorted(one.image for one in ranked) == list(range(50))


def test_equal_images_rank_by_uncertainty():
    features = np.ones((3, 3))
    assert rank_images(np.array([0.2, 0.9, 0.5]), features, NONE)[0].image == 1


def test_an_image_like_a_labelled_one_comes_last():
    features = np.eye(3)
    ranked = rank_images(np.array([0.9, 0.5, 0.5]), features, np.array([[2.0, 0, 0]]))
    assert ranked[-1] == (0, 0.9, 0.0)


def test_copies_of_one_image_are_not_chosen_together():
    """The most uncertain images are all the same scene. The ranking takes one of them, then the other scenes."""
    features = np.concatenate([np.tile([1.0, 0, 0], (5, 1)), [[0, 1.0, 0]], [[0, 0, 1.0]]])
    ranked = rank_images(np.array([0.9] * 5 + [0.3, 0.4]), features, NONE)
    assert [one.image for one in ranked[:3]] == [0, 6, 5]


def test_the_order_is_that_of_a_plain_search():
    rng = np.random.default_rng(3)
    weights, features, labelled = rng.random(30), rng.random((30, 4)), rng.random((4, 4))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    centers = list(labelled / np.linalg.norm(labelled, axis=1, keepdims=True))
    left, expected = set(range(30)), []
    while left:
        scores = {i: (0.05 + 0.95 * weights[i]) * min(np.linalg.norm(unit[i] - one) for one in centers) for i in left}
        best = max(left, key=lambda i: scores[i])
        expected.append(best)
        centers.append(unit[best])
        left.remove(best)
    assert [one.image for one in rank_images(weights, features, labelled)] == expected


def test_beyond_the_limit_images_follow_by_uncertainty(monkeypatch):
    monkeypatch.setattr("utils.checking.image_ranking.MAX_GREEDY", 4)
    rng = np.random.default_rng(0)
    weights = rng.random(20)
    ranked = rank_images(weights, rng.random((20, 3)), NONE)
    tail = [weights[one.image] for one in ranked[4:]]
    assert tail == sorted(tail, reverse=True) and len(ranked) == 20 and MAX_GREEDY > 4


def test_features_are_the_inputs_of_the_head(tiny_cfg):
    model = DetectionModel(tiny_cfg).eval()
    channels = sum(convolution.in_channels for convolution in model.head.convolutions)
    with torch.inference_mode():
        with recorded_features(model) as found:
            model(torch.rand(2, 3, 64, 64))
            model(torch.rand(1, 3, 64, 96))
        model(torch.rand(1, 3, 64, 64))  # after it nothing is recorded
    assert [one.shape for one in found] == [(channels,)] * 3
    assert not np.allclose(found[0], found[1])
