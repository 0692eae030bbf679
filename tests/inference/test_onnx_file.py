"""Checks of ONNX files before a library opens them: broken, hostile and foreign ones."""

import os
import struct

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import known_graph, make_model, save

from utils.errors import UserError, one_line
from utils.inference import onnx_file
from utils.inference.onnx_file import read_onnx
from utils.inference.wire_format import DamagedMessage, Reader, integers, read_varint

ROWS = np.arange(12 * 7, dtype=np.float32).reshape(1, 12, 7)


def model(**settings) -> onnx.ModelProto:
    return make_model(known_graph({"output0": ROWS}), **settings)


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        read_onnx(path)
    message = str(caught.value)
    assert str(path) in message and one_line(message) == message
    return message


def test_the_outline_of_a_file(tmp_path):
    outline = read_onnx(save(tmp_path / "a.onnx", model(metadata={"stride": "32", "names": "{0: 'é'}"}, opset=13)))
    assert [tensor._asdict() for tensor in (*outline.inputs, *outline.outputs)] == [
        {"name": "images", "kind": TensorProto.FLOAT, "shape": (1, 3, 64, 64)},
        {"name": "output0", "kind": TensorProto.FLOAT, "shape": (1, 12, 7)},
    ]
    assert outline.opset == 13 and outline.properties == {"stride": "32", "names": "{0: 'é'}"}
    assert outline.operators == {"ReduceMean": 1, "Mul": 1, "Reshape": 1, "Add": 1}


def test_dynamic_sides_have_no_length(tmp_path):
    graph = known_graph({"output0": ROWS}, ("batch", 3, "height", "width"), batch="batch")
    outline = read_onnx(save(tmp_path / "a.onnx", make_model(graph)))
    assert outline.inputs[0].shape == (None, 3, None, None) and outline.outputs[0].shape == (None, 12, 7)


def test_initializers_that_are_inputs_too_are_no_images(tmp_path):
    found = model()
    found.graph.input.append(helper.make_tensor_value_info("zero", TensorProto.FLOAT, [1]))
    assert [one.name for one in read_onnx(save(tmp_path / "a.onnx", found)).inputs] == ["images"]


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "an empty file"),
        (b"\x80", "not an ONNX file"),
        (b"PK\x03\x04" + bytes(100), "not an ONNX file"),
        (b"<net name='x' version='11'/>", "not an ONNX file"),
        (bytes(100_000), "not an ONNX file"),
        (b"\x08\x08" * 3000, "too many parts"),
        (b"\x3a\xff\xff\xff\xff\x0f", "a field reaches beyond its message"),
        (b"\x08" + b"\xff" * 20, "a number has no end"),
        (b"\x0b\x0c", "unknown kind of field"),
    ],
)
def test_what_is_no_onnx_file(tmp_path, monkeypatch, content, reason):
    monkeypatch.setattr(onnx_file, "MAX_FIELDS", 2000)
    (tmp_path / "a.onnx").write_bytes(content)
    assert reason in refusal(tmp_path / "a.onnx")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = model().SerializeToString()
    for size in range(1, len(whole), 3):
        (tmp_path / "a.onnx").write_bytes(whole[:size])
        try:
            outline = read_onnx(tmp_path / "a.onnx")
        except UserError:
            continue
        assert not outline.properties and size > len(whole) - 40, size  # the end of the file lists versions only


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir], ids=["pipe", "link", "folder"]
)
def test_what_is_no_regular_file(tmp_path, make):
    make(tmp_path / "a.onnx")
    assert "not a regular file" in refusal(tmp_path / "a.onnx")


def test_a_file_that_is_not_there(tmp_path):
    assert "No such file" in refusal(tmp_path / "a.onnx")


def external(location: str, **entries: object) -> onnx.ModelProto:
    """Return a model whose largest weights are in another file."""
    found = model()
    tensor = next(one for one in found.graph.initializer if one.name == "rows of output0")
    raw = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": 0, "length": len(raw), **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return found


@pytest.mark.parametrize("location", ["weights.bin", "below/weights.bin"])
def test_external_data_in_the_folder_is_allowed(tmp_path, location):
    (tmp_path / "below").mkdir()
    (tmp_path / location).write_bytes(ROWS.tobytes())
    read_onnx(save(tmp_path / "a.onnx", external(location)))


