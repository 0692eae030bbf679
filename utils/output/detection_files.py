"""Files of a detection run: labels, a table, crops, images and videos, each source under a name of its own."""

import csv
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO

import cv2
import numpy as np

from utils import console
from utils.boxes import xyxy_to_xywh
from utils.detections import Detections
from utils.errors import UserError
from utils.files import atomic_write, named_errors
from utils.images.frames import Frame
from utils.output.annotation_files import AnnotationFile
from utils.output.drawing import crop_with_margin, draw_boxes, save_image
from utils.output.result_names import (
    MAX_STEM_BYTES,
    UNFIT_FOR_FILES,
    OutputNames,
    RenamedTable,
    class_folders,
    spreadsheet_cell,
)
from utils.temporary_files import shorten_name

MPEG4_SIDE, MPEG4_RATE = 8190, 65_535  # pixels; greatest number of a frame rate's fraction
MAX_GAP = 60.0  # seconds
WRITABLE = frozenset(".bmp .jpeg .jpg .png .tif .tiff .webp".split())  # formats that OpenCV writes; others become .jpg


@dataclass
class Outputs:
    """Writer of the files that --save-* and --nosave select. write() takes one frame, close() finishes videos.

    names: of the classes. Rows (n, 6) = x1, y1, x2, y2 in whole pixels of the image, confidence, class. With `tracks`
    a seventh column is the id of the object, 0 for none.
    sources: files that no result may replace. `unwritten` are the videos that could not be written.
    """

    folder: Path
    names: dict[int, str]
    images: bool = True
    text: bool = False
    corners: bool = False
    confidence: bool = False
    table: bool = False
    crops: bool = False
    tracks: bool = False
    line_width: int = 3
    hide_labels: bool = False
    hide_conf: bool = False
    sources: Sequence[str] = ()
    annotations: AnnotationFile | None = None  # for a labelling tool, of images only
    label_files: int = 0
    unwritten: list[Path] = field(default_factory=list)
    _videos: dict[str, "VideoFile | None"] = field(default_factory=dict)
    _crop_numbers: Counter = field(default_factory=Counter)
    _crop_files: set[Path] = field(default_factory=set)
    _crop_folders: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.renamed = RenamedTable(self.folder)
        writes = self.images or self.text or self.table or self.crops or self.annotations
        self._stems = OutputNames(self.renamed if writes else None)
        self._class_folders = class_folders(self.names)
        self._table: IO[str] | None = None
        if self.table:  # written frame by frame: a stream may never end
            file = self.folder / "predictions.csv"
            # A name that is not UTF-8 is written with \udc.. in place of such bytes.
            self._table = open(file, "w", newline="", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 close()
            csv.writer(self._table).writerow(["Image Name", "Prediction", "Confidence", *["Track ID"] * self.tracks])

    def write(self, frame: Frame, rows: np.ndarray) -> None:
        """Write the selected files of one frame below `folder`."""
        stem = self._stems.stem(frame)
        if self.text:
            self._write_text(frame, stem, rows)
        if self._table:
            with named_errors(self._table.name):
                self._write_table(self._table, frame, stem, rows)
        if self.crops:
            self._write_crops(frame, stem, rows)
        if self.images:
            self._write_image(frame, stem, self.draw(frame.image, rows))

    def annotate(self, frame: Frame, found: Detections) -> None:
        """Add the detections of an image to the file for a labelling tool. Frames of videos are skipped."""
        if self.annotations and frame.kind == "image":
            self.annotations.write(frame.path, self._stems.stem(frame), found)

    def _write_table(self, table: IO[str], frame: Frame, stem: str, rows: np.ndarray) -> None:
        name = stem + (Path(frame.path).suffix if frame.kind in ("image", "video") else "")
        texts = [[spreadsheet_cell(name), spreadsheet_cell(self.names[int(row[5])])] for row in rows]
        csv.writer(table).writerows(
            [*cells, f"{row[4]:.2f}", *track_text(row)] for cells, row in zip(texts, rows, strict=True)
        )
        table.flush()  # the process may be killed

    def draw(self, image: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return a copy of the image with its detections."""
        labels = [self._label(row) for row in rows]
        return draw_boxes(image, rows[:, :4], labels, rows[:, 5], line_width=self.line_width)

    def close(self) -> None:
        self._finish_videos()
        if self.annotations:
            self.annotations.close()
        if self._table:
            with named_errors(self._table.name):
                self._table.close()
                os.stat(self._table.name)  # raises if the folder was removed, where writing goes on unseen

    def discard(self) -> None:
        """Remove the folder after close() if no frame was written. One with files of an earlier run stays."""
        if self._table:
            (self.folder / "predictions.csv").unlink()  # titles only
        with suppress(OSError):
            self.folder.rmdir()

    def _label(self, row: np.ndarray) -> str:
        if self.hide_labels:
            return ""
        name = " ".join([self.names[int(row[5])], *(f"#{track}" for track in track_text(row) if track)])
        return name if self.hide_conf else f"{name} {row[4]:.2f}"

    def _write_text(self, frame: Frame, stem: str, rows: np.ndarray) -> None:
        """Write lines `class c1 c2 c3 c4 [confidence] [track]`, coordinates in 0...1.

        Without detections there is no file.
        """
        file = self.folder / "labels" / f"{stem}{'' if frame.kind == 'image' else f'_{frame.number}'}.txt"
        self._protect_sources(file, frame)
        if not len(rows):
            file.unlink(missing_ok=True)  # of an earlier run into the same folder
            return
        height, width = frame.image.shape[:2]
        boxes = rows[:, :4] if self.corners else xyxy_to_xywh(rows[:, :4])
        boxes = boxes / np.array([width, height, width, height])
        lines = []
        for row, box in zip(rows, boxes, strict=True):
            values = [int(row[5]), *box] + ([row[4]] if self.confidence else [])
            track = [text for text in track_text(row) if text]
            lines.append(" ".join([*(f"{value:g}" for value in values), *track]) + "\n")
        file.parent.mkdir(exist_ok=True)
        with atomic_write(file, sync=False) as stream:
            stream.write("".join(lines).encode())
        self.label_files += 1

    def _write_crops(self, frame: Frame, stem: str, rows: np.ndarray) -> None:
        """Write each object as crops/CLASS/STEM.jpg, STEM2.jpg, ..., with a margin of 1 % and 5 pixels on each side."""
        for row in rows:
            folder = self._crop_folder(self.names[int(row[5])])
            file = self._crop_file(folder, shorten_name(stem, MAX_STEM_BYTES))
            self._protect_sources(file, frame)
            save_image(file, crop_with_margin(frame.image, row[:4]))

    def _crop_folder(self, name: str) -> Path:
        """Return the folder of a class, and make it if it is absent. A name that several classes share is listed."""
        folder = self.folder / "crops" / self._class_folders[name]
        if folder not in self._crop_folders:
            folder.mkdir(parents=True, exist_ok=True)
            self._crop_folders.add(folder)
            if folder.name != UNFIT_FOR_FILES.sub("_", name).strip(". "):
                self.renamed.add(f"crops/{folder.name}", name)
        return folder

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
        self._protect_sources(file, frame)
        if frame.kind == "image":
            save_image(file, drawn)
            return
        if frame.path not in self._videos:
            if frame.kind == "video":  # files come one after the other, streams all at once
                self._finish_videos()
            self._videos[frame.path] = self._open_video(file, frame.fps, drawn.shape[:2])
        video = self._videos[frame.path]
        if video:
            video.write(drawn, frame.time)

    def _protect_sources(self, file: Path, frame: Frame) -> None:
        """Raise UserError if writing `file` would replace a source, under this name or behind a link."""
        if (found := file_id(file)) is None:
            return
        own = found == file_id(frame.path)
        if own or found in self._source_ids:
            which = "its own source" if own else "another source"
            raise UserError(f"{file}: the result would overwrite {which}; choose another --name")

    @cached_property
    def _source_ids(self) -> frozenset[tuple[int, int] | None]:
        return frozenset(map(file_id, self.sources))

    def _open_video(self, file: Path, fps: float, shape: tuple[int, int]) -> "VideoFile | None":
        """Return the writer of a video, or None and a warning if OpenCV cannot write it: others may follow."""
        try:
            return VideoFile(file, fps, shape)
        except UserError as error:
            console.warn(f"{error}. Use --nosave with --save-txt or --save-crop")
            self.unwritten.append(file)
            return None

    def _finish_videos(self) -> None:
        for video in self._videos.values():
            if video and not video.close():
                console.warn(f"{video.file}: the video is not complete. Make room on the disk and run again")
                self.unwritten.append(video.file)
        self._videos.clear()


def track_text(row: np.ndarray) -> list[str]:
    """Return the id in a row, or "" for none, as a list of one text. The list is empty without tracks."""
    return ["" if track == 0 else f"{track:.0f}" for track in row[6:]]


def file_id(file: str | Path) -> tuple[int, int] | None:
    """Return what identifies a file under all its names and links, or None if there is none."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


class VideoFile:
    """Writer of an mp4 video with the size of its first frame. It plays as long as its source took.

    Frames larger than MPEG-4 allows are scaled down. UserError if OpenCV cannot write it.
    """

    def __init__(self, file: Path, fps: float, shape: tuple[int, int]):
        self.file, self._fps = file, mpeg4_rate(fps)
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

    def write(self, image: np.ndarray, time: float) -> None:
        """Show an image from `time` (seconds) on. The one before fills the gap if frames were skipped.

        A gap above MAX_GAP is not filled: a stream that stalled, or wrong times in a file.
        """
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        if time - self._time > MAX_GAP:
            self._skipped += time - self._time
        self._time = time
        due = round((time - self._skipped) * self._fps)
        while self._previous is not None and self._written < due:
            self._add(self._previous)
        if self._written <= due or self._previous is None:
            self._add(image)
        self._previous = image

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


def can_show_windows() -> bool:
    """Return True if OpenCV can open a window.

    It is tried in a child process: without a display, Qt raises no error but ends the process.
    """
    script = "import cv2; cv2.namedWindow('test'); cv2.waitKey(1); cv2.destroyAllWindows()"
    try:
        return subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
