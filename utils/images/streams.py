"""Cameras and network streams as sources of frames."""

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from utils import console
from utils.addresses import remove_credentials
from utils.errors import UserError
from utils.images.frames import Frame, FrameClock, Source, frame_count, frame_rate, next_image


class FreshFrame(NamedTuple):
    """Frame of a stream that has not been yielded yet."""

    stream: int
    decoded: int  # number of frames decoded so far
    image: np.ndarray
    seconds: float  # since the first frame of the stream


class StreamSource(Source):
    """Cameras and network streams. A daemon thread per stream keeps only its newest frame, so detection never lags.

    Frames come in rounds over the streams that have a new one, and a stalled stream delays no other. A stream that
    fails is reopened after `retry_pause` seconds, at most `retries` times in a row. Iteration ends when every stream
    has ended.
    """

    kind = "stream"

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        vid_stride: int = 1,
        warn: Callable[[str], None] = console.warn,
        retries: int = 10,
        retry_pause: float = 1.0,
    ):
        if not addresses:
            raise UserError("--source: the list of streams is empty; write one address or camera number a line")
        self._changed = threading.Condition()
        self._readers: list[_Reader] = []
        try:
            for address in addresses:
                self._readers.append(_Reader(address, self._changed, vid_stride, warn, retries, retry_pause))
        except UserError:
            self.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        return itertools.chain.from_iterable(self.rounds())

    def rounds(self) -> Iterator[list[Frame]]:
        """Yield lists of the newest frames, at most one per stream."""
        for reader in self._readers:
            reader.start()  # not before: loading the model may take longer than a short stream lasts
        seen = [0] * len(self._readers)
        yielded = [0] * len(self._readers)
        while fresh := self._wait_for_frames(seen):
            frames = []
            for i, decoded, image, shown_at in fresh:
                reader = self._readers[i]
                seen[i] = decoded
                line = f"{i}: {reader.shown}: "
                frames.append(Frame(image, reader.shown, "stream", line, yielded[i], reader.fps, shown_at))
                yielded[i] += 1
            yield frames

    def close(self) -> None:
        """End the threads and release the devices."""
        for reader in self._readers:
            reader.stop.set()
        for reader in self._readers:
            if reader.is_alive():
                reader.join(timeout=5)
            elif reader.ident is None:
                reader.release()

    def _wait_for_frames(self, seen: list[int]) -> list[FreshFrame]:
        """Wait for frames beyond those `seen` per stream, and return them: none if every stream has ended."""

        def fresh() -> list[FreshFrame]:
            return [
                FreshFrame(i, reader.decoded, reader.image, reader.seconds)
                for i, reader in enumerate(self._readers)
                if reader.decoded > seen[i] and reader.image is not None
            ]

        with self._changed:
            while not fresh() and not all(reader.ended for reader in self._readers):
                self._changed.wait(timeout=0.5)  # on some systems Ctrl-C cannot interrupt a wait without a timeout
            return fresh()


class _Reader(threading.Thread):
    """Thread that reads one stream.

    Under the lock `changed`, `image` is the newest frame, `seconds` its time, `decoded` the number of frames, and
    `ended` True after the last one. The time is that of the file, or of the arrival if the stream is live.
    """

    def __init__(
        self,
        address: str,
        changed: threading.Condition,
        stride: int,
        warn: Callable[[str], None],
        retries: int,
        retry_pause: float,
    ):
        super().__init__(daemon=True, name="stream")
        self._address, self.shown, self.stop = address, remove_credentials(address), threading.Event()
        self.image: np.ndarray | None = None
        self.decoded, self.ended, self.seconds = 0, False, 0.0
        self._changed, self._stride, self._warn = changed, stride, warn
        self._retries, self._retry_pause = retries, retry_pause
        self._capture = _open_capture(address)
        if not self._capture.isOpened():
            what = f"there is no camera {address}" if address.isdigit() else f"stream {self.shown} cannot be opened"
            raise UserError(f"--source: {what}; check that it runs (a web page is no stream: give the video's address)")
        self.fps = frame_rate(self._capture) / stride
        self._remaining: float = frame_count(self._capture) // stride or math.inf  # frames, infinite for a live stream
        self._clock, self._first_at = FrameClock(1 / self.fps), 0.0

    def run(self) -> None:
        """Read frames until the stream ends, fails too often, or is stopped."""
        failures = 0
        try:
            while self._remaining > 0 and not self.stop.is_set():
                image = next_image(self._capture, self._stride)
                if image is not None and failures and self._is_still(image):
                    return
                if image is not None:
                    self._publish(image)
                    failures = 0
                elif math.isfinite(self._remaining) or failures == self._retries:
                    attempts = f" after {failures} attempts" if failures else ""
                    self._warn(f"stream {self.shown} has ended{attempts}")
                    return
                else:
                    failures += 1
                    self._reopen(failures)
        finally:
            self._capture.release()
            with self._changed:
                self.ended = True
                self._changed.notify_all()

    def release(self) -> None:
        """Release the device of a thread that was never started."""
        self._capture.release()

    def _publish(self, image: np.ndarray) -> None:
        with self._changed:
            live, now = math.isinf(self._remaining), time.monotonic()
            self._first_at = self._first_at or now
            self.seconds = now - self._first_at if live else self._clock.tick(self._capture)
            self.image = image
            self.decoded += 1
            self._changed.notify_all()
        self._remaining -= 1
        if math.isfinite(self._remaining):  # a served file could be read faster than it plays
            self.stop.wait(1 / self.fps)

    def _is_still(self, image: np.ndarray) -> bool:
        """Return True if the address, opened again after its only frame, gives that frame: a single image."""
        return self.decoded == 1 and self.image is not None and np.array_equal(image, self.image)

    def _reopen(self, attempt: int) -> None:
        if attempt == 1:
            self._warn(f"stream {self.shown} does not answer, opening it again")
        self._capture.release()
        self.stop.wait(self._retry_pause)
        self._capture = _open_capture(self._address)


def _open_capture(address: str) -> cv2.VideoCapture:
    return cv2.VideoCapture(int(address)) if address.isdigit() else cv2.VideoCapture(address)
