"""Keys of a hyperparameter file: each does what its name says, and nothing else."""

from dataclasses import fields
from types import SimpleNamespace
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from sizes_by_epoch import sizes_by_epoch

import train
from models.setup import carry_head_over
from models.yolo import DetectionModel
from utils import autoanchor
from utils.config import Hyperparameters, TrainOptions
from utils.datasets.labels import load_index
from utils.distributed import Distributed
from utils.errors import UserError
from utils.images.augment import AugmentSettings, multiply_hsv, sample_color_flip
from utils.loading.loader import LoadSettings, make_loader
from utils.loss import DetectionLoss, scale_gains
from utils.optim import set_rates
from utils.schedule import Schedule
from utils.training.loaders import build_loaders
from utils.training.run import Run
from utils.training.startup import checks_anchors
from utils.training.state import make_ema, make_optimizer

SIDE, MIDDLE = 128, 64
BOX = (76, 88, 108, 104)  # x1, y1, x2, y2 of the red marker; its centre is 28 right of and 32 below the middle
CENTRE = np.array([92.0, 96.0])
TARGETS = torch.tensor([[0, 1, 0.4, 0.5, 0.3, 0.2], [1, 0, 0.6, 0.6, 0.5, 0.5], [1, 1, 0.2, 0.3, 0.1, 0.1]])
STILL = {
    entry.name: 0.0
    for entry in fields(Hyperparameters)
    if entry.name
    in ("hsv_h hsv_s hsv_v degrees translate scale shear perspective flipud fliplr mosaic mixup copy_paste".split())
}


# ---- schedule and optimizer


def rates(**changes):
    """Return rates over 10 epochs of 100 steps: of the first iteration, the end of warm-up, epoch 5 and the last."""
    plan = Schedule(Hyperparameters().to_dict() | changes, 10, 100, 16)
    return [plan.at(iteration) for iteration in (0, 99, 550, 999)]


def check_lr0():
    assert rates(lr0=0.02)[2].lr_weight == pytest.approx(2 * rates(lr0=0.01)[2].lr_weight)
    assert rates(lr0=0.02)[0].lr_bias == rates(lr0=0.01)[0].lr_bias  # another key sets the start of warm-up


def check_lrf():
    assert [row.lr_weight for row in rates(lrf=1.0)[2:]] == [0.01, 0.01]
    assert rates(lrf=0.1)[3].lr_weight == pytest.approx(0.01 * (0.1 + 0.9 * 0.1))  # epoch 9 of 10


def check_momentum():
    assert [row.momentum for row in rates(momentum=0.5)] == pytest.approx([0.8, 0.8 - 0.3 * 99 / 300, 0.5, 0.5])
    betas = (0.5, 0.999)
    for name, key, value in (("SGD", "momentum", 0.5), ("Adam", "betas", betas), ("AdamW", "betas", betas)):
        groups = optimizer(momentum=0.5, name=name).param_groups
        assert all(group[key] == value for group in groups)


def check_weight_decay():
    groups = {group["name"]: group["weight_decay"] for group in optimizer(weight_decay=0.01).param_groups}
    assert groups == {"bias": 0.0, "weight": pytest.approx(0.01), "norm": 0.0}


def check_warmup_epochs():
    assert rates(warmup_epochs=0)[0] == (0.01, 0.01, 0.01, 0.937, 4)
    assert rates(warmup_epochs=1)[1].lr_weight == pytest.approx(0.01 * 0.99)
    assert rates(warmup_epochs=2)[1].lr_weight == pytest.approx(0.01 * 99 / 200)


def check_warmup_momentum():
    found = [row.momentum for row in rates(warmup_momentum=0.3)]
    assert found == pytest.approx([0.3, 0.3 + 0.637 * 0.33, 0.937, 0.937])


def check_warmup_bias_lr():
    first, _, middle, _ = rates(warmup_bias_lr=0.4)
    assert (first.lr_bias, first.lr_weight, first.lr_norm) == (0.4, 0.0, 0.0)
    assert middle == rates()[2]


