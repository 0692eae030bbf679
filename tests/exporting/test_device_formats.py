"""Formats that need a GPU or macOS: one clear line elsewhere, before anything is written."""

import json
import sys

import pytest

from utils.errors import UserError
from utils.exporting.request import ExportRequest
from utils.exporting.writers import check_request
from utils.formats import FORMATS
from utils.inference.engine_runtime import read_engine
from utils.inference.open_model import open_exported
from utils.inference.runtime import RuntimeSettings

REQUEST = ExportRequest((64, 96))


def test_an_engine_needs_a_gpu(network, tmp_path):
    with pytest.raises(UserError, match="TensorRT builds for one NVIDIA GPU: type --device 0"):
        check_request([FORMATS["engine"]], REQUEST, network)
    (tmp_path / "a.engine").write_bytes(b"\0" * 8)
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        open_exported(tmp_path / "a.engine", RuntimeSettings())


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\0\0rest", b"\xff\xff\xff\xff{}", b"\x02\0\0\0[]engine", b"\x02\0\0\0{,engine"]
)
def test_damaged_engines_are_one_line(tmp_path, content):
    file = tmp_path / "a.engine"
    file.write_bytes(content)
    with pytest.raises(UserError, match="no engine with metadata in front|its metadata cannot be read"):
        read_engine(file)


def test_the_metadata_is_in_front_of_an_engine(tmp_path):
    file, header = tmp_path / "a.engine", json.dumps({"stride": "32"}).encode()
    file.write_bytes(len(header).to_bytes(4, "little") + header + b"engine")
    assert read_engine(file) == ({"stride": "32"}, b"engine")


def test_coreml_files_need_macos(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(UserError, match="CoreML runs on macOS only"):
        open_exported(tmp_path / "a.mlpackage", RuntimeSettings())
