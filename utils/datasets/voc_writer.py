"""Writer of Pascal VOC data sets: JPEGImages, Annotations, ImageSets/Main, and a YAML that train.py reads.

Corners are whole pixels. They are edges from 0, as most labelling programs write them: not the pixel numbers from 1 of
the PASCAL VOC challenge.
"""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from utils.datasets.converted_set import ConvertedSet, NamedImage
from utils.datasets.yolo_writer import new_folder
from utils.errors import UserError

EDGES = ("xmin", "ymin", "xmax", "ymax")


def write_voc(data: ConvertedSet, output: Path, *, copy: bool = False, progress: bool = True) -> Path:
    """Write a data set into a new folder. Return the path of its YAML.

    All splits share the folders, so equal names get a number. Ignored regions are difficult objects. Outlines are
    dropped. Raises UserError for names that XML or lists cannot hold, and for classes of one name.
    """
    data.require_distinct_names("Pascal VOC")
    for number, name in data.names.items():
        if not name or name != name.strip() or not name.isprintable():
            raise UserError(f"class {number}: XML does not keep its name {name!r}: correct `names:`")
    output = output.absolute()
    with new_folder(output) as draft:
        (draft / "ImageSets" / "Main").mkdir(parents=True)
        (draft / "Annotations").mkdir()
        taken: set[str] = set()
        for split in data.splits:
            images, stems = draft / "JPEGImages", []
            for image in data.copy_images(images, split, copy=copy, progress=progress, taken=taken):
                stem = PurePosixPath(image.name).stem
                if " " in stem or not stem.isprintable():  # all other spaces are not
                    raise UserError(
                        f"{image.source}: lists of Pascal VOC cannot hold a name with spaces or control characters. "
                        "Rename it"
                    )
                xml = _to_xml(image, list(data.names.values()))
                (draft / "Annotations" / f"{stem}.xml").write_bytes(xml)
                stems.append(f"{stem}\n")
            (draft / _list_name(split)).write_bytes("".join(stems).encode("utf-8", "surrogateescape"))
        data.write_yaml(draft, output, {split: _list_name(split) for split in data.splits})
    return output / f"{output.name}.yaml"


def _list_name(split: str) -> str:
    return f"ImageSets/Main/{split}.txt"


def _to_xml(image: NamedImage, names: Sequence[str]) -> bytes:
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = PurePosixPath(image.name).name
    size = ET.SubElement(root, "size")
    for key, value in zip(("height", "width", "depth"), (*image.shape, 3), strict=True):
        ET.SubElement(size, key).text = str(value)
    for rows, is_difficult in ((image.labels, "0"), (image.regions, "1")):
        for row, corners in zip(rows, _whole_pixels(image, rows), strict=True):
            entry = ET.SubElement(root, "object")
            ET.SubElement(entry, "name").text = names[int(row[0])]
            ET.SubElement(entry, "difficult").text = is_difficult
            box = ET.SubElement(entry, "bndbox")
            for edge, value in zip(EDGES, corners.tolist(), strict=True):
                ET.SubElement(box, edge).text = str(value)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8")


def _whole_pixels(image: NamedImage, rows: np.ndarray) -> np.ndarray:
    """Return the corners (n, 4) int64 of boxes, rounded. Each side is at least one pixel, within the image."""
    H, W = image.shape
    start, end = np.split(np.rint(image.boxes_xyxy_px(rows)).astype(np.int64), 2, 1)
    start = np.clip(start, 0, (W - 1, H - 1))
    return np.concatenate([start, np.clip(np.maximum(end, start + 1), 1, (W, H))], 1)