def kernel_group(**changes) -> dict:
    """Return the group that Muon orthogonalises, at the rates of epoch 5."""
    found = optimizer(name="Muon", **changes)
    set_rates(found, rates(**changes)[2])
    return found.param_groups[-1]


def check_muon_lr():
    usual, twice = kernel_group(), kernel_group(muon_lr=0.04)
    assert usual["lr"] == pytest.approx(2 * rates()[2].lr_weight) and twice["lr"] == pytest.approx(2 * usual["lr"])
    assert kernel_group(lr0=0.001)["lr"] == pytest.approx(usual["lr"])  # another key sets the rate of the others


def check_muon_momentum():
    assert kernel_group()["muon_momentum"] == pytest.approx(0.937)
    assert kernel_group(muon_momentum=0.8)["muon_momentum"] == pytest.approx(0.8)
    assert kernel_group(momentum=0.5)["muon_momentum"] == pytest.approx(0.937)


def check_muon_decay():
    groups = optimizer(name="Muon", muon_decay=0.05).param_groups
    assert [group["weight_decay"] for group in groups] == pytest.approx([0, 5e-4, 0, 0.05])


def check_lr_body():
    for name in ("SGD", "AdamW", "Muon"):
        plain, slow = (body_rates(name, "w.pt", lr_body=value) for value in (1.0, 0.1))
        head = {key for key in plain if key.startswith("model.3.")}
        assert slow == {key: pytest.approx(rate * (1 if key in head else 0.1)) for key, rate in plain.items()}
        assert head and len(head) < len(plain) and body_rates(name, "", lr_body=0.1) == plain


def body_rates(name: str, weights: str, **changes) -> dict[str, float]:
    """Return the learning rate of each parameter in epoch 5 of a run from `weights`."""
    options = TrainOptions(cfg="yolov5n.yaml", weights=weights, optimizer=name, nbs=64)
    found = make_optimizer(TINY_MODEL, options, Hyperparameters(**changes))
    set_rates(found, rates()[2])
    by_id = {id(entry): group["lr"] for group in found.param_groups for entry in group["params"]}
    assert len(by_id) == sum(len(group["params"]) for group in found.param_groups)
    return {key: by_id[id(entry)] for key, entry in TINY_MODEL.named_parameters()}


def check_ema_decay():
    assert make_ema(TINY_MODEL, Hyperparameters(ema_decay=0.5)).decay_at(10**9) == 0.5
    assert make_ema(TINY_MODEL, Hyperparameters()).decay_at(10**9) == 0.9999


def check_ema_tau():
    found = [make_ema(TINY_MODEL, Hyperparameters(ema_tau=tau)).decay_at(100) for tau in (100.0, 2000.0)]
    assert found == pytest.approx([0.9999 * 0.6321206, 0.9999 * 0.0487706])


def check_close_mosaic():
    """Read epochs 0 … 9 of the training loader of a run of 10 epochs."""
    plain = trained_images(10)
    for value, closed in ((0.0, []), (0.3, [7, 8, 9]), (4.0, [6, 7, 8, 9])):
        found = trained_images(10, mosaic=1.0, mixup=0.5, close_mosaic=value)
        assert [k for k in range(10) if np.array_equal(found[k], plain[k])] == closed


def trained_images(epochs: int, **changes) -> list[np.ndarray]:
    """Return the image of each epoch of a run, without augmentation but `changes`."""
    setup = SimpleNamespace(
        options=TrainOptions(imgsz=SIDE, batch_size=1, epochs=epochs, workers=0, cfg="tiny.yaml"),
        hyp=Hyperparameters(**(STILL | changes)),
        data=SimpleNamespace(train=image.index, val=image.index),
        model=SimpleNamespace(size_multiple=32),
    )
    loader, _ = build_loaders(setup, Distributed.join())
    found = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        found.append(next(iter(loader)).images[0].numpy().copy())
    return found


