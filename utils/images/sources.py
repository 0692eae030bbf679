"""Where pictures to detect on come from: files, folders, globs, lists, videos, URLs, cameras, streams, the screen."""

import glob
import itertools
import math
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np

from utils.download import fetch
from utils.errors import UserError
from utils.images.read import read_image
from utils.images.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES

KNOWN = IMAGE_SUFFIXES | VIDEO_SUFFIXES
STREAM_SCHEMES = ("rtsp", "rtmp", "http", "https")
DEFAULT_FPS = 30.0
SCREEN_FPS = 10.0  # of the video that is written; detection on a CPU seldom sees more
ACCEPTED = (
    "a picture or video file, a folder, a glob such as 'pictures/*.jpg', a .txt list of those, an http(s) URL, "
    "an rtsp/rtmp/http stream, a .streams list of streams, a camera number such as 0, or 'screen'"
)
Report = Callable[[str], None]


@dataclass(frozen=True)
class Frame:
    """One picture to detect on.

    image: BGR uint8 (H, W, 3) as read. path: the file, address or device it is from. number: frame within that source,
    from 1 for videos and the screen and from 0 for streams; 0 for a picture. fps: frames a second of what is yielded,
    vid_stride already taken into account; 0 for a picture. time: when it is shown, in seconds from the first frame;
    streams and the screen leave frames out where detection is slower than they are.
    """

    image: np.ndarray
    path: str
    kind: str  # "image", "video", "stream" or "screen"
    prefix: str  # how a log line about it begins
    number: int = 0
    fps: float = 0.0
    time: float = 0.0


class Source:
    """Iterates Frame; close() (or leaving a `with` block) releases devices, threads and temporary files.

    rounds(): the same frames in lists, of those that are there at the same moment: one from each stream at most.
    kind: "files", "stream" or "screen"; the latter two go on until they are stopped.
    """

    kind = "files"

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError

    def rounds(self) -> Iterator[list[Frame]]:
        return ([frame] for frame in self)

    def close(self) -> None:
        """Nothing to release, unless a subclass has something."""

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def open_source(source: str | Path, *, vid_stride: int = 1, report: Report = print) -> Source:
    """Decide what kind of source a text names, and open it. Warnings are single lines given to `report`.

    vid_stride: every k-th frame of videos and streams is read. UserError when nothing that can be read is there.
    """
    if vid_stride < 1:
        raise UserError(f"--vid-stride {vid_stride}: must be 1 (every frame) or more")
    text = str(source).strip()
    if text.split()[:1] == ["screen"]:
        return ScreenSource(text)
    if text.isdigit() or is_stream(text):
        return StreamSource([text], vid_stride=vid_stride, report=report)
    if text.lower().endswith(".streams"):
        return StreamSource(_read_list(Path(text)), vid_stride=vid_stride, report=report)
    return FileSource(text, vid_stride=vid_stride, report=report)


def is_stream(text: str) -> bool:
    """Whether an address is read as it comes: any rtsp or rtmp one, and http(s) unless it names a picture or video."""
    parts = urlsplit(text)
    scheme = parts.scheme.lower()
    return scheme in STREAM_SCHEMES and not (scheme.startswith("http") and _suffix(parts.path) in KNOWN)


# ---- files


