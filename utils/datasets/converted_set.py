"""A data set that was read, to be written in another form: names of its images, and the YAML of the copy."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.console import progress_bar
from utils.datasets.label_index import LabelIndex
from utils.datasets.yolo_writer import Dataset, dataset_yaml, link_or_copy
from utils.errors import UserError
from utils.files import write_yaml
from utils.pixel_format import UNSTATED, StatedPixels


class NamedImage(NamedTuple):
    """One image of a split, its name in the copy, and its objects."""

    number: int  # from 1, over all splits
    source: Path
    name: str  # below the split's folder of images
    shape: tuple[int, int]  # height, width
    labels: np.ndarray  # (n, 5) float32 class, cx, cy, w, h in 0…1
    polygons: list[np.ndarray]  # (k, 2) float32 points of each label in 0…1, none for a box
    regions: np.ndarray  # (k, 5) like labels: crowds and difficult objects

    def boxes_xyxy_px(self, labels: np.ndarray) -> np.ndarray:
        """Return the corners (n, 4) float64 of labels in pixels."""
        H, W = self.shape
        center, half = labels[:, 1:3].astype(np.float64), labels[:, 3:5].astype(np.float64) / 2
        return np.concatenate([center - half, center + half], 1) * (W, H, W, H)


@dataclass(frozen=True)
class ConvertedSet:
    """Class names by number, the index of each split, and what the YAML says of the pixels."""

    names: Mapping[int, str]
    splits: Mapping[str, LabelIndex]
    pixels: StatedPixels = UNSTATED

    @property
    def has_regions(self) -> bool:
        """True if there are crowds or difficult objects."""
        return any(len(index.ignored) for index in self.splits.values())

    def require_distinct_names(self, form: str) -> None:
        """Raise UserError for two classes of one name, which readers of the form would take for one class."""
        for name, count in Counter(self.names.values()).items():
            if count > 1:
                numbers = ", ".join(str(number) for number, other in self.names.items() if other == name)
                raise UserError(
                    f"classes {numbers}: {form} knows classes by their names, and these have the same, {name!r}: "
                    "correct `names:`"
                )

    def images(self, split: str) -> Iterator[NamedImage]:
        """Yield the images of a split. One that is listed twice comes once, equal names get a suffix."""
        index, first = self.splits[split], self._first_number(split)
        items = _unique_items(index.paths)
        for number, (i, name) in enumerate(items):
            yield NamedImage(
                first + number,
                Path(index.paths[i]),
                name,
                (int(index.shapes[i, 0]), int(index.shapes[i, 1])),
                index.boxes(i),
                index.polygons(i),
                index.regions(i),
            )

    def _first_number(self, split: str) -> int:
        earlier = list(self.splits)[: list(self.splits).index(split)]
        return 1 + sum(len(self.splits[name]) for name in earlier)

    def copy_images(
        self, folder: Path, split: str, *, copy: bool, progress: bool = True, taken: set[str] | None = None
    ) -> Iterator[NamedImage]:
        """Link or copy the images of a split into a folder. Yield each of them.

        With `taken`, stems of names in it, all splits share the folder, and there are no folders below it.
        """
        total = len(self.splits[split])
        for image in progress_bar(self.images(split), total=total, desc=split, unit="image", disable=not progress):
            if taken is not None:
                image = image._replace(name=_flat_name(image, taken))
            link_or_copy(image.source, folder / image.name, copy=copy)
            yield image

    def write_yaml(self, draft: Path, output: Path, entries: Mapping[str, str]) -> None:
        """Write the data set YAML of `output` into its draft. `entries` are paths by split."""
        content = dataset_yaml(output, entries, list(self.names.values()))
        stated = {"channels": self.pixels.channels, "bit_depth": self.pixels.bit_depth}
        content |= {key: value for key, value in stated.items() if value}
        write_yaml(draft / f"{output.name}.yaml", content)


def _flat_name(image: NamedImage, taken: set[str]) -> str:
    """Return a name without folders whose stem is not in `taken`, in any case of letters, and add that."""
    stem, suffix = os.path.splitext(image.name.replace("/", "_"))
    while stem.casefold() in taken:
        stem = f"{stem}_{image.number}"
    taken.add(stem.casefold())
    return stem + suffix


def _unique_items(paths: Sequence[str]) -> list[tuple[int, str]]:
    """Return positions and names of the images, below the folder that all are in. Each has a stem of its own."""
    unique = {path: i for i, path in reversed(list(enumerate(paths)))}
    folders = {os.path.dirname(path) for path in unique}
    base = os.path.commonpath(folders) if len(folders) > 1 else next(iter(folders), "")
    dataset = Dataset([])
    for path in sorted(unique):
        dataset.add("all", Path(path), name=os.path.relpath(path, base).replace(os.sep, "/"), rows=[])
    return [(unique[str(item.image)], item.name) for item in dataset.splits.get("all", [])]
