"""Architectures, blocks, head and their messages, against reference numbers and independent formulas."""

import copy
import io
import json
import math
import zlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import common
from models.architecture import BLOCKS, parse_activation
from models.yolo import DetectionModel, find_cfg
from utils.errors import UserError
from utils.kernels import gather_predictions
from utils.training.ddp import synchronise_batch_norm

P5 = ["yolov5n", "yolov5s", "yolov5m", "yolov5l", "yolov5x"]
HUB = [
    "yolov3",
    "yolov3-spp",
    "yolov3-tiny",
    "yolov5-bifpn",
    "yolov5-fpn",
    "yolov5-p2",
    "yolov5-p34",
    "yolov5-p6",
    "yolov5-p7",
    "yolov5-panet",
    "yolov5n6",
    "yolov5s6",
    "yolov5m6",
    "yolov5l6",
    "yolov5x6",
    "yolov5s-LeakyReLU",
    "yolov5s-ghost",
    "yolov5s-transformer",
]
MODELS = P5 + HUB
FORWARD = [
    "yolov5n",
    "yolov5s",
    "yolov3-tiny",
    "yolov5-bifpn",
    "yolov5-fpn",
    "yolov5-p2",
    "yolov5-p34",
    "yolov5n6",
    "yolov5s-LeakyReLU",
    "yolov5s-ghost",
    "yolov5s-transformer",
]
TINY = {
    "nc": 3,
    "depth_multiple": 0.33,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
    "backbone": [
        [-1, 1, "Conv", [32, 3, 4]],
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 3, "C3", [64]],
        [-1, 1, "Conv", [64, 3, 2]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 1, "C3", [64, False]],
        [[6, 3], 1, "Detect", ["nc", "anchors"]],
    ],
}


@torch.no_grad()
def fill(model: nn.Module, seed: int = 0) -> None:
    """Fill in weights that any machine can reproduce: waves whose phase is a checksum of the entry's name."""
    for name, value in model.state_dict().items():
        if not value.is_floating_point() or name.endswith(".anchors"):
            continue
        phase = (zlib.crc32(name.encode()) + seed) % 10007
        wave = torch.sin(0.7391 * torch.arange(value.numel(), dtype=torch.float64) + phase).reshape(value.shape)
        if name.endswith("running_var"):
            wave = 1 + 0.5 * wave
        elif name.endswith("running_mean") or (value.ndim == 1 and not name.endswith("weight")):
            wave = 0.1 * wave
        elif value.ndim == 1:
            wave = 1 + 0.2 * wave
        else:
            wave = wave * math.sqrt(3 / value[0].numel())
        value.copy_(wave)


def image(count: int, side: int, seed: int = 0) -> Tensor:
    n, c, y, x = torch.meshgrid(
        *(torch.arange(size, dtype=torch.float64) for size in (count, 3, side, side)), indexing="ij"
    )
    return (0.5 + 0.5 * torch.sin(0.05 * x * (c + 1) + 0.03 * y + n + seed % 97)).float()


def tiny_model(**changes) -> DetectionModel:
    model = DetectionModel(copy.deepcopy(TINY) | changes)
    fill(model)
    return model.eval()


def largest_difference(found: Tensor, wanted: np.ndarray) -> float:
    """Return the largest difference, relative to the largest value."""
    assert tuple(found.shape) == wanted.shape
    return float(np.abs(found.numpy() - wanted).max() / np.abs(wanted).max())


@pytest.fixture(scope="module")
def forward_golden(golden_folder):
    return np.load(golden_folder / "forward.npz")


@pytest.fixture(scope="module")
def architecture_golden(golden_folder):
    return json.loads((golden_folder / "architecture.json").read_text())


# ---- architectures


def test_every_reference_architecture_is_here(architecture_golden):
    assert sorted(MODELS) == sorted(architecture_golden)


