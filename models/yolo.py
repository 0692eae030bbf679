"""Detection head, layers from a checked YAML, and the model.

Legend: B batch, A anchors per level, H W rows and columns, C classes, L levels, N predictions.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.architecture import (
    ACTIVATIONS,
    BLOCKS,
    CONSTANTS,
    HEAD,
    SELF_REPEATING,
    WIDTH_SCALED,
    Architecture,
    Row,
    check_anchor_rows,
    find_cfg,
    is_int,
    is_number,
    parse_activation,
    read_cfg,
)
from models.common import Conv, resize_and_pad, use_activation
from utils.detector import NO_ADVICE
from utils.errors import UserError
from utils.machine import available_memory
from utils.pixel_format import RGB, PixelFormat, read_stated_pixels

__all__ = ["Detect", "DetectionModel", "find_cfg"]

PROBE_SIZE = 256  # pixels; strides are measured on a blank square image of this size
MAX_PARAMETERS = 2**31  # of a model: 8 GiB in float32, twelve times the largest published one
MAX_ACTIVATION = 2**28  # values in the output of one layer for the probe
AUGMENT_PASSES = ((1.0, False), (0.83, True), (0.67, False))  # scale, mirrored


def is_exporting() -> bool:
    """Return True while `torch.jit.trace`, `torch.onnx.export`, `torch.export` or `torch.compile` records a model."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


