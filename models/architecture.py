"""Model YAML, read and checked.

Text in the file is compared with the names below, never evaluated.
"""

import ast
import copy
import difflib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import nn

from models import common
from utils.cli import suggest
from utils.errors import UserError
from utils.files import read_yaml
from utils.pixel_format import RGB, PixelFormat, read_stated_pixels

CFG_FOLDERS = (Path(__file__).parent, Path(__file__).parent / "hub")
HEAD = "Detect"  # the class is in models/yolo.py
MAX_ANCHORS = 100  # per level
MAX_SLOPES = 100_000  # parameters of a PReLU
MAX_LAYERS = 10_000  # of a model, counting repeats
CUTOFF = 0.5  # similarity of a suggested name: blocks have short names

_ZOO = (
    "Conv DWConv DWConvTranspose2d Bottleneck BottleneckCSP CrossConv C3 C3x C3TR C3Ghost C3SPP SPP SPPF Focus "
    "GhostConv GhostBottleneck MixConv2d Concat Contract Expand"
).split()
ACTIVATIONS = (
    "SiLU ReLU ReLU6 LeakyReLU PReLU ELU CELU SELU GELU Mish Hardswish Hardsigmoid Hardtanh Sigmoid Tanh "
    "Softplus Identity"
).split()
_TORCH = (
    "Upsample MaxPool2d AvgPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d ZeroPad2d ReflectionPad2d ReplicationPad2d "
    "Dropout Dropout2d BatchNorm2d ConvTranspose2d"
).split()
BLOCKS: dict[str, Callable[..., nn.Module]] = {
    **{name: getattr(common, name) for name in _ZOO},
    **{f"nn.{name}": getattr(nn, name) for name in _TORCH + ACTIVATIONS},
}
KNOWN = (*BLOCKS, HEAD)
# Blocks whose first argument is the number of output channels, scaled by the width gain ...
WIDTH_SCALED = set(_ZOO) - {"Concat", "Contract", "Expand"} | {"nn.ConvTranspose2d"}
# ... and of those, the blocks that repeat their own inner layers.
SELF_REPEATING = {"BottleneckCSP", "C3", "C3x", "C3TR", "C3Ghost"}
CONSTANTS = {"None": None, "True": True, "False": False}
IN_PLACE = (nn.Hardswish, nn.LeakyReLU, nn.ReLU, nn.ReLU6)


def activation_class(name: str) -> Callable[..., nn.Module]:
    """Return the class of an activation in ACTIVATIONS."""
    return common.SiLU if name == "SiLU" else getattr(nn, name)


