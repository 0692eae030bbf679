"""A data set YAML with its paths resolved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.cli import shorten
from utils.errors import UserError
from utils.files import read_yaml

MAX_PATH = 4096  # characters


def _wrong_keys(names: Any) -> str:
    if not isinstance(names, dict):
        return ""
    texts = [repr(key) for key in names if type(key) is not int]
    if texts:
        return f"; no numbers: {shorten(', '.join(texts))}"
    absent = [str(index) for index in range(len(names)) if index not in names]
    return f"; among the {len(names)} there is no {shorten(', '.join(absent))}"


@dataclass(frozen=True)
class DatasetSpec:
    """A data set YAML with its paths resolved; `splits` maps train, val and test to lists of existing paths."""

    file: Path
    root: Path
    splits: dict[str, list[Path]]
    names: dict[int, str]
    download: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def is_coco(self) -> bool:
        """Whether this is COCO 2017, by the name and place of its list of pictures."""
        return any(path.as_posix().endswith("coco/val2017.txt") for path in self.splits.get("val", ()))

    def sources(self, split: str) -> list[Path]:
        """Folders and list files of `split`; UserError when the YAML does not have it."""
        if not self.splits.get(split):
            raise UserError(f"{self.file}: no `{split}:` images; add the key, or choose another --task")
        return self.splits[split]

    @classmethod
    def load(cls, path: Path, folders: Sequence[Path]) -> "DatasetSpec":
        """Read `path`; a relative `path:` is looked for beside the YAML, then in each of `folders`.

        Raises MissingData (a UserError) with the places looked at when train or val are nowhere.
        """
        content, names = read_dataset(path)
        if content.get("nc") not in (None, len(names)):
            print(f"WARNING {path}: nc: {shorten(content['nc'])} but {len(names)} names; the names count")
        download = _as_strings(content.get("download") or [], path, "download")
        wanted = {key: _as_strings(content.get(key) or [], path, key) for key in ("train", "val", "test")}
        start = _as_strings(content.get("path") or ".", path, "path")
        try:
            roots = _root_candidates(start[0] if start else ".", path, folders)
            for root in roots:
                splits = {key: [_resolve(root, entry) for entry in entries] for key, entries in wanted.items()}
                if all(entry.exists() for key in ("train", "val") for entry in splits[key]):
                    return cls(path, root, splits, names, tuple(download))
        except (OSError, RuntimeError) as error:  # a name too long, links in a circle
            raise UserError(f"{path}: a path in it cannot be followed: {shorten(str(error))}") from error
        raise MissingData(path, roots, wanted, download)


def read_dataset(path: Path) -> tuple[dict[str, Any], dict[int, str]]:
    """The keys of a data set YAML and its class names; the pictures need not be there yet."""
    content = read_yaml(path)
    for key in ("train", "val", "names"):
        if not content.get(key):
            raise UserError(f"{path}: `{key}:` is missing")
    return content, _read_names(content["names"], path)


class MissingData(UserError):
    """The pictures of a data set are in none of `roots`; `download` holds the URLs that its YAML gives."""

    def __init__(self, file: Path, roots: list[Path], wanted: dict[str, list[str]], download: list[str]):
        self.file, self.roots, self.download = file, roots, download
        self.places = ", ".join(str(root) for root in roots)
        entries = dict.fromkeys(wanted["train"] + wanted["val"])
        absent = [entry for entry in entries if not any(_resolve(root, entry).exists() for root in roots)]
        self.entries = " and ".join(absent or entries)
        # The places come last: where they are many the line is cut, and what to do must stay.
        super().__init__(
            f"{file}: {self.entries} not found; correct `path:` in the YAML, or set ANCHORAGE_DATASETS to "
            f"the folder that holds your data sets; looked in {self.places}"
        )


def _root_candidates(root: str, file: Path, folders: Sequence[Path]) -> list[Path]:
    """Where `root` may be: as it is when absolute, else beside the YAML and below each folder, with and without the
    leading ../ and datasets/ that shared YAMLs carry."""
    if Path(root).is_absolute():
        return [Path(root)]
    parts = [part for part in Path(root).parts if part != ".."]
    tail = Path(*(parts[1:] if parts[:1] == ["datasets"] else parts))
    bases = [file.parent, *folders]
    candidates = [base / root for base in bases] + [base / tail for base in bases]
    return list(dict.fromkeys(candidate.resolve() for candidate in candidates))


def _resolve(root: Path, entry: str) -> Path:
    """`entry` below `root`; a leading ../ is dropped when that is where the images are."""
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
    """{0: name, …} from a list or a mapping with the keys 0 to n-1."""
    pairs = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(pairs, dict) or sorted(pairs, key=str) != sorted(range(len(pairs)), key=str):
        raise UserError(f"{file}: names: expected a list, or a mapping with the keys 0 to n-1{_wrong_keys(pairs)}")
    for index, name in pairs.items():
        if isinstance(name, (bool, dict, list, type(None))):
            raise UserError(f"{file}: names: {index}: {shorten(name)} is not a name; put quotes around it")
    return {index: str(pairs[index]) for index in range(len(pairs))}
