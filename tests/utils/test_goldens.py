"""Reference numbers at their stated tolerances, as far as the tests of each part do not check them.

Architectures, the other forward outputs, loss, schedule, EMA, optimizer groups, AP and the trajectory are compared in
test_yolo, test_loss, test_schedule, test_ema, test_optim, test_metrics and test_trajectory.
"""

import json

import numpy as np
import pytest
import torch
import yaml
from small_models import FORWARD, MODELS, fill, image, largest_difference

import train
from models.yolo import DetectionModel, find_cfg
from utils.config import Hyperparameters
from utils.images.letterbox import letterbox
from utils.loss import DetectionLoss, scale_gains
from utils.nms import non_max_suppression
from utils.pixel_format import GREY

# Forward outputs of larger models; those of FORWARD are compared in test_yolo.
LARGER = ["yolov5m", "yolov5l", "yolov5-p6", "yolov5-panet", "yolov5s6", "yolov5m6"]


@pytest.fixture(scope="module")
def golden(golden_folder):
    """Return {name: content} of the reference files that come with the tests."""
    return {name: np.load(golden_folder / f"{name}.npz") for name in ("forward", "letterbox")}


@pytest.mark.parametrize("name", LARGER)
def test_forward_of_larger_models(name, golden):
    model = DetectionModel(name).eval()
    fill(model)
    with torch.inference_mode():
        decoded, raw = model(image(1, 128))
    assert largest_difference(decoded[0, ::7], golden["forward"][f"{name}.eval"]) < 1e-3
    last = golden["forward"][f"{name}.raw_last"]
    assert largest_difference(raw[-1].flatten()[: len(last)], last) < 1e-3


def test_every_forward_output_is_compared(golden):
    assert {key.split(".")[0] for key in golden["forward"]} == {*FORWARD, *LARGER}


def test_nms_has_the_same_rows_in_the_same_order(reference):
    content = np.load(reference / "golden" / "nms.npz")
    for case in {key.split(".")[0] for key in content}:
        settings = json.loads(str(content[f"{case}.kw"]))
        found = non_max_suppression(torch.tensor(content[f"{case}.in"]).float(), **settings)
        for number, rows in enumerate(found):
            wanted = content[f"{case}.out{number}"]
            assert rows.shape == wanted.shape, case
            np.testing.assert_allclose(rows.numpy(), wanted, rtol=0, atol=1e-4, err_msg=case)


def test_letterbox_table_is_exact(golden):
    """Compare every column. For an odd margin the table has half a pixel, our pad the whole pixel of the image."""
    columns = golden["letterbox"]["columns"].tolist()
    for row in golden["letterbox"]["rows"]:
        want = dict(zip(columns, row.tolist()))
        shape = int(want["h"]), int(want["w"])
        boxed, box = letterbox(
            np.zeros((*shape, 3), np.uint8),
            (int(want["new_h"]), int(want["new_w"])),
            auto=bool(want["auto"]),
            scaleup=bool(want["scaleup"]),
        )
        inner = [round(gain * side) for gain, side in zip(box.gain, shape)]
        assert boxed.shape[:2] == (want["out_h"], want["out_w"])
        assert inner == [round(want["ratio_h"] * shape[0]), round(want["ratio_w"] * shape[1])]
        margins = [(outer - side) / 2 for outer, side in zip(boxed.shape, inner)]
        assert margins == [want["pad_h"], want["pad_w"]]
        assert box.pad == tuple(int(margin) for margin in margins)
        assert (boxed == GREY).all(2).sum() == want["pad_pixels"]
        # The side that fits exactly has exactly the table's ratio.
        fits = [side for side in (0, 1) if inner[side] == (int(want["new_h"]), int(want["new_w"]))[side]]
        assert all(box.gain[side] == pytest.approx((want["ratio_h"], want["ratio_w"])[side], abs=1e-9) for side in fits)


# ---- every architecture learns


@pytest.mark.parametrize("name", ["yolov5n.pt", "yolov5n_v6.0.pt"])
def test_published_weights_start_a_training_of_other_classes(name, reference, capsys):
    weights = reference / "weights" / name
    if not weights.is_file():
        pytest.skip(f"{weights} is absent")
    start = train.resolve_initial_weights(str(weights), "", typed=True)
    model = train.build_model(weights=start.weights, cfg=start.cfg, num_classes=3)
    assert "Transferred 343/349 tensors" in capsys.readouterr().out  # all but weight and bias of the head's 3 levels
    assert [level.shape[-1] for level in model.train()(image(1, 64))] == [8, 8, 8]


@pytest.mark.parametrize("name", MODELS)
def test_one_training_step(name):
    """Each parameter has a finite gradient, and a step lowers the loss as it says. The models are an eighth as wide.

    The deepest level has 2 x 2 cells of 2 images: batch norm of two nearly equal values alone would multiply rounding
    errors by thousands. A step of length 1e-4 lowers the loss by step x norm to first order. Curvature and detached
    objectness targets take at most half of that.
    """
    torch.manual_seed(0)
    model = DetectionModel(
        yaml.safe_load(find_cfg(name).read_text()) | {"width_multiple": 0.125, "depth_multiple": 0.1, "nc": 3}
    ).train()
    side, step = max(128, 2 * int(model.stride.max())), 1e-4
    loss, images = loss_of(model), image(2, side)
    targets = torch.tensor([[0, 0, 0.5, 0.5, 0.1, 0.1], [0, 1, 0.3, 0.4, 0.3, 0.4], [1, 2, 0.6, 0.5, 0.7, 0.8]])
    targets[:, 4:] *= 128 / side  # of one size in pixels, that of the anchors
    before, _ = loss(model(images), targets)
    before.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    with torch.no_grad():
        norm = sum(gradient.square().sum() for gradient in gradients).sqrt()
        for parameter, gradient in zip(model.parameters(), gradients):
            parameter -= step * gradient / norm
        after, _ = loss(model(images), targets)
    assert before - after > 0.5 * step * norm


def loss_of(model: DetectionModel) -> DetectionLoss:
    gains = scale_gains(Hyperparameters(), model.head.num_levels, model.num_classes, 128)
    return DetectionLoss(model.head.anchors, model.stride, model.num_classes, gains)
