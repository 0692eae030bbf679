"""Frames to detect on, the interface of the sources that yield them, and access to video captures."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import cv2
import numpy as np

from utils.pixel_format import RGB, PixelFormat

DEFAULT_FPS = 30.0


@dataclass(frozen=True)
class Frame:
    """One image to detect on."""

    image: np.ndarray  # as read: BGR uint8 (H, W, 3), of a file in the pixel format of its source
    path: str  # file, address or device that it is from
    kind: str  # "image", "video", "stream" or "screen"
    prefix: str  # beginning of a log line about it
    number: int = 0  # frame within its source: from 1 for videos and the screen, from 0 for streams; 0 for an image
    fps: float = 0.0  # yielded frames per second, that is after vid_stride; 0 for an image
    # Seconds since the first frame. Streams and the screen skip frames if detection is slower than they are.
    time: float = 0.0
    received: float | None = None  # Unix time at which a frame of a stream or the screen arrived

    @property
    def utc(self) -> str | None:
        """Time of arrival as ISO 8601, such as 2026-12-01T09:30:00.125Z. None for files."""
        return None if self.received is None else iso_utc(self.received)


class Source:
    """Iterable of Frame. `close()` (or the end of a `with` block) releases devices, threads and temporary files.

    kind: "files", "stream" or "screen". The latter two continue until they are stopped.
    """

    kind = "files"
    files: Sequence[str] = ()  # those that are read
    images: Sequence[str] = ()  # those of them that are images
    videos: Sequence[str] = ()
    pixels: PixelFormat = RGB  # that image files are decoded to

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError

    def rounds(self) -> Iterator[list[Frame]]:
        """Yield the same frames in lists of those available at the same moment, at most one per stream."""
        return ([frame] for frame in self)

    def close(self) -> None:
        """Release what the source holds: nothing, unless a subclass does."""

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def iso_utc(seconds: float, timespec: str = "milliseconds") -> str:
    """Return a Unix time as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec=timespec).replace("+00:00", "Z")


def next_image(capture: cv2.VideoCapture, stride: int) -> np.ndarray | None:
    """Skip stride - 1 frames and decode the next. Return None at the end, or if the data is broken."""
    return retrieve(capture) if grab(capture, stride) else None


def grab(capture: cv2.VideoCapture, stride: int) -> bool:
    """Advance by `stride` frames. Return False at the end, or if the data is broken."""
    try:
        return all(capture.grab() for _ in range(stride))
    except cv2.error:
        return False


def retrieve(capture: cv2.VideoCapture) -> np.ndarray | None:
    """Return the image of the present frame, None if its data is broken."""
    try:
        ok, image = capture.retrieve()
    except cv2.error:
        return None
    return image if ok and image is not None and image.size else None


class FrameClock:
    """Time of the frames of a capture, in seconds since the first one.

    It is read from the file. Frames without a time, or with one that is not later, come one `interval` after the
    frame before.
    """

    def __init__(self, interval: float):
        self.interval = self.last_gap = interval
        self.seconds = 0.0
        self._position: float | None = None

    def tick(self, capture: cv2.VideoCapture) -> float:
        """Return the time of the frame that was just decoded."""
        position = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if self._position is not None:
            gap = position - self._position
            self.last_gap = gap if math.isfinite(gap) and gap > 0 else self.interval
            self.seconds += self.last_gap
        self._position = position
        return self.seconds


def frame_rate(capture: cv2.VideoCapture) -> float:
    """Return the reported frame rate, or 30 if it is unknown or impossible."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS


def frame_count(capture: cv2.VideoCapture) -> int:
    """Return the number of frames, or 0 if unknown. Live sources report nonsense such as large negative numbers."""
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(count) if math.isfinite(count) and 0 < count < 1e9 else 0
