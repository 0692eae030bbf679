"""Content of a data set as training reads it, for the checks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.boxes import xywh_to_xyxy
from utils.checking.annotation_ids import AnnotationIds
from utils.checking.findings import Box, Example, Finding, Role
from utils.console import info
from utils.datasets.annotation_source import AnnotationSource, find_sources
from utils.datasets.image_files import label_path
from utils.datasets.label_file import parse_labels
from utils.datasets.label_index import LabelIndex
from utils.datasets.labels import MAX_LABEL_BYTES, UnknownClass, find_split_images, load_split
from utils.datasets.spec import SPLITS, DatasetSpec
from utils.errors import UserError
from utils.files import read_regular
from utils.image_size import ImageSize


@dataclass(frozen=True)
class ScannedSplit:
    """One split: its images and labels."""

    name: str  # train, val or test
    sources: list[Path]  # folders and list files
    paths: list[str]  # of all images, usable or not
    index: LabelIndex  # of the usable images; classes may be beyond the names
    names: Mapping[int, str]
    keypoint_values: int = 0  # behind the box in each row of a label file
    annotations: Sequence[AnnotationSource] = ()  # COCO files and VOC folders among the sources

    @cached_property
    def image_ids(self) -> np.ndarray:
        """Image of each label (M,) int64."""
        return np.repeat(np.arange(len(self.index)), np.diff(self.index.offsets))

    def image_example(self, image: int, detail: str = "", *, with_boxes: bool = False) -> Example:
        """Return the place of an image of the index."""
        path = self.index.paths[image]
        boxes = tuple(map(_as_box, self.index.boxes(image))) if with_boxes else ()
        return Example(path, detail=detail, image=path, boxes=boxes)

    def label_example(self, label: int, detail: str = "", *, others: Sequence[int] = ()) -> Example:
        """Return the place of a label of the index: its line, and its box. `others` are drawn beside it.

        A label of a COCO file has the id of its annotation in front of `detail`.
        """
        image = int(self.image_ids[label])
        path = self.index.paths[image]
        boxes = tuple(_as_box(self.index.labels[one]) for one in (label, *others))
        file = self.label_file(path)
        lines = self._lines(image) if file == label_path(path) else []
        position = label - int(self.index.offsets[image])
        roles: tuple[Role, ...] = ("label", *("other" for _ in others))
        detail = ": ".join(filter(None, (self._annotation(image, label), detail)))
        return Example(file, lines[position] if lines else 0, detail, image=path, boxes=boxes, roles=roles)

    def _annotation(self, image: int, label: int) -> str:
        """Return the annotation of a label in a COCO file, or "" if there is none, or it is not found."""
        path, shape, row = (
            self.index.paths[image],
            self.index.shapes[image],
            self.index.labels[label].astype(np.float64),
        )
        box, name = xywh_to_xyxy(row[1:]) * shape[[1, 0, 1, 0]], self.names.get(int(row[0]), "")
        return next(filter(None, (ids.find(path, name, box, shape) for ids in self._annotation_ids)), "")

    @cached_property
    def _annotation_ids(self) -> list[AnnotationIds]:
        return [AnnotationIds(source.file) for source in self.annotations if source.kind == "coco"]

    def label_file(self, path: str) -> str:
        """Return the file that holds the labels of an image: the image itself if they are in one file for all."""
        for source in self.annotations:
            if source.kind == "coco":
                return path
            stated = source.file / Path(path).with_suffix(".xml").name
            if stated.is_file():
                return str(stated)
        return label_path(path)

    def _lines(self, image: int) -> list[int]:
        """Return the line of each label of an image, or [] if the file was changed meanwhile.

        The index does not hold them: they are needed for a few examples only.
        """
        try:
            data = read_regular(label_path(self.index.paths[image]), MAX_LABEL_BYTES)
        except OSError:
            return []
        lines = label_lines(data, self.keypoint_values)
        return lines if len(lines) == len(self.index.boxes(image)) else []


@dataclass(frozen=True)
class ScannedData:
    """A data set, scanned."""

    spec: DatasetSpec
    splits: dict[str, ScannedSplit]  # by name, train first; without those in `same` and `unusable`
    imgsz: ImageSize  # size of the training that is planned
    same: dict[str, str] = field(default_factory=dict)  # split -> earlier split with the same sources
    unusable: dict[str, str] = field(default_factory=dict)  # split -> why it has no index


Check = Callable[[ScannedData], Iterable[Finding]]


def scan_dataset(spec: DatasetSpec, imgsz: ImageSize, *, progress: bool = True) -> ScannedData:
    """Read the images and labels of all splits, by the scan of training and with its cache.

    Raises UserError if no split has a usable image.
    """
    data = ScannedData(spec, {}, imgsz)
    for name in SPLITS:
        if not spec.splits.get(name) and not (name == "val" and spec.division):
            continue
        sources = spec.sources(name)
        earlier = next((split.name for split in data.splits.values() if split.sources == sources), None)
        if earlier:
            data.same[name] = earlier
            info(f"{name}: the same images as {earlier}")
            continue
        try:
            data.splits[name] = _scan_split(name, sources, spec, progress=progress)
        except UserError as error:
            data.unusable[name] = str(error)
    if not data.splits:
        raise UserError(next(iter(data.unusable.values())))
    return data


def _scan_split(name: str, sources: list[Path], spec: DatasetSpec, *, progress: bool) -> ScannedSplit:
    try:
        index = load_split(spec, name, progress=progress, report=False)
    except UnknownClass:  # training ends here, a check wants them all
        index = load_split(spec, name, progress=progress, report=False, any_class=True)
    paths, annotations = find_split_images(spec, name, index), list(find_sources(sources, spec.root))
    if spec.division and name != "test":
        sources = list(map(Path, paths))  # a part of the folders
    return ScannedSplit(name, sources, paths, index, spec.names, spec.keypoint_values, annotations)


def label_lines(data: bytes, keypoint_values: int = 0) -> list[int]:
    """Return the line numbers of the valid rows in a label file, from 1."""
    skipped = {number for number, _ in parse_labels(data, keypoint_values).problems}
    lines = data.removeprefix(b"\xef\xbb\xbf").splitlines()
    return [number for number, line in enumerate(lines, 1) if line.split() and number not in skipped]


def _as_box(row: np.ndarray) -> Box:
    class_id, x, y, w, h = map(float, row)
    return class_id, x, y, w, h
