"""Convert Pascal VOC XML annotations to YOLO labels and a data set YAML.

    python data/scripts/voc_to_yolo.py --output datasets/fruit \\
        --split train fruit/train fruit/train --split val fruit/test fruit/test
    python data/scripts/voc_to_yolo.py --output datasets/voc --pascal \\
        --split train VOC2012/Annotations VOC2012/JPEGImages VOC2012/ImageSets/Main/train.txt

Classes are numbered in the order of --names, or alphabetically. Difficult objects are left out unless --difficult is
given. A stated size of 0x0 is replaced by the picture's. Inputs are only read, and a DOCTYPE, which VOC files never
have and which attacks by entities need, is refused.
"""

import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

if __name__ == "__main__":  # started as a file: Python put this file's folder on the path, not the project's
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.cli import SuggestingParser
from utils.datasets.yolo_writer import Dataset, box_row, finite, measure, split_arguments, summary, write_dataset
from utils.errors import UserError, run
from utils.images.suffixes import IMAGE_SUFFIXES

MAX_XML_BYTES = 16 << 20
EDGES = ("xmin", "ymin", "xmax", "ymax")


class NoDoctype(ET.TreeBuilder):
    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise UserError("has a DOCTYPE, which is refused: remove it")


class VocObject(NamedTuple):
    name: str
    xyxy_px: tuple[float, float, float, float]
    difficult: bool


class Annotation(NamedTuple):
    file: Path
    picture: Path
    size: tuple[int, int]  # height, width
    objects: list[VocObject]


