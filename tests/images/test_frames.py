"""Times of frames: read from the file, or counted where the file has none."""

from types import SimpleNamespace

import numpy as np
import pytest

from utils.images.frames import FrameClock

NAN = float("nan")


@pytest.mark.parametrize(
    "milliseconds, seconds",
    [
        ([], []),
        ([0, 100, 600, 1100], [0, 0.1, 0.6, 1.1]),  # another rate for each part
        ([500, 600], [0, 0.1]),  # a cut that keeps its times
        ([0, 0, 0], [0, 0.04, 0.08]),  # no times
        ([-1, -1], [0, 0.04]),
        ([0, 40, 20, 60], [0, 0.04, 0.08, 0.12]),  # none goes back
        ([0, NAN, 100], [0, 0.04, 0.08]),
    ],
)
def test_times_are_read(milliseconds, seconds):
    clock = FrameClock(0.04)
    found = [clock.tick(SimpleNamespace(get=lambda name, at=at: at)) for at in milliseconds]
    assert np.allclose(found, seconds)
