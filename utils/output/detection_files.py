"""Files of a detection run: labels, a table, crops, images and videos, each source under a name of its own."""

import csv
import itertools
import re
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import cv2
import numpy as np

from utils.boxes import xyxy_to_xywh
from utils.errors import UserError
from utils.files import atomic_write
from utils.images.frames import Frame
from utils.output.drawing import draw_boxes, save_image

WRITABLE = frozenset(".bmp .jpeg .jpg .png .tif .tiff .webp".split())  # formats that OpenCV writes; others become .jpg
UNFIT_FOR_FILES = re.compile(r"[^\w.\- ]")


class OutputNames:
    """Unique names for the outputs of sources: a/cat.jpg, b/cat.jpg and cat.png do not overwrite each other."""

    def __init__(self) -> None:
        self._by_path: dict[str, str] = {}
        self._taken: set[str] = set()

    def stem(self, frame: Frame) -> str:
        """Return the source's own stem if it is still free, else with _2, _3, ... added."""
        if frame.path not in self._by_path:
            is_file = frame.kind in ("image", "video")
            stem = Path(frame.path).stem if is_file else UNFIT_FOR_FILES.sub("_", frame.path)
            candidates = itertools.chain([stem], (f"{stem}_{n}" for n in itertools.count(2)))
            free = next(name for name in candidates if not self._clashes(name, frame.kind))
            self._taken.add(free)
            self._by_path[frame.path] = free
        return self._by_path[frame.path]

    def _clashes(self, stem: str, kind: str) -> bool:
        """Return True if outputs of another source have this name.

        Frame 7 of a video `a` has the label file a_7.txt, which an image `a_7` may have claimed.
        """
        frames = re.compile(re.escape(stem) + r"_\d+")
        return stem in self._taken or (kind != "image" and any(frames.fullmatch(other) for other in self._taken))


