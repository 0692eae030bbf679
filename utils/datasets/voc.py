"""Pascal VOC XML annotations, read in place or converted to YOLO label rows.

Classes are numbered in the order of the given names, or alphabetically. A stated size of 0x0 is replaced by the image's
own. A DOCTYPE is refused: VOC files never have one, and entity attacks need it. Files and objects that cannot be used
are skipped, named and counted.
"""

import math
import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from utils.console import progress_bar
from utils.datasets.annotations import AnnotatedImage, AnnotatedObject, Annotations
from utils.datasets.image_files import find_images, map_chunks, walk_files
from utils.datasets.remarks import Remarks
from utils.datasets.yolo_writer import Dataset, box_row, decoded_size, find_stated_image, parse_finite
from utils.errors import UserError, one_line
from utils.files import read_regular
from utils.images.suffixes import IMAGE_SUFFIXES

MAX_XML_BYTES = 16 << 20
MAX_LIST_BYTES = 1 << 30
CHUNK = 256  # XML files that a process reads at a time
# <source><database> of files whose pixels count from 1: those of the challenge, and of Roboflow's programs
FROM_1 = re.compile(r"The VOC20\d\d Database|roboflow\.(ai|com)")
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


class ParsedFile(NamedTuple):
    """Content of one XML file."""

    file: Path
    image_name: str | None  # below the folder of images, None if the image is missing
    stated_size: tuple[int, int] | None  # height, width
    objects: list[VocObject]
    says_from_1: bool  # its pixels count from 1, by the program that wrote it
    is_readable: bool = True


class Annotation(NamedTuple):
    """One XML file and its image."""

    file: Path
    image: Path
    image_name: str  # below the folder of images
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
    dataset, found, takers = Dataset([]), [], {}
    for split, (folder, images, *listing) in splits:
        files = list_files(folder, listing[0] if listing else None, dataset)
        for file in progress_bar(files, desc=f"reading {split}", unit="file", disable=not progress):
            try:
                annotation = read_annotation(file, folder, images, dataset)
            except (OSError, UserError) as error:
                dataset.skip("XML files that cannot be used", one_line(str(error)))
                continue
            if annotation is None:
                continue
            if takers.setdefault((split, annotation.image), file) != file:
                taker = takers[split, annotation.image]
                dataset.skip("XML files whose image another one has", f"{file}: {annotation.image_name} has {taker}")
                continue
            found.append((split, annotation))
    annotations = [annotation for _, annotation in found]
    dataset.names = list(names) if skip_unknown and names else class_names(annotations, names, dataset)
    classes = {name: number for number, name in enumerate(dataset.names)}
    for split, annotation in found:
        rows = label_rows(annotation, classes, difficult=difficult, pascal=pascal, dataset=dataset)
        dataset.add(split, annotation.image, name=annotation.image_name, rows=rows)
    return dataset


def read_voc(folder: Path, images: Path, listing: Path | None, remarks: Remarks) -> Annotations:
    """Return the images of XML files below `folder`, and without a list all others below `images` as backgrounds.

    Difficult objects are ignored ones. Coordinates are edges from 0, as most labelling programs write them. In files
    of the PASCAL VOC challenge (see `counts_pixels_from_1`) they are pixel numbers from 1, the last one included.
    """
    without_file: list[str] = []
    files = list_files(folder, listing, remarks, without_file)
    chunks = map_chunks(partial(_parse_chunk, folder=folder, images=images), list(map(str, files)), size=CHUNK)
    parsed: dict[str, ParsedFile] = {}
    unusable = 0
    for part, notes in chunks:
        remarks.merge(notes)
        for content in part:
            if content.image_name is None:
                unusable += 1
                remarks.skip(f"XML files whose image is not in {images}", content.file.name)
            elif (taker := parsed.setdefault(str(images / content.image_name), content)) is not content:
                remarks.skip("XML files whose image another one has", f"{content.file}: the image has {taker.file}")
    readable = {path: content for path, content in parsed.items() if content.is_readable}
    from_1 = counts_pixels_from_1(list(readable.values()))
    names = sorted({entry.name for content in readable.values() for entry in content.objects})
    numbers = {name: number for number, name in enumerate(names)}
    found = [
        AnnotatedImage(
            path, content.stated_size, [_annotated(entry, content, numbers, from_1) for entry in content.objects]
        )
        for path, content in readable.items()
    ]
    others = [_image_named(name, images) for name in without_file] if listing else find_images(images)
    found += [AnnotatedImage(path, None, [], is_annotated=False) for path in others if path and path not in parsed]
    for name, path in zip(without_file, others, strict=False):
        if path is None:
            unusable += 1
            remarks.skip(f"names in lists that have neither an XML file nor an image in {images}", name)
    return Annotations(names, found, unusable + len(parsed) - len(readable))


