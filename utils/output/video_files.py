"""Videos that are written: as long as their sources, and of streams in segments that survive a kill."""

import itertools
import time
from pathlib import Path

import cv2
import numpy as np

from utils import console
from utils.errors import UserError

MPEG4_SIDE, MPEG4_RATE = 8190, 65_535  # pixels; greatest number of a frame rate's fraction
MAX_GAP = 60.0  # seconds


class VideoFile:
    """Writer of a video with the size of its first frame, which plays as long as its source took.

    Frames are shown from their time on at one rate, so that a source of variable rate keeps its duration. The file
    begins at the time `begin`. Frames larger than MPEG-4 allows are scaled down. UserError if OpenCV cannot write it.
    """

    def __init__(self, file: Path, fps: float, shape: tuple[int, int], *, begin: float = 0.0):
        self.file, self._fps, self._begin, self._shape = file, mpeg4_rate(fps), begin, shape
        gain = min(1.0, MPEG4_SIDE / max(shape))
        self._size = (max(1, int(shape[1] * gain)), max(1, int(shape[0] * gain)))
        if gain < 1:
            console.warn(f"{file}: {shape[1]}x{shape[0]} pixels are too many for mp4. Written at {self._size[0]} wide")
        self._previous: np.ndarray | None = None
        self._written, self._time, self._skipped = 0, 0.0, 0.0
        file.unlink(missing_ok=True)  # OpenCV would write into the file behind a link
        self._writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, self._size)
        if not self._writer.isOpened():
            size = f"{self._size[0]}x{self._size[1]}"
            raise UserError(f"{file}: OpenCV cannot write this video ({size} pixels, {self._fps:g} frames a second)")

    def write(self, image: np.ndarray, seconds: float) -> None:
        """Show an image from `seconds` on. The one before fills the gap if frames were skipped.

        A gap above MAX_GAP is not filled: a stream that stalled, or wrong times in a file.
        """
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        shown_at = seconds - self._begin
        if shown_at - self._time > MAX_GAP:
            self._skipped += shown_at - self._time
        self._time = shown_at
        due = round((shown_at - self._skipped) * self._fps)
        while self._previous is not None and self._written < due:
            self._add(self._previous)
        if self._written <= due or self._previous is None:
            self._add(image)
        self._previous = image

    def ends_before(self, seconds: float, shape: tuple[int, int], longest: float) -> bool:
        """Return True if a frame begins another segment of a recording.

        This is after the `longest` time of a segment, at another size, and after a gap that is not filled.
        """
        shown_at = seconds - self._begin
        return shown_at >= longest or shape != self._shape or shown_at - self._time > MAX_GAP

    def close(self) -> bool:
        """Finish the file. Return False if it cannot be read: OpenCV reports no full disk."""
        self._writer.release()
        capture = cv2.VideoCapture(str(self.file))
        readable = capture.isOpened()
        capture.release()
        return readable

    def _add(self, image: np.ndarray) -> None:
        self._writer.write(image)
        self._written += 1


def mpeg4_rate(fps: float) -> float:
    """Return the nearest frame rate that MPEG-4 can hold: a fraction of whole numbers up to 65535."""
    for digits in (3, 2, 1, 0):
        rate = round(fps, digits)
        if rate * 10**digits <= MPEG4_RATE:
            break
    return min(max(rate, 0.01), MPEG4_RATE)


def segment_file(folder: Path, stem: str, received: float | None) -> Path:
    """Return a new file for a segment of a recording, such as STEM_20261201T093000Z.mkv.

    Matroska is readable without an end, if the process is killed. An mp4 has its index there.
    """
    begun = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(received))
    names = itertools.chain([f"{stem}_{begun}"], (f"{stem}_{begun}_{number}" for number in itertools.count(2)))
    return next(file for name in names if not (file := folder / f"{name}.mkv").exists())
