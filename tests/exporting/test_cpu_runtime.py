"""Conversion of a loaded network for another runtime on the CPU."""

from pathlib import Path

import pytest
import torch
from small_models import image

from utils.errors import UserError
from utils.exporting import cpu_runtime
from utils.exporting.cpu_runtime import convert_for_cpu
from utils.inference.exported_model import ExportedModel

FILES = [Path("best.pt")]


@pytest.mark.parametrize(
    "runtime, title, limit", [("openvino", "float32", 1e-3), ("onnx", "ONNX", 1e-3), ("auto", "", 20)]
)
def test_the_converted_network_takes_any_size(network, runtime, title, limit, capsys):
    model = convert_for_cpu(network, FILES, runtime)
    assert isinstance(model, ExportedModel) and title in model.runtime.title and model.path == FILES[0]
    assert f"--runtime: best.pt runs in {model.runtime.title}" in capsys.readouterr().out
    for shape in ((1, 64, 96), (3, 96, 64)):
        images = image(shape[0], 96)[:, :, : shape[1], : shape[2]]
        with torch.inference_mode():
            expected = network(images)[0]
        assert float((model(images)[0] - expected).abs().max()) < limit


def test_pytorch_is_the_default_and_stays(network):
    assert convert_for_cpu(network, FILES, "pytorch") is network


@pytest.mark.parametrize(
    "files, augment, reason",
    [(FILES * 2, False, "an ensemble has several networks"), (FILES, True, "--augment runs three sizes")],
)
def test_what_only_pytorch_runs_stays_there_with_the_reason(network, files, augment, reason, capsys):
    assert convert_for_cpu(network, files, "auto", augment=augment) is network
    assert f"--runtime auto runs PyTorch in float32: {reason}" in capsys.readouterr().err


def test_without_packages_auto_stays_and_a_named_runtime_is_one_line(network, monkeypatch, capsys):
    monkeypatch.setattr(cpu_runtime, "package_version", lambda package: "")
    assert convert_for_cpu(network, FILES, "auto") is network
    assert 'pip install ".[openvino]"' in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(UserError, match="needs the package openvino"):
        convert_for_cpu(network, FILES, "openvino")
