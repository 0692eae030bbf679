"""Box formats and overlap measures, for NumPy arrays and torch tensors alike; boxes lie in the last dimension.

Formats: xyxy = left, top, right, bottom; xywh = centre x, centre y, width, height. Units are whatever comes in.
"""

import math
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

EPS = 1e-7
Boxes = TypeVar("Boxes", np.ndarray, Tensor)


def xyxy_to_xywh(boxes: Boxes) -> Boxes:
    """Corners (..., 4) to centres and sizes; an empty input stays empty."""
    low, high = boxes[..., :2], boxes[..., 2:4]
    return _join((low + high) / 2, high - low)


def xywh_to_xyxy(boxes: Boxes) -> Boxes:
    """Centres and sizes (..., 4) to corners; an empty input stays empty."""
    centre, half = boxes[..., :2], boxes[..., 2:4] / 2
    return _join(centre - half, centre + half)


def clip_xyxy(boxes: Boxes, height: float, width: float) -> Boxes:
    """A copy of the corners (..., 4) with x inside [0, width] and y inside [0, height]."""
    clip = torch.clamp if isinstance(boxes, Tensor) else np.clip
    x, y = clip(boxes[..., 0::2], 0, width), clip(boxes[..., 1::2], 0, height)
    joined = _join(x, y)  # x1, x2, y1, y2
    return joined[..., [0, 2, 1, 3]]


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor, eps: float = EPS) -> Tensor:
    """Intersection over union of every pair: (n, 4) and (m, 4) give (n, m), in float32 whatever comes in."""
    a, b = a_xyxy.float()[:, None], b_xyxy.float()[None]  # (n, 1, 4), (1, m, 4)
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_(min=0).prod(-1)
    area_a, area_b = (a[..., 2:] - a[..., :2]).prod(-1), (b[..., 2:] - b[..., :2]).prod(-1)
    return overlap / (area_a + area_b - overlap + eps)


def iou(a_xywh: Tensor, b_xywh: Tensor) -> Tensor:
    """Intersection over union, row by row: (..., 4) and (..., 4) give (...)."""
    return _compare(a_xywh, b_xywh).iou


def giou(a_xywh: Tensor, b_xywh: Tensor) -> Tensor:
    """Generalised IoU, row by row: less the share of the enclosing box that neither covers (arXiv 1902.09630)."""
    pair = _compare(a_xywh, b_xywh)
    hull = pair.enclosing_width * pair.enclosing_height + EPS
    return pair.iou - (hull - pair.union) / hull


def diou(a_xywh: Tensor, b_xywh: Tensor) -> Tensor:
    """Distance IoU, row by row: less the squared distance of the centres over the enclosing diagonal (1911.08287)."""
    pair = _compare(a_xywh, b_xywh)
    return pair.iou - pair.distance


def ciou(a_xywh: Tensor, b_xywh: Tensor) -> Tensor:
    """Complete IoU, row by row: distance IoU less a term for unlike aspect ratios (arXiv 1911.08287, equations 8-11).

    (..., 4) and (..., 4) give (...), at most 1. The weight of the aspect term passes no gradient.
    """
    pair = _compare(a_xywh, b_xywh)
    # atan2(w, h) is atan(w / h) without a division that fails where a size underflows to 0
    angle_a = torch.atan2(a_xywh[..., 2], a_xywh[..., 3])
    angle_b = torch.atan2(b_xywh[..., 2], b_xywh[..., 3])
    aspect = (4 / math.pi**2) * (angle_b - angle_a).square()
    with torch.no_grad():
        weight = aspect / (aspect - pair.iou + (1 + EPS))
    return pair.iou - (pair.distance + weight * aspect)


class _Pair(NamedTuple):
    """What the IoU family is made of; every field (...)."""

    iou: Tensor
    union: Tensor
    enclosing_width: Tensor
    enclosing_height: Tensor
    distance: Tensor  # squared, between the centres, over the squared diagonal of the enclosing box


def _compare(a_xywh: Tensor, b_xywh: Tensor) -> _Pair:
    a, b = xywh_to_xyxy(a_xywh), xywh_to_xyxy(b_xywh)
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    enclosing = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    overlap = shared[..., 0] * shared[..., 1]
    union = a_xywh[..., 2] * a_xywh[..., 3] + b_xywh[..., 2] * b_xywh[..., 3] - overlap + EPS
    between = (a_xywh[..., :2] - b_xywh[..., :2]).square().sum(-1)
    distance = between / (enclosing.square().sum(-1) + EPS)
    return _Pair(overlap / union, union, enclosing[..., 0], enclosing[..., 1], distance)


def _join(left: Boxes, right: Boxes) -> Boxes:
    if isinstance(left, Tensor):
        return torch.cat((left, right), dim=-1)
    return np.concatenate((left, right), axis=-1)
