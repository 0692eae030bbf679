"""Outline and checks of an ONNX file, read before any library opens it. Nothing in the file is run.

A library trusts the sizes that a file claims, opens other files that it names and repeats its loops without end. So a
file passes `read_onnx` first, which needs no package: it reads the protocol buffer itself and skips the weights.
"""

import math
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from utils.cli import shorten
from utils.errors import UserError
from utils.files import open_regular
from utils.inference.runtime import InputShape, are_images
from utils.inference.wire_format import BYTES, VARINT, DamagedMessage, Field, Reader, integer, integers, text

MAX_BYTES = (1 << 31) - 1  # protocol buffers end here
MAX_FIELDS = 500_000  # of all messages in a file: two seconds; the largest of our models has 50,000
MAX_NUMBERS = 1 << 28  # of the input, of an output, and of a tensor whose size is written in the file: 1 GiB of float32
MAX_FACTOR = 1 << 12  # by which one operator may enlarge a tensor
MAX_RANK = 16
MAX_DEPTH = 8  # of graphs within graphs
MAX_CHARACTERS = 1 << 22  # of a text
SMALL = 64  # numbers in a constant that may be a size
BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4,
}  # fmt: skip  # of a number, by ONNX's number of its type; 8, text, is not in it
FLOAT32, INT64, FLOAT16 = 1, 7, 10
# Operators outside the standard: those that ONNX Runtime's quantisation and optimisation write.
MICROSOFT = "com.microsoft"
MICROSOFT_OPERATORS = set(
    """
    QuantizeLinear DequantizeLinear QLinearAdd QLinearMul QLinearSigmoid QLinearConcat QLinearLeakyRelu QLinearSoftmax
    QLinearAveragePool QLinearGlobalAveragePool QLinearReduceMean QGemm FusedConv FusedMatMul FusedGemm QuickGelu
    """.split()
)
REPEATING = {"Loop", "Scan", "SequenceMap"}
# (operator, input) that gives the size of a result -> the largest that is allowed, and how it follows from the values.
SIZES: dict[tuple[str, int], tuple[int, Callable]] = {
    ("ConstantOfShape", 0): (MAX_NUMBERS, math.prod),
    ("Expand", 1): (MAX_NUMBERS, math.prod),
    ("Resize", 3): (MAX_NUMBERS, math.prod),
    ("Resize", 2): (MAX_FACTOR, math.prod),
    ("Upsample", 1): (MAX_FACTOR, math.prod),
    ("Tile", 1): (MAX_FACTOR, math.prod),
    ("Pad", 1): (MAX_FACTOR, max),
}
MAX_PADDING = 1 << 12  # pixels, of an attribute


class Tensor(NamedTuple):
    """Input or output of a graph."""

    name: str
    kind: int  # ONNX's number of its data type
    shape: tuple[int | None, ...] | None  # None: a dynamic side, or no shape at all


class Node(NamedTuple):
    """Operator of a graph, without its attributes."""

    operator: str
    inputs: list[str]


