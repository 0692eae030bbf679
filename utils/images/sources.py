"""Sources of images to detect on: files, folders, globs, lists, videos, URLs, cameras, streams, the screen."""

import codecs
import glob
import itertools
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np

from utils import console
from utils.addresses import remove_credentials
from utils.download import fetch
from utils.errors import UserError
from utils.files import read_regular, retry_reading
from utils.images.cut import Cut
from utils.images.frames import Frame, FrameClock, Source, frame_count, frame_rate, grab, retrieve
from utils.images.header import MAX_BYTES
from utils.images.read import read_image
from utils.images.streams import StreamSettings, StreamSource
from utils.images.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES

WHOLE = Cut()
KNOWN = IMAGE_SUFFIXES | VIDEO_SUFFIXES
STREAM_SCHEMES = ("rtsp", "rtmp", "http", "https")
MAX_LIST_BYTES = 1 << 30
SCREEN_FPS = 10.0  # of the video that is written; detection on a CPU is seldom faster
ACCEPTED = (
    "an image or video file, a folder, a glob such as 'images/*.jpg', a .txt list of those, an http(s) URL, "
    "an rtsp/rtmp/http stream, a .streams or .txt list of streams, a camera number such as 0, or 'screen'"
)
Warn = Callable[[str], None]


def open_source(
    source: str | Path,
    *,
    vid_stride: int = 1,
    cut: Cut = WHOLE,
    streams: StreamSettings | None = None,
    warn: Warn | None = None,
) -> Source:
    """Open the source that a text names.

    vid_stride: read every k-th frame of videos and streams. `cut`: the part of videos that is read. `warn` is called
    with one line per problem. UserError if nothing readable is found.
    """
    if vid_stride < 1:
        raise UserError(f"--vid-stride {vid_stride}: must be 1 (every frame) or more")
    text = str(source).strip()
    addresses = _stream_addresses(text)
    if addresses is None and text.split()[:1] != ["screen"]:
        files = FileSource(text, vid_stride=vid_stride, cut=cut, warn=warn or console.warn)
        if files.videos or cut.is_whole:
            return files
        files.close()
    if not cut.is_whole:
        raise UserError(f"--start and --end are for video files: --source {remove_credentials(text)} has none")
    if addresses is None:
        return ScreenSource(text)
    reporting: dict[str, Any] = {"warn": warn, "report": warn} if warn else {}
    return StreamSource(addresses, vid_stride=vid_stride, settings=streams, **reporting)


def _stream_addresses(text: str) -> list[str] | None:
    """Return the streams that a text names, by itself or as a list of them. None if it names something else."""
    if text.isdigit() or is_stream(text):
        return [text]
    if text.lower().endswith(".streams"):
        return _read_list(Path(text))
    if text.lower().endswith(".txt") and Path(text).is_file():
        entries = _read_list(Path(text))
        if entries and all(map(is_stream, entries)):
            return entries
    return None


def is_stream(text: str) -> bool:
    """Return True if an address is read live: rtsp and rtmp always, http(s) unless it names an image or video."""
    parts = urlsplit(text)
    scheme = parts.scheme.lower()
    return scheme in STREAM_SCHEMES and not (scheme.startswith("http") and _suffix(parts.path) in KNOWN)


# ---- files


