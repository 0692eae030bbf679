"""CoreML packages, with the real coremltools, which converts on Linux and runs on a Mac only."""

import json

import pytest

from utils.errors import UserError
from utils.exporting.coreml_writer import check_coreml
from utils.exporting.request import ExportRequest, NmsInside
from utils.exporting.writers import write_format
from utils.formats import FORMATS
from utils.inference.open_model import open_exported
from utils.inference.runtime import RuntimeSettings

REQUEST = ExportRequest((64, 96))


@pytest.mark.parametrize("properties", [
    {"dynamic": True}, {"int8": True}, {"nms": NmsInside(0.25, 0.45, 100, 100, False), "layout": "nms"},
])  # fmt: skip
def test_what_coreml_cannot_hold(network, monkeypatch, properties):
    monkeypatch.setitem(__import__("sys").modules, "coremltools", __import__("json"))  # any module: it is only imported
    check_coreml(REQUEST, network)
    with pytest.raises(UserError, match="is not offered for CoreML: omit it"):
        check_coreml(ExportRequest((64, 96), **properties), network)


def test_without_coremltools_the_command_is_named(network, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "coremltools", None)
    with pytest.raises(UserError, match=r'--include coreml needs the package coremltools: pip install "\.\[coreml\]"'):
        check_coreml(REQUEST, network)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout, shapes", [
    ("yolov5", [(1, 240, 8)]), ("yolov8", [(1, 7, 240)]), ("raw", [(1, 16, 8, 12), (1, 16, 4, 6)]),
    ("deepstream", [(1, 240, 6)]),
])  # fmt: skip
def test_a_package_has_the_shapes_of_its_layout(network, tmp_path, layout, shapes):
    ct = pytest.importorskip("coremltools")
    request = ExportRequest((64, 96), layout=layout)
    for _ in range(2):  # the second replaces the first
        path = write_format(FORMATS["coreml"], network, tmp_path / "best.pt", request)
    assert [entry.name for entry in tmp_path.iterdir()] == ["best.mlpackage"]
    description = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description
    outputs = sorted((port.name, tuple(port.type.multiArrayType.shape)) for port in description.output)
    assert outputs == [(f"output{i}", shape) for i, shape in enumerate(shapes)]
    assert [tuple(port.type.multiArrayType.shape) for port in description.input] == [(1, 3, 64, 96)]
    found = dict(description.metadata.userDefined)
    assert json.loads(found["imgsz"]) == [64, 96] and found["layout"] == layout
    with pytest.raises(UserError, match="CoreML"):
        open_exported(path, RuntimeSettings())
