"""Write a data set that train.py reads as YOLO, COCO or Pascal VOC.

    python data/scripts/convert.py --data mine.yaml --format coco --output datasets/mine_coco
    python data/scripts/convert.py --data exports/voc --split 0.8 --format yolo --output datasets/mine

The form of --data is recognised: a data set YAML, a folder of an export, a COCO JSON, Pascal VOC. Images are linked
unless --copy is given. YOLO and COCO keep boxes to 1e-6 of the image. Pascal VOC has whole pixels only. Inputs are only
read.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python puts this file's folder on the path, not the project's
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.cli import SuggestingParser
from utils.console import result
from utils.datasets.coco_writer import write_coco
from utils.datasets.converted_set import ConvertedSet
from utils.datasets.division import Division
from utils.datasets.label_file_writer import write_yolo
from utils.datasets.labels import load_split
from utils.datasets.locate import locate_dataset
from utils.datasets.voc_writer import write_voc
from utils.errors import run

WRITERS = {"yolo": write_yolo, "coco": write_coco, "voc": write_voc}
LOST = {"yolo": "ignored regions (crowds, difficult objects)", "voc": "outlines, and fractions of pixels"}


def main(argv: list[str] | None = None) -> None:
    """Convert as the command line `argv` says."""
    parser = SuggestingParser(description="Write a data set that train.py reads as YOLO, COCO or Pascal VOC.")
    parser.add_argument("--data", required=True, help="data set YAML, or a folder, obj.data or COCO JSON")
    parser.add_argument("--format", required=True, choices=list(WRITERS), help="form to write")
    parser.add_argument("--output", type=Path, required=True, help="new folder for images, annotations and the YAML")
    parser.add_argument(
        "--split", default="", metavar="SHARE", help="divide one set: share to train on, 0.8 or 0.8:SEED"
    )
    parser.add_argument("--polygons", action="store_true", help="with --format yolo: write outlines instead of boxes")
    parser.add_argument("--copy", action="store_true", help="copy the images instead of linking to them")
    args = parser.parse_args(argv)
    if args.polygons and args.format != "yolo":
        parser.error(f"--polygons is for --format yolo; {args.format} needs none")
    spec = locate_dataset(args.data, division=Division.parse(args.split), required=())
    present = [
        split for split in ("train", "val", "test") if spec.splits.get(split) or (split == "val" and spec.division)
    ]
    data = ConvertedSet(spec.names, {split: load_split(spec, split) for split in present}, spec.pixels)
    settings = {"polygons": True} if args.polygons else {}
    file = WRITERS[args.format](data, args.output, copy=args.copy, **settings)
    lines = [f"{split}: {len(index)} images, {len(index.labels)} objects" for split, index in data.splits.items()]
    if not {"train", "val"} <= data.splits.keys():
        lines.append(f"only {' and '.join(data.splits)}: the YAML names the same images for train and val")
    if args.format == "voc" or (args.format == "yolo" and data.has_regions):
        lines.append(f"not in this form: {LOST[args.format]}")
    result(*lines, f"wrote {file}")


if __name__ == "__main__":
    run(main)
