"""Inputs to detect on: what a text names, in which order frames come, and what happens to broken ones."""

import contextlib
import functools
import http.server
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from utils.errors import UserError
from utils.images import sources
from utils.images.sources import FileSource, ScreenSource, StreamSource, is_stream, open_source, without_password


def write_picture(file, value=100, size=(30, 40)):
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), np.full((*size, 3), value, dtype=np.uint8))
    return file


def write_video(file, frames=10, fps=20, size=(64, 48), noise=0):
    """Frame i has the grey value 20 i modulo 256, or more by up to `noise`."""
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    assert writer.isOpened()
    for i in range(frames):
        spread = rng.integers(0, noise + 1, (size[1], size[0], 3))
        writer.write((20 * i + spread).astype(np.uint8))
    writer.release()
    return file


def files_of(source, **settings):
    with open_source(source, **settings) as opened:
        return [file.rsplit("/", 1)[-1] for file in opened.images + opened.videos]


@contextlib.contextmanager
def served(folder, handler=http.server.SimpleHTTPRequestHandler):
    """Address of a local web server over `folder`."""

    class Quiet(handler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# ---- what a text names


@pytest.mark.parametrize(
    "text, expected",
    [
        ("rtsp://camera/live", True),
        ("rtsp://camera/x.mp4", True),  # cannot be downloaded, whatever its suffix
        ("RTMP://camera/live", True),
        ("http://host/live", True),
        ("https://host/a.JPG", False),  # the suffix counts in any case
        ("http://host/a.mp4?token=1.x", False),  # and without the query
        ("http://host/page.html", True),
        ("pictures/a.jpg", False),
        ("C:\\pictures\\a.jpg", False),
        ("0", False),
    ],
)
def test_is_stream(text, expected):
    assert is_stream(text) is expected


@pytest.mark.parametrize(
    "address, shown",
    [
        ("rtsp://user:secret@host:554/a@b", "rtsp://host:554/a@b"),
        ("http://host/user@x", "http://host/user@x"),
        ("0", "0"),
    ],
)
def test_passwords_are_not_shown(address, shown):
    assert without_password(address) == shown


def test_a_folder_that_begins_with_screen_is_a_folder(tmp_path, monkeypatch):
    write_picture(tmp_path / "screenshots" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert files_of("screenshots") == ["a.png"]


@pytest.mark.parametrize("text", ["absent.jpg", "absent/", "*.jpg", "", "notes.md"])
def test_unsupported_sources_name_what_is_accepted(tmp_path, monkeypatch, text):
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / ("empty" if text == "" else "."))
    with pytest.raises(UserError, match="picture"):
        open_source(text)


def test_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"no picture \(\.bmp .*no video"):
        open_source(tmp_path)


@pytest.mark.parametrize("stride", [0, -1])
def test_vid_stride_must_be_positive(tmp_path, stride):
    write_picture(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="--vid-stride"):
        open_source(tmp_path, vid_stride=stride)


# ---- files


def test_folder_gives_pictures_then_videos_sorted(tmp_path):
    write_video(tmp_path / "a.mp4", frames=2)
    for name in ("c.png", "b.JPG", "d.bmp"):
        write_picture(tmp_path / name)
    write_picture(tmp_path / "inner" / "not_this.jpg")
    (tmp_path / "notes.txt").write_text("x")
    assert files_of(tmp_path) == ["b.JPG", "c.png", "d.bmp", "a.mp4"]


def test_globs(tmp_path):
    for name in ("a.jpg", "x/b.jpg", "x/y/c.jpg", "x/d.png"):
        write_picture(tmp_path / name)
    assert files_of(f"{tmp_path}/**/*.jpg") == ["a.jpg", "b.jpg", "c.jpg"]
    assert files_of(f"{tmp_path}/x/?.*") == ["b.jpg", "d.png"]


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
    write_picture(tmp_path / "a[1].jpg")
    assert files_of(tmp_path / "a[1].jpg") == ["a[1].jpg"]


