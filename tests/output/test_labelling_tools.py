"""Pre-annotations as the labelling tools' own readers see them.

datumaro reads what CVAT imports, Label Studio's SDK checks and converts tasks, LabelImg's reader takes the text files.
Each is tested where its package is installed.
"""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.detections import Detections
from utils.output.annotation_files import FORMATS, open_annotations

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # those of the packages are not ours

NAMES = {0: 'a "cat" & <dog>', 1: "🚌 bus", 2: "third"}
BOXES = {NAMES[1]: [10.13, 20, 60, 50], NAMES[0]: [0, 0, 200, 100]}
ROWS = np.array([[10.126, 20, 60, 50, 0.876, 1], [0, 0, 200, 100, 0.5, 0]], np.float32)
IMAGES = ("1.jpg", 'b/it\'s <1> & "2".jpg', "b/😀.png")  # nothing is detected in the last


@pytest.fixture
def folder(tmp_path) -> Path:
    """Write images and their detections for each tool. Return the folder."""
    images = tmp_path / "images"
    paths = [images / name for name in IMAGES]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(path.suffix, np.zeros((100, 200, 3), np.uint8))[1].tobytes())
    for kind in FORMATS:
        writer = open_annotations(kind, tmp_path, NAMES, list(map(str, paths)), model="best.pt", confidence=True)
        for number, path in enumerate(paths):
            writer.write(str(path), path.stem, Detections(ROWS[: 2 if number < 2 else 0], (100, 200)))
        writer.close()
    return tmp_path


def read_with_datumaro(path, kind):
    """Return the boxes and confidences by image and class."""
    datumaro = pytest.importorskip("datumaro")
    data = datumaro.Dataset.import_from(str(path), kind)
    labels = data.categories()[datumaro.AnnotationType.label]
    found = {}
    for item in data:
        boxes = {labels[box.label].name: box.points for box in item.annotations}
        scores = [float(box.attributes.get("confidence", box.attributes.get("score"))) for box in item.annotations]
        found[item.id] = boxes, scores
    return found


def require_same(found):
    assert found.keys() == {Path(name).with_suffix("").as_posix() for name in IMAGES}
    for name, (boxes, scores) in found.items():
        detected = BOXES if not name.endswith("😀") else {}
        assert boxes.keys() == detected.keys()
        for label, points in boxes.items():
            assert points == pytest.approx(detected[label], abs=0.006), (name, label)
        assert sorted(scores, reverse=True) == pytest.approx([0.876, 0.5][: len(boxes)])


def test_datumaro_reads_cvat(folder):
    require_same(read_with_datumaro(folder / "annotations.xml", "cvat"))


def test_datumaro_reads_coco(folder):
    (folder / "coco" / "annotations").mkdir(parents=True)
    shutil.copy(folder / "instances_default.json", folder / "coco" / "annotations")
    shutil.copytree(folder / "images", folder / "coco" / "images" / "default")
    require_same(read_with_datumaro(folder / "coco", "coco_instances"))


def test_pycocotools_reads_coco(folder):
    coco = pytest.importorskip("pycocotools.coco").COCO(str(folder / "instances_default.json"))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == list(IMAGES)
    assert {coco.cats[entry["category_id"]]["name"] for entry in coco.anns.values()} == BOXES.keys()
    assert len(coco.getAnnIds(imgIds=[1])) == 2 and len(coco.getAnnIds(imgIds=[3])) == 0


def test_label_studio_takes_the_tasks(folder):
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface(
        (folder / "label-studio.xml").read_text()
    )
    for task in json.loads((folder / "label-studio.json").read_text()):
        assert interface.validate_task({"data": task["data"]})
        assert all(interface.validate_prediction(prediction) for prediction in task["predictions"])


def test_label_studio_converts_accepted_predictions(folder):
    """A person accepts all predictions, and Label Studio's converter writes them as COCO."""
    converter = pytest.importorskip("label_studio_sdk.converter")
    tasks = json.loads((folder / "label-studio.json").read_text())
    for number, task in enumerate(tasks):
        (prediction,) = task["predictions"]
        person = {"id": 1, "email": "a@b"}
        accepted = {"id": number, "result": prediction["result"], "was_cancelled": False, "completed_by": person}
        task |= {"id": number, "annotations": [accepted]}
    (folder / "tasks.json").write_text(json.dumps(tasks))
    config = str(folder / "label-studio.xml")
    converter.Converter(config, str(folder), download_resources=False).convert_to_coco(
        str(folder / "tasks.json"), str(folder / "converted"), is_dir=False
    )
    content = json.loads((folder / "converted" / "result.json").read_text())
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    assert sorted(names.values()) == sorted(NAMES.values())
    boxes = [(names[entry["category_id"]], entry["bbox"]) for entry in content["annotations"]]
    assert len(boxes) == 4
    for label, (x, y, width, height) in boxes:
        assert [x, y, x + width, y + height] == pytest.approx(BOXES[label], abs=0.006)


def test_labelimg_reads_yolo(folder):
    reader = pytest.importorskip("libs.yolo_io").YoloReader

    class Image:
        """Image that LabelImg shows."""

        def height(self) -> int:
            return 100

        def width(self) -> int:
            return 200

        def isGrayscale(self) -> bool:
            return False

    for name in IMAGES[:2]:
        shapes = reader(str(folder / "yolo" / f"{Path(name).stem}.txt"), Image()).get_shapes()
        found = {shape[0]: [*shape[1][0], *shape[1][2]] for shape in shapes}
        assert found == {NAMES[1]: [10, 20, 60, 50], NAMES[0]: [0, 0, 200, 100]}  # it rounds to pixels