@pytest.mark.parametrize("name", MODELS)
def test_architecture(name, architecture_golden):
    want, model = architecture_golden[name], DetectionModel(name)
    shapes = [[key, list(value.shape)] for key, value in model.state_dict().items()]
    assert sum(parameter.numel() for parameter in model.parameters()) == want["parameters"]
    assert model.stride.tolist() == want["stride"]
    assert (model.head.anchors * model.stride.reshape(-1, 1, 1)).tolist() == want["anchors"]
    assert len(model.model) == want["modules"]
    if "state_dict" in want:
        assert shapes == [list(item) for item in want["state_dict"].items()]
    else:
        assert zlib.crc32(json.dumps(shapes).encode()) == want["state_dict_crc32"]


@pytest.mark.parametrize("name", FORWARD)
def test_forward(name, forward_golden):
    model = DetectionModel(name).eval()
    fill(model)
    with torch.inference_mode():
        decoded, raw = model(image(1, 128))
    assert largest_difference(decoded[0, ::7], forward_golden[f"{name}.eval"]) < 1e-3
    last = forward_golden[f"{name}.raw_last"]
    assert largest_difference(raw[-1].flatten()[: len(last)], last) < 1e-3


def test_fused_and_augmented(forward_golden):
    model = DetectionModel("yolov5n").eval()
    fill(model)
    with torch.inference_mode():
        augmented, second = model(image(1, 192), augment=True)
        assert model.fuse() is model
        fused, _ = model(image(1, 128))
    assert second is None
    assert largest_difference(augmented[0, ::7], forward_golden["yolov5n.augment"]) < 1e-3
    assert largest_difference(fused[0, ::7], forward_golden["yolov5n.fused"]) < 1e-3
    assert not any("bn" in name for name in model.state_dict()) and len(model.state_dict()) == 121
    assert not model.model[0].conv.weight.requires_grad
    assert model.fuse() is model  # a second time changes nothing
    with torch.inference_mode():
        assert torch.equal(model(image(1, 128))[0], fused)


# ---- initial state


def test_initial_batch_norms():
    for part in DetectionModel("yolov5n").modules():
        if isinstance(part, nn.BatchNorm2d):
            assert (part.eps, part.momentum, int(part.num_batches_tracked)) == (1e-3, 0.03, 1)
            assert torch.allclose(part.running_var, torch.tensor(0.9)) and not part.running_mean.any()


def test_initial_biases():
    # classes, class addend; objectness addend by stride
    for count, addend in ((1, 11.0020998), (2, -0.5108356), (80, -4.8802736)):
        model = DetectionModel("yolov5n", num_classes=count)
        for convolution, objectness in zip(model.head.m, (-6.6846117, -5.2983174, -3.9120230)):
            bound = 1 / math.sqrt(convolution.in_channels)
            bias = convolution.bias.detach().reshape(3, 5 + count)
            assert (bias[:, :4].abs() <= bound).all()
            assert ((bias[:, 4] - objectness).abs() <= bound + 1e-5).all()
            assert ((bias[:, 5:] - addend).abs() <= bound + 1e-5).all()


def test_anchors_run_with_the_strides():
    backwards = DetectionModel(TINY | {"anchors": TINY["anchors"][::-1]})
    assert torch.equal(backwards.head.anchors, DetectionModel(TINY).head.anchors)
    assert backwards.stride.tolist() == [8, 16]


def test_overrides():
    cfg = copy.deepcopy(TINY)
    model = DetectionModel(cfg, channels=4, num_classes=7, anchors=2.6)
    assert cfg == TINY, "the caller's mapping stays as it is"
    assert (model.yaml["nc"], model.yaml["anchors"], model.yaml["ch"]) == (7, 3, 4)
    assert model.model[0].conv.in_channels == 4 and model.num_classes == 7
    assert model.names == {number: str(number) for number in range(7)}
    placeholders = torch.tensor([[0, 1], [2, 3], [4, 5]]).expand(2, 3, 2)
    assert torch.equal(model.head.anchors * model.stride.reshape(-1, 1, 1), placeholders.float())
    assert DetectionModel(TINY | {"ch": 1}, channels=3).model[0].conv.in_channels == 1, "the file's ch wins"
    assert DetectionModel(TINY, num_classes=0, anchors=0).yaml == TINY | {"ch": 3}, "0 overrides nothing"
    assert DetectionModel(TINY, anchors=[[1, 2], [30, 40]]).head.anchors.shape == (2, 1, 2)


