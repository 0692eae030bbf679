"""Images of a split in their own size, read ahead in threads."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from utils.loading.image_cache import ImageReader

AHEAD = 2  # images that are decoded while another one is used


class FullImages(ImageReader):
    """Reader of the images that another reader resizes. An image that is damaged for one is damaged for both."""

    def __init__(self, images: ImageReader) -> None:
        super().__init__(images.index, 1, smooth=False)
        self.shapes = images.index.shapes.astype(np.int32)
        self.damaged, self.opened_at = images.damaged, images.opened_at
        self._numbers = {path: i for i, path in enumerate(images.index.paths)}

    def read_ahead(self, paths: Sequence[str | None]) -> Iterator[np.ndarray | None]:
        """Yield the image (H, W, C) of each path, None for a damaged one and for a path that is None.

        At most AHEAD + 1 images are in memory. Raises UnreadableData, see `read`.
        """
        with ThreadPoolExecutor(AHEAD) as pool:
            pending = [pool.submit(self._read_path, path) for path in paths[:AHEAD]]
            for path in [*paths[AHEAD:], *[None] * AHEAD][: len(paths)]:
                image = pending.pop(0).result()
                pending.append(pool.submit(self._read_path, path))
                yield image

    def _read_path(self, path: str | None) -> np.ndarray | None:
        return None if path is None else self.read(self._numbers[path])
