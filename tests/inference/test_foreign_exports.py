"""Exports of other programs, and files that are none: they are run, or refused in one line before a folder is made."""

import os
import resource
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import known_graph, make_model, save

import detect
from utils.errors import UserError, one_line
from utils.inference.exported_model import infer_layout
from utils.inference.open_model import open_exported
from utils.inference.predictor import Predictor
from utils.inference.runtime import RuntimeSettings

NAMES = "{0: 'cat', 1: \"dog's\"}"
RAW = {f"level{i}": np.zeros((1, 3, 64 // stride, 64 // stride, 7)) for i, stride in enumerate((8, 16, 32))}


def rows(num_predictions: int = 252) -> np.ndarray:
    """Return (1, N, 7) with two objects: a cat at 10...30, a dog at 20...60 x 40...60."""
    found = np.zeros((1, num_predictions, 7), np.float32)
    found[0, 5] = [20, 20, 20, 20, 0.9, 1.0, 0.1]
    found[0, 90] = [40, 50, 40, 20, 0.8, 0.0, 0.5]
    return found


def across(found: np.ndarray) -> np.ndarray:
    """Return (1, 4+C, N) of (1, N, 5+C)."""
    return np.concatenate((found[..., :4], found[..., 5:] * found[..., 4:5]), axis=2).transpose(0, 2, 1)


EXPECTED = [[10, 10, 30, 30, 0.9, 0], [20, 40, 60, 60, 0.4, 1]]


@pytest.mark.parametrize(
    "outputs",
    [
        {"output0": rows()},
        {"output": rows()},
        {"output": rows(), **RAW},  # the raw levels beside the decoded ones, as older versions write them
        {"output0": across(rows())},
    ],
    ids=["output0", "output", "output and raw levels", "yolov8"],
)
@pytest.mark.parametrize(
    "metadata, names",
    [
        ({}, ["0", "1"]),
        ({"stride": "32", "names": NAMES}, ["cat", "dog's"]),
        ({"stride": "[8, 16, 32]", "names": "['a', 'b']"}, ["a", "b"]),
    ],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_exports_of_other_programs(tmp_path, outputs, metadata, names, dynamic):
    shape, batch = (("batch", 3, "height", "width"), "batch") if dynamic else ((1, 3, 64, 64), 1)
    file = save(tmp_path / "a.onnx", make_model(known_graph(outputs, shape, batch=batch), metadata))
    model = open_exported(file, RuntimeSettings())
    assert model.num_classes == 2 and model.fixed_shape == (None if dynamic else (64, 64))
    assert list(model.names.values()) == names
    found = Predictor(model, (64, 64))([np.zeros((64, 64, 3), np.uint8)])[0]
    assert np.allclose(found.rows, EXPECTED, atol=1e-4)


@pytest.mark.parametrize(
    "shape, num_classes, layout",
    [
        ((1, 25200, 85), 80, "yolov5"),
        ((1, 84, 8400), 80, "yolov8"),
        ((1, 25200, 85), 0, "yolov5"),
        ((1, 84, 8400), 0, "yolov8"),
        ((1, 63, 370), 365, "yolov5"),
        ((1, 85), 80, "yolov5"),
    ],
)
def test_the_layout_of_a_file_that_does_not_say_it(shape, num_classes, layout):
    assert infer_layout(shape, num_classes) == layout


def known(outputs: dict, metadata: dict | None = None, **settings) -> onnx.ModelProto:
    return make_model(known_graph(outputs), {"names": NAMES} if metadata is None else metadata, **settings)


def with_node(operator: str, domain: str = "", **attributes) -> onnx.ModelProto:
    found = known({"output0": rows()}, domains=(domain,) if domain else ())
    found.graph.node.append(helper.make_node(operator, ["images"], ["x"], domain=domain, **attributes))
    return found


def memory_bomb() -> onnx.ModelProto:
    """Return a model of a few bytes that adds a row to a column of half a million numbers each."""
    shapes = {"flat": [-1], "row": [1, -1], "column": [-1, 1]}
    nodes = [helper.make_node("Reshape", ["images", "flat"], ["values"])]
    nodes.append(helper.make_node("Concat", ["values"] * 40, ["many"], axis=0))
    nodes += [helper.make_node("Reshape", ["many", name], [f"{name} of many"]) for name in ("row", "column")]
    nodes.append(helper.make_node("Add", ["row of many", "column of many"], ["all"]))
    nodes.append(helper.make_node("ReduceMax", ["all"], ["most"], keepdims=1))
    found = known({"output0": rows()})
    found.graph.node.extend(nodes)
    found.graph.initializer.extend(numpy_helper.from_array(np.array(shape), name) for name, shape in shapes.items())
    found.graph.node.append(helper.make_node("Identity", ["most"], ["output1"]))
    found.graph.output.append(helper.make_tensor_value_info("output1", TensorProto.FLOAT, [1, 1]))
    return found


NESTED = "[" * 100_000 + "]" * 100_000
REFUSED = {
    "segmentation of v5": (lambda: known({"output0": rows(), "output1": np.zeros((1, 32, 16, 16))}), "segmentation"),
    "segmentation of v8": (
        lambda: known({"output0": np.zeros((1, 38, 84)), "output1": np.zeros((1, 32, 16, 16))}),
        "segmentation",
    ),
    "another task": (lambda: known({"output0": rows()}, {"task": "pose", "names": NAMES}), "task 'pose'"),
    "classes of images": (lambda: known({"output0": np.zeros((1, 1000))}), "classes of whole images"),
    "raw levels": (lambda: known(RAW), "raw levels, without the anchors"),
    "other columns": (lambda: known({"output0": np.zeros((1, 252, 9))}), "has the shape [(1, 252, 9)]"),
    "one row": (lambda: known({"output0": np.zeros((1, 5, 3))}), "has the shape"),
    "no names": (lambda: known({"output0": np.zeros((1, 9, 6))}, {"layout": "deepstream"}), "names no classes"),
    "a layout": (lambda: known({"output0": rows()}, {"layout": "x", "names": NAMES}), "layout"),
    "names: code": (lambda: known({"output0": rows()}, {"names": "__import__('os').system('touch canary')"}), "names"),
    "names: a list of numbers": (lambda: known({"output0": rows()}, {"names": "3"}), "names"),
    "names: nested": (lambda: known({"output0": rows()}, {"names": NESTED}), "names"),
    "names: huge": (
        lambda: known({"output0": rows()}, {"names": "['a'," * (1 << 20) + "]"}),
        "a text of 5242881 bytes",
    ),
    "names: gaps": (lambda: known({"output0": rows()}, {"names": "{0: 'a', 7: 'b'}"}), "names"),
    "names: infinite": (lambda: known({"output0": rows()}, {"names": "{1e999: 'a'}"}), "names"),
    "names: sets": (lambda: known({"output0": rows()}, {"names": "{'a', 'b'}"}), "names"),
    "stride: text": (lambda: known({"output0": rows()}, {"names": NAMES, "stride": "x"}), "stride"),
    "stride: 0": (lambda: known({"output0": rows()}, {"names": NAMES, "stride": "0"}), "stride"),
    "stride: huge": (lambda: known({"output0": rows()}, {"names": NAMES, "stride": "9" * 5000}), "stride"),
    "stride: nothing": (lambda: known({"output0": rows()}, {"names": NAMES, "stride": "[]"}), "stride"),
    "stride: NaN": (lambda: known({"output0": rows()}, {"names": NAMES, "stride": "NaN"}), "stride"),
    "an opset too new": (lambda: known({"output0": rows()}, opset=99), "opset 99"),
    "an unknown operator": (lambda: with_node("NoSuchOperator"), "NoSuchOperator"),
    "a custom operator": (lambda: with_node("Launch", "evil"), "custom operator"),
    "more than memory": (memory_bomb, "cannot run it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_refused(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("image.png", np.zeros((64, 64, 3), np.uint8))
    make, reason = REFUSED[name]
    file = save(tmp_path / "a.onnx", make())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        detect.main(["--weights", str(file), "--source", "image.png", "--imgsz", "64"])
    message = str(caught.value)
    assert str(file) in message and reason in message and one_line(message)[:900] == message[:900]
    assert sorted(os.listdir()) == ["a.onnx", "image.png"], "a folder was made, or code ran"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10 < 1024, "MiB"


@pytest.mark.parametrize("suffix", [".onnx", ".torchscript"])
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"<net version='11'/>", b"\x08\x08:\x04\n\x02\n\x00", bytes(1000)], ids=repr
)
def test_files_that_are_something_else(tmp_path, suffix, content):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(content)
    for settings in [RuntimeSettings(), *([RuntimeSettings(dnn=True)] if suffix == ".onnx" else [])]:
        with pytest.raises(UserError, match="a[.]"):
            open_exported(file, settings)


def test_opencv_gets_only_what_was_checked(tmp_path, capfd):
    found = with_node("Launch", "evil")
    with pytest.raises(UserError, match="custom operator"):
        open_exported(save(tmp_path / "a.onnx", found), RuntimeSettings(dnn=True))
    found = with_node("NonMaxSuppression")
    with pytest.raises(UserError, match="OpenCV lacks the operator NonMaxSuppression"):
        open_exported(save(tmp_path / "a.onnx", found), RuntimeSettings(dnn=True))
    with pytest.raises(UserError, match="OpenCV .* cannot load it"):
        open_exported(save(tmp_path / "a.onnx", with_node("NoSuchOperator")), RuntimeSettings(dnn=True))
    assert capfd.readouterr().err == ""


def test_weights_that_moved_out_of_the_folder(tmp_path):
    found = known({"output0": rows()})
    secret = Path(tmp_path / "secret")
    secret.write_bytes(rows().tobytes())
    (tmp_path / "model").mkdir()
    for tensor in found.graph.initializer:
        if tensor.name == "rows of output0":
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="../secret")
    file = save(tmp_path / "model" / "a.onnx", found)
    with pytest.raises(UserError, match="outside of its folder"):
        open_exported(file, RuntimeSettings())
