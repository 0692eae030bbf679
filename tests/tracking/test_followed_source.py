"""Sources with tracks: what is one sequence, and when a tracker is kept."""

from types import SimpleNamespace

import numpy as np
import pytest

from utils.detections import Detections
from utils.errors import UserError
from utils.images.frames import Frame
from utils.tracking.followed_source import MAX_PAUSE, FollowedSource, find_sequences
from utils.tracking.tracker import TrackSettings

IMAGE = np.zeros((480, 640, 3), np.uint8)


def follow(images=(), videos=()):
    source = SimpleNamespace(images=list(images), videos=list(videos))
    return source, FollowedSource(source, TrackSettings())


def found(*boxes):
    """Return detections of (x, confidence)."""
    rows = [[x, 100, x + 50, 200, confidence, 0] for x, confidence in boxes]
    return Detections(np.array(rows, np.float32).reshape(-1, 6), (480, 640))


def frame(path, kind="video", time=0.0):
    return Frame(IMAGE, path, kind, "", time=time)


def test_sequences_are_in_the_order_of_their_numbers():
    names = [*(f"/a/walk_{i}.jpg" for i in (10, 11, 8, 9)), *(f"/b/walk_{i}.jpg" for i in (1, 2, 3)), "/a/cat.jpg"]
    assert find_sequences(names) == {
        "/a/walk_*": [f"/a/walk_{i}.jpg" for i in (8, 9, 10, 11)],
        "/b/walk_*": [f"/b/walk_{i}.jpg" for i in (1, 2, 3)],
    }


@pytest.mark.parametrize("names", [["cat.jpg", "dog.jpg"], ["a_jpg.rf.1f.jpg", "a_jpg.rf.2e.jpg", "a_jpg.rf.3d.jpg"],
                                   ["000139.jpg", "000285.jpg", "000632.jpg", "000724.jpg"]])  # fmt: skip
def test_images_without_a_sequence_are_one_line(names):
    assert find_sequences(names) == {}
    with pytest.raises(UserError, match=r"--track: these images are no sequence\. Give a video"):
        follow(names)
    source, _ = follow(names, ["a.mp4"])
    assert source.images == names


def test_images_outside_of_a_sequence_have_no_ids_and_no_low_confidences():
    source, tracks = follow(["/a/cat.jpg", *(f"/a/f{i}.jpg" for i in (1, 2, 10))])
    assert source.images == ["/a/f1.jpg", "/a/f2.jpg", "/a/f10.jpg", "/a/cat.jpg"]
    one, two, cat = (tracks(frame(path, "image"), found((50, 0.9), (300, 0.15))) for path in source.images[1:])
    assert [each.track_ids.tolist() for each in (one, two, cat)] == [[1], [1], [0]]
    assert len(cat) == 1


def test_a_low_confidence_remains_with_its_track_only():
    _, tracks = follow()
    tracks(frame("a"), found((50, 0.9)))
    seen = tracks(frame("a"), found((300, 0.6), (300, 0.2), (51, 0.15)))
    assert seen.track_ids.tolist() == [0, 1] and seen.rows[:, 0].tolist() == [300, 51]
    assert [record["track"] for record in seen.to_records()] == [None, 1]


def test_streams_have_ids_of_their_own_and_keep_them_over_a_pause():
    _, tracks = follow()
    times = (0.0, 0.1, MAX_PAUSE, 2 * MAX_PAUSE + 1)
    ids = {
        name: [tracks(frame(name, "stream", time), found((x, 0.9))).track_ids.tolist() for time in times]
        for name, x in (("one", 50), ("two", 300))
    }
    assert ids == {"one": [[1], [1], [1], [2]], "two": [[1], [1], [1], [2]]}


def test_streams_take_turns_and_videos_follow_each_other():
    _, tracks = follow()
    for kind, kept in (("stream", 2), ("video", 1)):
        for name in ("one", "two", "one", "two"):
            tracks(frame(kind + name, kind), found((50, 0.9)))
        assert len(tracks._trackers) == kept
        tracks._trackers.clear()
