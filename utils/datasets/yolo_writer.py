"""Write a data set as train.py reads it: images/SPLIT, labels/SPLIT and a YAML file, from rows that a converter made.

The inputs are only read. The folder appears under its name once it is whole.
"""

import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from utils.errors import UserError
from utils.files import write_yaml
from utils.images.header import image_shape

SPLITS = ("train", "val", "test")


@dataclass
class Item:
    """One picture of a split."""

    picture: Path
    name: str  # path below images/SPLIT
    rows: list[str]


@dataclass
class Dataset:
    """What a conversion has found: pictures by split, class names by number, and how much was left out, by reason."""

    names: list[str]
    splits: dict[str, list[Item]] = field(default_factory=dict)
    left_out: Counter = field(default_factory=Counter)

    def add(self, split: str, picture: Path, *, name: str, rows: Sequence[str]) -> None:
        """Rows that are equal to the last digit are one object labelled twice."""
        once = list(dict.fromkeys(rows))
        self.left_out["repeated rows"] += len(rows) - len(once)
        self.splits.setdefault(split, []).append(Item(picture, safe_name(name), once))


def safe_name(name: str) -> str:
    """A picture's name from an annotation file, which must not lead out of the folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.name or ":" in path.parts[0]:
        raise UserError(f"picture name {name!r} leads out of its folder: give names below the folder of pictures")
    return str(path)


def box_row(class_id: int, xyxy_px: Sequence[float], size: tuple[int, int]) -> str | None:
    """Label row of a box cut at the frame, size = (height, width); None where no area is left."""
    H, W = size
    left, top, right, bottom = (min(max(v, 0.0), end) for v, end in zip(xyxy_px, (W, H, W, H), strict=True))
    if not (right > left and bottom > top):
        return None
    box = ((left + right) / 2 / W, (top + bottom) / 2 / H, (right - left) / W, (bottom - top) / H)
    return row(class_id, box) if min(round(box[2], 6), round(box[3], 6)) > 0 else None


def row(class_id: int, values: Sequence[float]) -> str:
    return " ".join([str(class_id), *(f"{value:.6f}" for value in values)])


def finite(values: Sequence[object], count: int, *, where: str) -> list[float]:
    """`count` numbers, or a UserError that shows what is there instead."""
    try:
        numbers = [float(value) for value in values]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise UserError(f"{where} is {values!r}: expected {count} finite numbers")
    return numbers


def measure(picture: Path) -> tuple[int, int]:
    """Height and width of a picture as it decodes; UserError where it does not."""
    try:
        return image_shape(picture)
    except ValueError as error:
        raise UserError(f"{picture}: its size is needed, but it cannot be read: {error}") from error


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a draft beside `folder` that takes its name when the block ends well, and vanishes when it does not."""
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not empty: give another --output, or delete it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-unfinished-", dir=folder.parent))
    try:
        yield draft
        draft.chmod(0o755)  # mkdtemp's folders are for their owner alone
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def place(picture: Path, target: Path, *, copy: bool) -> None:
    """Link to the picture; copy it where asked to, or where the system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            return os.symlink(picture.resolve(), target)
        except OSError:
            pass  # Windows without the right to link
    shutil.copyfile(picture, target)


def check_stems(split: str, items: list[Item]) -> None:
    """a.jpg and a.png would share a.txt."""
    seen: dict[str, str] = {}
    for item in items:
        stem = str(PurePosixPath(item.name).with_suffix(""))
        if stem in seen:
            raise UserError(f"{split}: {seen[stem]} and {item.name} would share the label file {stem}.txt: rename one")
        seen[stem] = item.name


def write_dataset(dataset: Dataset, output: Path, *, copy: bool = False, progress: bool = True) -> Path:
    """Write pictures (links, or copies), labels and OUTPUT/<folder name>.yaml; returns the YAML's path."""
    if not any(dataset.splits.values()):
        raise UserError("no picture of any split was found: check the folders given with --split")
    jobs = [(split, item) for split, items in dataset.splits.items() for item in items]
    for split, items in dataset.splits.items():
        check_stems(split, items)
    output = output.absolute()
    with new_folder(output) as draft:
        for split, item in tqdm(jobs, "writing", unit="picture", disable=not progress):
            place(item.picture, draft / "images" / split / item.name, copy=copy)
            label = (draft / "labels" / split / item.name).with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("".join(f"{line}\n" for line in item.rows))
        write_yaml(draft / f"{output.name}.yaml", description(dataset, output))
    return output / f"{output.name}.yaml"


def description(dataset: Dataset, output: Path) -> dict:
    """What the YAML holds; both train and val must be named, so a missing one repeats the other."""
    there = {split: f"images/{split}" for split in SPLITS if dataset.splits.get(split)}
    first = next(iter(there.values()))
    return {"path": output.as_posix(), "train": first, "val": first, **there, "names": dict(enumerate(dataset.names))}


def summary(dataset: Dataset, yaml_file: Path) -> str:
    lines = [
        f"{split}: {len(items)} pictures, {sum(len(item.rows) for item in items)} objects, "
        f"{sum(not item.rows for item in items)} pictures without any"
        for split, items in dataset.splits.items()
    ]
    lines += [f"left out: {count} {reason}" for reason, count in dataset.left_out.items() if count]
    if not {"train", "val"} <= dataset.splits.keys():
        lines.append("only one of train and val was given: the YAML names the same pictures for both")
    return "\n".join([*lines, f"wrote {yaml_file}"])


def split_arguments(values: list[list[str]], *, most: int, form: str) -> list[tuple[str, list[Path]]]:
    """The values of repeated --split flags: a known name, then paths that exist; each name once."""
    found: dict[str, list[Path]] = {}
    for name, *paths in values:
        if name not in SPLITS or name in found or not 2 <= len(paths) <= most:
            given = " ".join([name, *paths])
            raise UserError(f"--split {given}: type --split {form}, once for each of {', '.join(SPLITS)}")
        found[name] = [Path(path) for path in paths]
        for path in found[name]:
            if not path.exists():
                raise UserError(f"--split {name}: {path} does not exist")
    return list(found.items())
