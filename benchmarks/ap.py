"""Scoring of detections: the project's AP and COCO's twelve figures, against pycocotools.

    python benchmarks/ap.py                        5000 images, 36 000 labels, 500 000 detections, 80 classes
    python benchmarks/ap.py --images 500 --pairs 5

The data is synthetic: labels of COCO's number and sizes, detections around them with random confidences, and false
positives. The first row starts from the detections after NMS; pycocotools starts from data it has read. The second row
starts for both from the rows of a results file, as val.py --save-json writes it, and ends with the twelve figures.
"""

import argparse
import contextlib
import io
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import compare, machine, print_rows, row
from utils.coco_eval import CocoMetrics, GroundTruth, evaluate_coco
from utils.errors import UserError, run
from utils.metrics import IOU_LEVELS, ConfusionMatrix, Metrics, match_detections

CLASSES, DETECTIONS = 80, 100
WIDTH, HEIGHT = 640, 480
LABELS = 7.2  # mean number of labels in an image of COCO


class ScoredImage(NamedTuple):
    """The labels and the detections of one image."""

    labels: torch.Tensor  # (m, 5) class, x1, y1, x2, y2
    detections: torch.Tensor  # (100, 6) x1, y1, x2, y2, confidence, class, by falling confidence


def synthetic_image(rng: np.random.Generator, m: int) -> ScoredImage:
    """Draw m labels and 100 detections.

    Up to half of the detections lie near a label. The nearer they are, the higher their confidence; one in ten has a
    wrong class.
    """
    common = 1 / np.arange(2, CLASSES + 2)  # some classes have a hundred times the labels of others
    cls = rng.choice(CLASSES, m + DETECTIONS, p=common / common.sum())
    wh = np.exp(rng.uniform(np.log(8), np.log((WIDTH, HEIGHT)), (m + DETECTIONS, 2)))
    xy = rng.uniform(0, 1, (m + DETECTIONS, 2)) * ((WIDTH, HEIGHT) - wh)
    boxes = np.concatenate((xy, xy + wh), 1)
    near = min(m * 7, DETECTIONS // 2)
    source = np.arange(near) % max(m, 1)
    shift = rng.exponential(0.15, (near, 1))  # of the sides, in units of width and height
    boxes[m : m + near] = boxes[source] + shift * np.tile(wh[source], 2) * rng.normal(0, 1, (near, 4))
    boxes[m : m + near, 2:] = np.maximum(boxes[m : m + near, 2:], boxes[m : m + near, :2] + 1)
    cls[m : m + near] = np.where(rng.random(near) < 0.1, cls[m : m + near], cls[source])
    confidence = rng.beta(1, 8, DETECTIONS)
    confidence[:near] = rng.random(near) * np.exp(-2 * shift[:, 0])
    rows = np.concatenate((boxes[m:], confidence[:, None], cls[m:, None]), 1)[np.argsort(-confidence)]
    labels = np.concatenate((cls[:m, None], boxes[:m]), 1)
    return ScoredImage(*(torch.from_numpy(part.astype(np.float32)) for part in (labels, rows)))


def as_coco(images: list[ScoredImage]) -> tuple[dict, list[dict]]:
    """Return a COCO ground truth, where one label in a hundred is a crowd, and the rows of a results file."""
    labels, rows = [], []
    for image_id, image in enumerate(images):
        for cls, x1, y1, x2, y2 in image.labels.tolist():
            w, h, number = x2 - x1, y2 - y1, len(labels) + 1
            labels.append(
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": int(cls),
                    "bbox": [x1, y1, w, h],
                    "area": w * h * 0.7,
                    "iscrowd": int(number % 100 == 0),
                }
            )
        for x1, y1, x2, y2, confidence, cls in image.detections.tolist():
            box = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            rows.append({"image_id": image_id, "category_id": int(cls), "bbox": box, "score": round(confidence, 5)})
    image_rows, categories = ([{"id": i} for i in range(count)] for count in (len(images), CLASSES))
    return {"info": {}, "images": image_rows, "categories": categories, "annotations": labels}, rows


def our_ap(images: list[ScoredImage]) -> Metrics:
    """Compute the metrics as val.py does, without images, confusion matrix and loss."""
    correct = [match_detections(image.detections, image.labels, IOU_LEVELS) for image in images]
    rows = torch.cat([image.detections for image in images]).numpy()
    true = torch.cat([image.labels for image in images])[:, 0].numpy()
    return Metrics.from_statistics(
        np.concatenate(correct),
        rows[:, 4],
        rows[:, 5],
        true,
        num_classes=CLASSES,
        images=len(images),
        confusion=ConfusionMatrix(CLASSES),
    )


class Reference:
    """pycocotools without its output."""

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
        """Match and compute precision over recall, from the data read before."""
        with contextlib.redirect_stdout(io.StringIO()):
            scoring = self.scorer(self.truth, self.found, "bbox")
            scoring.evaluate()
            scoring.accumulate()

    def figures(self) -> np.ndarray:
        """Compute the twelve figures from the rows."""
        with contextlib.redirect_stdout(io.StringIO()):
            scoring = self.scorer(self.truth, self.truth.loadRes(self.rows), "bbox")
            scoring.evaluate()
            scoring.accumulate()
            scoring.summarize()
        return scoring.stats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", "--pictures", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(round(LABELS * args.images), np.full(args.images, 1 / args.images))
    images = [synthetic_image(rng, m) for m in counts]
    truth, rows = as_coco(images)
    reference = Reference(truth, rows)
    answers = {}

    def baseline() -> None:
        answers["pycocotools"] = reference.figures()

    def ours() -> None:
        answers["ours"] = evaluate_coco(GroundTruth.read(truth), rows)

    size = f"{len(rows)} detections, {len(images)} pictures, {CLASSES} classes"
    timings = [
        compare(reference.ap, lambda: our_ap(images), pairs=args.pairs, warm_up=0),
        compare(baseline, ours, pairs=args.pairs, warm_up=0),
    ]
    difference = np.abs(np.array(answers["ours"]) - answers["pycocotools"])
    print_rows(
        [
            row(f"AP over {size}", timings[0], at_least="20", unit="s"),
            row(f"COCO's 12 figures of {size}", timings[1], at_least="10", unit="s"),
        ],
        f"{len(truth['annotations'])} labels, one thread. Figures by COCO's rule: "
        + ", ".join(f"{name} {value:.4f}" for name, value in zip(CocoMetrics._fields, answers["ours"])),
        f"Largest difference of a figure from that of pycocotools: {difference.max():.1e}",
        machine(),
    )


if __name__ == "__main__":
    run(main)
