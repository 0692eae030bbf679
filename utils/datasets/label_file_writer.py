"""Writer of YOLO data sets from what was read: images/SPLIT, labels/SPLIT, and a YAML that train.py reads."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils.datasets.converted_set import ConvertedSet, NamedImage
from utils.datasets.yolo_writer import new_folder


def write_yolo(
    data: ConvertedSet, output: Path, *, polygons: bool = False, copy: bool = False, progress: bool = True
) -> Path:
    """Write a data set into a new folder. Return the path of its YAML.

    Numbers are as short as gives the same float32 again. `polygons` writes outlines instead of boxes, if there are any.
    Ignored regions are dropped.
    """
    output = output.absolute()
    with new_folder(output) as draft:
        for split in data.splits:
            for image in data.copy_images(draft / "images" / split, split, copy=copy, progress=progress):
                file = (draft / "labels" / split / image.name).with_suffix(".txt")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("".join(_rows(image, polygons=polygons)))
        data.write_yaml(draft, output, {split: f"images/{split}" for split in data.splits})
    return output / f"{output.name}.yaml"


def _rows(image: NamedImage, *, polygons: bool) -> Iterator[str]:
    for label, polygon in zip(image.labels, image.polygons, strict=True):
        values = polygon.reshape(-1) if polygons and len(polygon) else label[1:]
        numbers = [np.format_float_positional(value, unique=True, trim="0") for value in values]
        yield f"{int(label[0])} {' '.join(numbers)}\n"
