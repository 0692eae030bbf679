"""Data set YAML, and the same with its paths resolved."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.cli import shorten, suggest
from utils.console import warn
from utils.datasets.annotation_source import find_names
from utils.datasets.division import Division
from utils.datasets.image_files import label_path
from utils.errors import UserError
from utils.files import read_yaml
from utils.pixel_format import RGB, UNSTATED, PixelFormat, StatedPixels, read_stated_pixels

MAX_PATH = 4096  # characters
SPLITS = ("train", "val", "test")

# Keys of other programs for the same.
OTHER_KEYS = {
    "train": ("training", "train_images", "train_dir"),
    "val": ("valid", "validation", "eval", "dev", "val_images", "val_dir"),
    "names": ("classes", "class_names", "labels", "categories", "name"),
}


@dataclass(frozen=True)
class DatasetSpec:
    """Data set with its paths resolved. `splits` maps train, val and test to lists of existing paths."""

    file: Path
    root: Path
    splits: dict[str, list[Path]]
    names: dict[int, str]
    keypoint_values: int = 0  # behind the box in each row of a label file
    division: Division | None = None  # of the images of train, if there is no val
    pixels: StatedPixels = UNSTATED  # of the images; a model settles what it does not state

    def with_pixels(self, pixels: PixelFormat, *, of: object = "the model") -> "DatasetSpec":
        """Return the data set with its images decoded to `pixels`. Raises UserError if its YAML says otherwise."""
        return replace(self, pixels=self.pixels.settle(pixels, of=of))

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def is_coco(self) -> bool:
        """True for COCO 2017, which is recognised by the name and folder of its list of validation images."""
        return any(path.as_posix().endswith("coco/val2017.txt") for path in self.splits.get("val", ()))

    def sources(self, split: str) -> list[Path]:
        """Return the folders and list files of `split`. Raises UserError if the YAML does not have it."""
        if split == "val" and self.division:
            split = "train"  # `load_split` divides them
        if not self.splits.get(split):
            raise UserError(f"{self.file}: no `{split}:` images; add the key, or choose another --task")
        return self.splits[split]


@dataclass(frozen=True)
class DatasetYaml:
    """Content of a data set YAML. Its images may be absent."""

    file: Path
    root: str  # `path:`, absolute or relative to one of several folders
    entries: dict[str, list[str]]  # paths below the root by split: train, val, test
    names: dict[int, str]  # {} to take those of the annotations
    download: list[str]  # URLs, not checked yet
    keypoint_values: int = 0  # behind the box in each row of a label file
    division: Division | None = None  # of the images of train, if there is no val
    pixels: StatedPixels = UNSTATED  # of the images; a model settles what it does not state

    def with_pixels(self, pixels: PixelFormat, *, of: object = "the model") -> "DatasetYaml":
        """Return the data set with its images decoded to `pixels`. Raises UserError if the YAML says otherwise."""
        return replace(self, pixels=self.pixels.settle(pixels, of=of))

    @property
    def folder_name(self) -> str:
        """Name of the data set's folder in a folder of data sets, "" if `path:` names none."""
        parts = [part for part in Path(_with_slashes(self.root)).parts if part not in ("..", "datasets")]
        return parts[0] if parts and not Path(self.root).is_absolute() else ""

    def resolve(self, folders: Sequence[Path]) -> DatasetSpec:
        """Find the images: beside the YAML if `path:` is relative, then in each of `folders`.

        Train and val are in one place, test may be beside the YAML. Raises MissingData (a UserError) with the places
        searched if train or val is in none of them. Without `names:` they are those of COCO or VOC annotations, which
        are read for them.
        """
        try:
            roots, beside = (_root_candidates(self.root, self.file, places) for places in (folders, ()))
            for root in roots:
                splits = {split: [_find_entry(root, entry) for entry in group] for split, group in self.entries.items()}
                if all(path.exists() for split in ("train", "val") for path in splits[split]):
                    splits["test"] = [_first_existing(entry, [root, *beside]) for entry in self.entries["test"]]
                    splits = {split: list(map(_beside_labels, paths)) for split, paths in splits.items()}
                    names = self._names(splits, root)
                    return DatasetSpec(self.file, root, splits, names, self.keypoint_values, self.division, self.pixels)
        except (OSError, RuntimeError) as error:  # a name that is too long, a loop of links
            raise UserError(f"{self.file}: a path in it cannot be followed: {shorten(str(error))}") from error
        raise MissingData(self, roots)

    def _names(self, splits: dict[str, list[Path]], root: Path) -> dict[int, str]:
        """Return `names:`, else the names in the annotations. Raises UserError if there are none."""
        names = self.names or dict(enumerate(find_names(splits, root, self.pixels.fill(RGB))))
        if not names:
            raise UserError(f"{self.file}: `names:` is missing: add the names of the classes in their order")
        return names