def test_channel_divisor():
    assert DetectionModel(TINY).model[1].conv.out_channels == 16
    assert DetectionModel(TINY | {"width_multiple": 0.28}).model[1].conv.out_channels == 24  # 17.92 up to 8 * 3
    assert DetectionModel(TINY | {"width_multiple": 0.28, "channel_multiple": 1}).model[1].conv.out_channels == 18


def test_depth_gain_rounds_half_to_even():
    # repeats, gain, layers
    for repeats, gain, layers in ((1, 0.33, 1), (3, 0.33, 1), (5, 0.5, 2), (7, 0.5, 4), (2, 0.1, 1)):
        rows = copy.deepcopy(TINY["backbone"])
        rows[2][1] = repeats
        assert len(DetectionModel(TINY | {"backbone": rows, "depth_multiple": gain}).model[2].m) == layers


# ---- head


def test_decoding_is_the_formula():
    model = tiny_model()
    with torch.no_grad():
        decoded, raw = model(image(2, 64))
    stride, anchors = model.stride.tolist(), (model.head.anchors * model.stride.reshape(-1, 1, 1)).tolist()
    rows = []
    for level, logits in enumerate(raw):
        _, A, H, W, _ = logits.shape
        for a in range(A):
            for r in range(H):
                for c in range(W):
                    s = logits[:, a, r, c].double().sigmoid()
                    x, y = (2 * s[:, 0] - 0.5 + c) * stride[level], (2 * s[:, 1] - 0.5 + r) * stride[level]
                    w, h = ((2 * s[:, 2 + side]) ** 2 * anchors[level][a][side] for side in (0, 1))
                    rows.append(torch.cat([torch.stack([x, y, w, h], 1), s[:, 4:]], 1))
    assert torch.allclose(decoded.double(), torch.stack(rows, 1), rtol=1e-5, atol=1e-4)


def test_training_output_is_raw():
    raw = tiny_model().train()(image(2, 64))
    assert [tuple(level.shape) for level in raw] == [(2, 2, 8, 8, 8), (2, 2, 4, 4, 8)]


@pytest.mark.usefixtures("fast_kernels")
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_neither_the_raw_output_nor_its_gradient_is_copied(layout):
    """Copies of the gradient took a tenth of a training step on a CPU."""
    model = tiny_model().train().to(memory_format=layout)
    outputs, gradients = [], []
    for convolution in model.head.m:
        convolution.register_forward_hook(lambda module, args, output: outputs.append(output))
        convolution.register_full_backward_hook(lambda module, inputs, of_outputs: gradients.append(of_outputs[0]))
    raw = model(image(2, 64).to(memory_format=layout))
    assert [level.data_ptr() for level in raw] == [output.data_ptr() for output in outputs]
    cells = [torch.tensor([k]) for k in (1, 1, 2, 3)]  # image, anchor, row, column
    rows, objectness = zip(*(gather_predictions(level, *cells) for level in raw))
    (sum((row * torch.arange(8.0)).sum() for row in rows) + sum(part.sum() for part in objectness)).backward()
    assert len(gradients) == 2
    for gradient in gradients:
        assert gradient.is_contiguous(memory_format=layout)
        expected = torch.zeros_like(gradient)
        expected[:, 4::8] = 1
        expected[1, 8:, 2, 3] += torch.arange(8.0)
        assert torch.equal(gradient, expected)


def test_a_traced_model_takes_other_sizes():
    model = tiny_model().eval()
    torch.jit.save(torch.jit.trace(model, image(1, 64), strict=False, check_trace=False), io.BytesIO())
    with torch.no_grad():
        traced = torch.jit.trace(model, image(1, 64), strict=False)
        assert torch.equal(traced(image(2, 96))[0], model(image(2, 96))[0])


