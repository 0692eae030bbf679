"""COCO JSON annotations, converted to YOLO label rows.

Classes are numbered in the order of the JSON's categories. Boxes are clipped to the image, repeated objects are written
once. What cannot be used is skipped, named and counted.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from utils.console import progress_bar
from utils.datasets.yolo_writer import Dataset, box_row, decoded_size, find_stated_image, format_row, parse_finite
from utils.errors import UserError

Point = tuple[float, float]
Id = int | str


class CocoObject(NamedTuple):
    """One annotation that can be used."""

    category: Id
    xyxy_px: tuple[float, float, float, float]
    segmentation: object
    where: str  # for messages


class CocoImage(NamedTuple):
    """One image of a JSON that was found in the folder."""

    image_id: Id
    name: str  # below the folder
    stated_size: tuple[int, int] | None  # height, width


def convert_coco(
    splits: Sequence[tuple[str, list[Path]]], *, polygons: bool = False, crowds: bool = False, progress: bool = True
) -> Dataset:
    """Read (split, [JSON file, folder of images]) pairs.

    `polygons` writes outlines instead of boxes, if there are any. `crowds` keeps regions that are marked as a crowd.
    """
    dataset = Dataset([])
    files = {file: read_coco(file, dataset) for _, (file, _) in splits}
    categories = read_common_categories(files, dataset)
    dataset.names = list(categories.values())
    classes = {category: class_id for class_id, category in enumerate(categories)}
    for split, (file, folder) in splits:
        images = find_images(files[file], folder, dataset)
        objects = group_objects(files[file], dataset, crowds=crowds)
        for image in progress_bar(images, desc=f"reading {file.name}", unit="image", disable=not progress):
            found = objects.get(image.image_id, [])
            path = folder / image.name
            try:
                size = decoded_size(image.stated_size, path, [entry.xyxy_px for entry in found], dataset)
            except UserError as error:
                dataset.skip("images that cannot be read", str(error))
                continue
            if size is not None:
                rows = label_rows(found, classes, size, polygons=polygons, dataset=dataset)
                dataset.add(split, path, name=image.name, rows=rows)
    return dataset


def read_coco(file: Path, dataset: Dataset) -> dict[str, list[dict]]:
    """Return the three lists of a JSON with their objects."""
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg}") from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON text: {error}") from error
    lists = {}
    for key in ("images", "annotations", "categories"):
        entries = data.get(key) if isinstance(data, dict) else None
        lists[key] = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        if not isinstance(entries, list) or (entries and not lists[key]):
            raise UserError(f"{file}: no list {key!r} of objects: give a COCO file of instances (instances_*.json)")
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                dataset.skip(f"entries of {key!r} that are no objects", f"{number}: {str(entry)[:60]}")
    return lists


def parse_id(value: object) -> Id | None:
    """Return an id, the same for 7, 7.0 and "7", or None for other types."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() and str(int(value)) == value else value
    return value if type(value) is int else None


def read_common_categories(files: dict[Path, dict[str, list[dict]]], dataset: Dataset) -> dict[Id, str]:
    """Return the categories that all files share, without a dummy that no annotation uses."""
    found = {file: read_categories(data, file) for file, data in files.items()}
    first, categories = next(iter(found.items()))
    for file, others in found.items():
        if list(categories.items()) != list(others.items()):  # dicts compare without their order
            raise UserError(f"{file}: its categories are not those of {first}: splits share one list")
    used = {parse_id(annotation.get("category_id")) for data in files.values() for annotation in data["annotations"]}
    dummy = find_dummy_category(files[first]["categories"])
    if dummy is not None and dummy not in used:
        dataset.skip("categories that only stand for all others", categories.pop(dummy))
    return categories


def read_categories(data: dict[str, list[dict]], file: Path) -> dict[Id, str]:
    """Return category id -> name, in the file's order."""
    categories: dict[Id, str] = {}
    for entry in data["categories"]:
        number, name = parse_id(entry.get("id")), entry.get("name")
        if number is None or not isinstance(name, (str, int, float)):
            key = "id" if number is None else "name"
            raise UserError(f"{file}: categories: no {key!r} in {str(entry)[:120]}")
        if number in categories:
            raise UserError(f"{file}: category id {number} occurs twice, as {categories[number]!r} and {name!r}")
        categories[number] = str(name)
    if not categories:
        raise UserError(f"{file}: 'categories' is empty: class names come from there")
    return categories


def find_dummy_category(entries: list[dict]) -> Id | None:
    """Return the id of a category that is the supercategory of all others, and itself in none. One exporter adds it."""
    tops = [entry for entry in entries if entry.get("supercategory") in (None, "", "none")]
    if len(tops) != 1 or len(entries) < 2:
        return None
    [top] = tops
    others = [entry for entry in entries if entry is not top]
    return parse_id(top["id"]) if all(entry["supercategory"] == top["name"] for entry in others) else None


