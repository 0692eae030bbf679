"""Sources to detect on: what a text names, the order of frames, and broken files."""

import errno
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from media_files import served, write_image, write_video

from utils.errors import UserError
from utils.images import sources
from utils.images.cut import Cut
from utils.images.sources import FileSource, ScreenSource, is_stream, open_source


def files_of(source, **settings):
    with open_source(source, **settings) as opened:
        return [file.rsplit("/", 1)[-1] for file in opened.images + opened.videos]


# ---- names of sources


@pytest.mark.parametrize(
    "text, expected",
    [
        ("rtsp://camera/live", True),
        ("rtsp://camera/x.mp4", True),  # never downloaded, whatever its suffix
        ("RTMP://camera/live", True),
        ("http://host/live", True),
        ("https://host/a.JPG", False),  # the suffix counts in any case
        ("http://host/a.mp4?token=1.x", False),  # and without the query
        ("http://host/page.html", True),
        ("images/a.jpg", False),
        ("C:\\images\\a.jpg", False),
        ("0", False),
    ],
)
def test_is_stream(text, expected):
    assert is_stream(text) is expected


def test_folder_whose_name_begins_with_screen_is_a_folder(tmp_path, monkeypatch):
    write_image(tmp_path / "screenshots" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert files_of("screenshots") == ["a.png"]


@pytest.mark.parametrize("text", ["absent.jpg", "absent/", "*.jpg", "", "notes.md"])
def test_unsupported_sources_name_what_is_accepted(tmp_path, monkeypatch, text):
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / ("empty" if text == "" else "."))
    with pytest.raises(UserError, match="image"):
        open_source(text)


def test_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"no image \(\.bmp .*no video"):
        open_source(tmp_path)


def test_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("utils.files.RETRY_DELAYS", (0,))
    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be listed: Input/output error"):
        FileSource(str(tmp_path))


@pytest.mark.parametrize("stride", [0, -1])
def test_vid_stride_must_be_positive(tmp_path, stride):
    write_image(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="--vid-stride"):
        open_source(tmp_path, vid_stride=stride)


# ---- files


def test_folder_yields_images_then_videos_sorted(tmp_path):
    write_video(tmp_path / "a.mp4", frames=2)
    for name in ("c.png", "b.JPG", "d.bmp"):
        write_image(tmp_path / name)
    write_image(tmp_path / "inner" / "not_this.jpg")
    (tmp_path / "notes.txt").write_text("x")
    assert files_of(tmp_path) == ["b.JPG", "c.png", "d.bmp", "a.mp4"]


def test_globs(tmp_path):
    for name in ("a.jpg", "x/b.jpg", "x/y/c.jpg", "x/d.png"):
        write_image(tmp_path / name)
    assert files_of(f"{tmp_path}/**/*.jpg") == ["a.jpg", "b.jpg", "c.jpg"]
    assert files_of(f"{tmp_path}/x/?.*") == ["b.jpg", "d.png"]


def test_file_whose_name_looks_like_a_glob(tmp_path):
    write_image(tmp_path / "a[1].jpg")
    assert files_of(tmp_path / "a[1].jpg") == ["a[1].jpg"]


