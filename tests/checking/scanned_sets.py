"""Small data sets for the tests of checks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.checking.findings import Finding
from utils.checking.scan import Check, ScannedData, scan_dataset
from utils.datasets.locate import locate_dataset

NAMES = ("ship", "tree")


def write_image(path: Path, height: int = 64, width: int = 96) -> Path:
    """Write an image of noise. Its suffix names the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(60, 200, (height, width, 3), np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, noise)[1].tobytes())
    return path


def write_set(root: Path, splits: Mapping[str, Mapping[str, str | None]], names: Sequence[str] = NAMES) -> Path:
    """Write a data set and return its YAML. Each split maps names of images to their rows, None for no label file."""
    lines = [f"path: {root}", f"names: {list(names)}"]
    for split, images in splits.items():
        for name, rows in images.items():
            write_image(root / "images" / split / name)
            label = (root / "labels" / split / name).with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            if rows is not None:
                label.write_text(rows)
        lines.append(f"{split}: images/{split}")
    file = root / "data.yaml"
    file.write_text("\n".join(lines))
    return file


def scan(file: Path, imgsz: int = 96) -> ScannedData:
    return scan_dataset(locate_dataset(str(file)), imgsz, progress=False)


def scan_rows(root: Path, *rows: str, names: Sequence[str] = NAMES) -> ScannedData:
    """Return a data set whose training images have these rows. It is validated on the same images."""
    file = write_set(root, {"train": {f"{k}.jpg": text for k, text in enumerate(rows)}}, names)
    file.write_text(file.read_text() + "\nval: images/train\n")
    return scan(file)


def findings_of(check: Check, data: ScannedData) -> dict[str, Finding]:
    """Return the findings by the name of their check, which occurs once."""
    findings = list(check(data))
    found = {finding.check: finding for finding in findings}
    assert len(found) == len(findings)
    return found


def places(finding: Finding) -> list[str]:
    """Return the examples in short: `0.txt:3`."""
    return [Path(example.place).name for example in finding.examples]
