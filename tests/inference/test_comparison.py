"""Comparison of files of several formats: the table, the JSON file, and val.py --task compare."""

import json

import numpy as np
import pytest
import torch

import val
from models.yolo import DetectionModel
from utils.checkpoint import describe_model, write_checkpoint
from utils.errors import UserError
from utils.inference.comparison import ComparedModel, comparison_table, report_comparison
from utils.metrics import ConfusionMatrix, Metrics, Speed


@pytest.fixture
def models(tmp_path):
    """Return a model with figures and one without."""
    nothing = np.zeros(0)
    metrics = Metrics.from_statistics(
        np.zeros((0, 10), bool), nothing, nothing, nothing, num_classes=1, images=2, confusion=ConfusionMatrix(1),
        speed=Speed(1, 20, 3),
    )  # fmt: skip
    folder = tmp_path / "a_openvino_model"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"0" * 1_500_000)
    (folder / "a.xml").write_bytes(b"0" * 500_000)
    return [ComparedModel(str(folder), (64, 96), metrics), ComparedModel("b.engine", reason="no GPU here")]


def test_table(models):
    titles, first, second = comparison_table(models)
    assert titles.split() == "MB input mAP50 mAP50-95 pre ms net ms NMS ms ms/img".split()
    assert first.split()[1:] == ["2.0", "64x96", "0.0000", "0.0000", "1.0", "20.0", "3.0", "24.0"]
    assert second.split(maxsplit=1)[1] == "not measured: no GPU here"


def test_json(models, tmp_path):
    report_comparison(tmp_path / "compare.json", models, {"split": "val"})
    content = json.loads((tmp_path / "compare.json").read_text())
    assert (content["schema"], content["split"]) == (1, "val")
    first, second = content["models"]
    assert (first["bytes"], first["shape"], first["milliseconds"]["total"]) == (2_000_000, [64, 96], 24)
    assert second == {"file": "b.engine", "reason": "no GPU here"}


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory, tiny_cfg):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "tiny.pt"
    write_checkpoint(file, {"model": describe_model(DetectionModel(tiny_cfg, num_classes=2))}, kind="weights")
    return file


def compare(weights, data, project):
    flags = "--task compare --imgsz 64 --batch-size 4 --workers 0 --device cpu".split()
    return val.main([*flags, "--weights", *map(str, weights), "--data", str(data), "--project", str(project)])


def test_a_file_that_fails_is_a_row(tiny_weights, tiny_data, tmp_path, capsys):
    damaged = tmp_path / "damaged.torchscript"
    damaged.write_bytes(b"no archive")
    found = compare([damaged, tiny_weights, tmp_path / "absent.onnx"], tiny_data, tmp_path)
    assert [metrics.images for metrics in found] == [8]
    rows = [line for line in capsys.readouterr().out.splitlines() if "not measured" in line or "64x64" in line]
    assert len(rows) == 3 and "64x64" in rows[1]
    assert "not a TorchScript file" in rows[0] and "no such file" in rows[2]
    content = json.loads((tmp_path / "exp" / "compare.json").read_text())
    assert [("map" in model) for model in content["models"]] == [False, True, False]


def test_a_wrong_data_set_ends_a_comparison_once(tiny_weights, tmp_path):
    with pytest.raises(UserError, match=r"^--data absent.yaml: no such"):
        compare([tiny_weights, tiny_weights], "absent.yaml", tmp_path)
    assert not (tmp_path / "exp").exists()


def test_nothing_measured_is_an_error(tiny_data, tmp_path):
    with pytest.raises(UserError, match="none of the models could be measured; .*absent.pt: no such file"):
        compare([tmp_path / "absent.pt"], tiny_data, tmp_path)