@dataclass
class OnnxOutline:
    """Facts about an ONNX file."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    properties: dict[str, str] = field(default_factory=dict)  # the metadata
    opset: int = 0
    operators: Counter[str] = field(default_factory=Counter)

    @property
    def input_shape(self) -> InputShape:
        """Batch, height, width and channels of the images."""
        batch, channels, height, width = self.inputs[0].shape or (None,) * 4
        return InputShape((batch, height, width), channels)


def read_onnx(path: str | Path) -> OnnxOutline:
    """Return the outline of an ONNX detector.

    Raises UserError for a damaged file and for another kind of model. Also for one that is too large for memory, leads
    out of its folder or repeats operators.
    """
    path = Path(path)
    try:
        with open_regular(path, MAX_BYTES) as file:
            if not file.read(1):
                raise UserError(f"{path}: an empty file: give a file that export.py wrote")
        outline = _GraphReader(path).model(np.memmap(path, np.uint8, "r").data)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except DamagedMessage as error:
        raise UserError(f"{path}: not an ONNX file, or a damaged one ({error}): export the model again") from error
    require_detector(outline, path)
    return outline


class _GraphReader:
    """Reader of one file, which collects what the checks need."""

    def __init__(self, path: Path) -> None:
        self.path, self.reader, self.outline = path, Reader(MAX_FIELDS), OnnxOutline()
        self.constants: dict[str, Sequence[float]] = {}  # small tensors by name
        self.initializers: set[str] = set()
        self.nodes: list[Node] = []

    def refuse(self, reason: str) -> UserError:
        return UserError(f"{self.path}: {reason}")

    def model(self, message: memoryview) -> OnnxOutline:
        """Read a ModelProto."""
        graphs = 0
        for part in self.reader.fields(message):
            if part.number == 7:
                graphs += 1
                self.graph(_message(part), 0)
            elif part.number == 8:
                self.opset(_message(part))
            elif part.number == 14:
                key, value = self.text_pair(_message(part))
                self.outline.properties[key] = value
            elif part.number == 25:
                raise self.refuse("defines operators of its own (functions): export the model again without them")
        if graphs != 1 or not self.nodes:
            raise DamagedMessage(f"{graphs} graphs" if graphs != 1 else "no operators")
        self.outline.inputs = [one for one in self.outline.inputs if one.name not in self.initializers]
        self.check_sizes()
        return self.outline

    def opset(self, message: memoryview) -> None:
        domain, version = "", 0
        for part in self.reader.fields(message):
            if part.number == 1:
                domain = text(_message(part), MAX_CHARACTERS)
            elif part.number == 2:
                version = integer(part)
        if domain in ("", "ai.onnx"):
            self.outline.opset = max(version, self.outline.opset)

    def text_pair(self, message: memoryview) -> tuple[str, str]:
        """Read a StringStringEntryProto: key and value."""
        found = {1: "", 2: ""}
        for part in self.reader.fields(message):
            found[part.number] = text(_message(part), MAX_CHARACTERS)
        return found[1], found[2]

    def graph(self, message: memoryview, depth: int) -> None:
        """Read a GraphProto. `depth` counts the graphs around it."""
        if depth > MAX_DEPTH:
            raise self.refuse(f"graphs within graphs, more than {MAX_DEPTH} deep: export the model again")
        for part in self.reader.fields(message):
            if part.number == 1:
                self.node(_message(part), depth)
            elif part.number == 5:
                self.initializers.add(self.tensor(_message(part)))
            elif part.number == 15:
                raise self.refuse("has sparse tensors: export the model again without them")
            elif part.number in (11, 12) and not depth:
                places = self.outline.inputs if part.number == 11 else self.outline.outputs
                places.append(self.value_info(_message(part)))

    def node(self, message: memoryview, depth: int) -> None:
        """Read a NodeProto with its attributes."""
        inputs, outputs, texts = [], [], {4: "", 7: ""}
        attributes = []
        for part in self.reader.fields(message):
            if part.number in (1, 2):
                (inputs if part.number == 1 else outputs).append(text(_message(part), MAX_CHARACTERS))
            elif part.number in texts:
                texts[part.number] = text(_message(part), MAX_CHARACTERS)
            elif part.number == 5:
                attributes.append(_message(part))
        operator, domain = texts[4], texts[7]
        self.check_operator(operator, domain)
        self.outline.operators[operator] += 1
        self.nodes.append(Node(operator, inputs))
        for attribute in attributes:
            self.attribute(attribute, depth, outputs[0] if operator == "Constant" and outputs else "")

    def check_operator(self, operator: str, domain: str) -> None:
        """Raise UserError for an operator that is not of the standard, or that repeats."""
        if domain not in ("", "ai.onnx") and not (domain == MICROSOFT and operator in MICROSOFT_OPERATORS):
            raise self.refuse(
                f"needs the custom operator {shorten(domain)} {shorten(operator)}, which no library here has: "
                "export the model without it"
            )
        if operator in REPEATING:
            raise self.refuse(f"has the operator {operator}, which may repeat without end: export the model without it")

    def attribute(self, message: memoryview, depth: int, constant: str) -> None:
        """Read an AttributeProto. `constant` is the name of the tensor that it gives, "" if it is none."""
        name, values = "", []
        for part in self.reader.fields(message):
            if part.number == 1:
                name = text(_message(part), MAX_CHARACTERS)
            elif part.number in (5, 10):
                self.tensor(_message(part), constant)
            elif part.number in (6, 11):
                self.graph(_message(part), depth + 1)
            elif part.number in (22, 23):
                raise self.refuse("has sparse tensors: export the model again without them")
            elif part.number == 8 and (part.wire == VARINT or len(part.data) <= 10 * SMALL):
                values += integers(part, SMALL)
        if constant and name == "value_ints":
            self.constants[constant] = values
        if (name == "pads" and max(values, default=0) > MAX_PADDING) or (
            name in ("shape", "output_shape") and math.prod(values) > MAX_NUMBERS
        ):
            raise self.refuse(f"the attribute {name} {shorten(values)} is too large for memory")

    def value_info(self, message: memoryview) -> Tensor:
        """Read a ValueInfoProto."""
        name, kind, shape = "", 0, None
        for part in self.reader.fields(message):
            if part.number == 1:
                name = text(_message(part), MAX_CHARACTERS)
            elif part.number == 2:
                for inner in self.reader.fields(_message(part)):
                    if inner.number == 1:  # of the kinds of values only tensors are read
                        kind, shape = self.tensor_type(_message(inner))
        return Tensor(name, kind, shape)

    def tensor_type(self, message: memoryview) -> tuple[int, tuple[int | None, ...] | None]:
        kind, shape = 0, None
        for part in self.reader.fields(message):
            if part.number == 1:
                kind = integer(part)
            elif part.number == 2:
                sides = [inner for inner in self.reader.fields(_message(part)) if inner.number == 1]
                if len(sides) > MAX_RANK:
                    raise DamagedMessage(f"a shape of {len(sides)} sides")
                shape = tuple(self.side(_message(side)) for side in sides)
        return kind, shape

    def side(self, message: memoryview) -> int | None:
        """Return the length of a side, None for a dynamic one, whose name is given or nothing."""
        lengths = [integer(part) for part in self.reader.fields(message) if part.number == 1]
        return lengths[-1] if lengths else None

    def tensor(self, message: memoryview, constant: str = "") -> str:
        """Check a TensorProto and return its name. Keep its values if it is small."""
        stored = _Stored()
        external: dict[str, str] = {}
        for part in self.reader.fields(message):
            if part.number == 13:
                key, value = self.text_pair(_message(part))
                external[key] = value
            else:
                stored.add(part)
        expected = stored.num_bytes()
        if stored.is_external or external:
            check_external(self.path, external, expected or 0)
            return stored.name
        if expected is not None and stored.raw is not None and len(stored.raw) != expected:
            raise DamagedMessage(f"a tensor {stored.shape} of {len(stored.raw)} bytes instead of {expected}")
        if stored.count > 2 * stored.bytes:
            raise DamagedMessage(f"a tensor {stored.shape} of {stored.bytes} bytes")
        if stored.count <= SMALL:
            self.constants[constant or stored.name] = stored.small_values()
        return stored.name

    def check_sizes(self) -> None:
        """Raise UserError if a constant makes an operator's result larger than memory."""
        for operator, inputs in self.nodes:
            for place, name in enumerate(inputs):
                limit, measure = SIZES.get((operator, place), (0, max))
                values = self.constants.get(name)
                if limit and values and not measure(values) <= limit:
                    raise self.refuse(f"the operator {operator} makes a tensor {shorten(values)}: too large for memory")


