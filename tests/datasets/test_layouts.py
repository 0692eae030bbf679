"""Folders as labelling tools, exports and archives leave them: what is recognised as which split, and what is not."""

import json
import os
import subprocess
import sys

import pytest
from small_splits import write_image

from utils.datasets.labels import load_split
from utils.datasets.layouts import find_layout
from utils.datasets.locate import locate_dataset, read_dataset
from utils.errors import UserError
from utils.files import ROOT

LABEL = "1 .5 .5 .5 .5\n"
COCO = json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]})
VOC = "<annotation><filename>a.jpg</filename></annotation>"


def write(folder, files):
    """Write the files: texts by their names. Names of images get an image."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jpg":
            write_image(path, value=len(name))
        else:
            path.write_text(text)
    return folder


def pairs(*folders, labels=None):
    """Return an image in each folder, and its label file beside it or where `labels` says."""
    files = {}
    for folder in folders:
        files |= {f"{folder}/a.jpg": "", f"{labels or folder}/a.txt": LABEL}
    return files


def split_pairs(*splits):
    """Return an image in images/ and a label in labels/ of each split's folder."""
    return {name: text for split in splits for name, text in pairs(f"{split}/images", labels=f"{split}/labels").items()}


NAMES = {"classes.txt": "a\nb\n"}
YAML = "names: [a, b]\n"

