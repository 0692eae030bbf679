"""ncnn folders of a small network, written by pnnx and run by ncnn."""

import dataclasses

import pytest
import torch
from small_models import image

from utils.errors import UserError
from utils.exporting.request import ExportRequest, NmsInside
from utils.exporting.writers import check_request, write_format
from utils.formats import FORMATS
from utils.inference.open_model import open_exported
from utils.inference.runtime import RuntimeSettings

REQUEST = ExportRequest((64, 96))


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    check_request([FORMATS["ncnn"]], REQUEST, network)
    return write_format(FORMATS["ncnn"], network, tmp_path_factory.mktemp("ncnn") / "best.pt", REQUEST)


def test_outputs_equal_those_of_pytorch(network, folder):
    images = image(2, 96)[:, :, :64]
    model = open_exported(folder, RuntimeSettings())
    with torch.inference_mode():
        expected = network(images)[0]
    assert model.names == network.names and model.fixed_shape == (64, 96)
    assert float((model(images)[0] - expected).abs().max()) < 1e-3  # two images, one a call
    half = open_exported(folder / "model.ncnn.param", RuntimeSettings(half=True))
    assert 1e-3 < float((half(images)[0] - expected).abs().max()) < 20  # pixels


def test_the_folder_has_the_names_that_programs_expect(folder):
    assert folder.name == "best_ncnn_model"
    assert sorted(file.name for file in folder.iterdir()) == ["metadata.yaml", "model.ncnn.bin", "model.ncnn.param"]


@pytest.mark.parametrize(
    "properties, word",
    [
        ({"int8": True}, "--int8"),
        ({"dynamic": True}, "--dynamic"),
        ({"batch": 2}, "--batch-size 2"),
        ({"nms": NmsInside(0.25, 0.45, 100, 100, False), "layout": "nms"}, "--nms"),
    ],
)
def test_what_ncnn_cannot_hold(network, properties, word):
    with pytest.raises(UserError, match=f"--include ncnn {word}: "):
        check_request([FORMATS["ncnn"]], dataclasses.replace(REQUEST, **properties), network)


def test_broken_folders_are_one_line(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.ncnn.param").write_text("7767517\n1 1\nUnknownLayer a 0 1 out0\n")
    with pytest.raises(UserError, match="ncnn cannot load it"):
        open_exported(tmp_path / "model.ncnn.param", RuntimeSettings())
    (tmp_path / "metadata.yaml").unlink()
    with pytest.raises(UserError, match="its metadata lacks imgsz"):
        open_exported(tmp_path / "model.ncnn.param", RuntimeSettings())
