"""The network for export: its decoding equals the head's, and each layout holds the same boxes."""

import copy

import pytest
import torch
from small_models import fill, image

from models.yolo import DetectionModel
from utils.exporting.network import ExportNetwork, output_names, to_deepstream, to_yolov8
from utils.exporting.request import ExportRequest
from utils.inference.exported_model import decode_levels

SIZE = (64, 96)


def images(count=2, size=SIZE):
    return image(count, 96)[:, :, : size[0], : size[1]].contiguous()


@torch.inference_mode()
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_decoding_is_that_of_the_head(network, dynamic):
    module = ExportNetwork(network, ExportRequest(SIZE, dynamic=dynamic))
    torch.testing.assert_close(module(images()), network(images())[0], rtol=1e-6, atol=1e-5)


@torch.inference_mode()
def test_a_dynamic_network_follows_the_shape(network):
    module = ExportNetwork(network, ExportRequest(SIZE, dynamic=True))
    other = images(3, (96, 32))
    torch.testing.assert_close(module(other), network(other)[0], rtol=1e-6, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("cfg", ["yolov5-p2.yaml", "yolov5n6.yaml", "yolov5-p34.yaml"])
def test_heads_of_other_levels(cfg):
    model = DetectionModel(cfg, num_classes=1)
    fill(model)
    model.eval()
    module = ExportNetwork(model, ExportRequest((64, 128)))
    whole = image(1, 128)[:, :, :64].contiguous()
    torch.testing.assert_close(module(whole), model(whole)[0], rtol=1e-5, atol=1e-4)


@torch.inference_mode()
def test_the_network_itself_stays_as_it_was(network):
    before = copy.deepcopy(network.state_dict())
    ExportNetwork(network, ExportRequest(SIZE, half=True))(images())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert len(network(images())) == 2


@torch.inference_mode()
def test_half_has_float32_at_both_ends(network):
    rows = ExportNetwork(network, ExportRequest(SIZE, half=True))(images())
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows[..., :4], network(images())[0][..., :4], rtol=0.02, atol=0.5)


@torch.inference_mode()
def test_raw_levels_decode_to_the_same_rows(network):
    levels = ExportNetwork(network, ExportRequest(SIZE, layout="raw"))(images())
    assert [tuple(level.shape) for level in levels] == [(2, 16, 8, 12), (2, 16, 4, 6)]
    pixels = (network.head.anchors * network.stride[:, None, None]).flatten(1).tolist()
    rows = decode_levels(levels, pixels, network.stride.int().tolist())
    torch.testing.assert_close(rows, network(images())[0], rtol=1e-6, atol=1e-5)
    assert output_names(network, ExportRequest(SIZE, layout="raw")) == ["output0", "output1"]


def test_yolov8_has_one_score_a_class():
    rows = torch.tensor([[[10.0, 20, 4, 6, 0.5, 0.2, 0.8]]])
    assert torch.allclose(to_yolov8(rows), torch.tensor([[[10.0], [20], [4], [6], [0.1], [0.4]]]))


def test_deepstream_has_corners_score_and_class():
    rows = torch.tensor([[[10.0, 20, 4, 6, 0.5, 0.2, 0.8]]])
    assert torch.allclose(to_deepstream(rows), torch.tensor([[[8.0, 17, 12, 23, 0.4, 1]]]))
