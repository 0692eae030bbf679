"""Target assignment and loss, forward and backward: batch 16, 640, 80 classes, against the formulas as written.

python benchmarks/loss.py
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.step import build_loss, synthetic_batch
from benchmarks.timing import compare, print_rows, row
from models.yolo import DetectionModel
from utils.config import Hyperparameters
from utils.loss import NEIGHBOURS, scale_gains


class PlainLoss:
    """The formulas of the specification, one level and one offset at a time."""

    def __init__(self, anchors: Tensor, num_classes: int, hyp: dict):
        self.anchors, self.num_classes, self.hyp = anchors, num_classes, hyp

    def __call__(self, predictions: Sequence[Tensor], targets: Tensor) -> Tensor:
        total = torch.zeros(())
        for level, prediction in enumerate(predictions):
            b, a, row_, column, xywh, anchor, cls = self.assign(level, prediction, targets)
            target = torch.zeros_like(prediction[..., 0])
            if len(b):
                chosen = prediction[b, a, row_, column]
                centre = chosen[:, :2].sigmoid() * 2 - 0.5
                size = (chosen[:, 2:4].sigmoid() * 2) ** 2 * anchor
                iou = plain_ciou(torch.cat((centre, size), 1), xywh)
                total = total + self.hyp["box"] * (1 - iou).mean()
                target[b, a, row_, column] = iou.detach().clamp(0)
                one_hot = torch.zeros_like(chosen[:, 5:])
                one_hot[torch.arange(len(b)), cls] = 1
                total = total + self.hyp["cls"] * F.binary_cross_entropy_with_logits(chosen[:, 5:], one_hot)
            obj = F.binary_cross_entropy_with_logits(prediction[..., 4], target)
            total = total + self.hyp["obj"] * (4.0, 1.0, 0.4)[level] * obj
        return total * len(predictions[0])

    def assign(self, level: int, prediction: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Return image, anchor index, row, column, box in cells, anchor and class of every pair."""
        _, A, H, W, _ = prediction.shape
        gain, parts = torch.tensor([W, H]), []
        xy, wh = targets[:, 2:4] * gain, targets[:, 4:6] * gain
        for number in range(A):
            anchor = self.anchors[level, number]
            ratio = wh / anchor
            fits = torch.max(ratio, 1 / ratio).max(1)[0] < self.hyp["anchor_t"]
            for shift in NEIGHBOURS:
                keep = fits & near(xy, gain, shift)
                cell = (xy + torch.tensor(shift))[keep].long()
                column, row_ = cell[:, 0].clamp(0, W - 1), cell[:, 1].clamp(0, H - 1)
                here = torch.stack((column, row_), 1)
                parts.append(
                    (
                        targets[keep, 0].long(),
                        torch.full_like(row_, number),
                        row_,
                        column,
                        torch.cat((xy[keep] - here, wh[keep]), 1),
                        anchor.expand(len(row_), 2),
                        targets[keep, 1].long(),
                    )
                )
        return tuple(torch.cat(column) for column in zip(*parts))


def near(xy: Tensor, gain: Tensor, shift: tuple[float, float]) -> Tensor:
    """Return (T,) bool: the neighbouring cell at `shift` is used for a centre at `xy` (T, 2)."""
    if shift == (0.0, 0.0):
        return torch.ones(len(xy), dtype=torch.bool)
    axis = 0 if shift[0] else 1
    place = xy[:, axis] if shift[axis] < 0 else gain[axis] - xy[:, axis]
    return (place % 1 < 0.5) & (place > 1)


def plain_ciou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """Return the complete IoU (R,) of boxes (R, 4) x, y, w, h (arXiv 1911.08287)."""
    a1, a2, b1, b2 = a[:, :2] - a[:, 2:] / 2, a[:, :2] + a[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2
    overlap = (torch.min(a2, b2) - torch.max(a1, b1)).clamp(0).prod(1)
    iou = overlap / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - overlap + eps)
    hull = torch.max(a2, b2) - torch.min(a1, b1)
    distance = ((a[:, :2] - b[:, :2]) ** 2).sum(1) / ((hull**2).sum(1) + eps)
    v = 4 / math.pi**2 * (torch.atan(b[:, 2] / b[:, 3]) - torch.atan(a[:, 2] / a[:, 3])) ** 2
    with torch.no_grad():
        alpha = v / (v - iou + 1 + eps)
    return iou - distance - alpha * v


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = DetectionModel("yolov5n.yaml")
    _, targets = synthetic_batch(options.batch, options.imgsz)
    sizes = [options.imgsz // int(stride) for stride in model.stride]
    raw = [torch.randn(options.batch, 3, side, side, 85, requires_grad=True) for side in sizes]
    gains = scale_gains(Hyperparameters(), 3, 80, options.imgsz)
    plain, ours = PlainLoss(model.head.anchors, 80, gains), build_loss(model, options.imgsz)

    def backward(total: Tensor) -> None:
        for level in raw:
            level.grad = None
        total.backward()

    found = [plain(raw, targets).item(), ours(raw, targets)[0].item()]
    timing = compare(
        lambda: backward(plain(raw, targets)), lambda: backward(ours(raw, targets)[0]), pairs=options.pairs
    )
    print_rows(
        [row(f"loss forward and backward, batch {options.batch}, {options.imgsz}, 80 classes", timing, at_least="1.5")],
        f"The losses are {found[0]:.5f} and {found[1]:.5f}; {len(targets)} targets.",
    )


if __name__ == "__main__":
    main()
