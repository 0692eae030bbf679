"""A model YAML, read and checked: what it may say, and messages for what it may not.

Text in the file is compared with the names below and never evaluated.
"""

import ast
import copy
import difflib
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from models import common
from utils.errors import UserError
from utils.files import read_yaml

CFG_FOLDERS = (Path(__file__).parent, Path(__file__).parent / "hub")
HEAD = "Detect"  # the class is in models/yolo.py
MAX_ANCHORS = 100  # of a level
MAX_LAYERS = 10_000  # of a model, repeats counted

_ZOO = (
    "Conv DWConv DWConvTranspose2d Bottleneck BottleneckCSP CrossConv C3 C3x C3TR C3Ghost C3SPP SPP SPPF Focus "
    "GhostConv GhostBottleneck MixConv2d Concat Contract Expand"
).split()
_ACTIVATIONS = (
    "SiLU ReLU ReLU6 LeakyReLU PReLU ELU CELU SELU GELU Mish Hardswish Hardsigmoid Hardtanh Sigmoid Tanh "
    "Softplus Identity"
).split()
_TORCH = (
    "Upsample MaxPool2d AvgPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d ZeroPad2d ReflectionPad2d ReplicationPad2d "
    "Dropout Dropout2d BatchNorm2d ConvTranspose2d"
).split()
BLOCKS: dict[str, type[nn.Module]] = {
    **{name: getattr(common, name) for name in _ZOO},
    **{f"nn.{name}": getattr(nn, name) for name in _TORCH + _ACTIVATIONS},
}
KNOWN = (*BLOCKS, HEAD)
# Blocks whose first argument is the output channels, scaled by the width gain ...
WIDTH_SCALED = set(_ZOO) - {"Concat", "Contract", "Expand"} | {"nn.ConvTranspose2d"}
# ... and of those, blocks that repeat inside themselves.
SELF_REPEATING = {"BottleneckCSP", "C3", "C3x", "C3TR", "C3Ghost"}
WORDS = {"None": None, "True": True, "False": False}
IN_PLACE = (nn.Hardswish, nn.LeakyReLU, nn.ReLU, nn.ReLU6)


