"""Cross-validation: detections of every image by a model that has not seen its labels.

The images are divided into folds. A model is trained for each fold on all other folds, and finds the objects of its own
fold. The training is a function that the program hands in.
"""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from utils import console
from utils.datasets.label_index import LabelIndex, offsets_of
from utils.datasets.sequences import group_by_sequence
from utils.errors import UserError
from utils.files import atomic_write, write_yaml
from utils.pixel_format import RGB, PixelFormat

TrainFold = Callable[[Path, Path], Path]  # data set YAML, run folder -> weights
PredictFold = Callable[[Path, Sequence[str]], list[np.ndarray | None]]  # weights, images -> detections (n, 6) of each

BLOCKS_PER_FOLD = 4  # into which a set that is one sequence is cut


@dataclass(frozen=True)
class Folds:
    """Plan of a cross-validation."""

    count: int
    seed: int
    settings: str  # everything else that the detections depend on, as text: weights, epochs, size

    def __post_init__(self) -> None:
        if self.count < 2:
            raise UserError(f"--cross {self.count}: at least 2 folds, as in --cross 5")

    def assign(self, paths: Sequence[str]) -> np.ndarray:
        """Return the fold (N,) of each image. The folds are of similar size.

        Frames of a sequence share a fold. A long sequence is cut into blocks of neighbouring frames.
        """
        members = self._blocks(paths)
        sizes = np.bincount(members)
        order = np.random.default_rng(self.seed).permutation(len(sizes))
        order = order[np.argsort(-sizes[order], kind="stable")]  # large groups first, so that small ones even out
        fold_of, filled = np.zeros(len(sizes), np.int64), np.zeros(self.count, np.int64)
        for group in order:
            fold_of[group] = int(filled.argmin())
            filled[fold_of[group]] += sizes[group]
        return fold_of[members]

    def _blocks(self, paths: Sequence[str]) -> np.ndarray:
        """Return the number (N,) of the block of frames that each image belongs to."""
        found = group_by_sequence(paths)
        longest = max(len(paths) // (BLOCKS_PER_FOLD * self.count), 1)
        order = np.lexsort((found.numbers, found.groups))
        starts = np.searchsorted(found.groups[order], np.arange(len(found.names)))
        place = np.empty(len(paths), np.int64)  # of the image in its sequence
        place[order] = np.arange(len(paths)) - starts[found.groups[order]]
        pairs = np.stack((found.groups, place // longest), axis=1)
        return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)


def cross_validate(
    index: LabelIndex, folds: Folds, *, names: Mapping[int, str], folder: Path, train: TrainFold, predict: PredictFold
) -> list[np.ndarray | None]:
    """Return the detections of each image, found by a model that has not seen it.

    They are (n, 6): x1, y1, x2, y2 in pixels, confidence, class; None for an image that cannot be read. What a fold
    found is kept in `folder` and read again if images, labels and settings are the same. Raises UserError for fewer
    images than folds.
    """
    if len(index) < folds.count:
        raise UserError(f"--cross {folds.count}: there are only {len(index)} images. Type a lower number")
    fold_of = folds.assign(list(index.paths))
    key = fingerprint(index, fold_of, folds.settings, names)
    results: list[np.ndarray | None] = [None] * len(index)
    copy: Path | None = None
    for fold in range(folds.count):
        numbers = np.flatnonzero(fold_of == fold)
        file = folder / f"fold{fold + 1}.npz"
        found = read_detections(file, key)
        if found is None:
            console.info(f"Fold {fold + 1} of {folds.count}: {len(index) - len(numbers)} images to learn from")
            copy = copy or write_copy(index, folder / "data")
            data = write_fold(copy, fold_of, fold, names=names, pixels=index.pixels)
            weights = train(data, folder / f"fold{fold + 1}")
            found = predict(weights, [index.paths[i] for i in numbers.tolist()])
            write_detections(file, found, key)
        else:
            console.info(f"Fold {fold + 1} of {folds.count}: detections read from {file}")
        for i, rows in zip(numbers.tolist(), found, strict=True):
            results[i] = rows
    if copy:
        shutil.rmtree(copy, ignore_errors=True)
    return results


def fingerprint(index: LabelIndex, fold_of: np.ndarray, settings: str, names: Mapping[int, str]) -> str:
    """Return a digest of images, labels, folds and settings."""
    digest = hashlib.sha256(repr((settings, sorted(names.items()), tuple(index.pixels))).encode())
    for path in index.paths:
        digest.update(os.fsencode(path) + b"\0")
    for array in (index.shapes, index.labels, index.offsets, fold_of):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_copy(index: LabelIndex, folder: Path) -> Path:
    """Write the labels as text files beside links to the images. Return the folder.

    The labels may come from annotations of any form. Where links are impossible, images are copied.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i, path in enumerate(index.paths):
        link_or_copy(Path(path), folder / "images" / copy_name(i, path))
        rows = "".join(" ".join(f"{value:.9g}" for value in row) + "\n" for row in index.boxes(i).tolist())
        (folder / "labels" / copy_name(i, path)).with_suffix(".txt").write_text(rows, encoding="utf-8")
    (folder / "images.txt").write_text(
        "".join(f"./images/{copy_name(i, path)}\n" for i, path in enumerate(index.paths)), encoding="utf-8"
    )
    return folder


def copy_name(i: int, path: str) -> str:
    """Return the name of image i in the copy."""
    return f"{i:07}{Path(path).suffix}"


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a link to `source`, or a copy of it."""
    for make in (os.symlink, os.link):
        with suppress(OSError, NotImplementedError):  # Windows without the right to, another disk
            make(source.absolute(), target)
            return
    shutil.copyfile(source, target)


def write_fold(copy: Path, fold_of: np.ndarray, fold: int, *, names: Mapping[int, str], pixels: PixelFormat) -> Path:
    """Write the data set YAML of a fold, whose validation split is the fold. Return the file."""
    lines = (copy / "images.txt").read_text(encoding="utf-8").splitlines()
    for split, chosen in (("train", fold_of != fold), ("val", fold_of == fold)):
        listed = [line for line, keep in zip(lines, chosen.tolist(), strict=True) if keep]
        (copy / f"{split}{fold + 1}.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
    file = copy / f"fold{fold + 1}.yaml"
    content: dict[str, Any] = {
        "path": str(copy.resolve()),
        "train": f"train{fold + 1}.txt",
        "val": f"val{fold + 1}.txt",
    }
    content["names"] = {index: names[index] for index in sorted(names)}
    write_yaml(file, content if pixels == RGB else {**content, **pixels._asdict()})
    return file


def write_detections(file: Path, found: Sequence[np.ndarray | None], key: str) -> None:
    """Write the detections (n, 6) of each image, and the fingerprint of what they depend on."""
    rows = [np.zeros((0, 6), np.float32) if one is None else one for one in found]
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as stream:
        np.savez(
            stream,
            rows=np.concatenate([*rows, np.zeros((0, 6), np.float32)]),
            offsets=offsets_of([len(one) for one in rows]),
            readable=[one is not None for one in found],
            key=key,
        )


def read_detections(file: Path, key: str) -> list[np.ndarray | None] | None:
    """Return the detections of each image, or None if there are none for this fingerprint."""
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as content:
            if str(content["key"]) != key:
                return None
            rows, offsets, readable = content["rows"], content["offsets"].tolist(), content["readable"].tolist()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return [rows[a:b] if can_read else None for (a, b), can_read in zip(pairwise(offsets), readable, strict=True)]
