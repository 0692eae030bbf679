"""Cameras and network streams as sources of frames."""

import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from utils import console, environment
from utils.addresses import remove_credentials
from utils.errors import UserError
from utils.images.frames import Frame, FrameClock, Source, frame_count, frame_rate, iso_utc, next_image

OPEN_SECONDS = 20.0  # in which a stream has to answer: FFmpeg looks at its first seconds to find what it is
MAX_OPENED_AT_ONCE = 16
JOIN_SECONDS = 5.0
Report = Callable[[str], None]


warn_always = partial(console.warn, repeat=True)


@dataclass(frozen=True)
class StreamSettings:
    """Settings of when a stream is lost, and of how often it is opened again."""

    timeout: float = 15.0  # seconds without a frame after which it is lost
    # Attempts in a row. None: without limit, but one stream at least has to answer at the start.
    retries: int | None = None
    first_pause: float = 1.0  # seconds before the first attempt
    longest_pause: float = 60.0

    def __post_init__(self) -> None:
        if not (self.timeout > 0 and math.isfinite(self.timeout)):
            raise UserError(f"--stream-timeout {self.timeout:g}: expected seconds, as in --stream-timeout 15")
        if self.retries is not None and self.retries < 0:
            raise UserError(f"--stream-retries {self.retries}: must be 0 (none) or more; without the flag no limit")


class Backoff:
    """Pauses between attempts: each twice the one before up to the longest, less up to half of it by chance.

    Chance keeps programs that lost one server at the same moment from coming back at the same moment.
    """

    def __init__(self, first: float, longest: float, rng: random.Random | None = None):
        self._first, self._longest, self._rng = first, longest, rng or random.Random()
        self.reset()

    def reset(self) -> None:
        """Begin with the first pause again."""
        self._pause = self._first

    def next(self) -> float:
        """Return the next pause in seconds."""
        pause, self._pause = self._pause, min(2 * self._pause, self._longest)
        return pause * self._rng.uniform(0.5, 1)


class FreshFrame(NamedTuple):
    """Frame of a stream that has not been yielded yet."""

    stream: int
    decoded: int  # number of frames decoded so far
    image: np.ndarray
    seconds: float  # since the first frame of the stream
    received: float  # Unix time


class StreamSource(Source):
    """Cameras and network streams. A daemon thread per stream keeps only its newest frame, so detection never lags.

    Frames come in rounds over the streams that have a new one, and a stalled stream delays no other. A lost stream is
    opened again after growing pauses. Iteration ends when every stream has ended: a served file at its end, a live
    stream after `settings.retries` attempts. `warn` gets a line for each loss, `report` one for each return.
    """

    kind = "stream"

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        vid_stride: int = 1,
        settings: StreamSettings | None = None,
        warn: Report = warn_always,
        report: Report = console.result,
    ):
        if not addresses:
            raise UserError("--source: the list of streams is empty; write one address or camera number a line")
        self._log_level = _silence_decoders()
        self._changed = threading.Condition()
        settings = settings or StreamSettings()
        self._readers = [
            _Reader(address, self._changed, settings, stride=vid_stride, warn=warn, report=report)
            for address in addresses
        ]
        try:
            self._open(settings)
        except BaseException:
            self.close()
            raise

    def _open(self, settings: StreamSettings) -> None:
        """Open all streams. Raises UserError if none answers, unless `retries` were given."""
        network = [reader for reader in self._readers if not reader.is_camera]
        with ThreadPoolExecutor(MAX_OPENED_AT_ONCE) as pool:
            list(pool.map(_Reader.open, network))
        for reader in self._readers:
            if reader.is_camera:  # in this thread: macOS grants permission in the main thread only
                reader.open()
        absent = [reader for reader in self._readers if not reader.is_open]
        if len(absent) == len(self._readers) and not settings.retries:
            number = f"none of {len(absent)} streams can be opened, the first: " if len(absent) > 1 else ""
            raise UserError(
                f"--source: {number}{absent[0].problem}; check that it runs (a web page is no stream: give the video's "
                "address), or let --stream-retries 1000 wait for it"
            )
        for reader in absent:
            reader.report_loss(reader.problem)

    def __iter__(self) -> Iterator[Frame]:
        return itertools.chain.from_iterable(self.rounds())

    def rounds(self) -> Iterator[list[Frame]]:
        for reader in self._readers:
            reader.start()  # not before: loading the model may take longer than a short stream lasts
        seen = [0] * len(self._readers)
        yielded = [0] * len(self._readers)
        while fresh := self._wait_for_frames(seen):
            frames = []
            for i, decoded, image, shown_at, received in fresh:
                reader = self._readers[i]
                seen[i] = decoded
                line = f"{i}: {reader.shown}: "
                frames.append(Frame(image, reader.shown, "stream", line, yielded[i], reader.fps, shown_at, received))
                yielded[i] += 1
            yield frames

    def close(self) -> None:
        """End the threads and release the devices."""
        for reader in self._readers:
            reader.stop.set()
        deadline = time.monotonic() + JOIN_SECONDS
        for reader in self._readers:
            if reader.is_alive():
                reader.join(timeout=max(0, deadline - time.monotonic()))
            elif reader.ident is None:
                reader.release()
        cv2.utils.logging.setLogLevel(self._log_level)

    def _wait_for_frames(self, seen: list[int]) -> list[FreshFrame]:
        """Wait for frames beyond those `seen` per stream, and return them: none if every stream has ended."""

        def fresh() -> list[FreshFrame]:
            return [
                FreshFrame(i, reader.decoded, reader.image, reader.seconds, reader.received)
                for i, reader in enumerate(self._readers)
                if reader.decoded > seen[i] and reader.image is not None
            ]

        with self._changed:
            while not fresh() and not all(reader.ended for reader in self._readers):
                self._changed.wait(timeout=0.5)  # on some systems Ctrl-C cannot interrupt a wait without a timeout
            return fresh()