# By name: files, then the entries of train, val and test.
FORMS = {
    "roboflow": (
        {**split_pairs("train", "valid", "test"), "data.yaml": f"train: ../train/images\nval: ../valid/images\n{YAML}"},
        ["train/images"], ["valid/images"], [],
    ),
    "roboflow without its YAML": (
        {**split_pairs("train", "valid", "test"), **NAMES}, ["train/images"], ["valid/images"], ["test/images"]
    ),
    "roboflow's darknet": (
        {**pairs("train", "valid"), "train/_darknet.labels": "a\nb\n", "valid/_darknet.labels": "a\nb\n",
         "README.roboflow.txt": "x"},
        ["train"], ["valid"], [],
    ),
    "roboflow's COCO": (
        {"train/_annotations.coco.json": COCO, "train/a.jpg": "", "valid/_annotations.coco.json": COCO},
        ["train/_annotations.coco.json"], ["valid/_annotations.coco.json"], [],
    ),
    "roboflow's VOC": (
        {"train/a.jpg": "", "train/a.xml": VOC, "valid/a.jpg": "", "valid/a.xml": VOC}, ["train"], ["valid"], []
    ),
    "cvat's YOLO": (
        {**pairs("obj_train_data"), "obj.names": "a\nb\n", "train.txt": "data/obj_train_data/a.jpg\n",
         "obj.data": "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"},
        ["train.txt"], [], [],
    ),
    "cvat's COCO": (
        {"annotations/instances_train.json": COCO, "annotations/instances_val.json": COCO, "images/train/a.jpg": ""},
        ["annotations/instances_train.json"], ["annotations/instances_val.json"], [],
    ),
    "VOCdevkit": (
        {"VOC2012/Annotations/a.xml": VOC, "VOC2012/JPEGImages/a.jpg": "", "VOC2012/ImageSets/Main/train.txt": "a\n",
         "VOC2012/ImageSets/Main/val.txt": "a\n"},
        ["VOC2012/ImageSets/Main/train.txt"], ["VOC2012/ImageSets/Main/val.txt"], [],
    ),
    "label studio's YOLO": (
        {**pairs("images", labels="labels"), **NAMES,
         "notes.json": '{"categories": [{"id": 1, "name": "b"}, {"id": 0, "name": "a"}]}'},
        ["images"], [], [],
    ),
    "label studio's COCO": ({"images/a.jpg": "", "result.json": COCO}, ["result.json"], [], []),
    "labelImg": ({**pairs("shots"), "shots/classes.txt": "a\nb\n"}, ["shots"], [], []),
    "labelImg in images": ({**pairs("images"), "images/classes.txt": "a\nb\n"}, ["images"], [], []),
    "fiftyone's YOLOv4": ({**pairs("data"), "obj.names": "a\nb\n", "images.txt": "data/a.jpg\n"}, ["data"], [], []),
    "fiftyone's COCO": ({"data/a.jpg": "", "labels.json": COCO}, ["labels.json"], [], []),
    "fiftyone's VOC": ({"data/a.jpg": "", "labels/a.xml": VOC}, ["data"], [], []),
    "ultralytics hub": (
        {**{f"coco8/{name}": text for name, text in pairs("images/train", labels="labels/train").items()},
         **{f"coco8/{name}": text for name, text in pairs("images/val", labels="labels/val").items()},
         "coco8/coco8.yaml": f"path: coco8\ntrain: images/train\nval: images/val\n{YAML}"},
        ["images/train"], ["images/val"], [],
    ),
    "kaggle": (
        {**{f"archive/{name}": text for name, text in split_pairs("train", "test").items()},
         "archive/names.txt": "a\nb"},
        ["archive/train/images"], [], ["archive/test/images"],
    ),
    "kaggle's VOC": ({"annotations/a.xml": VOC, "images/a.jpg": ""}, ["images"], [], []),
    "kaggle's folders of images": (
        {**pairs("images/train2017", labels="labels/train2017"), **pairs("images/val2017", labels="labels/val2017"),
         "labels.yaml": YAML, "test_images/a.jpg": ""},
        ["images/train2017"], ["images/val2017"], ["test_images"],
    ),
    "lists": (
        {**pairs("images", labels="labels"), **NAMES, "train.txt": "C:\\me\\set\\images\\a.jpg\n",
         "valid.txt": "images/a.jpg"},
        ["train.txt"], ["valid.txt"], [],
    ),
    "folders of other names": (
        {**{f"train/{name}": text for name, text in pairs("img", labels="label").items()}, **NAMES},
        ["train/img"], [], [],
    ),
    "a folder with labels beside": ({"a.jpg": "", "a.txt": LABEL, **NAMES}, ["."], [], []),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms(form, tmp_path):
    files, *expected = FORMS[form]
    found = find_layout(write(tmp_path / "set", files))
    assert [
        [entry.removeprefix("../") for entry in found.entries[split]] for split in ("train", "val", "test")
    ] == expected
    is_named = any(name.endswith((".json", ".xml")) and "notes" not in name for name in files)
    assert found.names == ({} if is_named else {0: "a", 1: "b"})


@pytest.mark.parametrize("form", ["roboflow", "roboflow's darknet", "ultralytics hub", "lists"])
def test_the_labels_of_a_form_are_read_and_nothing_is_written_into_it(form, tmp_path):
    folder = write(tmp_path / "set", FORMS[form][0])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    spec = locate_dataset(str(folder))
    assert [load_split(spec, split, progress=False).labels.tolist() for split in ("train", "val")] == [
        [[1, 0.5, 0.5, 0.5, 0.5]]
    ] * 2
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert after == before


def test_lines_of_a_list_from_elsewhere_are_followed_below_its_folder(tmp_path, capsys):
    spec = locate_dataset(str(write(tmp_path / "set", FORMS["lists"][0])))
    assert load_split(spec, "train").paths[0] == str(tmp_path / "set/images/a.jpg")
    assert "1 of its 1 paths are not here; their images are found below" in capsys.readouterr().out


@pytest.mark.parametrize("root", ["/content/datasets/x", "C:\\Users\\me\\x", "/kaggle/input/x"])
def test_a_yaml_of_another_machine_is_followed_below_its_folder(root, tmp_path, capsys):
    files = {
        **split_pairs("train", "valid"),
        "data.yaml": f"path: '{root}'\ntrain: train/images\nval: valid/images\n{YAML}",
    }
    folder = write(tmp_path / "set", files)
    spec = locate_dataset(str(folder))
    assert spec.splits["val"] == [folder / "valid/images"]
    assert "train/images -> train/images, valid/images -> valid/images" in capsys.readouterr().out
    with pytest.raises(UserError, match="not found; correct `path:`"):  # the YAML itself is taken at its word
        locate_dataset(str(folder / "data.yaml"))


def test_lists_are_found_among_many_labels(tmp_path):
    files = {f"shots/{number}.txt": LABEL for number in range(150)}
    files |= {**NAMES, "shots/9.jpg": "", "shots/train.txt": "9.jpg\n", "shots/val.txt": "9.jpg\n"}
    assert find_layout(write(tmp_path / "set", files)).entries["val"] == ["shots/val.txt"]


def test_two_splits_never_become_one_folder(tmp_path):
    files = {**pairs("images", labels="labels"), "data.yaml": f"train: /a/train/images\nval: /b/val/images\n{YAML}"}
    with pytest.raises(UserError, match="not found; correct `path:`"):
        locate_dataset(str(write(tmp_path / "set", files)))


# files: what the message says
REFUSED = {
    "empty": ({"readme.md": "x"}, "no data set: looked for a data set YAML, .*; found nothing of the kind"),
    "labels only": ({"labels/a.txt": LABEL, **NAMES}, "found 1 .txt files in labels, classes.txt. There is no image"),
    "XML only": ({"Annotations/a.xml": VOC}, "found 1 .xml files in Annotations. There is no image in it: export the"),
    "images only": (pairs("x", labels="y"), r"no data set: .* found 1 images in x, 1 .txt files in y"),
    "no names": (split_pairs("train", "valid"), r"YOLO labels \(train: train/images; val: valid/images\), but no "),
    "two YAMLs": (
        {"a.yaml": f"train: x\nval: x\n{YAML}", "b.yaml": f"train: x\nval: x\n{YAML}"},
        "several data set YAMLs: a.yaml, b.yaml: give one: --data .*a.yaml",
    ),
    "names that differ": (
        {**split_pairs("train", "valid"), "classes.txt": "a\nb", "train/classes.txt": "b\na"},
        r"different class names: classes.txt \(2 names\), train/classes.txt \(2 names\)",
    ),
    "images of no split": (
        {**split_pairs("train", "valid", "more"), **NAMES}, "more/images which belongs to no split: move it into one"
    ),
    "two forms": (
        {"a.jpg": "", "a.xml": VOC, "x.json": COCO}, r"found COCO JSON \(x.json\) and Pascal VOC XML \(.\): give "
    ),
    "two JSON files": ({"a.json": COCO, "b.json": COCO}, "several COCO files: a.json, b.json: give one: .*a.json"),
    "a YAML without val": ({"data.yaml": f"train: x\nvalid: y\n{YAML}"}, "`val:` is missing: rename `valid:` to"),
    "darknet without names": ({"obj.data": "train = t.txt\n", "t.txt": "a.jpg"}, "no line `names = obj.names`"),
    "darknet without its list": ({"obj.data": "train = t.txt\nnames = n"}, "train = t.txt: not found"),
    "labels of another form": (
        {"a.jpg": "", "a.json": '{"shapes": []}'}, "a.json. Export the labels as COCO, Pascal VOC or"
    ),
    "no val": ({**split_pairs("train"), **NAMES}, r"no val images \(only train: train/images\). Add --split 0.8 to"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    files, message = REFUSED[case]
    folder = write(tmp_path / "set", files)
    with pytest.raises(UserError, match=message) as caught:
        read_dataset(str(folder))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_json_beside_yolo_labels_is_said(tmp_path, capsys):
    files = {**split_pairs("train", "valid"), **NAMES, "train.json": COCO}
    assert find_layout(write(tmp_path / "set", files)).entries["train"] == ["train/images"]
    assert "the YOLO labels are read, not the COCO JSON (train: train.json)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["set.json", "list.txt", "obj.data"])
def test_one_file_may_be_the_data_set(name, tmp_path):
    files = {**pairs("shots"), **NAMES, "set.json": COCO, "list.txt": "shots/a.jpg\n",
             "obj.data": "train = list.txt\nnames = classes.txt"}  # fmt: skip
    found = read_dataset(str(write(tmp_path / "set", files) / name), required=("train",))
    assert found.entries["train"] == [{"obj.data": "list.txt"}.get(name, name)]
    assert len(found.names) == (0 if name == "set.json" else 2)


@pytest.mark.parametrize(
    "name, message",
    [
        ("shots/a.txt", "this file is no data set. Give a data set YAML, a folder"),
        ("shots/a.jpg", "this file is no data set. Give a data set YAML, a folder"),
        ("archive.zip", "this file is no data set. Unpack it and give the folder"),
        ("absent", "no such data set YAML or folder; looked in"),
    ],
)
def test_another_file_is_no_data_set(name, message, tmp_path):
    write(tmp_path, {**pairs("shots"), "archive.zip": "PK"})
    with pytest.raises(UserError, match=message):
        read_dataset(str(tmp_path / name))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_among_the_files_is_never_opened(tmp_path):
    folders = []
    for name in ("x.json", "x.xml", "x.yaml", "x.txt", "data.yaml", "obj.data"):
        folders.append(write(tmp_path / name.replace(".", "_"), {**pairs("shots"), **NAMES}))
        os.mkfifo(folders[-1] / name)
    program = """
import sys
from utils.datasets.locate import read_dataset
for folder in sys.argv[1:]:
    try:
        read_dataset(folder, required=["train"])
    except ValueError as error:
        print(error)
"""
    command = [sys.executable, "-c", program, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    yaml, data = done.stdout.splitlines()
    assert "data.yaml: cannot be read: not a regular file" in yaml and "obj.data: cannot be read as text" in data
