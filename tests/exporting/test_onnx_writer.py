"""ONNX files: one file, the requested operator set, readable by OpenCV, by both exporters of PyTorch."""

import ast
import json

import cv2
import numpy as np
import onnx
import pytest
import torch
from small_models import image

from utils.errors import UserError
from utils.exporting.request import ExportRequest, NmsInside
from utils.exporting.writers import check_request, write_format
from utils.formats import FORMATS
from utils.inference.open_model import open_exported
from utils.inference.runtime import RuntimeSettings

ONNX = FORMATS["onnx"]
SIZE = (64, 96)


@pytest.fixture
def export(network, tmp_path):
    """Return a function that writes an ONNX file with some properties."""

    def write(size=SIZE, **properties):
        request = ExportRequest(size, **properties)
        check_request([ONNX], request, network)
        return write_format(ONNX, network, tmp_path / "best.pt", request)

    return write


def rows_of(path, images, **settings):
    return open_exported(path, RuntimeSettings(**settings))(images)[0]


@torch.inference_mode()
@pytest.mark.parametrize("dnn", [False, True])
@pytest.mark.parametrize("properties", [{}, {"opset": 12}, {"simplify": True}, {"dynamo": True, "opset": 18}], ids=str)
def test_one_file_for_onnx_runtime_and_opencv(export, network, tmp_path, properties, dnn):
    path = export(**properties)
    assert path == tmp_path / "best.onnx" and [file.name for file in tmp_path.iterdir()] == ["best.onnx"]
    model = onnx.load(path)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [properties.get("opset", 17)]
    assert not any(weight.external_data for weight in model.graph.initializer)
    images = image(1, 96)[:, :, :64].contiguous()
    torch.testing.assert_close(rows_of(path, images, dnn=dnn), network(images)[0], rtol=1e-4, atol=1e-3)


def test_names_shapes_and_metadata(export, network):
    model = onnx.load(export(batch=2))
    ports = [
        (p.name, [d.dim_value for d in p.type.tensor_type.shape.dim]) for p in (*model.graph.input, *model.graph.output)
    ]
    assert ports == [("images", [2, 3, 64, 96]), ("output0", [2, 2 * (8 * 12 + 4 * 6), 8])]
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert ast.literal_eval(found["names"]) == network.names and found["stride"] == "32"
    assert (found["task"], found["layout"], found["channels"]) == ("detect", "yolov5", "RGB")
    assert (json.loads(found["imgsz"]), json.loads(found["strides"])) == ([64, 96], [8, 16])
    assert json.loads(found["anchors"])[0] == [10, 13, 16, 30]
    assert all(found[key] for key in ("letterbox", "version", "license", "date"))


@torch.inference_mode()
@pytest.mark.parametrize("layout", ["yolov8", "raw", "deepstream"])
def test_each_layout_gives_the_same_detections(export, network, layout):
    images = image(2, 96)[:, :, :64].contiguous()
    model = open_exported(export(layout=layout, batch=2), RuntimeSettings())
    rows, expected = model(images)[0], network(images)[0]
    scores, wanted = (found[..., 5:] * found[..., 4:5] for found in (rows, expected))
    torch.testing.assert_close(rows[..., :4], expected[..., :4], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(scores.max(2), wanted.max(2), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_dynamic_axes_have_names_and_any_size(export, network):
    path = export(dynamic=True)
    graph = onnx.load(path).graph
    axes = [
        [d.dim_param or d.dim_value for d in p.type.tensor_type.shape.dim] for p in (graph.input[0], graph.output[0])
    ]
    assert axes == [["batch", 3, "height", "width"], ["batch", "anchors", 8]]
    images = image(3, 96)[:, :, :, :32].contiguous()
    torch.testing.assert_close(rows_of(path, images), network(images)[0], rtol=1e-4, atol=1e-3)
    with pytest.raises(UserError, match="OpenCV reads static shapes only: export without --dynamic"):
        rows_of(path, images, dnn=True)


@torch.inference_mode()
def test_a_suppressed_output_is_suppressed_once(export, network):
    inside = NmsInside(0.3, 0.45, 50, 50, False)
    model = open_exported(export(layout="nms", nms=inside, batch=2), RuntimeSettings())
    assert model.is_suppressed and model.metadata.nms["iou_thres"] == 0.45
    images = image(2, 96)[:, :, :64].contiguous()
    from utils.inference.nms_settings import NmsSettings

    strict = NmsSettings(0.3, 0.0, 50)  # would leave one box a class if it were applied again
    wanted = NmsSettings(0.3, 0.45, 50).apply(network(images)[0])
    for mine, theirs in zip(strict.fit(model).apply(model(images)[0]), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("properties, message", [
    ({"opset": 11}, "--opset 11: 12 to 20 can be written"),
    ({"opset": 21}, "--dynamo writes later ones"),
    ({"opset": 12, "dynamo": True}, "--opset 12: 17 to"),
])  # fmt: skip
def test_an_operator_set_is_honoured_or_refused(export, tmp_path, properties, message):
    with pytest.raises(UserError, match=message):
        export(**properties)
    assert not list(tmp_path.iterdir())


def test_an_operator_set_that_the_exporter_replaces_is_refused(export, monkeypatch, tmp_path):
    from utils.exporting import onnx_writer

    wrong = onnx.helper.make_model(onnx.GraphProto(), opset_imports=[onnx.helper.make_opsetid("", 18)])
    monkeypatch.setattr(onnx_writer, "_export_by_tracing", lambda *_: wrong)
    with pytest.raises(UserError, match="--opset 17: this model gives 18: type --opset 18"):
        export()
    assert not list(tmp_path.iterdir())


def test_opencv_alone_reads_it(export):
    net = cv2.dnn.readNetFromONNX(str(export()))
    net.setInput(np.zeros((1, 3, 64, 96), np.float32))
    assert net.forward().shape == (1, 240, 8)
