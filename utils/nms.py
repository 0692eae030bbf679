"""Non-maximum suppression: of overlapping boxes, keep the one with the highest confidence.

Letters in shapes: B batch, N predictions, C classes, n candidates.
"""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torchvision.ops import nms

from utils.boxes import xywh_to_xyxy
from utils.errors import UserError

MAX_CANDIDATES = 30_000  # per image, those with the highest confidence
FIRST_BLOCK = 1024
MAX_JOINT_VALUES = 2**22  # float32 values of all boxes found in a batch: 16 MiB
FARTHEST_PIXEL = 2.0**24  # float32 cannot distinguish pixels beyond it


@torch.no_grad()
def non_max_suppression(
    prediction: Tensor | Sequence,
    conf_thres: float | Sequence[float] = 0.25,
    iou_thres: float = 0.45,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    max_det: int = 300,
    *,
    labels: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Return the kept boxes of each image: (n, 6) float32 x1, y1, x2, y2, confidence, class; n <= max_det.

    Rows are sorted by confidence, highest first; (0, 6) if there are none.
    prediction: (B, N, 5+C) x, y, w, h in pixels, objectness and class probabilities, or a tuple that starts with it.
    The confidence of a box is objectness times class probability. Objectness and confidence must both exceed
    conf_thres, or that of the box's class if there is one for each (C,). A box is dropped if its IoU with a kept box
    of higher confidence exceeds iou_thres. Only boxes of its class count, or all boxes if agnostic. Boxes that are not
    finite are never returned.
    multi_label: give a row to each class of a box, not only to the best one. classes: the only ones to return.
    labels: per image (m, 5) class, x, y, w, h in pixels. They join the candidates with confidence 1.
    Raises UserError for thresholds outside 0...1.
    """
    limits = [*conf_thres] if isinstance(conf_thres, Sequence) else [conf_thres]
    for name, value in (*(("--conf-thres", limit) for limit in limits), ("--iou-thres", iou_thres)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} {value} is outside 0...1: give for example {name} 0.25")
    if not isinstance(prediction, Tensor):
        prediction = prediction[0]
    home = prediction.device
    if home.type == "mps":  # has no float64
        prediction = prediction.cpu()
    assert len(limits) in (1, prediction.shape[2] - 5), "a threshold for each class"
    found = prediction[..., 4].float() > min(limits)  # (B, N)
    least = limits[0] if len(limits) == 1 else prediction.new_tensor(limits, dtype=torch.float32)
    results = []
    for part in _parts(found, prediction.shape[2], alone=labels is not None):
        image, box = found[part].nonzero(as_tuple=True)
        rows, image = _finite(prediction[part][image, box].float(), image)
        if labels is not None:
            rows = torch.cat((rows, _as_predictions(labels[part.start].to(rows), rows.shape[1])))
            image = image.new_zeros(len(rows))
        candidates, row = _candidates(rows, least, multi_label)
        counts = image[row].bincount(minlength=part.stop - part.start).tolist()
        for own in candidates.split(counts):
            if classes is not None:
                own = own[torch.isin(own[:, 5], own.new_tensor(classes))]
            own = _top_by_confidence(own)
            groups = torch.zeros_like(own[:, 5]) if agnostic else own[:, 5]
            results.append(own[_greedy(own[:, :4], groups, iou_thres, max_det)].to(home))
    return results


def suppress_rows(rows: Tensor, iou_thres: float, *, agnostic: bool, max_det: int) -> Tensor:
    """Return the boxes of one image that suppression keeps, as `non_max_suppression` does, of rows (n, 6) in any order.

    Boxes of equal confidence stay in their order.
    """
    rows = rows[rows[:, 4].argsort(descending=True, stable=True)[:MAX_CANDIDATES]]
    groups = torch.zeros_like(rows[:, 5]) if agnostic else rows[:, 5]
    return rows[_greedy(rows[:, :4], groups, iou_thres, max_det)]


def _parts(found: Tensor, width: int, *, alone: bool) -> list[slice]:
    """Split the images of `found` (B, N) into the groups to process.

    All images at once save calls if few boxes were found. Otherwise each image is a group.
    """
    B = len(found)
    if alone or int(found.sum()) * width > MAX_JOINT_VALUES:
        return [slice(i, i + 1) for i in range(B)]
    return [slice(0, B)] if B else []


def _finite(rows: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows (n, 5+C) whose boxes are finite, and the image (n,) of each."""
    if math.isfinite(rows[:, :4].sum()):
        return rows, image
    finite = rows[:, :4].isfinite().all(1)
    return rows[finite], image[finite]


def _candidates(rows: Tensor, least: float | Tensor, multi_label: bool) -> tuple[Tensor, Tensor]:
    """Return candidates (m, 6) corners, confidence, class of predictions (n, 5+C), and the row (m,) of each.

    Their confidence exceeds the threshold `least`, that of their class if it is (C,).
    """
    scores = rows[:, 5:] * rows[:, 4:5]  # (n, C)
    boxes = xywh_to_xyxy(rows[:, :4])
    if multi_label and scores.shape[1] > 1:
        row, cls = (scores > least).nonzero(as_tuple=True)
        return torch.cat((boxes[row], scores[row, cls, None], cls[:, None]), 1), row
    score, cls = scores.max(1)
    row = (score > (least[cls] if isinstance(least, Tensor) else least)).nonzero()[:, 0]
    return torch.cat((boxes, score[:, None], cls[:, None]), 1)[row], row


def _top_by_confidence(candidates: Tensor) -> Tensor:
    """Sort (n, 6) by confidence, highest first, ties in any order, and keep MAX_CANDIDATES rows."""
    scores = candidates[:, 4]
    if len(scores) > MAX_CANDIDATES:  # topk is faster than sorting millions of rows
        lowest = scores.topk(MAX_CANDIDATES).values[-1]
        candidates = candidates[scores >= lowest]
    return candidates.index_select(0, candidates[:, 4].argsort(descending=True)[:MAX_CANDIDATES])


def _greedy(boxes: Tensor, groups: Tensor, iou_thres: float, max_det: int) -> Tensor:
    """Return the indices of the first max_det boxes (n, 4) that greedy suppression within each group (n,) keeps.

    Boxes are sorted by confidence, so later boxes never change the result for a leading block. Blocks grow until
    enough boxes are kept.
    """
    apart = _groups_apart(boxes, groups)
    ranks = torch.arange(len(boxes), 0, -1, device=boxes.device, dtype=apart.dtype)
    threshold = _threshold_of_float32(iou_thres, on_gpu=boxes.is_cuda)
    size = max(FIRST_BLOCK, 2 * max_det)
    while True:
        kept = nms(apart[:size], ranks[:size], threshold)
        if len(kept) >= max_det or size >= len(boxes):
            return kept[:max_det]
        size *= 4


def _groups_apart(boxes: Tensor, groups: Tensor) -> Tensor:
    """Return the boxes in float64, each group shifted so that no two groups overlap.

    The 53 bits of float64 hold the shifted corners exactly.
    """
    if len(boxes) == 0:
        return boxes.double()
    corners = boxes.double().clamp_(-FARTHEST_PIXEL, FARTHEST_PIXEL)
    low, high = corners.aminmax()
    return corners.addcmul_(groups.double()[:, None], high - low + 1)


@cache
def _threshold_of_float32(threshold: float, on_gpu: bool = False) -> float:
    """Return the limit for float64 IoUs that gives the same answers as `float32(IoU) > threshold`.

    This matters at ties such as 3/5 > 0.6. on_gpu: torchvision's kernel rounds the limit to float32, so the result is
    a float32 number on the correct side of the tie.
    """
    nearest = torch.tensor(threshold, dtype=torch.float32)
    rounded_up = nearest.item() > threshold
    below = torch.nextafter(nearest, torch.tensor(-math.inf)) if rounded_up else nearest
    above = torch.nextafter(below, torch.tensor(math.inf))
    if on_gpu:
        return (above if nearest.item() < threshold else below).item()
    return (below.item() + above.item()) / 2


def _as_predictions(labels: Tensor, width: int) -> Tensor:
    """Convert labels (m, 5) class, x, y, w, h to predictions (m, width) with objectness and class probability 1."""
    rows = labels.new_zeros(len(labels), width)
    rows[:, :4], rows[:, 4] = labels[:, 1:5], 1.0
    rows[torch.arange(len(labels)), labels[:, 0].long() + 5] = 1.0
    return rows
