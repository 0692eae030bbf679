"""A model that finds drawn rectangles exactly, so that every object and box is known. Its class is their colour."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from utils.detector import NO_ADVICE
from utils.pixel_format import RGB

NAMES = {0: "red", 1: "green"}
BRIGHT = 0.75  # of 0…1; padding is grey


class Rectangles(nn.Module):
    """An InferenceModel of stride 32 that notes the shapes of its inputs. It sees nothing smaller than `least_px`."""

    names, num_classes, advice = NAMES, 2, NO_ADVICE
    device, size_multiple, is_suppressed, pixels = torch.device("cpu"), 32, False, RGB

    def __init__(self, fixed_shape=None, least_px=3):
        super().__init__()
        self.fixed_shape, self.least_px, self.shapes = fixed_shape, least_px, []

    def forward(self, images, augment=False):
        self.shapes.append(tuple(images.shape))
        rows = [self._find(image) for image in images.numpy()]
        decoded = torch.zeros(len(rows), max(map(len, rows)), 7)
        for k, found in enumerate(rows):
            decoded[k, : len(found)] = torch.tensor(found).reshape(-1, 7)
        return decoded, None

    def _find(self, image):
        found = []
        for cls in NAMES:
            mask = (image[cls] > BRIGHT).astype(np.uint8)
            for left, top, width, height, _ in cv2.connectedComponentsWithStats(mask)[2][1:].tolist():
                if min(width, height) >= self.least_px:
                    centre = left + width / 2, top + height / 2
                    found.append([*centre, width, height, 0.9, cls == 0, cls == 1])
        return found


def draw(shape, objects):
    """Return a BGR image of a height and width with the objects (n, 5) x1, y1, x2, y2 in pixels, class."""
    image = np.zeros((*shape, 3), np.uint8)
    for x1, y1, x2, y2, cls in np.asarray(objects, int).tolist():
        image[y1:y2, x1:x2, 2 - cls] = 255
    return image


def scatter(rng, shape, sides, gap=8, cell=60):
    """Return objects (n, 5), one in each cell of a grid, that are `gap` pixels apart or more."""
    objects = []
    for top in range(0, shape[0] - cell + 1, cell):
        for left in range(0, shape[1] - cell + 1, cell):
            width, height = rng.integers(*sides, 2)
            x, y = left + rng.integers(0, cell - gap - width), top + rng.integers(0, cell - gap - height)
            objects.append([x, y, x + width, y + height, rng.integers(2)])
    return np.array(objects)


def write_set(folder: Path, images):
    """Write a data set with a list of (image, objects) as its validation split. Return its YAML."""
    for part in ("images", "labels"):
        (folder / part / "val").mkdir(parents=True)
    for number, (image, objects) in enumerate(images):
        height, width = image.shape[:2]
        cv2.imwrite(str(folder / f"images/val/{number}.png"), image)
        rows = [
            f"{cls} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} {(x2 - x1) / width} {(y2 - y1) / height}\n"
            for x1, y1, x2, y2, cls in objects.tolist()
        ]
        (folder / f"labels/val/{number}.txt").write_text("".join(rows))
    file = folder / "set.yaml"
    file.write_text("train: images/val\nval: images/val\nnames: [red, green]\n")
    return file
