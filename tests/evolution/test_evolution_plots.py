"""Charts of an evolution: drawn in every case, and very low values do not squeeze the rest."""

import cv2
import numpy as np
import pytest

from utils.evolution.plots import lowest_shown, plot_evolve, plot_evolve_progress

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("count, names", [(1, 1), (1, 29), (40, 7)])
def test_a_panel_for_each_hyperparameter(tmp_path, count, names):
    values, fitness = RNG.uniform(0.001, 1, (count, names)), RNG.random(count)
    plot_evolve(
        [f"h{k}" for k in range(names)],
        values,
        fitness,
        tmp_path / "evolve.png",
        best=0,
        start=count - 1,
        logarithmic=["h0"],
    )
    image = cv2.imread(str(tmp_path / "evolve.png"))
    assert image.std() > 10 and image.shape[0] > 200 * -(-names // 6)


@pytest.mark.parametrize(
    "statuses", [["done"], ["failed"], ["pruned", "pruned"], ["done", "failed", "pruned", "done"], []]
)
def test_every_mix_of_statuses_is_drawn(tmp_path, statuses):
    fitness = [np.nan if word == "failed" else 0.1 + k / 10 for k, word in enumerate(statuses)]
    plot_evolve_progress(
        np.arange(len(statuses)),
        np.array(fitness),
        statuses,
        tmp_path / "p.png",
        start=0.1,
        repeats=[(0, 0.2)] * bool(statuses),
        winner=0,
    )
    assert cv2.imread(str(tmp_path / "p.png")).std() > 5


@pytest.mark.parametrize(
    "fitness, expected",
    [
        ([], 0.0),
        ([0.3], 0.3),
        ([0.3, 0.4, 0.35], 0.3),  # nothing is cut
        ([0.30, 0.31, 0.32, 0.33, 0.34, 0.35, 0.36, 0.37, 0.01], 0.37 - 4 * 0.06),  # the very low one is
    ],
)
def test_lower_end_of_the_axis(fitness, expected):
    assert lowest_shown(np.array(fitness)) == pytest.approx(expected, abs=0.011)
