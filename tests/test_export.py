"""The command line of export.py, and val.py and detect.py on the files that it writes."""

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import detect
import export
import val
from models.yolo import DetectionModel
from utils.checkpoint import describe_model, write_checkpoint
from utils.errors import UserError


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_cfg):
    """Return the file of an untrained model of two classes that finds something everywhere."""
    torch.manual_seed(0)
    model = DetectionModel(tiny_cfg, num_classes=2)
    model.names = {0: "dark", 1: "bright"}
    with torch.no_grad():
        for convolution in model.head.convolutions:
            convolution.bias.view(3, -1)[:, 4] += 6
    file = tmp_path_factory.mktemp("weights") / "best.pt"
    write_checkpoint(file, {"model": describe_model(model)}, kind="weights")
    return file


@pytest.fixture(scope="module")
def exported(weights):
    """Return the files of an export of 64 x 96 pixels, by suffix."""
    words = ["--weights", str(weights), "--imgsz", "64", "96", "--batch-size", "2", "--no-verify"]
    paths = export.main([*words, "--include", "onnx", "torchscript"])
    assert [path.name for path in paths] == ["best.onnx", "best.torchscript"]
    return {path.suffix: path for path in paths}


@pytest.fixture
def own_weights(weights, tmp_path):
    """Return a copy of the weights for exports of a test's own."""
    return Path(shutil.copy(weights, tmp_path / "own.pt"))