def read_dataset_yaml(file: Path, *, required: Sequence[str] = ("train", "val")) -> DatasetYaml:
    """Read and check a data set YAML. Its images may be absent. Raises UserError naming file and key.

    `required` are the splits that it must name. `names:` may be absent, for annotations that have them.
    """
    content = read_yaml(file)
    for key in (*required, "names"):
        advice = "" if content.get(key) else _advise_key(key, content)
        if not content.get(key) and (key != "names" or advice):
            raise UserError(f"{file}: `{key}:` is missing{advice}")
    names = _read_names(content.get("names") or [], file)
    for name, count in Counter(names.values()).items():
        if count > 1:
            numbers = ", ".join(str(index) for index in names if names[index] == name)
            warn(f"{file}: the classes {numbers} have the same name {name!r}. Give each its own")
    if names and content.get("nc") not in (None, len(names)):
        warn(f"{file}: nc: {shorten(content['nc'])} but {len(names)} names. The names count; correct or remove `nc:`")
    download = _as_strings(content.get("download") or [], file, "download")
    entries = {key: _as_strings(content.get(key) or [], file, key) for key in SPLITS}
    root = _as_strings(content.get("path") or ".", file, "path")
    keypoint_values = _read_keypoint_shape(content.get("kpt_shape"), file)
    place = os.path.expanduser(root[0]) if root else "."
    return DatasetYaml(file, place, entries, names, download, keypoint_values, pixels=read_stated_pixels(content, file))


def _advise_key(key: str, content: dict) -> str:
    """Return what to type for a key that a data set YAML lacks."""
    texts = [text for text in content if isinstance(text, str) and text not in (*SPLITS, "path", "names", "nc")]
    found = next((text for text in texts if text.lower() in (key, *OTHER_KEYS.get(key, ()))), None)
    if found:
        return f": rename `{found}:` to `{key}:`"
    if key == "test":
        return ": add it with the images to test on, or choose another --task"
    if key == "val":
        return ": add `val:` with the validation images, the folder of `train:` again, or type --split 0.8"
    return suggest(key, texts)


def _read_keypoint_shape(value: Any, file: Path) -> int:
    """Return how many values follow the box in each row: `kpt_shape: [points, 2 or 3]`, 0 if it is absent."""
    if value is None:
        return 0
    is_shape = isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)
    if not is_shape or value[0] < 1 or value[1] not in (2, 3):
        raise UserError(f"{file}: kpt_shape: {shorten(value)}: expected [number of keypoints, 2 or 3]")
    return value[0] * value[1]


class MissingData(UserError):
    """Images of a data set that are in none of the places searched."""

    def __init__(self, dataset: DatasetYaml, roots: list[Path]) -> None:
        self.places = ", ".join(str(root) for root in roots)
        entries = dict.fromkeys(dataset.entries["train"] + dataset.entries["val"])
        absent = [entry for entry in entries if not _first_existing(entry, roots).exists()]
        self.entries = " and ".join(absent or entries)
        # The places come last: a long line is cut, and what to do must stay in it.
        super().__init__(
            f"{dataset.file}: {self.entries} not found; correct `path:` in the YAML, or set ANCHORAGE_DATASETS to "
            f"the folder that holds your data sets; looked in {self.places}"
        )


