"""Writer of data sets that train.py reads: images/SPLIT, labels/SPLIT and a YAML, from rows that a converter made.

The inputs are only read. The output folder appears under its name when it is complete.
"""

import math
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from utils.cli import shorten
from utils.console import progress_bar
from utils.datasets.remarks import Remarks
from utils.datasets.stated_paths import existing_end
from utils.errors import UserError
from utils.files import write_yaml
from utils.images.header import image_shape
from utils.temporary_files import draft_folder

SPLITS = ("train", "val", "test")


@dataclass
class Item:
    """One image of a split and its label rows."""

    image: Path
    name: str  # path below images/SPLIT
    rows: list[str]


@dataclass
class Dataset(Remarks):
    """Result of a conversion: images by split, class names by number, and what was skipped or corrected, by reason."""

    names: list[str]
    splits: dict[str, list[Item]] = field(default_factory=dict)
    _by_stem: dict[tuple[str, str], Item] = field(default_factory=dict)  # split, name without suffix

    def add(self, split: str, image: Path, *, name: str, rows: Sequence[str]) -> None:
        """Add an image, or more rows to one that was added. Equal rows are one object that was labelled twice.

        An image whose label file another one has (a.jpg and a.png) gets a name of its own.
        """
        name = safe_name(name)
        item = self._by_stem.get((split, _stem(name)))
        while item is not None and item.image != image:
            name = f"{_stem(name)}_{image.suffix[1:]}{image.suffix}"
            item = self._by_stem.get((split, _stem(name)))
        if item is None:
            item = self._by_stem[split, _stem(name)] = Item(image, name, [])
            self.splits.setdefault(split, []).append(item)
        unique = list(dict.fromkeys([*item.rows, *rows]))
        if repeated := len(item.rows) + len(rows) - len(unique):
            self.skipped["repeated rows"] += repeated
            self._keep_example("repeated rows", name)
        item.rows[:] = unique


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def safe_name(name: str) -> str:
    """Return an image's name from an annotation file. Raises UserError if it leads out of the folder of images."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.name or path.parts[0][1:2] == ":":
        raise UserError(f"image name {name!r} leads out of its folder: give names below the folder of images")
    return str(path)


def find_stated_image(name: str, folder: Path) -> str | None:
    """Return the path below `folder` of the image that an annotation file names, None if it is not there.

    Programs state absolute paths, paths as seen from elsewhere, and addresses (`?d=`, %20). The longest end of such a
    path that exists below the folder counts.
    """
    texts = dict.fromkeys((name, unquote(name.rpartition("?d=")[2])))
    return next(filter(None, (existing_end(text, folder, os.path.isfile) for text in texts)), None)


def decoded_size(
    stated: tuple[int, int] | None, image: Path, boxes_xyxy: Sequence[Sequence[float]], remarks: Remarks
) -> tuple[int, int] | None:
    """Return the height and width in pixels that the boxes are relative to, None if they fit no reading.

    See `reference_size`. Raises UserError if no size is stated and the image cannot be read.
    """
    try:
        shape = image_shape(image)
    except ValueError as error:
        if stated is None:
            raise UserError(f"{image}: its size is needed, but it cannot be read: {error}") from error
        return stated
    return reference_size(stated, shape, boxes_xyxy, remarks=remarks, name=image.name)


def reference_size(
    stated: tuple[int, int] | None,
    shape: tuple[int, int],
    boxes_xyxy: Sequence[Sequence[float]],
    *,
    remarks: Remarks,
    name: str,
) -> tuple[int, int] | None:
    """Return the height and width in pixels that the boxes are relative to, None if they fit no reading.

    Some programs state the size before the EXIF rotation, but boxes in the rotated image. A stated size of the same
    aspect is that of a scaled copy. `shape` is the height and width of the decoded image.
    """
    height, width = shape
    if stated is None or stated == (height, width):
        return height, width
    if stated != (width, height):
        if abs(stated[0] * width - stated[1] * height) > max(height, width, *stated):
            remarks.correct("images have another shape than stated, the stated one is used", name)
        return stated
    if all(right <= width + 1 and bottom <= height + 1 for _, _, right, bottom in boxes_xyxy):
        remarks.correct("sizes were stated before the EXIF rotation, those after it are used", name)
        return height, width
    remarks.skip("images with boxes from before their EXIF rotation", name)
    return None


def box_row(class_id: int, xyxy_px: Sequence[float], size: tuple[int, int]) -> str | None:
    """Return the label row of a box clipped to the image, size = (height, width), or None if no area is left."""
    box = clip_box(xyxy_px, size)
    return format_row(class_id, box) if box else None


def clip_box(xyxy_px: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Return cx, cy, w, h in 0…1 of a box clipped to the image, size = (height, width), or None if no area is left.

    The corners may be swapped. A side below half a millionth of the image is no area: label files have six digits.
    """
    H, W = size
    x1, y1, x2, y2 = xyxy_px
    xyxy_px = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
    left, top, right, bottom = (min(max(v, 0.0), end) for v, end in zip(xyxy_px, (W, H, W, H), strict=True))
    if not (right > left and bottom > top):
        return None
    box = ((left + right) / 2 / W, (top + bottom) / 2 / H, (right - left) / W, (bottom - top) / H)
    return box if min(round(box[2], 6), round(box[3], 6)) > 0 else None


