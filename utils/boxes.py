"""Box formats and overlap measures. The last dimension of an array or tensor holds the four numbers of a box.

Formats: xyxy = left, top, right, bottom; xywh = centre x, centre y, width, height. Units are those of the input.
"""

import math
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

EPS = 1e-7
Boxes = TypeVar("Boxes", np.ndarray, Tensor)


def xyxy_to_xywh(boxes: Boxes) -> Boxes:
    """Convert corners (..., 4) to centres and sizes. An empty input stays empty."""
    low, high = boxes[..., :2], boxes[..., 2:4]
    return _join((low + high) / 2, high - low)


def xywh_to_xyxy(boxes: Boxes) -> Boxes:
    """Convert centres and sizes (..., 4) to corners. An empty input stays empty."""
    centre, half = boxes[..., :2], boxes[..., 2:4] / 2
    return _join(centre - half, centre + half)


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the intersection over union of every pair: (n, 4) and (m, 4) of any type give (n, m) float32."""
    a, b = a_xyxy.float()[:, None], b_xyxy.float()[None]  # (n, 1, 4), (1, m, 4)
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_(min=0).prod(-1)
    area_a, area_b = (a[..., 2:] - a[..., :2]).prod(-1), (b[..., 2:] - b[..., :2]).prod(-1)
    return overlap / (area_a + area_b - overlap + EPS)


def ciou(a_xywh: Tensor, b_xywh: Tensor) -> Tensor:
    """Return the complete IoU, row by row (arXiv 1911.08287, equations 8-11): (..., 4) and (..., 4) give (...).

    It is the IoU less a term for the distance of the centres and one for unlike aspect ratios, so 1 at most. The weight
    of the aspect term passes no gradient.
    """
    a, b = xywh_to_xyxy(a_xywh), xywh_to_xyxy(b_xywh)
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    enclosing = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])  # (..., 2)
    overlap = shared[..., 0] * shared[..., 1]
    union = a_xywh[..., 2] * a_xywh[..., 3] + b_xywh[..., 2] * b_xywh[..., 3] - overlap + EPS
    iou = overlap / union
    between = (a_xywh[..., :2] - b_xywh[..., :2]).square().sum(-1)
    distance = between / (enclosing.square().sum(-1) + EPS)  # squared, over the squared diagonal of the enclosing box
    # atan2(w, h) is atan(w / h) without a division that fails where a size underflows to 0
    angle_a = torch.atan2(a_xywh[..., 2], a_xywh[..., 3])
    angle_b = torch.atan2(b_xywh[..., 2], b_xywh[..., 3])
    aspect = (4 / math.pi**2) * (angle_b - angle_a).square()
    with torch.no_grad():
        weight = aspect / (aspect - iou + (1 + EPS))
    return iou - (distance + weight * aspect)


def _join(left: Any, right: Any) -> Any:  # the checker cannot follow constrained types through torch.cat
    if isinstance(left, Tensor):
        return torch.cat((left, right), dim=-1)
    return np.concatenate((left, right), axis=-1)
