"""Writing of exports: whole or not at all, beside the weights, over nothing but an older export."""

import dataclasses

import pytest

from utils.errors import UserError
from utils.exporting import writers
from utils.exporting.request import ExportRequest
from utils.exporting.writers import WRITERS, check_request, write_format
from utils.formats import FORMATS

REQUEST = ExportRequest((64, 64))


def replace_writer(monkeypatch, write):
    monkeypatch.setitem(WRITERS, "onnx", WRITERS["onnx"]._replace(write=write))


def test_a_failed_export_leaves_what_was_there(network, tmp_path, monkeypatch):
    def fail(network, request, metadata, path):
        path.write_bytes(b"half")
        raise UserError("no")

    replace_writer(monkeypatch, fail)
    (tmp_path / "best.onnx").write_bytes(b"old")
    with pytest.raises(UserError, match="no"):
        write_format(FORMATS["onnx"], network, tmp_path / "best.pt", REQUEST)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_an_older_export_is_replaced_and_a_folder_is_not(network, tmp_path, monkeypatch):
    replace_writer(monkeypatch, lambda network, request, metadata, path: path.write_bytes(b"new"))
    (tmp_path / "best.onnx").write_bytes(b"old")
    assert write_format(FORMATS["onnx"], network, tmp_path / "best.pt", REQUEST).read_bytes() == b"new"
    (tmp_path / "other.onnx").mkdir()
    with pytest.raises(UserError, match=r"other.onnx: is no ONNX export: rename or remove it"):
        write_format(FORMATS["onnx"], network, tmp_path / "other.pt", REQUEST)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.onnx", "other.onnx"]


def test_a_folder_is_replaced_as_a_whole(network, tmp_path, monkeypatch):
    def write(network, request, metadata, path):
        path.mkdir()
        (path / "model.xml").write_text("new")

    monkeypatch.setitem(WRITERS, "openvino", WRITERS["onnx"]._replace(write=write))
    folder = tmp_path / "best_openvino_model"
    folder.mkdir()
    (folder / "old.xml").write_text("old")
    write_format(FORMATS["openvino"], network, tmp_path / "best.pt", REQUEST)
    assert [file.name for file in tmp_path.iterdir()] == [folder.name]
    assert [file.name for file in folder.iterdir()] == ["model.xml"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"best_openvino_model: would be replaced, but holds notes.txt: move"):
        write_format(FORMATS["openvino"], network, tmp_path / "best.pt", REQUEST)
    assert sorted(file.name for file in folder.iterdir()) == ["model.xml", "notes.txt"]


@pytest.mark.parametrize("name", sorted(writers.NOT_OFFERED))
def test_formats_that_are_not_written_say_why(network, name):
    with pytest.raises(UserError, match=f"--include {name}: .*Formats: "):
        check_request([FORMATS[name]], REQUEST, network)
    assert name in FORMATS and name not in WRITERS


def test_an_absent_package_is_one_line(network, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UserError, match=r'--include onnx needs the package onnx: pip install "\.\[export\]"'):
        check_request([FORMATS["onnx"]], REQUEST, network)


def test_what_torchscript_cannot_hold(network):
    for properties, message in (({"int8": True}, "--int8"), ({"optimize": True, "half": True}, "--optimize")):
        with pytest.raises(UserError, match=message):
            check_request([FORMATS["torchscript"]], dataclasses.replace(REQUEST, **properties), network)
