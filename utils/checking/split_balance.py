"""Findings on splits that differ from the training split: in classes, in sizes, in the share of empty images."""

from collections.abc import Iterator

import numpy as np

from utils.checking.classes import class_counts
from utils.checking.findings import Example, Finding, first_examples
from utils.checking.scan import ScannedData, ScannedSplit
from utils.datasets.splits import label_sizes
from utils.image_size import describe_size

MANY_EMPTY = 0.5  # share of images without labels
EMPTY_DIFFERENCE = 0.2  # between the shares of two splits
SIZE_RATIO = 2.0  # between the medians of two splits
MIN_LABELS = 20  # of a split whose sizes or shares are compared


def check_balance(data: ScannedData) -> Iterator[Finding]:
    """Yield the findings on how splits differ."""
    if not {"val"} & {*data.splits, *data.same, *data.unusable}:
        yield Finding(
            "warning", "splits", "no-validation-images", 1, "split is missing: there are no images to validate on",
            "Training cannot start so. Add `--split 0.8` to its command and to that of this check, or name images.",
            "val",
        )  # fmt: skip
    for split in data.splits.values():
        yield from _empty_images(split)
    train = data.splits.get("train")
    if train is None:
        return
    for split in data.splits.values():
        if split is not train:
            yield from _absent_classes(data, train, split)
            yield from _other_shares(train, split)
            yield from _other_sizes(data, train, split)


def _absent_classes(data: ScannedData, train: ScannedSplit, split: ScannedSplit) -> Iterator[Finding]:
    """Yield the classes that one of two splits has and the other lacks."""
    counts, others = class_counts(train), class_counts(split)
    unmeasured = np.flatnonzero((counts > 0) & (others == 0))
    if len(unmeasured) and others.sum():
        yield Finding(
            "warning", "splits", "class-not-measured", len(unmeasured),
            f"classes of train have no label in {split.name}: {_name_classes(data, unmeasured)}",
            f"Move some of their images to {split.name}: without labels there, nothing measures how well they do.",
            split.name, _class_examples(train, unmeasured, data),
        )  # fmt: skip
    unlearned = np.flatnonzero((counts == 0) & (others > 0))
    if len(unlearned) and counts.sum():
        yield Finding(
            "warning", "splits", "class-not-trained", len(unlearned),
            f"classes of {split.name} have no label in train: {_name_classes(data, unlearned)}",
            "Move some of their images to train: a model cannot find what it has never seen.",
            split.name, _class_examples(split, unlearned, data),
        )  # fmt: skip


def _name_classes(data: ScannedData, classes: np.ndarray) -> str:
    names = [data.spec.names[int(index)] for index in classes[:5]]
    return ", ".join(names) + (" ..." if len(classes) > len(names) else "")


def _class_examples(split: ScannedSplit, classes: np.ndarray, data: ScannedData) -> tuple[Example, ...]:
    """Return a label of each class."""
    ids = split.index.labels[:, 0]

    def example(index: int) -> Example:
        labels = np.flatnonzero(ids == index)
        return split.label_example(int(labels[0]), f"{data.spec.names[index]}: {len(labels)} in {split.name}")

    return first_examples(example(int(index)) for index in classes)


def _empty_images(split: ScannedSplit) -> Iterator[Finding]:
    empty = np.flatnonzero(np.diff(split.index.offsets) == 0)
    share = len(empty) / len(split.index)
    if share >= MANY_EMPTY and len(empty) < len(split.index):
        yield Finding(
            "warning", "splits", "many-empty-images", len(empty), f"images, {share:.0%}, have no labels",
            "About 10 % of such images keep false positives down. Remove others, or label what is on them.",
            split.name, first_examples(split.image_example(int(image)) for image in empty), {"share": share},
        )  # fmt: skip


def _empty_share(split: ScannedSplit) -> float:
    return float((np.diff(split.index.offsets) == 0).mean())


def _other_shares(train: ScannedSplit, split: ScannedSplit) -> Iterator[Finding]:
    shares = {train.name: _empty_share(train), split.name: _empty_share(split)}
    is_large = min(len(train.index), len(split.index)) >= MIN_LABELS
    if is_large and abs(shares[train.name] - shares[split.name]) >= EMPTY_DIFFERENCE:
        yield Finding(
            "warning", "splits", "empty-share-differs", round(shares[split.name] * len(split.index)),
            f"images have no labels, {shares[split.name]:.0%} of {split.name}, but {shares[train.name]:.0%} of train",
            "Divide the images at random: where splits differ, figures do not say how well the model will do.",
            split.name, figures=shares,
        )  # fmt: skip


def _other_sizes(data: ScannedData, train: ScannedSplit, split: ScannedSplit) -> Iterator[Finding]:
    """Yield the images and boxes of another size than those of train."""
    sides = {one.name: float(np.median(one.index.shapes.max(axis=1))) for one in (train, split)}
    if _ratio(sides) >= SIZE_RATIO:
        yield Finding(
            "warning", "splits", "image-sizes-differ", len(split.index),
            f"images have another size: their longer side is {sides[split.name]:.0f} px in the median, "
            f"{sides['train']:.0f} px in train",
            "Check where they are from. Images of one source, divided at random, give figures that can be trusted.",
            split.name, first_examples([split.image_example(0)]), sides,
        )  # fmt: skip
    if min(len(train.index.labels), len(split.index.labels)) < MIN_LABELS:
        return
    boxes = {
        one.name: float(np.median(np.sqrt(label_sizes(one.index, data.imgsz).prod(axis=1)))) for one in (train, split)
    }
    if _ratio(boxes) >= SIZE_RATIO:
        yield Finding(
            "warning", "splits", "box-sizes-differ", len(split.index.labels),
            f"boxes have another size: {boxes[split.name]:.0f} px in the median at --imgsz "
            f"{describe_size(data.imgsz)}, {boxes['train']:.0f} px in train",
            "Divide the images at random, or choose --imgsz by the sizes that will occur in use.",
            split.name, figures=boxes,
        )  # fmt: skip


def _ratio(values: dict[str, float]) -> float:
    return max(values.values()) / max(min(values.values()), 1e-9)
