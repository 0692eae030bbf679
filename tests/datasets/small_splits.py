"""Small splits that the tests of labels and of their cache scan."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.datasets.label_index import LabelIndex
from utils.datasets.labels import load_index


def write_image(path: Path, height: int = 24, width: int = 32, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 255, (height, width, 3), np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, noise)[1].tobytes())
    return path


def write_labels(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def make_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make images a, b, c. a has two boxes, b an empty label file, c none. The cache folder is beside the set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in "abc":
        write_image(tmp_path / f"set/images/train/{name}.jpg")
    write_labels(tmp_path / "set/labels/train/a.txt", "0 .5 .5 .2 .2\n1 .25 .25 .5 .5\n")
    write_labels(tmp_path / "set/labels/train/b.txt", "\n")
    return tmp_path / "set"


def scan(folder: Path, num_classes: int = 3, **settings) -> LabelIndex:
    return load_index(folder / "images/train", num_classes, progress=False, **settings)
