"""The hyperparameter files and data set files that ship: their values, and that our own readers take them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from utils.config import Hyperparameters

DATA = Path(__file__).resolve().parents[2] / "data"
HYPS = ("scratch-low", "scratch-med", "scratch-high", "no-augmentation", "VOC", "Objects365")

# one row per key, one column per file of HYPS; None: the key is absent
TABLE = """
lr0             0.01   0.01   0.01   0.01   0.00334 0.00258
lrf             0.01   0.1    0.1    0.1    0.15135 0.17
momentum        0.937  0.937  0.937  0.937  0.74832 0.779
weight_decay    0.0005 0.0005 0.0005 0.0005 0.00025 0.00058
warmup_epochs   3.0    3.0    3.0    3.0    3.3835  1.33
warmup_momentum 0.8    0.8    0.8    0.8    0.59462 0.86
warmup_bias_lr  0.1    0.1    0.1    0.1    0.18657 0.0711
box             0.05   0.05   0.05   0.05   0.02    0.0539
cls             0.5    0.3    0.3    0.3    0.21638 0.299
cls_pw          1.0    1.0    1.0    1.0    0.5     0.825
obj             1.0    0.7    0.7    0.7    0.51728 0.632
obj_pw          1.0    1.0    1.0    1.0    0.67198 1.0
iou_t           0.2    0.2    0.2    0.2    0.2     0.2
anchor_t        4.0    4.0    4.0    4.0    3.3744  3.44
anchors         None   None   None   None   3.412   3.2
fl_gamma        0.0    0.0    0.0    0.0    0.0     0.0
hsv_h           0.015  0.015  0.015  0      0.01041 0.0188
hsv_s           0.7    0.7    0.7    0      0.54703 0.704
hsv_v           0.4    0.4    0.4    0      0.27739 0.36
degrees         0.0    0.0    0.0    0.0    0.0     0.0
translate       0.1    0.1    0.1    0      0.04591 0.0902
scale           0.5    0.9    0.9    0      0.75544 0.491
shear           0.0    0.0    0.0    0      0.0     0.0
perspective     0.0    0.0    0.0    0.0    0.0     0.0
flipud          0.0    0.0    0.0    0.0    0.0     0.0
fliplr          0.5    0.5    0.5    0.0    0.5     0.5
mosaic          1.0    1.0    1.0    0.0    0.85834 1.0
mixup           0.0    0.1    0.1    0.0    0.04266 0.0
copy_paste      0.0    0.0    0.1    0.0    0.0     0.0
"""


def read(name: str) -> dict:
    return yaml.safe_load((DATA / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", HYPS)
def test_hyperparameter_values(name):
    rows = [line.split() for line in TABLE.strip().splitlines()]
    expected = {row[0]: row[1 + HYPS.index(name)] for row in rows}
    expected = {key: float(value) for key, value in expected.items() if value != "None"}
    found = read(f"hyps/hyp.{name}.yaml")
    assert found == expected
    assert all(isinstance(value, (int, float)) for value in found.values())
    order = [key for key in expected if not (name == "VOC" and key == "anchors")]
    assert list(found) == order + (["anchors"] if name == "VOC" else [])


@pytest.mark.parametrize("name", HYPS)
def test_our_reader_takes_them(name):
    path = DATA / "hyps" / f"hyp.{name}.yaml"
    assert Hyperparameters.load(path).to_dict() == pytest.approx(read(f"hyps/hyp.{name}.yaml"))


def test_the_defaults_are_the_default_file():
    assert Hyperparameters.load(DATA / "hyps" / "hyp.scratch-low.yaml") == Hyperparameters()


@pytest.mark.parametrize(
    "name, count, first, last, path, train, val",
    [
        ("coco128", 80, "person", "toothbrush", "coco128", "images/train2017", "images/train2017"),
        ("coco", 80, "person", "toothbrush", "coco", "train2017.txt", "val2017.txt"),
        ("VOC", 20, "aeroplane", "tvmonitor", "VOC",
         ["images/train2012", "images/train2007", "images/val2012", "images/val2007"], ["images/test2007"]),
        ("VisDrone", 10, "pedestrian", "motor", "VisDrone",
         "VisDrone2019-DET-train/images", "VisDrone2019-DET-val/images"),
        ("Argoverse", 8, "person", "stop_sign", "Argoverse",
         "Argoverse-1.1/images/train/", "Argoverse-1.1/images/val/"),
        ("GlobalWheat2020", 1, "wheat_head", "wheat_head", "GlobalWheat2020",
         [f"images/{field}" for field in "arvalis_1 arvalis_2 arvalis_3 ethz_1 rres_1 inrae_1 usask_1".split()],
         ["images/ethz_1"]),
        ("SKU-110K", 1, "object", "object", "SKU-110K", "train.txt", "val.txt"),
        ("xView", 60, "Fixed-wing Aircraft", "Tower", "xView",
         "images/autosplit_train.txt", "images/autosplit_val.txt"),
        ("Objects365", 365, "Person", "Table Tennis", "Objects365", "images/train", "images/val"),
    ],
)  # fmt: skip
def test_data_sets(name, count, first, last, path, train, val):
    found = read(f"{name}.yaml")
    names = found["names"]
    assert (len(names), names[0], names[-1]) == (count, first, last)
    assert len(set(names)) == count and all(isinstance(entry, str) and entry == entry.strip() for entry in names)
    assert (found["path"], found["train"], found["val"]) == (f"../datasets/{path}", train, val)


def test_coco_names_are_in_the_order_of_published_weights():
    names = read("coco.yaml")["names"]
    assert names == read("coco128.yaml")["names"]
    for index, name in {9: "traffic light", 16: "dog", 39: "bottle", 56: "chair", 67: "cell phone"}.items():
        assert names[index] == name


@pytest.mark.parametrize("path", sorted(DATA.glob("*.yaml")), ids=lambda path: path.stem)
def test_downloads_are_addresses_never_code(path):
    content = read(path.name)
    urls = content.get("download") or []
    for url in [urls] if isinstance(urls, str) else urls:
        assert url.startswith("https://") and url.endswith(".zip") and len(url.split()) == 1
    assert set(content) <= {"path", "train", "val", "test", "names", "download"}


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_clean_leaves_the_users_data(tmp_path):
    for name in (".venv/bin", "datasets/shapes/images", "datasets/mine/images"):
        (tmp_path / name).mkdir(parents=True)
    plain = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKEOVERRIDES", "VENV")}
    subprocess.run(["make", "-f", DATA.parent / "Makefile", "clean"], cwd=tmp_path, check=True, env=plain)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "datasets",
        "datasets/mine",
        "datasets/mine/images",
    ]


def test_the_quickstart_hyperparameters_are_whole_and_valid():
    path = DATA / "quickstart" / "hyp.yaml"
    assert list(read("quickstart/hyp.yaml")) == list(read("hyps/hyp.scratch-low.yaml"))
    assert Hyperparameters.load(path).cls == 2.5
