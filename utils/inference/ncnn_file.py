"""Checks of an ncnn model, a .param file of layers and a .bin file of their weights, before ncnn opens them.

The library trusts both: a kernel that does not fit its weights is read beyond them. Docs of the two formats:
https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path

from utils.cli import shorten
from utils.errors import UserError
from utils.files import open_regular, read_regular

MAGIC = "7767517"
MAX_PARAM_BYTES = 1 << 22  # a yolov5x has 25 KiB
MAX_WEIGHTS_BYTES = 1 << 33
MAX_LAYERS = 1 << 16
MAX_NUMBER = 1 << 28
MAX_SIDE = 1024  # of kernels, strides, paddings: a padding of 10⁶ takes gigabytes and minutes
MAX_SCALE = 16  # of one resize
MAX_NAME = 255  # letters, the length of ncnn's buffers
NUM_KEYS = 32
FLOAT16 = b"\x47\x6b\x30\x01"  # the tag before weights of 16 bits; four zeros are before those of 32
INTEGER, FLOAT = re.compile(r"-?\d{1,10}"), re.compile(r"-?\d{1,10}\.\d{0,20}(?:e[+-]?\d{1,2})?|-?\d{1,3}e[+-]?\d{1,2}")
EXPRESSION = re.compile(r'"[\w,+*/()-]{1,200}"')  # of sides, such as "0w,-1"
# Layers of kernels and paddings, and the keys that are counts of channels or weights.
GEOMETRY = {
    "Convolution": {0, 6},
    "ConvolutionDepthWise": {0, 6, 7},
    "Pooling": set(),
    "Padding": set(),
    "Interp": set(),
}
HAVE_EXPRESSIONS = {"Reshape", "Interp", "Crop"}
ADVICE = "give the folder that export.py wrote, or export the model again"

# Layers with an output of as many channels as the input.
SAME_CHANNELS = set(
    "Split Swish Sigmoid ReLU HardSwish HardSigmoid Mish GELU TanH ELU SELU Clip UnaryOp Dropout Pooling Interp".split()
)
KNOWN = SAME_CHANNELS | set(
    """
    Input MemoryData Convolution ConvolutionDepthWise InnerProduct Gemm MultiHeadAttention Concat Slice Crop Padding
    BinaryOp Eltwise Reshape Permute Flatten Squeeze ExpandDims Softmax Reduction MatMul PixelShuffle Reorg Noop
    """.split()
)

Numbers = dict[int, list[float]]  # values by the key of a layer's parameter


def check_ncnn(graph: Path, weights: Path, channels: int = 3) -> None:
    """Raise UserError unless the files hold layers that fit each other, and exactly the weights of these."""
    reader = _LayerReader(channels)
    try:
        rows = _read_rows(read_regular(graph, MAX_PARAM_BYTES))
        reader.check(rows)
    except OSError as error:
        raise UserError(f"{graph}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{graph}: {error}: {ADVICE}") from error
    _check_weights(weights, graph, reader.weights)


def _read_rows(content: bytes) -> list[tuple[int, list[str]]]:
    """Return the number and the words of each line that is not empty, split where C splits them."""
    try:
        lines = [[word.decode("ascii") for word in line.split()] for line in content.split(b"\n")]
    except UnicodeDecodeError as error:
        raise ValueError("not the layers of an ncnn model, which are text") from error
    if b"\0" in content:  # where C ends a name
        raise ValueError("not the layers of an ncnn model, which are text")
    return [(number, words) for number, words in enumerate(lines, 1) if words]


def _check_weights(path: Path, graph: Path, parts: list[tuple[int, bool]]) -> None:
    """Raise UserError unless a file has exactly the weights of the layers.

    parts: number of weights of each, and if a tag is before them.
    """
    try:
        with open_regular(path, MAX_WEIGHTS_BYTES) as file:
            size, place = file.seek(0, 2), 0
            for count, has_tag in parts:
                width = 4
                if has_tag:
                    file.seek(place)
                    tag = file.read(4)
                    if len(tag) == 4 and tag not in (FLOAT16, bytes(4)):
                        raise UserError(f"{path}: damaged, or weights of 8 bits, which are not run here: {ADVICE}")
                    width, place = (2 if tag == FLOAT16 else 4), place + 4
                place += -(-count * width // 4) * 4  # aligned
                if place > size:
                    break
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}: it holds the weights of {graph.name}") from error
    if place != size:
        word = "short" if place > size else "long"
        raise UserError(f"{path}: too {word} for {graph.name}: a damaged file, or that of another model")


class _LayerReader:
    """Reader of the layers in their order. Raises ValueError for one that ncnn cannot run."""

    def __init__(self, image_channels: int) -> None:
        self.image_channels = image_channels
        self.channels: dict[str, int | None] = {}  # of each blob so far, None if it is unknown
        self.unread: set[str] = set()
        self.weights: list[tuple[int, bool]] = []  # number of weights, and if a tag is before them

    def check(self, rows: list[tuple[int, list[str]]]) -> None:
        """Check all lines: the magic number, the numbers of layers and blobs, the layers."""
        if len(rows) < 3 or rows[0][1] != [MAGIC] or len(rows[1][1]) != 2:
            raise ValueError(f"not an ncnn model, which begins with {MAGIC} and its numbers of layers and blobs")
        line, counts = rows[1]
        try:
            num_layers, num_blobs = (_count(word) for word in counts)
            if num_layers != len(rows) - 2:
                raise ValueError(f"says {num_layers} layers, but {len(rows) - 2} follow")
            for number, words in rows[2:]:
                line = number
                self.add(words)
            if num_blobs != len(self.channels):
                raise ValueError(f"the layers have {len(self.channels)} blobs, not {num_blobs}")
        except ValueError as error:
            raise ValueError(f"line {line}: {error}") from error

    def add(self, words: list[str]) -> None:
        """Check a layer: type, name, number of inputs and outputs, these, and its parameters."""
        kind, _, *counts = [*words, "", "", ""][:4]
        num_inputs, num_outputs = (_count(word) for word in counts)
        if kind not in KNOWN:
            raise ValueError(f"the layer {shorten(kind)} is not one of detectors")
        end = 4 + num_inputs + num_outputs
        blobs, numbers = words[4:end], _read_numbers(words[end:], kind in HAVE_EXPRESSIONS)
        if len(blobs) != num_inputs + num_outputs or max(map(len, words)) > MAX_NAME:
            raise ValueError("a layer with fewer inputs and outputs than it says, or with too long a name")
        if (num_inputs == 0) != (kind in ("Input", "MemoryData")) or not num_outputs:
            raise ValueError(f"a {kind} with {num_inputs} inputs and {num_outputs} outputs")
        _check_geometry(kind, numbers)
        inputs, outputs = blobs[:num_inputs], blobs[num_inputs:]
        for name in inputs:
            if name not in self.unread:
                raise ValueError(f"the input {shorten(name)} is no output of a layer above, or is used twice")
            self.unread.remove(name)
        found = self.output_channels(kind, [self.channels[name] for name in inputs], numbers)
        for name in outputs:
            if name in self.channels:
                raise ValueError(f"the output {shorten(name)} is that of two layers")
            self.channels[name] = found
            self.unread.add(name)

    def output_channels(self, kind: str, inputs: list[int | None], numbers: Numbers) -> int | None:
        """Return the channels of a layer's outputs, None if they are unknown. Its weights are noted."""
        if kind in ("Convolution", "ConvolutionDepthWise", "InnerProduct"):
            return self.convolve(kind, inputs[0], numbers)
        if kind == "MemoryData":
            sides = [_whole(numbers, key) for key in (0, 1, 11, 2)]
            self.weights.append((math.prod(side for side in sides if side), _whole(numbers, 21, 1) == 0))
        elif kind == "Gemm":
            self.multiply(numbers)
        elif kind == "MultiHeadAttention":
            self.attend(numbers)
        elif kind == "Reshape":
            return None if 6 in numbers else max(_whole(numbers, 2, least=-1), 0) or None
        elif kind == "Input":
            return self.image_channels
        elif kind == "Concat" and _whole(numbers, 0) == 0:
            return None if None in inputs else sum(one or 0 for one in inputs)
        elif kind in SAME_CHANNELS or (kind in ("BinaryOp", "Eltwise") and len(set(inputs)) == 1):
            return inputs[0]
        return None

    def convolve(self, kind: str, channels: int | None, numbers: Numbers) -> int | None:
        """Return the channels that a convolution gives. Raises ValueError if its weights do not fit its kernel."""
        out = _whole(numbers, 0, least=1)
        is_dense = kind == "InnerProduct"
        count = _whole(numbers, 2 if is_dense else 6, least=1)
        has_bias = _whole(numbers, 1 if is_dense else 5)
        kernel = 1
        if not is_dense:
            for key, other in ((1, 11), (2, 12), (3, 13)):  # kernel, dilation, stride: of width, and of height
                width = _whole(numbers, key, 0 if key == 1 else 1, least=1)
                height = _whole(numbers, other, width, least=1)
                kernel *= width * height if key == 1 else 1
        groups = _whole(numbers, 7, 1, least=1) if kind == "ConvolutionDepthWise" else 1
        if _whole(numbers, 8):
            raise ValueError("weights of 8 bits, which are not run here")
        inside = count * groups // (out * kernel)  # channels of the input
        fits = inside * out * kernel == count * groups and out % groups == inside % groups == 0
        if not inside or not fits or (not is_dense and channels not in (None, inside)):
            raise ValueError(f"{count} weights do not fit {out} outputs and a kernel of {kernel}")
        self.weights += [(count, True), *([(out, False)] if has_bias else [])]
        return None if is_dense else out

    def multiply(self, numbers: Numbers) -> None:
        """Note the constants of a matrix product, A (M, K), B (K, N) and C, which is added."""
        m, n, k = (_whole(numbers, key) for key in (7, 8, 9))
        if _whole(numbers, 18):
            raise ValueError("weights of 8 bits, which are not run here")
        sizes = {-1: 0, 0: 1, 1: m, 2: m, 3: m * n, 4: n}  # of C
        broadcast = int(numbers.get(10, [0])[0])
        for key, count in ((4, m * k), (5, k * n), (6, sizes.get(broadcast, 0))):
            if _whole(numbers, key) and not (key == 6 and broadcast == -1):
                if not count:
                    raise ValueError("a matrix without a size")
                self.weights.append((count, True))

    def attend(self, numbers: Numbers) -> None:
        """Note the weights and biases of attention: query, key, value and output."""
        size, count = _whole(numbers, 0, least=1), _whole(numbers, 2, least=1)
        heads, of_query = _whole(numbers, 1, 1, least=1), count // size
        of_key, of_value = _whole(numbers, 3, size, least=1), _whole(numbers, 4, size, least=1)
        if size % heads or count % size or _whole(numbers, 18):
            raise ValueError(f"{count} weights do not fit attention of {size} in {heads} heads")
        for rows, columns in ((size, of_query), (size, of_key), (size, of_value), (of_query, size)):
            self.weights += [(rows * columns, True), (rows, False)]


