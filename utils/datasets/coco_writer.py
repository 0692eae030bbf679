"""Writer of COCO data sets: images/SPLIT, annotations/instances_SPLIT.json, and a YAML that train.py reads."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.datasets.converted_set import ConvertedSet, NamedImage
from utils.datasets.yolo_writer import new_folder


def write_coco(data: ConvertedSet, output: Path, *, copy: bool = False, progress: bool = True) -> Path:
    """Write a data set into a new folder. Return the path of its YAML.

    Category ids are class numbers from 1. Boxes are pixels with fractions. Ignored regions are crowds.
    Raises UserError for classes of one name, which readers would take for one.
    """
    data.require_distinct_names("COCO")
    output = output.absolute()
    with new_folder(output) as draft:
        (draft / "annotations").mkdir()
        for split in data.splits:
            content: dict[str, list] = {"images": [], "annotations": [], "categories": []}
            content["categories"] = [{"id": number + 1, "name": name} for number, name in data.names.items()]
            for image in data.copy_images(draft / "images" / split, split, copy=copy, progress=progress):
                height, width = image.shape
                content["images"].append(
                    {"id": image.number, "file_name": image.name, "width": width, "height": height}
                )
                content["annotations"] += _annotations(image)
            for number, annotation in enumerate(content["annotations"]):
                annotation["id"] = number + 1
            # Names of files that are not UTF-8 survive as escapes in ASCII only.
            (draft / _json_name(split)).write_text(json.dumps(content), encoding="ascii")
        data.write_yaml(draft, output, {split: _json_name(split) for split in data.splits})
    return output / f"{output.name}.yaml"


def _json_name(split: str) -> str:
    return f"annotations/instances_{split}.json"


def _annotations(image: NamedImage) -> Iterator[dict[str, Any]]:
    """Yield the annotations of an image, without their ids."""
    H, W = image.shape
    for rows, is_crowd in ((image.labels, 0), (image.regions, 1)):
        for k, (row, (x1, y1, x2, y2)) in enumerate(zip(rows, image.boxes_xyxy_px(rows).tolist(), strict=True)):
            polygon = image.polygons[k].astype(np.float64) * (W, H) if not is_crowd else np.zeros((0, 2))
            yield {
                "image_id": image.number,
                "category_id": int(row[0]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": _area(polygon) if len(polygon) else (x2 - x1) * (y2 - y1),
                "segmentation": [polygon.reshape(-1).tolist()] if len(polygon) else [],
                "iscrowd": is_crowd,
            }


def _area(polygon: np.ndarray) -> float:
    """Return the area of a polygon (k, 2)."""
    x, y = polygon.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
