"""What a training learns from: the indices of a data set's two splits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.config import TrainOptions
from utils.datasets.labels import LabelIndex, load_index
from utils.datasets.locate import acquire, find_yaml
from utils.datasets.spec import DatasetSpec, read_dataset
from utils.datasets.subset import fraction
from utils.errors import UserError


@dataclass(frozen=True)
class Data:
    spec: DatasetSpec
    names: dict[int, str]
    train: LabelIndex
    val: LabelIndex


def read_names(options: TrainOptions) -> dict[int, str]:
    """The classes to train on, by the YAML alone: nothing is drawn, fetched or written for them."""
    _, names = read_dataset(find_yaml(options.data))
    return {0: "item"} if options.single_cls and len(names) != 1 else names


def read_data(options: TrainOptions) -> Data:
    spec = acquire(options.data)

    def scan(split: str) -> LabelIndex:
        return load_index(spec.sources(split), spec.num_classes, prefix=f"{split}: ", single_cls=options.single_cls)

    train = scan("train")
    if not len(train.labels):
        raise UserError(
            f"{spec.file}: the training images have no labels at all; labels belong beside them, "
            "with /images/ replaced by /labels/ and .txt for the suffix"
        )
    return Data(spec, read_names(options), fraction(train, options.evolve_fraction), scan("val"))


def expect_pictures(data: Data) -> None:
    """UserError where this machine lacks the pictures that rank 0, maybe on another one, has found."""
    for path in (data.train.paths[0], data.val.paths[0]):
        if not Path(path).is_file():
            raise UserError(f"{path} is not on this machine: all machines need the data set in the same place")


def label_sizes(index: LabelIndex, imgsz: int) -> np.ndarray:
    """Width and height in pixels of every label (M, 2), float32, when each picture's longer side is `imgsz`."""
    scale = imgsz / index.shapes.max(1, keepdims=True)
    sides = (index.shapes * scale)[:, ::-1].repeat(np.diff(index.offsets), axis=0)  # (M, 2) picture width, height
    return np.multiply(index.labels[:, 3:5], sides, out=np.empty(sides.shape, np.float32), casting="same_kind")