def counts_pixels_from_1(contents: Sequence[ParsedFile]) -> bool:
    """Return True if all files are by programs that count pixels from 1 (see FROM_1), and no coordinate is below 1."""
    lowest = (min(entry.xyxy_px) for content in contents for entry in content.objects)
    return bool(contents) and all(content.says_from_1 for content in contents) and min(lowest, default=0) >= 1


def _annotated(entry: VocObject, content: ParsedFile, numbers: dict[str, int], from_1: bool) -> AnnotatedObject:
    box = edges_of(entry.xyxy_px, pascal=from_1)
    return AnnotatedObject(numbers[entry.name], box, (), entry.difficult, f"{content.file.name}: {entry.name}")


def _image_named(name: str, images: Path) -> str | None:
    """Return the image of a list's line that has no XML file: a background."""
    found = find_image(ET.Element("annotation"), Path(f"{name}.xml"), images)
    return None if found is None else str(images / found)


def _parse_chunk(files: list[str], folder: Path, images: Path) -> tuple[list[ParsedFile], Remarks]:
    """Return the content of XML files. One that cannot be used still names the image that is named like it."""
    parsed, remarks = [], Remarks()
    for file in map(Path, files):
        try:
            parsed.append(parse_annotation(file, folder, images, remarks))
        except (OSError, UserError) as error:
            remarks.skip("XML files that cannot be used", one_line(str(error)))
            name = find_image(ET.Element("annotation"), file.relative_to(folder), images)
            parsed.append(ParsedFile(file, name, None, [], says_from_1=False, is_readable=False))
    return parsed, remarks


