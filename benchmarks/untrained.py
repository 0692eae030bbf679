"""Validation of an untrained model, where every box passes the threshold, against that of a trained one.

python benchmarks/untrained.py --weights yolov5n.pt --data coco128.yaml
python benchmarks/untrained.py            the built-in data and the weights of `make train`
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import Row, compare, format_spread, print_rows
from models.loading import load_model
from models.yolo import DetectionModel
from utils.datasets.labels import load_index
from utils.datasets.locate import locate_dataset
from utils.inference.evaluate import evaluate
from utils.loading.loader import LoadSettings, make_loader
from utils.loading.sampler import BatchSettings

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "runs" / "train" / "quickstart" / "weights" / "best.pt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default=str(QUICKSTART))
    parser.add_argument("--data", default="data/shapes.yaml")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    if not Path(options.weights).is_file():
        sys.exit(f"{options.weights} does not exist. Type --weights of a trained model, and its --data")
    trained = load_model(options.weights).eval()
    spec = locate_dataset(options.data)
    torch.manual_seed(0)
    untrained = DetectionModel(trained.yaml).eval()
    index = load_index(spec.sources("val"), spec.num_classes, progress=False)
    loader = make_loader(
        index,
        imgsz=options.imgsz,
        batch_size=32,
        batches=BatchSettings(rect=True, pad=0.5),
        loading=LoadSettings(cache="ram", workers=0),
    )
    timing = compare(lambda: evaluate(trained, loader), lambda: evaluate(untrained, loader), pairs=options.pairs)
    factors = [1 / ratio for ratio in timing.ratios]
    sides = [f"{format_spread(side)} s" for side in timing]
    print_rows(
        [
            Row(
                f"validation, untrained against trained, {options.imgsz}, {len(index)} pictures",
                *sides,
                f"{format_spread(factors)} of its time",
                "at most 2 of its time",
            )
        ]
    )


if __name__ == "__main__":
    main()
