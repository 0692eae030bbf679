"""One small set of drawn images, written as label files, as COCO JSON and as Pascal VOC."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from small_splits import write_image

NAMES = ("ant", "bee", "cow")


class Drawn(NamedTuple):
    """One image and its objects: class, x1, y1, x2, y2 in whole pixels."""

    name: str
    width: int
    height: int
    objects: Sequence[tuple[int, int, int, int, int]]


# Sides that are powers of two, so that all forms give the same float32 values.
DRAWN = (
    Drawn("a.png", 64, 32, [(0, 0, 0, 16, 16), (2, 10, 4, 63, 32)]),
    Drawn("b.png", 32, 64, [(1, 3, 5, 21, 40)]),
    Drawn("c.png", 64, 64, []),
    Drawn("d.png", 128, 64, [(1, 1, 1, 2, 2), (1, 100, 30, 128, 64), (0, 5, 6, 70, 61)]),
)


def write_images(folder: Path, drawn: Sequence[Drawn] = DRAWN) -> None:
    for number, image in enumerate(drawn):
        write_image(folder / image.name, image.height, image.width, value=number)


def write_yolo(folder: Path, drawn: Sequence[Drawn] = DRAWN) -> Path:
    """Write images/ and labels/. Return the folder of images."""
    write_images(folder / "images", drawn)
    (folder / "labels").mkdir(parents=True)
    for name, width, height, objects in drawn:
        rows = [
            f"{c} {(x1 + x2) / 2 / width!r} {(y1 + y2) / 2 / height!r} {(x2 - x1) / width!r} {(y2 - y1) / height!r}\n"
            for c, x1, y1, x2, y2 in objects
        ]
        (folder / "labels" / name).with_suffix(".txt").write_text("".join(rows))
    return folder / "images"


def coco_content(drawn: Sequence[Drawn] = DRAWN) -> dict:
    """Return the content of a COCO JSON with gaps between the ids."""
    images = [
        {"id": 10 * k + 3, "file_name": image.name, "width": image.width, "height": image.height}
        for k, image in enumerate(drawn)
    ]
    annotations = [
        {"image_id": 10 * k + 3, "category_id": 5 * c + 2, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
        for k, image in enumerate(drawn)
        for c, x1, y1, x2, y2 in image.objects
    ]
    for number, annotation in enumerate(annotations):
        annotation["id"] = number + 1
    categories = [{"id": 5 * c + 2, "name": name} for c, name in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(file: Path, content: object = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(coco_content() if content is None else content))
    return file


def voc_text(image: Drawn, *, first: int = 0, database: str = "Unknown", extra: str = "") -> str:
    """Return an annotation whose pixels count from `first`. From 1 the last pixel is included."""
    objects = "".join(
        f"<object><name>{NAMES[c]}</name><difficult>0</difficult><bndbox><xmin>{x1 + first}</xmin>"
        f"<ymin>{y1 + first}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for c, x1, y1, x2, y2 in image.objects
    )
    return (
        f"<annotation><filename>{image.name}</filename><source><database>{database}</database></source><size>"
        f"<width>{image.width}</width><height>{image.height}</height><depth>3</depth></size>{objects}{extra}"
        "</annotation>"
    )


def write_voc(folder: Path, drawn: Sequence[Drawn] = DRAWN, **settings) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for image in drawn:
        (folder / image.name).with_suffix(".xml").write_text(voc_text(image, **settings))
    return folder