def format_row(class_id: int, values: Sequence[float]) -> str:
    return " ".join([str(class_id), *(f"{value:.6f}" for value in values)])


def parse_finite(values: Sequence[Any], count: int, *, where: str) -> list[float]:
    """Return `count` finite numbers from a list. Raises UserError with the values if they are anything else."""
    try:
        numbers = [float(value) for value in values] if isinstance(values, (list, tuple)) else []
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise UserError(f"{where} is {shorten(values)}: expected {count} finite numbers")
    return numbers


@contextmanager
def new_folder(folder: Path) -> Generator[Path]:
    """Yield a temporary folder beside `folder` that takes its name if the block succeeds, and is deleted if not."""
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: give another --output, or delete it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(folder) as draft:
        yield draft
        draft.replace(folder)


def link_or_copy(image: Path, target: Path, *, copy: bool) -> None:
    """Make a symbolic link to the image. Copy it with `copy`, or if the system refuses links.

    Raises FileExistsError if there is a target: copying would follow a link, and replace the image behind it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            return os.symlink(image.resolve(), target)
        except FileExistsError:
            raise
        except OSError:
            pass  # Windows without the permission to make links
    with open(image, "rb") as source, open(target, "xb") as new:
        shutil.copyfileobj(source, new)


def write_dataset(dataset: Dataset, output: Path, *, copy: bool = False, progress: bool = True) -> Path:
    """Write images (links, or copies), labels and OUTPUT/<folder name>.yaml. Return the path of the YAML.

    Raises UserError if all objects were skipped.
    """
    jobs = [(split, item) for split, items in dataset.splits.items() for item in items]
    remarks = "".join(f"; {line}" for line in dataset.remarks())
    if not jobs:
        raise UserError(f"no image of any split was found: check the folders given with --split{remarks}")
    if dataset.skipped and not any(item.rows for _, item in jobs):
        raise UserError(f"no object was kept{remarks}")
    output = output.absolute()
    with new_folder(output) as draft:
        for split, item in progress_bar(jobs, desc="writing", unit="image", disable=not progress):
            link_or_copy(item.image, draft / "images" / split / item.name, copy=copy)
            label = (draft / "labels" / split / item.name).with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("".join(f"{line}\n" for line in item.rows))
        present = {split: f"images/{split}" for split in SPLITS if dataset.splits.get(split)}
        write_yaml(draft / f"{output.name}.yaml", dataset_yaml(output, present, dataset.names))
    return output / f"{output.name}.yaml"


def dataset_yaml(output: Path, entries: Mapping[str, str], names: Sequence[str]) -> dict:
    """Return the content of a YAML with `entries` by split. It needs train and val, so a missing one is the other."""
    first = next(iter(entries.values()))
    return {"path": output.as_posix(), "train": first, "val": first, **entries, "names": dict(enumerate(names))}


def summarize(dataset: Dataset, yaml_file: Path) -> str:
    """Return lines with the number of images and objects by split, what was skipped, and where the YAML is."""
    lines = [
        f"{split}: {len(items)} images, {sum(len(item.rows) for item in items)} objects, "
        f"{sum(not item.rows for item in items)} images without any"
        for split, items in dataset.splits.items()
    ]
    lines += dataset.remarks()
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
