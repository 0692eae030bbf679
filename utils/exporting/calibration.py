"""Images that a quantisation measures value ranges on: part of the training split, as the network gets them."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from utils import console
from utils.datasets.labels import find_split_images
from utils.datasets.locate import read_dataset
from utils.datasets.spec import MissingData
from utils.errors import UserError
from utils.exporting.request import ExportRequest
from utils.files import datasets_folders
from utils.images.conversion import to_network_order, to_unit_range
from utils.images.letterbox import letterbox
from utils.images.read import DamagedImage, read_image
from utils.pixel_format import RGB, PixelFormat

FEW_IMAGES = 100  # with fewer, value ranges depend on the choice of images
SEED = 0


@dataclass(frozen=True)
class CalibrationImages:
    """Image files of a training split, read one at a time."""

    paths: Sequence[str]
    shape: tuple[int, int]  # height, width of the input
    batch_size: int = 1
    pixels: PixelFormat = RGB

    def __len__(self) -> int:
        """Return the number of batches, if no image is damaged."""
        return -(-len(self.paths) // self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield inputs (B, C, H, W) float32 in 0…1, letterboxed as in inference. The last is filled up with zeros.

        Raises UserError if no image can be read.
        """
        images = self._read()
        group = list(itertools.islice(images, self.batch_size))
        if not group:
            raise UserError(f"{self.paths[0]}: neither this nor another image of the training split can be read")
        while group:
            batch = np.zeros((self.batch_size, self.pixels.channels, *self.shape), np.float32)
            batch[: len(group)] = group
            yield batch
            group = list(itertools.islice(images, self.batch_size))

    def _read(self) -> Iterator[np.ndarray]:
        for path in self.paths:
            try:
                boxed, _ = letterbox(read_image(path, self.pixels), self.shape, auto=False)
            except DamagedImage as error:
                console.warn(f"{error}. It is not used for the calibration")
            else:
                yield to_unit_range(to_network_order(boxed).transpose(2, 0, 1))


def choose_images(request: ExportRequest, purpose: str) -> CalibrationImages:
    """Return the images of a request, chosen by a fixed seed. Nothing is downloaded.

    Raises UserError, which begins with `purpose`, if the data set has no images on this machine.
    """
    dataset = read_dataset(request.data)
    try:
        spec = dataset.resolve(datasets_folders())
    except MissingData as error:
        raise UserError(
            f"{purpose} calibrates on training images, and those of --data {request.data} are not here: {error}"
        ) from error
    found = find_split_images(spec, "train")
    if not found:
        raise UserError(f"{purpose} calibrates on training images, and {spec.file} names none: give another --data")
    count = min(request.calibration_images, len(found))
    if count < FEW_IMAGES:
        console.warn(f"{spec.file}: calibration on {count} images only. Use {FEW_IMAGES} or more, they need no labels")
    chosen = np.random.default_rng(SEED).permutation(len(found))[:count]
    return CalibrationImages([found[i] for i in sorted(chosen)], request.size, request.batch, request.pixels)