class FileSource(Source):
    """Images, then videos, from a file, folder, glob, http(s) file or .txt list. An unreadable one is one warning."""

    def __init__(self, text: str, *, vid_stride: int = 1, cut: Cut = WHOLE, warn: Warn = console.warn):
        self._vid_stride, self._cut, self._warn = vid_stride, cut, warn
        self._temporary: tempfile.TemporaryDirectory | None = None
        try:
            files = list(dict.fromkeys(self._expand(text)))
        except UserError:
            self.close()
            raise
        self.images = [file for file in files if _suffix(file) in IMAGE_SUFFIXES]
        self.videos = [file for file in files if _suffix(file) in VIDEO_SUFFIXES]
        self.files = [*files, text]  # with the list itself, if it is one
        if not files:
            kinds = " ".join(sorted(IMAGE_SUFFIXES)), " ".join(sorted(VIDEO_SUFFIXES))
            raise UserError(
                f"--source {remove_credentials(text)}: no image ({kinds[0]}) and no video ({kinds[1]}) found there"
            )

    def __iter__(self) -> Iterator[Frame]:
        for i, path in enumerate(self.images, 1):
            try:
                image = read_image(path, self.pixels)
            except (UserError, OSError) as error:
                self._warn(f"{path} skipped: {_reason(error, path)}")
                continue
            yield Frame(image, path, "image", f"image {i}/{len(self.images)} {path}: ")
        for i, path in enumerate(self.videos, 1):
            yield from self._video(path, f"video {i}/{len(self.videos)}")

    def close(self) -> None:
        """Remove downloaded files."""
        if self._temporary:
            self._temporary.cleanup()

    def _expand(self, text: str) -> list[str]:
        if text.lower().endswith(".txt"):
            return self._listed(Path(text))
        return self._entry(text)

    def _listed(self, listed_in: Path) -> list[str]:
        """Return the files of a list. An entry without files is a warning, or an error if no entry has any."""
        files, problems = [], []
        for entry in sorted(_read_list(listed_in)):
            try:
                files += self._entry(entry, listed_in)
            except UserError as error:
                problems.append(error)
        if problems and not files:
            raise problems[0]
        for error in problems:
            self._warn(f"skipped: {error}")
        return files

    def _entry(self, text: str, listed_in: Path | None = None) -> list[str]:
        """Return the absolute paths of the images and videos that one entry names, sorted.

        Entries of a list may be relative to the working folder or to the list.
        """
        if urlsplit(text).scheme.lower() in ("http", "https") and not is_stream(text):
            return [self._download(text)]
        if is_stream(text):
            raise UserError(
                f"{listed_in}: {remove_credentials(text)} is a stream; write streams into a list of their own"
            )
        candidates = [Path(os.path.expanduser(text))] + ([listed_in.parent / text] if listed_in else [])
        for path in candidates:
            if path.is_dir():
                return _known_files(_list_folder(path))
            if path.is_file() and _suffix(path) in KNOWN:
                return _known_files([path])
            found = glob.glob(str(path), recursive=True) if glob.has_magic(text) else []
            if found:
                return _known_files(found)
        origin = f"{listed_in}: " if listed_in else "--source "
        problem = "this kind of file cannot be read" if candidates[0].exists() else "does not exist"
        raise UserError(f"{origin}{remove_credentials(text)}: {problem}; give {ACCEPTED}")

    def _download(self, url: str) -> str:
        self._temporary = self._temporary or tempfile.TemporaryDirectory(prefix="anchorage-")
        name = Path(unquote(urlsplit(url).path)).name
        # A folder for each, so that files of the same name do not overwrite each other.
        folder = Path(tempfile.mkdtemp(dir=self._temporary.name))
        limit = MAX_BYTES if _suffix(name) in IMAGE_SUFFIXES else None
        return str(fetch(urlsplit(url).geturl(), folder / name, keep=False, max_bytes=limit))

    def _video(self, path: str, prefix: str) -> Iterator[Frame]:
        """Yield every k-th frame of the cut until the first that cannot be decoded.

        Frames before the cut are decoded too: only so are times and numbers exact in every format.
        """
        capture = cv2.VideoCapture(path)
        try:
            if not capture.isOpened():
                self._warn(f"{path} skipped: cannot be opened as a video")
                return
            fps = frame_rate(capture) / self._vid_stride
            total = frame_count(capture) // self._vid_stride
            expected = self._cut.num_frames(total, fps) or "?"
            number, yielded, clock = 0, 0, FrameClock(1 / fps)
            while grab(capture, self._vid_stride):
                seconds = clock.tick(capture)
                if self._cut.is_after(seconds):
                    return
                image = None if self._cut.is_before(seconds) else retrieve(capture)
                if image is None and not self._cut.is_before(seconds):
                    break
                number += 1
                if image is not None:
                    yielded += 1
                    line = f"{prefix} ({yielded}/{expected}) {path}: "
                    yield Frame(image, path, "video", line, number, fps, seconds)
            # Some files store their length in seconds, and frames of different lengths make fewer than fps says.
            missing = total / fps - clock.seconds - clock.last_gap
            if number < total and (not number or missing > clock.last_gap / 2):
                self._warn(f"{path} ends early: {number} of {total} frames could be decoded")
            elif not yielded and number:
                end = clock.seconds + clock.last_gap
                self._warn(f"{path} skipped: it ends after {end:.1f} s, before --start {self._cut.start:g}")
        finally:
            capture.release()


