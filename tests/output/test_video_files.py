"""Videos that are written: as long as their sources, and of streams in segments that survive a kill."""

import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest

from utils.images.frames import Frame
from utils.output.detection_files import Outputs
from utils.output.video_files import VideoFile, mpeg4_rate, segment_file

IMAGE = np.full((100, 200, 3), 120, dtype=np.uint8)
NOTHING = np.zeros((0, 6), dtype=np.float32)
BEGUN = 1_796_000_000.0  # 2026-11-30T00:53:20Z


@pytest.mark.parametrize(
    "times, values",
    [
        ([], []),
        ([0.0, 0.1, 0.2], [0, 1, 2]),  # at the rate of the file: one frame each
        ([0.0, 0.1, 0.4, 0.5], [0, 1, 1, 1, 2, 3]),  # two were skipped: the one before stays
        ([0.0, 0.04, 0.06, 0.1], [0, 2]),  # faster than the file: time counts
        ([0.3, 0.4], [0, 0, 0, 0, 1]),  # the first comes late
    ],
)
def test_a_video_plays_as_long_as_it_took(tmp_path, times, values):
    video = VideoFile(tmp_path / "x.mp4", 10.0, (48, 64))
    for i, time in enumerate(times):
        video.write(np.full((48, 64, 3), 40 * i, dtype=np.uint8), time)
    video.close()
    capture, seen = cv2.VideoCapture(str(tmp_path / "x.mp4")), []
    while (read := capture.read())[0]:
        seen.append(round(float(read[1].mean()) / 40))
    assert seen == values


@pytest.mark.parametrize(
    "fps, rate", [(25, 25), (30000 / 1001, 29.97), (119.88, 119.88), (999.97, 1000), (1e6, 65535), (1e-9, 0.01)]
)
def test_frame_rates_that_mp4_can_hold(tmp_path, fps, rate):
    video = VideoFile(tmp_path / "x.mp4", fps, (48, 64))
    assert mpeg4_rate(fps) == pytest.approx(rate)
    video.write(IMAGE[:48, :64], 0.0)
    assert video.close()


@pytest.mark.parametrize("shape, written", [((16, 8192), (8190, 14)), ((9000, 18), (16, 8190))])
def test_a_video_that_is_too_large_for_mp4_is_scaled(tmp_path, shape, written):
    video = VideoFile(tmp_path / "x.mp4", 5.0, shape)
    video.write(np.zeros((*shape, 3), np.uint8), 0.0)
    assert video.close()
    capture = cv2.VideoCapture(str(tmp_path / "x.mp4"))
    assert (capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)) == written


def test_a_gap_of_hours_is_not_filled(tmp_path):
    video = VideoFile(tmp_path / "x.mp4", 5.0, (48, 64))
    for time in (0.0, 0.2, 86_400.0, 86_400.2):
        video.write(IMAGE[:48, :64], time)
    assert video.close() and video._written == 3


def num_frames(file):
    capture, number = cv2.VideoCapture(str(file)), 0
    while capture.grab():
        number += 1
    return number


def record(outputs, times, sizes=None, path="rtsp://a"):
    """Write a frame of a stream at each of `times`."""
    for number, seconds in enumerate(times):
        height, width = sizes[number] if sizes else (48, 64)
        image = np.full((height, width, 3), 100, np.uint8)
        outputs.write(Frame(image, path, "stream", "", number, 5.0, seconds, BEGUN + seconds), NOTHING)


@pytest.mark.parametrize(
    "times, sizes, segments",
    [
        ([0.0, 0.2, 0.4], None, {"005320": 3}),
        ([0.0, 0.2, 3.0, 3.2, 6.1], None, {"005320": 2, "005323": 2, "005326": 1}),  # three seconds each
        ([0.0, 0.2, 0.4, 0.6], [(48, 64)] * 2 + [(32, 48)] * 2, {"005320": 2, "005320Z_2": 2}),  # another size
        ([0.0, 0.2, 1.2], None, {"005320": 7}),  # a short loss: the last image stays
        ([500.0, 500.2], None, {"010140": 2}),  # begins with its first frame
    ],
)
def test_a_stream_is_recorded_in_segments(tmp_path, times, sizes, segments):
    outputs = Outputs(tmp_path, {}, segment_minutes=0.05)
    record(outputs, times, sizes)
    outputs.close()
    files = {f"rtsp___a_20261130T{name}{'' if 'Z' in name else 'Z'}.mkv": count for name, count in segments.items()}
    assert {file.name: num_frames(file) for file in tmp_path.glob("*.mkv")} == files and not outputs.unwritten


def test_a_cut_of_a_video_begins_with_its_first_frame(tmp_path):
    outputs = Outputs(tmp_path, {})
    for number, seconds in enumerate((90.0, 90.2, 90.4), 451):
        outputs.write(Frame(IMAGE, "/a/cat.avi", "video", "", number, 5.0, seconds), NOTHING)
    outputs.close()
    assert num_frames(tmp_path / "cat.mp4") == 3


def test_a_long_loss_begins_another_segment(tmp_path):
    outputs = Outputs(tmp_path, {}, segment_minutes=60)
    record(outputs, [0.0, 0.2, 100.0])
    outputs.close()
    assert sorted(map(num_frames, tmp_path.glob("*.mkv"))) == [1, 2]


def test_a_segment_never_replaces_a_file(tmp_path):
    first = segment_file(tmp_path, "0", BEGUN)
    first.write_bytes(b"")
    assert segment_file(tmp_path, "0", BEGUN) == first.with_stem(f"{first.stem}_2")


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from pathlib import Path
from utils.output.video_files import VideoFile, segment_file
rng = np.random.default_rng(0)
for begin in (0, 60):
    video = VideoFile(segment_file(Path(sys.argv[1]), "0", 1_796_000_000 + begin), 5.0, (120, 160), begin=begin)
    for number in range(100):
        video.write(rng.integers(0, 255, (120, 160, 3), np.uint8), begin + number / 5)
    if not begin:
        video.close()
os.kill(os.getpid(), 9)
"""


def test_segments_survive_a_kill(tmp_path, request):
    """The finished one is whole. The last 256 KiB of the open one are not on the disk yet."""
    code = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(request.config.rootpath)]).returncode
    assert code == -signal.SIGKILL
    whole, unfinished = map(num_frames, sorted(tmp_path.glob("*.mkv")))
    assert whole == 100 and 20 <= unfinished < 100