def parse_activation(text: str) -> nn.Module:
    """Return the activation that text such as `nn.LeakyReLU(0.1)` or `nn.SiLU` names. The text is never evaluated."""
    try:
        tree = ast.parse(text[:80].removeprefix("torch."), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(func=tree, args=[], keywords=[])
        name = ast.unparse(call.func).removeprefix("nn.")
        if name not in ACTIVATIONS:
            raise ValueError(f"{name} is not one of {', '.join(ACTIVATIONS)}")
        values = [ast.literal_eval(value) for value in call.args]
        settings = {str(part.arg): ast.literal_eval(part.value) for part in call.keywords}
        with torch.device("meta"):
            if sum(part.numel() for part in activation_class(name)(*values, **settings).parameters()) > MAX_SLOPES:
                raise ValueError(f"more than {MAX_SLOPES:,} parameters")
        module = activation_class(name)(*values, **settings)
    except (SyntaxError, ValueError, TypeError, AssertionError, RuntimeError, MemoryError) as error:
        raise UserError(f"activation {text[:80]!r}: {error}; write it like nn.SiLU()") from error
    if isinstance(module, IN_PLACE):
        module.inplace = True
    return module


class Row(NamedTuple):
    """One layer as the YAML has it. `inputs` are absolute indices; -1 is the image."""

    where: str  # file, number and block, for messages
    index: int
    inputs: int | list[int]
    repeats: int
    name: str
    args: list

    @property
    def sources(self) -> list[int]:
        """The inputs as a list, also if there is only one."""
        return self.inputs if isinstance(self.inputs, list) else [self.inputs]


def is_int(value: object, least: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)


@dataclass(frozen=True)
class Architecture:
    """Model YAML after checking."""

    source: str  # file, for messages
    num_classes: int
    anchors: list[list[float]] | int  # L rows of w, h, w, h... pixels, or a number of placeholders per level
    depth: float  # gain of the number of repeats
    width: float  # gain of the number of channels
    divisor: int  # of the number of channels
    activation: str | None
    module_activations: dict[str, str]  # other ones, by the name of the module; weights of others have them
    pixels: PixelFormat  # of the image
    rows: list[Row]

    REQUIRED = ("nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head")
    OPTIONAL = ("activation", "module_activations", "channel_multiple", "ch", "channels", "bit_depth", "inplace")

    @classmethod
    def from_dict(cls, cfg: Mapping[str, Any], source: str) -> "Architecture":
        """Return the checked content of a YAML. Raises UserError naming source, key and value."""
        for key in cls.REQUIRED:
            if key not in cfg:
                raise UserError(f"{source}: the key {key!r} is missing{suggest(key, map(str, cfg), cutoff=CUTOFF)}")
        for key in set(map(str, cfg)).difference(cls.REQUIRED, cls.OPTIONAL):
            if meant := difflib.get_close_matches(key, set(cls.OPTIONAL).difference(cfg), n=1, cutoff=0.8):
                raise UserError(f"{source}: unknown key {key!r}, did you mean {meant[0]!r}?")
        for key, fits, wanted in (
            ("nc", is_int(cfg["nc"], 1), "a number of classes, 1 or more"),
            ("channel_multiple", is_int(cfg.get("channel_multiple") or 8, 1), "a whole number, 1 or more"),
            ("depth_multiple", is_number(cfg["depth_multiple"]) and cfg["depth_multiple"] > 0, "a number above 0"),
            ("width_multiple", is_number(cfg["width_multiple"]) and cfg["width_multiple"] > 0, "a number above 0"),
            ("activation", isinstance(cfg.get("activation") or "", str), "text such as nn.SiLU()"),
            (
                "module_activations",
                is_texts(cfg.get("module_activations") or {}),
                "a mapping of modules to text such as nn.SiLU()",
            ),
        ):
            if not fits:
                raise UserError(f"{source}: {key}: {cfg[key]!r} is not {wanted}")
        return cls(
            source,
            cfg["nc"],
            check_anchor_rows(cfg["anchors"], source),
            cfg["depth_multiple"],
            cfg["width_multiple"],
            cfg.get("channel_multiple") or 8,
            cfg.get("activation") or None,
            dict(cfg.get("module_activations") or {}),
            read_stated_pixels(dict(cfg), source).fill(RGB),
            read_rows(cfg, source),
        )

    @property
    def outputs_per_cell(self) -> int:
        """Number of values that the head predicts per grid cell."""
        per_level = self.anchors if isinstance(self.anchors, int) else len(self.anchors[0]) // 2
        return per_level * (self.num_classes + 5)


def check_anchor_rows(anchors: Any, where: str) -> list[list[float]] | int:
    """Return `anchors` if it is a count or rows of the same even length. Raises UserError otherwise."""
    if is_int(anchors, 1) and anchors <= MAX_ANCHORS:
        return anchors
    if not isinstance(anchors, list) or not anchors or not all(isinstance(row, list) and row for row in anchors):
        raise UserError(f"{where}: anchors: {anchors!r} is neither a whole number nor a list of rows w,h, w,h, ...")
    for number, row in enumerate(anchors):
        if len(row) % 2 or len(row) != len(anchors[0]):
            raise UserError(
                f"{where}: anchors: row {number} has {len(row)} numbers: every row needs the same even "
                "number, w,h, w,h, ..."
            )
        if not all(is_number(side) and side >= 0 for side in row):
            raise UserError(f"{where}: anchors: row {number}: {row} must hold numbers, 0 or more")
    return anchors


def read_rows(cfg: Mapping[str, Any], source: str) -> list[Row]:
    """Return the rows [from, number, module, args] of backbone and head. Raises UserError naming layer and fault."""
    rows: list[Row] = []
    for part in ("backbone", "head"):
        if not isinstance(cfg[part], list):
            raise UserError(f"{source}: {part}: expected a list of rows [from, number, module, args]")
        for row in cfg[part]:
            rows.append(read_row(row, len(rows), f"{source}: layer {len(rows)} ({part})"))
    if not rows or rows[-1].name != HEAD:
        raise UserError(f"{source}: the last layer must be Detect")
    if sum(row.repeats for row in rows) * max(cfg["depth_multiple"], 1) > MAX_LAYERS:
        raise UserError(f"{source}: more than {MAX_LAYERS} layers: reduce depth_multiple, or number in the rows")
    return rows


def read_row(row: Any, index: int, where: str) -> Row:
    """Return the checked row number `index`. Raises UserError with `where`."""
    if not isinstance(row, list) or len(row) != 4:
        raise UserError(f"{where}: {row!r} is not a row [from, number, module, args]")
    source, repeats, name, args = row
    if not isinstance(name, str) or name not in KNOWN:
        if name in ("Segment", "Classify"):
            raise UserError(f"{where}: {name}: only detection models are supported; end with Detect")
        raise UserError(f"{where}: unknown block {name!r}{suggest(str(name), KNOWN, cutoff=CUTOFF)}")
    where = f"{where} {name}"
    if not is_int(repeats, 1):
        raise UserError(f"{where}: number: {repeats!r} is not a whole number, 1 or more")
    if not isinstance(args, list):
        raise UserError(f"{where}: args: {args!r} is not a list")
    wants_list = name in ("Concat", HEAD)
    if wants_list != isinstance(source, list) or source == []:
        raise UserError(f"{where}: from: {source!r} must be {'a list of layers' if wants_list else 'one layer'}")
    inputs = [absolute_index(entry, index, where) for entry in (source if wants_list else [source])]
    return Row(where, index, inputs if wants_list else inputs[0], repeats, name, args)


def absolute_index(entry: Any, index: int, where: str) -> int:
    """Return the layer that `from` means in layer `index`. Negative numbers count back, and the image is -1."""
    if is_int(entry, -sys.maxsize) and (entry == -1 or -index <= entry < index):
        return entry if entry >= 0 else index + entry
    raise UserError(
        f"{where}: from: {entry!r} is not an earlier layer: use -1 for the previous one"
        + (f", or 0 to {index - 1}" if index else "")
    )


def find_cfg(name: str | Path) -> Path:
    """Find a model YAML by path or name (`yolov5s`, `yolov5s.yaml`): as typed, then in models/ and models/hub/."""
    file = Path(name)
    file = file if file.suffix in (".yaml", ".yml") else file.with_name(file.name + ".yaml")
    for candidate in (file, *(folder / file.name for folder in CFG_FOLDERS)):
        if candidate.is_file():
            return candidate
    known = sorted(path.stem for folder in CFG_FOLDERS for path in folder.glob("*.yaml"))
    nearest = suggest(file.stem, known, cutoff=CUTOFF)
    raise UserError(f"{name}: no such model file, here or in models/ or models/hub/{nearest}")


def read_cfg(cfg: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return a copy of the model description, and its name for messages."""
    if isinstance(cfg, Mapping):
        return copy.deepcopy(dict(cfg)), "model description"
    if not isinstance(cfg, (str, Path)):
        raise UserError(f"model description: expected a file, a name or a mapping, found {type(cfg).__name__}")
    path = find_cfg(cfg)
    return read_yaml(path), str(path)
