"""Make "shapes", a small detection data set with eight classes, drawn from a seed. Nothing is downloaded.

python data/scripts/make_shapes.py                               640 + 128 images into datasets/shapes
python data/scripts/make_shapes.py --seed 7 --folder /tmp/other
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python puts this file's folder on the path, not the project's
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.cli import SuggestingParser
from utils.console import result
from utils.datasets.shapes import make_shapes
from utils.datasets.shapes_drawing import NAMES
from utils.errors import run
from utils.files import ROOT


def main(argv: list[str] | None = None) -> None:
    """Make the data set as the command line `argv` says."""
    parser = SuggestingParser(description=f"Draw a small detection data set with the classes {', '.join(NAMES)}.")
    parser.add_argument("--folder", type=Path, default=ROOT / "datasets" / "shapes", help="default: datasets/shapes")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other images (default: 0)")
    parser.add_argument("--train", type=int, default=640, help="number of training images (default: 640)")
    parser.add_argument("--val", type=int, default=128, help="number of validation images (default: 128)")
    result(str(make_shapes(**vars(parser.parse_args(argv)))))


if __name__ == "__main__":
    run(main)
