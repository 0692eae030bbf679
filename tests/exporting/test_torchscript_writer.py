"""TorchScript archives: their boxes, their config.txt, and the shapes that they take."""

import json

import pytest
import torch
from small_models import image

from utils.errors import UserError
from utils.exporting import torchscript_writer
from utils.exporting.request import ExportRequest, NmsInside
from utils.exporting.torchscript_writer import check_torchscript
from utils.exporting.writers import write_format
from utils.formats import FORMATS
from utils.inference.nms_settings import NmsSettings
from utils.inference.open_model import open_exported
from utils.inference.runtime import RuntimeSettings

SIZE = (64, 96)


@pytest.fixture
def export(network, tmp_path):
    def write(**properties):
        request = ExportRequest(SIZE, **properties)
        return write_format(FORMATS["torchscript"], network, tmp_path / "best.pt", request)

    return write


def test_the_extra_file_is_as_people_read_it(export, network):
    extra = {"config.txt": ""}
    torch.jit.load(str(export(batch=2)), _extra_files=extra)
    config = json.loads(extra["config.txt"])
    assert (config["shape"], config["stride"]) == ([2, 3, 64, 96], 32)
    assert {int(key): name for key, name in config["names"].items()} == network.names


@torch.inference_mode()
@pytest.mark.parametrize("properties, count", [({}, 1), ({"batch": 2}, 5), ({"dynamic": True}, 3)])
def test_rows_are_those_of_the_network(export, network, properties, count):
    model = open_exported(export(**properties), RuntimeSettings())
    images = image(count, 96)[:, :, :64].contiguous()
    torch.testing.assert_close(model(images)[0], network(images)[0], rtol=1e-5, atol=1e-4)
    assert model.names == network.names
    assert model.fixed_shape == (None if "dynamic" in properties else SIZE)


def test_optimize_needs_xnnpack(network, monkeypatch):
    request = ExportRequest(SIZE, optimize=True)
    monkeypatch.setattr(torchscript_writer, "has_xnnpack", lambda: True)
    check_torchscript(request, network)
    monkeypatch.setattr(torchscript_writer, "has_xnnpack", lambda: False)
    with pytest.raises(UserError, match="--optimize needs XNNPACK"):
        check_torchscript(request, network)


@torch.inference_mode()
def test_suppression_inside_a_dynamic_archive(export, network):
    inside = NmsInside(0.3, 0.45, 50, 50, False)
    model = open_exported(export(layout="nms", nms=inside, dynamic=True), RuntimeSettings())
    images, settings = image(3, 96), NmsSettings(0.3, 0.45, 50)
    for mine, theirs in zip(
        settings.fit(model).apply(model(images)[0]), settings.apply(network(images)[0]), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)
