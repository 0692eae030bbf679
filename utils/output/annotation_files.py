"""Pre-annotations: detections as files that labelling tools import, so that a person corrects instead of drawing.

FORMATS lists the tools. The files are written image by image, and appear whole at the end or not at all. Names of
images are their paths below the folder that all have in common, with `/` between.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from utils import console
from utils.detections import Detections
from utils.files import atomic_write
from utils.temporary_files import remove_stale

# Characters that XML 1.0 cannot hold, and halves of pairs, which stand for bytes of file names that are not UTF-8.
UNFIT_FOR_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
FORMATS = ("cvat", "labelstudio", "coco", "yolo")
PIXEL_DIGITS, PERCENT_DIGITS, SCORE_DIGITS = 2, 4, 4
LOCAL_FILES = "/data/local-files/?d="  # Label Studio's address of files below its document root


def fit_text(text: str) -> str:
    """Return text that XML, JSON and UTF-8 can hold, with escapes such as \\x01 or \\udcff in place of the rest."""
    return UNFIT_FOR_XML.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def fit_names(names: Mapping[int, str]) -> dict[int, str]:
    """Return class names in one line each, as all formats can hold them."""
    return {index: fit_text(" ".join(str(name).split())) or str(index) for index, name in names.items()}


class ImageNames:
    """Names of images in a labelling tool: their paths below the folder that all `paths` have in common."""

    def __init__(self, paths: Sequence[str]):
        try:
            self.folder = Path(os.path.commonpath({os.path.dirname(path) for path in paths}))
        except ValueError:  # no path at all, or several drives of Windows
            self.folder = Path()

    def name(self, path: str) -> str:
        """Return the name of the image `path`, or its whole path if it is elsewhere."""
        file = Path(path)
        return (file.relative_to(self.folder) if file.is_relative_to(self.folder) else file).as_posix()

    def text(self, path: str) -> str:
        """Return the name as formats can hold it. Warn once if it differs."""
        name = self.name(path)
        fitting = fit_text(name)
        if fitting != name:
            console.warn(f"{path}: its name is not text. It is written with escapes; rename the image to import it")
        return fitting


class AnnotationFile(Protocol):
    """Writer of the pre-annotations of one image after another."""

    file: Path  # the file or folder that a tool imports
    hint: str  # how it is imported

    def write(self, path: str, stem: str, found: Detections) -> None:
        """Add an image. `stem` is a file name that no other image of the run has."""

    def close(self) -> None:
        """Complete the files. Without an image there is none."""


class StreamedFile:
    """Text file that is written in parts. It appears whole at `publish`, and not at all after an error."""

    def __init__(self, path: Path):
        remove_stale(path.parent, path.name)
        self._path, self._stack = path, ExitStack()
        self._main = self._stack.enter_context(atomic_write(path))
        self._later: IO[bytes] | None = None

    def write(self, text: str) -> None:
        """Add text. After an error do nothing."""
        with self._discard_on_error():
            self._main.write(text.encode())

    def write_later(self, text: str) -> None:
        """Add text behind all that `write` adds before `publish`. It is kept in a temporary file."""
        with self._discard_on_error():
            if self._later is None:
                temporary = tempfile.TemporaryFile(dir=self._path.parent)  # noqa: SIM115 (the stack closes it)
                self._later = self._stack.enter_context(temporary)
            self._later.write(text.encode())

    def publish(self, end: str) -> None:
        """Complete the file with what was to come later, and `end`."""
        with self._discard_on_error():
            if self._later:
                self._later.seek(0)
                shutil.copyfileobj(self._later, self._main)
            self._main.write(end.encode())
        self._stack.close()

    @contextmanager
    def _discard_on_error(self) -> Generator[None]:
        """Remove the file if the block raises an error. Ctrl-C is none: what is written stays."""
        if self._main.closed:
            with suppress(ValueError):
                yield
            return
        try:
            yield
        except Exception:
            with self._stack:  # it names the file in the error
                raise


class CvatFile:
    """annotations.xml in the format "CVAT for images 1.1", with the confidence as an attribute if that is wanted."""

    hint = 'in CVAT: Upload annotations, format "CVAT 1.1"'

    def __init__(self, folder: Path, names: Mapping[int, str], images: ImageNames, *, confidence: bool = False):
        self.file, self.names, self.images = folder / "annotations.xml", fit_names(names), images
        self.confidence = confidence
        self._out: StreamedFile | None = None
        self._count = 0

    def _begin(self) -> StreamedFile:
        attribute = (
            "<attribute><name>confidence</name><mutable>False</mutable><input_type>text</input_type>"
            "<default_value></default_value><values></values></attribute>"
        )
        labels = "".join(
            f"<label><name>{escape(name)}</name><type>rectangle</type>"
            f"<attributes>{attribute if self.confidence else ''}</attributes></label>\n"
            for name in dict.fromkeys(self.names.values())
        )
        self._out = out = StreamedFile(self.file)
        out.write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta>\n<task>\n'
            f"<name>{escape(fit_text(self.file.parent.name))}</name>\n<mode>annotation</mode>\n"
            f"<labels>\n{labels}</labels>\n</task>\n</meta>\n"
        )
        return out

    def write(self, path: str, stem: str, found: Detections) -> None:
        """Add an `image` element with a `box` for each detection."""
        out = self._out or self._begin()
        height, width = found.shape
        rows = [
            f'<image id="{self._count}" name={quoteattr(self.images.text(path))} width="{width}" height="{height}">\n',
            *(self._box(row) for row in visible_rows(found)),
            "</image>\n",
        ]
        out.write("".join(rows))
        self._count += 1

    def _box(self, row: np.ndarray) -> str:
        corners = zip(("xtl", "ytl", "xbr", "ybr"), row[:4], strict=True)
        box = " ".join(f'{key}="{value:.{PIXEL_DIGITS}f}"' for key, value in corners)
        inside = f'<attribute name="confidence">{row[4]:.{SCORE_DIGITS}f}</attribute>' if self.confidence else ""
        label = quoteattr(self.names[int(row[5])])
        return f'<box label={label} source="auto" occluded="0" {box} z_order="0">{inside}</box>\n'

    def close(self) -> None:
        """Complete the file."""
        if self._out:
            self._out.publish("</annotations>\n")


class LabelStudioFile:
    """label-studio.json, tasks with predictions in percent of the image, and label-studio.xml, their labelling config.

    Images are addressed below the parent of their common folder, which Label Studio wants as document root.
    """

    def __init__(self, folder: Path, names: Mapping[int, str], images: ImageNames, *, model: str):
        self.file, self.names, self.images = folder / "label-studio.json", fit_names(names), images
        self.model, top = fit_text(model), images.folder
        self._prefix = f"{top.name}/" if top.name else ""
        self._out: StreamedFile | None = None
        self.hint = (
            f"start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={top.parent}, paste label-studio.xml as labelling interface, "
            f"add {top} as local storage, import the file"
        )

    def write(self, path: str, stem: str, found: Detections) -> None:
        """Add a task with a rectangle for each detection, and the mean confidence as its score."""
        begins = self._out is None
        if self._out is None:
            self._write_config()
            self._out = StreamedFile(self.file)
        rows = visible_rows(found)
        prediction: dict[str, Any] = {
            "model_version": self.model,
            "result": [self._region(i, row, found) for i, row in enumerate(rows)],
        }
        if len(rows):
            prediction["score"] = round(float(rows[:, 4].mean()), SCORE_DIGITS)
        address = LOCAL_FILES + quote(os.fsencode(self._prefix + self.images.name(path)))
        task = {"data": {"image": address}, "predictions": [prediction]}
        self._out.write(("[\n" if begins else ",\n") + json.dumps(task))

    def _region(self, number: int, row: np.ndarray, found: Detections) -> dict[str, Any]:
        height, width = found.shape
        x1, y1, x2, y2 = (100 * row[:4] / [width, height, width, height]).round(PERCENT_DIGITS).tolist()
        return {
            "id": f"box{number}",
            "type": "rectanglelabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": round(float(row[4]), SCORE_DIGITS),
            "value": {
                "x": x1,
                "y": y1,
                "width": round(x2 - x1, PERCENT_DIGITS),
                "height": round(y2 - y1, PERCENT_DIGITS),
                "rotation": 0,
                "rectanglelabels": [self.names[int(row[5])]],
            },
        }

    def _write_config(self) -> None:
        labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in dict.fromkeys(self.names.values()))
        with atomic_write(self.file.with_suffix(".xml")) as file:
            file.write(
                '<View>\n  <Image name="image" value="$image"/>\n  <RectangleLabels name="label" toName="image">\n'
                f"{labels}  </RectangleLabels>\n</View>\n".encode()
            )

    def close(self) -> None:
        """Complete the file."""
        if self._out:
            self._out.publish("\n]\n")


class CocoFile:
    """instances_default.json: COCO annotations with boxes and scores. Category ids are class numbers from 1 on."""

    hint = 'in CVAT: Upload annotations, format "COCO 1.0"; so do other tools that read COCO annotations'

    def __init__(self, folder: Path, names: Mapping[int, str], images: ImageNames):
        self.file, self.names, self.images = folder / "instances_default.json", fit_names(names), images
        self._out: StreamedFile | None = None
        self._num_images = self._num_boxes = 0

    def _begin(self) -> StreamedFile:
        self._out = out = StreamedFile(self.file)
        entries = [{"id": index + 1, "name": name, "supercategory": ""} for index, name in self.names.items()]
        out.write(f'{{"info": {{}}, "licenses": [],\n"categories": {json.dumps(entries)},\n"images": [')
        return out

    def write(self, path: str, stem: str, found: Detections) -> None:
        """Add an image, and an annotation for each detection."""
        out = self._out or self._begin()
        height, width = found.shape
        comma = "," if self._num_images else ""
        self._num_images += 1
        image = {"id": self._num_images, "file_name": self.images.text(path), "width": width, "height": height}
        out.write(f"{comma}\n{json.dumps(image)}")
        boxes = []
        for row in visible_rows(found):
            comma = "," if self._num_boxes else ""
            self._num_boxes += 1
            boxes.append(f"{comma}\n{json.dumps(self._annotation(row))}")
        out.write_later("".join(boxes))

    def _annotation(self, row: np.ndarray) -> dict[str, Any]:
        x1, y1, x2, y2 = row[:4].astype(float).round(PIXEL_DIGITS).tolist()
        width, height = round(x2 - x1, PIXEL_DIGITS), round(y2 - y1, PIXEL_DIGITS)
        return {
            "id": self._num_boxes,
            "image_id": self._num_images,
            "category_id": int(row[5]) + 1,
            "bbox": [x1, y1, width, height],
            "area": round(width * height, PIXEL_DIGITS),
            "iscrowd": 0,
            "segmentation": [],
            "score": round(float(row[4]), SCORE_DIGITS),
        }

    def close(self) -> None:
        """Complete the file."""
        if self._out:
            self._out.write('],\n"annotations": [')
            self._out.publish("]}\n")


class YoloFolder:
    """yolo/<stem>.txt with lines `class x y w h` in 0…1, and yolo/classes.txt: what LabelImg reads.

    An image without detections has no file. LabelImg takes no confidence.
    """

    hint = "in LabelImg: Open Dir with the images, Change Save Dir to this folder, format YOLO"

    def __init__(self, folder: Path, names: Mapping[int, str]):
        self.file, self.names = folder / "yolo", fit_names(names)
        self._begun = False

    def write(self, path: str, stem: str, found: Detections) -> None:
        """Write the label file of an image, or remove that of an earlier run."""
        if not self._begun:
            self._begin()
        file, rows = self.file / f"{stem}.txt", visible_rows(found)
        if not len(rows):
            file.unlink(missing_ok=True)
            return
        height, width = found.shape
        x1, y1, x2, y2 = (rows[:, :4].astype(float) / [width, height, width, height]).T
        boxes = np.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), axis=1)
        lines = (
            " ".join((str(int(row[5])), *(f"{value:.6f}" for value in box)))
            for row, box in zip(rows, boxes, strict=True)
        )
        with atomic_write(file, sync=False) as stream:
            stream.write("".join(f"{line}\n" for line in lines).encode())

    def _begin(self) -> None:
        self.file.mkdir(exist_ok=True)
        with atomic_write(self.file / "classes.txt") as stream:
            stream.write("".join(f"{self.names[index]}\n" for index in sorted(self.names)).encode())
        self._begun = True

    def close(self) -> None:
        """Do nothing: each file is whole already."""


def visible_rows(found: Detections) -> np.ndarray:
    """Return the rows (n, 6) whose boxes have an area, highest confidence first."""
    rows = found.rows
    return rows[(rows[:, 2] > rows[:, 0]) & (rows[:, 3] > rows[:, 1])]


def open_annotations(
    kind: str, folder: Path, names: Mapping[int, str], paths: Sequence[str], *, model: str, confidence: bool = False
) -> AnnotationFile:
    """Return the writer of one of FORMATS into `folder`.

    names: of the classes. paths: of all images. model: its name, for the tool to show. confidence: also write it where
    the tool takes it only as an attribute.
    """
    images = ImageNames(paths)
    if kind == "cvat":
        return CvatFile(folder, names, images, confidence=confidence)
    if kind == "labelstudio":
        return LabelStudioFile(folder, names, images, model=model)
    return CocoFile(folder, names, images) if kind == "coco" else YoloFolder(folder, names)