def test_concat_along_another_dimension():
    maps = [torch.rand(1, 2, 3, width).requires_grad_() for width in (1, 4)]
    assert torch.equal(common.Concat(3)(maps), torch.cat(maps, 3))


@torch.no_grad()
def test_decoding_stays_float32():
    model, x = tiny_model(), image(1, 64)
    exact, raw = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded, half_raw = model(x)
    assert half_raw[0].dtype == torch.bfloat16 and decoded.dtype == torch.float32
    # Decoding the rounded logits in float32 gives the same result: nothing else was rounded.
    assert torch.allclose(decoded, model.head.decode([level.float() for level in half_raw]))
    half = copy.deepcopy(model).half()
    assert half.head.decode([level.half() for level in raw]).dtype == torch.float32
    assert torch.allclose(half.head.decode([level.half() for level in raw]), exact, rtol=1e-2, atol=1e-1)
    assert torch.allclose(half.float().head.decode(raw), exact, rtol=1e-3, atol=1e-2)


@torch.no_grad()
def test_channels_last_gives_the_same():
    model, x = tiny_model(), image(2, 64)
    plain, raw = model(x)
    decoded, other = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert torch.allclose(decoded, plain, atol=1e-4) and torch.allclose(raw[0], other[0], atol=1e-5)
    model.fuse()
    assert torch.allclose(model(x)[0], plain, atol=1e-3)


def test_grids_follow_the_size_and_serve_gradients():
    model = tiny_model()
    with torch.inference_mode():
        first, _ = model(image(1, 64))
        assert model(image(1, 96)[:, :, :64])[0].shape[1] == 2 * (8 * 12 + 4 * 6)
    x = image(1, 64).requires_grad_()
    decoded, _ = model(x)  # with grids made under inference_mode, which must not be saved for the backward pass
    decoded[..., :4].sum().backward()
    assert x.grad.abs().sum() > 0 and torch.allclose(decoded, first, atol=1e-4)
    with torch.inference_mode():
        for width in range(32, 32 + 16 * 20, 16):
            model(torch.zeros(1, 3, 32, width))
    assert len(model.head._grids) <= 16


def test_stride_moves_with_the_model_but_is_not_in_the_state():
    model = tiny_model()
    assert "stride" not in " ".join(model.state_dict()) and model.double().stride.dtype == torch.float64
    assert copy.deepcopy(model).stride.tolist() == [8, 16]


def test_augmenting_needs_evaluation_mode():
    with pytest.raises(ValueError, match="eval"):
        tiny_model().train()(image(1, 64), augment=True)


def test_augmented_boxes_are_in_pixels_of_the_image():
    """Boxes of raw zeros are at the cell centres. Those of mirrored and scaled passes are there too."""
    model = tiny_model()
    with torch.no_grad():
        for convolution in model.head.m:
            convolution.weight.zero_()
            convolution.bias.zero_()
        boxes = model(image(1, 64), augment=True)[0][0]
    # Rows: 64 px without the 32 coarse ones; 53 px padded to 64; 42 px padded to 48, without the 72 fine ones.
    plain, mirrored, small = boxes.split([128, 128 + 32, 18])
    assert torch.allclose(plain[:8, 0], torch.arange(8) * 8 + 4.0)
    assert torch.allclose(mirrored[:8, 0], 64 - (torch.arange(8) * 8 + 4.0) / 0.83)
    assert torch.allclose(small[:3, 0], (torch.arange(3) * 16 + 8.0) / 0.67)
    assert torch.allclose(mirrored[0, 2:4], torch.tensor([10, 13]) / 0.83)


# ---- activation


def test_activation_belongs_to_one_model():
    leaky = DetectionModel(TINY | {"activation": "nn.LeakyReLU(0.1)"})
    plain = DetectionModel(TINY)
    assert {type(part.act) for part in leaky.modules() if isinstance(part, common.Conv)} == {nn.LeakyReLU}
    assert {type(part.act) for part in plain.modules() if isinstance(part, common.Conv)} == {common.SiLU}
    assert leaky.model[0].act.negative_slope == 0.1 and leaky.model[0].act.inplace
    off = DetectionModel(
        TINY
        | {
            "backbone": [[-1, 1, "Conv", [32, 3, 4, "None", 1, 1, False]], *TINY["backbone"][1:]],
            "activation": "nn.ReLU()",
        }
    )
    assert isinstance(off.model[0].act, nn.Identity) and isinstance(off.model[1].act, nn.ReLU)


