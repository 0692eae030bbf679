"""Findings as an HTML page, report.html: by level, with small images of their examples."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.addresses import remove_credentials
from utils.checking.classes import class_counts
from utils.checking.findings import LEVELS, Example, Finding
from utils.checking.scan import ScannedData, ScannedSplit
from utils.datasets.splits import label_sizes
from utils.image_size import ImageSize, describe_size
from utils.output.pages.page import MAX_PAGE_BYTES, write_page
from utils.output.pages.thumbnails import ROLES, Thumbnail, make_thumbnail
from utils.parallel_map import parallel_map

TITLES = {"error": "errors", "warning": "warnings", "note": "notes"}
MAX_IMAGES = 12  # examples of a finding that are shown
IMAGE_BYTES = MAX_PAGE_BYTES * 3 // 5  # of all thumbnails; the rest of a page is text
TEXT_BYTES = MAX_PAGE_BYTES // 5  # of all lists
CHUNK = 8  # thumbnails made at a time
MAX_CLASSES = 200  # rows of the table


class ShownExample(NamedTuple):
    """An example with its images: one, or that which it repeats beside it."""

    place: str
    name: str
    detail: str
    thumbnails: list[Thumbnail]


def write_check_page(file: Path, data: ScannedData, findings: Sequence[Finding], *, typed: str) -> None:
    """Write the page of a check. `typed` is `--data`."""
    source = remove_credentials(typed)
    images = _make_images(findings, data.spec.names)
    places = _limit_places(findings)
    levels = [
        {
            "name": level,
            "title": TITLES[level],
            "findings": [
                _describe(finding, images[k], places[k]) for k, finding in enumerate(findings) if finding.level == level
            ],
        }
        for level in LEVELS
    ]
    content = {
        "title": f"Check of {source}",
        "source": source,
        "imgsz": describe_size(data.imgsz),
        "verdict": _verdict(findings),
        "levels": levels,
        "roles": ROLES,
        "splits": [_describe_split(split, data.imgsz) for split in data.splits.values()],
        "classes": _class_rows(data),
    }
    write_page(file, "check.html", content)


def _verdict(findings: Sequence[Finding]) -> str:
    levels = [finding.level for finding in findings]
    if "error" in levels:
        return "There are errors: data is lost or wrong. Correct them before training."
    if "warning" in levels:
        return "There is no error. Look at the warnings before training."
    return "There is no error and no warning."


def _describe(finding: Finding, shown: list[ShownExample], places: list[str]) -> dict[str, Any]:
    figures = [(name, _number(value)) for name, value in finding.figures.items()]
    return {**vars(finding), "examples": shown, "places": places, "figures": figures, "legend": _legend(shown)}


def _legend(shown: list[ShownExample]) -> dict[str, str]:
    """Return the roles of the boxes, in words by their name. Labels alone need no legend."""
    found = {box.role for example in shown for thumbnail in example.thumbnails for box in thumbnail.boxes}
    return {role: words for role, words in ROLES.items() if role in found} if found - {"label"} else {}


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _limit_places(findings: Sequence[Finding]) -> list[list[str]]:
    """Return the places of each finding, fewer of each if the names are so long that the page would be too large."""
    places = [[example.place for example in finding.examples] for finding in findings]
    size = sum(len(place.encode("utf-8", "replace")) + 1 for group in places for place in group)
    share = min(1.0, TEXT_BYTES / max(size, 1))
    return [group[: max(1, int(len(group) * share))] for group in places]


# ---- images


def _make_images(findings: Sequence[Finding], names: Mapping[int, str]) -> list[list[ShownExample]]:
    """Return the shown examples of each finding. The first of each finding come first, until the page is full."""
    shown: list[list[ShownExample]] = [[] for _ in findings]
    waiting = list(_in_turn(findings))
    chunks = [waiting[k : k + CHUNK] for k in range(0, len(waiting), CHUNK)]
    size = 0
    for chunk in parallel_map(partial(_show_chunk, names=names), chunks, cpu_bound=False):
        for k, example in chunk:
            if example is not None:
                size += sum(thumbnail.size for thumbnail in example.thumbnails)
                if size > IMAGE_BYTES:
                    return shown
                shown[k].append(example)
    return shown


def _in_turn(findings: Sequence[Finding]) -> Iterator[tuple[int, Example]]:
    """Yield the examples that have an image, with the number of their finding: first all first ones."""
    for rank in range(MAX_IMAGES):
        for k, finding in enumerate(findings):
            if rank < len(finding.examples) and finding.examples[rank].image:
                yield k, finding.examples[rank]


def _show_chunk(
    chunk: Sequence[tuple[int, Example]], names: Mapping[int, str]
) -> list[tuple[int, ShownExample | None]]:
    return [(k, _show(example, names)) for k, example in chunk]


def _show(example: Example, names: Mapping[int, str]) -> ShownExample | None:
    """Return an example with its images, None if its own cannot be read."""
    is_one = example.line > 0 or bool(example.roles)  # box, and not all of an image
    first = make_thumbnail(example.image, example.boxes, names, roles=example.roles, cut=is_one)
    if first is None:
        return None
    beside = make_thumbnail(example.beside, (), names) if example.beside else None
    thumbnails = [first, beside] if beside else [first]
    return ShownExample(example.place, os.path.basename(example.place), example.detail, thumbnails)


# ---- the data


def _describe_split(split: ScannedSplit, imgsz: ImageSize) -> dict[str, Any]:
    index = split.index
    height, width = np.median(index.shapes, axis=0)
    box_w, box_h = np.median(label_sizes(index, imgsz), axis=0) if len(index.labels) else (0, 0)
    return {
        "name": split.name,
        "images": len(split.paths),
        "empty": int((np.diff(index.offsets) == 0).sum()),
        "boxes": len(index.labels),
        "image_size": f"{width:.0f} x {height:.0f}",
        "box_size": f"{box_w:.0f} x {box_h:.0f} px" if len(index.labels) else "-",
    }


def _class_rows(data: ScannedData) -> list[tuple[str, list[tuple[int, float]]]]:
    """Return the name and, for each split, the count of labels and its share (0…100) of the largest, by class."""
    counts = np.stack([class_counts(split) for split in data.splits.values()], axis=1)  # (C, splits)
    largest = np.maximum(counts.max(axis=0, initial=0), 1)
    return [
        (data.spec.names[k], [(int(n), round(float(100 * n / top), 2)) for n, top in zip(counts[k], largest)])
        for k in range(min(len(counts), MAX_CLASSES))
    ]
