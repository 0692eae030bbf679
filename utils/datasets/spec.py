"""Data set YAML, and the same with its paths resolved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.cli import shorten
from utils.console import warn
from utils.errors import UserError
from utils.files import read_yaml

MAX_PATH = 4096  # characters


@dataclass(frozen=True)
class DatasetSpec:
    """Data set with its paths resolved. `splits` maps train, val and test to lists of existing paths."""

    file: Path
    root: Path
    splits: dict[str, list[Path]]
    names: dict[int, str]

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def is_coco(self) -> bool:
        """True for COCO 2017, which is recognised by the name and folder of its list of validation images."""
        return any(path.as_posix().endswith("coco/val2017.txt") for path in self.splits.get("val", ()))

    def sources(self, split: str) -> list[Path]:
        """Return the folders and list files of `split`. Raises UserError if the YAML does not have it."""
        if not self.splits.get(split):
            raise UserError(f"{self.file}: no `{split}:` images; add the key, or choose another --task")
        return self.splits[split]


@dataclass(frozen=True)
class DatasetYaml:
    """Content of a data set YAML. Its images may be absent."""

    file: Path
    root: str  # `path:`, absolute or relative to one of several folders
    entries: dict[str, list[str]]  # paths below the root by split: train, val, test
    names: dict[int, str]
    download: list[str]  # URLs, not checked yet

    def resolve(self, folders: Sequence[Path]) -> DatasetSpec:
        """Find the images: beside the YAML if `path:` is relative, then in each of `folders`.

        Raises MissingData (a UserError) with the places searched if train or val is in none of them.
        """
        try:
            roots = _root_candidates(self.root, self.file, folders)
            for root in roots:
                splits = {split: [_resolve(root, entry) for entry in group] for split, group in self.entries.items()}
                if all(path.exists() for split in ("train", "val") for path in splits[split]):
                    return DatasetSpec(self.file, root, splits, self.names)
        except (OSError, RuntimeError) as error:  # a name that is too long, a loop of links
            raise UserError(f"{self.file}: a path in it cannot be followed: {shorten(str(error))}") from error
        raise MissingData(self, roots)


def read_dataset_yaml(file: Path) -> DatasetYaml:
    """Read and check a data set YAML. Its images may be absent. Raises UserError naming file and key."""
    content = read_yaml(file)
    for key in ("train", "val", "names"):
        if not content.get(key):
            raise UserError(f"{file}: `{key}:` is missing")
    names = _read_names(content["names"], file)
    if content.get("nc") not in (None, len(names)):
        warn(f"{file}: nc: {shorten(content['nc'])} but {len(names)} names. The names count; correct or remove `nc:`")
    download = _as_strings(content.get("download") or [], file, "download")
    entries = {key: _as_strings(content.get(key) or [], file, key) for key in ("train", "val", "test")}
    root = _as_strings(content.get("path") or ".", file, "path")
    return DatasetYaml(file, root[0] if root else ".", entries, names, download)


class MissingData(UserError):
    """Images of a data set that are in none of the places searched."""

    def __init__(self, dataset: DatasetYaml, roots: list[Path]) -> None:
        self.places = ", ".join(str(root) for root in roots)
        entries = dict.fromkeys(dataset.entries["train"] + dataset.entries["val"])
        absent = [entry for entry in entries if not any(_resolve(root, entry).exists() for root in roots)]
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
    parts = [part for part in Path(root).parts if part != ".."]
    tail = Path(*(parts[1:] if parts[:1] == ["datasets"] else parts))
    bases = [file.parent, *folders]
    candidates = [base / root for base in bases] + [base / tail for base in bases]
    return list(dict.fromkeys(candidate.resolve() for candidate in candidates))


def _resolve(root: Path, entry: str) -> Path:
    """Return `entry` below `root`, without a leading ../ if the images are there."""
    direct = (root / entry).resolve()
    if not direct.exists() and entry.startswith("../") and (root / entry[3:]).exists():
        return (root / entry[3:]).resolve()
    return direct


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
