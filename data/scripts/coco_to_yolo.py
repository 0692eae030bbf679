"""Convert COCO JSON annotations to YOLO labels and a data set YAML.

    python data/scripts/coco_to_yolo.py --output datasets/mine \\
        --split train annotations/instances_train2017.json train2017 \\
        --split val annotations/instances_val2017.json val2017

Classes are numbered in the order of the JSON's categories. Crowd regions are skipped unless --keep-crowds is given,
boxes are clipped to the image, repeated objects are written once. What was skipped or corrected is counted and named.
Inputs are only read.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python puts this file's folder on the path, not the project's
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.cli import SuggestingParser
from utils.console import result
from utils.datasets.coco import convert_coco
from utils.datasets.yolo_writer import parse_splits, summarize, write_dataset
from utils.errors import run


def main(argv: list[str] | None = None) -> None:
    """Convert as the command line `argv` says."""
    parser = SuggestingParser(description="Convert COCO JSON annotations to YOLO labels and a data set YAML.")
    parser.add_argument(
        "--split",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "PATH"),
        help="train, val or test, then the JSON file, then the folder of its images; repeat for each",
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder for images/, labels/ and the YAML")
    parser.add_argument("--polygons", action="store_true", help="write outlines instead of boxes, if there are any")
    parser.add_argument("--keep-crowds", action="store_true", help="keep regions that are marked as a crowd")
    parser.add_argument("--copy", action="store_true", help="copy the images instead of linking to them")
    args = parser.parse_args(argv)
    splits = parse_splits(args.split, most=2, usage="NAME JSON IMAGES")
    dataset = convert_coco(splits, polygons=args.polygons, crowds=args.keep_crowds)
    result(summarize(dataset, write_dataset(dataset, args.output, copy=args.copy)))


if __name__ == "__main__":
    run(main)
