"""attempt_load: weights as programs for YOLOv5 load them."""

import pytest
import torch

from models.experimental import attempt_load
from models.loading import Ensemble
from models.yolo import DetectionModel
from utils.checkpoint import describe_model, write_checkpoint
from utils.errors import UserError


@pytest.fixture
def weights(tmp_path, tiny_cfg):
    file = tmp_path / "tiny.pt"
    write_checkpoint(file, {"model": describe_model(DetectionModel(tiny_cfg, num_classes=2))}, kind="weights")
    return file


def test_one_file_is_a_network_and_several_an_ensemble(weights):
    model = attempt_load(weights, device=torch.device("cpu"))
    assert not model.training and not any(".bn." in name for name in model.state_dict())
    assert any(".bn." in name for name in attempt_load(str(weights), fuse=False).state_dict())
    assert isinstance(attempt_load([weights, weights]), Ensemble)
    assert model(torch.zeros(1, 3, 64, 64))[0].shape == (1, 252, 7)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        attempt_load(tmp_path / "missing.pt")
