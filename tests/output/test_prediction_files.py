"""Label files and COCO results of known detections, to the last digit."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from utils.detections import Detections
from utils.errors import UserError
from utils.output.prediction_files import CocoWriter, TextWriter
from utils.output.result_names import unique_names

NAMES = {0: "dark", 1: "bright"}
SCORES = SimpleNamespace(map50=0.995, map=0.995)  # what finish() shows of the metrics


def detections(path, rows, shape):
    return Detections(rows.numpy(), shape, path)


def test_text_files(tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "2.txt").write_text("left by an earlier run\n")
    writer = TextWriter(folder, ["/data/0.jpg", "/data/2.jpg"], confidence=True)
    writer.write(
        detections("/data/0.jpg", torch.tensor([[20.0, 8, 80, 68, 0.9, 0], [0, 0, 200, 100, 0.25, 1]]), (100, 200))
    )
    writer.write(detections("/data/2.jpg", torch.zeros(0, 6), (100, 200)))
    assert sorted(file.name for file in folder.iterdir()) == ["0.txt"] and writer.num_files == 1
    rows = [[float(word) for word in line.split()] for line in (folder / "0.txt").read_text().splitlines()]
    assert rows == [pytest.approx([0, 0.25, 0.38, 0.3, 0.6, 0.9]), pytest.approx([1, 0.5, 0.5, 1, 1, 0.25])]
    TextWriter(folder, ["/data/0.jpg"], confidence=False)
    assert not list(folder.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_leaves_no_half_of_a_label_file(tmp_path, monkeypatch):
    writer = TextWriter(tmp_path, ["/data/0.jpg"], confidence=False)
    monkeypatch.setattr("utils.files.open", lambda *_: open("/dev/full", "wb"), raising=False)  # noqa: SIM115 (atomic_write closes it)
    with pytest.raises(OSError, match="No space left"):
        writer.write(detections("/data/0.jpg", torch.tensor([[20.0, 8, 80, 68, 0.9, 0]]), (100, 200)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "paths, names",
    [
        ([], []),
        (["/a/1.jpg", "/a/2.jpg"], ["1", "2"]),
        (["/a/1.jpg", "/b/1.jpg", "/b/1.png"], ["a_1_jpg", "b_1_jpg", "b_1_png"]),  # one folder, one stem, two suffixes
        (["/x/a/1.jpg", "/y/a/1.jpg", "/a_1_jpg.jpg"], ["x_a_1_jpg", "y_a_1_jpg", "a_1_jpg"]),  # as it takes
        (["/a/1.jpg", "b/1.jpg", "/a_1_jpg.jpg"], ["a_1_jpg_", "b_1_jpg", "a_1_jpg"]),  # taken
        (["/a_b/c/1.jpg", "/a/b_c/1.jpg", "1.jpg"], ["c_1_jpg", "b_c_1_jpg", "1_jpg"]),
        (["/a/1.jpg", "/a/2.jpg", "/b/1.jpg"], ["a_1_jpg", "2", "b_1_jpg"]),  # in their order
        ([f"/{top}/{'x' * 60}/{'y' * 60}/1.jpg" for top in "ab"], [f"{'y' * 60}_1_jpg", f"{'y' * 60}_1_jpg_"]),  # long
        (["/a_b/1.jpg", "/a/b/1.jpg", "/b/1.jpg"], ["a_b_1_jpg", "b_1_jpg", "b_1_jpg_"]),  # joined, they are the same
        (["exp/weights/best.pt", "exp2/weights/best.pt"], ["exp_weights_best_pt", "exp2_weights_best_pt"]),
    ],
)
def test_names_of_images_are_unlike(paths, names):
    assert list(unique_names(paths).values()) == names and len(set(names)) == len(paths)


@pytest.fixture
def truth(tmp_path):
    """Write COCO annotations of two images, with ids and order unlike those of the data set YAML."""
    file = tmp_path / "instances_val.json"
    box = {"iscrowd": 0, "area": 3600.0, "segmentation": []}
    content = {
        "images": [{"id": 42, "file_name": "a.jpg", "width": 200, "height": 100}, {"id": 7, "file_name": "b.png"}],
        "categories": [{"id": 3, "name": "bright"}, {"id": 90, "name": "dark"}],
        "annotations": [{"id": 1, "image_id": 42, "category_id": 90, "bbox": [20, 8, 60, 60], **box}],
    }
    file.write_text(json.dumps(content))
    return file


def test_json_with_ids_of_the_annotations(truth, tmp_path, capsys):
    writer = CocoWriter(truth, NAMES, single_cls=False)
    writer.write(detections("/x/a.jpg", torch.tensor([[20.0, 8, 80, 68, 0.912345678, 0]]), (100, 200)))
    writer.write(detections("/x/b.jpg", torch.zeros(0, 6), (100, 200)))  # known by its stem
    assert writer.seen == [42, 7]
    writer.finish(tmp_path / "out.json", SCORES)
    rows = json.loads((tmp_path / "out.json").read_text())
    assert rows == [{"image_id": 42, "category_id": 90, "bbox": [20, 8, 60, 60], "score": 0.91235}]
    _, *table, last = capsys.readouterr().out.splitlines()
    assert len(table) == 12
    assert table[0] == " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 1.000"
    assert table[6] == " Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ] = 1.000"
    assert last == "mAP50 0.9950, mAP50-95 0.9950 by our rule; 1.0000, 1.0000 by COCO's"


def test_json_without_detections(truth, tmp_path, capsys):
    writer = CocoWriter(truth, NAMES, single_cls=True)
    writer.write(detections("/x/a.jpg", torch.zeros(0, 6), (100, 200)))
    writer.finish(tmp_path / "out.json", SCORES)
    assert json.loads((tmp_path / "out.json").read_text()) == []
    assert "0.0000, 0.0000 by COCO's" in capsys.readouterr().out


def test_json_where_pycocotools_is_absent(truth, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    writer = CocoWriter(truth, NAMES, single_cls=False)
    writer.write(detections("/x/a.jpg", torch.tensor([[20.0, 8, 80, 68, 0.9, 1]]), (100, 200)))  # of the other class
    writer.finish(tmp_path / "out.json", SCORES)
    assert "maxDets=100 ] = 0.000" in capsys.readouterr().out
    writer = CocoWriter(truth, NAMES, single_cls=True)
    writer.write(detections("/x/a.jpg", torch.tensor([[20.0, 8, 80, 68, 0.9, 0]]), (100, 200)))
    writer.finish(tmp_path / "out.json", SCORES)
    assert "1.0000, 1.0000 by COCO's" in capsys.readouterr().out


def test_only_images_that_were_seen_count(truth, tmp_path, capsys):
    writer = CocoWriter(truth, NAMES, single_cls=False)
    writer.write(detections("/x/b.png", torch.zeros(0, 6), (100, 200)))
    writer.finish(tmp_path / "out.json", SCORES)
    assert "-1.0000, -1.0000 by COCO's" in capsys.readouterr().out


def test_json_without_annotations(tmp_path, capsys):
    writer = CocoWriter(None, NAMES, single_cls=False)
    for name in ("/x/000042.jpg", "/x/cat.jpg", "/x/\u00b2.jpg"):  # the last is a digit, but no number
        writer.write(detections(name, torch.tensor([[1.0, 2, 3, 5, 0.5, 1]]), (100, 200)))
    writer.finish(tmp_path / "out.json", SCORES)
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(42, 1), ("cat", 1), ("\u00b2", 1)]
    assert "--annotations FILE" in capsys.readouterr().out


def test_ids_of_cocos_own_split_without_annotations(tmp_path):
    """COCO's server expects these ids for images whose labels are not published."""
    writer = CocoWriter(None, dict.fromkeys(range(80), "any"), single_cls=False, coco=True)
    numbers = [0, 10, 11, 23, 45, 50, 75, 79]
    writer.write(
        detections("/x/000042.jpg", torch.tensor([[1.0, 2, 3, 5, 0.5, number] for number in numbers]), (100, 200))
    )
    assert [row["category_id"] for row in writer.rows] == [1, 11, 13, 25, 51, 56, 86, 90]


