"""Balance of rare classes in training: how often an epoch draws each image, and weights of classes in the loss.

Letters in shapes: N images, M labels, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from utils.class_values import AUTO, number_classes, read_class_values
from utils.config import MEDIAN_CLASS
from utils.console import info
from utils.datasets.label_index import LabelIndex
from utils.errors import UserError

MAX_AUTO_WEIGHT = 10.0


def image_shares(index: LabelIndex, num_classes: int) -> np.ndarray:
    """Return (C,) the share of the images that hold each class."""
    image, cls = _image_and_class(index)
    pairs = np.unique(image * num_classes + cls)  # a class counts once an image
    return np.bincount(pairs % num_classes, minlength=num_classes) / max(len(index), 1)


def _image_and_class(index: LabelIndex) -> tuple[np.ndarray, np.ndarray]:
    """Return the image and the class (M,) of each label."""
    return np.repeat(np.arange(len(index)), np.diff(index.offsets)), index.labels[:, 0].astype(np.int64)


def repeat_factors(index: LabelIndex, shares: np.ndarray, threshold: float) -> np.ndarray:
    """Return (N,) how often an epoch draws each image, 1 or more, by repeat-factor sampling (arXiv 1908.03195).

    A class in a share f of the images (C,) has the factor max(1, sqrt(threshold / f)). An image has the largest factor
    of its classes. Backgrounds have 1.
    """
    image, cls = _image_and_class(index)
    by_class = np.sqrt(np.maximum(threshold / np.where(shares > 0, shares, 1), 1))
    factors = np.ones(len(index))
    np.maximum.at(factors, image, by_class[cls])
    return factors


def balance_classes(index: LabelIndex, threshold: float, names: Mapping[int, str]) -> LabelIndex:
    """Return the index with the draws of `--class-balance`, and print the length of an epoch.

    threshold: share of the images below which a class is rare. MEDIAN_CLASS: that of the median class. 0: no balance.
    """
    if not threshold:
        return index
    shares = image_shares(index, len(names))
    if threshold == MEDIAN_CLASS:
        threshold = float(np.median(shares[shares > 0])) if shares.any() else 0.0
    factors = repeat_factors(index, shares, threshold)
    balanced = replace(index, draws=factors * (1 if index.draws is None else index.draws))
    rare = sorted(np.flatnonzero((shares > 0) & (shares < threshold)), key=lambda k: shares[k])
    most = ", ".join(f"{names[int(k)]} x {np.sqrt(threshold / shares[k]):.2g}" for k in rare[:3])
    more = f": {most}{', ...' * (len(rare) > 3)}" if rare else ", but there is none"
    info(
        f"Class balance: an epoch draws {balanced.epoch_size} times from {len(index)} images. Repeated are those of "
        f"classes in less than {threshold:.3g} of them{more}"
    )
    return balanced


def loss_weights(words: Sequence[str], names: Mapping[int, str], index: LabelIndex | None = None) -> np.ndarray | None:
    """Return the weight (C,) of each class in the class loss by the words of `--class-weights`, None without words.

    Classes without a number have 1, with `auto` they have weights that follow their labels in `index`. Without index
    the words are only checked. Raises UserError for a class that is not in `names`.
    """
    if not words:
        return None
    if len(names) < 2:
        raise UserError("--class-weights: there is one class only, which has no class loss. Omit the flag")
    plain, by_name = read_class_values(words, f"--class-weights {' '.join(words)}")
    typed = number_classes(by_name, names, "--class-weights")
    weights = np.ones(len(names))
    if AUTO in plain and index is not None:
        weights = automatic_weights(index, len(names))
    weights[list(typed)] = list(typed.values())
    if index is not None:
        info("Class weights: " + ", ".join(f"{names[k]} {weights[k]:.3g}" for k in sorted(names)))
    return weights


def automatic_weights(index: LabelIndex, num_classes: int) -> np.ndarray:
    """Return the weight (C,) of each class: the inverse root of its labels in an epoch, with mean 1 over all labels.

    No weight exceeds MAX_AUTO_WEIGHT. A class without labels has 1.
    """
    image, cls = _image_and_class(index)
    counts = np.bincount(cls, None if index.draws is None else index.draws[image], minlength=num_classes)
    inverse = 1 / np.sqrt(np.maximum(counts, 1e-9))
    scaled = inverse * counts.sum() / max((counts * inverse).sum(), 1e-9)
    return np.where(counts > 0, np.minimum(scaled, MAX_AUTO_WEIGHT), 1.0)
