"""Cameras and network streams: the newest frame counts, failures are retried, and no stream delays another."""

import threading
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from media_files import served, write_image, write_video

from utils.errors import UserError
from utils.images import streams
from utils.images.sources import open_source
from utils.images.streams import StreamSource


class FakeCapture:
    """Capture whose n-th opening delivers openings[n] frames and then fails. None: it cannot be opened."""

    def __init__(self, openings, fps=50.0, count=-1.0):
        self.openings, self.opened, self.fps, self.count, self.pause = list(openings), 0, fps, count, 0.002
        self.grabbed = 0

    def __call__(self, address):
        frames = self.openings[self.opened] if self.opened < len(self.openings) else None
        self.opened += 1
        left = iter(range(frames or 0))

        def grab():
            time.sleep(self.pause)
            self.grabbed += 1
            return next(left, None) is not None

        def get(name):
            return self.fps if name == cv2.CAP_PROP_FPS else self.count

        image = np.full((4, 6, 3), self.opened, dtype=np.uint8)
        methods = {"isOpened": lambda: frames is not None, "retrieve": lambda: (True, image), "release": lambda: None}
        return SimpleNamespace(grab=grab, get=get, **methods)


def stream(monkeypatch, capture, addresses=("rtsp://user:pw@host/a",), **settings):
    monkeypatch.setattr(streams, "_open_capture", capture)
    lines = []
    settings = {"retries": 2, "retry_pause": 0.01} | settings
    return StreamSource(list(addresses), warn=lines.append, **settings), lines


def test_failing_stream_is_reopened(monkeypatch):
    source, lines = stream(monkeypatch, FakeCapture([3, 3, None, 2]))
    with source:
        frames = list(source)
    values = [int(frame.image[0, 0, 0]) for frame in frames]
    assert values == sorted(values) and {1, 2, 4} >= set(values) and 4 in values  # frames of the third opening too
    assert [frame.number for frame in frames] == list(range(len(frames)))
    assert frames[0].path == "rtsp://host/a" and frames[0].kind == "stream" and frames[0].fps == 50
    assert sum("opening it again" in line for line in lines) == 3 and "has ended after 2 attempts" in lines[-1]
    assert not any("pw" in line for line in lines)


def test_a_single_image_behind_an_address_ends(tmp_path):
    write_image(tmp_path / "still.jpg", 7).rename(tmp_path / "still")
    with served(tmp_path) as address, open_source(f"{address}/still", warn=lambda line: None) as source:
        frames = list(source)
    assert len(frames) == 1 and frames[0].image.mean() == pytest.approx(7, abs=1)


def test_stream_of_known_length_ends_at_its_end(monkeypatch):
    source, lines = stream(monkeypatch, FakeCapture([5, 5], fps=200.0, count=5.0))
    with source:
        frames = list(source)
    assert 1 <= len(frames) <= 5 and lines == []


@pytest.mark.parametrize("fps, expected", [(0.0, 30), (float("nan"), 30), (-1.0, 30), (90000.0, 30), (25.0, 25)])
def test_impossible_frame_rates(monkeypatch, fps, expected):
    source, _ = stream(monkeypatch, FakeCapture([1], fps=fps), vid_stride=1)
    with source:
        assert next(iter(source)).fps == expected


def test_only_the_newest_frame_is_kept(monkeypatch):
    capture, started = FakeCapture([100]), time.monotonic()
    source, _ = stream(monkeypatch, capture, retries=0)
    with source:
        frames = iter(source)
        next(frames)
        while capture.grabbed < 40:  # a slow model
            time.sleep(0.001)
        rest = list(frames)
    assert 1 <= len(rest) < 100 - 30
    # when it came, not the 1.98 s of a hundredth frame at the stated rate
    assert 0.18 < rest[-1].time <= time.monotonic() - started


def test_stalled_stream_does_not_delay_the_others(monkeypatch):
    talking, silent = FakeCapture([20]), FakeCapture([1])
    silent.pause = 3600

    def opened(address):
        return silent(address) if address == "rtsp://silent" else talking(address)

    source, _ = stream(monkeypatch, opened, ["rtsp://silent", "rtsp://talking"])
    never = threading.Event()
    monkeypatch.setattr(time, "sleep", never.wait)
    monkeypatch.setattr(streams._Reader, "join", lambda self, timeout: None)
    frames = iter(source)
    assert [next(frames).path for _ in range(3)] == ["rtsp://talking"] * 3
    source.close()


def test_stopping_before_and_after_the_first_frame(monkeypatch):
    source, _ = stream(monkeypatch, FakeCapture([1000]))
    source.close()
    assert list(source) == []
    source, _ = stream(monkeypatch, FakeCapture([1000]))
    assert next(iter(source)).number == 0
    source.close()
    assert not any(reader.is_alive() for reader in source._readers)


def test_no_frame_is_read_before_the_first_request(monkeypatch):
    source, _ = stream(monkeypatch, FakeCapture([3], count=3.0, fps=100.0))
    time.sleep(0.05)  # the model is being loaded
    with source:
        assert source._readers[0].decoded == 0 and next(iter(source)).number == 0


@pytest.mark.parametrize(
    "address, message", [("7", "no camera 7"), ("rtsp://u:pw@host/x", "stream rtsp://host/x cannot be opened")]
)
def test_streams_that_cannot_be_opened(monkeypatch, address, message):
    with pytest.raises(UserError, match=message):
        stream(monkeypatch, FakeCapture([]), [address])


def test_list_of_streams(tmp_path, monkeypatch):
    (tmp_path / "cameras.streams").write_text("rtsp://a\n# off\n\nrtsp://b\n")
    monkeypatch.setattr(streams, "_open_capture", lambda address: FakeCapture([2], fps=500.0, count=2.0)(address))
    with open_source(tmp_path / "cameras.streams", warn=lambda line: None) as source:
        frames = list(source)
    expected = {("rtsp://a", "0: rtsp://a: "), ("rtsp://b", "1: rtsp://b: ")}
    assert {(frame.path, frame.prefix) for frame in frames} == expected
    (tmp_path / "empty.streams").write_text("\n")
    with pytest.raises(UserError, match="list of streams is empty"):
        open_source(tmp_path / "empty.streams")


def test_rounds_hold_the_frames_available_at_the_moment(tmp_path, monkeypatch):
    """Streams that all have a new frame share a round. Images and videos are yielded one by one."""
    captures = {address: FakeCapture([20], count=20.0) for address in ("rtsp://a", "rtsp://b")}
    source, _ = stream(monkeypatch, lambda address: captures[address](address), captures)
    with source:
        rounds = []
        for frames in source.rounds():
            rounds.append([frame.path for frame in frames])
            time.sleep(0.1)  # a model runs while both deliver about five frames
    assert all(len(set(paths)) == len(paths) for paths in rounds)
    assert ["rtsp://a", "rtsp://b"] in rounds and sum(map(len, rounds)) < 40
    write_image(tmp_path / "a.jpg")
    write_video(tmp_path / "b.mp4", frames=2)
    assert [len(frames) for frames in open_source(tmp_path).rounds()] == [1, 1, 1]


def test_video_over_http_is_read_as_a_stream(tmp_path):
    write_video(tmp_path / "x.mp4", frames=8, fps=40).rename(tmp_path / "live")
    lines = []
    with served(tmp_path) as address, open_source(f"{address}/live", warn=lines.append) as source:
        frames = list(source)
    assert 1 <= len(frames) <= 8 and frames[0].image.shape == (48, 64, 3)
    assert frames[0].kind == "stream" and frames[0].fps == pytest.approx(40) and lines == []
