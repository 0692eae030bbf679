"""Box formats and the IoU family, against published values and against a reference that counts in plain Python."""

import math

import numpy as np
import pytest
import torch

from utils.boxes import ciou, clip_xyxy, diou, giou, iou, pairwise_iou, xywh_to_xyxy, xyxy_to_xywh

FAMILY = [  # box a, box b (centre x, y, width, height), IoU, GIoU, DIoU, CIoU
    ((0, 0, 2, 2), (0, 0, 2, 2), 1.0, 1.0, 1.0, 1.0),  # the same box
    ((1, 1, 2, 4), (0, 0, 2, 2), 0.2, 0.033333, 0.12, 0.117909),  # another shape
    ((0, 0, 1, 1), (3, 3, 1, 1), 0.0, -0.875, -0.5625, -0.5625),  # apart
    ((5, 5, 1, 3), (5.5, 5, 3, 1), 0.2, -0.244444, 0.186111, 0.080365),  # crossed
    ((0.3, 0.2, 1.5, 0.7), (0.5, 0.1, 1.2, 1.1), 0.514377, 0.432265, 0.500536, 0.497809),
]


def reference_ciou(a, b):
    """Complete IoU of two xywh boxes in double precision, from the formulas, without arrays."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    across = max(0.0, min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2))
    down = max(0.0, min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2))
    shared = across * down
    plain = shared / (aw * ah + bw * bh - shared)
    hull_w = max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)
    hull_h = max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    v = 4 / math.pi**2 * (math.atan(aw / ah) - math.atan(bw / bh)) ** 2
    alpha = v / (1 - plain + v) if v else 0.0
    return plain - ((ax - bx) ** 2 + (ay - by) ** 2) / (hull_w**2 + hull_h**2) - alpha * v


@pytest.mark.parametrize("row", FAMILY)
def test_iou_family(row):
    a, b, *expected = row
    a, b = torch.tensor([a], dtype=torch.float32), torch.tensor([b], dtype=torch.float32)
    got = [measure(a, b).item() for measure in (iou, giou, diou, ciou)]
    assert got == pytest.approx(expected, abs=2e-6)


def test_ciou_agrees_with_the_reference():
    rng = np.random.default_rng(0)
    a, b = np.concatenate((rng.uniform(-2, 2, (2, 200, 2)), rng.uniform(0.2, 3, (2, 200, 2))), -1)
    got = ciou(torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32))
    assert got.numpy() == pytest.approx(np.array([reference_ciou(*pair) for pair in zip(a, b)]), abs=1e-5)


def test_ciou_weight_of_the_aspect_term_passes_no_gradient():
    a = torch.tensor([[0.3, 0.2, 1.5, 0.7]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[0.5, 0.1, 1.2, 1.1]], dtype=torch.float64)
    v0 = 4 / math.pi**2 * (math.atan(1.2 / 1.1) - math.atan(1.5 / 0.7)) ** 2
    alpha = v0 / (v0 - iou(a, b).item() + 1)

    def with_fixed_weight(box):
        v = 4 / math.pi**2 * (math.atan(1.2 / 1.1) - torch.atan(box[:, 2] / box[:, 3])) ** 2
        return diou(box, b) - alpha * v

    expected = torch.autograd.grad(with_fixed_weight(a).sum(), a)[0]
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


@pytest.mark.parametrize("kind", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_clip(kind):
    boxes = kind([[-5.0, 10.0, 700.0, 650.0], [1.0, -2.0, 3.0, -1.0]])
    assert clip_xyxy(boxes, 480, 640).tolist() == [[0, 10, 640, 480], [1, 0, 3, 0]]
    assert boxes[0, 0] == -5  # the input is left alone
    assert clip_xyxy(boxes[:0], 480, 640).shape == (0, 4)


def test_pairwise_iou():
    a = torch.tensor([[0, 0, 100, 100], [200, 200, 260, 260]])  # integers are cast
    b = torch.tensor([[10, 10, 110, 110], [0, 0, 100, 100], [300, 300, 301, 301]])
    expected = [[8100 / 11900, 1, 0], [0, 0, 0]]
    assert pairwise_iou(a, b).tolist() == [pytest.approx(row, abs=1e-6) for row in expected]
    assert pairwise_iou(a.half(), b.half()).dtype == torch.float32
    assert pairwise_iou(a[:0], b).shape == (0, 3) and pairwise_iou(a, b[:0]).shape == (2, 0)
