"""Target assignment and detection loss against published numbers and by hand.

Logits and images need no file: u(n, t) is a hash in 0...1 of the 1-based position n and an integer t.
"""

import copy
import json

import numpy as np
import pytest
import torch

from utils.loss import DetectionLoss, assign_targets, decode, objectness_target, scale_gains

P5 = torch.tensor(
    [[[10, 13], [16, 30], [33, 23]], [[30, 61], [62, 45], [59, 119]], [[116, 90], [156, 198], [373, 326]]]
)
P6 = torch.tensor(
    [
        [[19, 27], [44, 40], [38, 94]],
        [[96, 68], [86, 152], [180, 137]],
        [[140, 301], [303, 264], [238, 542]],
        [[436, 615], [739, 380], [925, 792]],
    ]
)
TINY = torch.tensor([[[10, 14], [23, 27], [37, 58]], [[81, 82], [135, 169], [344, 319]]])
TARGETS = torch.tensor(
    [
        [0, 0, 0.50, 0.50, 0.30, 0.40],  # centre on a corner of the grid
        [0, 2, 0.26, 0.61, 0.05, 0.09],
        [0, 1, 0.99, 0.03, 0.02, 0.06],
        [1, 1, 0.125, 0.125, 0.50, 0.60],
        [1, 0, 0.71, 0.33, 0.15, 0.10],
        [1, 2, 1.00, 1.00, 0.40, 0.30],  # centre on the far corner of the image
        [1, 2, 0.50, 0.505, 0.31, 0.41],
    ]
)
HYP = dict(box=0.05, obj=1.0, cls=0.5, cls_pw=1.0, obj_pw=1.0, anchor_t=4.0, fl_gamma=0.0, label_smoothing=0.0)
GOLDEN_CASES = ["plain", "smooth", "focal", "weights", "empty", "one_class", "autobalance", "p6"]


def noise(shape, t):
    n = np.arange(1, np.prod(shape) + 1, dtype=np.float64)
    value = np.sin(12.9898 * n + 78.233 * (t + 1)) * 43758.5453
    return torch.tensor((value - np.floor(value)).reshape(shape))