def check_size_start():
    assert sizes() == [128] * 10
    assert sizes(size_start=0.5) == [64, 64, 64, 64, 96, 96, 96, 128, 128, 128]


def check_size_epochs():
    assert sizes(size_start=0.5, size_epochs=0.2) == [64, 96, *[128] * 8]
    assert sizes(size_epochs=0.2) == [128] * 10


def check_cls_rise():
    assert class_losses() == pytest.approx([1.0] * 5)
    assert class_losses(cls_rise=5.0) == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0])


def class_losses(**changes) -> list[float]:
    """Return the class loss in each of five epochs of a run, beside that of the first one."""
    hyp = Hyperparameters(**changes)
    loss = DetectionLoss(torch.tensor([[[2.0, 2.0]]]), torch.tensor([8.0]), 2, scale_gains(hyp, 1, 2, 64))
    run = SimpleNamespace(hyp=hyp, loss=loss, options=TrainOptions(epochs=5), train_mode=lambda: None)
    predictions, targets = [torch.zeros(1, 1, 8, 8, 7)], torch.tensor([[0, 1, 0.5, 0.5, 0.2, 0.2]])
    found = []
    for epoch in range(5):
        run.progress = SimpleNamespace(epoch=epoch)
        Run.begin_epoch(run)
        found.append(float(loss(predictions, targets)[1].cls))
    return [value / found[0] for value in found]


def sizes(**changes) -> list[int]:
    """Return the size of the images of each of ten epochs of a run at 128 pixels."""
    return [width for _, width in sizes_by_epoch((128, 128), 10, Hyperparameters(**changes))]


def test_muon_needs_a_rate_to_follow():
    with pytest.raises(UserError, match="lr0: 0: --optimizer Muon follows its schedule"):
        optimizer(name="Muon", lr0=0.0)


def optimizer(name: str = "SGD", **changes) -> torch.optim.Optimizer:
    options = TrainOptions(cfg="yolov5n.yaml", optimizer=name, nbs=64)
    return train.make_optimizer(TINY_MODEL, options, Hyperparameters(**changes))


# ---- loss and anchors

# a model of 2 classes and 3 levels that takes no time
TINY_MODEL = DetectionModel({
    "nc": 2, "depth_multiple": 0.33, "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]],
    "backbone": [[-1, 1, "Conv", [32, 3, 8]], [-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [32, 3, 2]]],
    "head": [[[0, 1, 2], 1, "Detect", ["nc", "anchors"]]],
})  # fmt: skip


def losses(**changes) -> dict[str, float]:
    """Return box, objectness and class loss of fixed predictions for two images of 128 pixels."""
    options, hyp = TrainOptions(cfg="yolov5n.yaml", imgsz=128), Hyperparameters(**changes)
    loss = train.build_loss(TINY_MODEL, options, hyp, Distributed(0, 1, torch.device("cpu")))
    rng = torch.Generator().manual_seed(0)
    predictions = [torch.randn(2, 3, side, side, 7, generator=rng) for side in (16, 8, 4)]
    return loss(predictions, TARGETS)[1]._asdict() | {"rows": float(loss.sums(predictions, TARGETS).rows.sum())}


def assert_only(key: str, value: float, changed: dict[str, float]):
    """Assert that `key` set to `value` multiplies the losses in `changed` by these factors, and no others."""
    before, after = losses(), losses(**{key: value})
    for part in before:
        assert float(after[part]) == pytest.approx(changed.get(part, 1) * float(before[part]), rel=1e-5), part


def check_box():
    assert_only("box", 0.15, {"box": 3})


def check_obj():
    assert_only("obj", 0.5, {"obj": 0.5})


def check_cls():
    assert_only("cls", 2.0, {"cls": 4})


def check_cls_pw():
    before, after = losses(), losses(cls_pw=3.0)
    assert 1 < after["cls"] / before["cls"] < 3 and (after["box"], after["obj"]) == (before["box"], before["obj"])


