"""Fixtures of the tests of loading."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from small_split import SHAPES

from utils.datasets.label_index import LabelIndex
from utils.datasets.labels import load_index


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Write eleven images of many shapes with two red rectangles each.

    They are labelled as boxes, as outline and box, or not at all.
    """
    folder = tmp_path_factory.mktemp("images")
    for name in ("images/set", "labels/set"):
        (folder / name).mkdir(parents=True)
    for k, (height, width) in enumerate(SHAPES):
        image = np.full((height, width, 3), 20 * k, np.uint8)
        y1, y2, x1, x2 = height // 4, height // 2, width // 4, width // 2
        image[y1:y2, x1:x2] = (0, 0, 255)
        x, y, w, h = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
        corners = (x1, y1), (x2, y1), (x2, y2), (x1, y2)
        outline = " ".join(f"{column / width} {row / height}" for column, row in corners)
        image[round(height * 0.8) : round(height * 0.95), round(width * 0.8) : round(width * 0.95)] = (0, 0, 255)
        cv2.imwrite(str(folder / f"images/set/{k:02}.png"), image)
        second = "\n0 .875 .875 .15 .15"
        rows = ["", f"{k % 3} {x} {y} {w} {h}{second}", f"{k % 3} {outline}{second}"][k and 1 + k % 2]
        (folder / f"labels/set/{k:02}.txt").write_text(rows)
    return folder


@pytest.fixture(scope="module")
def index(folder) -> LabelIndex:
    return load_index(folder / "images/set", 3, progress=False, cache=False)
