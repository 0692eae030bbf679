"""Resuming: a checkpoint of the version before this one, and which checkpoint and flags count."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import draw_boxes
from kill_and_resume import flatten

import train
from models.loading import load_model
from utils.checkpoint import read_checkpoint, write_checkpoint
from utils.errors import UserError
from utils.files import write_yaml
from utils.training.resume import edited_flags, find_checkpoint, mark_unedited, read_run_state, resumed_options

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
    assert new.keys() == old.keys()
    assert new["options"].keys() - old["options"].keys() == {
        "threads",
        "fitness",
        "min_delta",
        "log",
        "log_project",
        "log_weights",
        "recipe",
        "split",
        "time",
        "dry_run",
        "tile",
        "tile_overlap",
        "class_balance",
        "class_weights",
    }
    assert new["options"]["threads"] == 0  # as many as PyTorch chooses, as before
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


# ---- settings that were edited in the run folder


@pytest.fixture(scope="module")
def kept_content() -> dict:
    return read_checkpoint(KEPT)


@pytest.fixture
def settings(tmp_path, kept_content) -> Path:
    """Write opt.yaml and hyp.yaml of the kept run as a training does. Return the folder."""
    hyp = kept_content["hyp"]
    options = {**kept_content["options"], "hyp": hyp, "resume": False, "save_dir": str(tmp_path)}
    write_yaml(tmp_path / "opt.yaml", mark_unedited(options))
    write_yaml(tmp_path / "hyp.yaml", hyp)
    return tmp_path


def edit(file: Path, **changes) -> None:
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))


def test_settings_that_were_not_edited_change_nothing(settings, kept_content, capsys):
    assert edited_flags(settings, kept_content) == {} == edited_flags(settings / "absent", kept_content)
    text = (settings / "opt.yaml").read_text()
    (settings / "opt.yaml").write_text("# a comment\n" + text)
    assert edited_flags(settings, kept_content) == {}
    # flags of a resumed run that was killed before its first save: as typed then, not edited
    write_yaml(settings / "opt.yaml", mark_unedited({**yaml.safe_load(text), "epochs": 500}))
    assert edited_flags(settings, kept_content) == {} and capsys.readouterr() == ("", "")


def test_edited_settings_count_like_typed_flags(settings, kept_content, capsys):
    edit(settings / "opt.yaml", epochs=14, patience=7, name="other", cfg="else.yaml", epoch=3)
    edit(settings / "hyp.yaml", lr0=0.001)
    found = edited_flags(settings, kept_content)
    assert found == {"epochs": 14, "patience": 7, "hyp": str(settings / "hyp.yaml")}
    out, err = capsys.readouterr()
    assert "opt.yaml was edited, which counts like typed flags" in out and "hyp.yaml was edited, which" in out
    assert "opt.yaml was edited, but these are not taken: cfg, epoch, name." in err
    options = resumed_options(kept_content, settings / "weights" / "last.pt", found | {"epochs": 20})
    assert (options.epochs, options.patience, "hyp" in options.typed) == (20, 7, True)  # what is typed counts first


def test_edited_settings_that_cannot_be(settings, kept_content, capsys):
    edit(settings / "opt.yaml", epochs="many")
    with pytest.raises(UserError, match="opt.yaml: option epochs: 'many' is not of the type of 100"):
        edited_flags(settings, kept_content)
    (settings / "opt.yaml").write_text("epochs: [")
    edit(settings / "hyp.yaml", **kept_content["hyp"])
    assert edited_flags(settings, kept_content) == {}
    assert "opt.yaml:1: " in (err := capsys.readouterr().err) and "The settings of the checkpoint count." in err


# ---- a damaged checkpoint


def test_a_damaged_checkpoint_names_the_whole_state_beside_it(tmp_path, kept_content):
    weights = tmp_path / "run" / "weights"
    weights.mkdir(parents=True)
    (weights / "last.pt").write_bytes(KEPT.read_bytes()[:5000])
    with pytest.raises(UserError) as error:
        read_run_state(weights / "last.pt")
    assert "is whole" not in str(error.value)  # there is none
    for name, epoch in (("epoch3.pt", 4), ("epoch-start.pt", 5), ("best.pt", 9)):
        write_checkpoint(weights / name, {**kept_content, "epoch": epoch}, "weights" if name == "best.pt" else "train")
    offer = f"a state after 5 epochs is whole: --resume {weights}/epoch-start.pt"
    with pytest.raises(UserError, match=offer):
        read_run_state(weights / "last.pt")
    (weights / "last.pt").unlink()
    with pytest.raises(UserError, match=f"no checkpoint {weights}/last.pt; {offer}"):
        find_checkpoint(str(tmp_path / "run"), "")
    assert read_run_state(weights / "epoch-start.pt")["epoch"] == 5
