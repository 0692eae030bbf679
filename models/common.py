"""Blocks that a model YAML can name.

Constructor arguments are positional, as the rows of the YAML files give them: input channels, output channels, then the
row's own arguments. Submodules have the names of the published checkpoints, so weights are exchanged by name.
Legend: B batch, C channels, H W rows and columns.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.kernels import concat_channels, silu

Size = int | tuple[int, int]  # of a side, or (rows, columns)


def same_padding(kernel: Size, dilation: int = 1) -> Size:
    """Return the padding that keeps H and W at stride 1."""
    if isinstance(kernel, int):
        return (dilation * (kernel - 1) + 1) // 2
    return cast(tuple[int, int], tuple((dilation * (side - 1) + 1) // 2 for side in kernel))


def hidden_channels(channels: int, expansion: float) -> int:
    return int(channels * expansion)


class SiLU(nn.SiLU):
    """SiLU that may overwrite its input in inference."""

    def forward(self, input: Tensor) -> Tensor:
        return silu(input)


class Conv(nn.Module):
    """Convolution without bias, batch norm, activation.

    act: True is the model's activation, SiLU unless `use_activation` changes it. A module is used as it is, anything
    else means none. padding: None keeps the size at stride 1.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: Size = 1,
        stride: Size = 1,
        padding: Size | None = None,
        groups: int = 1,
        dilation: int = 1,
        act: bool | nn.Module = True,
    ):
        super().__init__()
        padding = same_padding(kernel, dilation) if padding is None else padding
        self.conv = nn.Conv2d(
            c_in, c_out, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=False
        )
        self.bn: nn.BatchNorm2d | None = nn.BatchNorm2d(c_out)
        self.has_model_activation = act is True
        if act is True:
            self.act = SiLU()
        else:
            self.act = act if isinstance(act, nn.Module) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x)
        return self.act(features if self.bn is None else self.bn(features))

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold the batch norm's running statistics into the convolution. The weights are then fixed. Idempotent."""
        if self.bn is None:
            return
        bn, weight = self.bn, self.conv.weight
        assert bn.running_mean is not None
        assert bn.running_var is not None
        scale = bn.weight.float() * torch.rsqrt(bn.running_var.float() + bn.eps)
        shift = bn.bias.float() - bn.running_mean.float() * scale
        folded = weight.float() * scale.reshape(-1, 1, 1, 1)
        self.conv.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=False)
        self.conv.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)
        self.bn = None


def use_activation(module: nn.Module, activation: nn.Module) -> None:
    """Give this activation to every Conv inside `module` that uses the model's. All share the instance."""
    for part in module.modules():
        if isinstance(part, Conv) and part.has_model_activation:
            part.act = activation


class DWConv(Conv):
    """Depth-wise Conv, with as many groups as both channel counts allow."""

    def __init__(
        self, c_in: int, c_out: int, kernel: Size = 1, stride: Size = 1, dilation: int = 1, act: bool | nn.Module = True
    ):
        super().__init__(c_in, c_out, kernel, stride, groups=math.gcd(c_in, c_out), dilation=dilation, act=act)


class DWConvTranspose2d(nn.ConvTranspose2d):
    """Depth-wise transposed convolution, with bias."""

    def __init__(
        self, c_in: int, c_out: int, kernel: Size = 1, stride: Size = 1, padding: Size = 0, output_padding: Size = 0
    ):
        super().__init__(
            c_in,
            c_out,
            kernel,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            groups=math.gcd(c_in, c_out),
        )


