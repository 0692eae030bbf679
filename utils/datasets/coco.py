"""COCO JSON annotations, read in place or converted to YOLO label rows.

Classes are numbered in the order of the JSON's categories. Boxes are clipped to the image, repeated objects are written
once. What cannot be used is skipped, named and counted.
"""

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.cli import shorten
from utils.console import progress_bar
from utils.datasets.annotations import AnnotatedImage, AnnotatedObject, Annotations, Point, normalize_outline
from utils.datasets.remarks import Remarks
from utils.datasets.run_length import mask_box, mask_outlines
from utils.datasets.yolo_writer import Dataset, box_row, decoded_size, find_stated_image, format_row, parse_finite
from utils.errors import UserError
from utils.files import read_regular

MAX_JSON_BYTES = 8 << 30
MAX_ID_DIGITS = 100
MAX_POINTS, MAX_PARTS = 20_000, 1000  # of an outline; that of a noisy mask would take minutes to join
MAX_DISTANCES = 1 << 18  # between points, in memory at a time

Id = int | str


class CocoObject(NamedTuple):
    """One annotation that can be used."""

    category: Id
    xyxy_px: tuple[float, float, float, float]
    segmentation: object
    where: str  # for messages
    is_crowd: bool


class CocoImage(NamedTuple):
    """One image of a JSON that was found in a folder."""

    image_id: Id
    path: Path
    name: str  # below the folder
    stated_size: tuple[int, int] | None  # height, width


def read_instances(file: Path, folders: Sequence[Path], remarks: Remarks) -> Annotations:
    """Return the images of a JSON that are in one of the folders, with their objects, crowds as ignored ones.

    Raises UserError if the JSON cannot be used or none of its images is found.
    """
    data = read_coco(file, remarks)
    categories = read_common_categories({file: data}, remarks)
    names = list(dict.fromkeys(categories.values()))
    classes = {category: names.index(name) for category, name in categories.items()}
    objects = group_objects(file, data, remarks, crowds=True)
    images: dict[Path, AnnotatedImage] = {}
    found = find_images(data, folders, remarks)
    if data["images"] and not found:
        places = ", ".join(map(str, folders))
        raise UserError(
            f"{file}: none of its {len(data['images'])} images is found, the first is "
            f"{str(data['images'][0].get('file_name'))[:120]}. Move them beside the JSON, or give their folder by "
            f"`path:` in a data set YAML; looked in {places}"
        )
    for image in found:
        rows = [_annotated(entry, classes, remarks) for entry in objects.get(image.image_id, [])]
        earlier = images.get(image.path)  # listed twice, with some of its objects under each id
        images[image.path] = AnnotatedImage(
            str(image.path), image.stated_size, [*(earlier.objects if earlier else []), *rows]
        )
    return Annotations(names, list(images.values()), len(data["images"]) - len(found))


def _annotated(entry: CocoObject, classes: dict[Id, int], remarks: Remarks) -> AnnotatedObject:
    outline: list[Point] = []
    if not entry.is_crowd:
        try:
            parts = read_outline(entry.segmentation, where=entry.where)
            outline = join_parts(parts, where=entry.where) if parts else []
        except UserError as error:
            remarks.correct("outlines cannot be used, the boxes are used", str(error))
    return AnnotatedObject(classes[entry.category], entry.xyxy_px, outline, entry.is_crowd, entry.where)


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
        images = find_images(files[file], [folder], dataset)
        objects = group_objects(file, files[file], dataset, crowds=crowds)
        for image in progress_bar(images, desc=f"reading {file.name}", unit="image", disable=not progress):
            found = objects.get(image.image_id, [])
            try:
                size = decoded_size(image.stated_size, image.path, [entry.xyxy_px for entry in found], dataset)
            except UserError as error:
                dataset.skip("images that cannot be read", str(error))
                continue
            if size is not None:
                rows = label_rows(found, classes, size, polygons=polygons, dataset=dataset)
                dataset.add(split, image.path, name=image.name, rows=rows)
    return dataset


