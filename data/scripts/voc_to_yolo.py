"""Convert Pascal VOC XML annotations to YOLO labels and a data set YAML.

    python data/scripts/voc_to_yolo.py --output datasets/fruit \\
        --split train fruit/train fruit/train --split val fruit/test fruit/test
    python data/scripts/voc_to_yolo.py --output datasets/voc --pascal \\
        --split train VOC2012/Annotations VOC2012/JPEGImages VOC2012/ImageSets/Main/train.txt

Classes are numbered in the order of --names, or alphabetically. Difficult objects are skipped unless --difficult is
given. A stated size of 0x0 is replaced by the image's own. Inputs are only read. A DOCTYPE is refused: VOC files never
have one, and entity attacks need it.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python puts this file's folder on the path, not the project's
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.cli import SuggestingParser
from utils.console import result
from utils.datasets.voc import convert_voc
from utils.datasets.yolo_writer import parse_splits, summarize, write_dataset
from utils.errors import run


def main(argv: list[str] | None = None) -> None:
    """Convert as the command line `argv` says."""
    parser = SuggestingParser(description="Convert Pascal VOC XML annotations to YOLO labels and a data set YAML.")
    parser.add_argument(
        "--split",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "PATH"),
        help="train, val or test, then the folder of XML files, then the folder of images (may be the same), "
        "then optionally a text file that lists names; repeat for each",
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder for images/, labels/ and the YAML")
    parser.add_argument("--names", nargs="+", help="classes in their order; default: all that occur, alphabetically")
    parser.add_argument("--skip-unknown", action="store_true", help="skip objects whose class is not in --names")
    parser.add_argument("--difficult", action="store_true", help="keep objects marked difficult")
    parser.add_argument("--pascal", action="store_true", help="coordinates count from 1, as in the VOC challenge")
    parser.add_argument("--copy", action="store_true", help="copy the images instead of linking to them")
    args = parser.parse_args(argv)
    splits = parse_splits(args.split, most=3, usage="NAME XMLS IMAGES [LIST]")
    dataset = convert_voc(
        splits, names=args.names, difficult=args.difficult, pascal=args.pascal, skip_unknown=args.skip_unknown
    )
    result(summarize(dataset, write_dataset(dataset, args.output, copy=args.copy)))


if __name__ == "__main__":
    run(main)