def check_obj_pw():
    before, after = losses(), losses(obj_pw=3.0)
    assert 1 < after["obj"] / before["obj"] < 3 and (after["box"], after["cls"]) == (before["box"], before["cls"])


def check_fl_gamma():
    before, after = losses(), losses(fl_gamma=1.5)
    assert after["obj"] < before["obj"] and after["cls"] < before["cls"] and after["box"] == before["box"]


def check_anchor_t():
    counts = [losses(anchor_t=value)["rows"] for value in (1.0, 2.0, 4.0, 50.0)]
    assert counts[0] == 0 and counts == sorted(set(counts))
    rng = np.random.default_rng(0)
    sizes = rng.uniform(5, 60, (200, 2))  # the same key decides whether the anchors fit the data
    kept = [
        autoanchor.check_anchors(
            TINY_MODEL.head.anchors.numpy() * TINY_MODEL.stride.numpy()[:, None, None],
            sizes,
            value,
            np.random.default_rng(0),
        ).recall
        for value in (1.5, 4.0)
    ]
    assert kept[0] < kept[1]


def check_anchors():
    for value, count in ((0.0, 3), (3.412, 3), (5.0, 5)):
        anchors = train.anchors_to_fit(value, noautoanchor=False)
        model = train.build_model(weights=None, cfg="yolov5n.yaml", num_classes=2, anchors=anchors)
        assert model.head.num_anchors == count
        train.fit_anchors(model, np.random.default_rng(0).uniform(5, 60, (200, 2)), 4.0, 0)
        assert model.head.anchors.shape == (3, count, 2) and (model.head.anchors > 0).all()


def check_anchor_fit():
    fitted = [
        checks_anchors(TrainOptions(), Hyperparameters(anchor_fit=value, anchors=count), weights=weights)
        for value, count, weights in ((1, 0, "a.pt"), (0, 0, "a.pt"), (0, 0, ""), (0, 3, "a.pt"))
    ]
    assert fitted == [True, False, True, True]  # from scratch, or in another number, they must be fitted
    assert not checks_anchors(TrainOptions(noautoanchor=True), Hyperparameters(), weights="")


def check_head_rows():
    before = SimpleNamespace(
        state_dict=DetectionModel("yolov5n.yaml", num_classes=4).state_dict(), names=dict(enumerate("abcd"))
    )
    with mock.patch("models.setup.resolve_weights"), mock.patch("models.setup.read_weights", return_value=before):
        for rows, weights, carried in ((0.0, "a.pt", False), (1.0, "", False), (1.0, "a.pt", True)):
            model = DetectionModel("yolov5n.yaml", num_classes=2)
            carry_head_over(model, weights, rows)
            shared = [
                head["model.24.m.0.weight"].unflatten(0, (3, -1))[:, :5]
                for head in (before.state_dict, model.state_dict())
            ]
            assert torch.equal(*shared) == carried


def check_iou_t():
    """Accept the key of old files, which changes neither loss nor schedule nor sample."""
    assert losses(iou_t=0.9) == losses() and rates(iou_t=0.9) == rates()
    assert "iou_t" not in {entry.name for entry in fields(AugmentSettings)}


# ---- augmentation


