"""Annotations of a split in one form, whichever files they were read from, and the label index built from them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from utils.console import progress_bar
from utils.datasets.image_files import map_chunks
from utils.datasets.label_index import Counts, LabelIndex, offsets_of
from utils.datasets.remarks import Remarks
from utils.datasets.string_array import StringArray
from utils.datasets.yolo_writer import clip_box, reference_size
from utils.errors import UserError
from utils.files import UnreadableFile
from utils.images.header import image_shape
from utils.parallel_map import MAX_WORKERS
from utils.pixel_format import PixelFormat

MAX_UNREADABLE = 100  # images that a scan skips because of read errors

Point = tuple[float, float]


class AnnotatedObject(NamedTuple):
    """One object of an image."""

    class_id: int  # position in the names of the annotations
    xyxy_px: tuple[float, float, float, float]
    outline: Sequence[Point]  # in pixels, empty if there is none
    ignored: bool  # a crowd or a difficult object: no label, and detections in it do not count
    where: str  # for messages


class AnnotatedImage(NamedTuple):
    """One image that was found, with its objects."""

    path: str
    stated_size: tuple[int, int] | None  # height, width
    objects: Sequence[AnnotatedObject]
    is_annotated: bool = True  # False for an image that no annotation names: a background


class Annotations(NamedTuple):
    """Content of an annotation file or folder."""

    names: list[str]
    images: list[AnnotatedImage]
    unusable: int = 0  # images that were named but not found, or whose annotations cannot be read


class NamedIndex(NamedTuple):
    """A label index with classes numbered by its own names."""

    names: list[str]
    index: LabelIndex


class Built(NamedTuple):
    """A named index, and whether the next scan would give the same."""

    named: NamedIndex
    is_lasting: bool


class _Shapes(NamedTuple):
    """Sizes of some images."""

    shapes: list[tuple[int, int] | None]  # None for an image that cannot be used
    messages: list[str]
    unreadable: int  # images that may be readable the next time


def build_index(
    annotations: Annotations, file: str, remarks: Remarks, *, pixels: PixelFormat, title: str, progress: bool
) -> Built:
    """Read the sizes of all images, and return their labels in the order of the paths.

    Boxes are clipped to the image. Objects equal to an earlier one of the image are skipped. `file` names the source
    in messages. Raises UserError if many images cannot be read, or one has not the channels of `pixels`.
    """
    images = sorted(annotations.images, key=lambda image: image.path)
    parts = _read_shapes([image.path for image in images], pixels, title, progress=progress)
    rows = _Rows()
    for image, shape in zip(images, (shape for part in parts for shape in part.shapes), strict=True):
        if shape is not None:
            rows.add(image, shape, remarks)
    messages = [message for part in parts for message in part.messages]
    said = [*(f"{file}: {text}" for text in remarks.remarks()), *messages]
    index = replace(rows.index(len(images) + annotations.unusable, said), pixels=pixels)
    is_lasting = not annotations.unusable and not any(part.unreadable for part in parts)
    return Built(NamedIndex(annotations.names, index), is_lasting)


def _read_shapes(paths: list[str], pixels: PixelFormat, title: str, *, progress: bool) -> list[_Shapes]:
    parts: list[_Shapes] = []
    size = max(1, min(256, len(paths) // (8 * MAX_WORKERS)))
    with progress_bar(total=len(paths), desc=title, disable=not progress) as bar:
        for part in map_chunks(partial(_shapes_of, pixels=pixels), paths, size=size):
            parts.append(part)
            if sum(one.unreadable for one in parts) > MAX_UNREADABLE:
                raise UserError(
                    f"more than {MAX_UNREADABLE} files cannot be read, the last is {part.messages[-1]}. Look at the "
                    "disk or the network, then start again"
                )
            bar.update(len(part.shapes))
    return parts


def _shapes_of(paths: list[str], pixels: PixelFormat) -> _Shapes:
    shapes: list[tuple[int, int] | None] = []
    messages, unreadable = [], 0
    for path in paths:
        try:
            shapes.append(image_shape(path, pixels))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            shapes.append(None)
            messages.append(f"{path}: image skipped: {error}")
            unreadable += isinstance(error, UnreadableFile)
    return _Shapes(shapes, messages, unreadable)


class _Rows:
    """Labels of the images added so far, for the flat arrays of an index."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.shapes: list[tuple[int, int]] = []
        self.labels: list[tuple[float, ...]] = []
        self.per_image: list[int] = []
        self.points: list[Point] = []
        self.per_label: list[int] = []
        self.ignored: list[tuple[float, ...]] = []
        self.ignored_images: list[int] = []
        self.missing = 0

    def add(self, image: AnnotatedImage, shape: tuple[int, int], remarks: Remarks) -> None:
        """Add an image of this height and width. Skip it if its boxes fit no reading of its size."""
        boxes = [entry.xyxy_px for entry in image.objects]
        size = reference_size(image.stated_size, shape, boxes, remarks=remarks, name=image.path)
        if size is None:
            return
        before, seen = len(self.labels), set()
        for entry in image.objects:
            box = clip_box(entry.xyxy_px, size)
            if box is None:
                remarks.skip("boxes without area inside the image", entry.where)
            elif entry.ignored:
                self.ignored.append((entry.class_id, *box))
                self.ignored_images.append(len(self.paths))
            elif (key := (entry.class_id, box, tuple(entry.outline))) in seen:
                remarks.skip("objects that repeat an earlier one of the image", entry.where)
            else:
                seen.add(key)
                self.labels.append((entry.class_id, *box))
                outline = normalize_outline(entry.outline, size)
                self.points += outline
                self.per_label.append(len(outline))
        self.missing += not image.is_annotated
        self.per_image.append(len(self.labels) - before)
        self.paths.append(image.path)
        self.shapes.append(shape)

    def index(self, num_images: int, messages: list[str]) -> LabelIndex:
        """Return the index. The images of `num_images` that were not added count as corrupt."""
        found = sum(map(bool, self.per_image))
        return LabelIndex(
            paths=StringArray(self.paths),
            shapes=np.array(self.shapes, np.int32).reshape(-1, 2),
            labels=np.array(self.labels, np.float32).reshape(-1, 5),
            offsets=offsets_of(self.per_image),
            points=np.array(self.points, np.float32).reshape(-1, 2),
            segment_offsets=offsets_of(self.per_label),
            counts=Counts(found, self.missing, len(self.paths) - found - self.missing, num_images - len(self.paths)),
            messages=messages,
            ignored=np.array(self.ignored, np.float32).reshape(-1, 5),
            ignored_images=np.array(self.ignored_images, np.int64),
        )


def normalize_outline(outline: Sequence[Point], size: tuple[int, int]) -> list[Point]:
    """Return an outline in 0…1, clipped to the image, size = (height, width). Slivers give none."""
    H, W = size
    points = [(min(max(x, 0), W) / W, min(max(y, 0), H) / H) for x, y in outline]
    spans = [max(axis) - min(axis) for axis in zip(*points, strict=True)]
    return points if points and min(spans) > 1e-6 else []
