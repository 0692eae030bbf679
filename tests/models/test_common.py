"""Blocks of the networks, against independent formulas."""

import pytest
import torch
from small_models import TINY, fill, image, tiny_model
from torch import nn

from models import common
from models.architecture import BLOCKS
from models.yolo import DetectionModel
from utils.training.ddp import synchronise_batch_norm


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


def test_concat_along_another_dimension():
    maps = [torch.rand(1, 2, 3, width).requires_grad_() for width in (1, 4)]
    assert torch.equal(common.Concat(3)(maps), torch.cat(maps, 3))


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
