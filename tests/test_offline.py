"""Offline use: training, validation and detection open no connection unless the user requests a download."""

import socket

import pytest

import detect
import train
import val
from models import loading
from models.setup import resolve_initial_weights
from models.yolo import DetectionModel
from utils import download
from utils.checkpoint import describe_model, write_checkpoint
from utils.datasets import locate
from utils.errors import UserError


@pytest.fixture
def attempts(monkeypatch) -> list[str]:
    """Let every connection to another machine fail. Return the list in which attempts are recorded."""
    made: list[str] = []

    def refuse(name: str):
        def attempt(*args, **named):
            made.append(f"{name}{args[-1:]}")
            raise OSError("no network in this test")

        return attempt

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse(name))
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse(name))
    monkeypatch.setattr(download, "PAUSE_S", 0)  # between attempts
    return made


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """Use a working folder and a project folder without weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "ROOT", tmp_path)
    return tmp_path


def test_a_whole_session_without_network(tiny_data, tiny_cfg, tmp_path, attempts):
    common = ["--imgsz", "64", "--device", "cpu", "--project", str(tmp_path), "--exist-ok"]
    data = ["--data", str(tiny_data), "--batch-size", "8", "--workers", "0"]
    train.main([*common, *data, "--cfg", str(tiny_cfg), "--epochs", "1", "--name", "train"])  # with drawings and curves
    best = str(tmp_path / "train" / "weights" / "best.pt")
    assert val.main([*common, *data, "--weights", best, "--name", "val"]).images == 8
    images = str(tiny_data.parent / "images" / "val")
    folder = detect.main([*common, "--weights", best, "--source", images, "--name", "detect"])
    assert len(list(folder.glob("*.png"))) == 8
    assert (tmp_path / "train" / "results.png").is_file() and (tmp_path / "val" / "confusion_matrix.png").is_file()
    assert attempts == []


def test_missing_default_weights_are_not_fetched(tiny_data, empty_folder, attempts, capsys):
    assert resolve_initial_weights("yolov5s.pt", "", typed=False).weights is None
    assert "starting from scratch (--weights yolov5s.pt would fetch it)" in capsys.readouterr().out
    with pytest.raises(UserError, match="--weights yolov5s.pt to download that model"):
        val.main(["--data", str(tiny_data), "--device", "cpu"])
    with pytest.raises(UserError, match="--weights yolov5s.pt to download that model"):
        detect.main(["--source", str(tiny_data.parent / "images" / "val"), "--device", "cpu"])
    assert attempts == [] and not list(empty_folder.iterdir())


@pytest.mark.parametrize(
    "main, extra",
    [(train.main, ["--data"]), (val.main, ["--data"]), (detect.main, ["--source"])],
    ids=["train", "val", "detect"],
)
def test_weights_typed_by_name_are_fetched(tiny_data, empty_folder, attempts, main, extra):
    """A control: the fixture records the attempt, and one line names the remedy."""
    where = tiny_data if extra == ["--data"] else tiny_data.parent / "images" / "val"
    with pytest.raises(UserError, match="could not fetch https://.*/yolov5n.pt") as wrong:
        main([*extra, str(where), "--weights", "yolov5n.pt", "--device", "cpu"])
    assert attempts and "\n" not in str(wrong.value)


@pytest.fixture
def absent_data(tmp_path, monkeypatch):
    """Write a data set YAML with an address. Its images are in none of the known folders."""
    monkeypatch.setattr(locate, "ROOT", tmp_path / "project")
    monkeypatch.setenv("ANCHORAGE_DATASETS", str(tmp_path / "mine"))
    file = tmp_path / "set.yaml"
    file.write_text(
        "path: ../datasets/coco128\ntrain: images/a\nval: images/a\nnames: [a]\n"
        "download: https://example.org/coco128.zip\n"
    )
    return file


@pytest.mark.parametrize("main", [train.main, val.main], ids=["train", "val"])
def test_images_that_cannot_be_fetched(main, absent_data, tmp_path, tiny_cfg, attempts, capsys):
    """One line announces the download. The error lists all folders, since the data may be in another one."""
    weights = tmp_path / "tiny.pt"
    write_checkpoint(weights, {"model": describe_model(DetectionModel(tiny_cfg, num_classes=1))}, kind="weights")
    with pytest.raises(UserError) as wrong:
        main(["--data", str(absent_data), "--weights", str(weights), "--device", "cpu"])
    place, target = tmp_path / "mine" / "coco128", tmp_path / "project" / "datasets"
    lines = [line for line in capsys.readouterr().out.splitlines() if "fetching" in line]
    assert len(lines) == 1 and lines[0].startswith("images/a not found in ") and str(place) in lines[0]
    assert lines[0].endswith(f"; fetching https://example.org/coco128.zip to {target}")
    message = str(wrong.value)
    assert "could not fetch https://example.org/coco128.zip (no network in this test)" in message
    assert "set ANCHORAGE_DATASETS to" in message and f"{place}, " in message and "\n" not in message
    assert attempts


@pytest.mark.parametrize("main, extra", [
    (train.main, ["--cfg", "absent.yaml"]), (train.main, ["--weights", "absent.pt"]),
    (val.main, ["--weights", "set.yaml"]),
], ids=["cfg", "weights", "val"])  # fmt: skip
def test_images_are_not_fetched_for_an_invalid_model(main, extra, absent_data, tmp_path, attempts, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="^" + extra[1]):
        main(["--data", str(absent_data), "--device", "cpu", *extra])
    assert attempts == [] and list(tmp_path.iterdir()) == [absent_data]


def test_missing_images_without_an_address_are_not_fetched(tmp_path, attempts):
    file = tmp_path / "set.yaml"
    file.write_text("path: coco128\ntrain: images/absent\nval: images/absent\nnames: [a]\n")
    with pytest.raises(UserError, match="images/absent not found"):
        train.main(["--data", str(file), "--device", "cpu"])
    assert attempts == []