def list_files(
    annotations: Path, listing: Path | None, remarks: Remarks, without_file: list[str] | None = None
) -> list[Path]:
    """Return the XML files below a folder: all, or those named by the first word of each line of a list.

    Such lists are ImageSets/Main/train.txt and the like. Names without a file are added to `without_file`, or skipped.
    """
    if listing is None:
        files = sorted(map(Path, walk_files(str(annotations), (".xml",))))
        if not files:
            raise UserError(f"{annotations}: no .xml file in it")
        return files
    try:
        lines = read_regular(listing, MAX_LIST_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{listing}: cannot be read as UTF-8 text: {error}") from error
    names = [line.split()[0] for line in lines if line.strip()]
    files = []
    for name in dict.fromkeys(names):
        stem = name.replace("\\", "/").rpartition("/")[2]  # a list may hold the paths of images
        candidates = [annotations / f"{text}.xml" for text in (name, stem, stem.rpartition(".")[0]) if text]
        below = (file for file in candidates if os.path.isfile(file) and file.is_relative_to(annotations))
        file = next(below, None)
        if file is not None:
            files.append(file)
        elif without_file is not None:
            without_file.append(stem)
        else:
            remarks.skip("names in lists that have no XML file", f"{listing}: {name}")
    if not files:
        raise UserError(f"{listing}: none of its {len(set(names))} names has an XML file in {annotations}")
    return files


def read_annotation(file: Path, folder: Path, images: Path, dataset: Dataset) -> Annotation | None:
    """Return the content of an XML file below `folder`, or None if its image is missing or its boxes fit no reading."""
    parsed = parse_annotation(file, folder, images, dataset)
    if parsed.image_name is None:
        dataset.skip(f"XML files whose image is not in {images}", file.name)
        return None
    image = images / parsed.image_name
    size = decoded_size(parsed.stated_size, image, [entry.xyxy_px for entry in parsed.objects], dataset)
    return Annotation(file, image, parsed.image_name, size, parsed.objects) if size else None


def parse_annotation(file: Path, folder: Path, images: Path, remarks: Remarks) -> ParsedFile:
    """Return the content of an XML file below `folder`. Raises UserError or OSError if it cannot be read."""
    root = parse_xml(file)
    objects = []
    for element in root.iter("object"):
        try:
            objects.append(read_object(element, file))
        except UserError as error:
            remarks.skip("objects without a name or a box", one_line(str(error)))
    name = find_image(root, file.relative_to(folder), images)
    from_1 = FROM_1.fullmatch(text_of(root, "source/database")) is not None
    return ParsedFile(file, name, read_size(root), objects, from_1)


def parse_xml(file: Path) -> ET.Element:
    """Return the <annotation> of an XML file without DOCTYPE, and so without entities of its own.

    Namespaces do not count.
    """
    try:
        data = read_regular(file, MAX_XML_BYTES)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    if b"<!DOCTYPE" in data or b"\0" in data:  # \0: UTF-16, in which the first test finds nothing
        raise UserError(f"{file}: has a DOCTYPE or is UTF-16 text, both are refused: save it as UTF-8 without DOCTYPE")
    try:
        root = ET.fromstring(data, parser=ET.XMLParser(target=NoDoctype()))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (ET.ParseError, ValueError, LookupError) as error:  # LookupError: the file names an unknown encoding
        raise UserError(f"{file}: not XML: {error}") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.tag != "annotation":
        raise UserError(f"{file}: its root is <{root.tag[:60]}>, expected the <annotation> of Pascal VOC")
    return root


def text_of(element: ET.Element, path: str, default: str = "") -> str:
    """Return the stripped text of a descendant, `default` if it is absent or empty."""
    return (element.findtext(path) or default).strip()


def find_image(root: ET.Element, file: Path, folder: Path) -> str | None:
    """Return the image named like the XML file (a path below its folder), else the one that the XML names, else None.

    The image may be in a subfolder as the XML file is, or in `folder` itself.
    """
    for stem in dict.fromkeys((file.with_suffix("").as_posix(), file.stem)):
        for suffix in sorted(IMAGE_SUFFIXES):
            for spelling in (suffix, suffix.upper()):
                if os.path.isfile(folder / f"{stem}{spelling}"):
                    return f"{stem}{spelling}"
    stated = text_of(root, "filename")
    beside = (file.parent / stated.replace("\\", "/").rpartition("/")[2]).as_posix()
    return find_stated_image(beside, folder) or find_stated_image(stated, folder) if stated else None


def read_size(root: ET.Element) -> tuple[int, int] | None:
    """Return height and width as stated, None if a labelling program left 0, nothing or no number."""
    try:
        stated = parse_finite([text_of(root, f"size/{side}") for side in ("height", "width")], 2, where="<size>")
    except UserError:
        return None
    height, width = map(int, stated)
    return (height, width) if height > 0 and width > 0 else None


def read_object(element: ET.Element, file: Path) -> VocObject:
    """Return an <object>. Raises UserError if its name, or both its box and its outline are missing."""
    name = text_of(element, "name")
    if not name:
        raise UserError(f"{file}: an <object> has no <name>")
    difficult = text_of(element, "difficult", "0") not in ("0", "false", "False")
    edges = [text_of(element, f"bndbox/{edge}") for edge in EDGES]
    try:
        left, top, right, bottom = parse_finite(edges, 4, where=f"{file}: <bndbox> of {name}")
    except UserError:
        outline = read_outline(element)
        if outline is None:
            raise
        left, top, right, bottom = outline
    return VocObject(name, (left, top, right, bottom), difficult)


def read_outline(element: ET.Element) -> tuple[float, float, float, float] | None:
    """Return the box around a <polygon>, whose points are <x1>, <y1>, … or <pt><x>, <y>. None without one."""
    polygon = element.find("polygon")
    leaves = [] if polygon is None else [leaf for leaf in polygon.iter() if len(leaf) == 0]
    try:
        xs, ys = ([float(leaf.text or "") for leaf in leaves if leaf.tag[0] == axis] for axis in "xy")
    except ValueError:
        return None
    if len(xs) < 2 or len(ys) < 2 or not all(map(math.isfinite, xs + ys)):
        return None
    return min(xs), min(ys), max(xs), max(ys)


def class_names(annotations: Sequence[Annotation], wanted: Sequence[str] | None, dataset: Dataset) -> list[str]:
    """Return names by class number. Raises UserError with the names in the files that are not wanted."""
    counts = Counter(entry.name for annotation in annotations for entry in annotation.objects)
    unknown = {name: count for name, count in sorted(counts.items()) if wanted is not None and name not in wanted}
    if unknown:
        listed = ", ".join(f"{name!r} ({count})" for name, count in unknown.items())
        raise UserError(f"classes that --names lacks: {listed}; add them to --names, or give --skip-unknown")
    names = list(wanted) if wanted is not None else sorted(counts)
    if not names:
        remarks = "".join(f"; {line}" for line in dataset.remarks())
        raise UserError(f"no object in any XML file, so there are no class names; give --names{remarks}")
    return names


def label_rows(
    annotation: Annotation, classes: dict[str, int], *, difficult: bool, pascal: bool, dataset: Dataset
) -> list[str]:
    """Return the label rows of one image. `classes` maps names to class numbers."""
    rows = []
    for entry in annotation.objects:
        if entry.name not in classes:
            dataset.skip(f"objects of the unknown class {entry.name!r}", annotation.file.name)
            continue
        row = box_row(classes[entry.name], edges_of(entry.xyxy_px, pascal=pascal), annotation.size)
        if entry.difficult and not difficult:
            dataset.skip("difficult objects", annotation.file.name)
        elif row is None:
            dataset.skip("boxes without area inside the image", annotation.file.name)
        else:
            rows.append(row)
    return rows


def edges_of(xyxy_px: tuple[float, float, float, float], *, pascal: bool) -> tuple[float, float, float, float]:
    """Return a box as edges from 0. With `pascal` its corners are numbers of pixels from 1, the last one included."""
    (x1, x2), (y1, y2) = sorted(xyxy_px[::2]), sorted(xyxy_px[1::2])
    return x1 - pascal, y1 - pascal, x2, y2