def logits(height, width, strides, num_classes):
    shapes = [(2, 3, height // s, width // s, 5 + num_classes) for s in strides]
    return [(4 * (noise(shape, 100 + i) - 0.5)).float().requires_grad_() for i, shape in enumerate(shapes)]


def make_loss(anchors, strides, num_classes=3, autobalance=False, sum_over_processes=None, **hyp):
    strides = torch.tensor(strides, dtype=torch.float32)
    cells = anchors / strides[:, None, None]
    return DetectionLoss(cells, strides, num_classes, {**HYP, **hyp}, autobalance, sum_over_processes)


def small_case(**kwargs):
    return make_loss(P5, (8, 16, 32), **kwargs), logits(64, 96, (8, 16, 32), kwargs.get("num_classes", 3))


@pytest.mark.parametrize(
    "hyp, total, box, obj, cls",
    [
        ({}, 12.07628, 0.1409046, 4.640695, 1.256542),
        ({"label_smoothing": 0.1}, 12.07096, 0.1409046, 4.640695, 1.253879),
        ({"fl_gamma": 1.5}, 4.896378, 0.1409046, 1.93413, 0.3731546),
        ({"cls_pw": 0.5, "obj_pw": 2.0}, 11.69497, 0.1409046, 4.682809, 1.023773),
        ({"anchor_t": 2.5}, 12.08727, 0.1394376, 4.645267, 1.25893),
    ],
)
def test_published_values(hyp, total, box, obj, cls):
    loss, predictions = small_case(**hyp)
    value, parts = loss(predictions, TARGETS)
    assert [value.item(), *(p.item() for p in parts)] == pytest.approx([total, box, obj, cls], rel=1e-5)
    assert value.shape == () and not any(p.requires_grad for p in parts)


def test_published_gradient():
    loss, predictions = small_case()
    loss(predictions, TARGETS)[0].backward()
    sums = [p.grad.abs().sum().item() for p in predictions]
    assert sums == pytest.approx([4.605163, 1.434076, 0.9901114], rel=1e-5)


def test_no_targets():
    loss, predictions = small_case()
    value, parts = loss(predictions, TARGETS[:0])
    assert [value.item(), *(p.item() for p in parts)] == pytest.approx([9.255936, 0, 4.627968, 0], rel=1e-5)
    value.backward()
    assert predictions[0].grad[..., :4].abs().sum() == 0 and predictions[0].grad[..., 4].abs().sum() > 0


def test_one_class_has_no_class_loss():
    loss, predictions = small_case(num_classes=1)
    targets = TARGETS.clone()
    targets[:, 1] = 0
    value, parts = loss(predictions, targets)
    assert [value.item(), *(p.item() for p in parts)] == pytest.approx([9.888854, 0.1422176, 4.802209, 0], rel=1e-5)


@pytest.mark.parametrize(
    "anchors, strides, size, expected",
    [
        (P6, (8, 16, 32, 64), (128, 128), (12.02906, 0.135056, 4.593093, 1.28638)),  # four levels
        (TINY, (16, 32), (64, 96), (10.26879, 0.09750285, 4.157175, 0.879719)),  # two levels
    ],
)
def test_other_numbers_of_levels(anchors, strides, size, expected):
    value, parts = make_loss(anchors, strides)(logits(*size, strides, 3), TARGETS)
    assert [value.item(), *(p.item() for p in parts)] == pytest.approx(expected, rel=1e-5)


def test_six_levels_are_refused():
    with pytest.raises(ValueError, match="at most 5 levels"):
        make_loss(torch.ones(6, 3, 2), (4, 8, 16, 32, 64, 128))


def test_autobalance_follows_the_objectness_loss():
    loss, predictions = small_case(autobalance=True)
    for total, after in [  # the weights after a call act in the next one
        (12.07628, (3.99963, 1.0, 0.400051)),
        (12.07575, (3.99926, 1.0, 0.400103)),
        (12.07522, (3.998889, 1.0, 0.400154)),
    ]:
        assert loss(predictions, TARGETS)[0].item() == pytest.approx(total, rel=1e-6)
        assert loss.balance.tolist() == pytest.approx(after, abs=1e-6)
    p6 = make_loss(P6, (8, 16, 32, 64), autobalance=True)
    p6(logits(128, 128, (8, 16, 32, 64), 3), TARGETS)
    assert p6.balance.tolist() == pytest.approx((3.999649, 1.0, 0.250076, 0.060105), abs=1e-6)


def assigned(targets=TARGETS):
    strides = torch.tensor([8.0, 16.0, 32.0])
    return assign_targets(targets, P5 / strides[:, None, None], [(8, 12), (4, 6), (2, 3)], threshold=4.0)


def test_assignment_of_published_targets():
    levels = assigned()
    assert [len(level.image) for level in levels] == [49, 30, 3]
    got = list(zip(*(part.tolist() for part in levels[0][:5])))
    boxes = levels[0].xywh
    for i, (cell, box) in enumerate(
        [
            ((0, 0, 4, 6, 0), (0, 0, 3.6, 3.2)),
            ((0, 0, 4, 3, 2), (0.12, 0.88, 0.6, 0.72)),
            ((1, 0, 2, 8, 0), (0.52, 0.64, 1.8, 0.8)),
            ((1, 0, 7, 11, 2), (1.0, 1.0, 4.8, 2.4)),  # clamped into the last cell
            ((1, 0, 4, 6, 2), (0, 0.04, 3.72, 3.28)),
        ]
    ):
        assert got[i] == cell and boxes[i].tolist() == pytest.approx(box, abs=1e-5)
    assert got.count((1, 0, 7, 11, 2)) == 3 and got.count((0, 0, 4, 6, 0)) == 3  # on borders the own cell repeats
    coarse = list(zip(*(part.tolist() for part in levels[2][:5])))
    assert coarse == [(1, 0, 0, 0, 1), (1, 0, 1, 1, 2), (1, 0, 0, 1, 2)]
    expected = [[0.375, 0.25, 1.5, 1.2], [0.5, 0.01, 0.93, 0.82], [0.5, 1.01, 0.93, 0.82]]
    assert levels[2].xywh.numpy() == pytest.approx(np.array(expected), abs=1e-5)


def brute_force_assignment(targets, anchors, height, width, threshold):
    """Return (image, anchor, row, column, class, x, y, w, h) of one level in the promised order, by loops."""
    rows = []
    for dx, dy in ((0, 0), (-0.5, 0), (0, -0.5), (0.5, 0), (0, 0.5)):
        for a, (aw, ah) in enumerate(anchors.tolist()):
            for image, cls, x, y, w, h in targets.tolist():
                gx, gy, gw, gh = (np.float32(v) * np.float32(n) for v, n in zip((x, y, w, h), (width, height) * 2))
                if max(gw / aw, aw / gw, gh / ah, ah / gh) >= threshold:
                    continue
                near = {(0, 0): True, (-0.5, 0): gx % 1 < 0.5 and gx > 1, (0, -0.5): gy % 1 < 0.5 and gy > 1}
                near[0.5, 0] = (width - gx) % 1 < 0.5 and width - gx > 1
                near[0, 0.5] = (height - gy) % 1 < 0.5 and height - gy > 1
                if near[dx, dy]:
                    column, row = min(max(int(gx + dx), 0), width - 1), min(max(int(gy + dy), 0), height - 1)
                    rows.append((image, a, row, column, cls, gx - column, gy - row, gw, gh))
    return np.array(rows)


@pytest.mark.parametrize("seed", range(5))
def test_assignment_agrees_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    targets = np.concatenate((rng.integers(0, 4, (60, 2)), rng.uniform(0, 1, (60, 4))), 1).astype(np.float32)
    targets[:20, 2:4] = rng.integers(0, 17, (20, 2)) / 16  # centres on cell borders and on the image border
    anchors = torch.tensor(rng.uniform(1, 8, (1, 3, 2)), dtype=torch.float32)
    level = assign_targets(torch.tensor(targets), anchors, [(16, 8)], threshold=2.9)[0]
    got = torch.stack([*level[:5], *level.xywh.unbind(1)], 1).numpy()
    assert got == pytest.approx(brute_force_assignment(targets, anchors[0], 16, 8, 2.9), abs=1e-5)
    assert torch.equal(level.anchor_wh, anchors[0][level.anchor])


@pytest.mark.parametrize("targets", [TARGETS[:0], torch.tensor([[0, 0, 0.5, 0.5, 0, 0.1]])], ids=["none", "no width"])
def test_assignment_of_nothing(targets):
    for level in assigned(targets):
        assert [tuple(part.shape) for part in level] == [(0,)] * 5 + [(0, 4), (0, 2)]
        assert level.image.dtype == torch.int64


def test_the_last_row_of_a_cell_sets_the_objectness():
    level = assigned()[0]
    quality = torch.arange(1, 50) / 100
    expected = torch.zeros(2, 3, 8, 12)
    for i in range(49):
        expected[level.image[i], level.anchor[i], level.row[i], level.column[i]] = quality[i]
    assert torch.equal(objectness_target(quality, level, (2, 3, 8, 12)), expected)


def test_decoding():
    boxes = decode(torch.tensor([[0.0, 0.0, 0.0, 0.0, 9.0], [100.0, -100.0, 100.0, -200.0, 9.0]]), torch.ones(2, 2) * 3)
    assert boxes.tolist() == [pytest.approx((0.5, 0.5, 3, 3)), pytest.approx((1.5, -0.5, 12, 0))]


def test_extreme_logits_give_finite_loss_and_gradient():
    for gamma in (0.0, 0.5, 1.5):
        loss, predictions = small_case(fl_gamma=gamma)
        predictions = [(p.detach() * 1e4).requires_grad_() for p in predictions]
        value, _ = loss(predictions, TARGETS)
        value.backward()
        assert value.isfinite() and all(p.grad.isfinite().all() for p in predictions)


def test_float32_whatever_autocast_does():
    loss, predictions = small_case()
    half = [p.detach().bfloat16().requires_grad_() for p in predictions]
    expected = loss([p.float() for p in half], TARGETS)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, parts = loss(half, TARGETS)
    assert value.dtype == torch.float32 and value.item() == expected.item()
    assert all(p.dtype == torch.float32 for p in parts)


@pytest.mark.parametrize("cut", [1, 0], ids=["halves", "all on one"])
def test_processes_add_up_to_the_whole_batch(cut):
    """Two processes that share a batch and sum their counts give the loss and gradient of one process."""
    whole, predictions = small_case()
    expected, expected_parts = whole(predictions, TARGETS)
    expected.backward()
    shards = [slice(0, 1), slice(1, 2)] if cut else [slice(0, 0), slice(0, 2)]
    inputs = [[p.detach()[s].clone().requires_grad_() for p in predictions] for s in shards]
    targets = [TARGETS[(TARGETS[:, 0] >= s.start) & (TARGETS[:, 0] < s.stop)].clone() for s in shards]
    counts = []
    for shard, part in zip(shards, targets):
        part[:, 0] -= shard.start
    for collect in (True, False):  # first the counts of each process, then the loss with their sums
        values = []
        for x, t in zip(inputs, targets):
            add = (lambda c: counts.append(c) or c.clamp(min=1)) if collect else (lambda c: counts[0] + counts[1])
            values.append(make_loss(P5, (8, 16, 32), sum_over_processes=add)(x, t))
    total = values[0][0] + values[1][0]
    total.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    for i in range(3):
        assert (values[0][1][i] + values[1][1][i]).item() == pytest.approx(expected_parts[i].item(), rel=1e-6)
        got = torch.cat([x[i].grad for x in inputs])
        assert got.numpy() == pytest.approx(predictions[i].grad.numpy(), abs=1e-7)


def test_scaling_of_the_gains():
    hyp = {"box": 0.05, "obj": 1.0, "cls": 0.5, "anchor_t": 4.0}
    before = copy.deepcopy(hyp)
    scaled = scale_gains(hyp, 4, 7, 256, label_smoothing=0.1)
    assert scaled["box"] == pytest.approx(0.0375) and scaled["obj"] == pytest.approx(0.12)
    assert scaled["cls"] == pytest.approx(0.0328125) and scaled["label_smoothing"] == 0.1
    assert scaled["anchor_t"] == 4.0 and hyp == before


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden(reference, case):
    golden = np.load(reference / "golden" / "loss.npz")
    hyp = json.loads(str(golden[f"{case}.hyp"]))
    strides = (8, 16, 32, 64)[: hyp["nl"]]
    anchors = P5 if hyp["nl"] == 3 else P6
    loss = make_loss(anchors, strides, hyp["nc"], case == "autobalance", **hyp["scaled"])
    levels = range(hyp["nl"])
    predictions = [torch.tensor(golden[f"{case}.p{i}"]).float().requires_grad_() for i in levels]
    total, parts = loss(predictions, torch.tensor(golden[f"{case}.targets"]))
    total.backward()
    assert total.item() == pytest.approx(golden[f"{case}.loss"].item(), rel=1e-5)
    assert [p.item() for p in parts] == pytest.approx(golden[f"{case}.items"].tolist(), rel=1e-5)
    for i in levels:
        g = predictions[i].grad.double()
        sums = [g.sum().item(), g.abs().sum().item(), g.square().sum().item()]
        assert sums == pytest.approx(golden[f"{case}.gradsum{i}"].tolist(), rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_weights_of_classes_multiply_the_class_loss_of_their_objects(gamma):
    """The weighted sum is that of the classes alone, each times its weight. Other parts stay as they are."""
    rng = torch.Generator().manual_seed(0)
    predictions = [torch.randn(2, 3, side, side, 8, generator=rng) for side in (16, 8, 4)]
    anchors, strides = P5 / torch.tensor([8, 16, 32])[:, None, None], torch.tensor([8.0, 16, 32])

    def sums(targets, weights=None):
        loss = DetectionLoss(anchors, strides, 3, {**HYP, "fl_gamma": gamma}, class_weights=weights)
        return loss.sums(predictions, targets)

    plain, weights = sums(TARGETS), np.array([0.5, 3.0, 2.0])
    weighted = sums(TARGETS, weights)
    alone = torch.stack([sums(TARGETS[TARGETS[:, 1] == cls]).cls for cls in range(3)])  # (3 classes, L)
    torch.testing.assert_close(weighted.cls, (alone * torch.tensor(weights, dtype=torch.float32)[:, None]).sum(0))
    assert not torch.equal(weighted.cls, plain.cls)
    for part in ("box", "obj", "rows", "cells"):
        assert torch.equal(getattr(weighted, part), getattr(plain, part)), part
    torch.testing.assert_close(sums(TARGETS, [1, 1, 1]).cls, plain.cls)
