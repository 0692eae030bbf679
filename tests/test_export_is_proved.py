"""export.py ends with a proof: exit code 0 with a report where the file agrees, 3 where it was written wrongly."""

import json

import pytest
import torch

import export
from benchmarks.export_matrix import sample_images, spread_head
from models.yolo import DetectionModel
from utils.checkpoint import describe_model, write_checkpoint
from utils.exporting.network import Decode


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_cfg, tiny_data):
    """Return the file of an untrained model that finds some objects in the tiny data."""
    torch.manual_seed(0)
    model = DetectionModel(tiny_cfg, num_classes=2).eval()
    model.names = {0: "dark", 1: "bright"}
    model = spread_head(model, sample_images(str(tiny_data), (64, 96)), share=0.02)
    file = tmp_path_factory.mktemp("weights") / "best.pt"
    write_checkpoint(file, {"model": describe_model(model)}, kind="weights")
    return file


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch):
    monkeypatch.setattr("utils.exporting.latency.MAX_RUNS", 1)
    monkeypatch.setattr("utils.exporting.latency.MIN_RUNS", 1)


def export_tiny(weights, data, *flags):
    words = ["--weights", str(weights), "--include", "torchscript", "--imgsz", "64", "96", "--data", str(data)]
    return export.main([*words, "--verify-images", "8", *flags])


def test_a_file_that_agrees(weights, tiny_data, capsys):
    (written,) = export_tiny(weights, tiny_data)
    out = capsys.readouterr().out
    report = json.loads(weights.with_name("best_export.json").read_text())
    assert report["agrees"] and report["files"][0]["file"] == str(written) == str(weights.with_suffix(".torchscript"))
    assert report["images"]["number"] == 8 and report["files"][0]["detections"]["pairs"] >= 3
    assert report["files"][0]["operators"]["aten::_convolution"] > 30
    assert "agrees" in out and f"Run it: python detect.py --weights {written}" in out and "best_export.json" in out


def swap_classes(rows):
    return rows[..., [0, 1, 2, 3, 4, 6, 5]]


def shift_boxes(rows):
    return torch.cat((rows[..., :1] + 8, rows[..., 1:]), -1)


@pytest.mark.parametrize("fault", [swap_classes, shift_boxes])
def test_a_file_that_is_wrong_has_exit_code_3(weights, tiny_data, monkeypatch, capsys, fault):
    decode = Decode.forward
    monkeypatch.setattr(Decode, "forward", lambda self, levels: fault(decode(self, levels)))
    with pytest.raises(SystemExit) as stopped:
        export_tiny(weights, tiny_data)
    assert stopped.value.code == 3
    out = capsys.readouterr().out
    assert "differs" in out and "of the detections have a partner, 99.5% must (in " in out
    assert json.loads(weights.with_name("best_export.json").read_text())["agrees"] is False


def test_no_verify_compares_nothing(weights, tiny_data, monkeypatch, capsys):
    monkeypatch.setattr(Decode, "forward", lambda self, levels: swap_classes(torch.zeros(1, 4, 7)))
    weights.with_name("best_export.json").unlink(missing_ok=True)
    assert export_tiny(weights, tiny_data, "--no-verify")
    assert not weights.with_name("best_export.json").exists() and "agrees" not in capsys.readouterr().out
