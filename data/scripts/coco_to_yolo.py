"""Convert COCO JSON annotations to YOLO labels and a data set YAML.

    python data/scripts/coco_to_yolo.py --output datasets/mine \\
        --split train annotations/instances_train2017.json train2017 \\
        --split val annotations/instances_val2017.json val2017

Classes are numbered in the order of the JSON's categories. Crowd regions are left out, boxes cut at the frame, repeated
objects written once; what was left out is counted and printed. Inputs are only read.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

if __name__ == "__main__":  # started as a file: Python put this file's folder on the path, not the project's
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.cli import SuggestingParser
from utils.datasets.yolo_writer import (
    Dataset,
    box_row,
    finite,
    measure,
    row,
    safe_name,
    split_arguments,
    summary,
    write_dataset,
)
from utils.errors import UserError, run

Point = tuple[float, float]


def read_coco(file: Path) -> dict:
    """The JSON with its three lists checked."""
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


def get(entry: dict, key: str, *, where: str):
    if key not in entry:
        raise UserError(f"{where}: no {key!r} in {str(entry)[:120]}")
    return entry[key]


def read_categories(data: dict, file: Path) -> dict[int, str]:
    """Category id -> name, in the file's order."""
    categories: dict[int, str] = {}
    for entry in data["categories"]:
        number, name = (get(entry, key, where=f"{file}: categories") for key in ("id", "name"))
        if number in categories:
            raise UserError(f"{file}: category id {number} is there twice, as {categories[number]!r} and {name!r}")
        categories[number] = str(name)
    if not categories:
        raise UserError(f"{file}: 'categories' is empty: the classes' names come from there")
    return categories


def group_annotations(data: dict, file: Path, dataset: Dataset) -> dict[int, list[dict]]:
    """Annotations by image id, without crowds and without those of images that are not listed."""
    listed = {get(image, "id", where=f"{file}: images") for image in data["images"]}
    if len(listed) < len(data["images"]):
        twice = len(data["images"]) - len(listed)
        raise UserError(f"{file}: {twice} image ids are there twice: every image needs its own")
    groups = defaultdict(list)
    for annotation in data["annotations"]:
        if annotation.get("iscrowd"):
            dataset.left_out["crowd regions"] += 1
        elif (image_id := get(annotation, "image_id", where=f"{file}: annotations")) not in listed:
            dataset.left_out["annotations of images that are not listed"] += 1
        else:
            groups[image_id].append(annotation)
    return groups


def bridge(parts: Sequence[list[Point]]) -> list[Point]:
    """One polygon out of several parts: each is joined to what is there by a line between their nearest corners."""
    joined = list(parts[0])
    for part in parts[1:]:
        _, i, j = min(
            ((ax - bx) ** 2 + (ay - by) ** 2, i, j)
            for i, (ax, ay) in enumerate(joined)
            for j, (bx, by) in enumerate(part)
        )
        joined = joined[: i + 1] + part[j:] + part[: j + 1] + joined[i:]
    return joined


def polygon_row(class_id: int, segmentation: object, size: tuple[int, int], *, where: str) -> str | None:
    """Label row of a list of polygons, cut at the frame; None for masks in run-length code and for slivers."""
    if not isinstance(segmentation, list):
        return None
    H, W = size
    parts = []
    for flat in segmentation:
        if not isinstance(flat, list) or len(flat) % 2:
            raise UserError(f"{where}: segmentation part {str(flat)[:60]} is not a list of x y pairs")
        numbers = finite(flat, len(flat), where=f"{where}: segmentation")
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        points = [(min(max(x, 0), W) / W, min(max(y, 0), H) / H) for x, y in pairs]
        parts += [points] if len(points) >= 3 else []
    if not parts:
        return None
    points = bridge(parts)
    spans = (max(axis) - min(axis) for axis in zip(*points, strict=True))
    return row(class_id, [value for point in points for value in point]) if min(spans) > 1e-6 else None


def image_rows(
    annotations: list[dict],
    classes: dict[int, int],
    size: tuple[int, int],
    *,
    polygons: bool,
    file: Path,
    dataset: Dataset,
) -> list[str]:
    rows = []
    for annotation in annotations:
        where = f"{file}: annotation {annotation.get('id', '?')}"
        category = get(annotation, "category_id", where=where)
        if category not in classes:
            raise UserError(f"{where}: category_id {category} is not among the categories ({len(classes)} ids)")
        left, top, width, height = finite(get(annotation, "bbox", where=where), 4, where=f"{where}: bbox")
        line = polygon_row(classes[category], annotation.get("segmentation"), size, where=where) if polygons else None
        line = line or box_row(classes[category], (left, top, left + width, top + height), size)
        if line is None:
            dataset.left_out["boxes without area inside the frame"] += 1
        else:
            rows.append(line)
    return rows


def image_size(image: dict, picture: Path) -> tuple[int, int]:
    """Height and width as stated, else as the picture has them."""
    stated = image.get("height"), image.get("width")
    return stated if all(isinstance(side, int) and side > 0 for side in stated) else measure(picture)


def convert(splits: Sequence[tuple[str, list[Path]]], *, polygons: bool = False, progress: bool = True) -> Dataset:
    """Read (split, [JSON file, folder of pictures]) pairs. Absent pictures are counted and left out."""
    dataset, categories = None, None
    for split, (file, folder) in splits:
        data = read_coco(file)
        found = read_categories(data, file)
        if categories is not None and list(categories.items()) != list(found.items()):  # dicts ignore the order
            raise UserError(f"{file}: its categories are not those of {splits[0][1][0]}: splits share one list")
        categories = found
        dataset = dataset or Dataset(list(categories.values()))
        classes = {number: place for place, number in enumerate(categories)}
        groups = group_annotations(data, file, dataset)
        for image in tqdm(data["images"], f"reading {file.name}", unit="picture", disable=not progress):
            name = safe_name(str(get(image, "file_name", where=f"{file}: images")))
            if not (folder / name).is_file():
                dataset.left_out[f"pictures that are not in {folder}"] += 1
                continue
            rows = image_rows(
                groups[image["id"]] if image["id"] in groups else [],
                classes,
                image_size(image, folder / name),
                polygons=polygons,
                file=file,
                dataset=dataset,
            )
            dataset.add(split, folder / name, name=name, rows=rows)
    return dataset


def main(argv: list[str] | None = None) -> None:
    parser = SuggestingParser(description="Convert COCO JSON annotations to YOLO labels and a data set YAML.")
    parser.add_argument(
        "--split",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "PATH"),
        help="train, val or test, then the JSON file, then the folder of its pictures; repeat for each",
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder for images/, labels/ and the YAML")
    parser.add_argument("--polygons", action="store_true", help="write outlines instead of boxes where there are any")
    parser.add_argument("--copy", action="store_true", help="copy the pictures instead of linking to them")
    args = parser.parse_args(argv)
    splits = split_arguments(args.split, most=2, form="NAME JSON PICTURES")
    dataset = convert(splits, polygons=args.polygons)
    print(summary(dataset, write_dataset(dataset, args.output, copy=args.copy)))


if __name__ == "__main__":
    run(main)
