"""Training and validation split of a data set: their label indices and class names."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from utils.datasets.annotation_source import find_sources
from utils.datasets.label_index import LabelIndex
from utils.datasets.labels import describe_absent_labels, divide_split, load_split, load_undivided
from utils.datasets.spec import DatasetSpec
from utils.datasets.subset import take_fraction
from utils.errors import UserError
from utils.image_size import ImageSize, to_shape


@dataclass(frozen=True)
class Splits:
    """Label indices of a data set's two splits, and the class names to train on."""

    spec: DatasetSpec
    names: dict[int, str]
    train: LabelIndex
    val: LabelIndex
    num_images: int  # of both splits, before a fraction was taken

    def write_division(self, file: Path) -> None:
        """Write which images of a divided data set are to validate on."""
        assert self.spec.division
        self.spec.division.write(file, val_paths=self.val.paths, num_images=self.num_images, root=self.spec.root)


def class_names(names: dict[int, str], *, single_cls: bool) -> dict[int, str]:
    """Return the class names to train on: those of the data set, or one for all of them with `single_cls`."""
    return {0: "item"} if single_cls and len(names) != 1 else names


def load_splits(spec: DatasetSpec, *, single_cls: bool = False, fraction: float = 1.0) -> Splits:
    """Read the labels of both splits, those of a fraction (0…1) of the training images.

    Raises UserError if the training images have no labels at all.
    """

    load = load_undivided if spec.division else partial(load_split, split="train")
    whole = load(spec, single_cls=single_cls)
    if not len(whole.labels):
        in_place = any(find_sources(spec.sources("train"), spec.root))
        reason = "The annotations hold no object of them" if in_place else describe_absent_labels(whole)
        raise UserError(f"{spec.file}: the training images have no labels at all. {reason}")
    if spec.division:
        parts = divide_split(spec, whole, single_cls=single_cls)
    else:
        parts = {"train": whole, "val": load_split(spec, "val", single_cls=single_cls)}
    names = class_names(spec.names, single_cls=single_cls)
    num_images = sum(map(len, parts.values()))
    return Splits(spec, names, take_fraction(parts["train"], fraction), parts["val"], num_images)


def require_images(splits: Splits) -> None:
    """Raise UserError if this machine lacks the images that rank 0, maybe on another machine, has found."""
    for path in (splits.train.paths[0], splits.val.paths[0]):
        if not Path(path).is_file():
            raise UserError(f"{path} is not on this machine: all machines need the data set in the same place")


def label_sizes(index: LabelIndex, imgsz: ImageSize) -> np.ndarray:
    """Return width and height in pixels of every label (M, 2) float32, with the images fitted into `imgsz`."""
    scale = (to_shape(imgsz) / index.shapes).min(1, keepdims=True)
    sides = (index.shapes * scale)[:, ::-1].repeat(np.diff(index.offsets), axis=0)  # (M, 2) width, height of images
    return np.multiply(index.labels[:, 3:5], sides, out=np.empty(sides.shape, np.float32), casting="same_kind")
