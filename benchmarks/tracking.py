"""Tracking: ids kept on made-up scenes with crossings, and the time of a frame.

python benchmarks/tracking.py [--peer]     --peer also runs the package `trackers` (pip install trackers)
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.boxes import xywh_to_xyxy
from utils.tracking.assignment import assign
from utils.tracking.tracker import Tracker, TrackSettings, overlap

SHAPE = (720, 1280)
Update = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # rows of a frame -> boxes (k, 4) and ids (k,)


class SceneFrame(NamedTuple):
    """Objects of a frame and what a detector finds of them."""

    objects: np.ndarray  # (g, 5): x1, y1, x2, y2, number of the object
    rows: np.ndarray  # (m, 6): x1, y1, x2, y2, confidence, class


class Scores(NamedTuple):
    """MOTA and the identity switches of the CLEAR metrics, and IDF1, at an IoU of 0.5."""

    mota: float
    idf1: float
    switches: int
    misses: int
    false: int


def draw_scene(seed: int, *, objects: int = 20, frames: int = 300, stride: int = 1) -> Iterator[SceneFrame]:
    """Yield a scene of two classes that walk back and forth through each other.

    The nearer object hides the farther one, whose confidence falls with the share that is seen. It counts as present
    above a tenth, and is found above a quarter. One in thirty detections is missing, and one false one in two frames is
    added. stride: every k-th frame only.
    """
    rng = np.random.default_rng(seed)
    width = rng.uniform(35, 80, objects)
    size = np.stack((width, width * rng.uniform(1.6, 2.4, objects)), 1)
    base = rng.uniform(0, 1, (objects, 2)) * np.array(SHAPE[::-1])
    swing = rng.uniform(60, 400, (objects, 2)) * [1, 0.25]
    period, phase = rng.uniform(200, 600, (objects, 2)), rng.uniform(0, 2 * np.pi, (objects, 2))
    classes = np.arange(objects) % 2
    order = np.argsort(-(base[:, 1] + size[:, 1] / 2), kind="stable")  # the nearest first
    for frame in range(frames):
        centre = base + swing * np.sin(2 * np.pi * frame / period + phase)
        boxes = xywh_to_xyxy(np.concatenate((centre, size), 1))
        visible = _visible_shares(boxes, order)
        present = np.flatnonzero(visible > 0.1)
        found = present[(visible[present] > 0.25) & (rng.random(len(present)) > 1 / 30)]
        confidence = (0.9 * visible[found] ** 1.2 + rng.normal(0, 0.05, len(found))).clip(0.02, 0.99)
        noise = rng.normal(0, 0.03, (len(found), 4)) * np.tile(size[found], 2)
        rows = np.concatenate((boxes[found] + noise, confidence[:, None], classes[found, None]), 1)
        if rng.random() < 0.5:
            corner, extent = rng.uniform(0, 1, 2) * np.array(SHAPE[::-1]), rng.uniform(30, 120, 2)
            rows = np.concatenate((rows, [[*corner, *(corner + extent), rng.uniform(0.1, 0.6), rng.integers(2)]]))
        if frame % stride == 0:
            yield SceneFrame(
                np.concatenate((boxes[present], present[:, None]), 1), rows[np.argsort(-rows[:, 4], kind="stable")]
            )


def _visible_shares(boxes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the share of each box (n, 4) that the image and the boxes before it in `order` leave.

    It is counted on a grid of 16 x 16 points.
    """
    steps, (height, width) = (np.arange(16) + 0.5) / 16, SHAPE
    x = boxes[:, :1] + steps * (boxes[:, 2:3] - boxes[:, :1])  # (n, 16)
    y = boxes[:, 1:2] + steps * (boxes[:, 3:] - boxes[:, 1:2])
    in_columns = (x[:, None] >= boxes[:, :1]) & (x[:, None] < boxes[:, 2:3])  # (n, n, 16): point of a box, other box
    in_rows = (y[:, None] >= boxes[:, 1:2]) & (y[:, None] < boxes[:, 3:])
    rank = order.argsort()
    in_columns &= (rank[:, None] > rank)[:, :, None]
    hidden = np.einsum("nkx,nky->nyx", in_columns, in_rows)
    inside = ((x >= 0) & (x < width))[:, None] & ((y >= 0) & (y < height))[:, :, None]
    return (inside & ~hidden).mean((1, 2))


