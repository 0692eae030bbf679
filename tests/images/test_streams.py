"""Cameras and network streams: the newest frame counts, failures are retried, and no stream delays another."""

import contextlib
import http.server
import math
import random
import re
import threading
import time
from types import SimpleNamespace
from typing import ClassVar

import cv2
import numpy as np
import pytest
from media_files import served, write_image, write_video

from utils.errors import UserError
from utils.images import streams
from utils.images.sources import open_source
from utils.images.streams import Backoff, StreamSettings, StreamSource


class FakeCapture:
    """Capture whose n-th opening delivers openings[n] frames and then fails. None: it cannot be opened."""

    def __init__(self, openings, fps=50.0, count=-1.0):
        self.openings, self.opened, self.fps, self.count, self.pause = list(openings), 0, fps, count, 0.002
        self.grabbed = 0

    def __call__(self, address, timeout=15.0):
        frames = self.openings[self.opened] if self.opened < len(self.openings) else None
        self.opened += 1
        left, released = iter(range(frames or 0)), threading.Event()

        def grab():
            time.sleep(self.pause)
            self.grabbed += 1
            return next(left, None) is not None

        def get(name):
            return self.fps if name == cv2.CAP_PROP_FPS else self.count

        image = np.full((4, 6, 3), self.opened, dtype=np.uint8)
        return SimpleNamespace(
            grab=grab,
            get=get,
            isOpened=lambda: frames is not None and not released.is_set(),
            retrieve=lambda: (True, image),
            release=released.set,
        )


def stream(monkeypatch, capture, addresses=("rtsp://user:pw@host/a",), vid_stride=1, **settings):
    monkeypatch.setattr(streams, "_open_capture", capture)
    lines = []
    settings = StreamSettings(**{"retries": 2, "first_pause": 0.01} | settings)
    source = StreamSource(
        list(addresses), vid_stride=vid_stride, settings=settings, warn=lines.append, report=lines.append
    )
    return source, lines


def test_failing_stream_is_reopened(monkeypatch):
    source, lines = stream(monkeypatch, FakeCapture([3, 3, None, 2]))
    with source:
        frames = list(source)
    values = [int(frame.image[0, 0, 0]) for frame in frames]
    assert values == sorted(values) and {1, 2, 4} >= set(values) and 4 in values  # frames of the third opening too
    assert [frame.number for frame in frames] == list(range(len(frames)))
    assert frames[0].path == "rtsp://host/a" and frames[0].kind == "stream" and frames[0].fps == 50
    assert ["broke off. Reconnecting" in line for line in lines] == [True, False, True, False, True, False]
    assert "is back after 0 s: 6x4 pixels" in lines[1] and "has ended after 2 attempts" in lines[-1]
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ stream rtsp://host/a ", lines[0])
    assert not any("pw" in line for line in lines)


def test_pauses_grow_to_a_limit():
    backoff = Backoff(1.0, 60.0, random.Random(0))
    for _ in range(2):
        pauses = [backoff.next() for _ in range(9)]
        limits = [1, 2, 4, 8, 16, 32, 60, 60, 60]
        assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, limits, strict=True))
        assert len(set(pauses)) == 9
        backoff.reset()


def test_a_stream_that_fails_again_and_again_is_opened_less_often(monkeypatch):
    """Few frames do not shorten its pauses: that would be a line a second for weeks."""
    source, lines = stream(monkeypatch, FakeCapture([3] * 5), longest_pause=60.0)
    started = time.monotonic()
    with source:
        list(source)
    assert time.monotonic() - started > (0.01 + 0.02 + 0.04 + 0.08 + 0.16) / 2 and len(lines) == 10


