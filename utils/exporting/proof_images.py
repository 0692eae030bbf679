"""Images that exported files are compared on: a part of a split, in batches of the file's input shape."""

from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass

import numpy as np

from utils import console
from utils.datasets.label_index import LabelIndex
from utils.datasets.labels import load_split
from utils.datasets.locate import BUILT_IN, locate_dataset, read_dataset
from utils.datasets.spec import DatasetSpec, MissingData
from utils.datasets.subset import take_fraction
from utils.detector import name_difference
from utils.errors import UserError
from utils.files import datasets_folders
from utils.images.decode import CONVERTED
from utils.images.read import DamagedImage, read_image
from utils.loading.dataset import Batch
from utils.loading.loader import LoadSettings, make_loader
from utils.pixel_format import RGB, PixelFormat

SPLIT = "val"


@dataclass(frozen=True)
class ProofImages:
    """Images in batches of one shape, letterboxed as for a network whose input shape is fixed."""

    index: LabelIndex
    shape: tuple[int, int]  # height, width
    names: Mapping[int, str]  # classes of the model
    has_labels: bool  # of these classes
    description: str  # for reports
    batch_size: int = 4

    def batches(self, *, progress: str = "") -> Iterator[Batch]:
        """Yield the batches. `progress`: text of a bar, "" for none."""
        loader = make_loader(self.index, imgsz=self.shape, batch_size=self.batch_size, loading=LoadSettings(workers=0))
        bar = console.progress_bar(desc=progress, total=len(self.index), leave=False, disable=not progress)
        with closing(bar), closing(loader):
            for batch in loader:
                yield batch
                bar.update(len(batch.images))

    def originals(self, count: int) -> list[np.ndarray]:
        """Return `count` images (H, W, C) as they are in their files, repeated if there are fewer."""
        readable: list[np.ndarray] = []
        for path in self.index.paths:
            with suppress(DamagedImage):
                readable.append(read_image(path, self.index.pixels))
            if len(readable) == count:
                return readable
        if not readable:
            raise UserError(f"{self.index.paths[0]}: no image of the split can be read; give others: --data")
        return [readable[k % len(readable)] for k in range(count)]


def open_proof_images(
    data: str, *, typed: bool, names: Mapping[int, str], shape: tuple[int, int], count: int, pixels: PixelFormat = RGB
) -> ProofImages:
    """Return `count` images of the validation split of `data`, all of them if `count` is 0.

    The same images are drawn each time. If `data` was not `typed` by the user, nothing is downloaded. Where its images
    are absent, those of the built-in set are used. names: classes of the model. Labels count only if they are of the
    same classes. pixels: what the model takes.
    """
    if not typed and pixels.channels not in CONVERTED and read_dataset(data).pixels.fill(RGB) != pixels:
        raise UserError(
            f"the model takes images of {pixels}, which {data} lacks: give the data set that it was "
            "trained with: --data, or --no-verify"
        )
    spec = locate_dataset(data) if typed else find_present(data)
    index = load_split(spec.with_pixels(pixels), SPLIT)
    total = len(index)
    index = take_fraction(index, count / total) if count else index
    difference = f"{spec.num_classes} classes, the model {len(names)}" if spec.num_classes != len(names) else ""
    difference = difference or name_difference(names, spec.names)
    has_labels = not difference and len(index.labels) > 0
    if difference and typed:
        console.warn(f"--data {data} has other classes than the model ({difference}), so no mAP is measured")
    description = f"{len(index)} of {total} images of {spec.file.name} {SPLIT}"
    return ProofImages(index, shape, names, has_labels, description)


def find_present(data: str) -> DatasetSpec:
    """Return the data set that `data` names if its images are on this machine, else the built-in one."""
    try:
        return read_dataset(data).resolve(datasets_folders())
    except MissingData:
        console.info(f"The images of {data} are not here, so the built-in ones are used. --data gives others")
        return locate_dataset(str(BUILT_IN))