@pytest.fixture
def source(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    return tmp_path / "a.png"


def boxes_of(weights, source, folder, *words):
    options = ["--source", str(source), "--save-txt", "--save-conf", "--nosave", "--conf-thres", "0.3"]
    result = detect.main(["--weights", str(weights), *options, "--project", str(folder), *words])
    return np.loadtxt(result / "labels" / "a.txt", ndmin=2)


def by_position(rows):
    return rows[np.lexsort(np.round(rows[:, ::-1], 3).T)]


@pytest.mark.parametrize("suffix, words", [(".onnx", []), (".onnx", ["--dnn"]), (".torchscript", [])])
def test_detect_finds_the_same_with_an_export(weights, exported, source, tmp_path, suffix, words):
    found = boxes_of(exported[suffix], source, tmp_path / "runs", *words)
    # In a static file the image lies in the whole 64 x 96 pixels; 64 x 83 are letterboxed to these for PyTorch too.
    expected = boxes_of(weights, source, tmp_path / "runs", "--imgsz", "64", "96")
    assert len(found) > 3
    np.testing.assert_allclose(by_position(found), by_position(expected), atol=1e-3)


@pytest.mark.parametrize("suffix", [".onnx", ".torchscript"])
def test_val_measures_a_static_export_of_any_shape(exported, tiny_data, tmp_path, suffix, capsys):
    words = ["--data", str(tiny_data), "--batch-size", "4", "--workers", "0", "--project", str(tmp_path)]
    metrics = val.main(["--weights", str(exported[suffix]), *words])
    out = capsys.readouterr().out
    assert metrics.images == 8 and "per image at shape (4, 3, 64, 96)" in out
    assert (tmp_path / "exp" / "val_batch0_pred.jpg").is_file()


def test_val_of_a_dynamic_export_is_that_of_its_network(own_weights, tiny_data, tmp_path):
    words = ["--include", "torchscript", "--imgsz", "64", "--dynamic", "--no-verify"]
    path = export.main(["--weights", str(own_weights), *words])
    words = [
        "--data",
        str(tiny_data),
        "--imgsz",
        "64",
        "--batch-size",
        "4",
        "--workers",
        "0",
        "--project",
        str(tmp_path),
    ]
    one, other = (val.main(["--weights", str(file), *words]) for file in (own_weights, path[0]))
    assert one.map == pytest.approx(other.map, abs=1e-6) and one.map50 == pytest.approx(other.map50, abs=1e-6)


def test_exported_files_form_no_ensemble(weights, exported, source, tiny_data, tmp_path):
    both = ["--weights", str(weights), str(exported[".onnx"])]
    for main, words in ((detect.main, ["--source", str(source)]), (val.main, ["--data", str(tiny_data)])):
        with pytest.raises(UserError, match="form no ensemble. .* python val.py --task compare --weights .*best.pt"):
            main([*both, *words, "--project", str(tmp_path / "runs")])


def test_fixed_sizes_and_choices_that_an_export_cannot_follow(exported, source, tiny_data, tmp_path, capsys):
    file, project = ["--weights", str(exported[".onnx"])], ["--project", str(tmp_path / "runs")]
    with pytest.raises(UserError, match="--augment needs PyTorch weights"):
        detect.main([*file, "--source", str(source), "--augment", *project])
    with pytest.raises(UserError, match="has a fixed input, which fits one size: export it with --dynamic"):
        val.main([*file, "--data", str(tiny_data), "--task", "study", *project])
    val.main([*file, "--data", str(tiny_data), "--imgsz", "128", "--workers", "0", *project])
    assert "--imgsz 128 is ignored: this file has a fixed input of 64 x 96" in capsys.readouterr().err
    boxes_of(file[1], source, tmp_path / "runs", "--imgsz", "128")
    assert "--imgsz 128 is ignored: this file has a fixed input of 64 x 96" in capsys.readouterr().err


def test_dnn_needs_onnx(exported, source, tmp_path):
    with pytest.raises(UserError, match="--dnn reads ONNX files, and .*best.torchscript is none"):
        detect.main(["--weights", str(exported[".torchscript"]), "--dnn", "--source", str(source)])


def test_update_leaves_an_export_alone(exported, source, tmp_path, capsys):
    before = exported[".onnx"].read_bytes()
    boxes_of(exported[".onnx"], source, tmp_path / "runs", "--update")
    assert exported[".onnx"].read_bytes() == before and "stays as it is" in capsys.readouterr().out


def test_an_export_without_names_needs_data_that_has_them(own_weights, source, tmp_path):
    import onnx

    path = export.main(["--weights", str(own_weights), "--include", "onnx", "--imgsz", "64", "--no-verify"])[0]
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    words = ["--weights", str(tmp_path / "bare.onnx"), "--source", str(source), "--project", str(tmp_path / "runs")]
    with pytest.raises(UserError, match="bare.onnx: names no classes, and --data .* has no 2 names"):
        detect.main(words)
    (tmp_path / "mine.yaml").write_text("names: [a, b]\n")
    predictor = detect.build_predictor(detect.DetectOptions(data=str(tmp_path / "mine.yaml")), [tmp_path / "bare.onnx"])
    assert predictor.names == {0: "a", 1: "b"}


@pytest.mark.parametrize("words, message", [
    (["--include", "onxx"], "--include onxx: no such format: give some of torchscript, onnx, .*did you mean onnx"),
    (["--include", "onnx,torchscript"], "; put spaces between formats"),
    (["--include", "engine"], "--include engine: "),
    (["--imgsz", "0"], "--imgsz 0"),
    (["--imgsz", "1", "2", "3"], "one side or height and width"),
    (["--batch-size", "0"], "--batch-size 0"),
    (["--topk-all", "0"], "--topk-all 0"),
    (["--conf-thres", "2"], "--conf-thres 2.0: 0 to 1"),
    (["--half", "--int8"], "exclude each other"),
    (["--nms", "--layout", "raw"], "--nms has a layout of its own"),
    (["--opset", "99", "--include", "onnx"], "--opset 99"),
    (["--weights", "nowhere.pt"], "nowhere.pt: no such file"),
    (["--data", "nowhere.yaml", "--verify-images", "1"], "nowhere.yaml"),
    (["--weights", "m.onnx"], "m.onnx: ONNX holds no weights"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_writes_nothing(weights, words, message):
    before = sorted(weights.parent.iterdir())
    with pytest.raises(UserError, match=message):
        export.main(["--weights", str(weights), *([] if "--data" in words else ["--no-verify"]), *words])
    assert sorted(weights.parent.iterdir()) == before


def test_flags_without_a_meaning_say_so(own_weights, capsys):
    for word in ("--keras", "--mlmodel"):
        with pytest.raises(UserError, match=f"{word} "):
            export.main(["--weights", str(own_weights), word])
    export.main(["--weights", str(own_weights), "--inplace", "--imgsz", "32", "--no-verify"])
    assert "--inplace changes nothing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        detect.main(["--visualize"])
    assert "--visualize of YOLOv5 is not offered" in capsys.readouterr().err


def test_a_folder_where_the_report_belongs_is_one_line(weights, tmp_path):
    (tmp_path / "a.pt").write_bytes(weights.read_bytes())
    (tmp_path / "a_export.json").mkdir()
    with pytest.raises(UserError, match=r"a_export.json: is a folder where the report belongs"):
        export.main(["--weights", str(tmp_path / "a.pt"), "--imgsz", "64"])
    assert not (tmp_path / "a.torchscript").exists()


def test_an_absent_package_of_a_runtime_names_the_flag(own_weights, source, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match="--runtime openvino needs the package openvino"):
        detect.main(["--weights", str(own_weights), "--source", str(source), "--runtime", "openvino"])


def test_several_weights_are_exported_one_by_one(weights, tmp_path, capsys):
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(weights.read_bytes())
    names = [str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
    paths = export.main(["--weights", *names, *"--include torchscript torchscript --imgsz 50 --no-verify".split()])
    assert [path.name for path in paths] == ["a.torchscript", "b.torchscript"]
    captured = capsys.readouterr()
    assert "--imgsz 50 is not a multiple of the model's stride 32; using 64" in captured.err
    assert "python detect.py --weights" in captured.out and "--imgsz 64\n" in captured.out
    extra = {"config.txt": ""}
    torch.jit.load(str(paths[0]), _extra_files=extra)
    assert json.loads(extra["config.txt"])["shape"] == [1, 3, 64, 64]


def test_flags_of_another_format_are_reported(own_weights, capsys):
    words = ["--opset", "12", "--simplify", "--imgsz", "32", "--no-verify"]
    export.main(["--weights", str(own_weights), *words])
    errors = capsys.readouterr().err
    assert "--opset is ignored: only --include onnx has it" in errors and "--simplify is ignored" in errors


def test_a_place_that_is_taken_is_found_before_anything_is_written(own_weights):
    (own_weights.parent / "own.torchscript").mkdir()
    words = ["--include", "onnx", "torchscript", "--imgsz", "32", "--no-verify"]
    with pytest.raises(UserError, match=r"own\.torchscript: is no TorchScript export: rename or remove it"):
        export.main(["--weights", str(own_weights), *words])
    assert not own_weights.with_suffix(".onnx").exists()


def test_a_folder_that_cannot_be_written_is_one_line(own_weights, monkeypatch):
    monkeypatch.setattr("utils.exporting.writers.os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written. Copy the weights into another folder and export there"):
        export.main(["--weights", str(own_weights), "--imgsz", "32", "--no-verify"])
