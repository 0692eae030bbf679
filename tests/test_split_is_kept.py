"""A set without images to validate on is divided once: resuming, val.py and check.py take the same images."""

import json
import re
import shutil

import cv2
import pytest
from tiny_training import train_flags

import check
import train
import val
from utils.errors import UserError


@pytest.fixture
def folder(tiny_data, tmp_path, monkeypatch):
    """Return a folder of images with labels beside them, as LabelImg leaves it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home/.cache"))
    folder = tmp_path / "images"
    folder.mkdir()
    for path in (tiny_data.parent / "images/train").iterdir():
        label = tiny_data.parent / "labels/train" / f"{path.stem}.txt"
        shutil.copy(path, folder)
        if label.exists():
            shutil.copy(label, folder)
    (folder / "classes.txt").write_text("dark\nbright\n")
    return folder


@pytest.mark.slow
def test_a_split_is_the_same_in_all_programs_and_never_in_the_data(folder, tiny_cfg, tmp_path, capsys):
    before = sorted(path.name for path in folder.iterdir())
    flags = train_flags(folder, tiny_cfg, tmp_path, "--split", "0.75", "--noplots", "--weights", "", epochs=1)
    train.main(flags)
    run = tmp_path / "run"
    kept = json.loads((run / "split.json").read_text())
    assert kept["split"] == "0.75" and kept["images"] == 24 and len(kept["val"]) == 6
    assert "18 images to train on, 6 to validate on, drawn at random" in capsys.readouterr().out

    (tmp_path / "home").rename(tmp_path / "away")  # another machine
    cv2.imwrite(str(folder / "added.png"), cv2.imread(str(folder / "0.png")))
    words = ["--data", str(folder), "--split", "0.75", "--weights", str(run / "weights/best.pt"), "--imgsz", "64"]
    val.main([*words, "--workers", "0", "--project", str(tmp_path / "val")])
    said = f"as kept in {run / 'split.json'} (+1 images since then: new ones are trained on)"
    output = capsys.readouterr().out
    assert said in output and re.search(r"\n +all +6 ", output)

    train.main(["--resume", str(run), "--epochs", "2"])
    assert said in capsys.readouterr().out
    with pytest.raises(UserError, match="--resume keeps the split of"):
        train.main(["--resume", str(run), "--epochs", "3", "--split", "0.5"])

    shutil.rmtree(tmp_path / "home", ignore_errors=True)
    (tmp_path / "away").rename(tmp_path / "home")  # back on the first
    result = check.run(str(folder), split="0.75", project=str(tmp_path / "check"))
    document = json.loads((result.save_dir / "findings.json").read_text())
    assert {split["split"]: split["images"] for split in document["splits"]} == {"train": 18 + 1, "val": 6}
    assert sorted(path.name for path in folder.iterdir()) == sorted([*before, "added.png"])


@pytest.mark.parametrize("words", [[], ["--split", "0.75", "--split", "2"]])
def test_an_absent_or_wrong_split_is_one_line(words, folder, tiny_cfg, tmp_path):
    with pytest.raises(UserError) as caught:
        train.main(train_flags(folder, tiny_cfg, tmp_path, *words))
    assert "--split 0.8" in str(caught.value) or "0.8 for instance" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_split_of_a_set_that_has_one_is_refused(tiny_data, tiny_cfg, tmp_path):
    with pytest.raises(UserError, match="has its own val: omit --split"):
        train.main(train_flags(tiny_data, tiny_cfg, tmp_path, "--split", "0.8"))
