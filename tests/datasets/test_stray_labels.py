"""Label files that no image takes, or that several take, are named before a run trains without them."""

import unicodedata

import pytest
from small_splits import write_image, write_labels

from utils.console import begin_program
from utils.datasets.labels import load_index

ROW = "0 .5 .5 .2 .2\n"
NFC, NFD = (unicodedata.normalize(form, "traín") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    "images, labels, warnings",
    [
        ("images/a.jpg images/b.jpg", "labels/a.txt labels/b.txt", []),
        ("images/a.jpg images/b.jpg", "labels/a.txt labels/classes.txt", []),  # b is a background
        ("images/a.jpg images/b.jpg", "labels/a.txt images/b.txt",
         ["1 label files lie beside their images", "images/b.txt", "to labels"]),
        ("images/a.jpg images/b.jpg", "labels/a.txt images/notes.txt", []),  # not a label file
        ("images/a.jpg images/B.JPG", "labels/a.txt labels/b.txt",
         ["1 label files belong to no image", "labels/b.txt"]),
        ("images/a.jpg images/b.jpg", "labels/a.txt labels/b.TXT", ["labels/b.TXT"]),
        ("images/a.jpg images/b#1.jpg", "labels/a.txt labels/b_1.txt", ["labels/b_1.txt"]),
        ("images/a.jpg images/b.webp.jpg", "labels/a.txt labels/b.txt", ["labels/b.txt"]),
        (f"images/a.jpg images/{NFD}.jpg", f"labels/a.txt labels/{NFC}.txt", [f"labels/{NFC}.txt"]),
        ("images/a.jpg", "labels/a.txt labels/b.txt labels/c.txt labels/d.txt labels/e.txt",
         ["4 label files belong to no image", "labels/b.txt, labels/c.txt, labels/d.txt, ..."]),
        ("images/x/a.jpg images/y/b.jpg", "labels/x/a.txt labels/x/b.txt labels/y/b.txt", ["labels/x/b.txt"]),
        ("images/x/a.jpg images/y/b.jpg", "labels/x/a.txt",
         ["1 folders of labels do not exist: labels/y/ (of 1 images)"]),
        ("images/x/a.jpg images/y/b.jpg", "else/a.txt", ["no labels"]),
        ("images/a.jpg images/a.png", "labels/a.txt",
         ["1 label files are used for several", "labels/a.txt (a.jpg, a.png)"]),
        ("images/a.jpg images/b.jpg images/b.png", "labels/a.txt", []),  # backgrounds share nothing
        ("plain/a.jpg plain/B.jpg", "plain/a.txt plain/b.txt plain/notes.txt",
         ["1 label files belong to no image: plain/b.txt."]),
    ],
)  # fmt: skip
def test_stray_label_files_are_named(tmp_path, monkeypatch, capsys, images, labels, warnings):
    monkeypatch.chdir(tmp_path)
    for name in images.split():
        write_image(tmp_path / name)
    for name in labels.split():
        write_labels(tmp_path / name, ROW)
    for _ in range(2):  # scanned, then from the cache
        begin_program()  # each warning appears once in a program
        load_index(images.split("/")[0], 1)
        printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING")]
        assert len(printed) == bool(warnings)
        assert all(text in printed[0] for text in warnings)


def test_other_label_files_of_a_listed_split_are_not_its_own(tmp_path, monkeypatch, capsys):
    """A list chooses some images of a folder. The labels of the others are there too."""
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        write_image(tmp_path / f"images/{name}.jpg")
        write_labels(tmp_path / f"labels/{name}.txt", ROW)
    (tmp_path / "train.txt").write_text("images/a.jpg\nimages/b.jpg\n")
    load_index("train.txt", 1)
    assert "label files" not in capsys.readouterr().err
    (tmp_path / "labels/b.txt").rename(tmp_path / "labels/B.txt")
    load_index("train.txt", 1)
    assert "1 label files belong to no image: labels/B.txt." in capsys.readouterr().err
