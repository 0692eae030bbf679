"""Results of the hub's model: every name that programs use, on detections that are known."""

import json
import types

import cv2
import numpy as np
import pytest
import torch

from utils.detections import Detections
from utils.errors import UserError
from utils.inference import results as results_file
from utils.inference.results import Results
from utils.metrics import Speed

NAMES = {0: "person", 1: "tie", 2: "a/b"}
ROWS = np.array([[10, 20, 30, 60, 0.9, 0], [5, 5, 15, 25, 0.8, 0], [0, 0, 8, 8, 0.5, 2]], np.float32)


@pytest.fixture
def results():
    """Return the results of an image of 80 x 100 with three objects and one of 50 x 60 without any."""
    images = [np.full((80, 100, 3), (200, 100, 50), np.uint8), np.zeros((50, 60, 3), np.uint8)]
    rows = [ROWS, ROWS[:0]]
    found = [
        Detections(one, image.shape[:2], path, NAMES, (96, 128), Speed(1, 20, 3))
        for one, image, path in zip(rows, images, ["in/zidane.png", "image1"])
    ]
    return Results(images, found, (2, 3, 96, 128))


def test_lists_by_image(results):
    assert len(results) == results.n == 2 and results.s == (2, 3, 96, 128) and results.names == NAMES
    assert results.files == ["zidane.jpg", "image1.jpg"] and results.t == results.times == (1, 20, 3)
    assert [tuple(rows.shape) for rows in results.xyxy] == [(3, 6), (0, 6)] and results.pred is results.xyxy
    assert results.xywh[0][0].tolist() == pytest.approx([20, 40, 20, 40, 0.9, 0])
    assert results.xyxyn[0][0].tolist() == pytest.approx([0.1, 0.25, 0.3, 0.75, 0.9, 0])
    assert results.xywhn[0][0].tolist() == pytest.approx([0.2, 0.5, 0.2, 0.5, 0.9, 0])
    assert all(isinstance(rows, torch.Tensor) for rows in [*results.pred, *results.xywhn])


def test_text(results, capsys):
    text = (
        "image 1/2: 80x100 2 persons, 1 a/b\nimage 2/2: 50x60 (no detections)\n"
        "Speed: 1.0ms pre-process, 20.0ms inference, 3.0ms NMS per image at shape (2, 3, 96, 128)"
    )
    assert str(results) == repr(results) == text
    results.print()
    assert capsys.readouterr().out == text + "\n"


def test_parts(results):
    first, second = results
    assert (first.n, second.n, len(results[1].xyxy[0]), results[-1].files) == (1, 1, 0, ["image1.jpg"])
    assert results[0].files == ["zidane.jpg"] and torch.equal(results[0].xywhn[0], results.xywhn[0])
    assert results[:1].n == 1 and results[5:].n == 0 and results[5:].names == NAMES
    assert [one.files for one in results.tolist()] == [["zidane.jpg"], ["image1.jpg"]]
    assert str(results[1]).startswith("image 1/1: 50x60 (no detections)\nSpeed:")
    with pytest.raises(IndexError):
        results[2]


def test_no_images():
    none = Results([], [], (0, 3, 0, 0))
    assert (len(none), none.tolist(), none.crop(save=False), none.to_json(), none.render()) == (0, [], [], "[]", [])
    assert str(none).startswith("Speed: 0.0ms")


def test_rendering_draws_into_the_images(results):
    before = [image.copy() for image in results.ims]
    drawn = results.render(labels=False)
    assert drawn is results.ims is results.imgs
    assert np.array_equal(drawn[1], before[1]) and not np.array_equal(drawn[0], before[0])
    assert drawn[0][60, 20].tolist() == [4, 42, 255]  # the lower edge, in the RGB of class 0
    assert drawn[0][79, 99].tolist() == [200, 100, 50]
    assert not np.array_equal(results[0].render()[0], drawn[0])  # with labels


def test_images_are_saved_in_numbered_folders(results, tmp_path, capsys):
    folder = results.save(save_dir=tmp_path / "exp")
    assert folder == tmp_path / "exp" and results.save(save_dir=tmp_path / "exp") == tmp_path / "exp2"
    assert results.save(save_dir=tmp_path / "exp", exist_ok=True) == folder
    assert sorted(file.name for file in folder.iterdir()) == ["image1.jpg", "zidane.jpg"]
    corner = cv2.imread(str(folder / "zidane.jpg"))[79, 99].astype(int)
    assert np.abs(corner - [50, 100, 200]).max() < 6  # BGR
    assert f"Saved 2 images to {folder}" in capsys.readouterr().out
    results.files = ["same.jpg", "SAME.jpg"]
    results.save(save_dir=tmp_path / "names")
    assert sorted(file.name for file in (tmp_path / "names").iterdir()) == ["SAME2.jpg", "same.jpg"]


