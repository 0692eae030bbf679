"""Labels in folders of other names are found if only one folder fits."""

import os

import pytest

from utils.datasets.image_files import label_path, unusual_label_folders
from utils.datasets.label_folders import find_label_folder
from utils.datasets.labels import load_index
from utils.errors import UserError

PLACES = [
    ("images/a.jpg", "label/a.txt"),
    ("images/a.jpg", "Labels/a.txt"),
    ("images/train/a.jpg", "annotations/train/a.txt"),
    ("train/images/a.jpg", "train/YOLO/a.txt"),
    ("JPEGImages/a.jpg", "labels/a.txt"),
    ("train/img/a.jpg", "train/label/a.txt"),
    ("train/a.jpg", "labels/train/a.txt"),
    ("train/a.jpg", "train/labels/a.txt"),
]


def write(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("0 0.5 0.5 0.5 0.5\n")


@pytest.mark.parametrize("image, label", PLACES)
def test_the_only_folder_that_fits_is_taken(image, label, tmp_path):
    write(tmp_path, image, label)
    expected = tmp_path / label
    assert label_path(tmp_path / image) == str(expected)
    assert unusual_label_folders([str(tmp_path / image)]) == {str((tmp_path / image).parent): str(expected.parent)}
    write(tmp_path, image.replace("a.jpg", "b.jpg"))
    assert label_path(tmp_path / image.replace("a.jpg", "b.jpg")) == str(expected.with_name("b.txt"))  # a background


@pytest.mark.parametrize(
    "others",
    [
        [],  # nothing
        ["annotations/list.txt", "annotations/README.txt"],  # names of no image
        ["annotations/a.xml", "label/a.json"],  # other files
        ["masks/a.txt"],  # another word
    ],
)
def test_other_folders_are_no_labels(others, tmp_path):
    write(tmp_path, "images/a.jpg", *others)
    assert find_label_folder(str(tmp_path / "images")) is None
    assert label_path(tmp_path / "images/a.jpg") == str(tmp_path / "labels/a.txt")
    assert unusual_label_folders([str(tmp_path / "images/a.jpg")]) == {}


@pytest.mark.parametrize("usual", ["labels/x.txt", "images/a.txt"])
def test_the_usual_places_come_first(usual, tmp_path):
    write(tmp_path, "images/a.jpg", "annotations/a.txt", usual)
    assert label_path(tmp_path / "images/a.jpg") == str(tmp_path / usual).replace("x.txt", "a.txt")


def test_several_folders_are_an_error_that_names_them(tmp_path):
    write(tmp_path, "images/a.jpg", "label/a.txt", "annotations/a.txt")
    with pytest.raises(
        UserError, match=r"in .*annotations or in .*label: each has files named like the images\. Rename"
    ):
        label_path(tmp_path / "images/a.jpg")


def test_a_folder_that_is_filled_later_is_seen(tmp_path):
    write(tmp_path, "images/a.jpg", "label/other.txt")
    assert find_label_folder(str(tmp_path / "images")) is None
    write(tmp_path, "label/a.txt")
    os.utime(tmp_path / "label", ns=(1, 1))  # clocks of file systems are coarse
    assert find_label_folder(str(tmp_path / "images")) == str(tmp_path / "label")


def test_the_labels_are_read_and_their_place_is_said(tiny_data, tmp_path, capsys):
    (tmp_path / "images").symlink_to(tiny_data.parent / "images/train")
    (tmp_path / "Labels").symlink_to(tiny_data.parent / "labels/train")
    index = load_index(tmp_path / "images", 2, prefix="train: ")
    assert index.counts.found > 0
    assert (
        f"train: the labels of the images in {tmp_path}/images are read from {tmp_path}/Labels"
        in capsys.readouterr().out
    )
