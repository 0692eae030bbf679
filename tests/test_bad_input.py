"""Mistakes of a user: one line that names the cause and no change on the disk. Of damaged files only these are lost."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import matplotlib.font_manager  # noqa: F401  the first import writes a list of fonts, which a test would count as a change
import numpy as np
import pytest
import torch
import yaml

import detect
import train
import val
from models.yolo import DetectionModel
from utils.checkpoint import describe_model, write_checkpoint
from utils.errors import UserError
from utils.files import ROOT

Main = Callable[[list[str]], object]


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_cfg) -> Path:
    """Write a checkpoint of an untrained model for the tiny data."""
    torch.manual_seed(0)
    model = DetectionModel(tiny_cfg, num_classes=2)
    model.names = {0: "dark", 1: "bright"}
    file = tmp_path_factory.mktemp("weights") / "tiny.pt"
    write_checkpoint(file, {"model": describe_model(model)}, kind="weights")
    return file


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_data, tiny_cfg, weights) -> Path:
    """Make a user's working folder with a data set in data/, a model YAML and weights, and change to it."""
    here = tmp_path / "here"
    shutil.copytree(tiny_data.parent, here / "data", ignore=shutil.ignore_patterns("*.json"))
    shutil.copy(tiny_cfg, here / "model.yaml")
    shutil.copy(weights, here / "good.pt")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return here


COMMON = ["--imgsz", "64", "--device", "cpu", "--project", "runs"]
DATA = ["--data", "data/tiny.yaml", "--batch-size", "8", "--workers", "0"]
COMMANDS = {
    train: [*COMMON, *DATA, "--cfg", "model.yaml", "--epochs", "1", "--amp", "off", "--noplots"],
    val: [*COMMON, *DATA, "--weights", "good.pt"],
    detect: [*COMMON, "--weights", "good.pt", "--source", "data/images/val"],
}  # later flags win, so a test can replace these
PROGRAMS = pytest.mark.parametrize("program", COMMANDS, ids=lambda program: program.__name__)
READERS = pytest.mark.parametrize("program", [train, val], ids=lambda program: program.__name__)


def run(program, *extra: str) -> object:
    return program.main([*COMMANDS[program], *extra])


