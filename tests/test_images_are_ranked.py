"""check.py --rank images: from the command line to the list of images to label next."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_json_documents import check as check_document

import check
from models.yolo import DetectionModel
from utils.datasets.image_files import find_images, label_path
from utils.errors import UserError
from utils.inference.predictor import Predictor


@pytest.fixture
def ranked(tiny_data, tiny_cfg, tmp_path, monkeypatch):
    """Return a function that ranks by an untrained model, and a data set of which five images have no labels."""
    folder = tmp_path / "data"
    shutil.copytree(tiny_data.parent, folder)
    unlabelled = find_images(folder / "images" / "train")[:5]
    for path in unlabelled:
        Path(label_path(path)).unlink()
    predictor = Predictor(DetectionModel(tiny_cfg, num_classes=2).eval(), (96, 96), check.JUDGE_NMS)
    monkeypatch.setattr(check, "open_predictor", lambda options, weights: predictor)

    def run(**flags):
        result = check.run(rank="images", weights="best.pt", imgsz=96, project=tmp_path / "runs", **flags)
        return result.save_dir, json.loads((result.save_dir / "to_label.json").read_text())["images"]

    return SimpleNamespace(run=run, data=folder / "tiny.yaml", unlabelled=unlabelled, predictor=predictor)


def test_the_images_of_a_data_set_without_labels_are_ranked(ranked, capsys):
    folder, images = ranked.run(data=ranked.data, json=True)
    listed = (folder / "to_label.txt").read_text().splitlines()
    assert listed == [one["image"] for one in images] and sorted(listed) == ranked.unlabelled
    assert all(0 <= one["uncertainty"] <= 1 and 0 <= one["distance"] < 2 for one in images)
    document = json.loads(capsys.readouterr().out)
    check_document([document], "to_label.json")
    assert document == {"program": "check", "save_dir": str(folder), "images": images}


def test_a_folder_is_ranked_and_what_cannot_be_read_is_skipped(ranked, tmp_path, capsys):
    source = tmp_path / "new"
    source.mkdir()
    for number, path in enumerate(ranked.unlabelled):
        shutil.copy(path, source / f"{number}.png")
    shutil.copy(ranked.unlabelled[0], source / "copy.png")
    (source / "broken.png").write_bytes(b"no image")
    _, images = ranked.run(source=source)
    assert {Path(one["image"]).name for one in images} == {"0.png", "1.png", "2.png", "3.png", "4.png", "copy.png"}
    assert Path(images[-1]["image"]).name in ("0.png", "copy.png") and images[-1]["distance"] < 1e-3
    assert "broken.png" in capsys.readouterr().err


def test_labelled_images_are_what_the_others_differ_from(ranked):
    alone = ranked.run(source=Path(ranked.unlabelled[0]).parent)[1]
    beside = ranked.run(data=ranked.data)[1]
    assert alone[0]["distance"] == 2 and max(one["distance"] for one in beside) < 2


def test_no_image_to_rank(ranked, tiny_data):
    with pytest.raises(UserError, match="no images to rank in .*all images have labels. Type --source FOLDER"):
        ranked.run(data=tiny_data)


def test_a_model_without_features_is_refused(ranked):
    ranked.predictor.model = SimpleNamespace(names={0: "a"})
    with pytest.raises(UserError, match="Type one .pt file as --weights"):
        ranked.run(data=ranked.data)


def test_only_images_that_cannot_be_read(ranked, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "broken.png").write_bytes(np.zeros(9, np.uint8).tobytes())
    with pytest.raises(UserError, match="none of the 1 images can be read"):
        ranked.run(source=tmp_path / "new")