class _Reader(threading.Thread):
    """Thread that reads one stream.

    Under the lock `changed`, `image` is the newest frame, `seconds` its time and `received` its Unix time. `decoded` is
    the number of frames, and `ended` True after the last one. `seconds` is that of the file, or of the arrival if the
    stream is live.
    """

    def __init__(
        self,
        address: str,
        changed: threading.Condition,
        settings: StreamSettings,
        *,
        stride: int,
        warn: Report,
        report: Report,
    ):
        super().__init__(daemon=True, name="stream")
        self._address, self.shown, self.stop = address, remove_credentials(address), threading.Event()
        self.is_camera = address.isdigit()
        self.image: np.ndarray | None = None
        self.decoded, self.ended, self.seconds, self.received = 0, False, 0.0, 0.0
        self.fps = 0.0
        self._changed, self._stride, self._warn, self._report = changed, stride, warn, report
        self._settings, self._backoff = settings, Backoff(settings.first_pause, settings.longest_pause)
        self._capture = cv2.VideoCapture()
        self._remaining: float = math.inf  # frames, infinite for a live stream
        self._clock, self._first_at = FrameClock(1.0), 0.0
        self._lost_at: float | None = None
        self._attempts = 0  # since the last frame

    # ---- opening

    @property
    def is_open(self) -> bool:
        return self._capture.isOpened()

    @property
    def problem(self) -> str:
        """Reason to report if it cannot be opened."""
        return f"there is no camera {self.shown}" if self.is_camera else f"stream {self.shown} cannot be opened"

    def open(self) -> None:
        """Open the stream. The first time that it answers, find its rate and its length."""
        capture = _open_capture(self._address, self._settings.timeout)
        if self.stop.is_set() or not capture.isOpened():
            capture.release()
            return
        self._capture = capture
        if not self.fps:
            self._remaining = frame_count(capture) // self._stride or math.inf
            self._clock = FrameClock(self._stride / frame_rate(capture))
        self.fps = frame_rate(capture) / self._stride

    def release(self) -> None:
        """Release the device of a thread that was never started."""
        self._capture.release()

    # ---- reading

    def run(self) -> None:
        """Read frames until the stream ends, is lost for good, or is stopped."""
        try:
            while not self.stop.is_set() and (self.is_open or self._reopen()):
                self._read()
                if self._remaining <= 0:
                    return
        finally:
            self._capture.release()
            with self._changed:
                self.ended = True
                self._changed.notify_all()

    def _read(self) -> None:
        """Publish frames until there is none. Nothing remains of a stream that has ended, as a served file does."""
        frames, opened_at = 0, time.monotonic()
        last_at = opened_at
        while self._remaining > 0 and not self.stop.is_set():
            image = next_image(self._capture, self._stride)
            if image is None:
                break
            if self._attempts and self._is_still(image):
                self._remaining = 0
                return
            if not frames:
                self._report_return(image)
            frames, last_at = frames + 1, time.monotonic()
            self._publish(image)
        self._capture.release()
        if self._remaining <= 0 or self.stop.is_set():
            return
        if math.isfinite(self._remaining):
            self._warn(f"stream {self.shown} has ended")
            self._remaining = 0
            return
        if frames == 1:  # an address that gives one image at a time is not lost, and is read again at once
            self._backoff.reset()
            return
        now = time.monotonic()
        if now - opened_at > self._settings.longest_pause:
            self._backoff.reset()  # not at the first frame: a stream that fails again and again is opened less often
        frozen = now - last_at > 0.9 * self._settings.timeout
        what = f"gave no frame for {now - last_at:.0f} s" if frozen else "broke off"
        self.report_loss(f"stream {self.shown} {what}")

    def _publish(self, image: np.ndarray) -> None:
        with self._changed:
            live, now = math.isinf(self._remaining), time.monotonic()
            self._first_at = self._first_at or now
            self.seconds = now - self._first_at if live else self._clock.tick(self._capture)
            self.image, self.received = image, time.time()
            self.decoded += 1
            self._changed.notify_all()
        self._remaining -= 1
        if math.isfinite(self._remaining):  # a served file could be read faster than it plays
            self.stop.wait(1 / self.fps)

    def _is_still(self, image: np.ndarray) -> bool:
        """Return True if the address, opened again after its only frame, gives that frame: a single image."""
        return self.decoded == 1 and self.image is not None and np.array_equal(image, self.image)

    # ---- losing and finding it

    def report_loss(self, what: str) -> None:
        """Warn that the stream is lost, once until it gives a frame."""
        if self._lost_at is None and self._settings.retries != 0:
            self._lost_at = time.monotonic()
            self._warn(f"{_now()} {what}. Reconnecting")

    def _report_return(self, image: np.ndarray) -> None:
        if self._lost_at is not None:
            height, width = image.shape[:2]
            away = time.monotonic() - self._lost_at
            self._report(f"{_now()} stream {self.shown} is back after {away:.0f} s: {width}x{height} pixels")
        self._lost_at, self._attempts = None, 0

    def _reopen(self) -> bool:
        """Open the stream again, after a pause before each attempt. Return False after the last one or a stop."""
        limit = math.inf if self._settings.retries is None else self._settings.retries
        while self._attempts < limit and not self.stop.wait(self._backoff.next()):
            self._attempts += 1
            self.open()
            if self.is_open:
                return True
            self.report_loss(self.problem)
        if not self.stop.is_set():
            number = f" after {self._attempts} attempts" if self._attempts else ""
            self._warn(f"{_now()} stream {self.shown} has ended{number}")
        return False


def _now() -> str:
    return iso_utc(time.time(), "seconds")


def _silence_decoders() -> int:
    """Drop what OpenCV and FFmpeg print at each attempt and damaged frame. Return OpenCV's level before."""
    environment.set_default("OPENCV_FFMPEG_LOGLEVEL", "-8")
    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return before


def _open_capture(address: str, timeout: float) -> cv2.VideoCapture:
    if address.isdigit():
        return cv2.VideoCapture(int(address))
    limits = {cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: max(timeout, OPEN_SECONDS), cv2.CAP_PROP_READ_TIMEOUT_MSEC: timeout}
    parameters = [number for key, seconds in limits.items() for number in (key, round(1000 * seconds))]
    return cv2.VideoCapture(address, cv2.CAP_ANY, parameters)
