"""Motion: the filter of pairs is the textbook's of 8 dimensions."""

import numpy as np
import pytest

from utils.tracking.motion import INITIAL, POSITION_NOISE, VELOCITY_NOISE, Motion


class MatrixFilter:
    """Kalman filter of one box, with its 8 x 8 matrices written out."""

    def __init__(self, xywh):
        side = np.tile(xywh[2:], 2)
        self.mean = np.concatenate((xywh, np.zeros(4)))
        self.covariance = np.diag(
            np.concatenate((INITIAL[0] * POSITION_NOISE * side, INITIAL[1] * VELOCITY_NOISE * side)) ** 2
        )
        self.step, self.view = np.eye(8) + np.eye(8, k=4), np.eye(4, 8)

    def predict(self):
        side = np.tile(self.mean[2:4], 2)
        noise = np.diag(np.concatenate((POSITION_NOISE * side, VELOCITY_NOISE * side)) ** 2)
        self.mean, self.covariance = self.step @ self.mean, self.step @ self.covariance @ self.step.T + noise

    def update(self, xywh):
        noise = np.diag((POSITION_NOISE * np.tile(self.mean[2:4], 2)) ** 2)
        gain = self.covariance @ self.view.T @ np.linalg.inv(self.view @ self.covariance @ self.view.T + noise)
        self.mean = self.mean + gain @ (xywh - self.mean[:4])
        self.covariance = (np.eye(8) - gain @ self.view) @ self.covariance


def test_the_filter_is_that_of_the_matrices():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(20, 200, (3, 4))
    motion, matrices = Motion.begin(boxes), [MatrixFilter(box) for box in boxes]
    for _ in range(20):
        measured = boxes + rng.normal(0, 3, boxes.shape)
        motion.predict(np.ones(3, bool))
        motion.update(np.array([0, 2]), measured[[0, 2]])
        for i, one in enumerate(matrices):
            one.predict()
            if i != 1:
                one.update(measured[i])
    for i, one in enumerate(matrices):
        assert np.concatenate((motion.box[i], motion.velocity[i])) == pytest.approx(one.mean)
        assert motion.var_box[i] == pytest.approx(np.diag(one.covariance)[:4])
        assert motion.covariance[i] == pytest.approx(np.diag(one.covariance, k=4))
        assert motion.var_velocity[i] == pytest.approx(np.diag(one.covariance)[4:])


def test_a_steady_motion_is_continued_without_measurements():
    motion = Motion.begin(np.array([[100.0, 50.0, 40.0, 80.0]]))
    for frame in range(1, 30):
        motion.predict(np.array([True]))
        motion.update(np.array([0]), np.array([[100.0 + 5 * frame, 50.0 - 2 * frame, 40.0, 80.0]]))
    for _ in range(10):
        motion.predict(np.array([False]))
    assert motion.box[0] == pytest.approx([100 + 5 * 39, 50 - 2 * 39, 40, 80], abs=2)


def test_a_scaled_state_moves_as_the_scaled_image():
    boxes = np.array([[100.0, 60.0, 40.0, 80.0]])
    one, other = Motion.begin(boxes), Motion.begin(boxes * [2, 0.5, 2, 0.5])
    one.scale(2, 0.5)
    for motion in (one, other):
        motion.predict(np.array([True]))
        motion.update(np.array([0]), np.array([[210.0, 31.0, 80.0, 40.0]]))
    for field in vars(one):
        assert getattr(one, field) == pytest.approx(getattr(other, field)), field