class Bottleneck(nn.Module):
    """1x1 then 3x3 convolution, with a residual path if the channel counts are equal (He et al. 2015)."""

    def __init__(self, c_in: int, c_out: int, shortcut: bool = True, groups: int = 1, expansion: float = 0.5):
        super().__init__()
        hidden = hidden_channels(c_out, expansion)
        self.cv1 = Conv(c_in, hidden)
        self.cv2 = Conv(hidden, c_out, 3, groups=groups)
        self.add = shortcut and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class CrossConv(nn.Module):
    """Convolution of kernel x kernel, split into a row and a column one."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        expansion: float = 1.0,
        shortcut: bool = False,
    ):
        super().__init__()
        hidden = hidden_channels(c_out, expansion)
        self.cv1 = Conv(c_in, hidden, (1, kernel), (1, stride))
        self.cv2 = Conv(hidden, c_out, (kernel, 1), (stride, 1), groups=groups)
        self.add = shortcut and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class BottleneckCSP(nn.Module):
    """Cross stage partial network (Wang et al. 2019). One half passes through bottlenecks, the other around them."""

    def __init__(
        self, c_in: int, c_out: int, repeats: int = 1, shortcut: bool = True, groups: int = 1, expansion: float = 0.5
    ):
        super().__init__()
        hidden = hidden_channels(c_out, expansion)
        self.cv1 = Conv(c_in, hidden)
        self.cv2 = nn.Conv2d(c_in, hidden, 1, bias=False)
        self.cv3 = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.cv4 = Conv(2 * hidden, c_out)
        self.bn = nn.BatchNorm2d(2 * hidden)
        self.act = SiLU()
        chain = [Bottleneck(hidden, hidden, shortcut, groups, 1.0) for _ in range(repeats)]
        self.m = nn.Sequential(*chain)

    def forward(self, x: Tensor) -> Tensor:
        halves = concat_channels([self.cv3(self.m(self.cv1(x))), self.cv2(x)])
        return self.cv4(self.act(self.bn(halves)))


class C3(nn.Module):
    """CSP block with three convolutions. Subclasses change only the inner path."""

    def __init__(
        self, c_in: int, c_out: int, repeats: int = 1, shortcut: bool = True, groups: int = 1, expansion: float = 0.5
    ):
        super().__init__()
        hidden = hidden_channels(c_out, expansion)
        self.cv1 = Conv(c_in, hidden)
        self.cv2 = Conv(c_in, hidden)
        self.cv3 = Conv(2 * hidden, c_out)
        self.m = self.inner_path(hidden, repeats, shortcut, groups)

    def inner_path(self, hidden: int, repeats: int, shortcut: bool, groups: int) -> nn.Module:
        return nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, groups, 1.0) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(concat_channels([self.m(self.cv1(x)), self.cv2(x)]))


class C3x(C3):
    """C3 with an inner path of CrossConv."""

    def inner_path(self, hidden: int, repeats: int, shortcut: bool, groups: int) -> nn.Module:
        return nn.Sequential(*(CrossConv(hidden, hidden, 3, 1, groups, 1.0, shortcut) for _ in range(repeats)))


class C3TR(C3):
    """C3 with a transformer of four heads and `repeats` layers as its inner path."""

    def inner_path(self, hidden: int, repeats: int, shortcut: bool, groups: int) -> nn.Module:
        return TransformerBlock(hidden, hidden, 4, repeats)


class C3Ghost(C3):
    """C3 with an inner path of GhostBottleneck, which ignores shortcut and groups."""

    def inner_path(self, hidden: int, repeats: int, shortcut: bool, groups: int) -> nn.Module:
        return nn.Sequential(*(GhostBottleneck(hidden, hidden) for _ in range(repeats)))


class C3SPP(C3):
    """C3 with spatial pyramid pooling as its inner path."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernels: Sequence[int] = (5, 9, 13),
        repeats: int = 1,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
    ):
        self.kernels = tuple(kernels)
        super().__init__(c_in, c_out, repeats, shortcut, groups, expansion)

    def inner_path(self, hidden: int, repeats: int, shortcut: bool, groups: int) -> nn.Module:
        return SPP(hidden, hidden, self.kernels)


