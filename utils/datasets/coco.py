"""COCO JSON annotations, converted to YOLO label rows.

Classes are numbered in the order of the JSON's categories. Crowd regions are skipped, boxes are clipped to the image,
repeated objects are written once. Everything that was skipped is counted.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.console import progress_bar
from utils.datasets.yolo_writer import Dataset, box_row, format_row, measure_image, parse_finite, safe_name
from utils.errors import UserError

Point = tuple[float, float]


def convert_coco(splits: Sequence[tuple[str, list[Path]]], *, polygons: bool = False, progress: bool = True) -> Dataset:
    """Read (split, [JSON file, folder of images]) pairs. Missing images are counted and skipped.

    `polygons` writes outlines instead of boxes, if there are any.
    """
    dataset, categories = Dataset([]), {}
    for split, (file, folder) in splits:
        data = read_coco(file)
        found = read_categories(data, file)
        if categories and list(categories.items()) != list(found.items()):  # dicts compare without their order
            raise UserError(f"{file}: its categories are not those of {splits[0][1][0]}: splits share one list")
        categories = found
        dataset.names = list(categories.values())
        classes = {category: class_id for class_id, category in enumerate(categories)}
        groups = group_annotations(data, file, dataset)
        for image in progress_bar(data["images"], desc=f"reading {file.name}", unit="image", disable=not progress):
            name = safe_name(str(require_key(image, "file_name", where=f"{file}: images")))
            if not (folder / name).is_file():
                dataset.skipped[f"images that are not in {folder}"] += 1
                continue
            rows = label_rows(
                groups.get(image["id"], []),
                classes,
                image_size(image, folder / name),
                polygons=polygons,
                file=file,
                dataset=dataset,
            )
            dataset.add(split, folder / name, name=name, rows=rows)
    return dataset


def read_coco(file: Path) -> dict[str, list[dict]]:
    """Read the JSON and check its three lists."""
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg}") from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON text: {error}") from error
    for key in ("images", "annotations", "categories"):
        rows = data.get(key) if isinstance(data, dict) else None
        if not isinstance(rows, list) or not all(isinstance(entry, dict) for entry in rows):
            raise UserError(f"{file}: no list {key!r} of objects: give a COCO file of instances (instances_*.json)")
    return data


def require_key(entry: dict, key: str, *, where: str) -> Any:
    """Return the value of a key. Raises UserError with the entry if it has no such key."""
    if key not in entry:
        raise UserError(f"{where}: no {key!r} in {str(entry)[:120]}")
    return entry[key]


def read_categories(data: dict[str, list[dict]], file: Path) -> dict[int, str]:
    """Return category id -> name, in the file's order."""
    categories: dict[int, str] = {}
    for entry in data["categories"]:
        number, name = (require_key(entry, key, where=f"{file}: categories") for key in ("id", "name"))
        if number in categories:
            raise UserError(f"{file}: category id {number} occurs twice, as {categories[number]!r} and {name!r}")
        categories[number] = str(name)
    if not categories:
        raise UserError(f"{file}: 'categories' is empty: class names come from there")
    return categories


def group_annotations(data: dict[str, list[dict]], file: Path, dataset: Dataset) -> dict[int, list[dict]]:
    """Return annotations by image id, without crowds and without those of images that are not listed."""
    listed = {require_key(image, "id", where=f"{file}: images") for image in data["images"]}
    if len(listed) < len(data["images"]):
        twice = len(data["images"]) - len(listed)
        raise UserError(f"{file}: {twice} image ids occur twice: every image needs its own")
    groups = defaultdict(list)
    for annotation in data["annotations"]:
        if annotation.get("iscrowd"):
            dataset.skipped["crowd regions"] += 1
        elif (image_id := require_key(annotation, "image_id", where=f"{file}: annotations")) not in listed:
            dataset.skipped["annotations of images that are not listed"] += 1
        else:
            groups[image_id].append(annotation)
    return groups


def image_size(image: dict, file: Path) -> tuple[int, int]:
    """Return height and width as stated in the JSON, or as read from the image file if they are missing."""
    height, width = image.get("height"), image.get("width")
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return height, width
    return measure_image(file)


def label_rows(
    annotations: list[dict],
    classes: dict[int, int],
    size: tuple[int, int],
    *,
    polygons: bool,
    file: Path,
    dataset: Dataset,
) -> list[str]:
    """Return the label rows of one image, size = (height, width). `classes` maps category ids to class numbers."""
    rows = []
    for annotation in annotations:
        where = f"{file}: annotation {annotation.get('id', '?')}"
        category = require_key(annotation, "category_id", where=where)
        if category not in classes:
            raise UserError(f"{where}: category_id {category} is not among the categories ({len(classes)} ids)")
        left, top, width, height = parse_finite(require_key(annotation, "bbox", where=where), 4, where=f"{where}: bbox")
        row = polygon_row(classes[category], annotation.get("segmentation"), size, where=where) if polygons else None
        row = row or box_row(classes[category], (left, top, left + width, top + height), size)
        if row is None:
            dataset.skipped["boxes without area inside the image"] += 1
        else:
            rows.append(row)
    return rows


def polygon_row(class_id: int, segmentation: object, size: tuple[int, int], *, where: str) -> str | None:
    """Return the label row of a list of polygons, clipped to the image, or None for run-length masks and slivers."""
    if not isinstance(segmentation, list):
        return None
    H, W = size
    parts = []
    for flat in segmentation:
        if not isinstance(flat, list) or len(flat) % 2:
            raise UserError(f"{where}: segmentation part {str(flat)[:60]} is not a list of x y pairs")
        numbers = parse_finite(flat, len(flat), where=f"{where}: segmentation")
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        points = [(min(max(x, 0), W) / W, min(max(y, 0), H) / H) for x, y in pairs]
        parts += [points] if len(points) >= 3 else []
    if not parts:
        return None
    points = join_parts(parts)
    spans = (max(axis) - min(axis) for axis in zip(*points, strict=True))
    return format_row(class_id, [value for point in points for value in point]) if min(spans) > 1e-6 else None


def join_parts(parts: Sequence[list[Point]]) -> list[Point]:
    """Join the parts of an object into one polygon, by a line there and back between their nearest corners."""
    joined = list(parts[0])
    for part in parts[1:]:
        _, i, j = min(
            ((ax - bx) ** 2 + (ay - by) ** 2, i, j)
            for i, (ax, ay) in enumerate(joined)
            for j, (bx, by) in enumerate(part)
        )
        joined = joined[: i + 1] + part[j:] + part[: j + 1] + joined[i:]
    return joined
