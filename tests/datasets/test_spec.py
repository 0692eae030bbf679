"""Data set YAMLs as other programs write them: found, or the line says what to type."""

import pytest
from small_splits import write_image, write_labels

from utils.console import begin_program
from utils.datasets.spec import read_dataset_yaml
from utils.datasets.splits import load_splits
from utils.errors import UserError

ROW = "0 .5 .5 .2 .2\n"


def write_yaml_text(folder, text, names="names: [a]\n"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").write_text(text + names)
    return folder / "data.yaml"


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "valid", "test"):
        write_image(tmp_path / f"set/{split}/images/a.png")
        write_labels(tmp_path / f"set/{split}/labels/a.txt", ROW)
    return tmp_path / "set"


@pytest.mark.parametrize(
    "text, message",
    [
        ("train: x\nvalid: y\n", "`val:` is missing: rename `valid:` to `val:`"),
        ("train: x\nvalidation: y\n", "rename `validation:` to `val:`"),
        ("train: x\nVal: y\n", "rename `Val:` to `val:`"),
        ("train: x\n", "add `val:` with the validation images"),
        ("training: x\nval: y\n", "`train:` is missing: rename `training:` to `train:`"),
        ("tarin: x\nval: y\n", "`train:` is missing; did you mean tarin"),
        ("train: x\nval: y\nclasses: [a]\n", "`names:` is missing: rename `classes:` to `names:`"),
        ("train: x\nval: y\nnames: [a]\nnames: [b]\n", ":4: the key 'names' occurs twice"),
        ("train: x\nval: y\nnames: [a]\nkpt_shape: 17\n", "kpt_shape: 17: expected .number of keypoints, 2 or 3"),
        ("train: x\nval: y\nnames: [a]\nkpt_shape: [17, 4]\n", "kpt_shape: .17, 4.: expected"),
    ],
)
def test_a_key_that_is_missing_or_wrong_says_what_to_type(tmp_path, text, message):
    file = write_yaml_text(tmp_path, text, names="" if "names:" in message or "names:" in text else "names: [a]\n")
    with pytest.raises(UserError, match=f"data.yaml:?.*{message}"):
        read_dataset_yaml(file)


def test_a_split_to_measure_on_needs_no_other(tmp_path):
    file = write_yaml_text(tmp_path, "test: z\ndownload: a.zip\n")
    assert read_dataset_yaml(file, required=("test",)).entries == {"train": [], "val": [], "test": ["z"]}
    file = write_yaml_text(tmp_path, "val: y\ndownload: a.zip\n")
    with pytest.raises(UserError, match="`test:` is missing: add it with .*, or choose another --task"):
        read_dataset_yaml(file, required=("test",))


def test_separators_of_windows(folder):
    file = write_yaml_text(folder, "train: train\\images\nval: ..\\valid\\images\n")
    spec = read_dataset_yaml(file).resolve([])
    assert spec.splits["train"] == [folder / "train/images"] and spec.splits["val"] == [folder / "valid/images"]


def test_a_path_in_the_home_folder(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = write_yaml_text(tmp_path / "else", "path: ~/set\ntrain: train/images\nval: valid/images\n")
    assert read_dataset_yaml(file).resolve([]).root == folder


def test_classes_of_one_name_are_named(tmp_path, capsys):
    begin_program()
    read_dataset_yaml(write_yaml_text(tmp_path, "train: x\nval: y\n", names="names: [cat, dog, cat]\n"))
    assert "the classes 0, 2 have the same name 'cat'" in capsys.readouterr().err


def test_the_test_split_may_be_beside_the_yaml(folder, tmp_path):
    """One exporter writes two splits as seen from the parent folder, and the third with ../"""
    file = write_yaml_text(folder, "train: set/train/images\nval: set/valid/images\ntest: ../test/images\n")
    other = write_image(tmp_path / "other/test/images/a.png").parent
    spec = read_dataset_yaml(file).resolve([tmp_path, tmp_path / "other"])
    assert spec.splits["test"] == [folder / "test/images"] != [other]


@pytest.mark.parametrize("case", ["labels beside the link", "labels of another data set too", "labels behind the link"])
def test_labels_lie_beside_the_path_as_typed(tmp_path, capsys, case):
    """Labels behind the link are taken if there are no others, and that is said."""
    begin_program()
    write_image(tmp_path / "far/images/train/a.png")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/images").symlink_to(tmp_path / "far/images")
    if case != "labels behind the link":
        write_labels(tmp_path / "mine/labels/train/a.txt", ROW)
    if case != "labels beside the link":
        write_labels(tmp_path / "far/labels/train/a.txt", ROW * 1 + "0 .1 .1 .1 .1\n")
    file = write_yaml_text(tmp_path / "mine", "train: images/train\nval: images/train\n")
    found = load_splits(read_dataset_yaml(file).resolve([]))
    assert len(found.train.labels) == (2 if case == "labels behind the link" else 1)
    said = f"labels of {tmp_path}/mine/images/train are taken from its link's target, {tmp_path}/far/labels/train"
    assert (said in capsys.readouterr().err) is (case == "labels behind the link")


def test_rows_with_keypoints_give_boxes(tmp_path, capsys):
    write_image(tmp_path / "images/a.png")
    write_labels(tmp_path / "labels/a.txt", "0 .8 .8 .1 .1 .76 .78 .84 .78 .84 .83 .76 .83\n")
    file = write_yaml_text(tmp_path, "train: images\nval: images\nkpt_shape: [4, 2]\n")
    found = load_splits(read_dataset_yaml(file).resolve([]))
    assert found.train.boxes(0)[0].tolist() == pytest.approx([0, 0.8, 0.8, 0.1, 0.1])
    assert "train: kpt_shape: each row is a box and 8 values" in capsys.readouterr().out