def find_images(data: dict[str, list[dict]], folder: Path, dataset: Dataset) -> list[CocoImage]:
    """Return the images that are in the folder, under the names that the file states or the ends of these.

    If several names end alike, an image in the folder belongs to the one that is stated exactly so, or to none.
    """
    found: list[tuple[str, CocoImage]] = []
    for entry in data["images"]:
        image_id, stated = parse_id(entry.get("id")), entry.get("file_name")
        if image_id is None or not isinstance(stated, str):
            dataset.skip("images without id or file_name", str(entry)[:120])
            continue
        name = find_stated_image(stated, folder)
        if name is None:
            dataset.skip(f"images that are not in {folder}", stated)
        else:
            found.append((stated, CocoImage(image_id, name, parse_size(entry))))
    stated_names = defaultdict(set)
    for stated, image in found:
        stated_names[image.name].add(stated)
    images = []
    for stated, image in found:
        if stated != image.name and len(stated_names[image.name]) > 1:
            dataset.skip("images whose name fits those of others", stated)
        else:
            images.append(image)
    return images


def parse_size(image: dict) -> tuple[int, int] | None:
    """Return height and width as stated, None if they are missing or wrong."""
    try:
        height, width = (float(image[key]) for key in ("height", "width"))
    except (KeyError, TypeError, ValueError):
        return None
    return (int(height), int(width)) if all(1 <= side < math.inf for side in (height, width)) else None


def group_objects(data: dict[str, list[dict]], dataset: Dataset, *, crowds: bool) -> dict[Id, list[CocoObject]]:
    """Return objects by image id. Skip crowds, objects without a box, and those of images that are not listed."""
    listed = Counter(parse_id(image.get("id")) for image in data["images"])
    twice = {image_id for image_id, count in listed.items() if count > 1 and image_id is not None}
    if twice:
        raise UserError(f"{len(twice)} image ids occur twice, the first is {min(map(str, twice))}: each needs its own")
    known = {parse_id(entry["id"]) for entry in data["categories"]}
    groups = defaultdict(list)
    for annotation in data["annotations"]:
        where = f"annotation {annotation.get('id', '?')}"
        image_id, category = parse_id(annotation.get("image_id")), parse_id(annotation.get("category_id"))
        if annotation.get("iscrowd") not in (0, "0", None, "") and not crowds:  # also False and 0.0
            dataset.skip("crowd regions, kept with --keep-crowds", where)
        elif image_id is None or image_id not in listed:
            dataset.skip("annotations of images that are not listed", where)
        elif category is None or category not in known:
            dataset.skip("annotations of unknown categories", f"{where}: category_id {annotation.get('category_id')!r}")
        elif (box := read_box(annotation)) is None:
            text = f"bbox {str(annotation['bbox'])[:60]}" if "bbox" in annotation else "no bbox"
            dataset.skip("annotations without a box or an outline", f"{where}: {text}")
        else:
            groups[image_id].append(CocoObject(category, box, annotation.get("segmentation"), where))
    return groups


def read_box(annotation: dict) -> tuple[float, float, float, float] | None:
    """Return the box (x1, y1, x2, y2) in pixels from `bbox`, else the box around the outline, else None."""
    try:
        left, top, width, height = parse_finite(annotation.get("bbox") or (), 4, where="bbox")
        return left, top, left + width, top + height
    except UserError:
        pass
    try:
        points = [point for part in read_outline(annotation.get("segmentation"), where="") for point in part]
    except UserError:
        return None
    if not points:
        return None
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def label_rows(
    objects: list[CocoObject], classes: dict[Id, int], size: tuple[int, int], *, polygons: bool, dataset: Dataset
) -> list[str]:
    """Return the label rows of one image, size = (height, width). `classes` maps category ids to class numbers."""
    rows = []
    for entry in objects:
        row = None
        if polygons:
            try:
                row = polygon_row(classes[entry.category], entry.segmentation, size, where=entry.where)
            except UserError as error:
                dataset.correct("outlines cannot be used, the boxes are used", str(error))
        row = row or box_row(classes[entry.category], entry.xyxy_px, size)
        if row is None:
            dataset.skip("boxes without area inside the image", entry.where)
        else:
            rows.append(row)
    return rows


def polygon_row(class_id: int, segmentation: object, size: tuple[int, int], *, where: str) -> str | None:
    """Return the label row of a list of polygons, clipped to the image, or None for run-length masks and slivers."""
    H, W = size
    parts = [
        [(min(max(x, 0), W) / W, min(max(y, 0), H) / H) for x, y in part]
        for part in read_outline(segmentation, where=where)
    ]
    if not parts:
        return None
    points = join_parts(parts)
    spans = (max(axis) - min(axis) for axis in zip(*points, strict=True))
    return format_row(class_id, [value for point in points for value in point]) if min(spans) > 1e-6 else None


def read_outline(segmentation: object, *, where: str) -> list[list[Point]]:
    """Return the polygons of at least three points in pixels, none for run-length masks.

    Raises UserError for anything but finite x y pairs.
    """
    parts = []
    for flat in segmentation if isinstance(segmentation, list) else []:
        if not isinstance(flat, list) or len(flat) % 2:
            raise UserError(f"{where}: segmentation part {str(flat)[:60]} is not a list of x y pairs")
        numbers = parse_finite(flat, len(flat), where=f"{where}: segmentation")
        if len(numbers) >= 6:
            parts.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return parts


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
