"""OpenVINO folders of a small network: equal to PyTorch, in any layout, size and precision, without telemetry."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
import yaml
from small_models import image

from utils.errors import UserError
from utils.exporting import openvino_writer
from utils.exporting.openvino_writer import convert_to_openvino, decoding_operators
from utils.exporting.request import ExportRequest
from utils.exporting.writers import check_request, write_format
from utils.formats import FORMATS
from utils.inference.open_model import open_exported
from utils.inference.runtime import RuntimeSettings

REQUEST = ExportRequest((64, 96))


def write(network, folder, **properties):
    request = dataclasses.replace(REQUEST, **properties)
    check_request([FORMATS["openvino"]], request, network)
    return write_format(FORMATS["openvino"], network, folder / "best.pt", request)


def largest_difference(network, path, images, **settings):
    with torch.inference_mode():
        expected = network(images)[0]
    return float((open_exported(path, RuntimeSettings(**settings))(images)[0] - expected).abs().max())


def test_the_folder_has_the_names_that_people_know(network, tmp_path):
    path = write(network, tmp_path)
    assert path == tmp_path / "best_openvino_model"
    assert sorted(file.name for file in path.iterdir()) == ["best.bin", "best.xml", "metadata.yaml"]
    content = yaml.safe_load((path / "metadata.yaml").read_text())
    assert content["stride"] == 32 and content["names"] == network.names and content["imgsz"] == [64, 96]
    model = open_exported(path, RuntimeSettings())
    assert model.names == network.names and model.fixed_shape == (64, 96)
    assert open_exported(path / "best.xml", RuntimeSettings()).names == network.names


@pytest.mark.parametrize(
    "properties, batch, side",
    [
        ({}, 1, (64, 96)),
        ({"batch": 2}, 3, (64, 96)),
        ({"dynamic": True}, 3, (96, 64)),
        ({"layout": "raw"}, 1, (64, 96)),
    ],
)
def test_outputs_equal_those_of_pytorch(network, tmp_path, properties, batch, side):
    images = image(batch, 96)[:, :, : side[0], : side[1]]
    assert largest_difference(network, write(network, tmp_path, **properties), images) < 1e-3


def test_half_stores_float16_and_computes_in_16_bits_on_request(network, tmp_path):
    whole, half = write(network, tmp_path / "."), write(network, tmp_path, half=True)
    assert whole == half and 0 < (half / "best.bin").stat().st_size < 0.6 * 4 * sum(
        p.numel() for p in network.parameters()
    )
    assert largest_difference(network, half, image(1, 96)[:, :, :64], half=True) < 20


def test_8_bits_leave_the_head_and_the_decoding_in_float(network, tmp_path, tiny_data, capsys):
    path = write(network, tmp_path, int8=True, data=str(tiny_data), calibration_images=4)
    assert "OpenVINO, network alone: float32 " in capsys.readouterr().out
    text = (path / "best.xml").read_text()
    assert text.count('type="FakeQuantize"') > 5 or 'element_type="i8"' in text
    images = image(1, 96)[:, :, :64]
    assert largest_difference(network, path, images) < 30  # pixels, of boxes up to 250 wide
    assert os.environ["NNCF_CI"]  # the switch of its telemetry


def test_operators_that_stay_in_float_end_at_the_last_convolutions(network):
    model = convert_to_openvino(network, REQUEST)
    kept = decoding_operators(model)
    kinds = [node.get_type_name() for node in model.get_ops() if node.get_friendly_name() in kept]
    assert kinds.count("Convolution") == network.head.num_levels and "Sigmoid" in kinds
    assert sum(node.get_type_name() == "Convolution" for node in model.get_ops()) > 10


def test_nothing_of_the_telemetry_is_imported_by_a_conversion(network):
    source = Path(openvino_writer.__file__).read_text()
    assert "convert_model(" not in source  # the function that reports; read_model does not
    convert_to_openvino(network, REQUEST)


@pytest.mark.parametrize("name, message", [("openvino", "openvino"), ("nncf", "nncf")])
def test_an_absent_package_is_one_line(network, tiny_data, monkeypatch, name, message):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    request = dataclasses.replace(REQUEST, int8=True, data=str(tiny_data))
    with pytest.raises(UserError, match=rf'needs the package {message}: pip install "\.\[openvino\]"'):
        check_request([FORMATS["openvino"]], request, network)


def test_broken_folders_are_one_line(network, tmp_path):
    path = write(network, tmp_path)
    weights = path / "best.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"best\.bin: too short for best\.xml"):
        open_exported(path, RuntimeSettings())
    (path / "best.xml").write_text("<net>")
    with pytest.raises(UserError, match=r"best\.xml"):
        open_exported(path, RuntimeSettings())
    (path / "best.xml").unlink()
    with pytest.raises(UserError, match=r"holds no \.xml files, expected one"):
        open_exported(path, RuntimeSettings())
