"""Pascal VOC XML annotations, converted to YOLO label rows.

Classes are numbered in the order of the given names, or alphabetically. A stated size of 0x0 is replaced by the image's
own. A DOCTYPE is refused: VOC files never have one, and entity attacks need it.
"""

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from utils.console import progress_bar
from utils.datasets.yolo_writer import Dataset, box_row, measure_image, parse_finite
from utils.errors import UserError
from utils.images.suffixes import IMAGE_SUFFIXES

MAX_XML_BYTES = 16 << 20
EDGES = ("xmin", "ymin", "xmax", "ymax")


class NoDoctype(ET.TreeBuilder):
    """Tree builder that refuses a DOCTYPE."""

    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise UserError("has a DOCTYPE, which is refused: remove it")


class VocObject(NamedTuple):
    """One <object> of an XML file."""

    name: str
    xyxy_px: tuple[float, float, float, float]
    difficult: bool


class Annotation(NamedTuple):
    """One XML file and its image."""

    file: Path
    image: Path
    size: tuple[int, int]  # height, width
    objects: list[VocObject]


def convert_voc(
    splits: Sequence[tuple[str, list[Path]]],
    *,
    names: Sequence[str] | None = None,
    difficult: bool = False,
    pascal: bool = False,
    skip_unknown: bool = False,
    progress: bool = True,
) -> Dataset:
    """Read (split, [folder of XML files, folder of images, optional list of names]).

    `pascal`: coordinates are pixel numbers from 1, the last one included, as in the PASCAL VOC challenge. Otherwise
    they are edges from 0, as most labelling programs write them. `difficult` keeps objects marked as difficult.
    `skip_unknown` skips objects whose class is not in `names`.
    """
    found, absent = [], Counter()
    for split, (folder, images, *listing) in splits:
        files = list_files(folder, listing[0] if listing else None)
        for file in progress_bar(files, desc=f"reading {split}", unit="file", disable=not progress):
            annotation = read_annotation(file, images)
            if annotation is None:
                absent[f"XML files whose image is not in {images}"] += 1
            else:
                found.append((split, annotation))
    annotations = [annotation for _, annotation in found]
    dataset = Dataset(list(names) if skip_unknown and names else class_names(annotations, names), skipped=absent)
    classes = {name: number for number, name in enumerate(dataset.names)}
    for split, annotation in found:
        rows = label_rows(annotation, classes, difficult=difficult, pascal=pascal, dataset=dataset)
        dataset.add(split, annotation.image, name=annotation.image.name, rows=rows)
    return dataset


def list_files(annotations: Path, listing: Path | None) -> list[Path]:
    """Return the XML files of a folder: all, or those named by the first word of each line of a list.

    Such lists are ImageSets/Main/train.txt and the like.
    """
    if listing is None:
        files = sorted(annotations.glob("*.xml"))
        if not files:
            raise UserError(f"{annotations}: no .xml file in it")
        return files
    names = [line.split()[0] for line in listing.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    files = [annotations / f"{name}.xml" for name in dict.fromkeys(names)]
    if absent := [file for file in files if not file.is_file()]:
        raise UserError(f"{listing}: {len(absent)} of {len(files)} names have no XML file, the first is {absent[0]}")
    return files


def read_annotation(file: Path, images: Path) -> Annotation | None:
    """Return the content of an XML file, or None if its image is missing."""
    root = parse_xml(file)
    image = find_image(root, file, images)
    if image is None:
        return None
    objects = [read_object(element, file) for element in root.findall("object")]
    return Annotation(file, image, read_size(root, file, image), objects)


def parse_xml(file: Path) -> ET.Element:
    """Return the root of an XML file without DOCTYPE, and so without entities of its own."""
    data = file.read_bytes()
    if len(data) > MAX_XML_BYTES:
        raise UserError(f"{file}: {len(data)} bytes are too many for an annotation of one image")
    if b"<!DOCTYPE" in data or b"\0" in data:  # \0: UTF-16, in which the first test finds nothing
        raise UserError(f"{file}: has a DOCTYPE or is UTF-16 text, both are refused: save it as UTF-8 without DOCTYPE")
    try:
        return ET.fromstring(data, parser=ET.XMLParser(target=NoDoctype()))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (ET.ParseError, ValueError, LookupError) as error:  # LookupError: the file names an unknown encoding
        raise UserError(f"{file}: not XML: {error}") from error


def text_of(element: ET.Element, path: str, default: str = "") -> str:
    """Return the stripped text of a descendant, `default` if it is absent or empty."""
    return (element.findtext(path) or default).strip()


def find_image(root: ET.Element, file: Path, folder: Path) -> Path | None:
    """Return the image named like the XML file, else the one that the XML names, else None."""
    for suffix in sorted(IMAGE_SUFFIXES):
        for spelling in (suffix, suffix.upper()):
            if (image := folder / f"{file.stem}{spelling}").is_file():
                return image
    stated = text_of(root, "filename").replace("\\", "/").rpartition("/")[2]
    return folder / stated if stated and (folder / stated).is_file() else None


def read_size(root: ET.Element, file: Path, image: Path) -> tuple[int, int]:
    """Return height and width as stated, or of the image file if a labelling program left 0 or nothing."""
    stated = [text_of(root, f"size/{side}", "0") for side in ("height", "width")]
    height, width = (int(value) for value in parse_finite(stated, 2, where=f"{file}: <size>"))
    return (height, width) if height > 0 and width > 0 else measure_image(image)


def read_object(element: ET.Element, file: Path) -> VocObject:
    """Return an <object>. Raises UserError if its name or box is missing."""
    name = text_of(element, "name")
    if not name:
        raise UserError(f"{file}: an <object> has no <name>")
    edges = [text_of(element, f"bndbox/{edge}") for edge in EDGES]
    left, top, right, bottom = parse_finite(edges, 4, where=f"{file}: <bndbox> of {name}")
    difficult = text_of(element, "difficult", "0") not in ("0", "false", "False")
    return VocObject(name, (left, top, right, bottom), difficult)


def class_names(annotations: Sequence[Annotation], wanted: Sequence[str] | None) -> list[str]:
    """Return names by class number. Raises UserError with the names in the files that are not wanted."""
    counts = Counter(entry.name for annotation in annotations for entry in annotation.objects)
    unknown = {name: count for name, count in sorted(counts.items()) if wanted is not None and name not in wanted}
    if unknown:
        listed = ", ".join(f"{name!r} ({count})" for name, count in unknown.items())
        raise UserError(f"classes that --names lacks: {listed}; add them to --names, or give --skip-unknown")
    names = list(wanted) if wanted is not None else sorted(counts)
    if not names:
        raise UserError("no object in any XML file, so there are no class names; give --names")
    return names


def label_rows(
    annotation: Annotation, classes: dict[str, int], *, difficult: bool, pascal: bool, dataset: Dataset
) -> list[str]:
    """Return the label rows of one image. `classes` maps names to class numbers."""
    rows = []
    for entry in annotation.objects:
        if entry.name not in classes:
            dataset.skipped[f"objects of the unknown class {entry.name!r}"] += 1
            continue
        left, top, right, bottom = entry.xyxy_px
        row = box_row(classes[entry.name], (left - pascal, top - pascal, right, bottom), annotation.size)
        if entry.difficult and not difficult:
            dataset.skipped["difficult objects"] += 1
        elif row is None:
            dataset.skipped["boxes without area inside the image"] += 1
        else:
            rows.append(row)
    return rows