def list_files(place: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file in the working and the home folder. The cache folder is another one."""
    files = [file for file in place.parent.rglob("*") if file.is_file()]
    return {
        str(file.relative_to(place)) if place in file.parents else str(file): (
            file.stat().st_size,
            file.stat().st_mtime_ns,
        )
        for file in files
    }


def find_mistake(place: Path, program, *extra: str) -> str:
    """Run a program with a mistake. Return its one-line error, and check that no file is new, gone or changed."""
    before = list_files(place)
    with pytest.raises(UserError) as wrong:
        run(program, *extra)
    assert list_files(place) == before and not (place / "runs").exists()
    message = str(wrong.value)
    assert "\n" not in message and len(message) > 10
    return message


def run_and_check_files(place: Path, program, *extra: str) -> None:
    """Run a program and check that it succeeds, and that no file outside runs/ is new, gone or changed."""
    before = list_files(place)
    run(program, *extra)
    after = list_files(place)
    assert {name: stamp for name, stamp in after.items() if not name.startswith("runs/")} == before
    assert len(after) > len(before)


def write(file: str, content: dict | str | bytes) -> str:
    text = yaml.safe_dump(content) if isinstance(content, dict) else content
    Path(file).write_bytes(text.encode() if isinstance(text, str) else text)
    return file


# ---- the data set


@READERS
def test_an_absent_data_set_yaml(place, program):
    message = find_mistake(place, program, "--data", "absent.yaml")
    assert message.startswith("--data absent.yaml: no such data set YAML")
    assert message.endswith(f"looked in {place}, {place / 'data'}, {ROOT}, {ROOT / 'data'}")


@READERS
def test_a_file_that_is_no_data_set(place, program):
    message = find_mistake(place, program, "--data", "data/labels/train/0.txt")
    assert message.startswith("--data data/labels/train/0.txt: this file is no data set. Give a data set YAML")


@READERS
def test_a_folder_without_class_names_in_place_of_a_data_set_yaml(place, program):
    assert find_mistake(place, program, "--data", "data/images").startswith(
        "--data data/images: YOLO labels (train: train; val: val), but no class names: looked for classes.txt"
    )


@READERS
@pytest.mark.parametrize("content, needle", [
    ({"train": "images/nowhere", "val": "images/val", "names": ["a", "b"]}, "images/nowhere"),
    ({"path": "/no/such/root", "train": "images/train", "val": "images/val", "names": ["a", "b"]}, "/no/such/root"),
    ({"train": "images/train", "names": ["a", "b"]}, "`val:` is missing"),
    ({"train": "images/train", "val": "images/val"}, "`names:` is missing"),
    ({"train": "images/train", "val": "images/val", "names": {0: "a", 2: "b"}}, "names: expected a list"),
    ("train: [images/train\nval: x\n", "data/bad.yaml:2"),  # invalid YAML: the error names the line
    ("- train\n", "expected `key: value` lines"),
    ("!!python/object/apply:os.system ['touch canary']", "data/bad.yaml:1"),
])  # fmt: skip
def test_invalid_data_set_yaml(place, program, content, needle):
    write("data/bad.yaml", content)
    message = find_mistake(place, program, "--data", "data/bad.yaml")
    assert needle in message and "data/bad.yaml" in message


@READERS
def test_an_empty_split(place, program):
    for image in Path("data/images/val").iterdir():
        image.unlink()
    message = find_mistake(place, program)
    assert "val: no images in" in message and "data/images/val" in message and ".jpg" in message


@pytest.mark.parametrize("remove", [os.unlink, lambda file: Path(file).write_text("")], ids=["absent", "empty"])
def test_training_images_without_labels(place, remove):
    for file in Path("data/labels/train").iterdir():
        remove(file)
    message = find_mistake(place, train)
    assert "data/tiny.yaml: the training images have no labels at all" in message and "/labels/" in message


def test_validation_images_without_labels_are_reported(place, capsys):
    shutil.rmtree("data/labels/val")
    run_and_check_files(place, val)
    printed = "".join(capsys.readouterr())
    assert (
        "WARNING: val: no labels. Those of" in printed and "labels/val" in printed and "nothing to measure" in printed
    )


@READERS
def test_a_class_id_beyond_the_names(place, program):
    Path("data/labels/val/3.txt").write_text("1 .5 .5 .2 .2\n2 .5 .5 .2 .2\n")
    message = find_mistake(place, program)
    assert "data/labels/val/3.txt:2: class 2, but the data set names 2 classes (0...1)" in message


def test_training_skips_a_truncated_image_and_names_it(place, capsys):
    file = Path("data/images/train/7.png")
    file.write_bytes(file.read_bytes()[:2000])
    run_and_check_files(place, train)
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if "7.png" in line)
    assert line.startswith("train: ") and "image skipped: the image is truncated" in line
    assert len(Path("runs/exp/results.csv").read_text().splitlines()) == 2  # header and one epoch
    assert Path("runs/exp/weights/best.pt").is_file()


def test_training_skips_a_label_row_of_four_columns_and_names_it(place, capsys):
    Path("data/labels/train/2.txt").write_text("0 .5 .5 .2 .2\n1 .5 .5 .2\n")
    run_and_check_files(place, train)
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if "2.txt" in line)
    assert "labels/train/2.txt:2: 4 numbers in the row: a box has 5" in line
    assert Path("runs/exp/weights/best.pt").is_file()


# ---- settings


@pytest.mark.parametrize("content, needle", [
    ({"lrr0": 0.1}, "unknown hyperparameter lrr0; did you mean lr0?"),
    ({"lr0": "fast"}, "lr0: 'fast' is not a number"),
    ({"lr0": float("nan")}, "lr0: nan is not a number"),
    ({"fliplr": 50}, "fliplr: 50 is outside 0 to 1"),
    ("lr0: 0.1\n  lrf: 2\n", "hyp.yaml:2"),
])  # fmt: skip
def test_invalid_hyperparameters(place, content, needle):
    message = find_mistake(place, train, "--hyp", write("hyp.yaml", content))
    assert needle in message and message.startswith("hyp.yaml")


@PROGRAMS
@pytest.mark.parametrize(
    "flag, meant", [("--devise", "--device"), ("--img-sise=64", "--img-size"), ("--nmae", "--name")]
)
def test_an_unknown_flag_gets_the_nearest_one(place, capsys, program, flag, meant):
    before = list_files(place)
    with pytest.raises(SystemExit) as ended:
        run(program, flag, "x")
    assert ended.value.code == 2 and list_files(place) == before
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and f"unknown argument {flag}; did you mean {meant}?" in lines[0]


@PROGRAMS
def test_an_impossible_project_is_reported_before_slow_work(place, capsys, program):
    write("taken", "a file")
    expected = f"cannot create the folder taken/here: {place / 'taken'} is not a folder; give another --project"
    assert find_mistake(place, program, "--project", "taken/here") == expected
    assert "Scanning" not in "".join(capsys.readouterr())


@PROGRAMS
def test_all_unknown_flags_are_named_and_those_of_yolov5_explained(place, capsys, program):
    with pytest.raises(SystemExit):
        run(program, "--bbox_interval", "3", "--nmae=x", "--upload-dataset", "--entity=me")
    printed = capsys.readouterr().err
    for name in ("--bbox_interval", "--upload-dataset", "--entity"):
        assert f"{name} of YOLOv5 is not offered (README.md, Deliberate differences): omit it" in printed
    assert "unknown argument --nmae=x; did you mean --name?" in printed and printed.count("\n") == 1


@PROGRAMS
@pytest.mark.parametrize("extra, needle", [
    (["--device", "99"], "--device 99: this machine has"),
    (["--device", "gpu"], "--device gpu: expected cpu"),
    (["--imgsz", "0"], "--imgsz 0"),
    (["--weights", "absent.pt"], "absent.pt: no such file"),
    (["--weights", "data"], "data: a folder"),
    (["--weights", "model.onnx"], "model.onnx: "),
])  # fmt: skip
def test_impossible_values(place, program, extra, needle):
    assert needle in find_mistake(place, program, *extra)


@PROGRAMS
def test_an_image_size_that_the_model_cannot_take_is_rounded_and_reported(place, capsys, program):
    run_and_check_files(place, program, "--imgsz", "70")
    printed, warned = capsys.readouterr()
    lines = [line for line in (warned + printed).splitlines() if "--imgsz" in line and "96" in line]
    assert "stride 32" in lines[0] and all(line.startswith("Next: ") for line in lines[1:])


@pytest.mark.parametrize("source, needle", [
    ("absent", "--source absent: does not exist"),
    ("data/tiny.yaml", "--source data/tiny.yaml: this kind of file cannot be read"),
    ("data/labels", "--source data/labels: no image"),
])  # fmt: skip
def test_invalid_source(place, source, needle):
    assert find_mistake(place, detect, "--source", source).startswith(needle)


def test_detection_skips_a_damaged_source_and_names_it(place, capsys):
    write("data/images/val/2.png", b"no image")
    run_and_check_files(place, detect)
    printed = capsys.readouterr()
    assert printed.err.count("2.png skipped") == 1 and printed.out.count("ms\n") >= 7
    assert len(list(Path("runs/exp").iterdir())) == 7


# ---- models


class Attack:
    """Object that runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch canary",)


def torch_file(content: object) -> Callable[[str], None]:
    return lambda file: torch.save(content, file)


@PROGRAMS
@pytest.mark.parametrize("make", [
    lambda file: write(file, b""),
    lambda file: write(file, "these are no weights\n" * 100),
    lambda file: write(file, cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()),
    lambda file: write(file, Path("good.pt").read_bytes()[:5000]),  # an interrupted download
    torch_file([1, 2, 3]),
    torch_file({"model": None}),
    torch_file({"conv.weight": torch.zeros(3)}),  # tensors without a model
    torch_file({"anchorage": 1, "kind": "weights"}),
], ids=["empty", "text", "image", "half", "list", "no model", "state dict", "own without a model"])  # fmt: skip
def test_invalid_weights(place, program, make):
    make("bad.pt")
    assert find_mistake(place, program, "--weights", "bad.pt").startswith("bad.pt: ")


@PROGRAMS
@pytest.mark.parametrize("make", [
    lambda file: write(file, pickle.dumps(Attack())),
    torch_file(Attack()),
    torch_file({"model": Attack(), "ema": None}),
    torch_file({"anchorage": 1, "kind": "train", "model": Attack()}),
    lambda file: torch.save({"model": Attack()}, file, _use_new_zipfile_serialization=False),
], ids=["bare", "zip", "model", "own", "old format"])  # fmt: skip
def test_weights_that_call_a_command_are_refused_without_running_it(place, program, make):
    make("evil.pt")
    message = find_mistake(place, program, "--weights", "evil.pt")
    assert message.startswith("evil.pt: ") and "system" in message
    assert not list(place.rglob("canary"))


@pytest.mark.parametrize("row, needle", [
    ([-1, 1, "Convolution", [64, 3, 2]], "unknown block 'Convolution'; did you mean Conv?"),
    ([-1, 1, "__import__('os').system('touch canary')", []], "unknown block"),
    ([-1, 1, "Conv", ["__import__('os').system('touch canary')"]], "Conv"),
    ([99, 1, "Conv", [64, 3, 2]], "from: 99 is not an earlier layer"),
])  # fmt: skip
def test_model_yaml_with_an_invalid_row(place, row, needle):
    content = yaml.safe_load(Path("model.yaml").read_text())
    content["backbone"][1] = row
    message = find_mistake(place, train, "--cfg", write("bad.yaml", content))
    assert message.startswith("bad.yaml: layer 1") and needle in message
    assert not list(place.rglob("canary"))


def test_control_without_mistakes(place):
    """The common part of the tests above is correct: each program succeeds and changes nothing else."""
    for program in COMMANDS:
        shutil.rmtree("runs", ignore_errors=True)
        run_and_check_files(place, program)