def parse_activation(text: str) -> nn.Module:
    """The activation that text such as `nn.LeakyReLU(0.1)` or `nn.SiLU` names; read, never evaluated."""
    try:
        tree = ast.parse(text[:80].removeprefix("torch."), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(func=tree, args=[], keywords=[])
        name = ast.unparse(call.func).removeprefix("nn.")
        if name not in _ACTIVATIONS:
            raise ValueError(f"{name} is not one of {', '.join(_ACTIVATIONS)}")
        values = [ast.literal_eval(value) for value in call.args]
        kind = common.SiLU if name == "SiLU" else getattr(nn, name)
        module = kind(*values, **{part.arg: ast.literal_eval(part.value) for part in call.keywords})
    except (SyntaxError, ValueError, TypeError, AssertionError, RecursionError, MemoryError) as error:
        raise UserError(f"activation {text[:80]!r}: {error}; write for instance nn.SiLU()") from error
    if isinstance(module, IN_PLACE):
        module.inplace = True
    return module


class Row(NamedTuple):
    """One layer as the YAML has it; `inputs` are absolute indices, -1 being the image."""

    where: str
    index: int
    inputs: int | list[int]
    repeats: int
    name: str
    args: list

    @property
    def sources(self) -> list[int]:
        return self.inputs if isinstance(self.inputs, list) else [self.inputs]


def is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' or nothing."""
    by_lower = {name.lower(): name for name in known}
    hits = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f" (did you mean {by_lower[hits[0]]}?)" if hits else ""


@dataclass(frozen=True)
class Architecture:
    """A model YAML after checking. anchors: L rows of w, h, w, h... pixels, or a number of placeholders per level."""

    source: str
    num_classes: int
    anchors: list | int
    depth: float
    width: float
    divisor: int
    activation: str | None
    channels: int
    rows: list[Row]

    REQUIRED = ("nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head")
    OPTIONAL = ("activation", "channel_multiple", "ch", "inplace")

    @classmethod
    def from_dict(cls, cfg: Mapping[str, Any], source: str) -> "Architecture":
        """Check `cfg`. Raises UserError naming source, key and value."""
        for key in cls.REQUIRED:
            if key not in cfg:
                raise UserError(f"{source}: the key {key!r} is missing{nearest(key, [str(name) for name in cfg])}")
        for key in set(map(str, cfg)).difference(cls.REQUIRED, cls.OPTIONAL):
            if meant := difflib.get_close_matches(key, set(cls.OPTIONAL).difference(cfg), n=1, cutoff=0.8):
                raise UserError(f"{source}: unknown key {key!r}, did you mean {meant[0]!r}?")
        for key, fits, wanted in (
            ("nc", is_int(cfg["nc"], 1), "a number of classes, 1 or more"),
            ("ch", is_int(cfg.get("ch", 3), 1), "a number of channels, 1 or more"),
            ("channel_multiple", is_int(cfg.get("channel_multiple") or 8, 1), "a whole number, 1 or more"),
            ("depth_multiple", is_number(cfg["depth_multiple"]) and cfg["depth_multiple"] > 0, "a number above 0"),
            ("width_multiple", is_number(cfg["width_multiple"]) and cfg["width_multiple"] > 0, "a number above 0"),
            ("activation", isinstance(cfg.get("activation") or "", str), "text such as nn.SiLU()"),
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
            cfg.get("ch", 3),
            read_rows(cfg, source),
        )

    @property
    def outputs_per_cell(self) -> int:
        per_level = self.anchors if isinstance(self.anchors, int) else len(self.anchors[0]) // 2
        return per_level * (self.num_classes + 5)


def check_anchor_rows(anchors: Any, where: str) -> list | int:
    """`anchors` if it is a count or rows of the same even length; UserError otherwise."""
    if is_int(anchors, 1) and anchors <= MAX_ANCHORS:
        return anchors
    if not isinstance(anchors, list) or not anchors or not all(isinstance(row, list) and row for row in anchors):
        raise UserError(f"{where}: anchors: {anchors!r} is neither a whole number nor a list of rows w,h, w,h, ...")
    for number, row in enumerate(anchors):
        if len(row) % 2 or len(row) != len(anchors[0]):
            raise UserError(
                f"{where}: anchors: row {number} has {len(row)} numbers: every row needs the same even "
                "count, w,h, w,h, ..."
            )
        if not all(is_number(side) and side >= 0 for side in row):
            raise UserError(f"{where}: anchors: row {number}: {row} must hold numbers, 0 or more")
    return anchors


def read_rows(cfg: Mapping[str, Any], source: str) -> list[Row]:
    """The rows [from, number, module, args] of backbone and head. Raises UserError naming layer and fault."""
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
    if not isinstance(row, list) or len(row) != 4:
        raise UserError(f"{where}: {row!r} is not a row [from, number, module, args]")
    source, repeats, name, args = row
    if not isinstance(name, str) or name not in KNOWN:
        if name in ("Segment", "Classify"):
            raise UserError(f"{where}: {name}: only detection models are supported; end with Detect")
        raise UserError(f"{where}: unknown block {name!r}{nearest(str(name), KNOWN)}")
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
    """Layer that `from` means in layer `index`: negative numbers count back, and the image is -1."""
    if is_int(entry, -sys.maxsize) and (entry == -1 or -index <= entry < index):
        return entry if entry >= 0 else index + entry
    raise UserError(
        f"{where}: from: {entry!r} is not an earlier layer: use -1 for the previous one"
        + (f", or 0 to {index - 1}" if index else "")
    )


def find_cfg(name: str | Path) -> Path:
    """A model YAML by path or by name (`yolov5s`, `yolov5s.yaml`): as typed, then in models/ and models/hub/."""
    file = Path(name)
    file = file if file.suffix in (".yaml", ".yml") else file.with_name(file.name + ".yaml")
    for candidate in (file, *(folder / file.name for folder in CFG_FOLDERS)):
        if candidate.is_file():
            return candidate
    known = sorted(path.stem for folder in CFG_FOLDERS for path in folder.glob("*.yaml"))
    raise UserError(f"{name}: no such model file, here or in models/ or models/hub/{nearest(file.stem, known)}")


def read_cfg(cfg: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """An own copy of the model description, and how to call it in messages."""
    if isinstance(cfg, Mapping):
        return copy.deepcopy(dict(cfg)), "model description"
    if not isinstance(cfg, (str, Path)):
        raise UserError(f"model description: expected a file, a name or a mapping, found {type(cfg).__name__}")
    path = find_cfg(cfg)
    return read_yaml(path), str(path)
