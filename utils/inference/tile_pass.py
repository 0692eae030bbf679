"""Second pass of detection: the tiles of an image go through the network too, and both results become one.

Legend: B tiles of a batch, H W rows and columns, C channels, n detections.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from utils import console
from utils.detector import DetectionAdvice, InferenceModel
from utils.images.letterbox import Letterbox, letterbox
from utils.images.tiles import Tiling
from utils.inference.nms_settings import NmsSettings
from utils.inference.tile_merging import merge_views
from utils.loading.full_images import FullImages
from utils.loading.image_cache import ImageReader
from utils.machine import process_memory
from utils.timing import Stopwatch

MARGIN = 4  # pixels of the network's input between a box and the border of a tile that it is said to touch
SLACK = 2  # pixels of the network's input by which the sides of a small box may be wrong
TILES_PER_BATCH = 8

# Function from tiles (B, H, W, C), letterboxed, to the detections (n, 6) of each, in pixels of the input.
FindInBatch = Callable[[np.ndarray], Sequence[np.ndarray]]


@dataclass
class TilePass:
    """Settings of the pass over tiles, and the numbers of images and tiles so far."""

    tiling: Tiling
    shape: tuple[int, int]  # height, width that tiles are fitted into
    nms: NmsSettings  # that merges the views
    auto: bool = True  # pad to the next multiple of the stride only
    stride: int = 32
    smooth: bool = False  # average pixels where a tile shrinks
    batch_size: int = TILES_PER_BATCH
    num_images: int = 0
    num_tiles: int = 0

    def cuts(self, shape: Sequence[int]) -> bool:
        """Return True if an image of a height and width has more than one tile."""
        return max(shape) > self.tiling.side

    def add(self, image: np.ndarray | None, whole: np.ndarray, find: FindInBatch, watch: Stopwatch) -> np.ndarray:
        """Return the detections (n, 6) of an image (H, W, C) in its pixels: of the whole image and of its tiles.

        An image that is not cut, or absent, keeps `whole` itself. Tiles are fitted into the input when their batch is
        next, so that a large image takes no more memory than a batch of them.
        """
        self.num_images += 1
        if image is None or not self.cuts(image.shape[:2]):
            return whole
        shape = image.shape[0], image.shape[1]
        grid = self.tiling.grid(shape)
        self.num_tiles += len(grid)
        found, gain = [whole], 1.0
        for tiles in np.array_split(grid, range(self.batch_size, len(grid), self.batch_size)):
            with watch("preprocess"):
                boxed = [self._letterbox(image[y1:y2, x1:x2]) for x1, y1, x2, y2 in tiles.tolist()]
            gain = min(boxed[0][1].gain)
            rows = find(np.stack([one for one, _ in boxed]))
            found += [_to_image(own, box, tile) for own, (_, box), tile in zip(rows, boxed, tiles, strict=True)]
        slack = SLACK * max(shape[0] / self.shape[0], shape[1] / self.shape[1])
        with watch("nms"):
            return merge_views(found, grid, shape, nms=self.nms, margin=MARGIN / gain, slack=slack)

    def _letterbox(self, tile: np.ndarray) -> tuple[np.ndarray, Letterbox]:
        return letterbox(tile, self.shape, auto=self.auto, stride=self.stride, smooth=self.smooth)

    def summarise(self, device: torch.device) -> None:
        """Print the number of tiles, and the most memory that was used."""
        side = self.tiling.side
        if not self.num_images:
            return
        if not self.num_tiles:
            console.warn(f"--tile {side} has no effect: no image is larger than a tile. Give a smaller --tile")
            return
        mean, memory = self.num_tiles / self.num_images, f"{process_memory().peak / 2**30:.2f} GB of RAM"
        if device.type == "cuda":
            memory += f" and {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GB of the GPU"
        console.result(f"Tiles of {side} px: {mean:.1f} per image besides the whole; at most {memory} used")


@dataclass(frozen=True)
class Views:
    """Ways in which a network sees an image: whole, in three passes with `augment`, and by tiles.

    full_images: reader of the images of the loader, for the tiles.
    """

    augment: bool = False
    tiles: TilePass | None = None
    full_images: FullImages | None = None


WHOLE = Views()


def mention_tiles(advice: DetectionAdvice, tiling: Tiling | None) -> None:
    """Print the tiles that a model was trained on, unless it looks at the same ones now."""
    trained = advice.tile_flags()
    if trained and (tiling is None or (tiling.side, tiling.overlap) != (advice.tile, advice.tile_overlap)):
        effect = "" if tiling else ": with these, it looks at tiles too"
        console.info(f"The model was trained with {trained}{effect}")


def views_of_split(
    tiling: Tiling | None,
    images: ImageReader,
    model: InferenceModel,
    *,
    shape: tuple[int, int],
    nms: NmsSettings,
    batch_size: int,
    augment: bool = False,
) -> Views:
    """Return the views of the images of a loader, which `images` reads: with tiles of `shape` if there is a tiling."""
    mention_tiles(model.advice, tiling)
    if tiling is None:
        return Views(augment)
    tiles = TilePass(
        tiling,
        shape,
        nms,
        auto=model.fixed_shape is None,
        stride=model.size_multiple,
        smooth=True,  # as the whole images of a loader
        batch_size=batch_size,
    )
    return Views(augment, tiles, FullImages(images))


def _to_image(rows: np.ndarray, box: Letterbox, tile_xyxy: np.ndarray) -> np.ndarray:
    """Return detections (n, 6) of a letterboxed tile in pixels of the image."""
    boxes = box.undo(rows[:, :4]) + np.tile(tile_xyxy[:2], 2).astype(rows.dtype)
    return np.concatenate((boxes, rows[:, 4:]), axis=1)
