"""Checks of ncnn models before ncnn opens them."""

import os
import random
from pathlib import Path

import pytest

from utils.errors import UserError, one_line
from utils.inference.ncnn_file import FLOAT16, check_ncnn

LAYERS = """7767517
13 16
Input in 0 1 in0
Convolution stem 1 1 in0 1 0=4 1=3 11=3 12=1 13=2 14=1 2=1 3=2 4=1 5=1 6=108
Swish silu 1 1 1 2
Split split 1 2 2 3 4
ConvolutionDepthWise depth 1 1 3 5 0=4 1=3 4=1 5=1 6=36 7=4
Concat cat 2 1 4 5 6 0=0
Interp up 1 1 6 7 0=1 1=2.0 2=2.0 6=0
Reshape rows 1 1 7 8 6="0w,-1"
MemoryData grid 0 1 9 0=2 1=5
Slice parts 1 3 8 10 11 12 -23300=3,2,2,-233 1=1
Gemm dense 1 1 10 13 10=4 2=0 3=1 4=0 5=1 6=1 7=2 8=4 9=3
MultiHeadAttention attend 3 1 11 12 13 14 0=4 1=2 2=16 3=4 4=4
BinaryOp scale 1 1 14 out0 0=2 1=1 2=2.0
"""
# Number of weights, and if a tag is before them: of stem, depth, grid, dense and attend.
WEIGHTS = [(108, True), (4, False), (36, True), (4, False), (10, False), (12, True), (4, True)] + 4 * [
    (16, True),
    (4, False),
]


def pack(tag: bytes = bytes(4)) -> bytes:
    """Return weights of zeros, those with a tag in float32 or, with that of float16, in 16 bits."""
    width = 2 if tag == FLOAT16 else 4
    return b"".join(tag + bytes(count * width) if has_tag else bytes(count * 4) for count, has_tag in WEIGHTS)


def write(folder: Path, layers: str | bytes = LAYERS, weights: bytes | None = None) -> tuple[Path, Path]:
    graph, file = folder / "a.param", folder / "a.bin"
    graph.write_bytes(layers if isinstance(layers, bytes) else layers.encode())
    file.write_bytes(pack() if weights is None else weights)
    return graph, file


def refusal(graph: Path, weights: Path) -> str:
    with pytest.raises(UserError) as caught:
        check_ncnn(graph, weights)
    message = str(caught.value)
    assert message.startswith(str(graph.parent)) and one_line(message) == message
    return message


def test_models_that_fit_their_weights(tmp_path):
    check_ncnn(*write(tmp_path))
    check_ncnn(*write(tmp_path, weights=pack(FLOAT16)))
    check_ncnn(*write(tmp_path, LAYERS.replace("\n", "\r\n").replace(" ", "   ")))