class FileSource(Source):
    """Pictures, then videos, from a file, folder, glob, http(s) file or .txt list. Unreadable ones cost one warning."""

    def __init__(self, text: str, *, vid_stride: int = 1, report: Report = print):
        self._vid_stride, self._report = vid_stride, report
        self._temporary: tempfile.TemporaryDirectory | None = None
        try:
            files = list(dict.fromkeys(self._expand(text)))
        except UserError:
            self.close()
            raise
        self.images = [file for file in files if _suffix(file) in IMAGE_SUFFIXES]
        self.videos = [file for file in files if _suffix(file) in VIDEO_SUFFIXES]
        if not files:
            kinds = " ".join(sorted(IMAGE_SUFFIXES)), " ".join(sorted(VIDEO_SUFFIXES))
            raise UserError(f"--source {text}: no picture ({kinds[0]}) and no video ({kinds[1]}) found there")

    def __iter__(self) -> Iterator[Frame]:
        for i, path in enumerate(self.images, 1):
            try:
                image = read_image(path)
            except (UserError, OSError) as error:
                self._report(f"warning: {path} skipped: {_reason(error, path)}")
                continue
            yield Frame(image, path, "image", f"image {i}/{len(self.images)} {path}: ")
        for i, path in enumerate(self.videos, 1):
            yield from self._video(path, f"video {i}/{len(self.videos)}")

    def close(self) -> None:
        if self._temporary:
            self._temporary.cleanup()

    def _expand(self, text: str) -> list[str]:
        if text.lower().endswith(".txt"):
            return self._listed(Path(text))
        return self._entry(text)

    def _listed(self, listed_in: Path) -> list[str]:
        """The files of a list; an entry that names none costs a line, unless they are all like that."""
        files, problems = [], []
        for entry in sorted(_read_list(listed_in)):
            try:
                files += self._entry(entry, listed_in)
            except UserError as error:
                problems.append(error)
        if problems and not files:
            raise problems[0]
        for error in problems:
            self._report(f"warning: skipped: {error}")
        return files

    def _entry(self, text: str, listed_in: Path | None = None) -> list[str]:
        """Absolute paths of the files of known kinds that one entry names, sorted.

        A list's entries may be relative to the working folder or to the list.
        """
        if urlsplit(text).scheme.lower() in ("http", "https") and not is_stream(text):
            return [self._download(text)]
        candidates = [Path(text).expanduser()] + ([listed_in.parent / text] if listed_in else [])
        for path in candidates:
            if path.is_dir():
                return _known_files(path.iterdir())
            if path.is_file() and _suffix(path) in KNOWN:
                return _known_files([path])
            found = glob.glob(str(path), recursive=True) if glob.has_magic(text) else []
            if found:
                return _known_files(found)
        origin = f"{listed_in}: {text}" if listed_in else f"--source {text}"
        problem = "this kind of file cannot be read" if candidates[0].exists() else "does not exist"
        raise UserError(f"{origin}: {problem}; give {ACCEPTED}")

    def _download(self, url: str) -> str:
        self._temporary = self._temporary or tempfile.TemporaryDirectory(prefix="anchorage-")
        name = Path(unquote(urlsplit(url).path)).name
        # A folder each, so that two addresses that end alike do not overwrite each other.
        folder = Path(tempfile.mkdtemp(dir=self._temporary.name))
        return str(fetch(urlsplit(url).geturl(), folder / name, keep=False))

    def _video(self, path: str, prefix: str) -> Iterator[Frame]:
        """Every k-th frame until the first that cannot be decoded."""
        capture = cv2.VideoCapture(path)
        try:
            if not capture.isOpened():
                self._report(f"warning: {path} skipped: cannot be opened as a video")
                return
            fps = _fps(capture) / self._vid_stride
            total = _frame_count(capture) // self._vid_stride
            number = 0
            while (image := _next_image(capture, self._vid_stride)) is not None:
                number += 1
                line = f"{prefix} ({number}/{total or '?'}) {path}: "
                yield Frame(image, path, "video", line, number, fps, (number - 1) / fps)
            if number < total:
                self._report(f"warning: {path} ends early: {number} of {total} frames could be decoded")
        finally:
            capture.release()


def _next_image(capture: cv2.VideoCapture, stride: int) -> np.ndarray | None:
    """Pass over stride - 1 frames and decode the next; None at the end or where the data is broken."""
    for _ in range(stride):
        if not capture.grab():
            return None
    ok, image = capture.retrieve()
    return image if ok and image is not None and image.size else None


