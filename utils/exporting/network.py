"""Network for export: the layers of a detector, and an output that tracing can follow.

Legend: B batch, A anchors per level, H W rows and columns, C classes, L levels, N predictions.
"""

import copy

import torch
from torch import Tensor, nn

from utils.boxes import xywh_to_xyxy
from utils.detector import Detector, Head, as_module
from utils.exporting.request import ExportRequest


class LevelOutputs(nn.Module):
    """The head without its decoding: the output of the convolution of each level (B, A (5+C), H, W)."""

    def __init__(self, head: Head):
        super().__init__()
        self.m = nn.ModuleList(head.convolutions)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [convolution(level) for level, convolution in zip(features, self.m)]


class Decode(nn.Module):
    """Decoding equal to that of the head, from levels (B, A (5+C), H, W) to rows (B, N, 5+C), without in-place writes.

    For a size (height, width) the cells and anchors are constants. Without one they follow the shapes of the levels.
    """

    cells: Tensor
    strides: Tensor
    anchors: Tensor

    def __init__(self, head: Head, size: tuple[int, int] | None):
        super().__init__()
        self.num_anchors, self.width, self.is_static = head.num_anchors, 5 + head.num_classes, size is not None
        self.level_strides = [int(stride) for stride in head.stride.tolist()]
        pixels = head.anchors.detach().float() * head.stride.detach().reshape(-1, 1, 1)  # (L, A, 2)
        if size is None:
            self.register_buffer("anchors", pixels)
            return
        self.grids = grids = [(size[0] // stride, size[1] // stride) for stride in self.level_strides]
        counts = [self.num_anchors * H * W for H, W in grids]
        cells = [make_cells(H, W, self.num_anchors, pixels.device) for H, W in grids]
        strides = [pixels.new_full((count, 1), stride) for count, stride in zip(counts, self.level_strides)]
        sides = [level.repeat_interleave(H * W, dim=0) for level, (H, W) in zip(pixels, grids)]
        self.register_buffer("cells", torch.cat(cells)[None])  # (1, N, 2)
        self.register_buffer("strides", torch.cat(strides)[None])  # (1, N, 1)
        self.register_buffer("anchors", torch.cat(sides)[None])  # (1, N, 2)

    def forward(self, levels: list[Tensor]) -> Tensor:
        if not self.is_static:
            return torch.cat([self._decode_level(level, i) for i, level in enumerate(levels)], dim=1)
        # Sizes are constants here: a trace that reads them from the levels has operators that some converters lack.
        rows = [self._to_rows(level, -1, H * W) for level, (H, W) in zip(levels, self.grids)]
        scores = torch.cat(rows, dim=1).sigmoid()
        centres = (scores[..., :2] * 2 + self.cells) * self.strides
        sides = (scores[..., 2:4] * 2) * (scores[..., 2:4] * 2) * self.anchors
        return torch.cat((centres, sides, scores[..., 4:]), dim=2)

    def _to_rows(self, level: Tensor, B: int, cells: int) -> Tensor:
        """Return (B, A H W, 5+C) of a level (B, A (5+C), H, W), float32. `cells` is H W. A `B` of -1 means any."""
        parts = level.float().reshape(B, self.num_anchors, self.width, cells)
        return parts.permute(0, 1, 3, 2).reshape(B, self.num_anchors * cells, self.width)

    def _decode_level(self, level: Tensor, index: int) -> Tensor:
        B, _, H, W = level.shape
        scores = self._to_rows(level, B, H * W).sigmoid()
        cells = make_cells(H, W, self.num_anchors, level.device)
        sides = self.anchors[index][:, None].expand(-1, H * W, 2).reshape(1, -1, 2)
        centres = (scores[..., :2] * 2 + cells) * self.level_strides[index]
        return torch.cat((centres, (scores[..., 2:4] * 2) * (scores[..., 2:4] * 2) * sides, scores[..., 4:]), dim=2)


def make_cells(H: int, W: int, num_anchors: int, device: torch.device) -> Tensor:
    """Return (column - 0.5, row - 0.5) of the rows (A H W, 2) of a level, float32."""
    column = torch.arange(W, device=device, dtype=torch.float32).reshape(1, 1, W).expand(num_anchors, H, W)
    row = torch.arange(H, device=device, dtype=torch.float32).reshape(1, H, 1).expand(num_anchors, H, W)
    return torch.stack((column, row), dim=3).reshape(-1, 2) - 0.5


def to_yolov8(rows: Tensor) -> Tensor:
    """Return (B, 4+C, N) of rows (B, N, 5+C): box, then class probabilities times objectness."""
    return torch.cat((rows[..., :4], rows[..., 5:] * rows[..., 4:5]), dim=2).transpose(1, 2)


def to_deepstream(rows: Tensor) -> Tensor:
    """Return (B, N, 6) of rows (B, N, 5+C): x1, y1, x2, y2 in pixels, score, best class."""
    score, best = (rows[..., 5:] * rows[..., 4:5]).max(dim=2, keepdim=True)
    return torch.cat((xywh_to_xyxy(rows[..., :4]), score, best.to(rows.dtype)), dim=2)


class ExportNetwork(nn.Module):
    """Copy of a network whose output has the layout of the request.

    Input and output are float32, also where the layers are float16. Names of operators below `decode` are those of the
    decoding, which a quantisation leaves in float32.
    """

    def __init__(self, network: Detector, request: ExportRequest):
        super().__init__()
        layers = copy.deepcopy(network).eval()
        layers.model[-1] = LevelOutputs(layers.head)
        self.is_half, self.layout = request.half, request.layout
        self.layers = as_module(layers.half() if request.half else layers).requires_grad_(False)
        self.decode = Decode(network.head, None if request.dynamic else request.size)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        levels = self.layers(images.half() if self.is_half else images)
        if self.layout == "raw":
            return tuple(level.float() for level in levels)
        rows = self.decode(levels)
        if self.layout == "yolov8":
            return to_yolov8(rows)
        return to_deepstream(rows) if self.layout == "deepstream" else rows


def output_names(network: Detector, request: ExportRequest) -> list[str]:
    """Return the names of the outputs: output0, and one more a level for the layout `raw`."""
    return [f"output{i}" for i in range(network.head.num_levels if request.layout == "raw" else 1)]