# text, result
@pytest.mark.usefixtures("fast_kernels")
def test_silu_overwrites_its_input_only_without_gradients():
    silu, x = common.SiLU(), torch.linspace(-3, 3, 7)
    expected = x * x.sigmoid()
    leaf = x.clone().requires_grad_()
    kept = leaf * 1
    silu(kept).sum().backward()
    assert torch.equal(kept, x) and leaf.grad is not None
    with torch.no_grad():
        result = silu(x)
    torch.testing.assert_close(result, expected)
    assert result.data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    "text, kind",
    [
        ("nn.SiLU()", common.SiLU),
        ("nn.SiLU", common.SiLU),
        ("torch.nn.ReLU()", nn.ReLU),
        ("nn.Hardswish()", nn.Hardswish),
        ("nn.Identity()", nn.Identity),
        ("nn.LeakyReLU(negative_slope=0.2)", nn.LeakyReLU),
    ],
)
def test_activation_text(text, kind):
    assert type(parse_activation(text)) is kind


@pytest.mark.parametrize(
    "text",
    [
        "nn.Linear(3, 3)",
        "__import__('os').system('true')",
        "nn.ReLU(",
        "",
        "nn.ReLU(x)",
        "nn.LeakyReLU(slope=1)",
        "[nn.ReLU() for _ in ()]",
        "nn.ReLU(*[1])",
        "(" * 5000,
    ],
)
def test_bad_activation_text(text):
    with pytest.raises(UserError, match="^activation .*nn.SiLU"):
        parse_activation(text)


# ---- blocks

# arguments of a row with 16 input channels, and its output shape for (2, 16, 8, 12)
BLOCK_ROWS = {
    "Conv": ([24, 3, 2], (24, 4, 6)),
    "DWConv": ([32, 3, 1], (32, 8, 12)),
    "DWConvTranspose2d": ([16, 4, 2, 1], (16, 16, 24)),
    "Bottleneck": ([16], (16, 8, 12)),
    "BottleneckCSP": ([32, False], (32, 8, 12)),
    "CrossConv": ([16, 3, 1, 1, 1.0, True], (16, 8, 12)),
    "C3": ([24], (24, 8, 12)),
    "C3x": ([24], (24, 8, 12)),
    "C3TR": ([32], (32, 8, 12)),
    "C3Ghost": ([24], (24, 8, 12)),
    "C3SPP": ([24, [3, 5]], (24, 8, 12)),
    "SPP": ([24, [5, 9, 13]], (24, 8, 12)),
    "SPPF": ([24, 5], (24, 8, 12)),
    "Focus": ([24, 3], (24, 4, 6)),
    "GhostConv": ([24, 3, 2], (24, 4, 6)),
    "GhostBottleneck": ([24, 3, 2], (24, 4, 6)),
    "MixConv2d": ([24, [1, 3, 5]], (24, 8, 12)),
    "Contract": ([2], (64, 4, 6)),
    "Expand": ([2], (4, 16, 24)),
    "nn.ConvTranspose2d": ([16, 2, 2], (16, 16, 24)),
    "nn.BatchNorm2d": ([], (16, 8, 12)),
    "nn.MaxPool2d": ([2, 2, 0], (16, 4, 6)),
    "nn.ZeroPad2d": ([[0, 1, 0, 1]], (16, 9, 13)),
    "nn.Upsample": (["None", 2, "nearest"], (16, 16, 24)),
    "nn.ReLU": ([], (16, 8, 12)),
    "nn.Dropout": ([0.1], (16, 8, 12)),
}


