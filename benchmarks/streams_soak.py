"""detect.py on three RTSP streams for an hour: one steady, one that comes late, one that is killed and frozen.

Needs GStreamer's RTSP server (benchmarks/rtsp_server.py) and Linux. It prints losses and returns, the frames of each
stream, the resident memory over time, and whether every recorded segment plays.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parents[1]
SERVER = ROOT / "benchmarks" / "rtsp_server.py"
SIZES = ["160 120", "320 240", "240 180"]
FPS = 5
STREAM_TIMEOUT = 8.0
LATE_SECONDS = 60.0  # after which the late stream begins


class Server:
    """RTSP server of one stream, which can be killed, frozen and started with another size."""

    def __init__(self, port: int, python: str):
        self.address = f"rtsp://127.0.0.1:{port}/live"
        self._port, self._python, self._starts = port, python, 0
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        size = SIZES[self._starts % len(SIZES)].split()
        self._starts += 1
        command = [self._python, str(SERVER), str(self._port), *size, str(FPS)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGSTOP)


class Detection:
    """detect.py as a process, with its frames by stream, its warnings and its memory."""

    def __init__(self, arguments: list[str]):
        command = [sys.executable, str(ROOT / "detect.py"), *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)
        self.frames: Counter[str] = Counter()
        self.messages: list[str] = []
        self._threads = [threading.Thread(target=work) for work in (self._count_frames, self._keep_messages)]
        for thread in self._threads:
            thread.start()

    def _count_frames(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            frame = json.loads(line)
            self.frames[f"{frame['source']} {frame['width']}x{frame['height']}"] += 1

    def _keep_messages(self) -> None:
        assert self.process.stderr
        self.messages += list(self.process.stderr)

    def megabytes(self) -> float:
        """Return the resident memory."""
        status = Path("/proc", str(self.process.pid), "status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self) -> int:
        """End it as Ctrl-C does, and return its exit code."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=120)
        for thread in self._threads:
            thread.join()
        return code


def main() -> None:
    """Run the soak and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, help="model")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the soak")
    parser.add_argument("--port", type=int, default=8650, help="first of three ports")
    parser.add_argument("--python", default="/usr/bin/python3", help="Python that has gi and GStreamer's RTSP server")
    args = parser.parse_args()
    servers = [Server(args.port + i, args.python) for i in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder, "cameras.streams")
        listed.write_text("".join(f"{server.address}\n" for server in servers))
        flags = f"--weights {args.weights} --source {listed} --imgsz 160 --json --quiet --save-csv --segment-minutes 5"
        flags += f" --stream-timeout {STREAM_TIMEOUT:g} --project {folder}/runs"
        try:
            soak(servers, flags.split(), 60 * args.minutes, Path(folder, "runs", "exp"))
        finally:
            for server in servers:
                server.kill()


def soak(servers: list[Server], flags: list[str], seconds: float, results: Path) -> None:
    """Run detect.py, disturb one stream again and again, and print what came of it."""
    steady, late, disturbed = servers
    steady.start()
    disturbed.start()
    time.sleep(3)
    detection, rng = Detection(flags), random.Random(0)
    counts: Counter[str] = Counter()
    began, memory = time.monotonic(), []
    timeline = disturb(disturbed, rng, counts)
    next_event, late_begun = next(timeline), False
    while (passed := time.monotonic() - began) < seconds and detection.process.poll() is None:
        if not late_begun and passed > LATE_SECONDS:
            late.start()
            late_begun = True
        if passed > next_event:
            next_event = passed + next(timeline)
        if not memory or passed - memory[-1][0] >= 30:
            memory.append((passed, detection.megabytes()))
        time.sleep(0.5)
    running = detection.process.poll() is None
    code = detection.stop() if running else detection.process.returncode
    report(detection, memory, counts, results, code)


def disturb(server: Server, rng: random.Random, counts: Counter[str]):
    """Kill or freeze a server in turn, and start it again. Yield the seconds until the next step."""
    while True:
        yield rng.uniform(60, 120)  # in peace
        if counts.total() % 2:
            server.freeze()
            counts["freezes"] += 1
        else:
            server.kill()
            counts["kills"] += 1
        yield rng.uniform(15, 45)
        server.kill()
        server.start()


def report(detection: Detection, memory: list[tuple[float, float]], counts: Counter[str], results: Path, code: int):
    """Print the figures."""
    lost = sum("Reconnecting" in line for line in detection.messages)
    back = sum("is back" in line for line in detection.messages)
    print(f"exit code {code} after Ctrl-C; {counts['kills']} kills, {counts['freezes']} freezes")
    print(f"{lost} losses and {back} returns reported in {len(detection.messages)} lines on stderr")
    for key, number in sorted(detection.frames.items()):
        print(f"{number} frames of {key}")
    for passed, megabytes in memory[:: max(1, len(memory) // 12)] + memory[-1:]:
        print(f"{passed / 60:.1f} min: {megabytes:.1f} MB resident")
    rows = (results / "predictions.csv").read_bytes().count(b"\n") - 1
    segments = sorted(results.glob("*.mkv"))
    lengths = [num_frames(file) for file in segments]
    print(f"{rows} rows in predictions.csv")
    print(f"{len(segments)} segments, {lengths.count(0)} unreadable, {sum(lengths)} frames in them")
    print("".join(detection.messages), end="", file=sys.stderr)


def num_frames(file: Path) -> int:
    """Return the number of frames that can be decoded."""
    capture, number = cv2.VideoCapture(str(file)), 0
    while capture.grab():
        number += 1
    return number


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets jobs in the background ignore it
    main()