def test_a_stream_may_come_late(monkeypatch):
    """One stream answers, another at the third attempt. With retries none has to answer at the start."""
    captures = {"rtsp://late": FakeCapture([None, None, None, 2]), "rtsp://here": FakeCapture([2])}
    source, lines = stream(monkeypatch, lambda address, timeout: captures[address](address), captures, retries=4)
    with source:
        assert {frame.path for frame in source} == set(captures)
    of_late = [line.split(" ", 1)[1] for line in lines if "late" in line]
    assert of_late[:2] == [
        "stream rtsp://late cannot be opened. Reconnecting",
        "stream rtsp://late is back after 0 s: 6x4 pixels",
    ]
    source, _ = stream(monkeypatch, FakeCapture([None, None, 2]), retries=2)
    with source:
        assert next(iter(source)).number == 0
    with pytest.raises(UserError, match="none of 2 streams can be opened, the first: .*a cannot"):
        stream(monkeypatch, FakeCapture([]), ["rtsp://a", "rtsp://b"], retries=None)


def test_a_frozen_stream_is_named_with_its_silence(monkeypatch):
    capture = FakeCapture([4, 0])
    source, lines = stream(monkeypatch, capture, timeout=0.05, retries=1)
    with source:
        frames = iter(source)
        next(frames)
        capture.pause = 0.05
        list(frames)
    assert "gave no frame for 0 s. Reconnecting" in lines[0] and "has ended after 1 attempts" in lines[-1]


def test_no_attempt_without_retries(monkeypatch):
    capture = FakeCapture([3, 3])
    source, lines = stream(monkeypatch, capture, retries=0)
    with source:
        list(source)
    assert capture.opened == 1 and [line.split(" ", 1)[1] for line in lines] == ["stream rtsp://host/a has ended"]


@pytest.mark.parametrize("settings", [{"timeout": 0}, {"timeout": math.nan}, {"timeout": math.inf}, {"retries": -1}])
def test_wrong_settings_of_streams(settings):
    with pytest.raises(UserError, match="--stream-"):
        StreamSettings(**settings)


class Camera(http.server.BaseHTTPRequestHandler):
    """MJPEG camera: each connection gets a few frames of its own brightness and size, and is then dropped."""

    connections: ClassVar[list[int]] = []

    def do_GET(self):
        self.connections.append(1)
        side = 16 * (1 + len(self.connections))
        image = np.full((side, 64, 3), 40 * len(self.connections), np.uint8)
        jpeg = cv2.imencode(".jpg", image)[1].tobytes()
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(12):
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg))
                self.wfile.write(jpeg + b"\r\n")
                time.sleep(0.02)

    def log_message(self, *_):
        pass


@pytest.fixture
def camera():
    """Yield the address of a running camera."""
    Camera.connections = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/video"
    server.shutdown()
    server.server_close()


def test_a_camera_that_drops_comes_back_with_another_size(camera):
    lines, shapes = [], []
    settings = StreamSettings(timeout=5.0, first_pause=0.05)
    with StreamSource([camera], settings=settings, warn=lines.append, report=lines.append) as source:
        for frame in source:
            shapes += [frame.image.shape[:2]] if frame.image.shape[:2] not in shapes else []
            assert frame.received and abs(frame.received - time.time()) < 60
            if len(shapes) == 3:
                break
    assert shapes == sorted(shapes) and len({height for height, _ in shapes}) == 3
    assert [line.split()[3] for line in lines[:4]] == ["broke", "is", "broke", "is"]


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

    def opened(address, timeout):
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
        stream(monkeypatch, FakeCapture([]), [address], retries=None)


def test_list_of_streams(tmp_path, monkeypatch):
    (tmp_path / "cameras.streams").write_text("rtsp://a\n# off\n\nrtsp://b\n")
    monkeypatch.setattr(streams, "_open_capture", lambda *a: FakeCapture([2], fps=500.0, count=2.0)(*a))
    (tmp_path / "cameras.txt").write_text("rtsp://a\nrtsp://b\n")
    with open_source(tmp_path / "cameras.txt", warn=lambda line: None) as source:
        assert {frame.path for frame in source} == {"rtsp://a", "rtsp://b"}
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
    source, _ = stream(monkeypatch, lambda address, timeout: captures[address](address), captures)
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
