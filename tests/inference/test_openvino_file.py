"""Checks of OpenVINO models before OpenVINO opens them."""

import os
from pathlib import Path

import pytest

from utils.errors import UserError, one_line
from utils.inference.openvino_file import check_openvino

LAYERS = """
<layer id="0" name="images" type="Parameter" version="opset1"><data shape="1,3,64,64" element_type="f32"/></layer>
<layer id="1" name="weight" type="Const" version="opset1">
    <data element_type="f16" shape="2, 3, 4" offset="16" size="48"/></layer>
<layer id="2" name="flags" type="Const" version="opset1">
    <data element_type="boolean" shape="" offset="0" size="1"/></layer>
<layer id="3" name="add" type="Add" version="opset1"><data auto_broadcast="numpy"/></layer>
"""


def write(folder: Path, layers: str = LAYERS, head: str = '<?xml version="1.0"?>', size: int = 64) -> Path:
    (folder / "a.xml").write_text(f'{head}<net name="a" version="11"><layers>{layers}</layers></net>')
    (folder / "a.bin").write_bytes(bytes(size))
    return folder / "a.xml"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        check_openvino(path)
    message = str(caught.value)
    assert str(path.parent) in message and one_line(message) == message
    return message


def test_a_model_with_all_its_weights(tmp_path):
    check_openvino(write(tmp_path))
    check_openvino(write(tmp_path, LAYERS.replace("1,3,64,64", "?,3,?,?")))


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "not an OpenVINO model"),
        (b"<annotation/>", "it begins with 'annotation'"),
        (b"<net version='6'></net>", "it begins with 'net'"),
        (b"<net version='11'><layers/></net>", "without layers"),
        (b"\x08\x08:\x04", "not an OpenVINO model"),
        (b"<!DOCTYPE a [<!ENTITY b 'bbbb'>]><net version='11'>&b;</net>", "has a DOCTYPE"),
        ("<!DOCTYPE a><net version='11'/>".encode("utf-16"), "has a DOCTYPE"),
        (b"<net version='11'>" + b"<a>" * 100_000, "not an OpenVINO model"),
    ],
)
def test_what_is_no_openvino_model(tmp_path, content, reason):
    write(tmp_path).write_bytes(content)
    assert reason in refusal(tmp_path / "a.xml")


@pytest.mark.parametrize(
    "old, new, reason",
    [
        ('offset="16"', 'offset="17"', "too short"),
        ('offset="16"', 'offset="-1"', "too short"),
        ('offset="16"', 'offset="x"', "not an OpenVINO model"),
        ('offset="16" ', "", "not an OpenVINO model"),
        ('shape="2, 3, 4"', 'shape="2, 3, 5"', "a constant [2, 3, 5] of 48 bytes"),
        ('shape="2, 3, 4"', 'shape="2, 3, 99999999999"', "of 48 bytes"),
        ('"1,3,64,64"', '"1,3,640000,640000"', "too large for memory"),
        ('"1,3,64,64"', '"1,3,0,64"', "too large for memory, or empty"),
        ('type="Add" version="opset1"', 'type="Run" version="extension"', "custom operator 'extension' 'Run'"),
        ('type="Add"', 'type="Loop"', "may repeat without end"),
    ],
)
def test_layers_that_are_refused(tmp_path, old, new, reason):
    assert reason in refusal(write(tmp_path, LAYERS.replace(old, new)))


def test_files_that_are_not_there(tmp_path):
    write(tmp_path)
    os.remove(tmp_path / "a.bin")
    assert "it holds the weights of a.xml" in refusal(tmp_path / "a.xml")
    os.mkfifo(tmp_path / "a.bin")
    assert "not a regular file" in refusal(tmp_path / "a.xml")
    (tmp_path / "b").mkdir()
    write(tmp_path / "b")
    os.remove(tmp_path / "b" / "a.xml")
    assert "No such file" in refusal(tmp_path / "b" / "a.xml")