def score(scene: Sequence[SceneFrame], update: Update) -> Scores:
    """Run a tracker over a scene and compare its ids with the objects."""
    misses = false = switches = present = reported = 0
    last: dict[int, int] = {}  # object -> id that it had when it was last found
    together: dict[tuple[int, int], int] = {}  # object, id -> number of frames
    for frame in scene:
        boxes, ids = update(frame.rows)
        weights = (overlap(frame.objects[:, :4], boxes) - 0.5).clip(0)
        for i, k in np.argwhere(weights > 0):
            pair = int(frame.objects[i, 4]), int(ids[k])
            together[pair] = together.get(pair, 0) + 1
            weights[i, k] += 10 * (last.get(pair[0]) == pair[1])  # a pair that holds stays one
        rows, columns = assign(weights)
        misses += len(frame.objects) - len(rows)
        false += len(boxes) - len(rows)
        present, reported = present + len(frame.objects), reported + len(boxes)
        for i, k in zip(rows, columns, strict=True):
            number, track = int(frame.objects[i, 4]), int(ids[k])
            switches += last.get(number, track) != track
            last[number] = track
    numbers, tracks = (sorted({pair[axis] for pair in together}) for axis in (0, 1))
    counts = np.zeros((len(numbers), len(tracks)))
    for (number, track), count in together.items():
        counts[numbers.index(number), tracks.index(track)] = count
    right = counts[assign(counts)].sum()
    return Scores(1 - (misses + false + switches) / present, 2 * right / (present + reported), switches, misses, false)


def own_tracker(**settings: float) -> Update:
    """Return this project's tracker."""
    tracker = Tracker(TrackSettings(**settings))

    def update(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = tracker.update(rows, SHAPE)
        return rows[ids > 0, :4], ids[ids > 0]

    return update


def peer_tracker(high: float = 0.25) -> Update:
    """Return ByteTrack of the package `trackers`, one for each class, as it knows none."""
    import supervision
    from trackers import ByteTrackTracker

    peers: dict[int, ByteTrackTracker] = {}

    def update(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        boxes, ids = [np.zeros((0, 4))], [np.zeros(0, np.int64)]
        for number in (0, 1):
            own = rows[rows[:, 5] == number]
            peer = peers.setdefault(
                number,
                ByteTrackTracker(
                    lost_track_buffer=30, track_activation_threshold=high, high_conf_det_threshold=high,
                    minimum_consecutive_frames=2, minimum_iou_threshold=0.1,
                ),
            )  # fmt: skip
            found = peer.update(
                supervision.Detections(own[:, :4], confidence=own[:, 4], class_id=own[:, 5].astype(int))
            )
            named = found.tracker_id >= 0
            boxes.append(found.xyxy[named])
            ids.append(found.tracker_id[named] * 2 + number)
        return np.concatenate(boxes), np.concatenate(ids)

    return update


def milliseconds(boxes: int, frames: int = 40) -> float:
    """Return the median time of a frame with this number of boxes, crowded: each overlaps some others."""
    rng = np.random.default_rng(0)
    side = 50.0
    centre = rng.uniform(0, 0.7 * side * boxes**0.5, (boxes, 2))
    speed, tracker, times = rng.normal(0, 3, (boxes, 2)), Tracker(), []
    for _ in range(frames):
        centre = centre + speed
        corners = xywh_to_xyxy(np.concatenate((centre, np.full((boxes, 2), side)), 1)) + rng.normal(0, 2, (boxes, 4))
        rows = np.concatenate((corners, rng.uniform(0.1, 1, (boxes, 1)), np.zeros((boxes, 1))), 1)
        start = time.perf_counter()
        tracker.update(rows, SHAPE)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="store_true", help="also run the package trackers")
    parser.add_argument("--seeds", type=int, default=5, help="scenes")
    args = parser.parse_args()
    makers = {"this project": own_tracker, **({"trackers": peer_tracker} if args.peer else {})}
    print("| tracker | every k-th frame | MOTA | IDF1 | switches | misses | false |\n|---|---|---|---|---|---|---|")
    for stride in (1, 3, 6):
        scenes = [list(draw_scene(seed, stride=stride)) for seed in range(args.seeds)]
        for name, make in makers.items():
            figures = np.mean([score(scene, make()) for scene in scenes], axis=0)
            cells = [f"{value:.3f}" for value in figures[:2]] + [f"{value:.1f}" for value in figures[2:]]
            print(f"| {name} | {stride} | {' | '.join(cells)} |")
    for boxes in (30, 100, 300, 1000, 3000):
        print(f"{boxes} boxes: {milliseconds(boxes):.2f} ms a frame")


if __name__ == "__main__":
    main()