def test_annotations_that_do_not_fit(truth, tmp_path):
    with pytest.raises(UserError, match="no category 'brigth'; did you mean bright?"):
        CocoWriter(truth, {0: "dark", 1: "brigth"}, single_cls=False)
    with pytest.raises(UserError, match="no image other.jpg"):
        CocoWriter(truth, NAMES, single_cls=False).write(detections("/x/other.jpg", torch.zeros(0, 6), (1, 1)))
    for text in ("no JSON", "[]", "{}", '{"images": [], "categories": []}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match="bad.json: .*COCO annotations file"):
            CocoWriter(tmp_path / "bad.json", NAMES, single_cls=False)
    for change in (
        {"images": [{"id": 1}]},
        {"images": [{"id": 1, "file_name": 5}]},
        {"images": [7]},
        {"images": {"id": 1}},
        {"categories": [{"id": 1}]},
        {"categories": [{"id": 1, "name": ["a"]}]},
        {"categories": []},
    ):
        (tmp_path / "bad.json").write_text(json.dumps(json.loads(truth.read_text()) | change))
        with pytest.raises(UserError, match="bad.json: not a COCO annotations file: .*(images|categories)"):
            CocoWriter(tmp_path / "bad.json", NAMES, single_cls=False)
    (tmp_path / "bad.json").write_text('{"images":' + "[" * 100000 + "]" * 100000 + "}")
    with pytest.raises(UserError, match="bad.json: not a COCO annotations file .RecursionError"):
        CocoWriter(tmp_path / "bad.json", NAMES, single_cls=False)
    content = json.loads(truth.read_text())
    del content["annotations"][0]["bbox"]
    truth.write_text(json.dumps(content))
    with pytest.raises(UserError, match="instances_val.json cannot be scored: KeyError: 'bbox'"):
        CocoWriter(truth, NAMES, single_cls=False)


def test_images_never_share_an_id(tmp_path, capsys):
    paths = ["/d/a/0001.jpg", "/d/a/1.jpg", "/d/b/0001.jpg", "/d/b/z.jpg", "/d/b/7.jpg"]
    writer = CocoWriter(None, NAMES, paths, single_cls=False)
    for path in paths:
        writer.write(detections(path, torch.zeros(0, 6), (100, 200)))
    assert writer.seen == ["a/0001.jpg", "a/1.jpg", "b/0001.jpg", "z", 7]
    assert "3 images share an image_id (a/0001.jpg, a/1.jpg, ...)" in capsys.readouterr().err


def test_annotated_images_of_one_name_keep_their_detections(truth):
    content = json.loads(truth.read_text())
    files = {1: "a/0.jpg", 2: "b/0.jpg", 3: "c.jpg"}
    content["images"] = [{"id": number, "file_name": name} for number, name in files.items()]
    truth.write_text(json.dumps(content))
    writer = CocoWriter(truth, NAMES, single_cls=False)
    for path in ("/x/b/0.jpg", "/x/a/0.jpg", "/x/a/c.jpg"):
        writer.write(detections(path, torch.zeros(0, 6), (100, 200)))
    assert writer.seen == [2, 1, 3]
    with pytest.raises(UserError, match="2 images are called 0.jpg, none with the folders of /x/c/0.jpg"):
        writer.write(detections("/x/c/0.jpg", torch.zeros(0, 6), (100, 200)))
    with pytest.raises(UserError, match="one entry for /x/a/c.jpg and /x/b/c.jpg"):
        writer.write(detections("/x/b/c.jpg", torch.zeros(0, 6), (100, 200)))


def test_renamed_label_files_are_listed(tmp_path):
    TextWriter(tmp_path, ["/d/a/0.jpg", "/d/b/0.jpg", "/d/b/1.jpg"], confidence=False)
    assert (tmp_path / "renamed.csv").read_text() == "Result,Source\na_0_jpg,/d/a/0.jpg\nb_0_jpg,/d/b/0.jpg\n"