def _reason(error: Exception, path: str) -> str:
    """Return an error's text without the path, which the caller's line has already."""
    return str(error).removeprefix(f"{path}: ")


# ---- the screen


class ScreenSource(Source):
    """Screenshots of `screen [n] [left top width height]`: monitor n (0: all together), or an area in its pixels."""

    kind = "screen"

    def __init__(self, text: str):
        words = text.split()[1:]
        if len(words) not in (0, 1, 4, 5) or not all(re.fullmatch(r"\d+", word) for word in words):
            raise UserError(f"--source {text!r}: expected 'screen', 'screen N', or 'screen N LEFT TOP WIDTH HEIGHT'")
        numbers = [int(word) for word in words]
        try:
            import mss  # pyrefly: ignore[missing-import] (an optional package)
        except ImportError:
            raise UserError("--source screen needs the package mss: pip install mss") from None
        self._grabber = mss.mss()
        self.monitor = numbers[0] if len(numbers) in (1, 5) else 0
        monitors = self._grabber.monitors
        if self.monitor >= len(monitors):
            last = len(monitors) - 1
            raise UserError(f"--source {text!r}: there is no screen {self.monitor}; screens are 0 to {last}")
        whole = monitors[self.monitor]
        left, top, width, height = numbers[-4:] if len(numbers) >= 4 else (0, 0, whole["width"], whole["height"])
        self.area = {"left": whole["left"] + left, "top": whole["top"] + top, "width": width, "height": height}

    def __iter__(self) -> Iterator[Frame]:
        place = ",".join(str(self.area[key]) for key in ("left", "top", "width", "height"))
        prefix = f"screen {self.monitor} (LTWH): {place}: "
        started = time.monotonic()
        for number in itertools.count(1):
            shown_at = time.monotonic() - started
            image = np.ascontiguousarray(np.asarray(self._grabber.grab(self.area))[:, :, :3])  # BGRA -> BGR
            yield Frame(image, f"screen_{self.monitor}", "screen", prefix, number, SCREEN_FPS, shown_at, time.time())

    def close(self) -> None:
        """Release the screen."""
        self._grabber.close()


# ---- text


def _suffix(path: str | Path) -> str:
    return Path(path).suffix.lower()


def _list_folder(folder: Path) -> list[Path]:
    """Return the entries of a folder. Raises UserError if it cannot be listed."""
    try:
        return retry_reading(lambda: list(folder.iterdir()))
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}; give {ACCEPTED}") from error


def _known_files(paths: Iterable[str | Path]) -> list[str]:
    """Return the absolute paths of the images and videos among `paths`, sorted."""
    return [str(Path(path).absolute()) for path in sorted(paths) if Path(path).is_file() and _suffix(path) in KNOWN]


def _read_list(file: Path) -> list[str]:
    """Return the lines of a list of sources, without blank ones and # comments."""
    try:
        data = read_regular(file, MAX_LIST_BYTES)
    except OSError as error:
        raise UserError(f"--source {file}: {error.strerror}; give a text file with one source a line") from error
    if b"\0" in data:
        raise UserError(f"--source {file}: is not a text file in UTF-8; give a text file with one source a line")
    # Names that are not UTF-8 stay the bytes that they are. An editor may have put a mark at the start.
    lines = data.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
