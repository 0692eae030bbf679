"""Operators of exported files: small files of each format, whose operators are known."""

import onnx
import pytest
import torch
from torch import nn

from utils.exporting.operators import Operators, read_operators


def write_onnx(folder):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1])
    nodes = [onnx.helper.make_node("Relu", ["x"], ["a"]), onnx.helper.make_node("Relu", ["a"], ["b"]),
             onnx.helper.make_node("Odd", ["b"], ["z"], domain="my.own")]  # fmt: skip
    graph = onnx.helper.make_graph(nodes, "g", [value], [result])
    opsets = [onnx.helper.make_opsetid("my.own", 1), onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), folder / "a.onnx")
    return folder / "a.onnx"


def write_torchscript(folder):
    module = torch.jit.trace(nn.Sequential(nn.ReLU(), nn.Sigmoid(), nn.ReLU()), torch.zeros(1))
    module.save(str(folder / "a.torchscript"))
    return folder / "a.torchscript"


def write_openvino(folder):
    kinds = ("Parameter", "Const", "Add", "SoftPlus", "Add")
    layers = zip(kinds, ("opset1", "opset1", "opset1", "opset4", "opset1"), strict=True)
    rows = "".join(f'<layer id="{i}" type="{kind}" version="{version}"/>' for i, (kind, version) in enumerate(layers))
    (folder / "a_openvino_model").mkdir()
    (folder / "a_openvino_model" / "a.xml").write_text(f"<net><layers>{rows}</layers></net>")
    return folder / "a_openvino_model"


def write_ncnn(folder):
    (folder / "a_ncnn_model").mkdir()
    rows = ["7767517", "3 3", "Input in0 0 1 in0", "Convolution c 1 1 in0 1 0=8", "Swish s 1 1 1 2", ""]
    (folder / "a_ncnn_model" / "model.ncnn.param").write_text("\n".join(rows))
    return folder / "a_ncnn_model"


@pytest.mark.parametrize("write, operators", [
    (write_onnx, Operators("17", {"Relu": 2, "my.own.Odd": 1})),
    (write_torchscript, Operators("", {"aten::relu": 2, "aten::sigmoid": 1})),
    (write_openvino, Operators("opset4", {"Add": 2, "SoftPlus": 1})),
    (write_ncnn, Operators("", {"Convolution": 1, "Swish": 1})),
    (lambda folder: folder / "a.engine", None),
    (lambda folder: folder, None),  # a folder of another format
])  # fmt: skip
def test_operators(tmp_path, write, operators):
    assert read_operators(write(tmp_path)) == operators