def test_list_of_files_folders_and_globs(tmp_path, monkeypatch):
    for name in ("one.jpg", "folder/two.jpg", "globbed/three.png", "globbed/four.png", "far/five.jpg"):
        write_picture(tmp_path / name)
    write_video(tmp_path / "clip.mp4", frames=1)
    lines = ["# a comment", "one.jpg", "clip.mp4", "", "folder", "globbed/*.png", "one.jpg", f"{tmp_path}/far/five.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    *pictures, last = files_of(tmp_path / "list.txt")
    assert sorted(pictures) == ["five.jpg", "four.png", "one.jpg", "three.png", "two.jpg"] and last == "clip.mp4"


def test_list_with_an_absent_entry_names_it(tmp_path):
    (tmp_path / "list.txt").write_text("absent.jpg\n")
    with pytest.raises(UserError, match=r"list\.txt: absent\.jpg: does not exist"):
        open_source(tmp_path / "list.txt")
    write_picture(tmp_path / "a.png", 7)
    (tmp_path / "list.txt").write_text("absent.jpg\na.png\n")
    said = []
    with open_source(tmp_path / "list.txt", report=said.append) as source:
        assert [Path(frame.path).name for frame in source] == ["a.png"]
    assert len(said) == 1 and "list.txt: absent.jpg: does not exist" in said[0]


def test_absent_list():
    with pytest.raises(UserError, match="absent.txt: No such file"):
        open_source("absent.txt")


def test_frames_of_pictures(tmp_path):
    write_picture(tmp_path / "a.png", 7)
    write_picture(tmp_path / "b.png", 9, size=(5, 6))
    with open_source(tmp_path) as source:
        first, second = source
    assert first.image.shape == (30, 40, 3) and first.image.dtype == np.uint8 and (first.image == 7).all()
    assert second.image.shape == (5, 6, 3)
    assert (first.kind, first.number, first.prefix) == ("image", 0, f"image 1/2 {tmp_path}/a.png: ")


def test_an_unreadable_picture_costs_one_line(tmp_path):
    write_picture(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    (tmp_path / "c.jpg").write_bytes(b"")
    write_picture(tmp_path / "d.jpg")
    lines = []
    names = [frame.path[-5:] for frame in open_source(tmp_path, report=lines.append)]
    assert names == ["a.jpg", "d.jpg"]
    assert len(lines) == 2 and "b.jpg skipped" in lines[0] and "c.jpg skipped" in lines[1]


# ---- videos


@pytest.mark.parametrize(
    "stride, values, fps",
    [
        (1, list(range(0, 200, 20)), 20),
        (3, [40, 100, 160], 20 / 3),  # two are passed over, the third decoded; plays as long as the original
        (11, [], None),
    ],
)
def test_video_frames(tmp_path, stride, values, fps):
    write_video(tmp_path / "clip.mp4")
    frames = list(open_source(tmp_path / "clip.mp4", vid_stride=stride))
    assert [frame.number for frame in frames] == list(range(1, len(values) + 1))
    assert np.allclose([frame.image.mean() for frame in frames], values, atol=4)
    assert all(frame.fps == pytest.approx(fps) and frame.image.shape == (48, 64, 3) for frame in frames)
    assert np.allclose([frame.time for frame in frames], np.arange(len(values)) / (fps or 1))
    if frames:
        assert frames[0].prefix == f"video 1/1 (1/{len(values)}) {tmp_path}/clip.mp4: "


def test_broken_videos_end_without_an_error(tmp_path):
    data = bytearray(write_video(tmp_path / "a.mp4", frames=12, noise=60).read_bytes())
    start = data.find(b"mdat") + 4
    data[start + 300 : start + 600] = bytes(300)
    (tmp_path / "a.mp4").write_bytes(data)  # damaged in the middle: the decoder conceals, or ends
    (tmp_path / "b.avi").write_bytes(b"no video at all")
    (tmp_path / "c.mp4").write_bytes(data[: start + 400])  # cut off, with the index at the end lost
    write_video(tmp_path / "d.mp4", frames=3)
    lines = []
    frames = list(open_source(tmp_path, report=lines.append))
    assert [frame.path[-5:] for frame in frames].count("d.mp4") == 3
    assert not {frame.path[-5:] for frame in frames} & {"b.avi", "c.mp4"}
    assert [line.split()[1][-5:] for line in lines if "skipped" in line] == ["b.avi", "c.mp4"]


def test_a_video_whose_frames_stop_early_says_so(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", frames=5)
    monkeypatch.setattr(sources, "_frame_count", lambda capture: 8)
    lines = []
    assert len(list(open_source(tmp_path, report=lines.append))) == 5
    assert lines == [f"warning: {tmp_path}/a.mp4 ends early: 5 of 8 frames could be decoded"]


# ---- downloads


def test_http_files_are_downloaded_and_removed(tmp_path, monkeypatch):
    write_picture(tmp_path / "site" / "my picture.JPG")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with served(tmp_path / "site") as address, open_source(f"{address}/my%20picture.JPG?x=1") as source:
        frames = list(source)
        file = source.images[0]
        assert file.endswith("/my picture.JPG") and frames[0].image.shape == (30, 40, 3)
    assert not list((tmp_path / "work").iterdir())
    with pytest.raises(FileNotFoundError):
        open(file)


def test_absent_http_file(tmp_path):
    with served(tmp_path) as address, pytest.raises(UserError, match="absent.jpg"):
        open_source(f"{address}/absent.jpg")


# ---- streams


class FakeCapture:
    """A capture whose n-th opening delivers openings[n] frames and then fails; None: it cannot be opened."""

    def __init__(self, openings, fps=50.0, count=-1.0):
        self.openings, self.opened, self.fps, self.count, self.pause = list(openings), 0, fps, count, 0.002

    def __call__(self, address):
        frames = self.openings[self.opened] if self.opened < len(self.openings) else None
        self.opened += 1
        left = iter(range(frames or 0))

        def grab():
            time.sleep(self.pause)
            return next(left, None) is not None

        def get(what):
            return self.fps if what == cv2.CAP_PROP_FPS else self.count

        image = np.full((4, 6, 3), self.opened, dtype=np.uint8)
        methods = {"isOpened": lambda: frames is not None, "retrieve": lambda: (True, image), "release": lambda: None}
        return SimpleNamespace(grab=grab, get=get, **methods)


def stream(monkeypatch, capture, addresses=("rtsp://user:pw@host/a",), **settings):
    monkeypatch.setattr(sources, "_open_capture", capture)
    lines = []
    settings = {"retries": 2, "retry_pause": 0.01} | settings
    return StreamSource(list(addresses), report=lines.append, **settings), lines


def test_a_stream_that_fails_is_opened_again(monkeypatch):
    source, lines = stream(monkeypatch, FakeCapture([3, 3, None, 2]))
    with source:
        frames = list(source)
    values = [int(frame.image[0, 0, 0]) for frame in frames]
    assert values == sorted(values) and {1, 2, 4} >= set(values) and 4 in values  # frames of the third opening too
    assert [frame.number for frame in frames] == list(range(len(frames)))
    assert frames[0].path == "rtsp://host/a" and frames[0].kind == "stream" and frames[0].fps == 50
    assert sum("opening it again" in line for line in lines) == 3 and "has ended after 2 attempts" in lines[-1]
    assert not any("pw" in line for line in lines)


def test_a_stream_of_known_length_ends_at_its_end(monkeypatch):
    source, lines = stream(monkeypatch, FakeCapture([5, 5], fps=200.0, count=5.0))
    with source:
        frames = list(source)
    assert 1 <= len(frames) <= 5 and lines == []


@pytest.mark.parametrize("fps, expected", [(0.0, 30), (float("nan"), 30), (-1.0, 30), (90000.0, 30), (25.0, 25)])
def test_frame_rates_that_cannot_be(monkeypatch, fps, expected):
    source, _ = stream(monkeypatch, FakeCapture([1], fps=fps), vid_stride=1)
    with source:
        assert next(iter(source)).fps == expected


def test_only_the_newest_frame_is_kept(monkeypatch):
    capture = FakeCapture([100])
    source, _ = stream(monkeypatch, capture, retries=0)
    with source:
        frames = iter(source)
        next(frames)
        time.sleep(0.1)  # a slow model: some 40 frames pass by
        rest = list(frames)
    assert 1 <= len(rest) < 90
    assert rest[-1].time == 99 / 50  # of the hundredth frame: the time runs on over those left out


def test_a_silent_stream_does_not_hold_up_the_others(monkeypatch):
    talking, silent = FakeCapture([20]), FakeCapture([1])
    silent.pause = 3600

    def opened(address):
        return silent(address) if address == "rtsp://silent" else talking(address)

    source, _ = stream(monkeypatch, opened, ["rtsp://silent", "rtsp://talking"])
    monkeypatch.setattr(time, "sleep", lambda seconds, wait=threading.Event().wait: wait(seconds))
    monkeypatch.setattr(sources._Reader, "join", lambda self, timeout: None)
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


def test_no_frame_is_read_before_somebody_wants_it(monkeypatch):
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
    monkeypatch.setattr(sources, "_open_capture", lambda address: FakeCapture([2], fps=500.0, count=2.0)(address))
    with open_source(tmp_path / "cameras.streams", report=lambda line: None) as source:
        frames = list(source)
    expected = {("rtsp://a", "0: rtsp://a: "), ("rtsp://b", "1: rtsp://b: ")}
    assert {(frame.path, frame.prefix) for frame in frames} == expected
    (tmp_path / "empty.streams").write_text("\n")
    with pytest.raises(UserError, match="list of streams is empty"):
        open_source(tmp_path / "empty.streams")


def test_rounds_hold_what_is_there_at_the_moment(tmp_path, monkeypatch):
    """Streams that all have a new frame give one round; pictures and videos come one by one."""
    captures = {address: FakeCapture([20], count=20.0) for address in ("rtsp://a", "rtsp://b")}
    source, _ = stream(monkeypatch, lambda address: captures[address](address), captures)
    with source:
        rounds = []
        for frames in source.rounds():
            rounds.append([frame.path for frame in frames])
            time.sleep(0.1)  # a model at work, while both deliver some five
    assert all(len(set(paths)) == len(paths) for paths in rounds)
    assert ["rtsp://a", "rtsp://b"] in rounds and sum(map(len, rounds)) < 40
    write_picture(tmp_path / "a.jpg")
    write_video(tmp_path / "b.mp4", frames=2)
    assert [len(frames) for frames in open_source(tmp_path).rounds()] == [1, 1, 1]


def test_a_video_over_http_is_read_as_a_stream(tmp_path):
    write_video(tmp_path / "x.mp4", frames=8, fps=40).rename(tmp_path / "live")
    lines = []
    with served(tmp_path) as address, open_source(f"{address}/live", report=lines.append) as source:
        frames = list(source)
    assert 1 <= len(frames) <= 8 and frames[0].image.shape == (48, 64, 3)
    assert frames[0].kind == "stream" and frames[0].fps == pytest.approx(40) and lines == []


# ---- the screen


@pytest.fixture
def screens(monkeypatch):
    """A stand-in for the package mss: one monitor of 200 x 100 to the right of another."""
    monitors = [
        {"left": 0, "top": 0, "width": 300, "height": 100},
        {"left": 0, "top": 0, "width": 100, "height": 80},
        {"left": 100, "top": 0, "width": 200, "height": 100},
    ]

    def grab(area):
        return np.full((area["height"], area["width"], 4), (1, 2, 3, 255), dtype=np.uint8)

    grabber = SimpleNamespace(monitors=monitors, grab=grab, close=lambda: None)
    monkeypatch.setitem(sys.modules, "mss", SimpleNamespace(mss=lambda: grabber))


@pytest.mark.parametrize(
    "text, shape, place",
    [
        ("screen", (100, 300), "screen 0 (LTWH): 0,0,300,100: "),
        ("screen 2", (100, 200), "screen 2 (LTWH): 100,0,200,100: "),
        ("screen 10 20 30 40", (40, 30), "screen 0 (LTWH): 10,20,30,40: "),
        ("screen 2 10 20 30 40", (40, 30), "screen 2 (LTWH): 110,20,30,40: "),  # relative to that monitor
    ],
)
def test_screen(screens, text, shape, place):
    with open_source(text) as source:
        frames = iter(source)
        first, second = next(frames), next(frames)
    assert first.image.shape == (*shape, 3) and (first.image == (1, 2, 3)).all()
    assert (first.number, second.number, first.kind, first.prefix) == (1, 2, "screen", place)
    assert first.fps == second.fps == 10 and 0 <= first.time < second.time


@pytest.mark.parametrize(
    "text, message", [("screen 3", "screens are 0 to 2"), ("screen 1 2", "expected"), ("screen a", "expected")]
)
def test_screens_that_are_not_there(screens, text, message):
    with pytest.raises(UserError, match=message):
        ScreenSource(text)


def test_screen_without_mss_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mss", None)
    with pytest.raises(UserError, match="pip install mss"):
        open_source("screen")


def test_file_source_is_a_source_of_files(tmp_path):
    write_picture(tmp_path / "a.jpg")
    assert isinstance(open_source(tmp_path), FileSource) and open_source(tmp_path).kind == "files"