def test_list_of_files_folders_and_globs(tmp_path, monkeypatch):
    for name in ("one.jpg", "folder/two.jpg", "globbed/three.png", "globbed/four.png", "far/five.jpg"):
        write_image(tmp_path / name)
    write_video(tmp_path / "clip.mp4", frames=1)
    lines = ["# a comment", "one.jpg", "clip.mp4", "", "folder", "globbed/*.png", "one.jpg", f"{tmp_path}/far/five.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    *images, last = files_of(tmp_path / "list.txt")
    assert sorted(images) == ["five.jpg", "four.png", "one.jpg", "three.png", "two.jpg"] and last == "clip.mp4"


def test_list_with_an_absent_entry_names_it(tmp_path):
    (tmp_path / "list.txt").write_text("absent.jpg\n")
    with pytest.raises(UserError, match=r"list\.txt: absent\.jpg: does not exist"):
        open_source(tmp_path / "list.txt")
    write_image(tmp_path / "a.png", 7)
    (tmp_path / "list.txt").write_text("absent.jpg\na.png\n")
    lines = []
    with open_source(tmp_path / "list.txt", warn=lines.append) as source:
        assert [Path(frame.path).name for frame in source] == ["a.png"]
    assert len(lines) == 1 and "list.txt: absent.jpg: does not exist" in lines[0]


def test_absent_list():
    with pytest.raises(UserError, match="absent.txt: No such file"):
        open_source("absent.txt")


def test_frames_of_images(tmp_path):
    write_image(tmp_path / "a.png", 7)
    write_image(tmp_path / "b.png", 9, size=(5, 6))
    with open_source(tmp_path) as source:
        first, second = source
    assert first.image.shape == (30, 40, 3) and first.image.dtype == np.uint8 and (first.image == 7).all()
    assert second.image.shape == (5, 6, 3)
    assert (first.kind, first.number, first.prefix) == ("image", 0, f"image 1/2 {tmp_path}/a.png: ")


def test_unreadable_image_is_one_warning(tmp_path):
    write_image(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"text")
    (tmp_path / "c.jpg").write_bytes(b"")
    write_image(tmp_path / "d.jpg")
    lines = []
    names = [frame.path[-5:] for frame in open_source(tmp_path, warn=lines.append)]
    assert names == ["a.jpg", "d.jpg"]
    assert len(lines) == 2 and "b.jpg skipped" in lines[0] and "c.jpg skipped" in lines[1]


# ---- videos


@pytest.mark.parametrize(
    "stride, values, fps",
    [
        (1, list(range(0, 200, 20)), 20),
        (3, [40, 100, 160], 20 / 3),  # two skipped, the third decoded; plays as long as the original
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


@pytest.mark.parametrize(
    "cut, stride, numbers",
    [
        (Cut(0.2), 1, range(5, 11)),  # at 20 frames a second
        (Cut(0, 0.2), 1, range(1, 5)),
        (Cut(0.1, 0.3), 2, [2, 3]),  # number and time are those of the whole video
        (Cut(0.449), 1, [10]),
    ],
)
def test_a_cut_of_a_video(tmp_path, cut, stride, numbers):
    write_video(tmp_path / "clip.mp4")
    whole = {frame.number: frame for frame in open_source(tmp_path / "clip.mp4", vid_stride=stride)}
    frames = list(open_source(tmp_path / "clip.mp4", vid_stride=stride, cut=cut, warn=pytest.fail))
    assert [frame.number for frame in frames] == list(numbers)
    for i, frame in enumerate(frames, 1):
        assert frame.time == whole[frame.number].time and np.array_equal(frame.image, whole[frame.number].image)
        assert f"({i}/{len(frames)})" in frame.prefix


def test_a_cut_needs_a_video_that_is_long_enough(tmp_path):
    write_video(tmp_path / "clip.mp4")
    lines = []
    assert not list(open_source(tmp_path / "clip.mp4", cut=Cut(60), warn=lines.append))
    assert lines == [f"{tmp_path}/clip.mp4 skipped: it ends after 0.5 s, before --start 60"]
    with pytest.raises(UserError, match="--start and --end are for video files"):
        open_source("rtsp://u:pw@127.0.0.1:1/x", cut=Cut(1))
    write_image(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="--start and --end are for video files"):
        open_source(tmp_path / "a.jpg", cut=Cut(1))


ROTATIONS = {  # a, b, c and d of the display matrix of an mp4: which corner the bright one of the file is shown in
    "none": ((1, 0, 0, 1), (48, 64), (0, 0)),
    "90": ((0, 1, -1, 0), (64, 48), (0, -1)),
    "180": ((-1, 0, 0, -1), (48, 64), (-1, -1)),
    "270": ((0, -1, 1, 0), (64, 48), (-1, 0)),
}


@pytest.mark.parametrize("matrix, shape, corner", ROTATIONS.values(), ids=ROTATIONS)
def test_a_rotated_video_is_shown_upright(tmp_path, matrix, shape, corner):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:16, :16] = 250
    file = write_video(tmp_path / "a.mp4", frames=3, images=[image] * 3)
    data = file.read_bytes()
    a, b, c, d = (value * 65536 for value in matrix)
    rows = [[a, b, 0], [c, d, 0], [0, 0, 1 << 30]]
    upright = [[65536, 0, 0], [0, 65536, 0], [0, 0, 1 << 30]]
    packed = [b"".join(struct.pack(">i", value) for row in entries for value in row) for entries in (upright, rows)]
    at = data.index(packed[0], data.index(b"tkhd"))
    file.write_bytes(data[:at] + packed[1] + data[at + 36 :])
    frames = list(open_source(file))
    assert len(frames) == 3 and all(frame.image.shape == (*shape, 3) for frame in frames)
    assert frames[0].image[corner].min() > 150 and frames[0].image[24, 24].max() < 60


def test_broken_videos_end_without_an_error(tmp_path):
    data = bytearray(write_video(tmp_path / "a.mp4", frames=12, noise=60).read_bytes())
    start = data.find(b"mdat") + 4
    data[start + 300 : start + 600] = bytes(300)
    (tmp_path / "a.mp4").write_bytes(data)  # damaged in the middle: the decoder conceals it or ends
    (tmp_path / "b.avi").write_bytes(b"no video at all")
    (tmp_path / "c.mp4").write_bytes(data[: start + 400])  # cut off, with the index at the end lost
    write_video(tmp_path / "d.mp4", frames=3)
    lines = []
    frames = list(open_source(tmp_path, warn=lines.append))
    assert [frame.path[-5:] for frame in frames].count("d.mp4") == 3
    assert not {frame.path[-5:] for frame in frames} & {"b.avi", "c.mp4"}
    assert [line.split()[0][-5:] for line in lines if "skipped" in line] == ["b.avi", "c.mp4"]


def test_video_that_ends_early_is_a_warning(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", frames=5)
    monkeypatch.setattr(sources, "frame_count", lambda capture: 8)
    lines = []
    assert len(list(open_source(tmp_path, warn=lines.append))) == 5
    assert lines == [f"{tmp_path}/a.mp4 ends early: 5 of 8 frames could be decoded"]


# ---- downloads


def test_http_files_are_downloaded_and_removed(tmp_path, monkeypatch):
    write_image(tmp_path / "site" / "my image.JPG")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with served(tmp_path / "site") as address, open_source(f"{address}/my%20image.JPG?x=1") as source:
        frames = list(source)
        file = source.images[0]
        assert file.endswith("/my image.JPG") and frames[0].image.shape == (30, 40, 3)
    assert not list((tmp_path / "work").iterdir())
    with pytest.raises(FileNotFoundError):
        Path(file).read_bytes()


def test_absent_http_file(tmp_path):
    with served(tmp_path) as address, pytest.raises(UserError, match="absent.jpg"):
        open_source(f"{address}/absent.jpg")


# ---- the screen


@pytest.fixture
def screens(monkeypatch):
    """Replace the package mss by a fake with a monitor of 200 x 100 to the right of another."""
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
def test_absent_screens(screens, text, message):
    with pytest.raises(UserError, match=message):
        ScreenSource(text)


def test_screen_without_mss_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mss", None)
    with pytest.raises(UserError, match="pip install mss"):
        open_source("screen")


def test_file_source_is_a_source_of_files(tmp_path):
    write_image(tmp_path / "a.jpg")
    assert isinstance(open_source(tmp_path), FileSource) and open_source(tmp_path).kind == "files"


def test_a_list_by_notepad_and_a_name_that_is_not_utf8(tmp_path):
    (tmp_path / "\udce9.png").write_bytes(write_image(tmp_path / "a.png").read_bytes())
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.png\r\n\xe9.png\r\n")
    assert files_of(tmp_path / "list.txt") == ["a.png", "\udce9.png"]
    (tmp_path / "list.txt").write_bytes("a.png".encode("utf-16"))
    with pytest.raises(UserError, match="not a text file in UTF-8"):
        open_source(tmp_path / "list.txt")


def test_a_stream_in_a_list_of_files(tmp_path):
    (tmp_path / "cams.txt").write_text("rtsp://user:secret@127.0.0.1:1/x\nz.jpg\n")
    with pytest.raises(UserError, match=r"rtsp://127.0.0.1:1/x is a stream.*list of their own") as error:
        open_source(tmp_path / "cams.txt")
    assert "secret" not in str(error.value)