def test_crops(results, tmp_path):
    crops = results.crop(save_dir=tmp_path / "exp")
    assert [list(crop) for crop in crops] == [["box", "conf", "cls", "label", "im"]] * 3
    assert [crop["label"] for crop in crops] == ["a/b 0.50", "person 0.80", "person 0.90"]
    assert [float(value) for value in crops[2]["box"]] == [10, 20, 30, 60] and int(crops[0]["cls"]) == 2
    assert crops[2]["im"].shape == (51, 31, 3) and crops[2]["im"][0, 0].tolist() == [50, 100, 200]  # BGR
    names = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.jpg"))
    assert names == [
        "exp/crops/a_b/zidane.jpg", "exp/crops/person/zidane.jpg", "exp/crops/person/zidane2.jpg"
    ]  # fmt: skip
    assert results.crop(save=False)[1]["conf"] == pytest.approx(0.8)
    assert not (tmp_path / "exp2").exists()


def test_tables_of_pandas(results):
    tables = results.pandas()
    first = tables.xyxy[0]
    corners, centres = ["xmin", "ymin", "xmax", "ymax"], ["xcenter", "ycenter", "width", "height"]
    assert list(first.columns) == list(tables.xyxyn[0].columns) == [*corners, "confidence", "class", "name"]
    assert list(tables.xywh[0].columns) == list(tables.xywhn[0].columns) == [*centres, "confidence", "class", "name"]
    assert first["class"].tolist() == [0, 0, 2] and first["class"].dtype == int
    assert first["name"].tolist() == ["person", "person", "a/b"] and first["xmax"].tolist() == [30, 15, 8]
    assert len(tables.xyxy[1]) == 0 and tables.xyxy[1].dtypes.to_dict() == first.dtypes.to_dict()
    assert isinstance(results.xyxy[0], torch.Tensor) and tables.n == 2 and tables.files == results.files
    records = json.loads(first.to_json(orient="records"))
    assert records[2]["name"] == "a/b" and records[2]["class"] == 2


def test_a_class_without_a_name_has_its_number(results, tmp_path):
    results.names = {0: "person"}
    assert "2 persons, 1 2\n" in str(results) and results.pandas().xyxy[0]["name"].tolist() == ["person", "person", "2"]
    crops = results.crop(save_dir=tmp_path / "exp")
    assert (tmp_path / "exp/crops/2/zidane.jpg").is_file()
    assert [crop["label"] for crop in crops] == ["2 0.50", "person 0.80", "person 0.90"]


def test_without_pandas_one_line_says_what_to_type(results, monkeypatch):
    monkeypatch.setitem(results_file.sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"results.pandas\(\) needs the package pandas: type pip install pandas"):
        results.pandas()


def test_json(results):
    first, second = json.loads(results.to_json())
    assert first["file"] == "in/zidane.png" and (first["height"], first["width"]) == (80, 100)
    assert first["detections"][1] == {
        "xmin": 5, "ymin": 5, "xmax": 15, "ymax": 25, "confidence": pytest.approx(0.8), "class": 0, "name": "person"
    }  # fmt: skip
    assert second["detections"] == []


def test_detections_follow_what_a_program_changes(results):
    results.pred[0] = results.pred[0][:1]
    assert len(results.detections[0]) == 1 and "1 person\n" in str(results)
    assert results.detections[0].shape == (80, 100) and results.detections[0].speed == Speed(1, 20, 3)


def test_showing(results, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(results_file, "can_show_windows", lambda: False)
    results.show()
    assert "WARNING: no window can be opened here" in capsys.readouterr().err
    monkeypatch.setattr(results_file, "can_show_windows", lambda: True)
    monkeypatch.setattr(results_file.ImageShow, "show", lambda image, title: shown.append((image.size, title)) or True)
    results.show()
    assert shown == [((100, 80), "zidane.jpg"), ((60, 50), "image1.jpg")]


def test_showing_in_a_notebook(results, monkeypatch):
    shown, shell = [], types.SimpleNamespace(kernel=object())
    display = types.SimpleNamespace(display=lambda image: shown.append(image.size))
    monkeypatch.setitem(results_file.sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(results_file.sys.modules, "IPython.display", display)
    results.show()
    assert shown == [(100, 80), (60, 50)]
    del shell.kernel  # IPython in a terminal
    assert not results_file.show_in_notebook(None)
