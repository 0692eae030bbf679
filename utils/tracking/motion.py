"""Motion of boxes: a Kalman filter of constant velocity for each number of a box.

A box is centre x, centre y, width, height in pixels. Each number depends on its own velocity only, so the filter of 8
dimensions is four of 2. All tracks are computed at once. The noise is in proportion to the size of the box. Its
velocity may change fast, so that videos of which only every k-th frame is read are followed too.
"""

from dataclasses import dataclass

import numpy as np

POSITION_NOISE = 1 / 20  # standard deviation, as a share of the box's side, of a measurement and of a step
VELOCITY_NOISE = 1 / 40  # of a step
INITIAL = 2.0, 10.0  # times the noise of position and velocity: deviations of a new track


@dataclass
class Motion:
    """State of n tracks, arrays (n, 4) float64: box xywh, its velocity per step, and their covariances."""

    box: np.ndarray
    velocity: np.ndarray
    var_box: np.ndarray
    covariance: np.ndarray
    var_velocity: np.ndarray

    @classmethod
    def begin(cls, xywh: np.ndarray) -> "Motion":
        """Return tracks that begin at these boxes (n, 4) with unknown velocity."""
        side = _sides(xywh)
        position, velocity = INITIAL[0] * POSITION_NOISE * side, INITIAL[1] * VELOCITY_NOISE * side
        zero = np.zeros_like(xywh)
        return cls(xywh.copy(), zero.copy(), position**2, zero.copy(), velocity**2)

    def predict(self, seen: np.ndarray) -> None:
        """Advance all tracks by one step. The size of those that were not `seen` (n,) in the last one stays."""
        self.velocity[~seen, 2:] = 0
        side = _sides(self.box)
        self.box = self.box + self.velocity
        self.box[:, 2:] = np.maximum(self.box[:, 2:], 1e-3)
        self.var_box = self.var_box + 2 * self.covariance + self.var_velocity + (POSITION_NOISE * side) ** 2
        self.covariance = self.covariance + self.var_velocity
        self.var_velocity = self.var_velocity + (VELOCITY_NOISE * side) ** 2

    def update(self, tracks: np.ndarray, xywh: np.ndarray) -> None:
        """Correct the tracks of these indices (k,) by the boxes (k, 4) that were measured."""
        variance, covariance = self.var_box[tracks], self.covariance[tracks]
        total = variance + (POSITION_NOISE * _sides(self.box[tracks])) ** 2
        gain, velocity_gain = variance / total, covariance / total
        surprise = xywh - self.box[tracks]
        self.box[tracks] += gain * surprise
        self.velocity[tracks] += velocity_gain * surprise
        self.var_box[tracks] = (1 - gain) * variance
        self.covariance[tracks] = (1 - gain) * covariance
        self.var_velocity[tracks] -= velocity_gain * covariance

    def scale(self, x: float, y: float) -> None:
        """Convert to the pixels of an image that is `x` times as wide and `y` times as high."""
        factor = np.array([x, y, x, y])
        self.box, self.velocity = self.box * factor, self.velocity * factor
        self.var_box, self.covariance, self.var_velocity = (
            one * factor**2 for one in (self.var_box, self.covariance, self.var_velocity)
        )

    def select(self, chosen: np.ndarray) -> "Motion":
        """Return the tracks of these indices or of this mask."""
        return Motion(*(one[chosen] for one in vars(self).values()))

    def join(self, other: "Motion") -> "Motion":
        """Return the tracks of both, those of `other` last."""
        return Motion(*(np.concatenate(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))


def _sides(xywh: np.ndarray) -> np.ndarray:
    """Return width, height, width, height (n, 4): the scale of each number of a box."""
    return np.concatenate((xywh[:, 2:], xywh[:, 2:]), axis=1)
