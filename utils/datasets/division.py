"""Division of one set of images into those to train on and those to validate on: `--split 0.8`.

It is drawn once, so that both have images of each class.
A run keeps it in its folder, and a cache keeps it for other runs and programs. The data is only read.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.console import info, warn
from utils.datasets.label_cache import digest, user_cache_folder
from utils.datasets.label_index import LabelIndex
from utils.datasets.sequences import Sequences, group_by_sequence
from utils.datasets.stratification import classes_of_images, draw_groups
from utils.datasets.subset import take_images
from utils.errors import UserError
from utils.files import atomic_write, read_regular

FILE_NAME = "split.json"  # in a run folder
LONGEST = 0.05  # share of the images: a longer sequence is cut, so that one video can be divided
FEW = 0.5  # of the share to validate on; less is left where a set has grown or shrunk
NAMED = 5  # classes in a message
MAX_KEPT_BYTES = 1 << 30


class Parts(NamedTuple):
    """Positions of the images in each split, ascending."""

    train: np.ndarray  # (n,) int64
    val: np.ndarray  # (N - n,) int64


@dataclass(frozen=True)
class Division:
    """Share of the images to train on, the seed of the draw, and the file of a run that keeps it."""

    share: float
    seed: int = 0
    kept: Path | None = None
    _drawn: dict[str, Parts] = field(default_factory=dict, repr=False, compare=False)  # by a digest of the images

    @classmethod
    def parse(cls, text: str, run_folder: Path | None = None) -> "Division | None":
        """Return the division that `--split` describes, None for "".

        `run_folder` is that of the run to resume, or of the weights: its division counts, if it has one.
        """
        if not text:
            return None
        share, colon, seed = text.partition(":")
        try:
            division = cls(float(share), int(seed if colon else 0), run_folder / FILE_NAME if run_folder else None)
        except ValueError:
            division = cls(math.nan)
        if not 0 < division.share < 1 or division.seed < 0:
            raise UserError(
                f"--split {text}: expected the share of images to train on, 0.8 for instance, or 0.8:3 with a seed"
            )
        return division

    def __str__(self) -> str:
        return f"{self.share:g}" + f":{self.seed}" * (self.seed > 0)

    def divide_index(self, index: LabelIndex, root: Path, names: Mapping[int, str]) -> dict[str, LabelIndex]:
        """Return the indices of train and val. See `divide`. Messages on all images are in that of train."""
        parts = self.divide(index.paths, root, pairs=classes_of_images(index), names=names)
        return {"train": take_images(index, parts.train), "val": take_images(replace(index, messages=[]), parts.val)}

    def divide(self, paths: Sequence[str], root: Path, *, pairs: np.ndarray, names: Mapping[int, str]) -> Parts:
        """Return which of the images below `root` to train on and which to validate on, and report the source.

        It is that of the run or of the cache, if one of them has any of these images. Else it is a new one, which
        balances the classes. `pairs` is as `classes_of_images` returns, `names` are those of the classes. Without any
        labels a new one is not kept.
        """
        relative = [_relative(path, root) for path in paths]
        key = digest(root, *relative)
        if key not in self._drawn:
            place = f"{digest(os.path.realpath(root), *_common(relative), str(self))[:16]}.json"
            cached = user_cache_folder() / "splits" / place
            is_val = self._find_kept(relative, cached)
            if is_val is None:
                is_val = self._draw(paths, pairs, names, cached)
                if len(pairs):
                    self._keep(
                        cached,
                        val_paths=[paths[i] for i in np.flatnonzero(is_val).tolist()],
                        count=len(paths),
                        root=root,
                    )
            self._drawn[key] = Parts(np.flatnonzero(~is_val), np.flatnonzero(is_val))
        return self._drawn[key]

    def _find_kept(self, names: list[str], cached: Path) -> np.ndarray | None:
        """Return which images the division of the run or of the cache validates on, None if there is none of them."""
        for file in filter(None, (self.kept, cached)):
            content = _read(file)
            is_val = np.isin(names, content["val"]) if content else np.zeros(len(names), bool)
            if content and 0 < is_val.sum() < len(names):
                changed = len(names) - content["images"]
                note = f" ({changed:+} images since then: new ones are trained on)" if changed else ""
                info(f"{_summary(content['split'], is_val)}, as kept in {file}{note}")
                if is_val.sum() < FEW * (1 - self.share) * len(names) and file == cached:
                    warn(f"--split {self}: few images are left to validate on. Delete {file} to draw again")
                return is_val
        return None

    def _draw(self, paths: Sequence[str], pairs: np.ndarray, names: Mapping[int, str], cached: Path) -> np.ndarray:
        """Return which images a new division validates on, and warn of classes that it has on one side only."""
        sequences = group_by_sequence(paths)
        is_val = draw_groups(_cut(sequences), self.share, self.seed, pairs)
        kept = f"; kept in {cached}" if len(pairs) else ""
        info(f"{_summary(self, is_val)}, drawn at random by class{_describe(sequences)}{kept}")
        for side, task in ((is_val, "validate"), (~is_val, "train")):
            totals = Counter(pairs[:, 1].tolist())
            absent = [number for number in sorted(totals) if number not in set(pairs[side[pairs[:, 0]], 1].tolist())]
            listed = ", ".join(f"{names.get(number, number)} ({totals[number]} in all)" for number in absent[:NAMED])
            if absent:
                warn(
                    f"--split {self}: no image to {task} on of {listed}{', ...' * (len(absent) > NAMED)}: a single "
                    "image or sequence is not divided. Add images"
                )
        return is_val

    def _keep(self, file: Path, *, val_paths: Sequence[str], count: int, root: Path) -> None:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            self.write(file, val_paths=val_paths, num_images=count, root=root)

    def write(self, file: Path, *, val_paths: Sequence[str], num_images: int, root: Path) -> None:
        """Write the names of the images to validate on, out of `num_images` below `root`."""
        val = [_relative(path, root) for path in val_paths]
        content = {"split": str(self), "images": num_images, "val": val}
        with atomic_write(file, sync=False) as opened:
            opened.write(json.dumps(content, indent=0).encode("utf-8", "surrogateescape"))


def _cut(sequences: Sequences) -> np.ndarray:
    """Return the numbers of groups (N,) with long sequences cut into runs of consecutive frames."""
    limit = max(1, math.ceil(LONGEST * len(sequences.groups)))
    groups, following = sequences.groups.copy(), len(sequences.names)
    for group in np.flatnonzero(sequences.sizes() > limit).tolist():
        members = np.flatnonzero(sequences.groups == group)
        frames, frame_of = np.unique(sequences.numbers[members], return_inverse=True)
        pieces = min(len(frames), math.ceil(len(members) / limit))
        groups[members] = following + frame_of * pieces // len(frames)
        following += pieces
    return np.unique(groups, return_inverse=True)[1]


def _relative(path: str, root: Path) -> str:
    """Return a path below `root` with slashes. One elsewhere is kept."""
    start = os.path.join(root, "")
    return (path[len(start) :] if path.startswith(start) else path).replace(os.sep, "/")


def _common(names: Sequence[str]) -> list[str]:
    """Return the folders of the images, which distinguish two sets below one root."""
    return sorted({name.rpartition("/")[0] for name in names})


def _read(file: Path) -> dict[str, Any] | None:
    """Return the content of a file that `write` wrote, None for any other."""
    try:
        content = json.loads(read_regular(file, MAX_KEPT_BYTES).decode("utf-8", "surrogateescape"))
        fits = isinstance(content["images"], int) and isinstance(content["split"], str) and bool(content["val"])
        return content if fits and all(isinstance(name, str) for name in content["val"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _summary(split: "Division | str", is_val: np.ndarray) -> str:
    return f"--split {split}: {(~is_val).sum()} images to train on, {is_val.sum()} to validate on"


def _describe(sequences: Sequences) -> str:
    together = sequences.sizes()[sequences.sizes() > 1]
    if not len(together):
        return ""
    kind = "group of frames or copies" if len(together) == 1 else "groups of frames or copies"
    return f" (by their names {together.sum()} images form {len(together)} {kind}, so that neighbours stay together)"
