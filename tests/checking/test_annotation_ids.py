"""Annotation ids: each label of a COCO file is found again by its image, class and box."""

import json

import numpy as np

from utils.checking import annotation_ids
from utils.checking.annotation_ids import AnnotationIds

SHAPE = (64, 96)


def write(file, *annotations):
    """Write a JSON of (id, category, bbox) in one image."""
    content = {
        "images": [{"id": 0, "file_name": "some\\folder/a.jpg"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": number, "image_id": 0, "category_id": category, "bbox": box} for number, category, box in annotations
        ],
    }
    file.write_text(json.dumps(content))
    return AnnotationIds(file)


def test_labels_are_found_by_image_class_and_box(tmp_path):
    ids = write(
        tmp_path / "a.json",
        (11, 1, [10, 10, 20, 20]), (12, 2, [10, 10, 20, 20]), ("x13", 1, [10, 10, 20, 20.8]), (14, 1, [80, -5, 40, 20]),
    )  # fmt: skip

    def find(*box, name="cat", path="/data/a.jpg"):
        return ids.find(path, name, np.array(box, float), SHAPE)

    assert find(10, 10, 30, 30) == "annotation 11"
    assert find(10, 10, 30, 30, name="dog") == "annotation 12"
    assert find(10, 10, 30, 30.7) == "annotation x13"  # the nearest
    assert find(80, 0, 96, 15) == "annotation 14"  # was clipped to the image
    assert find(40, 10, 60, 30) == find(10, 10, 30, 30, path="/data/b.jpg") == find(10, 10, 30, 30, name="cow") == ""


def test_a_file_that_is_large_or_was_changed_gives_none(tmp_path, monkeypatch):
    box = np.array([10.0, 10, 30, 30])
    (tmp_path / "bad.json").write_text("[")
    assert AnnotationIds(tmp_path / "bad.json").find("a.jpg", "cat", box, SHAPE) == ""
    assert AnnotationIds(tmp_path / "absent.json").find("a.jpg", "cat", box, SHAPE) == ""
    monkeypatch.setattr(annotation_ids, "MAX_BYTES", 10)
    assert write(tmp_path / "a.json", (11, 1, [10, 10, 20, 20])).find("a.jpg", "cat", box, SHAPE) == ""
