"""Random division of groups of images into two sides that hold each class in the same shares."""

from typing import NamedTuple

import numpy as np

from utils.datasets.label_index import LabelIndex, offsets_of
from utils.errors import UserError

TRAIN, VAL = 0, 1  # the sides


class Held(NamedTuple):
    """Classes that each group of images holds. G groups, C classes, H pairs of the two, ascending by group."""

    starts: np.ndarray  # (G + 1,) int64: group g holds classes[starts[g] : starts[g + 1]]
    classes: np.ndarray  # (H,) int64: numbers from 0; the last class, C - 1, is held by every image
    images: np.ndarray  # (H,) int64: number of images of the group with the class

    @classmethod
    def of_groups(cls, groups: np.ndarray, pairs: np.ndarray) -> "Held":
        """Return what groups hold. `groups` (N,) is that of each image, `pairs` is as `classes_of_images` returns."""
        _, classes = np.unique(pairs[:, 1], return_inverse=True)
        common = classes.max(initial=-1) + 1
        images = np.concatenate([pairs[:, 0], np.arange(len(groups))])
        keys = groups[images] * (common + 1) + np.concatenate([classes, np.full(len(groups), common)])
        keys, counts = np.unique(keys, return_counts=True)
        owners, classes = np.divmod(keys, common + 1)
        return cls(offsets_of(np.bincount(owners)), classes, counts)


def classes_of_images(index: LabelIndex) -> np.ndarray:
    """Return (P, 2) int64: the number of an image and a class that it has labels of, each pair once, ascending."""
    images = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    classes = index.labels[:, 0].astype(np.int64)
    num_classes = classes.max(initial=0) + 1
    return np.stack(np.divmod(np.unique(images * num_classes + classes), num_classes), 1)


def draw_groups(groups: np.ndarray, share: float, seed: int, pairs: np.ndarray) -> np.ndarray:
    """Return (N,) bool, which images are to validate on: whole groups, about 1 - `share` of all images and each class.

    `groups` (N,) are numbers of groups from 0. `pairs` is as `classes_of_images` returns. This is iterative
    stratification (Sechidis, Tsoumakas and Vlahavas, 2011). The class with the fewest groups left is next, and each of
    its groups goes to the side that still needs most images of it. Ours are groups in place of images, and a rule: the
    last group of a class goes to a side without the class. Raises UserError if there is one group only.
    """
    held = Held.of_groups(groups, pairs)
    num_groups = len(held.starts) - 1
    if num_groups < 2:
        raise UserError(f"--split {share:g}: {len(groups)} images that belong together cannot be divided. Add images")
    left = np.bincount(held.classes)  # (C,) groups of each class that have no side yet
    need = np.outer([share, 1 - share], np.bincount(held.classes, held.images))  # (2, C) images that a side lacks
    absent = np.ones(need.shape, bool)  # classes that a side has no image of
    sides = np.full(num_groups, -1)
    order = np.random.default_rng([seed, num_groups]).permutation(num_groups)
    members = _group_by_class(held, order)
    while left.any():
        rarest = int(np.where(left, left, num_groups + 1).argmin())
        for group in members[rarest]:
            if sides[group] < 0:
                own = slice(held.starts[group], held.starts[group + 1])
                classes = held.classes[own]
                urgent = (absent[:, classes] & (left[classes] == 1)).sum(1)  # (2,) classes with their last group
                scores = [(urgent[side], need[side, rarest], need[side, -1]) for side in (TRAIN, VAL)]
                side = VAL if scores[VAL] > scores[TRAIN] else TRAIN
                sides[group] = side
                left[classes] -= 1
                need[side, classes] -= held.images[own]
                absent[side, classes] = False
    return sides[groups] == VAL


def _group_by_class(held: Held, order: np.ndarray) -> list[list[int]]:
    """Return the groups with each class, in the order that `order` (G,) gives them."""
    ranks = np.argsort(order)[np.repeat(np.arange(len(order)), np.diff(held.starts))]
    sorted_ranks = ranks[np.lexsort((ranks, held.classes))]
    return [order[part].tolist() for part in np.split(sorted_ranks, np.cumsum(np.bincount(held.classes))[:-1])]