@pytest.fixture(scope="module", autouse=True)
def image(tmp_path_factory):
    """Write one grey image with a red marker of known outline."""
    folder = tmp_path_factory.mktemp("set") / "images"
    folder.mkdir()
    (folder.parent / "labels").mkdir()
    pixels = np.full((SIDE, SIDE, 3), 114, np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = (40, 40, 200)
    cv2.imwrite(str(folder / "a.png"), pixels)
    x1, y1, x2, y2 = (value / SIDE for value in BOX)
    (folder.parent / "labels" / "a.txt").write_text(f"0 {x1} {y1} {x2} {y1} {x2} {y2} {x1} {y2}\n")
    image.index = load_index(folder, 1, progress=False, cache=False)
    return pixels


def samples(count: int = 60, **hyp) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return images (H, W, RGB) and boxes (n, 4) x1, y1, x2, y2 in pixels, with all augmentation off but `hyp`."""
    loader = make_loader(image.index, imgsz=SIDE, batch_size=1, hyp=STILL | hyp, loading=LoadSettings(workers=0))
    found = []
    for epoch in range(count):
        loader.set_epoch(epoch)
        [batch] = loader
        xy, wh = batch.targets[:, 2:4].numpy() * SIDE, batch.targets[:, 4:6].numpy() * SIDE
        found.append((batch.images[0].permute(1, 2, 0).numpy().astype(float), np.hstack([xy - wh / 2, xy + wh / 2])))
    return found


def marker(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the centre of gravity x, y and the area of the red pixels."""
    redness = (image[..., 0] - image[..., 1]).clip(0) / 160
    rows, columns = np.indices(redness.shape) + 0.5
    return np.array([(redness * columns).sum(), (redness * rows).sum()]) / redness.sum(), float(redness.sum())


def colours(key: str) -> np.ndarray:
    """Return hue, saturation and value (n, 3) in the middle of the marker, in OpenCV's units."""
    x, y = CENTRE.astype(int)
    pixels = np.array([image[y, x] for image, _ in samples(**{key: 0.5})], np.uint8)[None]
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[0].astype(float)


def check_hue_saturation_value(key: str, channel: int):
    found = colours(key)
    original = cv2.cvtColor(np.uint8([[[200, 40, 40]]]), cv2.COLOR_RGB2HSV)[0, 0].astype(float)
    others = [i for i in range(3) if i != channel]
    assert np.abs(found[:, others] - original[others]).max() <= 4  # of rounding to bytes
    ratio = found[:, channel] / original[channel]
    assert 0.49 <= ratio.min() < 0.6 and 1.2 < ratio.max() <= 1.51  # both end at 255


def check_hsv_h():
    """Multiply the hue: red has hue 0 and stays, green shifts."""
    x, y = CENTRE.astype(int)
    assert all(np.abs(image[y, x] - (200, 40, 40)).max() <= 2 for image, _ in samples(10, hsv_h=0.5))
    green = np.full((1, 1, 3), (40, 200, 40), np.uint8)  # hue 60
    rng = np.random.default_rng(0)
    shifted = [multiply_hsv(green, sample_color_flip(AugmentSettings(hsv_h=0.5), rng=rng).factors) for _ in range(60)]
    hues = [int(cv2.cvtColor(image, cv2.COLOR_BGR2HSV)[0, 0, 0]) for image in shifted]
    assert 29 <= min(hues) < 36 and 84 < max(hues) <= 90


def check_hsv_s():
    check_hue_saturation_value("hsv_s", 1)


def check_hsv_v():
    check_hue_saturation_value("hsv_v", 2)


def check_degrees():
    angles = []
    for image, [box] in samples(degrees=40.0):
        (x, y), area = marker(image)
        assert np.hypot(x - MIDDLE, y - MIDDLE) == pytest.approx(np.hypot(28, 32), abs=0.6)
        assert area == pytest.approx(32 * 16, rel=0.05)
        assert (box[:2] - 1 < (x, y)).all() and ((x, y) < box[2:] + 1).all()
        angles.append(np.degrees(np.arctan2(y - MIDDLE, x - MIDDLE) - np.arctan2(32, 28)))
    assert 30 < max(angles) < 41 and -41 < min(angles) < -30


def check_translate():
    shifts = []
    for image, [box] in samples(translate=0.1):
        centre, area = marker(image)
        assert area == pytest.approx(32 * 16, rel=0.05)
        np.testing.assert_allclose((box[:2] + box[2:]) / 2, centre, atol=0.6)
        shifts.append((centre - CENTRE) / SIDE)
    assert np.abs(shifts).max() < 0.105 and (np.abs(shifts).max(0) > 0.08).all()


def check_scale():
    gains = []
    for image, [box] in samples(scale=0.3):
        width, height = box[2:] - box[:2]
        gains.append(width / 32)
        assert height / 16 == pytest.approx(gains[-1], abs=0.01)
        np.testing.assert_allclose(marker(image)[0], MIDDLE + gains[-1] * np.array([28, 32]), atol=0.6)
    assert 0.69 < min(gains) < 0.75 and 1.25 < max(gains) < 1.31


def check_shear():
    tangents = np.array(
        [
            ((x - MIDDLE - 28) / 32, (y - MIDDLE - 32) / 28)
            for (x, y), _ in (marker(image) for image, _ in samples(shear=20.0))
        ]
    )
    limit = np.tan(np.radians(20))
    assert (np.abs(tangents).max(0) < limit + 0.03).all() and (np.abs(tangents).max(0) > 0.7 * limit).all()


def check_perspective():
    depths = []
    for image, [box] in samples(perspective=0.001):
        across, down = ((box[:2] + box[2:]) / 2 - MIDDLE) / (28, 32)
        assert across == pytest.approx(down, abs=0.03)  # along the ray from the middle
        depths.append(1 / across)
        np.testing.assert_allclose((box[:2] + box[2:]) / 2, marker(image)[0], atol=1)
    assert 0.93 < min(depths) < 0.97 and 1.03 < max(depths) < 1.07  # 1 + px x + py y, at the centre 1 ± 0.06


def check_flip(key: str, axis: int):
    [(plain, [box])] = samples(1)
    mirrored = np.flip(plain, axis)
    flipped = [np.array_equal(image, mirrored) for image, _ in samples(**{key: 0.3})]
    unchanged = [np.array_equal(image, plain) for image, _ in samples(**{key: 0.3})]
    assert all(a != b for a, b in zip(flipped, unchanged)) and 8 < sum(flipped) < 30
    [(image, [moved])] = samples(1, **{key: 1.0})
    wanted = box.copy()
    wanted[[1 - axis, 3 - axis]] = SIDE - box[[3 - axis, 1 - axis]]
    assert np.array_equal(image, mirrored)
    np.testing.assert_allclose(moved, wanted, atol=2e-3)


def check_flipud():
    check_flip("flipud", 0)


def check_fliplr():
    check_flip("fliplr", 1)


def check_mosaic():
    [(plain, _)] = samples(1)
    share = [not np.array_equal(image, plain) for image, _ in samples(mosaic=0.3)]
    assert 8 < sum(share) < 30
    counts = [len(boxes) for _, boxes in samples(mosaic=1.0)]
    assert max(counts) > 1 and max(counts) <= 4  # four images, of which a quarter of the canvas is visible


def check_mixup():
    [(plain, boxes)] = samples(1, mixup=1.0)
    assert np.array_equal(plain, samples(1)[0][0]) and len(boxes) == 1  # it mixes mosaics only
    single, mixed = samples(mosaic=1.0), samples(mosaic=1.0, mixup=1.0)
    assert np.mean([len(boxes) for _, boxes in mixed]) > 1.5 * np.mean([len(boxes) for _, boxes in single])
    assert np.median([image[..., 0].max() for image, _ in mixed]) < 190  # half of it is another image
    assert np.median([image[..., 0].max() for image, _ in single]) > 190


def check_copy_paste():
    without, pasted = samples(mosaic=1.0), samples(mosaic=1.0, copy_paste=1.0)
    assert np.mean([len(boxes) for _, boxes in pasted]) > 1.2 * np.mean([len(boxes) for _, boxes in without])
    for image, boxes in pasted:
        for x1, y1, x2, y2 in boxes.round().astype(int):
            inside = image[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1]
            assert inside.size == 0 or (inside[..., 0] - inside[..., 1]).mean() > 100


@pytest.mark.parametrize("key", [entry.name for entry in fields(Hyperparameters)])
def test_key_acts(key):
    globals()[f"check_{key}"]()


def test_without_augmentation_nothing_changes(image):
    [(sample, [box])] = samples(1)
    assert np.array_equal(sample, image[..., ::-1]) and box == pytest.approx(BOX, abs=2e-3)