def read_coco(file: Path, remarks: Remarks) -> dict[str, list[dict]]:
    """Return the three lists of a JSON with their objects."""
    try:
        data = json.loads(read_regular(file, MAX_JSON_BYTES).decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg}") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, or a number of thousands of digits
        raise UserError(f"{file}: cannot be read as JSON text: {error}") from error
    lists = {}
    for key in ("images", "annotations", "categories"):
        entries = data.get(key) if isinstance(data, dict) else None
        lists[key] = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        if not isinstance(entries, list) or (entries and not lists[key]):
            raise UserError(f"{file}: no list {key!r} of objects: give a COCO file of instances (instances_*.json)")
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                remarks.skip(f"entries of {key!r} that are no objects", f"{number}: {str(entry)[:60]}")
    return lists


def parse_id(value: object) -> Id | None:
    """Return an id, the same for 7, 7.0 and "7", or None for other types."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        is_number = value.isascii() and value.isdecimal() and len(value) < MAX_ID_DIGITS
        return int(value) if is_number and str(int(value)) == value else value
    return value if type(value) is int else None


def read_common_categories(files: dict[Path, dict[str, list[dict]]], remarks: Remarks) -> dict[Id, str]:
    """Return the categories that all files share, without a dummy that no annotation uses."""
    found = {file: read_categories(data, file) for file, data in files.items()}
    first, categories = next(iter(found.items()))
    for file, others in found.items():
        if list(categories.items()) != list(others.items()):  # dicts compare without their order
            raise UserError(f"{file}: its categories are not those of {first}: splits share one list")
    used = {parse_id(annotation.get("category_id")) for data in files.values() for annotation in data["annotations"]}
    dummy = find_dummy_category(files[first]["categories"])
    if dummy is not None and dummy not in used:
        remarks.skip("categories that only stand for all others", categories.pop(dummy))
    return categories


def read_categories(data: dict[str, list[dict]], file: Path) -> dict[Id, str]:
    """Return category id -> name, in the file's order."""
    categories: dict[Id, str] = {}
    for entry in data["categories"]:
        number, name = parse_id(entry.get("id")), entry.get("name")
        if number is None or not isinstance(name, (str, int, float)):
            key = "id" if number is None else "name"
            raise UserError(f"{file}: categories: no {key!r} in {str(entry)[:120]}")
        if isinstance(name, str) and any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UserError(f"{file}: category {number}: its name {name!r} holds half of a pair, which is no text")
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


def find_images(data: dict[str, list[dict]], folders: Sequence[Path], remarks: Remarks) -> list[CocoImage]:
    """Return the images that are in one of the folders, under the names that the file states or the ends of these.

    If several names end alike, an image belongs to the one that is stated exactly so, or to none.
    """
    found: list[tuple[str, CocoImage]] = []
    absent = f"images that are not in {', '.join(map(str, folders))}"
    for entry in data["images"]:
        image_id, stated = parse_id(entry.get("id")), entry.get("file_name")
        if image_id is None or not isinstance(stated, str):
            remarks.skip("images without id or file_name", str(entry)[:120])
            continue
        place = find_place(stated, folders)
        if place is None:
            remarks.skip(absent, stated[:200])
        else:
            folder, name = place
            found.append((stated, CocoImage(image_id, folder / name, name, parse_size(entry))))
    stated_names = defaultdict(set)
    for stated, image in found:
        stated_names[image.path].add(stated)
    images = []
    for stated, image in found:
        if stated != image.name and len(stated_names[image.path]) > 1:
            remarks.skip("images whose name fits those of others", stated)
        else:
            images.append(image)
    return images


def find_place(stated: str, folders: Sequence[Path]) -> tuple[Path, str] | None:
    """Return the folder and the path below it of an image: the stated one if it exists, else an end of it."""
    if is_below(stated):
        for folder in folders:
            if os.path.isfile(folder / stated):
                return folder, stated
    places = ((folder, find_stated_image(stated, folder)) for folder in folders)
    return next(((folder, name) for folder, name in places if name is not None), None)


def is_below(name: str) -> bool:
    """Return whether a path is relative and stays below its folder, with slashes and nothing to simplify."""
    parts = name.split("/")
    return not ({"", ".", ".."} & set(parts) or "\\" in name or "\0" in name or parts[0][1:2] == ":")


def parse_size(image: dict) -> tuple[int, int] | None:
    """Return height and width as stated, None if they are missing or wrong."""
    try:
        height, width = (float(image[key]) for key in ("height", "width"))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (int(height), int(width)) if all(1 <= side < math.inf for side in (height, width)) else None


