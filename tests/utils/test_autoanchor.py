"""Anchor figures against numbers worked out by hand, and fits that must beat what they start from."""

import numpy as np
import pytest

from utils import autoanchor
from utils.autoanchor import anchor_fitness, anchor_recall, check_anchors, fit_anchors
from utils.errors import UserError

P5 = np.array(
    [[[10, 13], [16, 30], [33, 23]], [[30, 61], [62, 45], [59, 119]], [[116, 90], [156, 198], [373, 326]]], np.float32
)
PLACEHOLDER = np.tile(np.arange(6, dtype=np.float32).reshape(3, 2), (3, 1, 1))
WH = np.array(
    [[12, 15], [45, 40], [100, 220], [300, 280], [500, 30], [7, 60], [640, 400], [3, 2], [150, 150], [33, 90]]
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def labels(count: int = 3000, scale: float = 40.0) -> np.ndarray:
    """Return sizes over about two powers of ten, as in photographs."""
    draw = rng(7)
    side = scale * np.exp(draw.normal(0, 0.9, (count, 1)))
    return (side * np.exp(draw.normal(0, 0.35, (count, 2)))).clip(1, 640).astype(np.float32)


def brute_force(anchors, wh, threshold):
    best, counts = [], []
    for w, h in wh:
        near = [min(min(w / a, a / w), min(h / b, b / h)) for a, b in anchors.reshape(-1, 2)]
        best.append(max(near))
        counts.append(sum(x > 1 / threshold for x in near))
    return np.array(best), np.array(counts)


@pytest.mark.parametrize("threshold, recall, above", [(4, 0.8, 3.0), (3, 0.8, 2.3)])
def test_published_figures(threshold, recall, above):
    assert anchor_recall(P5, WH, threshold) == pytest.approx((recall, above))
    assert anchor_fitness(P5, WH, threshold) == pytest.approx(0.546012, abs=1e-6)


@pytest.mark.parametrize(
    "wh, recall, above",
    [
        (np.zeros((0, 2)), 0, 0),  # no labels
        ([[0, 0]], 0, 0),  # no size
        ([[40, 10]], 0, 0),  # exactly at the threshold is out
        ([[39, 10]], 1, 1),
        ([[10, 10], [39, 39], [500, 500], [10, 41]], 0.5, 0.5),
    ],
)
def test_recall_at_the_edges(wh, recall, above):
    assert anchor_recall([[10, 10]], wh, 4.0) == (recall, above)


def test_an_anchor_without_width_reaches_nothing():
    assert anchor_recall([[0, 1], [10, 10]], [[0, 1], [10, 10]], 4.0) == (0.5, 0.5)


def test_figures_equal_brute_force_across_chunks(monkeypatch):
    monkeypatch.setattr(autoanchor, "CHUNK", 7)
    wh = labels(100)
    best, counts = brute_force(P5, wh, 2.9)
    assert anchor_recall(P5, wh, 2.9) == pytest.approx((np.mean(counts > 0), counts.mean()))
    assert anchor_fitness(P5, wh, 2.9) == pytest.approx(np.mean(best * (best > 1 / 2.9)), abs=1e-6)


def test_kmeans_finds_separate_clusters():
    draw = rng(1)
    centres = np.array([[20, 20], [40, 200], [300, 60], [400, 400]], float)
    wh = np.concatenate([centre + draw.normal(0, 2, (200, 2)) for centre in centres])
    fitted = fit_anchors(wh, 4, 4.0, 0, rng())
    np.testing.assert_allclose(fitted, centres[[0, 1, 2, 3]], atol=1)  # smallest area first


def test_kmeans_on_a_sample_is_finished_on_all(monkeypatch):
    whole = fit_anchors(labels(), 9, 4.0, 0, rng())
    monkeypatch.setattr(autoanchor, "SAMPLE", 500)
    sampled = fit_anchors(labels(), 9, 4.0, 0, rng())
    fitness = [anchor_fitness(anchors, labels(), 4.0) for anchors in (whole, sampled)]
    assert fitness[1] > fitness[0] - 0.02


def test_fits_hardly_depend_on_the_seed():
    found = [anchor_fitness(fit_anchors(labels(), 9, 4.0, 200, rng(seed)), labels(), 4.0) for seed in range(3)]
    assert min(found) > 0.74 and max(found) - min(found) < 0.005


def test_generations_improve_and_are_repeatable():
    wh = labels()
    start, fitted = fit_anchors(wh, 9, 4.0, 0, rng(3)), fit_anchors(wh, 9, 4.0, 300, rng(3))
    assert fitted.shape == (9, 2) and fitted.dtype == np.float32 and fitted.min() >= 2
    assert np.all(np.diff(fitted.prod(axis=1)) >= 0)
    assert anchor_fitness(fitted, wh, 4.0) > anchor_fitness(start, wh, 4.0) + 0.002
    assert np.array_equal(fitted, fit_anchors(wh, 9, 4.0, 300, rng(3)))
    assert not np.array_equal(fitted, fit_anchors(wh, 9, 4.0, 300, rng(4)))


def test_a_first_test_on_a_sample_hardly_costs_fitness(monkeypatch):
    wh = labels()
    whole = anchor_fitness(fit_anchors(wh, 9, 4.0, 300, rng()), wh, 4.0)
    monkeypatch.setattr(autoanchor, "SAMPLE", 300)
    assert anchor_fitness(fit_anchors(wh, 9, 4.0, 300, rng()), wh, 4.0) > whole - 0.02


@pytest.mark.parametrize(
    "wh, n",
    [
        ([[50, 60]], 9),  # fewer labels than anchors
        ([[50, 60], [20, 30], [1, 5]], 9),
        ([[50, 60]] * 20, 9),  # no spread at all
        ([[50, 60]] * 10 + [[90, 10]] * 10, 9),  # fewer sizes than anchors
    ],
)
def test_few_sizes_still_give_anchors(wh, n):
    fitted = fit_anchors(np.array(wh, float), n, 4.0, 50, rng())
    assert fitted.shape == (n, 2) and np.all(np.isfinite(fitted)) and fitted.min() >= 2
    assert anchor_recall(fitted, wh, 4.0).recall == 1


@pytest.mark.parametrize("wh", [np.zeros((0, 2)), [[1, 1], [1.9, 0.5]]])
def test_nothing_to_fit_is_one_line(wh):
    with pytest.raises(UserError, match="no label is 2 px or more"):
        fit_anchors(np.array(wh), 9, 4.0, 10, rng())


def test_mutations_stay_in_bounds_and_change_something():
    draws = np.stack([autoanchor._draw_factors((9, 2), rng(seed), sigma=5.0) for seed in range(300)])
    assert draws.min() == 0.3 and draws.max() == 3.0
    assert np.all((draws != 1).any(axis=(1, 2)))
    assert 0.08 < np.mean(draws == 1) < 0.12


def test_good_anchors_are_kept():
    report = check_anchors(P5, labels(), 4.0, rng())
    assert not report.replaced and np.array_equal(report.anchors_px, P5)
    assert report.recall > 0.98 and f"{report.recall:.4f}" in report.message and "anchors kept" in report.message
    assert report.message == check_anchors(P5, labels(), 4.0, rng(9)).message  # no dice in the decision


def test_exactly_98_percent_is_not_enough():
    wh = np.array([[20, 20]] * 98 + [[3, 640]] * 2)
    report = check_anchors(P5, wh, 4.0, rng(), generations=30)
    assert report.replaced and report.recall == 1


def test_poor_anchors_are_replaced_by_better():
    wh = labels(scale=8)
    before = anchor_recall(P5, wh, 4.0)
    report = check_anchors(P5, wh, 4.0, rng(), generations=100)
    assert before.recall < 0.98 and report.replaced and report.recall > before.recall
    assert (report.recall, report.above_threshold) == anchor_recall(report.anchors_px, wh, 4.0)
    assert report.anchors_px.shape == P5.shape and report.anchors_px.dtype == np.float32
    assert np.all(np.diff(report.anchors_px.prod(axis=2).ravel()) >= 0)
    assert f"(before: best possible recall {before.recall:.4f}" in report.message
    assert "labels are under 3 px" in report.warning


def test_anchors_that_fitting_cannot_beat_are_kept():
    wh = np.array([[20, 20]] * 90 + [[1, 1]] * 10)  # one px is under what anchors may be at this threshold
    report = check_anchors(P5, wh, 1.9, rng(), generations=20)
    assert not report.replaced and np.array_equal(report.anchors_px, P5)
    assert "reach no more" in report.message and "10 of 100 labels" in report.warning


@pytest.mark.parametrize("strides, coarse_first", [(None, True), ([32, 16, 8], True), ([8, 16, 32], False)])
def test_levels_keep_their_order(strides, coarse_first):
    report = check_anchors(P5[::-1], labels(scale=8), 4.0, rng(), strides=strides, generations=10)
    areas = report.anchors_px.prod(axis=2).mean(axis=1)
    assert report.replaced and np.all(np.diff(areas) < 0) == coarse_first


@pytest.mark.parametrize("strides, coarse_first", [([8, 16, 32], False), ([32, 16, 8], True)])
def test_placeholders_are_always_replaced(strides, coarse_first):
    wh = np.array([[4.0, 5.0]] * 50)  # which (4, 5) reaches by chance
    report = check_anchors(PLACEHOLDER, wh, 4.0, rng(), strides=strides, generations=5)
    assert report.replaced and report.anchors_px.min() >= 2 and "before" not in report.message
    report = check_anchors(PLACEHOLDER, labels(), 4.0, rng(), strides=strides, generations=5)
    assert (report.anchors_px[0].mean() > report.anchors_px[2].mean()) == coarse_first


def test_no_labels():
    report = check_anchors(P5, np.zeros((0, 2)), 4.0, rng())
    assert not report.replaced and report.recall == 0 and "no labels" in report.message
    with pytest.raises(UserError, match="no label is 2 px"):
        check_anchors(PLACEHOLDER, np.zeros((0, 2)), 4.0, rng())