class _Stored:
    """Content of a TensorProto."""

    def __init__(self) -> None:
        self.name, self.kind, self.is_external = "", 0, False
        self.shape: list[int] = []
        self.raw: memoryview | None = None
        self.bytes = 0  # of its values in the file
        self.numbers: list[int] = []  # the first, where they are integers

    def add(self, part: Field) -> None:
        """Take a field."""
        if part.number == 1:
            self.shape += integers(part, MAX_RANK)
            if len(self.shape) > MAX_RANK or min(self.shape, default=0) < 0:
                raise DamagedMessage(f"a tensor of the shape {shorten(self.shape)}")
        elif part.number == 2:
            self.kind = integer(part)
        elif part.number == 8:
            self.name = text(_message(part), MAX_CHARACTERS)
        elif part.number == 9:
            self.raw, self.bytes = _message(part), len(part.data)
        elif part.number == 14:
            self.is_external = integer(part) == 1
        elif part.number in (4, 5, 6, 7, 10, 11):
            self.bytes += len(part.data) or 8
            if part.number == 7 and len(part.data) <= 10 * SMALL:
                self.numbers += integers(part, SMALL)

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def num_bytes(self) -> int | None:
        """Return how many bytes the shape and the type need, None for a type without a fixed size."""
        bits = BITS.get(self.kind)
        return None if bits is None else -(-self.count * bits // 8)

    def small_values(self) -> Sequence[float]:
        """Return the values of a small tensor of integers or floats, none for other types."""
        form = {FLOAT32: "f", INT64: "q"}.get(self.kind)
        if form and self.raw is not None:
            return struct.unpack(f"<{self.count}{form}", self.raw)
        return self.numbers


def _message(part: Field) -> memoryview:
    """Return the bytes of a field. Raises DamagedMessage for a number, where bytes belong."""
    if part.wire != BYTES:
        raise DamagedMessage(f"field {part.number} is a number")
    return part.data


def check_external(path: Path, entries: dict[str, str], num_bytes: int) -> None:
    """Raise UserError unless external data is a range of a regular file in the folder of `path`, or below it."""
    location = entries.get("location", "")
    parts = PurePosixPath(location).parts
    if not parts or ".." in parts or location.startswith("/") or set(location) & set("\\:\0"):
        raise UserError(f"{path}: its weights are in {shorten(location)}, outside of its folder: export one file")
    file = path.parent.joinpath(*parts)
    places = [path.parent.joinpath(*parts[: k + 1]) for k in range(len(parts))]
    if any(place.is_symlink() for place in places):
        raise UserError(f"{path}: its weights are behind the link {shorten(location)}: put the file itself there")
    if not file.is_file():
        raise UserError(f"{path}: its weights are in {shorten(location)}, which is not there: put it beside the model")
    numbers = [entries.get(key, "0") for key in ("offset", "length")]
    if not all(number.isascii() and number.isdigit() and len(number) < 20 for number in numbers):
        raise DamagedMessage("external data at no number")
    offset, length = map(int, numbers)
    if (length and length != num_bytes) or offset + num_bytes > file.stat().st_size:
        raise UserError(f"{path}: {shorten(location)} is too short for the model's weights, or of another model")


def require_detector(outline: OnnxOutline, path: Path) -> None:
    """Raise UserError unless a model takes images and gives boxes."""
    if len(outline.inputs) != 1:
        names = ", ".join(shorten(one.name) for one in outline.inputs[:4])
        raise UserError(f"{path}: takes {len(outline.inputs)} inputs ({names}): a detector takes one, of images")
    _, kind, shape = outline.inputs[0]
    if kind not in (FLOAT32, FLOAT16) or shape is None or not are_images(shape):
        raise UserError(
            f"{path}: its input is {describe(outline.inputs[0])}: a detector takes float (B, channels, H, W)"
        )
    for tensor in (*outline.inputs, *outline.outputs):
        sides = [side for side in tensor.shape or () if side is not None]
        if min(sides, default=1) < 1 or math.prod(sides) > MAX_NUMBERS:
            raise UserError(f"{path}: {describe(tensor)} is too large for memory, or empty")
    if not outline.outputs:
        raise UserError(f"{path}: gives no output: a detector gives boxes")


def describe(tensor: Tensor) -> str:
    """Return name and shape for messages, as `images (B, 3, 640, 640)`."""
    if tensor.shape is None:
        return f"{shorten(tensor.name)} without a shape"
    return f"{shorten(tensor.name)} ({', '.join('?' if side is None else str(side) for side in tensor.shape)})"