@pytest.mark.parametrize(
    "location, entries, reason",
    [
        ("/etc/passwd", {}, "outside of its folder"),
        ("../secret", {}, "outside of its folder"),
        ("below/../../secret", {}, "outside of its folder"),
        ("..\\secret", {}, "outside of its folder"),
        ("C:\\secret", {}, "outside of its folder"),
        ("", {}, "outside of its folder"),
        ("a\0b", {}, "outside of its folder"),
        ("link", {}, "behind the link"),
        ("linked folder/secret", {}, "behind the link"),
        ("absent", {}, "not there"),
        ("below", {}, "not there"),
        ("pipe", {}, "not there"),
        ("weights.bin", {"offset": 8}, "too short"),
        ("weights.bin", {"offset": -8}, "at no number"),
        ("weights.bin", {"offset": "9" * 5000}, "at no number"),
        ("weights.bin", {"length": 8}, "too short"),
    ],
)
def test_external_data_elsewhere_is_not_opened(tmp_path, location, entries, reason):
    folder = tmp_path / "model"
    (folder / "below").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(1000))
    (folder / "weights.bin").write_bytes(ROWS.tobytes())
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "linked folder").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    assert reason in refusal(save(folder / "a.onnx", external(location, **entries)))


def with_tensor(shape: list[int], raw: bytes = b"", kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    found = model()
    found.graph.initializer.append(TensorProto(name="more", data_type=kind, dims=shape, raw_data=raw))
    return found


@pytest.mark.parametrize(
    "shape, raw, kind",
    [
        ([1 << 40], b"", TensorProto.FLOAT),
        ([1 << 40, 1 << 40], bytes(8), TensorProto.FLOAT),
        ([-1, 4], bytes(16), TensorProto.FLOAT),
        ([3], bytes(16), TensorProto.FLOAT),
        ([5], bytes(16), TensorProto.FLOAT),
        ([1] * 40, bytes(4), TensorProto.FLOAT),
        ([1 << 30], bytes(4), 99),
        ([1 << 30], b"", TensorProto.STRING),
    ],
)
def test_a_tensor_that_is_not_stored(tmp_path, shape, raw, kind):
    assert "damaged" in refusal(save(tmp_path / "a.onnx", with_tensor(shape, raw, kind)))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.INT8, TensorProto.INT4, TensorProto.DOUBLE])
