"""Files for labelling tools: each is read back, also with names that are hard to write, and none is ever half."""

import json
import os
import tracemalloc
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from utils.detections import Detections
from utils.output.annotation_files import FORMATS, ImageNames, fit_names, fit_text, open_annotations

NAMES = {0: 'a "cat" & <dog>', 1: "🚌 حافلة", 2: "two\nlines"}
ROWS = [[10.126, 20, 60, 50, 0.876, 1], [0, 0, 200, 100, 0.5, 0], [30, 30, 30, 40, 0.4, 2]]  # the last has no area
ODD = ["/data/in/a/1.jpg", '/data/in/b/it\'s <1> & "2".jpg', "/data/in/b/😀.png"]


def found(rows=ROWS, shape=(100, 200)):
    return Detections(np.array(rows, np.float32).reshape(-1, 6), shape)


def write(kind, folder, paths=ODD, rows=ROWS, names=NAMES, **settings):
    """Write one detection result per path. Return the file."""
    writer = open_annotations(kind, folder, names, paths, model="best.pt", **settings)
    for path in paths:
        writer.write(path, Path(path).stem, found(rows))
    writer.close()
    return writer.file


def files_below(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_cvat(tmp_path):
    root = ET.parse(write("cvat", tmp_path)).getroot()
    assert root.findtext("version") == "1.1"
    assert [label.text for label in root.findall("meta/task/labels/label/name")] == [*fit_names(NAMES).values()]
    images = root.findall("image")
    assert [image.attrib for image in images] == [
        {"id": str(number), "name": name, "width": "200", "height": "100"}
        for number, name in enumerate(["a/1.jpg", 'b/it\'s <1> & "2".jpg', "b/😀.png"])
    ]
    for image in images:
        bus, cat = image
        place = {"xtl": "10.13", "ytl": "20.00", "xbr": "60.00", "ybr": "50.00"}
        assert bus.attrib == {"label": NAMES[1], "source": "auto", "occluded": "0", **place, "z_order": "0"}
        assert cat.get("label") == NAMES[0] and not list(bus)


def test_cvat_has_the_confidence_where_it_is_wanted(tmp_path):
    root = ET.parse(write("cvat", tmp_path, confidence=True)).getroot()
    assert [box.findtext("attribute[@name='confidence']") for box in root.findall("image/box")] == [
        "0.8760",
        "0.5000",
    ] * 3
    assert root.findtext("meta/task/labels/label/attributes/attribute/name") == "confidence"


def test_label_studio(tmp_path):
    tasks = json.loads(write("labelstudio", tmp_path).read_text())
    addresses = [urlsplit(task["data"]["image"]) for task in tasks]
    assert {address.path for address in addresses} == {"/data/local-files/"}
    assert [parse_qs(address.query)["d"] for address in addresses] == [[path.removeprefix("/data/")] for path in ODD]
    config = ET.parse(tmp_path / "label-studio.xml").getroot()
    labels, image = config.find("RectangleLabels"), config.find("Image")
    assert labels is not None and image is not None and image.get("value") == "$image"
    assert [label.get("value") for label in labels] == [*fit_names(NAMES).values()]
    for task in tasks:
        (prediction,) = task["predictions"]
        bus, cat = prediction["result"]
        assert prediction["model_version"] == "best.pt" and prediction["score"] == pytest.approx(0.688)
        assert (bus["from_name"], bus["to_name"]) == (labels.get("name"), image.get("name"))
        assert (bus["original_width"], bus["original_height"], bus["score"]) == (200, 100, 0.876)
        sides = {"x": 5.063, "y": 20, "width": 24.937, "height": 30, "rotation": 0}
        assert bus["value"] == {**sides, "rectanglelabels": [NAMES[1]]}
        assert cat["value"]["width"] == cat["value"]["height"] == 100 and cat["id"] != bus["id"]


def test_coco(tmp_path):
    content = json.loads(write("coco", tmp_path).read_text())
    assert [(entry["id"], entry["name"]) for entry in content["categories"]] == [
        (index + 1, name) for index, name in fit_names(NAMES).items()
    ]
    assert [(image["id"], image["width"], image["height"]) for image in content["images"]] == [
        (i, 200, 100) for i in (1, 2, 3)
    ]
    assert [image["file_name"] for image in content["images"]] == ["a/1.jpg", 'b/it\'s <1> & "2".jpg', "b/😀.png"]
    boxes = content["annotations"]
    assert [(box["id"], box["image_id"], box["category_id"]) for box in boxes] == [
        (1, 1, 2), (2, 1, 1), (3, 2, 2), (4, 2, 1), (5, 3, 2), (6, 3, 1)
    ]  # fmt: skip
    assert boxes[0]["bbox"] == [10.13, 20, 49.87, 30] and boxes[0]["area"] == pytest.approx(1496.1)
    assert boxes[0]["score"] == 0.876 and boxes[0]["iscrowd"] == 0 and boxes[0]["segmentation"] == []


def test_yolo(tmp_path):
    folder = write("yolo", tmp_path)
    assert (folder / "classes.txt").read_text() == 'a "cat" & <dog>\n🚌 حافلة\ntwo lines\n'
    lines = "1 0.175315 0.350000 0.249370 0.300000\n0 0.500000 0.500000 1.000000 1.000000\n"
    assert [(folder / f"{Path(path).stem}.txt").read_text() for path in ODD] == [lines] * 3
    write("yolo", tmp_path, paths=ODD[:1], rows=[])  # a later run finds nothing there
    assert files_below(folder) == sorted(["classes.txt", *(f"{Path(path).stem}.txt" for path in ODD[1:])])


@pytest.mark.parametrize("kind", FORMATS)
def test_images_without_detections(tmp_path, kind):
    file = write(kind, tmp_path, rows=[])
    if kind == "cvat":
        assert [list(image) for image in ET.parse(file).getroot().findall("image")] == [[]] * 3
    elif kind == "yolo":
        assert files_below(file) == ["classes.txt"]
    else:
        content = json.loads(file.read_text())
        if kind == "coco":
            assert len(content["images"]) == 3 and content["annotations"] == []
        else:
            assert [task["predictions"] for task in content] == [[{"model_version": "best.pt", "result": []}]] * 3


@pytest.mark.parametrize("kind", FORMATS)
def test_without_an_image_there_is_no_file(tmp_path, kind):
    write(kind, tmp_path, paths=[])
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "yolo"])
def test_a_file_appears_whole_and_replaces_the_earlier_one_at_the_end(tmp_path, kind):
    file = write(kind, tmp_path)
    before = file.read_bytes()
    writer = open_annotations(kind, tmp_path, NAMES, ODD, model="best.pt")
    writer.write(ODD[0], "1", found())
    assert file.read_bytes() == before
    writer.close()
    assert file.read_bytes() != before and not list(tmp_path.glob(".*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "yolo"])
def test_a_full_disk_keeps_the_earlier_file_and_is_named(tmp_path, kind, monkeypatch):
    file = write(kind, tmp_path)
    before = file.read_bytes()
    writer = open_annotations(kind, tmp_path, NAMES, ODD, model="best.pt")
    with monkeypatch.context() as patch:
        patch.setattr("utils.files.open", lambda *_: open("/dev/full", "wb", buffering=0), raising=False)  # noqa: SIM115
        with pytest.raises(OSError, match="No space left") as error:
            writer.write(ODD[0], "1", found())
    assert error.value.filename in (str(file), str(file.with_suffix(".xml")))
    writer.write(ODD[1], "2", found()) if kind != "labelstudio" else None
    writer.close()
    assert file.read_bytes() == before and not list(tmp_path.glob(".*"))


def test_letters_that_no_format_holds(tmp_path, capsys):
    """Bytes of a name that are not UTF-8 are written as escapes, with a warning. Addresses keep the bytes."""
    path = os.fsdecode(b"/data/in/\xff\x01.jpg")
    names = {0: "\x00bell\x07", 1: " ", 2: "\ud800"}
    rows = [[0, 0, 10, 10, 0.5, index] for index in names]
    assert fit_names(names) == {0: "\\x00bell\\x07", 1: "1", 2: "\\ud800"} and fit_text("é\t😀") == "é\t😀"
    root = ET.parse(write("cvat", tmp_path, [path], rows, names)).getroot()
    assert [box.get("label") for box in root.findall("image/box")] == [*fit_names(names).values()]
    content = json.loads(write("coco", tmp_path, [path], rows, names).read_text())
    assert root.findall("image")[0].get("name") == content["images"][0]["file_name"] == "\\udcff\\x01.jpg"
    assert capsys.readouterr().err.count("rename the image") == 1
    tasks = json.loads(write("labelstudio", tmp_path, [path], rows, names).read_text())
    assert tasks[0]["data"]["image"].endswith("?d=in/%FF%01.jpg")


@pytest.mark.parametrize(
    "paths, names",
    [
        (["/a/1.jpg"], ["1.jpg"]),
        (["/a/1.jpg", "/a/2.jpg"], ["1.jpg", "2.jpg"]),
        (["/a/1.jpg", "/a/b/1.jpg"], ["1.jpg", "b/1.jpg"]),
        (["/a/1.jpg", "/b/1.jpg"], ["a/1.jpg", "b/1.jpg"]),
        ([], []),
    ],
)
def test_names_are_paths_below_the_common_folder(paths, names):
    images = ImageNames(paths)
    assert [images.name(path) for path in paths] == names and images.name("c/9.jpg") == "c/9.jpg"


def test_memory_stays_flat(tmp_path):
    """Nothing of an image is kept: 600 images take no more than 100 do."""
    for kind in FORMATS[:3]:
        writer = open_annotations(kind, tmp_path, NAMES, ODD, model="best.pt")
        kept = []
        tracemalloc.start()
        for number in range(600):
            writer.write(f"/data/in/a/{number}.jpg", str(number), found())
            if number in (100, 599):
                kept.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        writer.close()
        assert kept[1] - kept[0] < 20_000, kind
