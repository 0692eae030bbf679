"""check.py from the command line and from a program, on data with faults and on data without."""

import hashlib
import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import check
from models.loading import Ensemble
from models.yolo import DetectionModel
from utils.checkpoint import write_checkpoint
from utils.errors import UserError, run

ROOT = Path(__file__).resolve().parents[1]
ROW = "0 .5 .5 .2 .2\n"
# Image and its rows -> what is wrong with them.
FAULTS = {
    "range.jpg": ("0 60 40 20 20\n", "out-of-range"),
    "area.jpg": ("0 .5 .5 0 .2\n", "zero-area"),
    "twice.jpg": (ROW + ROW, "repeated-row"),
    "near.jpg": (ROW + "0 .5 .5 .201 .2\n", "near-duplicate"),
    "two.jpg": (ROW + "1 .5 .5 .201 .2\n", "two-classes"),
    "outside.jpg": ("0 .1 .5 .4 .4\n", "leaves-image"),
    "giant.jpg": ("0 .5 .5 .99 .99\n", "giant-box"),
    "unknown.jpg": ("7 .5 .5 .2 .2\n", "unknown-class"),
    "empty.jpg": (ROW, "empty-image"),
    "cut.jpg": (ROW, "truncated-image"),
    "none.jpg": (None, "no-label-file"),
    "Ok.jpg": (ROW, "same-but-case"),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Path:
    """Write a data set with the faults above. Return its YAML."""
    root = tmp_path_factory.mktemp("faulty set")
    rng = np.random.default_rng(0)
    rows = {("train", name): text for name, (text, _) in FAULTS.items()} | {
        ("train", "ok.jpg"): ROW,
        ("val", "v.jpg"): ROW,
    }
    for (split, name), text in rows.items():
        image, label = root / "images" / split / name, (root / "labels" / split / name).with_suffix(".txt")
        for folder in (image.parent, label.parent):
            folder.mkdir(parents=True, exist_ok=True)
        data = cv2.imencode(".jpg", rng.integers(0, 256, (160, 200, 3), np.uint8))[1].tobytes()
        image.write_bytes({"empty.jpg": b"", "cut.jpg": data[:-300]}.get(name, data))
        if text is not None:
            label.write_text(text)
    (root / "labels/train/stray.txt").write_text(ROW)
    file = root / "data.yaml"
    file.write_text("train: images/train\nval: images/val\nnames: [ship, Ship, tree]\n")
    return file


def digests(folder: Path) -> dict[str, str]:
    """Return a digest of each file of the user."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() + str(path.stat().st_mtime_ns) for path in files}


def words(data, folder, *extra):
    return ["--data", str(data), "--imgsz", "200", "--project", str(folder), *extra]


def test_a_set_with_faults_has_them_all_and_exit_code_3(faulty, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        check.main(words(faulty, tmp_path, "-q"))
    assert ended.value.code == check.ERRORS == 3
    expected = {fault for _, fault in FAULTS.values()} | {"orphan-label", "similar-names", "absent-class", "rare-class"}
    document = json.loads((tmp_path / "exp" / "findings.json").read_text())
    found = {finding["check"]: finding for finding in document["findings"]}
    assert expected <= found.keys()
    printed = capsys.readouterr().out
    assert all(re.search(rf"^(ERROR|WARNING|NOTE) .* {name}: ", printed, re.MULTILINE) for name in found)
    assert f"{document['errors']} errors, {document['warnings']} warnings, {document['notes']} notes" in printed
    for name, (_, fault) in FAULTS.items():
        assert Path(name).stem in {Path(example["file"]).stem for example in found[fault]["examples"]} | {"Ok"}
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## What is wrong with the data", 1)[1]
    assert all(f"`{name}`" in section.split("\n## ", 1)[0] for name in found)


def test_nothing_of_the_users_is_changed(faulty, tmp_path):
    before = digests(faulty.parent)
    result = check.run(data=faulty, imgsz=200, project=tmp_path)
    assert digests(faulty.parent) == before
    assert {finding.level for finding in result.errors} == {"error"} and len(result.errors) >= 5
    assert [path.name for path in result.save_dir.iterdir() if path.suffix == ".json"] == ["findings.json"]


def test_data_without_errors_has_exit_code_0(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["a program"])
    run(lambda: check.main(words(tiny_data, tmp_path)))
    assert json.loads((tmp_path / "exp" / "findings.json").read_text())["errors"] == 0


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"data": "absent.yaml"}, "absent.yaml: no such"),
        ({"imgsz": 0}, "--imgsz 0: expected one side or height and width"),
        ({"dat": "a.yaml"}, "unknown keyword dat; did you mean data?"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_folder(tmp_path, flags, message):
    with pytest.raises(UserError) as wrong:
        check.run(project=tmp_path / "runs", **flags)
    assert message in str(wrong.value) and "\n" not in str(wrong.value)
    assert not (tmp_path / "runs").exists()


def test_the_anchors_are_those_of_the_weights(tmp_path, tiny_cfg):
    default = check.planned_anchors([])
    assert default.source == "yolov5s.yaml" and default.sizes_px[0, 0].tolist() == [10, 13]
    model = DetectionModel(tiny_cfg, num_classes=3)
    model.head.anchors *= 1.5
    file = tmp_path / "mine.pt"
    content = {"yaml": model.yaml, "names": model.names, "state_dict": model.state_dict()}
    write_checkpoint(file, {"model": content, "ema": None}, "weights")
    found = check.planned_anchors([str(file)])
    assert found.source == "mine.pt"
    expected = model.head.anchors * model.stride[:, None, None]
    np.testing.assert_allclose(found.sizes_px, expected.numpy(), rtol=1e-3)
    for opened in (model, Ensemble([model, DetectionModel(tiny_cfg, num_classes=3)])):  # read already
        np.testing.assert_allclose(check.planned_anchors([str(file)], opened).sizes_px, expected.numpy())
    (tmp_path / "mine.onnx").write_bytes(b"")
    assert check.planned_anchors([str(tmp_path / "mine.onnx")]).source == "yolov5s.yaml"