def test_tensors_of_all_types_fit_their_bytes(tmp_path, kind):
    bits = onnx_file.BITS[kind]
    read_onnx(save(tmp_path / "a.onnx", with_tensor([6], bytes(6 * bits // 8), kind)))
    assert "damaged" in refusal(save(tmp_path / "a.onnx", with_tensor([6], bytes(6 * bits // 8 + 1), kind)))


def test_bits_are_those_of_the_onnx_package():
    for kind, dtype in onnx._mapping.TENSOR_TYPE_MAP.items():
        if kind not in (TensorProto.STRING, TensorProto.UNDEFINED) and kind in onnx_file.BITS:
            tensor = numpy_helper.from_array(np.zeros(4, dtype.np_dtype))
            assert len(tensor.raw_data) * 8 // 4 == onnx_file.BITS[kind], kind


def growing(operator: str, values: list, place: int, dtype=np.int64, **attributes) -> onnx.ModelProto:
    """Return a model with an operator whose input at `place` is a constant."""
    found = model()
    found.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), "size"))
    inputs = [*["images", "", ""][:place], "size"]
    found.graph.node.append(helper.make_node(operator, inputs, ["large"], **attributes))
    return found


@pytest.mark.parametrize(
    "operator, values, place, dtype",
    [
        ("ConstantOfShape", [100_000, 100_000], 0, np.int64),
        ("Expand", [1, 3, 1 << 20, 1 << 20], 1, np.int64),
        ("Tile", [1, 1, 1 << 16, 1], 1, np.int64),
        ("Resize", [1, 1, 1e6, 1e6], 2, np.float32),
        ("Resize", [1, 1, np.nan, 1], 2, np.float32),
        ("Resize", [1, 3, 1 << 20, 1 << 20], 3, np.int64),
        ("Pad", [0, 0, 0, 0, 0, 0, 1 << 30, 0], 1, np.int64),
    ],
)
def test_a_constant_that_makes_a_tensor_larger_than_memory(tmp_path, operator, values, place, dtype):
    assert "too large for memory" in refusal(save(tmp_path / "a.onnx", growing(operator, values, place, dtype)))
    small = np.clip(np.nan_to_num(np.array(values)), 0, 2)
    read_onnx(save(tmp_path / "a.onnx", growing(operator, small, place, dtype)))


def test_sizes_in_constant_nodes_and_attributes(tmp_path):
    found = model()
    found.graph.node.append(helper.make_node("Constant", [], ["size"], value_ints=[100_000, 100_000]))
    found.graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["large"]))
    assert "too large for memory" in refusal(save(tmp_path / "a.onnx", found))
    for operator, attributes in (("MaxPool", {"pads": [0, 0, 1 << 40, 0]}), ("RandomNormal", {"shape": [1 << 40]})):
        found = model()
        found.graph.node.append(helper.make_node(operator, ["images"], ["large"], **attributes))
        assert "too large for memory" in refusal(save(tmp_path / "a.onnx", found))


def test_operators_that_no_library_has(tmp_path):
    found = model(domains=("evil",))
    found.graph.node.append(helper.make_node("Launch", ["images"], ["x"], domain="evil"))
    assert "custom operator 'evil' 'Launch'" in refusal(save(tmp_path / "a.onnx", found))
    found.graph.node[-1].domain, found.graph.node[-1].op_type = "com.microsoft", "QLinearAdd"
    read_onnx(save(tmp_path / "a.onnx", found))
    found.graph.node[-1].op_type = "PythonOp"
    assert "custom operator" in refusal(save(tmp_path / "a.onnx", found))


def test_loops_and_functions(tmp_path):
    body = known_graph({"output0": ROWS})
    found = model()
    found.graph.node.append(helper.make_node("If", ["images"], ["x"], then_branch=body, else_branch=body))
    assert read_onnx(save(tmp_path / "a.onnx", found)).operators["Reshape"] == 3
    body.node.append(helper.make_node("Loop", ["", ""], ["x"], body=known_graph({"output0": ROWS})))
    found.graph.node.append(helper.make_node("If", ["images"], ["y"], then_branch=body, else_branch=body))
    assert "may repeat without end" in refusal(save(tmp_path / "a.onnx", found))
    found = model()
    found.functions.append(helper.make_function("f", "double", ["x"], ["y"], [], [helper.make_opsetid("", 17)]))
    assert "operators of its own" in refusal(save(tmp_path / "a.onnx", found))


def test_graphs_within_graphs_have_an_end(tmp_path):
    def field(number: int, data: bytes) -> bytes:
        size, length = len(data), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + data

    graph = b""
    for _ in range(10_000 if len(graph) < 1 << 20 else 0):
        graph = field(1, field(5, field(6, graph)))
        if len(graph) > 1 << 20:
            break
    (tmp_path / "a.onnx").write_bytes(field(7, graph))
    assert "graphs within graphs" in refusal(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    "name, dims, kind, reason",
    [
        ("images", [1, 3, 1 << 30, 1 << 30], TensorProto.FLOAT, "too large for memory"),
        ("images", [1, 3, 0, 64], TensorProto.FLOAT, "too large for memory, or empty"),
        ("images", [1, 200, 640, 640], TensorProto.FLOAT, "'images' (1, 200, 640, 640): a detector takes float (B, ch"),
        ("images", [1, 64, 64, 3], TensorProto.FLOAT, "a detector takes float (B, channels, H, W)"),
        ("images", [1, 3, 64], TensorProto.FLOAT, "a detector takes float (B, channels, H, W)"),
        ("images", [1, 3, 64, 64], TensorProto.STRING, "a detector takes float (B, channels, H, W)"),
        ("images", None, TensorProto.FLOAT, "without a shape"),
    ],
)
def test_inputs_that_are_no_images(tmp_path, name, dims, kind, reason):
    found = model()
    found.graph.input[0].CopyFrom(helper.make_tensor_value_info(name, kind, dims))
    assert reason in refusal(save(tmp_path / "a.onnx", found))


def test_outputs_that_are_no_boxes(tmp_path):
    found = model()
    found.graph.output[0].CopyFrom(helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 1 << 40, 7]))
    assert "too large for memory" in refusal(save(tmp_path / "a.onnx", found))
    del found.graph.output[:]
    assert "gives no output" in refusal(save(tmp_path / "a.onnx", found))
    found = model()
    found.graph.input.append(helper.make_tensor_value_info("size", TensorProto.FLOAT, [1, 2]))
    assert "takes 2 inputs ('images', 'size')" in refusal(save(tmp_path / "a.onnx", found))


@pytest.mark.parametrize(
    "data, value", [(b"\0", 0), (b"\x96\1", 150), (b"\xff" * 9 + b"\1", (1 << 64) - 1), (b"\x80\0", 0)]
)
def test_numbers_of_the_wire_format(data, value):
    assert read_varint(memoryview(data + b"\x7f"), 0) == (value, len(data))


def test_fields_of_the_wire_format():
    message = b"\x08\x05" + b"\x12\x02ab" + b"\x1d" + struct.pack("<i", 7) + b"\x21" + struct.pack("<q", 9)
    fields = list(Reader(4).fields(memoryview(message)))
    assert [(one.number, one.value, bytes(one.data)) for one in fields] == [
        (1, 5, b""),
        (2, 0, b"ab"),
        (3, 7, b""),
        (4, 9, b""),
    ]
    assert list(Reader(0).fields(memoryview(b""))) == []
    with pytest.raises(DamagedMessage, match="too many parts"):
        list(Reader(3).fields(memoryview(message)))
    negative = next(Reader(1).fields(memoryview(b"\x08" + b"\xff" * 9 + b"\1")))
    assert integers(negative, 1) == [-1]
    packed = next(Reader(1).fields(memoryview(b"\x0a\x03\1\2\3")))
    assert integers(packed, 3) == [1, 2, 3]
    with pytest.raises(DamagedMessage, match="more than 2 numbers"):
        integers(packed, 2)
