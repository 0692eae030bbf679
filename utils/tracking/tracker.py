"""Tracker of one source by the method of ByteTrack (arXiv 2110.06864).

Detections of high confidence are matched with the tracks first. Those of low confidence, which often are objects half
hidden, then continue the tracks that are left, but never begin one.

Legend: n tracks, m detections of a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from utils.boxes import xywh_to_xyxy, xyxy_to_xywh
from utils.detections import Detections
from utils.tracking.assignment import assign
from utils.tracking.motion import Motion

LOW_CONFIDENCE = 0.1  # detections below it are ignored
MIN_IOU = 0.1  # of a track and a detection of high confidence
MIN_IOU_LOW = 0.5  # of a track and a detection of low confidence
MIN_IOU_NEW = 0.2  # of a track in its second frame
DUPLICATE_IOU = 0.85  # a seen and a lost track that overlap more are one


@dataclass(frozen=True)
class TrackSettings:
    """Settings of a tracker."""

    high: float | Sequence[float] = 0.25  # confidence above which a detection may begin a track, or one for each class
    buffer: int = 30  # frames that a track without detections is kept
    agnostic: bool = False  # an object may change its class

    def is_high(self, confidence: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return for each detection (m,) whether it may begin a track."""
        limits = np.asarray(self.high, np.float32)  # as the suppression compares them
        return confidence > (limits[classes] if limits.ndim else limits)


class Tracker:
    """Tracks of the objects in one video, stream or sequence of images.

    Its state depends on the detections alone: the same ones give the same ids.
    """

    def __init__(self, settings: TrackSettings | None = None):
        self.settings = settings or TrackSettings()
        self._frame = 0  # number of the present frame
        self._last_id = 0
        self._shape = (0, 0)
        self.forget()

    def forget(self) -> None:
        """End all tracks. New ones get higher ids."""
        none = np.zeros(0, np.int64)
        self._motion = Motion.begin(np.zeros((0, 4)))
        self._ids, self._classes, self._seen, self._begun = none, none, none, none  # (n,); the last two are frames
        self._settled = self._frame  # frame of the last start

    def follow(self, found: Detections) -> Detections:
        """Return what remains of the detections of the next frame, with ids as of `update`.

        Detections of low confidence remain if they belong to a track.
        """
        ids = self.update(found.rows, found.shape)
        kept = self.settings.is_high(found.confidence, found.classes) | (ids > 0)
        return replace(found, rows=found.rows[kept], track_ids=ids[kept])

    def update(self, rows: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Take the detections of the next frame and return the id of each (m,) int64, 0 for one without.

        rows: (m, 6) x1, y1, x2, y2 in pixels, confidence, class. shape: height and width of the frame; if it changes,
        the view is taken to be the same. A new object gets its id, from 1 on, once it is found in two frames in a
        row. Those of the first frame get theirs at once.
        """
        self._advance(shape)
        boxes, classes = rows[:, :4].astype(np.float64), rows[:, 5].astype(np.int64)
        high = self.settings.is_high(rows[:, 4], classes)
        low = ~high & (rows[:, 4] >= LOW_CONFIDENCE)
        track_of = np.full(len(rows), -1)
        known = self._ids > 0
        self._match(known, high, MIN_IOU, boxes, classes, track_of)
        self._match(known & (self._seen == self._frame - 1), low, MIN_IOU_LOW, boxes, classes, track_of)
        self._match(~known, high & (track_of < 0), MIN_IOU_NEW, boxes, classes, track_of)
        self._name(track_of[track_of >= 0])
        self._begin(high & (track_of < 0), boxes, classes, track_of)
        ids = np.where(track_of >= 0, self._ids[track_of] if len(self._ids) else 0, 0)
        self._drop()
        return ids

    def _advance(self, shape: tuple[int, int]) -> None:
        """Predict where the tracks are in the next frame."""
        if self._shape != shape and len(self._ids):
            self._motion.scale(shape[1] / self._shape[1], shape[0] / self._shape[0])
        self._motion.predict(self._seen == self._frame)
        self._shape, self._frame = shape, self._frame + 1

    def _match(
        self,
        tracks: np.ndarray,
        chosen: np.ndarray,
        min_iou: float,
        boxes: np.ndarray,
        classes: np.ndarray,
        track_of: np.ndarray,
    ) -> None:
        """Match the `tracks` (n,) bool that have no detection yet with the `chosen` detections (m,) bool.

        Their tracks are written into track_of (m,).
        """
        candidates = np.flatnonzero(tracks & (self._seen < self._frame))
        found = np.flatnonzero(chosen)
        weights = overlap(xywh_to_xyxy(self._motion.box[candidates]), boxes[found]) - min_iou
        if not self.settings.agnostic:
            weights[self._classes[candidates][:, None] != classes[found]] = 0
        left, right = assign(weights)
        own, theirs = candidates[left], found[right]
        track_of[theirs] = own
        self._motion.update(own, xyxy_to_xywh(boxes[theirs]))
        self._seen[own], self._classes[own] = self._frame, classes[theirs]

    def _name(self, tracks: np.ndarray) -> None:
        """Give ids to those of the tracks (k,) that have none."""
        nameless = np.sort(tracks[self._ids[tracks] == 0])
        self._ids[nameless] = self._last_id + 1 + np.arange(len(nameless))
        self._last_id += len(nameless)

    def _begin(self, chosen: np.ndarray, boxes: np.ndarray, classes: np.ndarray, track_of: np.ndarray) -> None:
        """Begin a track with each of the `chosen` detections (m,) bool."""
        count, first = int(chosen.sum()), len(self._ids)
        track_of[chosen] = first + np.arange(count)
        self._motion = self._motion.join(Motion.begin(xyxy_to_xywh(boxes[chosen])))
        self._ids = np.concatenate((self._ids, np.zeros(count, np.int64)))
        self._classes = np.concatenate((self._classes, classes[chosen]))
        self._seen = np.concatenate((self._seen, np.full(count, self._frame)))
        self._begun = np.concatenate((self._begun, np.full(count, self._frame)))
        if self._frame == self._settled + 1:
            self._name(first + np.arange(count))

    def _drop(self) -> None:
        """Remove the tracks that were lost long ago, those that were seen once only, and duplicates."""
        seen = self._seen == self._frame
        keep = seen | ((self._ids > 0) & (self._frame - self._seen <= self.settings.buffer))
        keep[self._duplicates(seen & (self._ids > 0), keep & ~seen)] = False
        self._motion = self._motion.select(keep)
        self._ids, self._classes, self._seen, self._begun = (
            one[keep] for one in (self._ids, self._classes, self._seen, self._begun)
        )

    def _duplicates(self, seen: np.ndarray, lost: np.ndarray) -> np.ndarray:
        """Return the shorter track of each pair of a `seen` and a `lost` one (n,) at the same place."""
        first, second = np.flatnonzero(seen), np.flatnonzero(lost)
        corners = xywh_to_xyxy(self._motion.box)
        alike = overlap(corners[first], corners[second]) > DUPLICATE_IOU
        if not self.settings.agnostic:
            alike &= self._classes[first][:, None] == self._classes[second]
        pairs = np.nonzero(alike)
        left, right = first[pairs[0]], second[pairs[1]]
        length = self._seen - self._begun
        return np.where(length[left] > length[right], right, left)


def overlap(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """Return the intersection over union of every pair: (n, 4) and (m, 4) give (n, m) float64."""
    a, b = a_xyxy.T[:, :, None], b_xyxy.T[:, None]  # (4, n, 1), (4, 1, m)
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    shared = width.clip(0) * height.clip(0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / np.maximum(union, 1e-9)
