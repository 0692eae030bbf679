"""Writer of data sets that train.py reads: images/SPLIT, labels/SPLIT and a YAML, from rows that a converter made.

The inputs are only read. The output folder appears under its name when it is complete.
"""

import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from utils.console import progress_bar
from utils.errors import UserError
from utils.files import write_yaml
from utils.images.header import image_shape

SPLITS = ("train", "val", "test")


@dataclass
class Item:
    """One image of a split and its label rows."""

    image: Path
    name: str  # path below images/SPLIT
    rows: list[str]


@dataclass
class Dataset:
    """Result of a conversion: images by split, class names by number, and counts of what was skipped, by reason."""

    names: list[str]
    splits: dict[str, list[Item]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, split: str, image: Path, *, name: str, rows: Sequence[str]) -> None:
        """Add an image. Equal rows are one object that was labelled twice."""
        unique = list(dict.fromkeys(rows))
        self.skipped["repeated rows"] += len(rows) - len(unique)
        self.splits.setdefault(split, []).append(Item(image, safe_name(name), unique))


def safe_name(name: str) -> str:
    """Return an image's name from an annotation file. Raises UserError if it leads out of the folder of images."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.name or ":" in path.parts[0]:
        raise UserError(f"image name {name!r} leads out of its folder: give names below the folder of images")
    return str(path)


def box_row(class_id: int, xyxy_px: Sequence[float], size: tuple[int, int]) -> str | None:
    """Return the label row of a box clipped to the image, size = (height, width), or None if no area is left."""
    H, W = size
    left, top, right, bottom = (min(max(v, 0.0), end) for v, end in zip(xyxy_px, (W, H, W, H), strict=True))
    if not (right > left and bottom > top):
        return None
    box = ((left + right) / 2 / W, (top + bottom) / 2 / H, (right - left) / W, (bottom - top) / H)
    return format_row(class_id, box) if min(round(box[2], 6), round(box[3], 6)) > 0 else None


def format_row(class_id: int, values: Sequence[float]) -> str:
    return " ".join([str(class_id), *(f"{value:.6f}" for value in values)])


def parse_finite(values: Sequence[Any], count: int, *, where: str) -> list[float]:
    """Return `count` finite numbers. Raises UserError with the values if they are anything else."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise UserError(f"{where} is {values!r}: expected {count} finite numbers")
    return numbers


def measure_image(image: Path) -> tuple[int, int]:
    """Return height and width of the decoded image. Raises UserError if it cannot be read."""
    try:
        return image_shape(image)
    except ValueError as error:
        raise UserError(f"{image}: its size is needed, but it cannot be read: {error}") from error


@contextmanager
def new_folder(folder: Path) -> Generator[Path]:
    """Yield a temporary folder beside `folder` that takes its name if the block succeeds, and is deleted if not."""
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: give another --output, or delete it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-unfinished-", dir=folder.parent))
    try:
        yield draft
        draft.chmod(0o755)  # mkdtemp gives permissions to the owner only
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def link_or_copy(image: Path, target: Path, *, copy: bool) -> None:
    """Make a symbolic link to the image. Copy it with `copy`, or if the system refuses links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            return os.symlink(image.resolve(), target)
        except OSError:
            pass  # Windows without the permission to make links
    shutil.copyfile(image, target)


def _check_stems(split: str, items: list[Item]) -> None:
    """Raise UserError if two images would share a label file: a.jpg and a.png both have a.txt."""
    seen: dict[str, str] = {}
    for item in items:
        stem = str(PurePosixPath(item.name).with_suffix(""))
        if stem in seen:
            raise UserError(f"{split}: {seen[stem]} and {item.name} would share the label file {stem}.txt: rename one")
        seen[stem] = item.name


def write_dataset(dataset: Dataset, output: Path, *, copy: bool = False, progress: bool = True) -> Path:
    """Write images (links, or copies), labels and OUTPUT/<folder name>.yaml. Return the path of the YAML."""
    if not any(dataset.splits.values()):
        raise UserError("no image of any split was found: check the folders given with --split")
    jobs = [(split, item) for split, items in dataset.splits.items() for item in items]
    for split, items in dataset.splits.items():
        _check_stems(split, items)
    output = output.absolute()
    with new_folder(output) as draft:
        for split, item in progress_bar(jobs, desc="writing", unit="image", disable=not progress):
            link_or_copy(item.image, draft / "images" / split / item.name, copy=copy)
            label = (draft / "labels" / split / item.name).with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("".join(f"{line}\n" for line in item.rows))
        write_yaml(draft / f"{output.name}.yaml", _yaml_content(dataset, output))
    return output / f"{output.name}.yaml"


def _yaml_content(dataset: Dataset, output: Path) -> dict:
    """Return the content of the YAML. It needs both train and val, so a missing one repeats the other."""
    present = {split: f"images/{split}" for split in SPLITS if dataset.splits.get(split)}
    first = next(iter(present.values()))
    return {"path": output.as_posix(), "train": first, "val": first, **present, "names": dict(enumerate(dataset.names))}


def summarize(dataset: Dataset, yaml_file: Path) -> str:
    """Return lines with the number of images and objects by split, what was skipped, and where the YAML is."""
    lines = [
        f"{split}: {len(items)} images, {sum(len(item.rows) for item in items)} objects, "
        f"{sum(not item.rows for item in items)} images without any"
        for split, items in dataset.splits.items()
    ]
    lines += [f"skipped: {count} {reason}" for reason, count in dataset.skipped.items() if count]
    if not {"train", "val"} <= dataset.splits.keys():
        lines.append("only one of train and val was given: the YAML names the same images for both")
    return "\n".join([*lines, f"wrote {yaml_file}"])


def parse_splits(values: list[list[str]], *, most: int, usage: str) -> list[tuple[str, list[Path]]]:
    """Return the values of repeated --split flags: a known name, then 2 to `most` paths that exist. Each name once."""
    found: dict[str, list[Path]] = {}
    for name, *paths in values:
        if name not in SPLITS or name in found or not 2 <= len(paths) <= most:
            given = " ".join([name, *paths])
            raise UserError(f"--split {given}: type --split {usage}, once for each of {', '.join(SPLITS)}")
        found[name] = [Path(path) for path in paths]
        for path in found[name]:
            if not path.exists():
                raise UserError(f"--split {name}: {path} does not exist")
    return list(found.items())