class SPP(nn.Module):
    """Spatial pyramid pooling (He et al. 2014): max pooling with several windows in parallel."""

    def __init__(self, c_in: int, c_out: int, kernels: Sequence[int] = (5, 9, 13)):
        super().__init__()
        hidden = c_in // 2
        self.cv1 = Conv(c_in, hidden)
        self.cv2 = Conv(hidden * (1 + len(kernels)), c_out)
        self.m = nn.ModuleList(nn.MaxPool2d(side, 1, side // 2) for side in kernels)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.cv1(x)
        return self.cv2(concat_channels([narrow, *(pool(narrow) for pool in self.m)]))


class SPPF(nn.Module):
    """SPP by one pooling applied three times, which has the windows k, 2k-1 and 3k-2."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 5):
        super().__init__()
        hidden = c_in // 2
        self.cv1 = Conv(c_in, hidden)
        self.cv2 = Conv(4 * hidden, c_out)
        self.m = nn.MaxPool2d(kernel, 1, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        pyramid = [self.cv1(x)]
        while len(pyramid) < 4:
            pyramid.append(self.m(pyramid[-1]))
        return self.cv2(concat_channels(pyramid))


class Focus(nn.Module):
    """Space to depth by 2, then a Conv: (B, C, H, W) -> (B, 4 C, H/2, W/2) -> (B, C', H/2, W/2)."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: Size = 1,
        stride: Size = 1,
        padding: Size | None = None,
        groups: int = 1,
        act: bool | nn.Module = True,
    ):
        super().__init__()
        self.conv = Conv(4 * c_in, c_out, kernel, stride, padding, groups, act=act)

    def forward(self, x: Tensor) -> Tensor:
        # Columns are the slow index. As (row, column): (even, even), (odd, even), (even, odd), (odd, odd).
        grids = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.conv(concat_channels(grids))


class GhostConv(nn.Module):
    """Convolution for half the channels, and a cheap 5x5 depth-wise one for the rest (Han et al. 2019)."""

    def __init__(
        self, c_in: int, c_out: int, kernel: Size = 1, stride: Size = 1, groups: int = 1, act: bool | nn.Module = True
    ):
        super().__init__()
        half = c_out // 2
        self.cv1 = Conv(c_in, half, kernel, stride, groups=groups, act=act)
        self.cv2 = Conv(half, half, 5, groups=half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        primary = self.cv1(x)
        return concat_channels([primary, self.cv2(primary)])


class GhostBottleneck(nn.Module):
    """Two GhostConv with a residual path. At stride 2 both paths have a depth-wise convolution."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1):
        super().__init__()
        half = c_out // 2
        strided = stride == 2
        self.conv = nn.Sequential(
            GhostConv(c_in, half),
            DWConv(half, half, kernel, stride, act=False) if strided else nn.Identity(),
            GhostConv(half, c_out, act=False),
        )
        self.shortcut = nn.Identity()
        if strided:
            self.shortcut = nn.Sequential(DWConv(c_in, c_in, kernel, stride, act=False), Conv(c_in, c_out, act=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv(x)


class TransformerLayer(nn.Module):
    """Self-attention and two linear layers, both residual, without layer norm. The sequence is first: (HW, B, C)."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.ma = nn.MultiheadAttention(channels, heads)
        self.fc1, self.fc2 = (nn.Linear(channels, channels, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        attended, _ = self.ma(self.q(x), self.k(x), self.v(x), need_weights=False)
        x = x + attended
        return x + self.fc2(self.fc1(x))


class TransformerBlock(nn.Module):
    """Transformer over the cells of a feature map, with a learned position term (Dosovitskiy et al. 2020)."""

    def __init__(self, c_in: int, c_out: int, heads: int, layers: int):
        super().__init__()
        self.conv = Conv(c_in, c_out) if c_in != c_out else None
        self.linear = nn.Linear(c_out, c_out)
        self.tr = nn.Sequential(*(TransformerLayer(c_out, heads) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.conv is None else self.conv(x)
        B, C, H, W = x.shape
        cells = x.flatten(2).permute(2, 0, 1)  # (HW, B, C)
        cells = self.tr(cells + self.linear(cells))
        return cells.permute(1, 2, 0).reshape(B, C, H, W)


class Concat(nn.Module):
    """Concatenation of a list of tensors, along channels by default."""

    def __init__(self, dimension: int = 1):
        super().__init__()
        self.d = dimension

    def forward(self, tensors: list[Tensor]) -> Tensor:
        return concat_channels(tensors) if self.d == 1 else torch.cat(tensors, dim=self.d)


class Contract(nn.Module):
    """Space to depth by the gain g: (B, C, H, W) -> (B, C g g, H/g, W/g).

    Channels are in the order row offset, column offset, old channel.
    """

    def __init__(self, gain: int = 2):
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        g = self.gain
        cells = x.reshape(B, C, H // g, g, W // g, g).permute(0, 3, 5, 1, 2, 4)  # (B, row, column, C, H/g, W/g)
        return cells.reshape(B, g * g * C, H // g, W // g)


class Expand(nn.Module):
    """Depth to space by the gain g, the inverse of Contract: (B, C, H, W) -> (B, C/(g g), H g, W g)."""

    def __init__(self, gain: int = 2):
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        g = self.gain
        cells = x.reshape(B, g, g, C // (g * g), H, W).permute(0, 3, 4, 1, 5, 2)  # (B, C', H, row, W, column)
        return cells.reshape(B, C // (g * g), H * g, W * g)


class MixConv2d(nn.Module):
    """Convolutions with several kernels in parallel (Tan and Le 2019), batch norm, SiLU.

    equal_channels: give every kernel the same number of channels, otherwise about the same number of weights.
    """

    def __init__(
        self, c_in: int, c_out: int, kernels: Sequence[int] = (1, 3), stride: int = 1, equal_channels: bool = True
    ):
        super().__init__()
        counts = self.even_split(c_out, len(kernels)) if equal_channels else self.weight_split(c_out, kernels)
        self.m = nn.ModuleList(
            nn.Conv2d(c_in, count, side, stride=stride, padding=side // 2, groups=math.gcd(c_in, count), bias=False)
            for side, count in zip(kernels, counts)
        )
        self.bn = nn.BatchNorm2d(c_out)
        self.act = SiLU()

    @staticmethod
    def even_split(channels: int, parts: int) -> list[int]:
        ramp = torch.linspace(0, parts - 1e-6, channels, dtype=torch.float64, device="cpu")
        return torch.bincount(ramp.floor().long(), minlength=parts).tolist()

    @staticmethod
    def weight_split(channels: int, kernels: Sequence[int]) -> list[int]:
        """Return channels inversely proportional to the kernel's area. The first gets the rounding difference."""
        shares = [1 / (side * side) for side in kernels]
        counts = [round(channels * share / sum(shares)) for share in shares]
        counts[0] += channels - sum(counts)
        return counts

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(concat_channels([branch(x) for branch in self.m])))


def resize_and_pad(images: Tensor, ratio: float, grid: int) -> Tensor:
    """Scale images (B, C, H, W) by `ratio`, then pad right and bottom with grey to a multiple of `grid`."""
    H, W = images.shape[2:]
    scaled = F.interpolate(images, size=(int(H * ratio), int(W * ratio)), mode="bilinear", align_corners=False)
    target_h, target_w = (math.ceil(side * ratio / grid) * grid for side in (H, W))
    # 0.447 is the mean grey value of ImageNet.
    return F.pad(scaled, (0, target_w - scaled.shape[3], 0, target_h - scaled.shape[2]), value=0.447)
