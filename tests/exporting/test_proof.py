"""The proof of an export: exact, inexact and deliberately wrong copies of a model on the same images."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.export_matrix import sample_images, spread_head
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.exporting.latency import Latency
from utils.exporting.observation import DETECT_NMS, PLAIN, Suppression, observe
from utils.exporting.operators import Operators
from utils.exporting.proof import ProofFile, prove
from utils.exporting.proof_images import open_proof_images
from utils.exporting.proof_report import proof_table, report_content, write_report
from utils.formats import RuntimeAbsent
from utils.inference.evaluate import evaluate
from utils.pixel_format import RGB

NAMES = {0: "dark", 1: "bright"}


class Copy(nn.Module):
    """A model whose decoded rows (B, N, 5+C) `change` has changed."""

    device, fixed_shape, is_suppressed, pixels = torch.device("cpu"), None, False, RGB

    def __init__(self, model, change=None, broken=False):
        super().__init__()
        self.model, self.change, self.broken = model, change, broken
        self.names, self.num_classes, self.size_multiple = model.names, model.num_classes, model.size_multiple

    def forward(self, images, augment=False):
        if self.broken:
            raise RuntimeError("no kernel\nfor this operator")
        rows = self.model(images)[0].clone()
        return (rows if self.change is None else self.change(rows)), None


@pytest.fixture(scope="module")
def model(tiny_cfg, tiny_data):
    """Return an untrained model of two classes that finds some objects."""
    torch.manual_seed(0)
    model = DetectionModel(tiny_cfg, num_classes=2).eval()
    model.names = NAMES
    return spread_head(model, sample_images(str(tiny_data), (64, 96)), share=0.03)


@pytest.fixture(scope="module")
def images(tiny_data):
    return open_proof_images(str(tiny_data), typed=True, names=NAMES, shape=(64, 96), count=6)


@pytest.fixture(autouse=True)
def no_measurements(monkeypatch):
    """Replace measured latencies, and operators of files, by given ones: these tests are about detections."""
    latencies = [Latency(size, 1.0, 10.0, 2.0, 3) for size in (1, 16)]
    monkeypatch.setattr("utils.exporting.proof.measure_latency", lambda *_, **settings: latencies)
    monkeypatch.setattr("utils.exporting.proof.read_operators", lambda _: Operators("17", {"Conv": 1}))


def shift_boxes(pixels):
    return lambda rows: rows + torch.tensor([pixels, 0, 0, 0, 0, 0, 0])


def swap_classes(rows):
    return rows[..., [0, 1, 2, 3, 4, 6, 5]]


def spoil_a_row(rows):
    rows[:, 3, 0] = float("nan")
    return rows


CASES = {
    "same": (None, ""),
    "inexact": (shift_boxes(0.001), ""),
    "shifted": (shift_boxes(9.0), "of the detections have a partner"),
    "swapped": (swap_classes, "of the detections have a partner"),
    "halved": (lambda rows: rows * torch.tensor([1, 1, 1, 1, 0.5, 1, 1]), "of the detections have a partner"),
    "spoiled": (spoil_a_row, "not finite"),
    "cropped": (lambda rows: rows[:, :-1], "another shape"),
}


def prove_copies(model, images, tmp_path, copies, **settings):
    """Prove a file for each copy (name -> model)."""
    files = []
    for name in copies:
        (tmp_path / f"{name}.onnx").write_bytes(b"0" * 1000)
        files.append(ProofFile(tmp_path / f"{name}.onnx", "onnx", **settings))
    return prove(model, files, images, lambda path: copies[path.stem])


def test_copies_that_agree_and_that_differ(model, images, tmp_path):
    proof = prove_copies(model, images, tmp_path, {name: Copy(model, change) for name, (change, _) in CASES.items()})
    assert proof.differs
    for one, (_, expected) in zip(proof.files, CASES.values(), strict=True):
        assert bool(one.differences) == bool(expected), one
        assert expected in "; ".join(one.differences) and one.verdict == ("differs" if expected else "agrees")
    same, inexact, shifted, swapped, *_ = proof.files
    assert same.pairing.share == inexact.pairing.share == 1 and same.pairing.pairs > 10
    assert same.raw == (0, 0) and inexact.raw.box == pytest.approx(0.001, rel=0.1) and inexact.raw.score == 0
    assert shifted.pairing.share < 0.5 and swapped.pairing.share < 0.5
    assert swapped.raw.box == 0 and swapped.raw.score > 0.1
    assert "only PyTorch" in swapped.differences[0] and "only the file" in swapped.differences[0]


def test_a_file_that_fails_differs_and_one_without_a_runtime_is_not_proved(model, images, tmp_path):
    def open_file(path):
        if path.stem == "absent":
            raise RuntimeAbsent("pip install a-runtime")
        if path.stem == "damaged":
            raise UserError("damaged.onnx: no ONNX model")
        return Copy(model, broken=path.stem == "broken")

    files = []
    for name in ("absent", "damaged", "broken", "same"):
        (tmp_path / name).write_bytes(b"0")
        files.append(ProofFile(tmp_path / name, "onnx"))
    proof = prove(model, files, images, open_file)
    assert [one.verdict for one in proof.files] == ["not proved", "differs", "differs", "agrees"]
    assert proof.files[1].differences == ["cannot be run: damaged.onnx: no ONNX model"]
    assert proof.files[2].differences == ["cannot be run: RuntimeError: no kernel for this operator"]
    assert report_content(proof, tmp_path / "same")["agrees"] is False
    hopeful = replace(proof, files=[proof.files[0], proof.files[3]])
    assert report_content(hopeful, tmp_path / "same")["agrees"] is None and not hopeful.differs
    text = "\n".join(proof_table(proof, tmp_path / "same"))
    assert "absent: not proved: pip install a-runtime" in text and text.count("Run it: ") == 1


def test_precision_has_its_own_tolerance(model, images, tmp_path):
    copies = {"rough": Copy(model, lambda rows: rows * torch.tensor([1, 1, 1, 1, 0.97, 1, 1]))}
    verdicts = {
        precision: prove_copies(model, images, tmp_path, copies, precision=precision).files[0].verdict
        for precision in ("float32", "float16", "int8")
    }
    assert verdicts == {"float32": "differs", "float16": "agrees", "int8": "agrees"}


def test_metrics_are_those_of_evaluate(model, images):
    observation = observe(model, images)[PLAIN]
    metrics = evaluate(model, list(images.batches()))
    assert observation.metrics is not None and metrics.instances > 0
    assert (observation.metrics.map50, observation.metrics.map) == (metrics.map50, metrics.map)
    assert len(observation.rows) == metrics.images == 6


def test_a_worse_map_is_outside_tolerance(model, images, tmp_path):
    """The lower half of the confidences is lost, which the detections at 0.25 do not show."""

    def drop_faint(rows):
        return rows * (rows[..., 4:5] * rows[..., 5:].amax(-1, keepdim=True) > 0.2)

    good = Copy(model, lambda rows: rows)
    proof = prove_copies(good, images, tmp_path, {"faint": Copy(model, drop_faint)}, precision="float16")
    one = proof.files[0]
    before, after = one.reference.metrics, one.observation.metrics
    assert one.pairing.share == 1
    assert bool(one.differences) == (abs(before.map50 - after.map50) > 0.005 or abs(before.map - after.map) > 0.005)


def test_layouts_with_one_class_a_box_are_compared_by_that(model, images, tmp_path):
    def best_class(rows):
        scores = rows[..., 5:] * rows[..., 4:5]
        score, best = scores.max(-1, keepdim=True)
        return torch.cat((rows[..., :4], score, torch.zeros_like(scores).scatter(-1, best, 1.0)), -1)

    copies = {"one": Copy(model, best_class)}
    assert prove_copies(model, images, tmp_path, copies, layout="yolov5").differs
    proof = prove_copies(model, images, tmp_path, copies, layout="deepstream")
    assert not proof.differs, proof.files[0].differences
    one = proof.files[0]
    assert one.reference.metrics.map == one.observation.metrics.map and one.raw.score < 1e-6
    text = "\n".join(proof_table(proof, tmp_path / "one.onnx"))
    assert f"one.onnx: PyTorch with the suppression of this file has mAP50 {one.reference.metrics.map50:.4f}" in text


def test_a_suppression_inside_the_file_is_compared_by_its_own_settings(model, images, tmp_path):
    inside = Suppression(*[replace(DETECT_NMS, conf_thres=0.4, iou_thres=0.3, max_det=5)] * 2, per_class=2)
    rows = observe(model, images, [inside])[inside].rows
    assert max(map(len, rows)) <= 4 and all((found[:, 4] > 0.4).all() for found in rows)
    counts = [int((found[:, 5] == cls).sum()) for found in rows for cls in (0, 1)]
    assert max(counts) == 2


def test_nothing_found_is_said(model, images, tmp_path):
    blind = Copy(model, lambda rows: rows * torch.tensor([1, 1, 1, 1, 0.01, 1, 1]))
    proof = prove_copies(blind, images, tmp_path, {"blind": blind})
    assert proof.files[0].verdict == "agrees" and proof.files[0].pairing.share is None
    assert any("finds nothing in these images" in line for line in proof_table(proof, tmp_path / "blind.onnx"))


def test_nothing_that_could_differ_is_not_proved(model, images, tmp_path):
    """A suppressed output has no raw boxes to compare, and those of half precision have no limit."""
    blind = Copy(model, lambda rows: rows * torch.tensor([1, 1, 1, 1, 0, 1, 1]))
    for settings in ({"inside": PLAIN, "layout": "nms"}, {"precision": "int8"}, {"precision": "float16"}):
        proof = prove_copies(blind, images, tmp_path, {"blind": blind}, **settings)
        assert proof.files[0].verdict == "not proved" and not proof.differs
        assert report_content(proof, tmp_path / "blind.onnx")["agrees"] is None
        text = "\n".join(proof_table(proof, tmp_path / "blind.onnx"))
        assert "blind.onnx: not proved: the model finds nothing" in text
    found = prove_copies(model, images, tmp_path, {"same": Copy(model)}, precision="int8")
    assert found.files[0].verdict == "agrees"


def test_the_report_is_json_of_the_documented_keys(model, images, tmp_path):
    proof = prove_copies(model, images, tmp_path, {"same": Copy(model), "spoiled": Copy(model, spoil_a_row)})
    file = tmp_path / "best_export.json"
    write_report(file, proof, tmp_path / "same.onnx")
    content = json.loads(file.read_text())
    assert content["schema"] == 1 and content["agrees"] is False
    assert content["images"] == {
        "description": "6 of 8 images of tiny.yaml val", "number": 6, "shape": [64, 96], "labels": True
    }  # fmt: skip
    same, spoiled = content["files"]
    assert same["verdict"] == "agrees" and same["bytes"] == 1000 and same["detections"]["share"] == 1
    assert same["metrics"] == same["reference_metrics"] == content["reference"]["metrics"]
    assert [row["batch_size"] for row in same["latency"]] == [1, 16]
    assert set(same["latency"][0]["milliseconds"]) == {"preprocess", "inference", "nms", "total"}
    assert same["run"].startswith("python detect.py --weights ") and same["run"].endswith("--imgsz 64 96")
    assert spoiled["raw"]["box"] is None and spoiled["differences"]
    assert same["tolerance"] == {
        "iou": 0.99, "confidence": 0.01, "matched": 0.995, "map_loss": 0.001, "map_gain": 0.001, "box": 1, "score": 0.01
    }  # fmt: skip


def test_operators_are_in_the_report(model, images, tmp_path):
    proof = prove_copies(model, images, tmp_path, {"same": Copy(model)})
    listed = [
        replace(proof.files[0], operators=operators)
        for operators in (
            Operators("17", {"Conv": 2, "Mul": 1}),
            Operators("opset8", {"Add": 1}),
            Operators("", {"a": 1}),
        )
    ]
    lines = list(proof_table(replace(proof, files=listed), tmp_path / "same.onnx"))
    assert "same.onnx: opset 17: Conv 2, Mul 1" in lines and "same.onnx: opset 8: Add 1" in lines
    assert "same.onnx: operators: a 1" in lines


def test_an_int8_file_that_is_not_faster_is_reported(model, images, tmp_path):
    proof = prove_copies(model, images, tmp_path, {"same": Copy(model)}, precision="int8")
    slow = replace(proof.files[0], latencies=[one._replace(inference=1e6) for one in proof.files[0].latencies])
    lines = list(proof_table(replace(proof, files=[slow]), tmp_path / "same.onnx"))
    assert "same.onnx: INT8 is not faster here than PyTorch" in lines
