"""The line on errors in the data before a training starts."""

import shlex

from utils.datasets.locate import locate_dataset
from utils.training.checked_data import load_checked

ROW = "0 .5 .5 .2 .2\n"


def write_set(root, image, *rows):
    for split, text in zip(("train", "val"), rows, strict=True):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        (root / "images" / split / "a.jpg").write_bytes(image.read_bytes())
        (root / "labels" / split / "a.txt").write_text(text)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [ship]\n")
    return locate_dataset(str(root / "data.yaml"))


def image_of(tiny_data):
    return tiny_data.parent / "images/train/0.png"


def test_data_without_errors_has_no_line(tmp_path, capsys, tiny_data):
    splits = load_checked(write_set(tmp_path, image_of(tiny_data), ROW, ROW + ROW))  # a repeated row is no error
    assert len(splits.train) == len(splits.val) == 1
    assert "errors" not in capsys.readouterr().err


def test_errors_are_counted_by_split_with_the_command_that_lists_them(tmp_path, capsys, tiny_data):
    root = tmp_path / "my set"
    spec = write_set(root, image_of(tiny_data), ROW + "0 9 9 9 9\n" * 2 + "0 .5 .5 0 0\n", ROW)
    (root / "images/val/empty.jpg").write_bytes(b"")
    load_checked(spec)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "errors" in line]
    assert warnings == [
        "WARNING: the data has errors: train: 2 out-of-range, 1 zero-area; val: 1 empty-image. "
        f"All of them, and what to do: python check.py --data {shlex.quote(str(root / 'data.yaml'))}"
    ]
