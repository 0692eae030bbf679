"""Networks: architectures, initial state, head and layers, against reference numbers and independent formulas."""

import copy
import io
import json
import math
import zlib

import numpy as np
import pytest
import torch
from small_models import FORWARD, MODELS, TINY, fill, image, largest_difference, tiny_model
from torch import nn

from models import common
from models.yolo import DetectionModel
from utils.kernels import gather_predictions


@pytest.fixture(scope="module")
def forward_golden(golden_folder):
    return np.load(golden_folder / "forward.npz")


@pytest.fixture(scope="module")
def architecture_golden(golden_folder):
    return json.loads((golden_folder / "architecture.json").read_text())


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


def test_rows_may_name_layers_either_way():
    """Relative and absolute `from` give the same network."""
    rows = copy.deepcopy(TINY["head"])
    rows[1][0], rows[3][0] = [4, -3], [-1, -4]
    model, other = DetectionModel(TINY | {"head": rows}).eval(), tiny_model()
    fill(model)
    with torch.no_grad():
        assert torch.equal(model(image(1, 64))[0], other(image(1, 64))[0])


@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_model_follows_its_image(called_before):
    """An exported model is a trace: neither writes into views nor tensors of an earlier call are in it."""
    model = tiny_model()
    with torch.no_grad():
        if called_before:
            model(image(1, 64))
        traced = torch.jit.trace(model, image(1, 64), check_trace=False)
        assert not any(node.kind().endswith("copy_") for node in traced.inlined_graph.nodes())
        for seed in (0, 5):
            assert torch.allclose(traced(image(1, 64, seed))[0], model(image(1, 64, seed))[0], atol=1e-4)
