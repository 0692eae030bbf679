"""Inventory of a folder that may hold a data set: where its images, label files and descriptions are."""

import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from utils.datasets.image_files import is_image, walk_files
from utils.errors import UserError
from utils.files import open_regular, read_regular
from utils.images.suffixes import IMAGE_SUFFIXES

DESCRIPTIONS = {".yaml", ".yml", ".json", ".data", ".names", ".labels"}
CLASS_FILES = {"classes.txt", "labels.txt", "names.txt", "class_names.txt", "predefined_classes.txt"}
NO_LABELS = {"notes.txt", "readme.txt", "readme.roboflow.txt", "readme.dataset.txt", "license.txt", "requirements.txt"}
NO_LABELS |= {"images.txt", "imagesets.txt", "all.txt", "default.txt"}
WORDS = {
    "train": {"train", "training", "trainset", "trn", "trainval"},
    "val": {"val", "valid", "validation", "valset", "dev", "eval"},
    "test": {"test", "testing", "testset", "tst"},
}
MANY_LABELS = 100  # in a folder that are named like a split: no list of images is looked for among more
MAX_START = 1 << 20  # bytes of a file that show what it is
MAX_FILE_BYTES = 1 << 40  # of a file whose start is read


@dataclass
class Inventory:
    """Files below a folder. All paths are relative to it, with slashes, "" for the folder itself."""

    root: Path
    images: Counter[str] = field(default_factory=Counter)  # number by folder
    labels: Counter[str] = field(default_factory=Counter)  # number of text files that may be YOLO labels
    xmls: dict[str, list[str]] = field(default_factory=dict)  # file names by folder
    lists: dict[str, list[str]] = field(default_factory=dict)  # list files of images by split
    files: list[str] = field(default_factory=list)  # YAML, JSON, darknet's files and lists of class names

    def describe(self) -> str:
        """Return how many files of each kind there are, and where."""
        kinds = {"images": self.images, ".txt files": self.labels}
        kinds[".xml files"] = Counter({folder: len(names) for folder, names in self.xmls.items()})
        parts = [f"{counts.total()} {kind} in {_first(list(counts))}" for kind, counts in kinds.items() if counts]
        return ", ".join([*parts, *([_first(self.files)] if self.files else [])]) or "nothing of the kind"


def take_inventory(root: Path) -> Inventory:
    """Find all files below `root` that may belong to a data set. Hidden names are skipped."""
    tried: Counter[str] = Counter()
    found, start = Inventory(root), len(os.path.join(root, ""))
    for path in sorted(walk_files(str(root), IMAGE_SUFFIXES | DESCRIPTIONS | {".txt", ".xml"})):
        name = path[start:].replace(os.sep, "/")
        folder, _, file = name.rpartition("/")
        suffix = file[file.rfind(".") :].lower()
        if suffix in IMAGE_SUFFIXES:
            found.images[folder] += 1
        elif suffix == ".xml":
            found.xmls.setdefault(folder, []).append(file)
        elif is_description(file):
            found.files.append(name)
        elif tried[folder] < MANY_LABELS and (split := split_of(file)) and _try_list(root / name, folder, tried):
            found.lists.setdefault(split, []).append(name)
        elif file.lower() not in NO_LABELS:
            found.labels[folder] += 1
    return found


def is_description(name: str) -> bool:
    """Return whether a file of this name may describe a data set or name its classes."""
    return os.path.splitext(name)[1].lower() in DESCRIPTIONS or name.lower() in CLASS_FILES


def split_of(path: str) -> str | None:
    """Return train, val or test if one of them is a word in a path, the last part first, else None.

    `valid`, `train2017`, `test_images` and `instances_val.json` count. A part with words of two splits is none.
    """
    for part in reversed(PurePosixPath(path.lower()).parts):
        words = set(re.findall("[a-z]+", part))
        found = [split for split, known in WORDS.items() if words & known]
        if len(found) == 1:
            return found[0]
    return None


def is_coco(file: Path) -> bool:
    """Return whether a JSON probably is a COCO file with annotations, by its start if it is large."""
    try:
        if file.stat().st_size <= MAX_START:
            data = json.loads(read_regular(file, MAX_START).decode("utf-8-sig"))
            return isinstance(data, dict) and isinstance(data.get("images"), list) and "annotations" in data
        with open_regular(file, MAX_FILE_BYTES) as opened:
            start = opened.read(MAX_START)
    except (OSError, ValueError, RecursionError):
        return False
    return (
        start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{"
        and re.search(rb'"(images|annotations)"\s*:\s*\[', start) is not None
    )


def is_voc(file: Path) -> bool:
    """Return whether an XML file probably is a Pascal VOC annotation of one image."""
    try:
        with open_regular(file, MAX_FILE_BYTES) as opened:
            return re.search(rb"<([\w.-]+:)?annotation[\s/>]", opened.read(4096)) is not None
    except OSError:
        return False


def _try_list(file: Path, folder: str, tried: Counter[str]) -> bool:
    tried[folder] += 1
    return is_list(file)


def is_list(file: Path) -> bool:
    """Return whether the first line of a text file is the path of an image."""
    try:
        with open_regular(file, MAX_FILE_BYTES) as opened:
            line = opened.readline(8192).decode("utf-8-sig", "surrogateescape").strip()
    except OSError:
        return False
    return is_image(line)


def read_class_names(file: Path) -> list[str]:
    """Return class names by number: the lines of a text file, or the categories of Label Studio's notes.json."""
    try:
        data = read_regular(file, MAX_START).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as UTF-8 text, one class name per line: {error}") from error
    if file.suffix.lower() != ".json":
        lines = [line.strip() for line in data.splitlines()]
        return lines[: max((k + 1 for k, line in enumerate(lines) if line), default=0)]
    try:
        categories = sorted(json.loads(data)["categories"], key=lambda category: category["id"])
        return [str(category["name"]) for category in categories]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def _first(names: list[str], number: int = 4) -> str:
    return ", ".join(name or "." for name in names[:number]) + ", ..." * (len(names) > number)