@pytest.mark.parametrize(
    "old, new, reason",
    [
        (LAYERS, "", "not an ncnn model"),
        (LAYERS, "7767517\n", "not an ncnn model, which begins with 7767517 and"),
        ("7767517", "7767518", "not an ncnn model"),
        ("13 16", "12 16", "line 2: says 12 layers, but 13 follow"),
        ("13 16", "13 99999999", "line 2: '99999999' is not a number of layers"),
        ("13 16", "13 17", "the layers have 16 blobs, not 17"),
        ("13 16", "13", "not an ncnn model"),
        ("Swish", "PythonOp", "line 5: the layer 'PythonOp' is not one of detectors"),
        ("Swish silu 1 1", "Swish silu 2147483647 1", "line 5: '2147483647' is not a number"),
        ("Swish silu 1 1", "Swish silu 1 9", "fewer inputs and outputs than it says"),
        ("Swish silu 1 1 1 2", "Swish", "line 5: '' is not a number"),
        ("silu", "s" * 256, "too long a name"),
        ("silu 1 1 1 2", "silu 0 1 2", "a Swish with 0 inputs and 1 outputs"),
        ("2 3 4\n", "2 3 3\n", "line 6: the output '3' is that of two layers"),
        ("silu 1 1 1", "silu 1 1 7", "line 5: the input '7' is no output of a layer above, or is used twice"),
        ("2 1 4 5", "2 1 4 4", "the input '4' is no output of a layer above, or is used twice"),
        ("0=4 1=3 11", "0=-4 1=3 11", "line 4: the parameter 0=-4 is too small"),
        ("0=4 1=3 11", "0=4.5 1=3 11", "the parameter 0=4.5 is too small, or not whole"),
        ("13=2", "13=0", "the parameter 13=0 is too small"),
        ("11=3", "11=5", "108 weights do not fit 4 outputs and a kernel of 15"),
        ("6=108", "6=72", "72 weights do not fit 4 outputs"),
        ("6=108", "6=9999999999", "the number 9999999999 is too large"),
        ("7=4", "7=3", "36 weights do not fit"),
        ("4=1 5=1 6=108", "4=1000000 5=1 6=108", "the parameter 4 of a Convolution is beyond 1024"),
        ("1=2.0 2", "1=1000.0 2", "the parameter 1 of a Interp is beyond 16"),
        ("5=1 6=108", "5=1 6=108 8=1", "weights of 8 bits"),
        ("1=2 2=16", "1=3 2=16", "do not fit attention of 4 in 3 heads"),
        ("7=2 8=4 9=3", "7=2 8=0 9=3", "a matrix without a size"),
        ("0=2 1=1 2=2.0", "0=2 1=1 2=nan", "'nan' is no number"),
        ("0=2 1=1", "0=2 0=2", "the parameter '0=2' is none of ncnn's, or is damaged"),
        ("0=2 1=1", "0=2 32=1", "the parameter '32=1' is none of ncnn's"),
        ("-23300=3,2", "-23300=2147483647,2", "line 12: the number 2147483647 is too large"),
        ("-23300=3,2", "-23300=4,2", "line 12: the parameter '-23300=4,2,2,-233' is none of ncnn's"),
        ("0=2 1=5\n", '0="9w" 1=5\n', "is no number"),
    ],
)  # fmt: skip
def test_layers_that_are_refused(tmp_path, old, new, reason):
    assert old in LAYERS
    assert reason in refusal(*write(tmp_path, LAYERS.replace(old, new, 1)))


@pytest.mark.parametrize(
    "weights, reason",
    [
        (b"", "too short for a.param"),
        (pack()[:-4], "too short for a.param: a damaged file, or that of another model"),
        (pack() + bytes(4), "too long for a.param"),
        (FLOAT16 + pack()[4:], "too long"),
        (b"\x38\x4b\x0d\x00" + pack()[4:], "weights of 8 bits"),
    ],
)
def test_weights_that_are_refused(tmp_path, weights, reason):
    assert reason in refusal(*write(tmp_path, weights=weights))


def test_files_that_are_not_there(tmp_path):
    graph, weights = write(tmp_path)
    os.remove(weights)
    assert "it holds the weights of a.param" in refusal(graph, weights)
    os.mkfifo(weights)
    assert "not a regular file" in refusal(graph, weights)
    for content in ("7767517\nÄ".encode(), LAYERS.encode().replace(b"silu", b"si\0u")):
        graph.write_bytes(content)
        assert "which are text" in refusal(graph, weights)
    os.remove(graph)
    assert "No such file" in refusal(graph, weights)


def test_random_damage_is_accepted_or_one_line(tmp_path):
    """Changes of one byte to the layers. Those of names and free parameters are accepted, as ncnn accepts them."""
    draw, messages = random.Random(0), []
    graph, weights = write(tmp_path)
    for _ in range(400):
        content = bytearray(LAYERS.encode())
        content[draw.randrange(len(content))] = draw.choice((draw.randrange(256), *b" 0919=-,."))
        graph.write_bytes(content)
        try:
            check_ncnn(graph, weights)
        except UserError as error:
            messages.append(str(error))
    assert 250 < len(messages) < 400
    assert [one_line(message) for message in messages] == messages
