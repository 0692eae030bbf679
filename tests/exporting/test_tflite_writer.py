"""TensorFlow Lite files of a small network. The packages are large, so only `make test-long` needs them."""

import dataclasses
import json
import zipfile

import pytest
import torch
from small_models import image

from utils.errors import UserError
from utils.exporting import tflite_writer
from utils.exporting.request import ExportRequest
from utils.exporting.writers import check_request, write_format
from utils.formats import FORMATS
from utils.inference.open_model import open_exported
from utils.inference.runtime import RuntimeSettings
from utils.inference.tflite_runtime import METADATA, read_archive

REQUEST = ExportRequest((64, 96))


@pytest.mark.parametrize("properties, word", [({"dynamic": True}, "--dynamic"), ({"half": True}, "--half")])
def test_what_the_format_cannot_hold(network, monkeypatch, properties, word):
    monkeypatch.setattr(tflite_writer, "_import_litert", lambda module: None)
    with pytest.raises(UserError, match=f"--include tflite {word}: "):
        check_request([FORMATS["tflite"]], dataclasses.replace(REQUEST, **properties), network)


def test_an_absent_package_is_one_line(network, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "litert_torch", None)
    with pytest.raises(UserError, match=r'needs the package litert_torch: pip install "\.\[tflite\]"'):
        check_request([FORMATS["tflite"]], REQUEST, network)


def test_metadata_is_in_an_archive_behind_the_model(tmp_path):
    file = tmp_path / "a.tflite"
    file.write_bytes(b"no archive")
    assert read_archive(file) == {}
    for content, found in ((json.dumps({"stride": "32"}), {"stride": "32"}), ("[1]", None)):
        file.write_bytes(b"model")
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(METADATA, content)
        if found is None:
            with pytest.raises(UserError, match="cannot be read"):
                read_archive(file)
        else:
            assert read_archive(file) == found


@pytest.mark.parametrize(
    "content",
    [b"", b"TFL3", b"\x08\0\0\0TFL2" + bytes(8), b"\x0d\0\0\0TFL3" + bytes(8), b"\xff\xff\xff\xffTFL3" + bytes(8)],
)
def test_what_is_no_model_is_one_line(tmp_path, content):
    file = tmp_path / "a.tflite"
    file.write_bytes(content)
    with pytest.raises(UserError, match="a.tflite: not a TensorFlow Lite model, or a damaged one"):
        open_exported(file, RuntimeSettings())


def test_a_damaged_archive_is_one_line(tmp_path):
    file = tmp_path / "a.tflite"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(METADATA, json.dumps({"stride": "32", "names": "a" * 99}))
    content = bytearray(file.read_bytes())
    place = content.index(METADATA.encode()) + len(METADATA)
    content[place : place + 6] = b"\xff" * 6
    file.write_bytes(content)
    with pytest.raises(UserError, match="its metadata.json cannot be read: "):
        read_archive(file)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["yolov5", "yolov8", "raw"])
def test_a_file_agrees_with_pytorch(network, tmp_path, layout):
    pytest.importorskip("litert_torch", reason='pip install ".[tflite]"')
    request = dataclasses.replace(REQUEST, layout=layout)
    check_request([FORMATS["tflite"]], request, network)
    path = write_format(FORMATS["tflite"], network, tmp_path / "best.pt", request)
    model, images = open_exported(path, RuntimeSettings(threads=1)), image(2, 96)[:, :, :64]
    with torch.inference_mode():
        expected = network(images)[0]
    if layout == "yolov8":
        expected = torch.cat((expected[..., :4], torch.ones(2, expected.shape[1], 1),
                              expected[..., 5:] * expected[..., 4:5]), 2)  # fmt: skip
    assert model.names == network.names and model.fixed_shape == (64, 96)
    assert float((model(images)[0] - expected).abs().max()) < 1e-3


@pytest.mark.long
def test_8_bits_detect(network, tmp_path, tiny_data):
    pytest.importorskip("litert_torch", reason='pip install ".[tflite]"')
    request = dataclasses.replace(REQUEST, int8=True, data=str(tiny_data), calibration_images=4)
    path = write_format(FORMATS["tflite"], network, tmp_path / "best.pt", request)
    model, images = open_exported(path, RuntimeSettings(threads=1)), image(1, 96)[:, :, :64]
    with torch.inference_mode():
        difference = float((model(images)[0] - network(images)[0]).abs().max())
    assert "8 bits" in model.runtime.title and 0 < difference < 60  # pixels, of boxes up to 250 wide