@pytest.mark.parametrize("name", BLOCK_ROWS)
def test_block(name):
    """Check each block by its row: shape, the channel count for the next row, and the same result after fusing."""
    args, shape = BLOCK_ROWS[name]
    description = TINY | {
        "width_multiple": 1.0,
        "depth_multiple": 1.0,
        "anchors": [[10, 13]],
        "backbone": [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, name, args]],
        "head": [[-1, 1, "Conv", [8, 1]], [[-1], 1, "Detect", ["nc", "anchors"]]],
    }
    model = DetectionModel(description).eval()
    fill(model)
    assert model.model[2].conv.in_channels == shape[0]
    x = image(2, 12)[:, :1, :8].expand(2, 16, 8, 12).clone()
    with torch.no_grad():
        y = model.model[1](x.clone())
        assert tuple(y.shape[1:]) == shape
        assert torch.allclose(model.fuse().model[1](x.clone()), y, rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model.model[1](x.clone()).shape == y.shape


def test_batch_norms_of_several_processes_keep_their_places():
    backbone = [*TINY["backbone"][:3], [-1, 1, "nn.BatchNorm2d", []], TINY["backbone"][3]]
    model = tiny_model(backbone=backbone, head=[[-1, 1, "Conv", [8, 1]], [[-1, 3], 1, "Detect", ["nc", "anchors"]]])
    before = model(image(1, 64))[0]
    names = list(model.state_dict())
    synchronise_batch_norm(model)
    assert sum(isinstance(part, nn.SyncBatchNorm) for part in model.modules()) > 5
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    assert torch.equal(model(image(1, 64))[0], before) and list(model.state_dict()) == names


def test_every_block_is_tried():
    assert {name for name in BLOCKS if not name.startswith("nn.")} == {*BLOCK_ROWS, "Concat"} - {
        name for name in BLOCK_ROWS if name.startswith("nn.")
    }


def test_repeats():
    rows = [[-1, 1, "Conv", [16, 3, 2]], [-1, 3, "Bottleneck", [16]], [-1, 3, "BottleneckCSP", [16]]]
    head = [[[-1], 1, "Detect", ["nc", "anchors"]]]
    model = DetectionModel(TINY | {"backbone": rows, "head": head, "anchors": [[1, 2]], "depth_multiple": 1.0})
    names = set(model.state_dict())
    assert "model.1.2.cv1.conv.weight" in names, "plain blocks are repeated as a sequence"
    assert "model.2.m.2.cv1.conv.weight" in names and "model.2.cv1.conv.weight" in names, "CSP blocks repeat inside"


def test_prediction_convolution_keeps_its_width():
    rows = [[-1, 1, "Conv", [16, 3, 8]], [-1, 1, "Conv", [2 * (3 + 5), 1]], [-1, 1, "Conv", [64, 1]]]
    model = DetectionModel(TINY | {"backbone": rows, "head": [[[-1, 1], 1, "Detect", ["nc", "anchors"]]]})
    assert [model.model[index].conv.out_channels for index in (1, 2)] == [16, 16]  # 16 as it is, 64 * 0.25


def test_focus_order():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    focus = common.Focus(1, 4)
    focus.conv = nn.Identity()
    assert focus(x)[0, :, 0, 0].tolist() == [0, 4, 1, 5]  # (row, column) (0, 0), (1, 0), (0, 1), (1, 1)


def test_contract_and_expand():
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    small = common.Contract(2)(x)
    assert small.shape == (2, 12, 2, 3)
    for row in (0, 1):
        for column in (0, 1):
            assert torch.equal(small[:, (2 * row + column) * 3 :][:, :3], x[:, :, row::2, column::2])
    assert torch.equal(common.Expand(2)(small), x)


def test_sppf_is_spp():
    spp, sppf = common.SPP(8, 8, (5, 9, 13)).eval(), common.SPPF(8, 8, 5).eval()
    sppf.load_state_dict(spp.state_dict())
    x = torch.rand(1, 8, 20, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(spp(x), sppf(x))


def test_mixed_kernels_share_the_channels():
    assert [branch.out_channels for branch in common.MixConv2d(8, 10, (1, 3, 5)).m] == [4, 3, 3]
    uneven = [branch.out_channels for branch in common.MixConv2d(8, 40, (1, 3), equal_channels=False).m]
    assert uneven == [36, 4]  # 36 * 1 and 4 * 9 weights


def test_transformer_layer_is_attention():
    layer = common.TransformerLayer(8, 2).eval()
    x = torch.rand(6, 1, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attention, parts = layer.ma, []
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        q, k, v = (
            nn.functional.linear(projection(x)[:, 0], weight, bias)
            for projection, weight, bias in zip((layer.q, layer.k, layer.v), weights, biases)
        )
        for head in (slice(0, 4), slice(4, 8)):
            parts.append(torch.softmax(q[:, head] @ k[:, head].T / 2, dim=1) @ v[:, head])
        y = x[:, 0] + attention.out_proj(torch.cat(parts, 1))
        y = y + layer.fc2(layer.fc1(y))
        assert torch.allclose(layer(x)[:, 0], y, atol=1e-5)


# ---- messages


def head_with(row) -> dict:
    return {"head": [row, *TINY["head"][1:]]}


# what is changed, what the message must say
@pytest.mark.parametrize(
    "change, message",
    [
        ({"nc": None}, "nc: None"),
        ({"nc": True}, "nc: True"),
        ({"width_multiple": "wide"}, "width_multiple: 'wide' is not a number above 0"),
        ({"depth_multiple": 0}, "depth_multiple: 0"),
        ({"ch": 0}, "ch: 0"),
        ({"channel_multiple": -8}, "channel_multiple: -8"),
        ({"activation": 3}, "activation: 3"),
        ({"activation": "nn.Silu()"}, "activation 'nn.Silu\\(\\)': Silu"),
        ({"activations": "nn.SiLU()"}, "unknown key 'activations', did you mean 'activation'"),
        ({"anchors": "auto"}, "anchors: 'auto'"),
        ({"anchors": 0}, "anchors: 0"),
        ({"anchors": []}, "anchors: \\[\\]"),
        ({"anchors": [[1, 2, 3], [4, 5, 6]]}, "anchors: row 0 has 3 numbers"),
        ({"anchors": [[1, 2], [4, 5, 6, 7]]}, "anchors: row 1 has 4 numbers"),
        ({"anchors": [[1, 2], ["a", 3]]}, "anchors: row 1"),
        ({"anchors": [[1, 2], [-4, 3]]}, "anchors: row 1"),
        ({"anchors": [[1, 2]]}, "layer 7 .* Detect: 1 rows of anchors for 2 levels"),
        ({"backbone": 3}, "backbone: expected a list"),
        ({"backbone": [], "head": []}, "last layer must be Detect"),
        ({"head": TINY["head"][:-1]}, "last layer must be Detect"),
        (
            head_with([-1, 1, "nn.Upsmaple", ["None", 2, "nearest"]]),
            "layer 4 \\(head\\).*'nn.Upsmaple'.*nn.Upsample\\?",
        ),
        (head_with([-1, 1, "c3", [64]]), "layer 4 \\(head\\): unknown block 'c3'; did you mean C3\\?"),
        (head_with([-1, 1, "__import__('os').system('true')", []]), "layer 4 .*unknown block"),
        (head_with([-1, 1, 7, []]), "unknown block 7"),
        (head_with([-1, 1, "Segment", ["nc", "anchors"]]), "only detection models"),
        (head_with([-1, 1, "Conv"]), "layer 4 .*is not a row"),
        (head_with([-1, 0, "Conv", [64]]), "number: 0"),
        (head_with([-1, "3", "Conv", [64]]), "number: '3'"),
        (head_with([-1, 1, "Conv", 64]), "args: 64 is not a list"),
        (head_with([9, 1, "Conv", [64]]), "from: 9 is not an earlier layer"),
        (head_with([4, 1, "Conv", [64]]), "from: 4 is not an earlier layer: use -1 for the previous one, or 0 to 3"),
        (head_with([-7, 1, "Conv", [64]]), "from: -7"),
        (head_with(["-1", 1, "Conv", [64]]), "from: '-1'"),
        (head_with([[-1, 2], 1, "Conv", [64]]), "from: .* must be one layer"),
        (head_with([-1, 1, "Concat", [1]]), "must be a list of layers"),
        (head_with([[], 1, "Concat", [1]]), "must be a list of layers"),
        (head_with([-1, 1, "Conv", []]), "first must be the output channels"),
        (head_with([-1, 1, "Conv", ["wide"]]), "first must be the output channels"),
        (head_with([-1, 1, "Conv", [64, "3"]]), "layer 4 \\(head\\) Conv: args \\[64, '3'\\]"),
        (head_with([-1, 1, "Conv", [64, 3, 1, "None", 7]]), "layer 4 \\(head\\) Conv: args .*groups"),
        (head_with([-1, 1, "Conv", [64, 3, 1, 1, 1, 1, True, 5]]), "layer 4 .*takes"),
        (head_with([-1, 1, "nn.Upsample", ["None", 2, "closest"]]), "layer 4 .*do not fit the input"),
        (
            head_with([-1, 1, "nn.Upsample", ["None", 3, "nearest"]]),
            "layer 5 \\(head\\) Concat: args \\[1\\] do not fit",
        ),
        (head_with([-1, 1, "Contract", [0]]), "gain: 0"),
        ({"head": [[[3], 1, "Detect", [80, "anchors"]]]}, "must be \\[nc, anchors\\] \\(nc is 3\\)"),
        ({"head": [[-1, 1, "Detect", ["nc", "anchors"]]]}, "must be a list of layers"),
        ({"head": [[[2, 3], 1, "Detect", ["nc"]]]}, "must be \\[nc, anchors\\]"),
    ],
)
def test_bad_description(change, message):
    with pytest.raises(UserError, match=message) as caught:
        DetectionModel(copy.deepcopy(TINY) | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head"])
def test_missing_key(key, tmp_path):
    file = tmp_path / "model.yaml"
    file.write_text(json.dumps({name: value for name, value in TINY.items() if name != key}))  # JSON is YAML
    with pytest.raises(UserError, match=f"model.yaml: the key '{key}' is missing"):
        DetectionModel(file)


def test_unknown_block_names_file_and_layer(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(find_cfg("yolov5n").read_text().replace("SPPF", "SPFF"))
    message = r"mine.yaml: layer 9 \(backbone\): unknown block 'SPFF'; did you mean SPPF\?"
    with pytest.raises(UserError, match=message):
        DetectionModel(file)


def test_what_is_no_description(tmp_path):
    file = tmp_path / "list.yaml"
    file.write_text("- 1\n- 2\n")
    with pytest.raises(UserError, match="list.yaml"):
        DetectionModel(file)
    with pytest.raises(UserError, match="found int"):
        DetectionModel(5)
    with pytest.raises(UserError, match="nc: -3"):
        DetectionModel(TINY, num_classes=-3)


def test_find_cfg(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_cfg("yolov5n") == find_cfg("yolov5n.yaml") and find_cfg("yolov5n").parent.name == "models"
    assert find_cfg("models/yolov5n.yaml").is_file() and find_cfg("yolov5n6").parent.name == "hub"
    (tmp_path / "yolov5n.yaml").write_text("nc: 1\n")
    assert find_cfg("yolov5n").resolve() == tmp_path / "yolov5n.yaml", "what lies here comes first"
    with pytest.raises(UserError, match="yolov5q.*did you mean yolov5"):
        find_cfg("yolov5q.yaml")


def test_rows_may_name_layers_either_way():
    """The same network with counted-back and absolute `from`."""
    rows = copy.deepcopy(TINY["head"])
    rows[1][0], rows[3][0] = [4, -3], [-1, -4]
    model, other = DetectionModel(TINY | {"head": rows}).eval(), tiny_model()
    fill(model)
    with torch.no_grad():
        assert torch.equal(model(image(1, 64))[0], other(image(1, 64))[0])