def _read_numbers(words: list[str], has_expressions: bool) -> Numbers:
    """Return the values of parameters, of `key=value` or, for a row of them, `-23300-key=count,value,…`.

    An expression has no values.
    """
    found: Numbers = {}
    for word in words:
        key, _, text = word.partition("=")
        is_expression = has_expressions and EXPRESSION.fullmatch(text)
        values = [] if is_expression else list(_values(text))
        place = int(key) if INTEGER.fullmatch(key) else -1
        is_row = place <= -23300 and not is_expression
        place, is_right = (-23300 - place, values[0] == len(values) - 1) if is_row else (place, len(values) <= 1)
        if not 0 <= place < NUM_KEYS or place in found or not is_right:
            raise ValueError(f"the parameter {shorten(word)} is none of ncnn's, or is damaged")
        found[place] = values[1:] if is_row else values
    return found


def _values(text: str) -> Iterator[float]:
    for one in text.split(","):
        if not (INTEGER.fullmatch(one) or FLOAT.fullmatch(one)):
            raise ValueError(f"{shorten(text)} is no number")
        value = float(one)
        if abs(value) > MAX_NUMBER and INTEGER.fullmatch(one):
            raise ValueError(f"the number {one} is too large")
        yield value


def _check_geometry(kind: str, numbers: Numbers) -> None:
    """Raise ValueError for kernels, paddings and sizes that make an output far larger than the input."""
    for key, values in numbers.items():
        most = MAX_SCALE if kind == "Interp" and key in (1, 2) else MAX_SIDE
        if kind in GEOMETRY and key not in GEOMETRY[kind] and any(abs(value) > most for value in values):
            raise ValueError(f"the parameter {key} of a {kind} is beyond {most}")


def _whole(numbers: Numbers, key: int, default: int = 0, *, least: int = 0) -> int:
    """Return a parameter that is a whole number of at least `least`."""
    value = (numbers.get(key) or [default])[0]
    if value != int(value) or value < least:
        raise ValueError(f"the parameter {key}={value:g} is too small, or not whole")
    return int(value)


def _count(word: str) -> int:
    if not INTEGER.fullmatch(word) or not 0 <= int(word) <= MAX_LAYERS:
        raise ValueError(f"{shorten(word)} is not a number of layers, inputs or outputs")
    return int(word)
