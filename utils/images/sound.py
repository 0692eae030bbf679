"""Sound in video files, which OpenCV neither reads nor reports: found by the marks of its track in the header."""

import re
from pathlib import Path
from typing import IO

HEAD_BYTES = 1 << 20  # in which all formats but mp4 list their tracks
MAX_INDEX_BYTES = 1 << 28
MP4_TRACK = re.compile(rb"hdlr.{8}soun", re.DOTALL)
ELEMENTARY_STREAM = rb"\x00\x00\x01[\xbd\xc0-\xdf]"  # packet headers of MPEG audio, and of AC-3 and the like
TRACKS = {
    "avi": rb"strh.{4}auds",
    "mkv": rb"A_(?:AAC|AC3|EAC3|DTS|FLAC|MPEG|MS|OPUS|PCM|TRUEHD|VORBIS)",
    "asf": rb"\x40\x9e\x69\xf8\x4d\x5b\xcf\x11\xa8\xfd\x00\x80\x5f\x5c\x44\x2b",
    "wmv": rb"\x40\x9e\x69\xf8\x4d\x5b\xcf\x11\xa8\xfd\x00\x80\x5f\x5c\x44\x2b",
    "mpg": ELEMENTARY_STREAM,
    "mpeg": ELEMENTARY_STREAM,
    "ts": ELEMENTARY_STREAM,
}


def has_sound(path: str | Path) -> bool:
    """Return True if a video file has a track of sound. False if it cannot be read, or its format is unknown."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    try:
        with open(path, "rb") as file:
            if suffix in ("mp4", "m4v", "mov"):
                return bool(MP4_TRACK.search(_mp4_index(file)))
            pattern = TRACKS.get(suffix)
            return bool(pattern and re.search(pattern, file.read(HEAD_BYTES), re.DOTALL))
    except OSError:
        return False


def _mp4_index(file: IO[bytes]) -> bytes:
    """Return the box `moov`, which lists the tracks, b"" if there is none."""
    while len(header := file.read(16)) >= 8:
        size, kind, begin = int.from_bytes(header[:4], "big"), header[4:8], file.tell() - len(header)
        if size == 1:  # its size is in 64 bits behind
            size = int.from_bytes(header[8:16], "big")
        if kind == b"moov":
            file.seek(begin)
            return file.read(min(size or MAX_INDEX_BYTES, MAX_INDEX_BYTES))
        if size < 8:  # 0: up to the end
            break
        file.seek(begin + size)
    return b""
