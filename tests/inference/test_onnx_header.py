"""The header of ONNX files, read without the onnx package, against that package."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from utils.errors import UserError
from utils.inference.onnx_header import read_onnx_header


def make_model(**settings):
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "weight")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "weight"], ["y"]),
            helper.make_node("Secret", ["y"], ["output0"], domain="com.example"),
        ],
        "graph",
        [
            helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 64, None]),
            helper.make_tensor_value_info("weight", TensorProto.FLOAT, [4, 3, 1, 1]),  # as IR version 3 lists it
        ],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 4, 64, 64])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)])
    helper.set_model_props(model, {"stride": "32", "names": "{0: 'é'}", "empty": ""})
    return model


def test_the_header_of_a_model(tmp_path):
    onnx.save(make_model(), tmp_path / "m.onnx")
    header = read_onnx_header(tmp_path / "m.onnx")
    assert header.opsets == {"": 17, "com.example": 1}
    assert header.properties == {"stride": "32", "names": "{0: 'é'}", "empty": ""}
    assert header.inputs == [("images", ["batch", 3, 64, None])] and header.outputs == [("output0", [1, 4, 64, 64])]
    assert header.operators == {"Conv", "com.example.Secret"} and header.external_files == []


def test_weights_in_other_files_are_listed(tmp_path):
    onnx.save(make_model(), tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert read_onnx_header(tmp_path / "m.onnx").external_files == ["weights.bin"]


def test_damage_is_one_line(tmp_path):
    file, content = tmp_path / "m.onnx", make_model().SerializeToString()
    for data in (b"", b"not a model at all", content[:40], content[: len(content) // 2], b"\x00" * 50, b"\xff" * 50):
        file.write_bytes(data)
        with pytest.raises(UserError, match="m.onnx: "):
            read_onnx_header(file)
    with pytest.raises(UserError, match="no.onnx: cannot be read"):
        read_onnx_header(tmp_path / "no.onnx")