class Detect(nn.Module):
    """Anchor-based head: one 1x1 convolution per level.

    In training mode it returns L raw tensors (B, A, H, W, 5+C): logits of x, y, w, h, objectness and classes. In
    evaluation mode it returns (decoded, raw), where decoded is (B, N, 5+C) float32 under autocast too. Its boxes are
    cx, cy, w, h in pixels of the input, the other values are probabilities. Its rows run over levels, then anchors,
    rows and columns. The raw tensors are views of what the convolutions wrote, so use `reshape`, not `view`.
    """

    anchors: Tensor
    stride: Tensor

    def __init__(self, num_classes: int, anchors: Sequence[Sequence[float]], channels: Sequence[int]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_levels = len(anchors)
        self.num_anchors = len(anchors[0]) // 2
        pairs = torch.tensor(anchors, dtype=torch.float32).reshape(self.num_levels, self.num_anchors, 2)
        self.register_buffer("anchors", pairs)  # (L, A, 2) w, h: pixels until `set_stride`, then grid cells
        self.register_buffer("stride", torch.ones(self.num_levels), persistent=False)
        self.m = nn.ModuleList(nn.Conv2d(width, self.num_anchors * (5 + num_classes), 1) for width in channels)
        self._grids: dict[tuple, tuple[Tensor, Tensor]] = {}

    @property
    def convolutions(self) -> list[nn.Conv2d]:
        """The convolution of each level."""
        return [cast(nn.Conv2d, convolution) for convolution in self.m]

    def forward(self, features: list[Tensor]) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        raw = []
        for level, convolution in zip(features, self.m):
            y = convolution(level).permute(0, 2, 3, 1)  # (B, H, W, A (5+C)): its order in memory, so no copy
            B, H, W, _ = y.shape
            raw.append(y.reshape(B, H, W, self.num_anchors, -1).permute(0, 3, 1, 2, 4))
        return raw if self.training else (self.decode(raw), raw)

    def decode(self, raw: list[Tensor]) -> Tensor:
        """Decode raw levels (B, A, H, W, 5+C) to (B, N, 5+C).

        With s the sigmoid: xy = (2 s(t) - 0.5 + cell) stride, wh = (2 s(t))^2 anchor.
        """
        sizes = [(level.shape[2], level.shape[3]) for level in raw]
        if is_exporting():  # a trace neither follows writes into views, nor may it meet tensors of an earlier call
            cells, prior = self._make_grid(sizes, raw[0].device)
            scores = torch.cat([level.float().flatten(1, 3) for level in raw], dim=1).sigmoid()
        else:
            cells, prior = self.grid(sizes, raw[0].device)
            scores = self._join_levels(raw, prior.shape[0]).sigmoid_()
        stride = self.stride.float()[prior // self.num_anchors, None]  # (N, 1)
        anchors_px = self.anchors.float().reshape(-1, 2)[prior] * stride  # (N, 2)
        centres = (scores[..., :2] * 2 + cells) * stride
        sides = (scores[..., 2:4] * 2).square() * anchors_px
        if scores.requires_grad or is_exporting():
            return torch.cat([centres, sides, scores[..., 4:]], dim=2)
        scores[..., :2], scores[..., 2:4] = centres, sides  # in place: no second copy of the class scores
        return scores

    @staticmethod
    def _join_levels(raw: list[Tensor], rows: int) -> Tensor:
        """Return the levels as one float32 tensor (B, N, 5+C). One copy each changes order, type and place at once."""
        B, width = raw[0].shape[0], raw[0].shape[4]
        joined, end = raw[0].new_empty((B, rows, width), dtype=torch.float32), 0
        for level in raw:
            _, A, H, W, _ = level.shape
            start, end = end, end + A * H * W
            joined[:, start:end].view(B, A, H, W, width).copy_(level)
        return joined

    def grid(self, sizes: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return (column - 0.5, row - 0.5) (N, 2) float32 and the number of the anchor (N,) in 0…L A - 1 of each row.

        Both depend on sizes and device only, so they stay valid if the model is moved or cast.
        """
        key = (*sizes, device)
        found = self._grids.get(key)
        if found is None:
            if len(self._grids) >= 16:  # rectangular batches have few sizes; others must not accumulate
                self._grids.clear()
            found = self._grids[key] = self._make_grid(sizes, device)
        return found

    def _make_grid(self, sizes: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
        A = self.num_anchors
        cells, prior = [], []
        for level, (H, W) in enumerate(sizes):
            count = torch.arange(A * H * W, device=device)
            cells.append(torch.stack([count % W, count // W % H], dim=1) - 0.5)
            prior.append(count // (H * W) + level * A)
        return torch.cat(cells), torch.cat(prior)

    @torch.no_grad()
    def set_stride(self, stride: Tensor) -> None:
        """Set the strides (L,) in pixels and convert the anchors from pixels to grid cells.

        Levels of anchors are reversed if their order is opposite to that of the strides.
        """
        areas = self.anchors.prod(dim=2).mean(dim=1)
        growth = areas[-1] - areas[0]
        if growth != 0 and growth.sign() != (stride[-1] - stride[0]).sign():
            self.anchors.copy_(self.anchors.flip(0))
        self.anchors.div_(stride.reshape(-1, 1, 1))
        self.stride.copy_(stride)

    @torch.no_grad()
    def prime_biases(self) -> None:
        """Start from about 8 objects per 640 px image and equally rare classes (focal loss paper, section 3.3)."""
        for convolution, stride in zip(self.convolutions, self.stride.tolist()):
            assert convolution.bias is not None
            bias = convolution.bias.view(self.num_anchors, -1)  # (A, 5+C)
            bias[:, 4] += math.log(8 / (640 / stride) ** 2)
            bias[:, 5:] += math.log(0.6 / (self.num_classes - 0.99999))


def check_size(arch: Architecture, max_parameters: int) -> None:
    """Raise UserError for a model that would not fit in memory. Only shapes are computed, on the device `meta`."""
    with torch.random.fork_rng(devices=()), torch.device("meta"), torch.no_grad():
        layers = build_layers(arch)
        parameters = sum(parameter.numel() for parameter in layers.parameters())
        max_parameters = min(max_parameters, available_memory() // 4)  # in float32
        if parameters > max_parameters:
            raise UserError(
                f"{arch.source}: describes {parameters:,} parameters, more than the {max_parameters:,} "
                "that fit; reduce width_multiple, depth_multiple or the channels"
            )
        x, kept = torch.zeros(1, arch.pixels.channels, PROBE_SIZE, PROBE_SIZE), []
        for row, layer in zip(arch.rows[:-1], layers):
            inputs = [x if entry == row.index - 1 else kept[entry] for entry in row.sources]
            with describe_misfit(row):
                x = layer(inputs if isinstance(row.inputs, list) else inputs[0])
            if x.numel() > MAX_ACTIVATION:
                raise UserError(f"{row.where}: args {row.args}: outputs {x.numel():,} values for a small image")
            kept.append(x)


@contextmanager
def describe_misfit(row: Row) -> Generator[None]:
    """Turn errors of a layer's forward pass into UserErrors that name its row."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{row.where}: args {row.args} do not fit the input: {one_line(error)}") from error


def set_batch_norms(model: nn.Module) -> None:
    """Set the epsilon and momentum of all batch norms as published."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps, part.momentum = 1e-3, 0.03


def build_layers(arch: Architecture) -> nn.Sequential:
    """Return the modules in the order of the rows."""
    layers: list[nn.Module] = []
    widths: list[int] = []
    for row in arch.rows:
        channels = [arch.pixels.channels if entry < 0 else widths[entry] for entry in row.sources]
        previous = widths[-1] if widths else arch.pixels.channels
        try:
            layer, width = build_layer(arch, row, channels, previous)
        except UserError:
            raise
        except (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError, LookupError) as error:
            raise UserError(f"{row.where}: args {row.args}: {one_line(error)}") from error
        layers.append(layer)
        widths.append(width)
    return nn.Sequential(*layers)


def build_layer(arch: Architecture, row: Row, channels: list[int], previous: int) -> tuple[nn.Module, int]:
    """Return the module of `row` and its output channels, given the channels of its inputs."""
    name = row.name
    block: Callable[..., nn.Module] = Detect if name == HEAD else BLOCKS[name]
    args = [resolve(value, arch, row.where) for value in row.args]
    repeats = max(round(row.repeats * arch.depth), 1) if row.repeats > 1 else 1
    width = channels[0]
    if name in WIDTH_SCALED:
        width = scaled_width(arch, row, args)
        args = [channels[0], width, *args[1:]]
        if name in SELF_REPEATING:
            args.insert(2, repeats)
            repeats = 1
    elif name == "nn.BatchNorm2d":
        args, width = [channels[0]], previous
    elif name == "Concat":
        width = sum(channels)
    elif name == HEAD:
        args, width = detect_args(arch, row, args, channels), previous
    elif name in ("Contract", "Expand"):
        gain = args[0] if args else 2
        if not is_int(gain, 1):
            raise UserError(f"{row.where}: gain: {gain!r} is not a whole number, 1 or more")
        width = width * gain**2 if name == "Contract" else width // gain**2
    if repeats > 1:
        return nn.Sequential(*(block(*args) for _ in range(repeats))), width
    return block(*args), width


def resolve(value: object, arch: Architecture, where: str) -> Any:
    """Return the meaning of an argument: nc, anchors, None, True, False, an activation, otherwise itself."""
    if isinstance(value, list):
        return [resolve(entry, arch, where) for entry in value]
    if not isinstance(value, str):
        return value
    if value.startswith("nn."):
        try:
            return parse_activation(value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return {"nc": arch.num_classes, "anchors": arch.anchors, **CONSTANTS}.get(value, value)


def scaled_width(arch: Architecture, row: Row, args: list) -> int:
    """Return the output channels of a block, scaled by the width gain and rounded up to the divisor."""
    if not args or not is_int(args[0], 1):
        raise UserError(f"{row.where}: args {row.args}: the first must be the output channels, a whole number above 0")
    if args[0] == arch.outputs_per_cell:  # a convolution that outputs predictions keeps its width
        return args[0]
    return math.ceil(args[0] * arch.width / arch.divisor) * arch.divisor


def detect_args(arch: Architecture, row: Row, args: list, channels: list[int]) -> list:
    """Return the arguments of Detect: number of classes, anchors by level, channels by level."""
    if len(args) < 2 or args[0] != arch.num_classes:
        raise UserError(f"{row.where}: args {row.args} must be [nc, anchors] (nc is {arch.num_classes})")
    anchors = check_anchor_rows(args[1], row.where)
    if isinstance(anchors, int):  # placeholders (0, 1), (2, 3), ... in every level, to be fitted to the data
        anchors = [list(range(2 * anchors)) for _ in channels]
    if len(anchors) != len(channels):
        raise UserError(f"{row.where}: {len(anchors)} rows of anchors for {len(channels)} levels")
    return [args[0], anchors, channels]


def one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class DetectionModel(nn.Module):
    """Detector built from a YAML file, a name such as `yolov5s`, or a mapping of the same layout.

    `num_classes` and `anchors` (rows in pixels, or a number of placeholders per level) override the description.
    `channels` is used if the description states none. Raises UserError if the model cannot be built.
    `.yaml` is the description as used, `.pixels` the format of images, `.names` {int: str}, `.stride` (L,) pixels,
    `.head` the Detect module.
    """

    fixed_shape, is_suppressed, advice = None, False, NO_ADVICE  # as in utils.detector.InferenceModel

    def __init__(
        self,
        cfg: str | Path | Mapping[str, Any],
        channels: int = 3,
        num_classes: int | None = None,
        anchors: float | list | None = None,
        max_parameters: int = MAX_PARAMETERS,
    ) -> None:
        super().__init__()
        self.yaml, source = read_cfg(cfg)
        if not self.yaml.keys() & {"ch", "channels"}:
            self.yaml["ch"] = channels
        if num_classes:
            self.yaml["nc"] = num_classes
        if anchors:
            self.yaml["anchors"] = round(anchors) if is_number(anchors) else anchors
        arch = Architecture.from_dict(self.yaml, source)
        check_size(arch, max_parameters)
        self.model = build_layers(arch)
        try:
            self._use_activations(arch)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
        self.rows = arch.rows
        # Layers whose output a later layer than the next one needs.
        self.kept_layers = sorted({entry for row in arch.rows for entry in row.sources if entry != row.index - 1})
        self.names = {number: str(number) for number in range(arch.num_classes)}
        self._initialise(arch)

    def _initialise(self, arch: Architecture) -> None:
        self.head.set_stride(self._probe(arch))
        self.head.prime_biases()
        set_batch_norms(self)

    def _use_activations(self, arch: Architecture) -> None:
        if arch.activation:
            use_activation(self, parse_activation(arch.activation))
        built = dict(self.named_modules(remove_duplicate=False))
        for name, text in arch.module_activations.items():
            if type(built.get(name)).__name__ not in ACTIVATIONS:
                raise UserError(f"module_activations: {name!r} is no activation of the model")
            parent, _, child = name.rpartition(".")
            setattr(built[parent], child, parse_activation(text))

    @torch.no_grad()
    def _probe(self, arch: Architecture) -> Tensor:
        """Measure the strides (L,) by a pass in training mode, so batch norms start from variance 0.9, as published."""
        x, kept = torch.zeros(1, arch.pixels.channels, PROBE_SIZE, PROBE_SIZE), {}
        for row, layer in zip(arch.rows, self.model):
            with describe_misfit(row):
                x = self._run_layer(row, layer, x, kept)
        return torch.tensor([PROBE_SIZE / level.shape[2] for level in x])

    @property
    def head(self) -> Detect:
        return cast(Detect, self.model[-1])

    @property
    def stride(self) -> Tensor:
        return self.head.stride

    @property
    def size_multiple(self) -> int:
        """Pixels that both sides of an input image are multiples of: the largest stride, at least 32."""
        return max(int(self.stride.max()), 32)

    @property
    def num_classes(self) -> int:
        return self.head.num_classes

    @property
    def pixels(self) -> PixelFormat:
        """Channels and bits of the images that it takes."""
        return read_stated_pixels(self.yaml, "model description").fill(RGB)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def forward(self, x: Tensor, augment: bool = False) -> list[Tensor] | tuple[Tensor, list[Tensor] | None]:
        """Run the network on images (B, channels, H, W) in 0...1, H and W multiples of the largest stride.

        The result is that of Detect. With `augment`, in evaluation mode only, it is (decoded rows, None) of three
        passes at several scales, one of them mirrored.
        """
        return self._augmented(x) if augment else self._layers(x)

    def _layers(self, x: Tensor) -> Any:
        kept: dict[int, Tensor] = {}
        for row, layer in zip(self.rows, self.model):
            x = self._run_layer(row, layer, x, kept)
        return x

    def _run_layer(self, row: Row, layer: nn.Module, previous: Tensor, kept: dict[int, Tensor]) -> Any:
        """Return the output of `layer`. Outputs that later layers need are added to `kept`, by layer."""
        if isinstance(row.inputs, list):
            output = layer([previous if entry == row.index - 1 else kept[entry] for entry in row.inputs])
        else:
            output = layer(previous if row.inputs == row.index - 1 else kept[row.inputs])
        if row.index in self.kept_layers:
            kept[row.index] = output
        return output

    def _augmented(self, images: Tensor) -> tuple[Tensor, None]:
        if self.training:
            raise ValueError("augment=True needs the model in evaluation mode: call .eval()")
        grid, results = int(self.stride.max()), []
        for ratio, mirrored in AUGMENT_PASSES:
            view = images.flip(3) if mirrored else images
            rows, _ = self._layers(view if ratio == 1 else resize_and_pad(view, ratio, grid))
            boxes = rows[..., :4] / ratio
            centre = images.shape[3] - boxes[..., :1] if mirrored else boxes[..., :1]
            results.append(torch.cat([centre, boxes[..., 1:], rows[..., 4:]], dim=2))
        return torch.cat(self._without_tails(results), dim=1), None

    def _without_tails(self, results: list[Tensor]) -> list[Tensor]:
        """Drop the coarsest level of the first (largest) pass and the finest level of the last (smallest) one.

        Each level has four times the rows of the next coarser one.
        """
        L = self.head.num_levels
        shares = sum(4**level for level in range(L))
        first, last = results[0], results[-1]
        coarsest = first.shape[1] // shares
        finest = last.shape[1] // shares * 4 ** (L - 1)
        return [first[:, : first.shape[1] - coarsest], *results[1:-1], last[:, finest:]]

    def fuse(self) -> "DetectionModel":
        """Fold batch norms into their convolutions in place, for inference. Return the model itself."""
        for part in self.modules():
            if isinstance(part, Conv):
                part.fuse()
        return self
