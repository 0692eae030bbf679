"""Resuming: a checkpoint of the version before this one, and which checkpoint and flags count."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import draw_boxes
from kill_and_resume import flatten

import train
from models.loading import load_model
from utils.checkpoint import read_checkpoint
from utils.training.resume import resumed_options

KEPT = Path(__file__).resolve().parents[1] / "kept" / "interrupted-schema1.pt"  # after 75 of 300 epochs, schema 1


@pytest.fixture(scope="module")
def kept_data(tmp_path_factory) -> Path:
    """Write the data set that the kept run was trained on. Return its YAML."""
    folder, rng = tmp_path_factory.mktemp("kept data"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            image, rows = draw_boxes(rng, int(rng.integers(1, 4)))
            cv2.imwrite(str(folder / "images" / split / f"{number}.png"), image)
            (folder / "labels" / split / f"{number}.txt").write_text("".join(rows))
    file = folder / "tiny.yaml"
    file.write_text("train: images/train\nval: images/val\nnames: [dark, bright]\n")
    return file


def test_an_interrupted_run_of_an_earlier_version_is_resumed(kept_data, tmp_path, capsys):
    folder = tmp_path / "run"
    (folder / "weights").mkdir(parents=True)
    shutil.copy(KEPT, folder / "weights" / "last.pt")
    words = ["--data", str(kept_data), "--epochs", "77", "--device", "cpu", "--name", "run", "--project", str(tmp_path)]
    train.main(["--resume", str(folder), *words])
    output = capsys.readouterr().out
    assert "resume: --epochs 300 -> 77" in output and "Training for 77 epochs" in output
    assert "resume: data" not in output and "resume: polygons" not in output and "resume: validation" not in output
    old, new = read_checkpoint(KEPT), read_checkpoint(folder / "weights" / "last.pt")
    assert (old["epoch"], new["epoch"], new["iteration"]) == (75, 77, 154)
    assert new["ema"]["updates"] == old["ema"]["updates"] + 4  # a step per batch, two batches per epoch
    assert new.keys() == old.keys() and new["options"].keys() == old["options"].keys()
    assert new["best_fitness"] >= old["best_fitness"]


def test_the_state_of_an_earlier_version_is_read_to_the_bit(make_run):
    content = read_checkpoint(KEPT)
    run = make_run(content["model"]["yaml"])
    run.model.names = content["model"]["names"]
    run.load_state_dict(content)
    state = run.state_dict()
    assert flatten(state) == flatten({key: content[key] for key in state})


def test_a_checkpoint_of_an_earlier_version_is_a_model(capsys):
    model = load_model(KEPT)
    assert model.names == {0: "dark", 1: "bright"}
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64))[0].shape == (1, 252, 7)


def test_a_file_from_elsewhere_chooses_no_folder(tmp_path):
    """Folders that a file names count only for a run in its own folder."""
    content = read_checkpoint(KEPT)
    content["options"] |= {"project": str(tmp_path / "victim"), "name": ".", "exist_ok": True}
    options = resumed_options(content, tmp_path / "downloads" / "last.pt", {})
    assert (options.project, options.name, options.exist_ok) == ("runs/train", "exp", False)
    typed = resumed_options(content, tmp_path / "downloads" / "last.pt", {"project": "mine", "exist_ok": True})
    assert (typed.project, typed.name, typed.exist_ok) == ("mine", "exp", True)