def _root_candidates(root: str, file: Path, folders: Sequence[Path]) -> list[Path]:
    """Return the folders that `root` may mean: itself if absolute, else below the YAML's folder and `folders`.

    Relative ones are tried with and without the leading ../ and datasets/ that shared YAMLs have.
    """
    if Path(root).is_absolute():
        return [Path(root)]
    root = _with_slashes(root)
    parts = [part for part in Path(root).parts if part != ".."]
    tail = Path(*(parts[1:] if parts[:1] == ["datasets"] else parts))
    bases = [file.parent, *folders]
    candidates = [base / root for base in bases] + [base / tail for base in bases]
    return list(dict.fromkeys(map(_absolute, candidates)))


def _find_entry(root: Path, entry: str) -> Path:
    """Return `entry` below `root`, without a leading ../ if the images are there.

    Backslashes count as slashes if there is no such path.
    """
    slashes = _with_slashes(entry)
    shorter = [slashes[3:]] if slashes.startswith("../") else []
    candidates = [_absolute(root / text) for text in (entry, slashes, *shorter)]
    return next((path for path in candidates if path.exists()), candidates[0])


def _first_existing(entry: str, roots: list[Path]) -> Path:
    candidates = [_find_entry(root, entry) for root in roots]
    return next((path for path in candidates if path.exists()), candidates[0])


def _with_slashes(text: str) -> str:
    """Return a relative path as it is written on Windows with slashes."""
    return text.replace("\\", "/")


def _absolute(path: Path) -> Path:
    """Return the absolute path without `..`, with its links: labels lie beside the path as typed.

    `..` behind a link leads to another folder than the text says. Such a path keeps it.
    """
    tidy = Path(os.path.abspath(path))
    return tidy if os.path.realpath(tidy) == os.path.realpath(path) else path.absolute()


def _beside_labels(path: Path) -> Path:
    """Return a folder of images as typed, or the target of its links if labels are only beside that."""
    real = Path(os.path.realpath(path))
    if path == real or not path.is_dir() or _has_labels(path) or not _has_labels(real):
        return path
    warn(f"labels of {path} are taken from its link's target, {Path(label_path(real / 'x.jpg')).parent}")
    return real


def _has_labels(folder: Path) -> bool:
    """Return whether the folder of labels for a folder of images exists and is another folder."""
    labels = Path(label_path(folder / "x.jpg")).parent
    return labels != folder and labels.is_dir()


def _as_strings(value: Any, file: Path, key: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    for entry in values:
        if not isinstance(entry, str) or "\0" in entry or len(entry) > MAX_PATH:
            raise UserError(f"{file}: {key}: {shorten(entry)} is not a path")
    return values


def _read_names(names: Any, file: Path) -> dict[int, str]:
    """Return {0: name, …} from a list, or from a mapping with the keys 0 to n-1."""
    pairs = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(pairs, dict) or sorted(pairs, key=str) != sorted(range(len(pairs)), key=str):
        problem = _describe_keys(pairs) if isinstance(pairs, dict) else ""
        raise UserError(f"{file}: names: expected a list, or a mapping with the keys 0 to n-1{problem}")
    for index, name in pairs.items():
        if isinstance(name, (bool, dict, list, type(None))):
            raise UserError(f"{file}: names: {index}: {shorten(name)} is not a name; put quotes around it")
    return {index: str(pairs[index]) for index in range(len(pairs))}


def _describe_keys(names: dict) -> str:
    """Return which keys of a mapping of names are no numbers, or which numbers are missing."""
    texts = [repr(key) for key in names if type(key) is not int]
    if texts:
        return f"; no numbers: {shorten(', '.join(texts))}"
    absent = [str(index) for index in range(len(names)) if index not in names]
    return f"; of {len(names)} keys these are missing: {shorten(', '.join(absent))}"