def group_objects(
    file: Path, data: dict[str, list[dict]], remarks: Remarks, *, crowds: bool
) -> dict[Id, list[CocoObject]]:
    """Return objects by image id. Skip objects without a box, those of images that are not listed, unwanted crowds."""
    listed = Counter(parse_id(image.get("id")) for image in data["images"])
    twice = {image_id for image_id, count in listed.items() if count > 1 and image_id is not None}
    if twice:
        raise UserError(
            f"{file}: {len(twice)} image ids occur twice, the first is {min(map(str, twice))}: each needs its own"
        )
    known = {parse_id(entry["id"]) for entry in data["categories"]}
    groups = defaultdict(list)
    for annotation in data["annotations"]:
        where = f"annotation {str(annotation.get('id', '?'))[:60]}"
        image_id, category = parse_id(annotation.get("image_id")), parse_id(annotation.get("category_id"))
        is_crowd = annotation.get("iscrowd") not in (0, "0", None, "")  # also False and 0.0
        if is_crowd and not crowds:
            remarks.skip("crowd regions, kept with --keep-crowds", where)
        elif image_id is None or image_id not in listed:
            remarks.skip("annotations of images that are not listed", where)
        elif category is None or category not in known:
            text = shorten(annotation.get("category_id"))
            remarks.skip("annotations of unknown categories", f"{where}: category_id {text}")
        elif (box := read_box(annotation)) is None:
            text = f"bbox {str(annotation['bbox'])[:60]}" if "bbox" in annotation else "no bbox"
            remarks.skip("annotations without a box or an outline", f"{where}: {text}")
        else:
            groups[image_id].append(CocoObject(category, box, annotation.get("segmentation"), where, is_crowd))
    return groups


def read_box(annotation: dict) -> tuple[float, float, float, float] | None:
    """Return the box (x1, y1, x2, y2) in pixels from `bbox`, else the box around the outline, else None."""
    try:
        left, top, width, height = parse_finite(annotation.get("bbox") or (), 4, where="bbox")
        return left, top, left + width, top + height
    except UserError:
        pass
    segmentation = annotation.get("segmentation")
    try:
        if isinstance(segmentation, dict):
            return mask_box(segmentation)
        points = [point for part in read_outline(segmentation, where="") for point in part]
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
    """Return the label row of an outline, clipped to the image, or None for slivers and objects without one."""
    parts = read_outline(segmentation, where=where)
    points = normalize_outline(join_parts(parts, where=where), size) if parts else []
    return format_row(class_id, [value for point in points for value in point]) if points else None


def read_outline(segmentation: object, *, where: str) -> list[list[Point]]:
    """Return the polygons of at least three points in pixels, those around its parts for a run-length mask.

    Raises UserError for anything but finite x y pairs and masks that can be decoded.
    """
    if isinstance(segmentation, dict):
        try:
            return mask_outlines(segmentation)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    parts = []
    for flat in segmentation if isinstance(segmentation, list) else []:
        if not isinstance(flat, list) or len(flat) % 2:
            raise UserError(f"{where}: segmentation part {str(flat)[:60]} is not a list of x y pairs")
        numbers = parse_finite(flat, len(flat), where=f"{where}: segmentation")
        if len(numbers) >= 6:
            parts.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return parts


def join_parts(parts: Sequence[list[Point]], *, where: str = "") -> list[Point]:
    """Join the parts of an object into one polygon, by a line there and back between their nearest corners.

    Raises UserError for more than MAX_POINTS or MAX_PARTS.
    """
    count = sum(map(len, parts))
    if count > MAX_POINTS or len(parts) > MAX_PARTS:
        raise UserError(f"{where}: an outline of {count} points in {len(parts)} parts is too much")
    joined = list(parts[0])
    for part in parts[1:]:
        i, j = _nearest_corners(np.array(joined), np.array(part))
        joined = joined[: i + 1] + part[j:] + part[: j + 1] + joined[i:]
    return joined


def _nearest_corners(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """Return the positions of the nearest two points of (n, 2) and (m, 2), the first of equal ones."""
    best, found = math.inf, (0, 0)
    rows = max(1, MAX_DISTANCES // len(second))
    for start in range(0, len(first), rows):
        distances = ((first[start : start + rows, None] - second[None]) ** 2).sum(2)
        i, j = divmod(int(distances.argmin()), len(second))
        if distances[i, j] < best:
            best, found = distances[i, j], (start + i, j)
    return found
