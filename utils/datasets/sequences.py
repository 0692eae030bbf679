"""Sequences of images that their names show: frames of one video, and augmented copies of one image."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

MIN_FRAMES = 3  # of a sequence
REGULAR = 0.5  # least share of steps between frame numbers that are the usual one

# Folders that say how images are arranged, not what is on them.
ARRANGING = re.compile(r"(train|val|test|valid|validation|training|testing|images?|img|data|obj_train_data)\d*", re.I)
COPY = re.compile(r"\.rf\.\w+$")  # Roboflow's mark of a copy
FORMER_SUFFIX = re.compile(r"_(jpe?g|png|bmp|webp|tiff?)$", re.I)  # of the image that was copied
NUMBER = re.compile(r"(?:frame|frm)[-_ ]?(?P<frame>\d{1,18})|(?P<last>\d{1,18})(?=\D*$)", re.I)


class Sequences(NamedTuple):
    """Group of each image. An image that belongs to no sequence is a group of its own."""

    groups: np.ndarray  # (N,) int64: number of the group, in the order in which they first occur
    numbers: np.ndarray  # (N,) int64: frame number, 0 for an image without
    names: list[str]  # of groups: `clip/frame_*`, or the name of the image

    def sizes(self) -> np.ndarray:
        """Return the number of images in each group (G,)."""
        return np.bincount(self.groups, minlength=len(self.names))


def group_by_sequence(paths: Sequence[str]) -> Sequences:
    """Group images by the video or the source image that their names state.

    Copies of one image (`cat_jpg.rf.1f3a.jpg`) are one group. Names that differ in their frame number only are a
    sequence if the numbers proceed by regular steps: those of COCO, with gaps of any size, are not. Folders named after
    splits do not count, so that frames of one video in two splits are in one group.
    """
    names = [source_name(path) for path in paths]
    frames = [_split_number(name) for name in names]
    numbers_of: dict[str, set[int]] = defaultdict(set)
    for template, number in frames:
        numbers_of[template].add(number)
    sequences = {template for template, numbers in numbers_of.items() if template and _is_regular(numbers)}
    known: dict[str, int] = {}
    groups, numbers = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    for i, (name, (template, number)) in enumerate(zip(names, frames, strict=True)):
        key = template if template in sequences else name
        groups[i] = known.setdefault(key, len(known))
        numbers[i] = number
    return Sequences(groups, numbers, list(known))


def source_name(path: str) -> str:
    """Return the name of the image that `path` shows, without suffix: `train/images/cat_jpg.rf.1f3a.jpg` gives `cat`.

    The folders below the last one that arranges images (`train`, `images`) are in front.
    """
    parts = os.path.splitext(path)[0].replace("\\", "/").split("/")
    stem, is_copy = COPY.subn("", parts[-1])
    last = max((k for k, part in enumerate(parts[:-1]) if ARRANGING.fullmatch(part)), default=len(parts) - 2)
    return "/".join([*parts[last + 1 : -1], FORMER_SUFFIX.sub("", stem) if is_copy else stem])


def _split_number(name: str) -> tuple[str, int]:
    """Return the name with * for its frame number, and the number, or ("", 0) for a name without any."""
    folder, _, stem = name.rpartition("/")
    found = next(iter(sorted(NUMBER.finditer(stem), key=lambda match: match["frame"] is None)), None)
    if found is None:
        return "", 0
    start, end = found.span("frame" if found["frame"] else "last")
    return f"{folder}/{stem[:start]}*{stem[end:]}", int(found[0][start - found.start() : end - found.start()])


def _is_regular(numbers: Iterable[int]) -> bool:
    """Return whether most steps between the numbers are the same, as those of frames."""
    steps = Counter(b - a for a, b in pairwise(sorted(numbers)))
    return steps.total() >= MIN_FRAMES - 1 and max(steps.values()) >= REGULAR * steps.total()