def parse_xml(file: Path) -> ET.Element:
    """The root of an XML file that has no DOCTYPE, so no entities of its own."""
    data = file.read_bytes()
    if len(data) > MAX_XML_BYTES:
        raise UserError(f"{file}: {len(data)} bytes are too many for an annotation of one picture")
    if b"<!DOCTYPE" in data or b"\0" in data:  # \0: UTF-16, in which the first test sees nothing
        raise UserError(f"{file}: has a DOCTYPE or is UTF-16 text, both are refused: save it as UTF-8 without DOCTYPE")
    try:
        return ET.fromstring(data, parser=ET.XMLParser(target=NoDoctype()))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (ET.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding is named
        raise UserError(f"{file}: not XML: {error}") from error


def text(element: ET.Element, path: str, default: str = "") -> str:
    return (element.findtext(path) or default).strip()


def read_object(element: ET.Element, file: Path) -> VocObject:
    name = text(element, "name")
    if not name:
        raise UserError(f"{file}: an <object> has no <name>")
    box = finite([text(element, f"bndbox/{edge}") for edge in EDGES], 4, where=f"{file}: <bndbox> of {name}")
    return VocObject(name, tuple(box), text(element, "difficult", "0") not in ("0", "false", "False"))


def find_picture(root: ET.Element, file: Path, folder: Path) -> Path | None:
    """The picture named like the XML file, else the one the XML names; None where neither is in the folder."""
    for suffix in sorted(IMAGE_SUFFIXES):
        for spelling in (suffix, suffix.upper()):
            if (picture := folder / f"{file.stem}{spelling}").is_file():
                return picture
    stated = text(root, "filename").replace("\\", "/").rpartition("/")[2]
    return folder / stated if stated and (folder / stated).is_file() else None


def read_size(root: ET.Element, file: Path, picture: Path) -> tuple[int, int]:
    """Height and width as stated, else as the picture has them: labelling programs leave 0 or nothing at times."""
    stated = [text(root, f"size/{side}", "0") for side in ("height", "width")]
    height, width = (int(value) for value in finite(stated, 2, where=f"{file}: <size>"))
    return (height, width) if height > 0 and width > 0 else measure(picture)


def list_files(annotations: Path, listing: Path | None) -> list[Path]:
    """XML files of a folder, all or those whose names stand first on the lines of a list (ImageSets/Main/train.txt)."""
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


def read_annotation(file: Path, pictures: Path) -> Annotation | None:
    """What an XML file says; None where its picture is absent."""
    root = parse_xml(file)
    picture = find_picture(root, file, pictures)
    if picture is None:
        return None
    objects = [read_object(element, file) for element in root.findall("object")]
    return Annotation(file, picture, read_size(root, file, picture), objects)


def class_names(annotations: Sequence[Annotation], wanted: Sequence[str] | None) -> list[str]:
    """Names by class number; a UserError lists those of the files that are not wanted."""
    counts = Counter(thing.name for annotation in annotations for thing in annotation.objects)
    unknown = {name: count for name, count in sorted(counts.items()) if wanted is not None and name not in wanted}
    if unknown:
        listed = ", ".join(f"{name!r} ({count})" for name, count in unknown.items())
        raise UserError(f"classes that --names lacks: {listed}; add them to --names, or give --skip-unknown")
    names = list(wanted) if wanted is not None else sorted(counts)
    if not names:
        raise UserError("no object in any XML file: nothing to name the classes by; give --names")
    return names


def object_rows(
    annotation: Annotation, classes: dict[str, int], *, difficult: bool, pascal: bool, dataset: Dataset
) -> list[str]:
    rows = []
    for thing in annotation.objects:
        left, top, right, bottom = thing.xyxy_px
        line = (
            None
            if thing.name not in classes
            else box_row(classes[thing.name], (left - pascal, top - pascal, right, bottom), annotation.size)
        )
        if thing.name not in classes:
            dataset.left_out[f"objects of the unknown class {thing.name!r}"] += 1
        elif thing.difficult and not difficult:
            dataset.left_out["difficult objects"] += 1
        elif line is None:
            dataset.left_out["boxes without area inside the frame"] += 1
        else:
            rows.append(line)
    return rows


def convert(
    splits: Sequence[tuple[str, list[Path]]],
    *,
    names: Sequence[str] | None = None,
    difficult: bool = False,
    pascal: bool = False,
    skip_unknown: bool = False,
    progress: bool = True,
) -> Dataset:
    """Read (split, [folder of XML files, folder of pictures, optional list of names]).

    pascal: coordinates count pixels from 1, the last included, as in the PASCAL VOC challenge; else they are edges,
    from 0, as most labelling programs write them.
    """
    found, absent = [], Counter()
    for split, (folder, pictures, *listing) in splits:
        files = list_files(folder, listing[0] if listing else None)
        for file in tqdm(files, f"reading {split}", unit="file", disable=not progress):
            annotation = read_annotation(file, pictures)
            if annotation is None:
                absent[f"XML files whose picture is not in {pictures}"] += 1
            else:
                found.append((split, annotation))
    read = [annotation for _, annotation in found]
    dataset = Dataset(list(names) if skip_unknown and names else class_names(read, names), left_out=absent)
    classes = {name: number for number, name in enumerate(dataset.names)}
    for split, annotation in found:
        rows = object_rows(annotation, classes, difficult=difficult, pascal=pascal, dataset=dataset)
        dataset.add(split, annotation.picture, name=annotation.picture.name, rows=rows)
    return dataset


def main(argv: list[str] | None = None) -> None:
    parser = SuggestingParser(description="Convert Pascal VOC XML annotations to YOLO labels and a data set YAML.")
    parser.add_argument(
        "--split",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "PATH"),
        help="train, val or test, then the folder of XML files, then the folder of pictures (may be "
        "the same), then if wanted a text file that lists names; repeat for each",
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder for images/, labels/ and the YAML")
    parser.add_argument("--names", nargs="+", help="classes in their order; left out: all that occur, alphabetically")
    parser.add_argument("--skip-unknown", action="store_true", help="leave out objects whose class is not in --names")
    parser.add_argument("--difficult", action="store_true", help="keep objects marked difficult")
    parser.add_argument("--pascal", action="store_true", help="coordinates count from 1, as in the VOC challenge")
    parser.add_argument("--copy", action="store_true", help="copy the pictures instead of linking to them")
    args = parser.parse_args(argv)
    splits = split_arguments(args.split, most=3, form="NAME XMLS PICTURES [LIST]")
    dataset = convert(
        splits, names=args.names, difficult=args.difficult, pascal=args.pascal, skip_unknown=args.skip_unknown
    )
    print(summary(dataset, write_dataset(dataset, args.output, copy=args.copy)))


if __name__ == "__main__":
    run(main)
