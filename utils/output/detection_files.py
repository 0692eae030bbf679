"""Files of a detection run: labels, a table, crops, images and videos, each source under a name of its own."""

import csv
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from utils import console
from utils.boxes import xyxy_to_xywh
from utils.detections import Detections
from utils.errors import UserError
from utils.files import atomic_write, named_errors
from utils.images.frames import Frame
from utils.images.sound import has_sound
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
from utils.output.video_files import VideoFile, segment_file
from utils.temporary_files import shorten_name

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
    timed: bool = False  # the table has the number and the time of each frame
    segment_minutes: float = 0.0  # length of the files that streams are recorded in, 0: one .mp4
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
            times = ["Frame", "Seconds", "UTC"] if self.timed else []
            csv.writer(self._table).writerow(
                ["Image Name", "Prediction", "Confidence", *times, *["Track ID"] * self.tracks]
            )

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
        times = [frame.number, f"{frame.time:.3f}", frame.utc or ""] if self.timed else []
        csv.writer(table).writerows(
            [*cells, f"{row[4]:.2f}", *times, *track_text(row)] for cells, row in zip(texts, rows, strict=True)
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
            name = f"{stem}{number if number > 1 else ''}"
            if not any(self._crop_numbers.get((folder, other), 0) >= n for other, n in crop_numbers(name, stem)):
                return folder / f"{name}.jpg"

    def _write_image(self, frame: Frame, stem: str, drawn: np.ndarray) -> None:
        if frame.kind == "image":
            suffix = Path(frame.path).suffix
            file = self.folder / (stem + (suffix if suffix.lower() in WRITABLE else ".jpg"))
            self._protect_sources(file, frame)
            save_image(file, drawn)
        elif video := self._video(frame, stem, drawn.shape[:2]):
            video.write(drawn, frame.time)

    def _video(self, frame: Frame, stem: str, shape: tuple[int, int]) -> VideoFile | None:
        """Return the video that a frame belongs to, None if it cannot be written."""
        in_segments = self.segment_minutes > 0 and frame.kind != "video"
        if frame.path in self._videos:
            video = self._videos[frame.path]
            if not (in_segments and video and video.ends_before(frame.time, shape, 60 * self.segment_minutes)):
                return video
            self._finish_video(video)
        elif frame.kind == "video":  # files come one after the other, streams all at once
            self._finish_videos()
        if frame.kind == "video" and has_sound(frame.path):
            console.info(f"{frame.path}: the result is without its sound")
        file = segment_file(self.folder, stem, frame.received) if in_segments else self.folder / f"{stem}.mp4"
        self._protect_sources(file, frame)
        self._videos[frame.path] = self._open_video(file, frame, shape)
        return self._videos[frame.path]

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

    def _open_video(self, file: Path, frame: Frame, shape: tuple[int, int]) -> VideoFile | None:
        """Return the writer of a video, or None and a warning if OpenCV cannot write it: others may follow."""
        try:
            return VideoFile(file, frame.fps, shape, begin=frame.time)
        except UserError as error:
            console.warn(f"{error}. Use --nosave with --save-txt or --save-crop")
            self.unwritten.append(file)
            return None

    def _finish_videos(self) -> None:
        for video in self._videos.values():
            if video:
                self._finish_video(video)
        self._videos.clear()

    def _finish_video(self, video: VideoFile) -> None:
        if not video.close():
            console.warn(f"{video.file}: the video is not complete. Make room on the disk and run again")
            self.unwritten.append(video.file)


def track_text(row: np.ndarray) -> list[str]:
    """Return the id in a row, or "" for none, as a list of one text. The list is empty without tracks."""
    return ["" if track == 0 else f"{track:.0f}" for track in row[6:]]


def crop_numbers(name: str, stem: str) -> Iterator[tuple[str, int]]:
    """Yield stems other than `stem`, and numbers, that give a crop this name too: cat12 is 1 of it, 12 of cat."""
    if name != stem:
        yield name, 1
    for end in range(len(name) - 1, 0, -1):
        digits = name[end:]
        if not (digits.isascii() and digits.isdigit()):
            return
        if name[:end] != stem and digits[0] != "0" and int(digits) > 1:
            yield name[:end], int(digits)


def file_id(file: str | Path) -> tuple[int, int] | None:
    """Return what identifies a file under all its names and links, or None if there is none."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def can_show_windows() -> bool:
    """Return True if OpenCV can open a window.

    It is tried in a child process: without a display, Qt raises no error but ends the process.
    """
    script = "import cv2; cv2.namedWindow('test'); cv2.waitKey(1); cv2.destroyAllWindows()"
    try:
        return subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