def _fps(capture: cv2.VideoCapture) -> float:
    """Reported frame rate; 30 where a source does not know its own."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS


def _frame_count(capture: cv2.VideoCapture) -> int:
    """Number of frames, 0 where unknown (live sources report nonsense such as large negative numbers)."""
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(count) if math.isfinite(count) and 0 < count < 1e9 else 0


def _reason(error: Exception, path: str) -> str:
    """An error's text without the path that the caller's line begins with."""
    return str(error).removeprefix(f"{path}: ")


# ---- cameras and streams


class StreamSource(Source):
    """Cameras and network streams. A daemon thread per stream keeps its newest frame only: detection never lags behind.

    Frames come in rounds over the streams that have a new one; a stalled stream holds up no other. A stream that fails
    is opened again after `retry_pause` seconds, `retries` times in a row; iteration ends when every stream has ended.
    """

    kind = "stream"

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        vid_stride: int = 1,
        report: Report = print,
        retries: int = 10,
        retry_pause: float = 1.0,
    ):
        if not addresses:
            raise UserError("--source: the list of streams is empty; write one address or camera number a line")
        self._changed = threading.Condition()
        self._readers: list[_Reader] = []
        try:
            for address in addresses:
                self._readers.append(_Reader(address, self._changed, vid_stride, report, retries, retry_pause))
        except UserError:
            self.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        return itertools.chain.from_iterable(self.rounds())

    def rounds(self) -> Iterator[list[Frame]]:
        for reader in self._readers:
            reader.start()  # not before: loading the model may take longer than a short stream lasts
        seen = [0] * len(self._readers)
        yielded = [0] * len(self._readers)
        while fresh := self._fresh(seen):
            frames = []
            for i, decoded, image in fresh:
                reader = self._readers[i]
                seen[i] = decoded
                line, shown_at = f"{i}: {reader.shown}: ", (decoded - 1) / reader.fps
                frames.append(Frame(image, reader.shown, "stream", line, yielded[i], reader.fps, shown_at))
                yielded[i] += 1
            yield frames

    def close(self) -> None:
        for reader in self._readers:
            reader.stop.set()
        for reader in self._readers:
            if reader.is_alive():
                reader.join(timeout=5)
            elif reader.ident is None:
                reader.release()

    def _fresh(self, seen: list[int]) -> list[tuple[int, int, np.ndarray]]:
        """Wait for unseen frames: (stream, number of the decoded frame, picture); empty when every stream has ended."""

        def unseen() -> list[int]:
            return [i for i, reader in enumerate(self._readers) if reader.decoded > seen[i]]

        with self._changed:
            while not unseen() and not all(reader.ended for reader in self._readers):
                self._changed.wait(timeout=0.5)  # a wait without limit could not be interrupted everywhere
            return [(i, self._readers[i].decoded, self._readers[i].image) for i in unseen()]


class _Reader(threading.Thread):
    """Reads one stream. Under the lock `changed`: image is the newest frame, decoded counts them, ended: no more."""

    def __init__(
        self, address: str, changed: threading.Condition, stride: int, report: Report, retries: int, retry_pause: float
    ):
        super().__init__(daemon=True, name="stream")
        self._address, self.shown, self.stop = address, without_password(address), threading.Event()
        self.image: np.ndarray | None = None
        self.decoded, self.ended = 0, False
        self._changed, self._stride, self._report = changed, stride, report
        self._retries, self._retry_pause = retries, retry_pause
        self._capture = _open_capture(address)
        if not self._capture.isOpened():
            what = f"there is no camera {address}" if address.isdigit() else f"stream {self.shown} cannot be opened"
            raise UserError(f"--source: {what}; check that it runs (a web page is no stream: give the video's address)")
        self.fps = _fps(self._capture) / stride
        self._remaining = _frame_count(self._capture) // stride or math.inf

    def run(self) -> None:
        failures = 0
        try:
            while self._remaining > 0 and not self.stop.is_set():
                image = _next_image(self._capture, self._stride)
                if image is not None:
                    self._publish(image)
                    failures = 0
                elif math.isfinite(self._remaining) or failures == self._retries:
                    attempts = f" after {failures} attempts" if failures else ""
                    self._report(f"warning: stream {self.shown} has ended{attempts}")
                    return
                else:
                    failures += 1
                    self._open_again(failures)
        finally:
            self._capture.release()
            with self._changed:
                self.ended = True
                self._changed.notify_all()

    def release(self) -> None:
        """Let go of the device, where the thread has not been started."""
        self._capture.release()

    def _publish(self, image: np.ndarray) -> None:
        with self._changed:
            self.image = image
            self.decoded += 1
            self._changed.notify_all()
        self._remaining -= 1
        if math.isfinite(self._remaining):  # a file that is served could be read faster than it plays: keep its time
            self.stop.wait(1 / self.fps)

    def _open_again(self, attempt: int) -> None:
        if attempt == 1:
            self._report(f"warning: stream {self.shown} does not answer, opening it again")
        self._capture.release()
        self.stop.wait(self._retry_pause)
        self._capture = _open_capture(self._address)


def _open_capture(address: str) -> cv2.VideoCapture:
    return cv2.VideoCapture(int(address) if address.isdigit() else address)


# ---- the screen


class ScreenSource(Source):
    """`screen [n] [left top width height]`: monitor n (0: all of them together), or a part of it in its own pixels."""

    kind = "screen"

    def __init__(self, text: str):
        words = text.split()[1:]
        if len(words) not in (0, 1, 4, 5) or not all(re.fullmatch(r"\d+", word) for word in words):
            raise UserError(f"--source {text!r}: expected 'screen', 'screen N', or 'screen N LEFT TOP WIDTH HEIGHT'")
        numbers = [int(word) for word in words]
        try:
            import mss
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
            yield Frame(image, f"screen_{self.monitor}", "screen", prefix, number, SCREEN_FPS, shown_at)

    def close(self) -> None:
        self._grabber.close()


# ---- texts


def without_password(address: str) -> str:
    """An address as it may be shown and used in file names: without the user:password@ that cameras often need."""
    scheme, separator, rest = address.partition("://")
    return scheme + separator + re.sub(r"^[^/@]*@", "", rest)


def _suffix(path: str | Path) -> str:
    return Path(path).suffix.lower()


def _known_files(paths: Iterable[str | Path]) -> list[str]:
    """Absolute paths of the pictures and videos among `paths`, sorted."""
    return [str(Path(path).absolute()) for path in sorted(paths) if Path(path).is_file() and _suffix(path) in KNOWN]


def _read_list(file: Path) -> list[str]:
    """Lines of a list of sources, without blank ones and # comments."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not a text file"
        raise UserError(f"--source {file}: {reason}; give a text file with one source a line") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
