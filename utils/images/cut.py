"""Part of a video that is read: from --start to --end."""

import math
import re
from dataclasses import dataclass

from utils.errors import UserError

TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)", re.ASCII)
TOLERANCE = 0.0005  # seconds: times in files are rounded to milliseconds, and sums of them to less


@dataclass(frozen=True)
class Cut:
    """Part of each video, in seconds since its first frame. A frame at `end` is outside."""

    start: float = 0.0
    end: float = math.inf

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise UserError(f"--end {self.end:g} s is not after --start {self.start:g} s: no frame is between them")

    @property
    def is_whole(self) -> bool:
        return self == Cut()

    def is_before(self, seconds: float) -> bool:
        """Return True if a frame at this time comes before the part."""
        return seconds < self.start - TOLERANCE

    def is_after(self, seconds: float) -> bool:
        """Return True if a frame at this time comes after the part."""
        return seconds >= self.end - TOLERANCE

    def num_frames(self, total: int, fps: float) -> int:
        """Return the expected number of frames of a video that has `total`, 0 if that is unknown (0)."""
        if not total or self.is_whole:
            return total
        return max(0, round((min(self.end, total / fps) - self.start) * fps))


def read_cut(start: str | None, end: str | None) -> Cut:
    """Return the part that the texts of --start and --end name: seconds, minutes:seconds or h:m:s."""
    return Cut(
        0.0 if start is None else _read_time(start, "--start"), math.inf if end is None else _read_time(end, "--end")
    )


def _read_time(text: str, flag: str) -> float:
    found = TIME.fullmatch(text.strip())
    hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, math.inf)
    if not found or (found[2] and seconds >= 60) or (found[1] and minutes >= 60):
        raise UserError(f"{flag} {text}: expected seconds or h:m:s, as in {flag} 90 or {flag} 0:01:30")
    return 3600 * hours + 60 * minutes + seconds
