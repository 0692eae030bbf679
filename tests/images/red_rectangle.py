"""Images with one red rectangle, their labels, and random numbers that are given: shared by the tests of images."""

import numpy as np

RED = (0, 0, 255)
NONE = np.zeros((0, 2), np.float32)


def canvas(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """Return a black image with one red rectangle x1, y1, x2, y2."""
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = RED
    return image


def red_box(image: np.ndarray) -> np.ndarray:
    """Return xyxy around the red pixels, to a fraction of a pixel: edge pixels count by how red they are."""
    amount = (image[..., 2].astype(float) - image[..., 1]).clip(0) / 255
    rows, columns = amount.max(1), amount.max(0)
    ends = []
    for line in (columns, rows):
        inside = np.flatnonzero(line > 0.05)
        first, last = inside[0], inside[-1]
        ends.append((first + 1 - line[first], last + line[last]))
    (x1, x2), (y1, y2) = ends
    return np.array([x1, y1, x2, y2])


def square(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float32)


class Fixed:
    """A generator whose uniform draws are given."""

    def __init__(self, draws):
        self.draws = np.array(draws, float)

    def uniform(self, low, high, size):
        return self.draws

    def random(self):
        return 0.5


BOXES = np.array(
    [[0, 100, 200, 300, 400], [1, 600, 600, 900, 1000], [2, 1270, 10, 1279, 30], [3, 620, 640, 660, 650]], np.float32
)
