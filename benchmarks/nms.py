"""Non-maximum suppression, against masking, an offset by class and torchvision's nms.

    python benchmarks/nms.py

An untrained model has 30 000 candidates per image in validation: the confidence threshold is 0.001 and every class of a
box counts.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import nms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import compare, print_rows, row
from utils.boxes import xywh_to_xyxy
from utils.nms import MAX_CANDIDATES, non_max_suppression

CONF, IOU, MAX_DET, CLASSES = 0.001, 0.6, 300, 80


def plain_nms(prediction: torch.Tensor) -> list[torch.Tensor]:
    """Offset the candidates above the threshold by class and call torchvision's nms, image by image."""
    results = []
    for rows in prediction:
        rows = rows[rows[:, 4] > CONF]
        scores = rows[:, 5:] * rows[:, 4:5]
        i, j = (scores > CONF).nonzero(as_tuple=True)
        found = torch.cat((xywh_to_xyxy(rows[i, :4]), scores[i, j, None], j[:, None].float()), 1)
        found = found[found[:, 4].argsort(descending=True)[:MAX_CANDIDATES]]
        kept = nms(found[:, :4] + found[:, 5:] * 7680, found[:, 4], IOU)[:MAX_DET]
        results.append(found[kept])
    return results


def synthetic_predictions(candidates: int, num_images: int = 4) -> torch.Tensor:
    """Return (B, N, 5+C) predictions in which `candidates` pairs of box and class per image pass the threshold."""
    rng = np.random.default_rng(0)
    N, per_box = 25_200, 10  # boxes of 640 x 640 pixels
    prediction = np.zeros((num_images, N, 5 + CLASSES), np.float32)
    prediction[..., :2] = rng.uniform(0, 640, (num_images, N, 2))
    prediction[..., 2:4] = rng.uniform(8, 200, (num_images, N, 2))
    for rows in prediction:
        for box in rng.choice(N, candidates // per_box, replace=False):
            rows[box, 4] = rng.uniform(0.1, 1)
            rows[box, 5 + rng.choice(CLASSES, per_box, replace=False)] = rng.uniform(0.02, 1, per_box)
    return torch.from_numpy(prediction)


def main() -> None:
    rows, notes = [], []
    for candidates, at_least in ((30_000, "10"), (300, "1")):
        prediction = synthetic_predictions(candidates)

        def ours(prediction: torch.Tensor = prediction) -> list[torch.Tensor]:
            return non_max_suppression(prediction, CONF, IOU, multi_label=True, max_det=MAX_DET)

        equal = all(torch.equal(a, b) for a, b in zip(plain_nms(prediction), ours(), strict=True))
        times = (1, 5) if candidates > 1000 else (20, 20)
        timing = compare(lambda prediction=prediction: plain_nms(prediction), ours, times=times)
        rows.append(row(f"NMS of 4 pictures, {candidates} candidates each", timing, at_least=at_least))
        notes.append(f"{candidates} candidates: the rows of both are {'equal' if equal else 'NOT equal'}.")
    print_rows(rows, *notes)


if __name__ == "__main__":
    main()