@dataclass
class Outputs:
    """Writer of the files that --save-* and --nosave select. write() takes one frame, close() finishes videos.

    names: of the classes. Rows (n, 6) = x1, y1, x2, y2 in whole pixels of the image, confidence, class.
    """

    folder: Path
    names: dict[int, str]
    images: bool = True
    text: bool = False
    corners: bool = False
    confidence: bool = False
    table: bool = False
    crops: bool = False
    line_width: int = 3
    hide_labels: bool = False
    hide_conf: bool = False
    label_files: int = 0
    _stems: OutputNames = field(default_factory=OutputNames)
    _videos: dict[str, "VideoFile"] = field(default_factory=dict)
    _crop_numbers: Counter = field(default_factory=Counter)
    _crop_files: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._table: IO[str] | None = None
        if self.table:  # written frame by frame: a stream may never end
            self._table = open(self.folder / "predictions.csv", "w", newline="", encoding="utf-8")  # noqa: SIM115 close()
            csv.writer(self._table).writerow(["Image Name", "Prediction", "Confidence"])

    def write(self, frame: Frame, rows: np.ndarray) -> None:
        """Write the selected files of one frame below `folder`."""
        stem = self._stems.stem(frame)
        if self.text:
            self._write_text(frame, stem, rows)
        if self._table:
            name = stem + (Path(frame.path).suffix if frame.kind in ("image", "video") else "")
            cells = [[name, self.names[int(row[5])], f"{row[4]:.2f}"] for row in rows]
            csv.writer(self._table).writerows(cells)
        if self.crops:
            self._write_crops(frame.image, stem, rows)
        if self.images:
            self._write_image(frame, stem, self.draw(frame.image, rows))

    def draw(self, image: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return a copy of the image with its detections."""
        labels = [self._label(row) for row in rows]
        return draw_boxes(image, rows[:, :4], labels, rows[:, 5], line_width=self.line_width)

    def close(self) -> None:
        self._finish_videos()
        if self._table:
            self._table.close()

    def discard(self) -> None:
        """Remove the folder after close() if no frame was written. One with files of an earlier run stays."""
        if self._table:
            (self.folder / "predictions.csv").unlink()  # titles only
        with suppress(OSError):
            self.folder.rmdir()

    def _label(self, row: np.ndarray) -> str:
        if self.hide_labels:
            return ""
        name = self.names[int(row[5])]
        return name if self.hide_conf else f"{name} {row[4]:.2f}"

    def _write_text(self, frame: Frame, stem: str, rows: np.ndarray) -> None:
        """Write lines `class c1 c2 c3 c4 [confidence]`, coordinates in 0...1. Without detections there is no file."""
        file = self.folder / "labels" / f"{stem}{'' if frame.kind == 'image' else f'_{frame.number}'}.txt"
        if not len(rows):
            file.unlink(missing_ok=True)  # of an earlier run into the same folder
            return
        height, width = frame.image.shape[:2]
        boxes = rows[:, :4] if self.corners else xyxy_to_xywh(rows[:, :4])
        boxes = boxes / np.array([width, height, width, height])
        lines = []
        for row, box in zip(rows, boxes, strict=True):
            values = [int(row[5]), *box] + ([row[4]] if self.confidence else [])
            lines.append(" ".join(f"{value:g}" for value in values) + "\n")
        file.parent.mkdir(exist_ok=True)
        with atomic_write(file, sync=False) as stream:
            stream.write("".join(lines).encode())
        self.label_files += 1

    def _write_crops(self, image: np.ndarray, stem: str, rows: np.ndarray) -> None:
        """Write each object as crops/CLASS/STEM.jpg, STEM2.jpg, ..., with a margin of 1 % and 5 pixels on each side."""
        height, width = image.shape[:2]
        for row in rows:
            x1, y1, x2, y2 = row[:4].astype(float)
            margin_x, margin_y = (x2 - x1) * 0.01 + 5, (y2 - y1) * 0.01 + 5
            left, top = max(int(x1 - margin_x), 0), max(int(y1 - margin_y), 0)
            right, bottom = min(int(x2 + margin_x), width), min(int(y2 + margin_y), height)
            folder = self.folder / "crops" / (UNFIT_FOR_FILES.sub("_", self.names[int(row[5])]).strip(". ") or "_")
            folder.mkdir(parents=True, exist_ok=True)
            save_image(self._crop_file(folder, stem), image[top:bottom, left:right])

    def _crop_file(self, folder: Path, stem: str) -> Path:
        """Return the first file that this run has not written yet. Those of earlier runs are replaced."""
        while True:
            self._crop_numbers[folder, stem] += 1
            number = self._crop_numbers[folder, stem]
            file = folder / f"{stem}{number if number > 1 else ''}.jpg"
            if file not in self._crop_files:
                self._crop_files.add(file)
                return file

    def _write_image(self, frame: Frame, stem: str, drawn: np.ndarray) -> None:
        suffix = Path(frame.path).suffix if frame.kind == "image" else ".mp4"
        file = self.folder / (stem + (suffix if suffix.lower() in WRITABLE | {".mp4"} else ".jpg"))
        if file.resolve() == Path(frame.path).resolve():
            raise UserError(f"{file}: the result would overwrite its own source; choose another --name")
        if frame.kind == "image":
            save_image(file, drawn)
            return
        if frame.path not in self._videos:
            if frame.kind == "video":  # files come one after the other, streams all at once
                self._finish_videos()
            self._videos[frame.path] = VideoFile(file, frame.fps, drawn.shape[:2])
        self._videos[frame.path].write(drawn, frame.time)

    def _finish_videos(self) -> None:
        for video in self._videos.values():
            video.close()
        self._videos.clear()


class VideoFile:
    """Writer of an mp4 video with the size of its first frame. It plays as long as its source took."""

    def __init__(self, file: Path, fps: float, shape: tuple[int, int]):
        self._size, self._fps = (shape[1], shape[0]), fps
        self._previous: np.ndarray | None = None
        self._written = 0
        self._writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), fps, self._size)
        if not self._writer.isOpened():
            raise UserError(f"{file}: this OpenCV cannot write mp4 videos; use --nosave with --save-txt or --save-crop")

    def write(self, image: np.ndarray, time: float) -> None:
        """Show an image from `time` (seconds) on. The one before fills the gap if frames were skipped."""
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        due = round(time * self._fps)
        while self._previous is not None and self._written < due:
            self._add(self._previous)
        if self._written <= due or self._previous is None:
            self._add(image)
        self._previous = image

    def close(self) -> None:
        self._writer.release()

    def _add(self, image: np.ndarray) -> None:
        self._writer.write(image)
        self._written += 1


def can_show_windows() -> bool:
    """Return True if OpenCV can open a window.

    It is tried in a child process: without a display, Qt raises no error but ends the process.
    """
    script = "import cv2; cv2.namedWindow('test'); cv2.waitKey(1); cv2.destroyAllWindows()"
    try:
        return subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
