"""8-bit ONNX files of a small network."""

from collections import Counter

import pytest
import torch
from small_models import image

from utils.exporting.onnx_int8 import last_convolutions
from utils.exporting.onnx_writer import build_onnx
from utils.exporting.request import ExportRequest
from utils.exporting.writers import check_request, write_format
from utils.formats import FORMATS
from utils.inference.open_model import open_exported
from utils.inference.runtime import RuntimeSettings


@pytest.mark.parametrize("per_tensor", [False, True])
def test_8_bits_leave_the_head_and_the_decoding_in_float(network, tmp_path, tiny_data, per_tensor, capsys):
    import onnx

    request = ExportRequest((64, 96), int8=True, data=str(tiny_data), calibration_images=4, per_tensor=per_tensor)
    check_request([FORMATS["onnx"]], request, network)
    path = write_format(FORMATS["onnx"], network, tmp_path / "best.pt", request)
    assert "ONNX Runtime, network alone: float32 " in capsys.readouterr().out
    model = onnx.load(path)
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    kinds = Counter(makers.get(node.input[1], "float") == "DequantizeLinear" for node in convolutions)
    assert kinds[False] == network.head.num_levels and kinds[True] == len(convolutions) - kinds[False] > 5
    images = image(1, 96)[:, :, :64]
    with torch.inference_mode():
        difference = open_exported(path, RuntimeSettings())(images)[0] - network(images)[0]
    assert 0 < float(difference.abs().max()) < 40  # pixels, of boxes up to 250 wide


def test_the_last_convolutions_are_those_of_the_head(network):
    model = build_onnx(network, ExportRequest((64, 64)))
    found = last_convolutions(model)
    assert len(found) == network.head.num_levels and len(set(found)) == len(found)
    assert all("/layers/" in name for name in found)
