"""Box formats, IoU and CIoU against published values and a reference in plain Python."""

import math

import numpy as np
import pytest
import torch

from utils.boxes import ciou, pairwise_iou, xywh_to_xyxy, xyxy_to_xywh

PAIRS = [  # box a, box b (centre x, y, width, height), IoU, CIoU
    ((0, 0, 2, 2), (0, 0, 2, 2), 1.0, 1.0),  # the same box
    ((1, 1, 2, 4), (0, 0, 2, 2), 0.2, 0.117909),  # another shape
    ((0, 0, 1, 1), (3, 3, 1, 1), 0.0, -0.5625),  # apart
    ((5, 5, 1, 3), (5.5, 5, 3, 1), 0.2, 0.080365),  # crossed
    ((0.3, 0.2, 1.5, 0.7), (0.5, 0.1, 1.2, 1.1), 0.514377, 0.497809),
]


def reference_ciou(a, b):
    """Return the complete IoU of two xywh boxes in double precision, from the formulas, without arrays."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    across = max(0.0, min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2))
    down = max(0.0, min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2))
    shared = across * down
    iou = shared / (aw * ah + bw * bh - shared)
    hull_w = max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)
    hull_h = max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    v = 4 / math.pi**2 * (math.atan(aw / ah) - math.atan(bw / bh)) ** 2
    alpha = v / (1 - iou + v) if v else 0.0
    return iou - ((ax - bx) ** 2 + (ay - by) ** 2) / (hull_w**2 + hull_h**2) - alpha * v


@pytest.mark.parametrize("a, b, iou, expected", PAIRS)
def test_published_values(a, b, iou, expected):
    a, b = torch.tensor([a], dtype=torch.float32), torch.tensor([b], dtype=torch.float32)
    assert pairwise_iou(xywh_to_xyxy(a), xywh_to_xyxy(b)).item() == pytest.approx(iou, abs=2e-6)
    assert ciou(a, b).item() == pytest.approx(expected, abs=2e-6)


def test_ciou_agrees_with_the_reference():
    rng = np.random.default_rng(0)
    a, b = np.concatenate((rng.uniform(-2, 2, (2, 200, 2)), rng.uniform(0.2, 3, (2, 200, 2))), -1)
    got = ciou(torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32))
    assert got.numpy() == pytest.approx(np.array([reference_ciou(*pair) for pair in zip(a, b)]), abs=1e-5)


def test_ciou_weight_of_the_aspect_term_passes_no_gradient():
    a = torch.tensor([[0.3, 0.2, 1.5, 0.7]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[0.5, 0.1, 1.2, 1.1]], dtype=torch.float64)

    def parts(box):
        """Return IoU, distance term and aspect term of `box` and b, which overlap."""
        low = torch.maximum(box[:, :2] - box[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2)
        high = torch.minimum(box[:, :2] + box[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
        hull_low = torch.minimum(box[:, :2] - box[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2)
        hull_high = torch.maximum(box[:, :2] + box[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
        shared = (high - low).prod(1)
        iou = shared / (box[:, 2:].prod(1) + b[:, 2:].prod(1) - shared)
        distance = (box[:, :2] - b[:, :2]).square().sum(1) / (hull_high - hull_low).square().sum(1)
        v = 4 / math.pi**2 * (math.atan(1.2 / 1.1) - torch.atan(box[:, 2] / box[:, 3])) ** 2
        return iou, distance, v

    iou, _, v = (part.item() for part in parts(a))
    alpha = v / (v - iou + 1)
    iou, distance, v = parts(a)
    expected = torch.autograd.grad((iou - distance - alpha * v).sum(), a)[0]
    assert torch.autograd.grad(ciou(a, b).sum(), a)[0].numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_ciou_of_a_vanished_box_has_a_finite_gradient():
    a = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]], requires_grad=True)
    value = ciou(a, torch.tensor([[0.0, 0.0, 2.0, 1.0]]).expand(2, 4))
    value.sum().backward()
    assert value.isfinite().all() and a.grad.isfinite().all()


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("shape", [(0, 4), (3, 4), (2, 3, 4)])
def test_formats_are_inverse(kind, shape):
    boxes = kind(np.arange(math.prod(shape), dtype=np.float32).reshape(shape))
    back = xywh_to_xyxy(xyxy_to_xywh(boxes))
    assert type(back) is type(boxes) and back.shape == boxes.shape
    assert np.asarray(back) == pytest.approx(np.asarray(boxes))


def test_formats_by_hand():
    assert xyxy_to_xywh(np.array([1.0, 2.0, 5.0, 10.0])).tolist() == [3, 6, 4, 8]
    assert xywh_to_xyxy(torch.tensor([3.0, 6.0, 4.0, 8.0])).tolist() == [1, 2, 5, 10]


def test_pairwise_iou():
    a = torch.tensor([[0, 0, 100, 100], [200, 200, 260, 260]])  # integers are cast
    b = torch.tensor([[10, 10, 110, 110], [0, 0, 100, 100], [300, 300, 301, 301]])
    expected = [[8100 / 11900, 1, 0], [0, 0, 0]]
    assert pairwise_iou(a, b).tolist() == [pytest.approx(row, abs=1e-6) for row in expected]
    assert pairwise_iou(a.half(), b.half()).dtype == torch.float32
    assert pairwise_iou(a[:0], b).shape == (0, 3) and pairwise_iou(a, b[:0]).shape == (2, 0)
