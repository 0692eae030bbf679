"""Non-maximum suppression: of boxes that overlap, the surest one stays.

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

MAX_CANDIDATES = 30_000  # per picture, the surest first
FIRST_BLOCK = 1024
FEW_VALUES = 2**22  # of the boxes found in all pictures of a batch: 16 MiB
FARTHEST_PIXEL = 2.0**24  # beyond, float32 does not tell pixels apart


@torch.no_grad()
def non_max_suppression(
    prediction: Tensor | Sequence,
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    max_det: int = 300,
    *,
    labels: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Per picture (n, 6) float32 x1, y1, x2, y2, confidence, class, the surest first, n <= max_det; (0, 6) if none.

    prediction: (B, N, 5+C) x, y, w, h in pixels, objectness and class probabilities, or a tuple that starts with it.
    A box stays if its objectness and its confidence, objectness times class probability, exceed conf_thres, and its
    IoU with every surer box that stays (of its class, or of any if agnostic) is at most iou_thres. multi_label gives
    a row to each class of a box, otherwise to the best alone. classes: the only ones wanted. labels: per picture
    (m, 5) class, x, y, w, h in pixels, which join the candidates with confidence 1.
    Boxes that are not finite never come back. Thresholds outside 0...1 are a UserError.
    """
    for name, value in (("--conf-thres", conf_thres), ("--iou-thres", iou_thres)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} {value} is outside 0...1: give for example {name} 0.25")
    if not isinstance(prediction, Tensor):
        prediction = prediction[0]
    home = prediction.device
    if home.type == "mps":  # has no float64
        prediction = prediction.cpu()
    found = prediction[..., 4].float() > conf_thres  # (B, N)
    results = []
    for part in _parts(found, prediction.shape[2], alone=labels is not None):
        picture, box = found[part].nonzero(as_tuple=True)
        rows = prediction[part][picture, box].float()
        if not math.isfinite(rows[:, :4].sum()):
            finite = rows[:, :4].isfinite().all(1)
            rows, picture = rows[finite], picture[finite]
        if labels is not None:
            rows = torch.cat((rows, _as_predictions(labels[part.start].to(rows), rows.shape[1])))
            picture = picture.new_zeros(len(rows))
        candidates, row = _candidates(rows, conf_thres, multi_label)
        counts = picture[row].bincount(minlength=part.stop - part.start).tolist()
        for own in candidates.split(counts):
            if classes is not None:
                own = own[torch.isin(own[:, 5], own.new_tensor(classes))]
            own = _surest(own)
            groups = torch.zeros_like(own[:, 5]) if agnostic else own[:, 5]
            results.append(own[_greedy(own[:, :4], groups, iou_thres, max_det)].to(home))
    return results


def _parts(found: Tensor, width: int, *, alone: bool) -> list[slice]:
    """The pictures to look at together: all where little was found (B, N), which saves calls, else each by itself."""
    B = len(found)
    if alone or int(found.sum()) * width > FEW_VALUES:
        return [slice(i, i + 1) for i in range(B)]
    return [slice(0, B)] if B else []


def _candidates(rows: Tensor, conf_thres: float, multi_label: bool) -> tuple[Tensor, Tensor]:
    """(n, 5+C) predictions -> (m, 6) corners, confidence above the threshold, class; and of which row each is (m,)."""
    scores = rows[:, 5:] * rows[:, 4:5]  # (n, C)
    boxes = xywh_to_xyxy(rows[:, :4])
    if multi_label and scores.shape[1] > 1:
        row, cls = (scores > conf_thres).nonzero(as_tuple=True)
        return torch.cat((boxes[row], scores[row, cls, None], cls[:, None]), 1), row
    score, cls = scores.max(1)
    row = (score > conf_thres).nonzero()[:, 0]
    return torch.cat((boxes, score[:, None], cls[:, None]), 1)[row], row


def _surest(candidates: Tensor) -> Tensor:
    """(n, 6) sorted by confidence, highest first, ties in any order, MAX_CANDIDATES rows at most."""
    scores = candidates[:, 4]
    if len(scores) > MAX_CANDIDATES:  # sorting millions of rows is slow, finding the lowest score that can stay is not
        lowest = scores.topk(MAX_CANDIDATES).values[-1]
        candidates = candidates[scores >= lowest]
    return candidates.index_select(0, candidates[:, 4].argsort(descending=True)[:MAX_CANDIDATES])


def _greedy(boxes: Tensor, groups: Tensor, iou_thres: float, max_det: int) -> Tensor:
    """Indices of the first max_det boxes (n, 4) that greedy suppression within each group (n,) keeps.

    Boxes come surest first, so that what is kept of a leading block does not depend on the rest: blocks grow until
    enough are kept.
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
    """The boxes in float64, each group moved to where no other one reaches: 53 bits hold the moved corners exactly."""
    if len(boxes) == 0:
        return boxes.double()
    corners = boxes.double().clamp_(-FARTHEST_PIXEL, FARTHEST_PIXEL)
    low, high = corners.aminmax()
    return corners.addcmul_(groups.double()[:, None], high - low + 1)


@cache
def _threshold_of_float32(threshold: float, on_gpu: bool = False) -> float:
    """The limit for IoUs in float64 that parts them as `float32(IoU) > threshold` would, at ties like 3/5 > 0.6 too.

    on_gpu: torchvision's kernel rounds the limit to float32, so it is one, on the side of the tie that is right.
    """
    nearest = torch.tensor(threshold, dtype=torch.float32)
    rounded_up = nearest.item() > threshold
    below = torch.nextafter(nearest, torch.tensor(-math.inf)) if rounded_up else nearest
    above = torch.nextafter(below, torch.tensor(math.inf))
    if on_gpu:
        return (above if nearest.item() < threshold else below).item()
    return (below.item() + above.item()) / 2


def _as_predictions(labels: Tensor, width: int) -> Tensor:
    """(m, 5) class, x, y, w, h -> (m, width) predictions with objectness 1 and class probability 1."""
    rows = labels.new_zeros(len(labels), width)
    rows[:, :4], rows[:, 4] = labels[:, 1:5], 1.0
    rows[torch.arange(len(labels)), labels[:, 0].long() + 5] = 1.0
    return rows
