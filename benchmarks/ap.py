"""Scoring of detections: the project's AP, and COCO's twelve figures, against pycocotools.

    python benchmarks/ap.py                        5000 pictures, 36 000 labels, 500 000 detections, 80 classes
    python benchmarks/ap.py --pictures 500 --pairs 5

The data is made up: labels of COCO's number and sizes, detections around them with random confidences, and false ones.
The first row takes detections as val.py has them after the suppression, and pycocotools as it is after reading; the
second takes both from the rows of a results file, which val.py --save-json writes, to the twelve figures.
"""

import argparse
import contextlib
import io
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import compare, machine, print_rows, row  # noqa: E402
from utils.coco_eval import CocoFigures, GroundTruth, coco_figures  # noqa: E402
from utils.errors import UserError, run  # noqa: E402
from utils.metrics import IOU_LEVELS, ConfusionMatrix, Metrics, match_detections  # noqa: E402

CLASSES, PER_PICTURE = 80, 100
WIDTH, HEIGHT = 640, 480
LABELS = 7.2  # a picture, on average: COCO's


class Picture(NamedTuple):
    labels: torch.Tensor  # (m, 5) class, x1, y1, x2, y2
    detections: torch.Tensor  # (100, 6) x1, y1, x2, y2, confidence, class, the surest first


def made_up_picture(rng: np.random.Generator, m: int) -> Picture:
    """Of the detections up to half lie around the m labels, the better the surer, one in ten with another class."""
    common = 1 / np.arange(2, CLASSES + 2)  # some classes have a hundred times the labels of others
    cls = rng.choice(CLASSES, m + PER_PICTURE, p=common / common.sum())
    wh = np.exp(rng.uniform(np.log(8), np.log((WIDTH, HEIGHT)), (m + PER_PICTURE, 2)))
    xy = rng.uniform(0, 1, (m + PER_PICTURE, 2)) * ((WIDTH, HEIGHT) - wh)
    boxes = np.concatenate((xy, xy + wh), 1)
    near = min(m * 7, PER_PICTURE // 2)
    source = np.arange(near) % max(m, 1)
    shift = rng.exponential(0.15, (near, 1))  # of the sides, in units of width and height
    boxes[m : m + near] = boxes[source] + shift * np.tile(wh[source], 2) * rng.normal(0, 1, (near, 4))
    boxes[m : m + near, 2:] = np.maximum(boxes[m : m + near, 2:], boxes[m : m + near, :2] + 1)
    cls[m : m + near] = np.where(rng.random(near) < 0.1, cls[m : m + near], cls[source])
    confidence = rng.beta(1, 8, PER_PICTURE)
    confidence[:near] = rng.random(near) * np.exp(-2 * shift[:, 0])
    rows = np.concatenate((boxes[m:], confidence[:, None], cls[m:, None]), 1)[np.argsort(-confidence)]
    labels = np.concatenate((cls[:m, None], boxes[:m]), 1)
    return Picture(*(torch.from_numpy(part.astype(np.float32)) for part in (labels, rows)))


def as_coco(pictures: list[Picture]) -> tuple[dict, list[dict]]:
    """A COCO ground truth, one label in a hundred a crowd, and the rows of a results file as val.py writes it."""
    labels, rows = [], []
    for image, picture in enumerate(pictures):
        for cls, x1, y1, x2, y2 in picture.labels.tolist():
            w, h, number = x2 - x1, y2 - y1, len(labels) + 1
            labels.append(
                {
                    "id": number,
                    "image_id": image,
                    "category_id": int(cls),
                    "bbox": [x1, y1, w, h],
                    "area": w * h * 0.7,
                    "iscrowd": int(number % 100 == 0),
                }
            )
        for x1, y1, x2, y2, confidence, cls in picture.detections.tolist():
            box = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            rows.append({"image_id": image, "category_id": int(cls), "bbox": box, "score": round(confidence, 5)})
    images, categories = ([{"id": i} for i in range(count)] for count in (len(pictures), CLASSES))
    return {"info": {}, "images": images, "categories": categories, "annotations": labels}, rows


def our_ap(pictures: list[Picture]) -> Metrics:
    """As val.py does it, without pictures, confusion matrix and loss."""
    right = [match_detections(picture.detections, picture.labels, IOU_LEVELS) for picture in pictures]
    rows = torch.cat([picture.detections for picture in pictures]).numpy()
    true = torch.cat([picture.labels for picture in pictures])[:, 0].numpy()
    return Metrics.from_statistics(
        np.concatenate(right),
        rows[:, 4],
        rows[:, 5],
        true,
        num_classes=CLASSES,
        images=len(pictures),
        confusion=ConfusionMatrix(CLASSES),
    )


class Reference:
    """pycocotools, without its printing."""

    def __init__(self, truth: dict, rows: list[dict]):
        try:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        except ImportError as error:
            raise UserError("pycocotools is the baseline and is not installed: pip install pycocotools") from error
        self.scorer, self.truth, self.rows = COCOeval, COCO(), rows
        self.truth.dataset = truth
        with contextlib.redirect_stdout(io.StringIO()):
            self.truth.createIndex()
            self.found = self.truth.loadRes(rows)

    def ap(self) -> None:
        """Matching and precision over recall, from what has been read."""
        with contextlib.redirect_stdout(io.StringIO()):
            scoring = self.scorer(self.truth, self.found, "bbox")
            scoring.evaluate()
            scoring.accumulate()

    def figures(self) -> np.ndarray:
        """The twelve, from the rows."""
        with contextlib.redirect_stdout(io.StringIO()):
            scoring = self.scorer(self.truth, self.truth.loadRes(self.rows), "bbox")
            scoring.evaluate()
            scoring.accumulate()
            scoring.summarize()
        return scoring.stats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(round(LABELS * args.pictures), np.full(args.pictures, 1 / args.pictures))
    pictures = [made_up_picture(rng, m) for m in counts]
    truth, rows = as_coco(pictures)
    reference = Reference(truth, rows)
    answers = {}

    def baseline() -> None:
        answers["pycocotools"] = reference.figures()

    def ours() -> None:
        answers["ours"] = coco_figures(GroundTruth.read(truth), rows)

    size = f"{len(rows)} detections, {len(pictures)} pictures, {CLASSES} classes"
    timings = [
        compare(reference.ap, lambda: our_ap(pictures), pairs=args.pairs, warm_up=0),
        compare(baseline, ours, pairs=args.pairs, warm_up=0),
    ]
    difference = np.abs(np.array(answers["ours"]) - answers["pycocotools"])
    print_rows(
        [
            row(f"AP over {size}", timings[0], at_least="20", unit="s"),
            row(f"COCO's 12 figures of {size}", timings[1], at_least="10", unit="s"),
        ],
        f"{len(truth['annotations'])} labels, one thread. Figures by COCO's rule: "
        + ", ".join(f"{name} {value:.4f}" for name, value in zip(CocoFigures._fields, answers["ours"])),
        f"Largest difference of a figure from that of pycocotools: {difference.max():.1e}",
        machine(),
    )


if __name__ == "__main__":
    run(main)
