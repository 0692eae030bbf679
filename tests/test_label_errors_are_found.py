"""Label errors are found: check.py with a model, from the command line to the files that labelling tools read."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from pycocotools.coco import COCO
from test_json_documents import check as check_document

import check
import train
from utils.boxes import xywh_to_xyxy
from utils.config import TrainOptions
from utils.datasets.image_files import label_path
from utils.detections import Detections
from utils.errors import Stopped, UserError
from utils.files import read_yaml
from utils.pixel_format import RGB
from utils.training.result import TrainResult

NAMES = {0: "dark", 1: "bright"}


class Oracle:
    """Model that finds the objects of the right labels, with confidence 0.9."""

    names, model = NAMES, SimpleNamespace(num_classes=2, pixels=RGB)

    def __init__(self, right: dict[str, np.ndarray]):
        self.right, self.seen = right, []

    def __call__(self, images, paths):
        results = []
        for image, path in zip(images, paths, strict=True):
            self.seen.append(path)
            (height, width), rows = image.shape[:2], self.right[Path(path).name]
            boxes = xywh_to_xyxy(rows[:, 1:]) * [width, height, width, height]
            found = np.column_stack((boxes, np.full(len(rows), 0.9), rows[:, 0])).astype(np.float32)
            results.append(Detections(found, (height, width), path, NAMES))
        return results


@pytest.fixture
def spoiled(tiny_data, tmp_path, monkeypatch):
    """Return a data set with an error of each kind (class, missing, shifted, spurious), their images and an oracle."""
    folder = tmp_path / "data"
    shutil.copytree(tiny_data.parent, folder)
    files = {path.name: path for path in (folder / "images").glob("train/*.png")}
    val = {f"v{path.name}": path for path in (folder / "images").glob("val/*.png")}
    for name, path in val.items():  # names are unique in all splits
        Path(label_path(path)).rename(Path(label_path(path)).with_name(f"v{path.stem}.txt"))
        files[name] = path.rename(path.with_name(name))
    right = {name: np.loadtxt(label_path(path), ndmin=2).reshape(-1, 5) for name, path in files.items() if
             Path(label_path(path)).stat().st_size}  # fmt: skip
    right.update({name: np.zeros((0, 5)) for name in files.keys() - right.keys()})
    whole = [name for name in sorted(files) if len(right[name]) == 1]
    wrong = {name: right[name].copy() for name in whole[:4]}
    wrong[whole[0]][0, 0] = 1 - wrong[whole[0]][0, 0]
    wrong[whole[1]] = wrong[whole[1]][1:]
    wrong[whole[2]][0, 1] += 0.4 * wrong[whole[2]][0, 3] * (1 if wrong[whole[2]][0, 1] < 0.5 else -1)
    wrong[whole[3]] = np.vstack((wrong[whole[3]], [0, 0.97, 0.95, 0.05, 0.08]))
    for name, rows in wrong.items():
        Path(label_path(files[name])).write_text(
            "".join(f"{int(row[0])} {' '.join(map(str, row[1:]))}\n" for row in rows)
        )
    oracle, planned = Oracle(right), check.planned_anchors
    monkeypatch.setattr(check, "open_predictor", lambda options, weights: oracle)
    monkeypatch.setattr(check, "planned_anchors", lambda weights, opened: planned([]))  # there is no file
    return SimpleNamespace(data=folder / "tiny.yaml", files=[files[name] for name in whole[:4]], oracle=oracle)


def run(spoiled, tmp_path, **flags):
    return check.run(data=spoiled.data, imgsz=96, project=tmp_path / "runs", **flags)


def test_each_error_is_found_at_its_place(spoiled, tmp_path):
    before = {path: path.read_bytes() for path in spoiled.data.parent.rglob("*") if path.is_file()}
    result = run(spoiled, tmp_path, weights="best.pt")
    document = json.loads((result.save_dir / "label_errors.json").read_text())
    first = {error["kind"]: error for error in document["errors"][:3]}
    assert first.keys() == {"class", "missing", "shifted"}
    for kind, file in zip(("class", "missing", "shifted"), spoiled.files):
        assert first[kind]["image"] == str(file) and first[kind]["score"] > 0.5
    assert (first["class"]["file"], first["class"]["line"]) == (label_path(spoiled.files[0]), 1)
    assert first["class"]["given"]["name"] != first["class"]["found"]["name"]
    assert first["missing"]["given"] is None and first["shifted"]["line"] == 1
    spurious = next(error for error in document["errors"] if error["kind"] == "spurious")
    assert spurious["image"] == str(spoiled.files[3]) and spurious["found"] is None
    worst = {Path(one["image"]) for one in document["images"][:4]}
    assert worst == set(spoiled.files)
    after = {path: path.read_bytes() for path in before}
    assert after == before


def test_the_document_of_label_errors_is_the_one_described(spoiled, tmp_path):
    result = run(spoiled, tmp_path, weights="best.pt")
    check_document([json.loads((result.save_dir / "label_errors.json").read_text())], "label_errors.json")


def test_the_findings_count_what_is_likely(spoiled, tmp_path):
    result = run(spoiled, tmp_path, weights="best.pt")
    own = {finding.check: finding for finding in result.findings if finding.group == "label errors"}
    assert {name: finding.count for name, finding in own.items() if name != "label-spurious"} == {
        "label-missing": 1,
        "label-class": 1,
        "label-shifted": 1,
    }
    assert own["label-shifted"].examples[0].place == f"{label_path(spoiled.files[2])}:1"
    assert len(own["label-shifted"].examples[0].boxes) == 2  # where it is, and where it should be
    assert not result.errors  # a guess is no error


def test_a_model_that_confirms_few_labels_is_no_judge(spoiled, tmp_path, capsys):
    run(spoiled, tmp_path, weights="best.pt")
    assert "knows too little" not in capsys.readouterr().err
    spoiled.oracle.right = {name: rows[:0] for name, rows in spoiled.oracle.right.items()}
    run(spoiled, tmp_path, weights="best.pt")
    assert "best.pt confirms 0% of the labels at --imgsz 96, and knows too little" in capsys.readouterr().err


def test_the_lists_hold_labels_and_errors(spoiled, tmp_path):
    folder = run(spoiled, tmp_path, weights="best.pt").save_dir / "label_errors"
    coco = COCO(folder / "instances_default.json")
    names = {entry["id"]: entry["name"] for entry in coco.loadCats(coco.getCatIds())}
    found = [names[one["category_id"]] for one in coco.loadAnns(coco.getAnnIds())]
    kinds = {name.split(":")[0] for name in found if ":" in name}
    assert {"missing", "class", "shifted"} <= kinds and {"dark", "bright"} <= set(found)
    images = ElementTree.parse(folder / "annotations.xml").getroot().findall("image")
    assert images[0].get("name").endswith(".png") and len(images) >= 3
    tasks = json.loads((folder / "label-studio.json").read_text())
    assert len(tasks) == len(images) and tasks[0]["predictions"][0]["model_version"] == "check.py"
    assert len(list(folder.glob("001 *.jpg"))) == 1


def test_folds_judge_images_that_they_have_not_seen(spoiled, tmp_path, monkeypatch):
    trained = []

    def fake_training(**flags):
        trained.append(flags)
        content = read_yaml(flags["data"])
        assert (Path(content["path"]) / content["train"]).read_text().count("\n") == 16
        folder = Path(flags["project"]) / flags["name"]
        (folder / "weights").mkdir(parents=True)
        (folder / "weights" / "last.pt").touch()
        return TrainResult(TrainOptions(), SimpleNamespace(map50=0.5), folder)

    monkeypatch.setattr(train, "run", fake_training)
    result = run(spoiled, tmp_path, cross=2, cross_epochs=7, name="folds", exist_ok=True)
    assert [flags["epochs"] for flags in trained] == [7, 7] and sorted(spoiled.oracle.seen) == sorted(
        map(str, spoiled.data.parent.rglob("*.png"))
    )
    assert {f.check for f in result.findings} >= {"label-missing", "label-class", "label-shifted"}
    again = run(spoiled, tmp_path, cross=2, cross_epochs=7, name="folds", exist_ok=True)
    assert len(trained) == 2 and again.findings == result.findings


def test_a_stopped_fold_says_how_to_continue(spoiled, tmp_path, monkeypatch, capsys):
    def stop(**flags):
        raise Stopped("stopped by a signal")

    monkeypatch.setattr(train, "run", stop)
    words = f"--data {spoiled.data} --imgsz 96 --cross 2 --project {tmp_path} --name folds".split()
    with pytest.raises(SystemExit) as end:
        check.main(words)
    assert end.value.code == 75
    assert "with --name folds --exist-ok to continue" in capsys.readouterr().err


def test_judges_that_know_little_are_reported(spoiled, tmp_path, monkeypatch, capsys):
    def fake_training(**flags):
        folder = Path(flags["project"]) / flags["name"]
        (folder / "weights").mkdir(parents=True)
        (folder / "weights" / "last.pt").touch()
        return TrainResult(TrainOptions(), SimpleNamespace(map50=0.1), folder)

    monkeypatch.setattr(train, "run", fake_training)
    run(spoiled, tmp_path, cross=2)
    assert "fold2 knows too little to judge labels. Type a higher --cross-epochs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"cross": 1}, "--cross 1: at least 2 folds"),
        ({"cross": 2, "cross_epochs": 0}, "--cross-epochs 0: at least 1"),
        ({"rank": "images"}, "--rank images needs a model: type --weights"),
        ({"rank": "images", "weights": "a.pt", "cross": 2}, "without --cross"),
        ({"source": "images"}, "add --rank images"),
        ({"cross": 50}, "only 32 images. Type a lower number"),
    ],
)
def test_flags_that_do_not_fit(spoiled, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        run(spoiled, tmp_path, **flags)


def test_a_model_of_other_classes_is_refused(spoiled, tmp_path):
    spoiled.oracle.names = {0: "cat", 1: "dog"}
    with pytest.raises(UserError, match="class 0 is 'cat' and 'dark'.*--cross 5"):
        run(spoiled, tmp_path, weights="best.pt")
