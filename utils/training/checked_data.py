"""Splits of a training, with a line on the errors in them: what `check.py` says at length."""

import shlex
from dataclasses import replace

from utils.checking.skipped import count_errors
from utils.config import TrainOptions
from utils.console import info, warn
from utils.datasets.class_balance import balance_classes, loss_weights
from utils.datasets.label_index import LabelIndex
from utils.datasets.locate import locate_images
from utils.datasets.spec import DatasetSpec, DatasetYaml
from utils.datasets.splits import Splits, class_names, load_splits
from utils.datasets.views import cut_into_views
from utils.images.tiles import Tiling
from utils.training.startup import tiling_of


def load_data(dataset: DatasetYaml, options: TrainOptions) -> Splits:
    """Read the labels of the splits. The training images are cut by `--tile`, and drawn by `--class-balance`."""
    spec = locate_images(dataset)
    loss_weights(options.class_weights, class_names(spec.names, single_cls=options.single_cls))  # mistakes show early
    splits = load_checked(
        spec, single_cls=options.single_cls, fraction=options.evolve_fraction, tiling=tiling_of(options)
    )
    return replace(splits, train=balance_classes(splits.train, options.class_balance, splits.names))


def load_checked(
    spec: DatasetSpec, *, single_cls: bool = False, fraction: float = 1.0, tiling: Tiling | None = None
) -> Splits:
    """Return the splits as `load_splits` does, and warn of errors in the data that its scan found.

    With a tiling, the training images are cut into views, and a line says how many.
    """
    splits = load_splits(spec, single_cls=single_cls, fraction=fraction)
    if text := describe_errors(splits):
        command = shlex.join(["python", "check.py", "--data", str(spec.file)])
        warn(f"the data has errors: {text}. All of them, and what to do: {command}")
    return splits if tiling is None else replace(splits, train=cut_reported(splits.train, tiling))


def cut_reported(index: LabelIndex, tiling: Tiling) -> LabelIndex:
    """Return the views of a split, and print how many an epoch draws."""
    views, kinds = cut_into_views(index, tiling)
    drawn = "" if kinds.empty_drawn == kinds.empty else f", {kinds.empty_drawn} of them drawn in each epoch, by chance"
    info(
        f"Tiles of {tiling.side} px: an epoch has {views.epoch_size} views: {kinds.whole} whole images, "
        f"{kinds.filled} tiles with objects, {kinds.empty} without{drawn}"
    )
    return views


def describe_errors(splits: Splits) -> str:
    """Return the errors of each split in short: `train: 3 truncated-image, 12 out-of-range`, or ""."""
    found = []
    indices = {"train": splits.train} | ({} if splits.val is splits.train else {"val": splits.val})
    for split, index in indices.items():
        counts = count_errors(index)
        if counts:
            found.append(f"{split}: {', '.join(f'{count} {check}' for check, count in counts.items())}")
    return "; ".join(found)
