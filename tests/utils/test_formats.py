"""The table of formats: suffixes, names of files, and packages that are absent."""

from pathlib import Path

import pytest

from utils.errors import UserError
from utils.formats import FORMATS, format_of, import_extra, package_version


@pytest.mark.parametrize("name, found", [
    ("best.pt", None),
    ("best", None),
    ("folder", None),
    ("best.onnx", "onnx"),
    ("BEST.ONNX", "onnx"),
    ("a.b/best.torchscript", "torchscript"),
    ("best_openvino_model", "openvino"),
    ("best_openvino_model/", "openvino"),
    ("best_openvino_model/best.xml", "openvino"),
    ("best_ncnn_model", "ncnn"),
    ("best_ncnn_model/model.ncnn.param", "ncnn"),
    ("best.tflite", "tflite"),
    ("best_edgetpu.tflite", "edgetpu"),
    ("best.engine", "engine"),
])  # fmt: skip
def test_the_end_of_the_name_decides(name, found):
    kind = format_of(name)
    assert (kind and kind.name) == found


def test_exports_lie_beside_their_weights():
    assert FORMATS["onnx"].path_beside(Path("runs/best.pt")) == Path("runs/best.onnx")
    assert FORMATS["openvino"].path_beside(Path("runs/my.best.pt")) == Path("runs/my.best_openvino_model")
    folders = {name for name, kind in FORMATS.items() if kind.is_folder}
    assert folders == {"openvino", "coreml", "saved_model", "tfjs", "paddle", "ncnn"}


def test_an_absent_package_names_the_command():
    with pytest.raises(UserError, match=r'x.onnx needs the package no_such_thing: pip install "\.\[export\]"'):
        import_extra("no_such_thing", "export", "x.onnx")
    assert import_extra("json", "export", "x").__name__ == "json"
    assert package_version("no-such-thing") == "" and package_version("torch")
