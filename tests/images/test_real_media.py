"""A real RTSP server that is killed and frozen, and videos of FFmpeg: variable rate, rotation, sound."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from utils.images.sound import has_sound
from utils.images.sources import open_source
from utils.images.streams import StreamSettings, StreamSource

pytestmark = pytest.mark.long
SYSTEM_PYTHON = "/usr/bin/python3"  # GStreamer's bindings belong to the system
NEEDED = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"


def has_gstreamer():
    return Path(SYSTEM_PYTHON).exists() and subprocess.run([SYSTEM_PYTHON, "-c", NEEDED]).returncode == 0


@pytest.fixture
def start(request):
    """Yield a function that starts the RTSP server at a size. All are killed at the end."""
    if sys.platform != "linux" or not has_gstreamer():
        pytest.skip("GStreamer's RTSP server is not installed: apt install gir1.2-gst-rtsp-server-1.0 python3-gi")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []

    def start_server(width, height):
        script = request.config.rootpath / "benchmarks" / "rtsp_server.py"
        command = [SYSTEM_PYTHON, str(script), str(port), str(width), str(height), "5"]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        assert running[-1].stdout.readline() == b"ready\n"
        return running[-1]

    start_server.address = f"rtsp://127.0.0.1:{port}/live"
    yield start_server
    for server in running:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.mark.parametrize("fault, says", [(signal.SIGKILL, "broke off"), (signal.SIGSTOP, "gave no frame for")])
def test_an_rtsp_stream_comes_back_with_another_size(start, fault, says):
    server, lines, shapes = start(160, 120), [], []
    settings = StreamSettings(timeout=5.0, first_pause=0.2)
    with StreamSource([start.address], settings=settings, warn=lines.append, report=lines.append) as source:
        for frame in source:
            shapes.append(frame.image.shape[:2])
            if len(shapes) == 5:
                server.send_signal(fault)
                while not lines:
                    time.sleep(0.1)
                server.kill()
                server.wait()
                start(320, 240)
            if shapes.count((240, 320)) == 3:
                break
    assert set(shapes) == {(120, 160), (240, 320)} and len(lines) == 2
    assert says in lines[0] and "is back after" in lines[1] and "320x240" in lines[1]


@pytest.fixture
def ffmpeg(tmp_path):
    """Return a function that makes a file in tmp_path with FFmpeg."""
    if not shutil.which("ffmpeg"):
        pytest.skip("ffmpeg is not installed")

    def make(name, *arguments):
        command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=4", *arguments]
        subprocess.run([*command, str(tmp_path / name)], check=True)
        return tmp_path / name

    return make


def test_times_of_a_variable_rate(ffmpeg):
    """Ten frames a second in the first two seconds, then one."""
    file = ffmpeg("vfr.mkv", "-vf", "select='lt(t,2)+not(mod(n,10))'", "-fps_mode", "vfr")
    times = [frame.time for frame in open_source(file)]
    assert np.allclose(times, [*np.arange(20) / 10, 2, 3], atol=0.002)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.avi", "a.mkv", "a.ts", "a.mpg", "a.wmv"])
def test_sound_is_found_in_every_format(ffmpeg, name):
    rate = ["-r", "25"] if name.endswith("mpg") else []
    assert not has_sound(ffmpeg(f"mute-{name}", *rate))
    assert has_sound(ffmpeg(name, "-f", "lavfi", "-i", "sine=duration=4", *rate, "-shortest"))
